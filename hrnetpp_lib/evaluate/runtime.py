"""A trained network prepared for use: the same heatmaps sooner, by torch, OpenVINO or ONNX Runtime."""

import contextlib
import copy
import errno
import hashlib
import importlib.util
import json
import logging
import os
import sys
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Literal

import msgspec
import numpy as np
import platformdirs
import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from hrnetpp_lib.data.crops import MEAN, STD
from hrnetpp_lib.errors import HrnetppError
from hrnetpp_lib.files import check_file, decode_json, sha256, whole_file, whole_folder
from hrnetpp_lib.model.hrnet import HRNet
from hrnetpp_lib.model.weights import ModelCard
from hrnetpp_lib.pose.geometry import BOX_PADDING, CONVENTIONS
from hrnetpp_lib.pose.keypoints import SKELETONS

# From the fastest to the slowest on a CPU, as measured; and what each needs beside torch.
RUNTIMES = {
    "openvino": ("openvino", "onnx", "onnxscript"),
    "onnxruntime": ("onnxruntime", "onnx", "onnxscript"),
    "torch": (),
}
PRECISIONS = ("fp32", "bf16")
FORMATS = ("onnx", "openvino")
_EXTRA = "pip install 'hrnetpp-lib[fast]'"


class PreparedNetwork(nn.Module):
    """A network for use alone: images (B, 3, h, w) of the card's size -> raw heatmaps (B, K, h/4, w/4), fp32.

    Attributes:
        runtime: What computes: "torch", "openvino" or "onnxruntime".
        precision: "fp32" or "bf16"; the final layer is in fp32 always.
        device: Where images are wanted, and heatmaps are given.
    """

    def __init__(
        self,
        run: Callable[[Tensor], Tensor],
        input_hw: tuple[int, int],
        runtime: str,
        precision: str,
        device: torch.device,
    ):
        super().__init__()
        self._run, self._input_hw = run, tuple(input_hw)
        self.runtime, self.precision, self.device = runtime, precision, device
        self.eval()

    @property
    def described(self) -> str:
        """Runtime and precision, for people."""
        return f"runtime {self.runtime}, precision {self.precision}"

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Raw heatmaps. Raises: HrnetppError for images of another size than the card's."""
        if images.ndim != 4 or images.shape[1:] != (3, *self._input_hw):
            height, width = self._input_hw
            wanted = f"this network is prepared for (B, 3, {height}, {width})"
            raise HrnetppError(f"images of shape {tuple(images.shape)}: {wanted}")
        if not len(images):  # OpenVINO would give the last batch's heatmaps again
            return self(torch.zeros(1, *images.shape[1:]))[:0]
        images = images.to(self.device)
        by_torch = (self.runtime, self.precision) == ("torch", "bf16")
        with torch.autocast(self.device.type, torch.bfloat16, enabled=by_torch):
            return self._run(images)


def imitates_bf16(device: torch.device) -> bool:
    """Whether a device computes bf16 by routines for want of instructions, as x86 before AVX512 does."""
    lacks = getattr(torch.cpu, "get_capabilities", dict)().get("avx512_bf16") is False
    return device.type == "cpu" and (lacks or torch.backends.cpu.get_cpu_capability() in ("AVX2", "NO AVX"))


def prepare(model: HRNet, card: ModelCard, runtime: str = "auto", precision: str = "fp32") -> PreparedNetwork:
    """What infer, TTA and the explorer take in place of a trained network, and run sooner.

    fp32 rounds in another order than the network itself, no more. OpenVINO and ONNX Runtime run a graph that
    is made once per checkpoint, which takes a while and is said, and kept in the user's cache folder.

    Args:
        model: The network; it stays as it is. A network on a GPU stays there with runtime torch.
        card: Its card, for the size of the input.
        runtime: "torch", "openvino", "onnxruntime"; "auto" is torch on a GPU, else the fastest installed.
        precision: "fp32" or "bf16", which rounds all but the final layer to 8 bits.

    Raises: HrnetppError if runtime or precision is unknown or cannot be had here, or the card is another's.
    """
    device = _checked(model, card)
    if precision not in PRECISIONS:
        raise HrnetppError(f"precision {precision!r} is unknown; use {' or '.join(PRECISIONS)}")
    runtime = _picked(runtime, device, precision)
    device = device if runtime == "torch" else torch.device("cpu")
    if precision == "bf16" and runtime == "onnxruntime":
        raise HrnetppError("runtime onnxruntime computes in fp32 alone; use openvino or torch for bf16")
    if precision == "bf16" and imitates_bf16(device):
        slow = "this CPU has no instructions for bf16, and would imitate it, many times as slow as fp32"
        raise HrnetppError(f"precision bf16: {slow}; use fp32")
    if runtime == "torch":
        run = _run_torch(model, card, device)
    elif runtime == "openvino":
        run = _from_cache(model, card, runtime, lambda folder: _run_openvino(folder, model, precision))
    else:
        run = _from_cache(
            model, card, runtime, lambda folder: _run_session(_onnx_session(folder / "network.onnx"))
        )
    return PreparedNetwork(run, card.input_hw, runtime, precision, device)


def export(model: HRNet, card: ModelCard, format: str, path: Path) -> None:
    """Write the network's graph with its card: an ONNX file, or a folder of OpenVINO's network.xml and .bin.

    Input "images", (B, 3, h, w) normalised RGB of the card's size, any B; output "heatmaps", raw. The card is
    json in the file's metadata, under "hrnetpp_lib".

    Raises: HrnetppError if there is something at `path`, it cannot be written, or libraries are missing.
    """
    _checked(model, card)
    if format not in FORMATS:
        raise HrnetppError(f"format {format!r} is unknown; use {' or '.join(FORMATS)}")
    needed = RUNTIMES["openvino"] if format == "openvino" else ("onnx", "onnxscript")
    if missing := _missing(needed):
        raise HrnetppError(f"format {format} needs {', '.join(missing)}; {_EXTRA.replace('fast', 'export')}")
    if path.exists():
        raise HrnetppError(f"{path}: is there already; give another place, or remove it")
    if format == "onnx":
        with whole_file(path) as part:
            _write_onnx(model, card, part)
    else:
        with whole_folder(path) as part:
            _write_openvino(model, card, part)


class _Convention(msgspec.Struct):
    name: Literal["official", "exact_shift", "udp"]


class _Facts(msgspec.Struct):
    """What `_card_as_json` wrote, as far as a card needs it."""

    skeleton: Literal["coco17", "aic14"]
    input_hw: tuple[int, int]
    decoder: Literal["quarter_offset", "soft_argmax"]
    alpha: float
    coordinates: _Convention
    run: str


def is_exported(path: Path) -> bool:
    """Whether a path is that of a graph as `export` writes it: by its ending, or by what the folder holds."""
    return path.suffix in (".onnx", ".xml") or (path / "network.xml").is_file()


def open_exported(path: Path) -> tuple[PreparedNetwork, ModelCard]:
    """A graph that `export` wrote, an ONNX file or OpenVINO's folder, ready to be asked; and its card.

    Raises: HrnetppError if it is not there, not one of these, or its runtime is not installed.
    """
    file = path / "network.xml" if os.path.isdir(path) else path
    runtime = "onnxruntime" if file.suffix == ".onnx" else "openvino"
    check_file(file, "give the file or the folder that `export` wrote")
    if missing := _missing((runtime,)):
        raise HrnetppError(f"{path}: needs {', '.join(missing)}; {_EXTRA}")
    try:
        run, card = (_open_onnx if runtime == "onnxruntime" else _open_openvino)(file)
        facts = decode_json(card, _Facts, path, "export it anew")
    except HrnetppError:
        raise
    except Exception as error:  # each library has families of its own
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise HrnetppError(f"{path}: is no graph that `export` wrote ({reason}); export it anew") from error
    named = {"skeleton": SKELETONS[facts.skeleton], "coordinates": CONVENTIONS[facts.coordinates.name]}
    card = ModelCard(**{name: getattr(facts, name) for name in _Facts.__struct_fields__} | named)
    return PreparedNetwork(run, card.input_hw, runtime, "fp32", torch.device("cpu")), card


def _open_onnx(path: Path) -> tuple[Callable[[Tensor], Tensor], str]:
    session = _onnx_session(path)
    return _run_session(session), session.get_modelmeta().custom_metadata_map["hrnetpp_lib"]


def _open_openvino(path: Path) -> tuple[Callable[[Tensor], Tensor], str]:
    graph = _read_graph(path)
    return _run_graph(graph, "fp32"), graph.get_rt_info("hrnetpp_lib").value


def _missing(packages: tuple[str, ...]) -> list[str]:
    return [name for name in packages if importlib.util.find_spec(name) is None]


def _checked(model: HRNet, card: ModelCard) -> torch.device:
    """The device of a network that has weights, and that the card can be of."""
    if not isinstance(model, HRNet) or not isinstance(card, ModelCard):
        what = f"a {type(model).__name__} with a {type(card).__name__}"
        raise HrnetppError(f"{what}: give an HRNet, as `load_checkpoint` does, and its card; prepare it once")
    weights = next(model.parameters())
    if weights.is_meta:
        raise HrnetppError("a network on the device meta has no weights; load a checkpoint")
    if (mine := model.config["num_keypoints"]) != (wanted := len(card.skeleton)):
        raise HrnetppError(f"the network has {mine} heatmaps, its card {wanted} keypoints; give its own card")
    if any(side < 32 or side % 32 for side in card.input_hw):
        raise HrnetppError(f"the card's input_hw is {card.input_hw}; both must be multiples of 32")
    return weights.device


def _picked(runtime: str, device: torch.device, precision: str = "fp32") -> str:
    """A runtime by its name, or the fastest of those here."""
    if runtime not in ("auto", *RUNTIMES):
        raise HrnetppError(f"runtime {runtime!r} is unknown; use auto, {', '.join(RUNTIMES)} ({_EXTRA})")
    if runtime == "auto":
        usable = RUNTIMES if device.type == "cpu" else ("torch",)
        usable = [name for name in usable if (name, precision) != ("onnxruntime", "bf16")]
        return next(name for name in usable if not _missing(RUNTIMES[name]))
    if missing := _missing(RUNTIMES[runtime]):
        raise HrnetppError(f"runtime {runtime} needs {', '.join(missing)}; {_EXTRA}")
    return runtime


def _folded(model: HRNet) -> HRNet:
    """A copy in fp32 whose BNs are part of the convs before them, but for those after a pixel shuffle."""
    model = copy.deepcopy(model).float().eval().requires_grad_(False)
    for parent in list(model.modules()):
        # A BN is named right after the conv that feeds it: both come from `hrnet.conv_bn`.
        for (name, conv), (bn_name, bn) in pairwise(list(parent.named_children())):
            if isinstance(conv, nn.Conv2d) and isinstance(bn, nn.BatchNorm2d):
                setattr(parent, name, fuse_conv_bn_eval(conv, bn))
                setattr(parent, bn_name, nn.Identity())
    return model


# --------------------------------------------------------------------------------------------- runtimes


def _run_torch(model: HRNet, card: ModelCard, device: torch.device) -> nn.Module:
    torch.backends.cudnn.allow_tf32 = False  # fp32 means fp32
    network = _folded(model).to(device, memory_format=torch.channels_last)
    if device.type == "cpu":
        return network  # compiling takes minutes here, and gains little
    return _compiled(network, torch.zeros(2, 3, *card.input_hw, device=device))


@torch.no_grad()
def _compiled(network: nn.Module, images: Tensor) -> nn.Module:
    """The network compiled, or itself where that fails."""
    try:
        compiled = torch.compile(network)
        compiled(images)
    except Exception:  # a missing C++ compiler, an unsupported Python or GPU: all end here
        return network
    return compiled


def _silent(library: str) -> ModuleType:
    """A library imported so that it tells its makers nothing: unasked, both report that they are used."""
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    sys.modules.setdefault("openvino_telemetry", None)  # as if it were not installed
    return importlib.import_module(library)


def _run_openvino(folder: Path, model: HRNet, precision: str) -> Callable[[Tensor], Tensor]:
    graph = _read_graph(folder / "network.xml")
    if precision != "bf16":
        return _run_graph(graph, precision)
    # Rounded to bf16, heatmaps would move the soft-argmax by up to half a cell; and OpenVINO rounds the
    # final conv, whatever it is told: the graph ends before it.
    node = graph.outputs[0].get_node()
    while node.get_type_name() != "Convolution":
        node = node.input_value(0).get_node()
    trunk = _run_graph(_silent("openvino").Model([node.input_value(0)], graph.get_parameters()), precision)
    finish = copy.deepcopy(model.final_layer).float().cpu().requires_grad_(False)
    return lambda images: finish(trunk(images))


def _read_graph(path: Path) -> object:
    core = _silent("openvino").Core()
    core.set_property({"ENABLE_MMAP": False})  # the file may be replaced
    return core.read_model(path)


def _run_graph(graph: object, precision: str) -> Callable[[Tensor], Tensor]:
    settings = {
        "INFERENCE_PRECISION_HINT": {"fp32": "f32", "bf16": "bf16"}[precision],
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
    }
    compiled = _silent("openvino").Core().compile_model(graph, "CPU", settings)
    alone = threading.Lock()  # several threads would get each other's heatmaps

    def run(images: Tensor) -> Tensor:
        with alone:
            return torch.from_numpy(compiled(np.ascontiguousarray(images))[0])

    return run


def _onnx_session(path: Path) -> object:
    onnxruntime = _silent("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # spinning slows busy machines
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _run_session(session: object) -> Callable[[Tensor], Tensor]:
    return lambda images: torch.from_numpy(session.run(None, {"images": np.ascontiguousarray(images)})[0])


# ----------------------------------------------------------------------------------------------- graphs


def _card_as_json(card: ModelCard) -> str:
    """All that a reader who has not this package needs to feed the graph and to read its heatmaps.

    examples/onnx_pose.py is such a reader.
    """
    skeleton, facts = card.skeleton, {"format": 1, "channels": "RGB", "values": [0, 255]}
    facts |= {"normalisation": "(values - rgb_mean) / rgb_std", "rgb_mean": MEAN, "rgb_std": STD}
    facts |= {"input_hw": card.input_hw, "box_padding": BOX_PADDING, "heatmap_stride": 4}
    facts |= {"decoder": card.decoder, "alpha": card.alpha, "coordinates": vars(card.coordinates)}
    facts |= {"skeleton": skeleton.name, "keypoints": skeleton.names, "flip_pairs": skeleton.flip_pairs}
    return json.dumps(facts | {"limbs": skeleton.limbs, "run": card.run})


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without warnings about the exporter's own insides, and about libraries that nothing here uses."""
    log = logging.getLogger("torch.onnx")
    level = log.level
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            log.setLevel(logging.ERROR)
            yield
    finally:
        log.setLevel(level)


def _write_onnx(model: HRNet, card: ModelCard, path: Path) -> None:
    images, batch = torch.zeros(2, 3, *card.input_hw), torch.export.Dim("batch")
    names = {"input_names": ["images"], "output_names": ["heatmaps"]}
    with _quiet(), torch.no_grad():
        program = torch.onnx.export(
            _folded(model).cpu(), (images,), dynamo=True, dynamic_shapes=({0: batch},), verbose=False, **names
        )
        program.model.metadata_props["hrnetpp_lib"] = _card_as_json(card)
        program.save(path, external_data=False)


def _write_openvino(model: HRNet, card: ModelCard, folder: Path) -> None:
    openvino = _silent("openvino")
    with tempfile.TemporaryDirectory() as scratch:
        _write_onnx(model, card, onnx := Path(scratch) / "network.onnx")
        graph = _read_graph(onnx)
    graph.set_rt_info(_card_as_json(card), "hrnetpp_lib")
    try:
        openvino.save_model(graph, folder / "network.xml", compress_to_fp16=False)
    except RuntimeError as error:  # its way to say that the disk is full
        raise OSError(errno.EIO, f"OpenVINO cannot write its graph ({error})", str(folder)) from error


def _key(model: HRNet, card: ModelCard, runtime: str) -> str:
    """Names a graph by all that it depends on."""
    versions = [version(name) for name in ("hrnetpp-lib", "torch", runtime, "onnxscript")]
    digest = hashlib.sha256(json.dumps([model.config, card.input_hw, runtime, versions]).encode())
    for name, tensor in model.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.float().cpu().contiguous().numpy())
    return digest.hexdigest()


def _digests(folder: Path) -> str:
    return json.dumps({path.name: sha256(path) for path in sorted(folder.glob("network.*"))})


def _is_whole(folder: Path) -> bool:
    """Whether a folder of the cache holds what was put there: a flipped bit would move keypoints silently."""
    try:
        return (folder / "sha256.json").read_text() == _digests(folder)
    except (OSError, ValueError):
        return False


def _from_cache(model: HRNet, card: ModelCard, runtime: str, load: Callable) -> Callable[[Tensor], Tensor]:
    """The graph that a runtime runs; made first where the cache has none or a damaged one."""

    def fill(folder: Path) -> None:
        print(f"making the graph for {runtime}, once per checkpoint ...", flush=True)
        if runtime == "openvino":
            _write_openvino(model, card, folder)
        else:
            _write_onnx(model, card, folder / "network.onnx")
        (folder / "sha256.json").write_text(_digests(folder))

    cache = platformdirs.user_cache_path("hrnetpp_lib", appauthor=False)
    folder = cache / _key(model, card, runtime)
    try:
        with whole_folder(folder, _is_whole) as part:
            if part:
                fill(part)
        return load(folder)
    except HrnetppError:  # nobody may write there, or the disk is full
        with tempfile.TemporaryDirectory() as part:
            fill(Path(part))
            return load(Path(part))
