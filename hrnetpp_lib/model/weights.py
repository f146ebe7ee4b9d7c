"""Weight files, foreign ones and our own: read within bounds, checked as a whole, then copied."""

import io
import json
import pickle
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
from hrnetpp_lib.files import check_file, decode_json, sha256, whole_file
from hrnetpp_lib.model.hrnet import HRNet, HRNetConfig
from hrnetpp_lib.pose.geometry import CONVENTIONS, OFFICIAL, PixelConvention
from hrnetpp_lib.pose.keypoints import COCO17, SKELETONS, Skeleton
from hrnetpp_lib.recipe import Run

_HEAD = ("final_layer.weight", "final_layer.bias")
_STEM_AND_LAYER1 = ("conv1.", "bn1.", "conv2.", "bn2.", "layer1.")
_FLOATS = {torch.float32, torch.float64, torch.float16, torch.bfloat16}
_MMPOSE = "https://download.openmmlab.com/mmpose/pretrain_models/"
_ZOO = "the model zoo linked from github.com/leoxiaobin/deep-high-resolution-net.pytorch"
FILES = {  # name: (where, SHA-256 or the first digits of it); those of the zoo as others report them
    "hrnet_w48-8ef0771d.pth": (_MMPOSE, "8ef0771d"),
    "hrnet_w32-36af842e.pth": (_MMPOSE, "36af842e"),
    "pose_hrnet_w48_384x288.pth": (_ZOO, "95e0fec3194826d5e3f806ea89be68bbb84517b114c3a32b3058c56610b5ef61"),
    "pose_hrnet_w32_256x192.pth": (_ZOO, "19bc083708bb8d873211e50d85d56344c10290c6e8b564c813fdde09645c4c1c"),
}


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
def shrink_normalised(model: HRNet, divisor: float) -> None:
    """Divide the weights of every conv that a BN follows; what the network computes stays, but for BN's eps.

    Adam's steps do not grow with the weights: those of a trained network move less than those of a new one.
    """
    for name, module in model.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean /= divisor
            module.running_var /= divisor**2
        # Convs without BN have a bias; but not the skips.
        plain_skip = name.startswith("skips.") and not model.config["skip_bn"]
        if isinstance(module, nn.Conv2d) and module.bias is None and not plain_skip:
            module.weight /= divisor


def download(name: str, folder: Path | str) -> Path:
    """Return folder/name, fetched if it is not there, after checking its SHA-256.

    Raises: HrnetppError if the name is unknown, the file cannot be fetched, or its digest is wrong.
    """
    if name not in FILES:
        raise HrnetppError(f"{name}: unknown weight file; choose one of {', '.join(FILES)}")
    path, (source, digest) = Path(folder) / name, FILES[name]
    by_hand = f"get {name} from {source} by hand and put it at {path}"
    if not path.exists():
        if not source.endswith("/"):  # a page for people, no address of a file
            raise HrnetppError(f"{path}: not there, and it has no stable address; {by_hand}")
        import pooch

        try:
            pooch.retrieve(source + name, known_hash=None, fname=name, path=path.parent, progressbar=False)
        except OSError as error:
            raise HrnetppError(f"{path}: cannot be downloaded ({error}); {by_hand}") from error
    check_file(path, by_hand)
    if not (actual := sha256(path)).startswith(digest):
        raise HrnetppError(f"{path}: SHA-256 is {actual}, not {digest}...; delete the file and {by_hand}")
    return path


def _read(path: Path | str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors of a weight file by name, without wrappers of training scripts, and safetensors' metadata."""
    path, metadata = Path(path), None
    listed = f"; see weights.download({path.name!r}, {str(path.parent)!r})" if path.name in FILES else ""
    check_file(path, f"check the path or train the model first{listed}")
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
            reason = (
                "objects other than tensors are refused, as unpickling them can run code: use safetensors"
            )
        raise HrnetppError(f"{path}: damaged or not a weight file ({reason}); download it again") from error
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    if not isinstance(content, dict) or not all(map(_is_named_tensor, content, content.values())):
        raise HrnetppError(f"{path}: not a state_dict (names to dense tensors); save one with torch.save")
    tensors = {name.removeprefix("module."): tensor for name, tensor in content.items()}
    if len(tensors) < len(content):
        raise HrnetppError(f"{path}: holds names twice, with and without module.; save one state_dict alone")
    return tensors, metadata or {}


def _unpickle(raw: bytes) -> object:
    """What torch.load finds in a file, unless it asks for more memory than the file has bytes."""
    file = io.BytesIO(raw)
    entries = zipfile.ZipFile(file).infolist() if zipfile.is_zipfile(file) else []
    if any(entry.compress_type for entry in entries) or sum(entry.file_size for entry in entries) > len(raw):
        raise ValueError("compressed, as torch.save never does")
    if b"bytearray" in raw:  # torch.load makes one of any length, weights_only or not
        raise ValueError("holds a bytearray")
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
        try:
            save_file(tensors, part, metadata={_HEADER_KEY: header})
        except SafetensorError as error:  # so it reports a full disk
            raise OSError(str(error)) from error


def load_checkpoint(path: Path | str) -> tuple[HRNet, ModelCard]:
    """The network, on the CPU and in eval mode, and the card of a file of `save_checkpoint`.

    Raises: HrnetppError if the file is missing, damaged, or not of this package, or a weight is not finite.
    """
    tensors, metadata = _read(path)
    header = decode_json(metadata.get(_HEADER_KEY, "{}"), _Header, path, _REMEDY)
    card = decode_json(header.card, _CardInFile, f"{path}: its card", _REMEDY)
    config = decode_json(header.hrnet, HRNetConfig, f"{path}: its network", _REMEDY)
    model, skeleton = _build(path, config, tensors), SKELETONS[card.skeleton]
    if config.num_keypoints != len(skeleton):
        raise HrnetppError(f"{path}: {config.num_keypoints} heatmaps, but {skeleton.name}; {_REMEDY}")
    _copy(model, path, tensors, list(tensors))
    objects = {"skeleton": skeleton, "coordinates": CONVENTIONS[card.coordinates]}
    return model.eval(), ModelCard(**(msgspec.structs.asdict(card) | objects))


def _build(path: Path | str, config: HRNetConfig, tensors: dict[str, Tensor]) -> HRNet:
    """The network of a header on the CPU, its weights undefined, if the file's tensors are of its shapes."""
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
    raise HrnetppError(f"{path}: its tensors are not those of its network {config}; copy the file again")
