"""Weight files, foreign ones and our own: read within bounds, checked as a whole, then copied."""

import io
import json
import pickle
import re
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import msgspec
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from hrnetpp_lib.errors import HrnetppError
from hrnetpp_lib.files import check_file, decode_json, whole_file
from hrnetpp_lib.model import published
from hrnetpp_lib.model.hrnet import HRNet, HRNetConfig
from hrnetpp_lib.model.published import download as download  # it is used by this name
from hrnetpp_lib.pose.geometry import CONVENTIONS, OFFICIAL, UDP, PixelConvention, Size
from hrnetpp_lib.pose.keypoints import COCO17, SKELETONS, Skeleton
from hrnetpp_lib.recipe import Run

_HEAD = ("final_layer.weight", "final_layer.bias")
_STEM_AND_LAYER1 = ("conv1.", "bn1.", "conv2.", "bn2.", "layer1.")
_FLOATS = {torch.float32, torch.float64, torch.float16, torch.bfloat16}


@dataclass(frozen=True)
class LoadReport:
    """What became of every name: the network is loaded and new, the file is loaded, skipped and mismatched.

    Skipped names were not asked for; mismatched ones are of another shape and so new too, left as they were.
    """

    loaded: tuple[str, ...]
    skipped: tuple[str, ...]
    new: tuple[str, ...]
    mismatched: tuple[str, ...]

    def __str__(self) -> str:
        rows = []
        for field, names in vars(self).items():
            parts = ", ".join(sorted({name.split(".")[0] for name in names}))
            rows.append(f"{field:<10} {len(names):5d}  {parts}".rstrip())
        return "\n".join(rows)


def load_weights(model: HRNet, path: Path | str) -> LoadReport:
    """Load all weights from an official pose checkpoint, an ImageNet file of the same trunk, or our own file.

    The trunk must agree name by name and shape by shape. Only final_layer may differ: a file for another
    number of keypoints, or one without heatmaps (ImageNet), leaves the network's own final_layer in place.

    Raises: HrnetppError if the file is missing, damaged, holds code, belongs to another architecture, or its
        tensors are no finite floats; the network is as it was.
    Reference: HRNet++ report, training: each training stage starts from the one before.
    """
    (file, _), own = _read(path), model.state_dict()
    # ImageNet files carry classification layers, and a final_layer of other names, if any.
    for_imagenet = _HEAD[0] not in file
    mismatched = tuple(name for name in own if name in file and file[name].shape != own[name].shape)
    optional = _HEAD if for_imagenet or set(mismatched) == set(_HEAD) else ()
    missing = [name for name in own if name not in file]
    extra = [name for name in file if name not in own and not for_imagenet]
    wrong = [name for name in (*missing, *mismatched) if name not in optional] + extra
    if wrong:
        raise HrnetppError(
            f"{path}: belongs to another architecture: {len(missing)} names missing, {len(extra)} unknown, "
            f"{len(mismatched)} of another shape, for example {wrong[0][:100]}; build the network the file "
            "was made for, or use load_stem_and_layer1"
        )
    # CHOICE: from 14 to 17 keypoints the final layer starts anew; its 12 shared rows are not copied.
    wanted = [name for name in own if name in file and name not in mismatched]
    return _copy(model, path, file, wanted, mismatched)


def load_stem_and_layer1(model: HRNet, path: Path | str) -> LoadReport:
    """Load stem and layer1 alone, from a file in official or timm layout, into any of the variants.

    Squeeze-and-excite layers stay as they are unless the file has them.

    Raises: HrnetppError as `load_weights`, or if the file's stem or layer1 has another shape.
    Reference: HRNet++ report, training: only HRNet's first stage is pretrained on ImageNet.
    """
    (file, _), own = _read(path), model.state_dict()
    wanted = [n for n in own if n.startswith(_STEM_AND_LAYER1) and (n in file or ".se." not in n)]
    for name in wanted:
        if name not in file or file[name].shape != own[name].shape:
            found = f"has shape {tuple(file[name].shape)}" if name in file else "is missing"
            raise HrnetppError(
                f"{path}: {name} {found}, expected {tuple(own[name].shape)}; use an HRNet file, and "
                "a network with the default stem_channels=64 and layer1_blocks=4"
            )
    return _copy(model, path, file, wanted)


@torch.no_grad()
def scale_normalised(model: HRNet, factor: float) -> None:
    """Multiply the weights of every conv that a BN follows; but for BN's eps the network computes the same.

    Adam's steps do not grow with the weights: the larger these are, the less a step turns them.
    """
    for name, module in model.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean *= factor
            module.running_var *= factor**2
        # Convs without BN have a bias; but not the skips.
        plain_skip = name.startswith("skips.") and not model.config["skip_bn"]
        if isinstance(module, nn.Conv2d) and module.bias is None and not plain_skip:
            module.weight *= factor


def _read(path: Path | str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors of a weight file by official names, out of trainings' wrappers, and safetensors' metadata."""
    path, metadata = Path(path), None
    listed = path.name in published.FILES
    listed = f"; see weights.download({path.name!r}, {str(path.parent)!r})" if listed else ""
    check_file(path, f"check the path or train the model first{listed}")
    published.check_digest(path, "it is torn, or another file under this name: get it again, or rename it")
    with open(path, "rb") as file:
        if file.read(64).lstrip().lower().startswith((b"<!doctype", b"<html")):
            raise HrnetppError(
                f"{path}: a web page, not weights; its site wants a click: fetch the file itself"
            )
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as file:
                content = {name: file.get_tensor(name) for name in list(file.keys())}
                metadata = file.metadata()
        else:
            content = _unpickle(path.read_bytes())
    except Exception as error:  # a damaged file can raise nearly anything
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        if isinstance(error, pickle.UnpicklingError):  # PyTorch advises to trust the file
            what = re.search(r"GLOBAL ([\w.]{1,200})", str(error))
            what = what[1] if what else "objects other than tensors"
            raise HrnetppError(
                f"{path}: damaged, or holds {what}, refused, as unpickling it can run code; download it "
                "again or, where you trust it, save its state_dict alone, best as safetensors: "
                "torch.save(torch.load(path, weights_only=False)['state_dict'], new_path)"
            ) from error
        raise HrnetppError(f"{path}: damaged or not a weight file ({reason}); download it again") from error
    for wrapper in ("state_dict", "best_state_dict"):
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
            break
    if not isinstance(content, dict) or not all(map(_is_named_tensor, content, content.values())):
        raise HrnetppError(f"{path}: not a state_dict (names to dense tensors); save one with torch.save")
    tensors = {published.official_name(name): tensor for name, tensor in content.items()}
    if len(tensors) < len(content):
        raise HrnetppError(f"{path}: holds names twice, with and without a prefix; save one state_dict alone")
    if _HEADER_KEY not in (metadata or {}):
        tensors = _counters(tensors) | tensors
    return tensors, metadata or {}


def _counters(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """BN's counts of batches, which files of old PyTorch versions lack; nothing computes with them."""
    ends = [name.removesuffix("running_var") for name in tensors if name.endswith(".running_var")]
    return {f"{start}num_batches_tracked": torch.tensor(0) for start in ends}


class _Ignored:
    """Stands for what trainings of others save beside the tensors; takes all, does and keeps nothing."""

    def __new__(cls, *_: object) -> "_Ignored":
        return super().__new__(cls)

    def __init__(self, *_: object):
        pass

    def __setstate__(self, state: object) -> None:
        pass


def _stand_in(module: str, name: str) -> type[_Ignored]:
    """What the unpickler takes for the class or function of that name; the real one is never called."""
    return type(name, (_Ignored,), {"__module__": module})


_MMENGINE = "mmengine.logging.history_buffer"
_BESIDE_TENSORS = [
    *[_stand_in("numpy", name) for name in ("ndarray", "dtype")],
    *[
        _stand_in(f"numpy.{core}.multiarray", name)
        for core in ("core", "_core")
        for name in ("_reconstruct", "scalar")
    ],
    *[_stand_in(_MMENGINE, "HistoryBuffer"), _stand_in("builtins", "getattr")],
]


def _unpickle(raw: bytes) -> object:
    """What torch.load finds in a file, unless it asks for more memory than the file has bytes.

    Figures, their history and datasets' descriptions are left out: nothing of numpy or mmengine is called.
    """
    file = io.BytesIO(raw)
    entries = zipfile.ZipFile(file).infolist() if zipfile.is_zipfile(file) else []
    if any(entry.compress_type for entry in entries) or sum(entry.file_size for entry in entries) > len(raw):
        raise ValueError("compressed, as torch.save never does")
    if b"bytearray" in raw:  # torch.load makes one of any length, weights_only or not
        raise ValueError("holds a bytearray")
    with torch.serialization.safe_globals(_BESIDE_TENSORS):
        return torch.load(io.BytesIO(raw), map_location="cpu", weights_only=True)


def _is_named_tensor(name: object, value: object) -> bool:
    named = isinstance(name, str) and name.isprintable() and isinstance(value, Tensor)
    return named and value.layout == torch.strided and not value.is_nested and value.device.type == "cpu"


def _copy(
    model: HRNet,
    path: Path | str,
    file: dict[str, Tensor],
    names: list[str],
    mismatched: tuple[str, ...] = (),
) -> LoadReport:
    """Copy tensors of the right shape into the network, once all are known to be good."""
    own, good = model.state_dict(), {}
    for name in names:
        tensor, dtype = file[name], own[name].dtype
        if tensor.dtype != dtype and not {tensor.dtype, dtype} <= _FLOATS:
            raise HrnetppError(f"{path}: {name} holds {tensor.dtype}, expected {dtype}; use another file")
        good[name] = tensor = tensor.to(dtype)
        if not tensor.isfinite().all() or (name.endswith("running_var") and (tensor < 0).any()):
            raise HrnetppError(f"{path}: {name} is not finite or negative; use another file, or train anew")
    model.load_state_dict(good, strict=False)
    skipped = tuple(name for name in file if name not in good and name not in mismatched)
    return LoadReport(tuple(good), skipped, tuple(name for name in own if name not in good), mismatched)


@dataclass(frozen=True)
class ModelCard:
    """How to use a network; stored in the checkpoint's header.

    Attributes:
        skeleton: The keypoints of the output channels.
        input_hw: Input height and width in px.
        decoder, alpha: How heatmaps become keypoints, and soft-argmax's inverse temperature.
        coordinates: What a cell means in input px, and the shift after mirroring.
        run: Name of the training run, empty for foreign weights.
    """

    skeleton: Skeleton = COCO17
    input_hw: tuple[int, int] = (384, 288)
    decoder: Literal["quarter_offset", "soft_argmax"] = "quarter_offset"
    alpha: float = 60.0
    coordinates: PixelConvention = OFFICIAL
    run: str = ""

    @classmethod
    def of_run(cls, run: Run, skeleton: Skeleton) -> "ModelCard":
        """The card of the network that a training run makes."""
        coordinates = CONVENTIONS[run.stage.coordinates]
        return cls(skeleton, run.profile.input_hw, run.stage.decoder, run.stage.alpha, coordinates, run.name)


_Side = Annotated[int, msgspec.Meta(ge=32, le=2048, multiple_of=32)]  # px


class _CardInFile(msgspec.Struct, forbid_unknown_fields=True):
    """A `ModelCard` as json."""

    skeleton: Literal["coco17", "aic14"]
    input_hw: tuple[_Side, _Side]
    decoder: Literal["quarter_offset", "soft_argmax"]
    alpha: Annotated[float, msgspec.Meta(gt=0, le=1e6)]
    coordinates: Literal["official", "exact_shift", "udp"]
    run: Annotated[str, msgspec.Meta(max_length=255, pattern=r"\A[\w+. -]*\Z")]


# What the safetensors header says of the network: two texts of json.
_Header = msgspec.defstruct("_Header", [("card", str), ("hrnet", str)], forbid_unknown_fields=True)
_HEADER_KEY = "hrnetpp_lib"
_REMEDY = "no model card of this package: train with it, or use weights.load_weights on a network you build"


def save_checkpoint(model: HRNet, card: ModelCard, path: Path) -> None:
    """Write one safetensors file, whole or not at all. Raises: HrnetppError if it cannot be written."""
    content = vars(card) | {"skeleton": card.skeleton.name, "coordinates": card.coordinates.name}
    # One entry only: the library writes several in no fixed order, and equal networks would differ in bytes.
    header = json.dumps({"card": json.dumps(content), "hrnet": json.dumps(model.config)})
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    with whole_file(path) as part:
        part.touch()
        mode = part.stat().st_mode
        try:
            save_file(tensors, part, metadata={_HEADER_KEY: header})
        except SafetensorError as error:  # so it reports a full disk
            raise OSError(str(error)) from error
        part.chmod(mode)  # the library's own lets nobody read it but the owner


def load_checkpoint(path: Path | str, input_hw: Size | None = None) -> tuple[HRNet, ModelCard]:
    """The network, on the CPU and in eval mode, and its card, of our own file or a published one.

    Published are pose networks of the official code and of mmpose, and whatever else has their layout. They
    have no card: network and keypoints are read off the tensors, and a line says what was decided.

    Args:
        path: The file.
        input_hw: Of a published network's input; by default its name's, or else its width's usual.

    Raises: HrnetppError if the file is missing, damaged, of another layout or set of keypoints, or not the
        file of its name, a weight is not finite, or input_hw is not its card's.
    """
    path = Path(path)
    tensors, metadata = _read(path)
    if _HEADER_KEY not in metadata:
        return _load_published(path, tensors, input_hw)
    header = decode_json(metadata[_HEADER_KEY], _Header, path, _REMEDY)
    card = decode_json(header.card, _CardInFile, f"{path}: its card", _REMEDY)
    config = decode_json(header.hrnet, HRNetConfig, f"{path}: its network", _REMEDY)
    model, skeleton = _build(path, config, tensors), SKELETONS[card.skeleton]
    if config.num_keypoints != len(skeleton):
        raise HrnetppError(f"{path}: {config.num_keypoints} heatmaps, but {skeleton.name}; {_REMEDY}")
    if input_hw is not None and tuple(input_hw) != card.input_hw:
        raise HrnetppError(f"{path}: its card says input {_by(card.input_hw)}; leave {_by(input_hw)} out")
    _copy(model, path, tensors, list(tensors))
    objects = {"skeleton": skeleton, "coordinates": CONVENTIONS[card.coordinates]}
    return model.eval(), ModelCard(**(msgspec.structs.asdict(card) | objects))


_SWITCHES_OFF = dict.fromkeys(("se", "avgpool_down", "skips", "subpixel_head"), False)


def _load_published(path: Path, tensors: dict[str, Tensor], input_hw: Size | None) -> tuple[HRNet, ModelCard]:
    """Network and card of a file without one; says what they are."""
    arguments = published.network_of(tensors)
    if not arguments:
        what = "no pose network of HRNet's layout (ImageNet's have no heatmaps)"
        raise HrnetppError(f"{path}: {what}; give a pose checkpoint, or use weights.load_weights")
    skeleton = SKELETONS[published.keypoints_of(path, arguments["num_keypoints"])]
    model = _build(path, HRNetConfig(**(HRNet.__init__.__kwdefaults__ | _SWITCHES_OFF | arguments)), tensors)
    _copy(model, path, tensors, list(tensors))
    width, name = arguments["base_channels"], path.stem.lower()
    hw, why = (input_hw, "as given") if input_hw else published.input_of(path, width)
    # Both codes: RGB, ImageNet's mean and deviation, quarter offset, a flip shift of one cell.
    card = ModelCard(skeleton, published.parse_size(_by(hw)), coordinates=UDP if "udp" in name else OFFICIAL)
    network = ", ".join([f"HRNet-W{width}", *(each for each in _SWITCHES_OFF if arguments.get(each))])
    shift = f"coordinates {card.coordinates.name} (flip shift {card.coordinates.flip_shift:g})"
    digest = "as its name says" if published.known_digest(path.name) else "unknown, so not checked"
    decoder = f"decoder {card.decoder}"
    if "udp" in name or "dark" in name:
        decoder += " (its authors' DARK is not here, so poses differ a little)"
    says = f"{skeleton.name}, input {_by(hw)} ({why}), {shift}, {decoder}, SHA-256 {digest}"
    print(f"{path.name}: no card, so read as {network}, {says}", flush=True)
    return model.eval(), card


def _by(size: Size) -> str:
    return "x".join(map(str, size))


def _build(path: Path | str, config: HRNetConfig, tensors: dict[str, Tensor]) -> HRNet:
    """The network of a config on the CPU, its weights undefined, if the file's tensors are of its shapes."""
    # Sizes are as large as the header likes, so nothing is made of them before the tensors bear them out.
    units = config.blocks_per_branch * sum(n * m for n, m in zip((2, 3, 4), config.modules, strict=True))
    if units + config.layer1_blocks <= len(tensors):
        try:
            with torch.device("meta"):
                model = HRNet(**msgspec.structs.asdict(config))
        except HrnetppError as error:
            raise HrnetppError(f"{path}: {error}") from None
        expected = {name: tensor.shape for name, tensor in model.state_dict().items()}
        if expected == {name: tensor.shape for name, tensor in tensors.items()}:
            return model.to_empty(device="cpu")
    raise HrnetppError(
        f"{path}: its tensors are not those of its network {config}; get the file again, or another"
    )
