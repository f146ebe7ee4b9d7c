"""Weight files: our own safetensors, official pose checkpoints, ImageNet backbones, and where to get them.

file                               layout                                       read by
model.safetensors                  any HRNet of ours, constructor in the header load_model, load_weights
pose_hrnet_w48_384x288.pth         plain HRNet with head                        load_weights
hrnet_w48-8ef0771d.pth, timm's     plain HRNet for ImageNet, another head       load_weights, load_stage1
"""

import hashlib
import json
import pickle
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from hrnetpp_lib.errors import HrnetppError
from hrnetpp_lib.files import whole_file
from hrnetpp_lib.model.hrnet import HRNet
from hrnetpp_lib.pose.geometry import OFFICIAL, PixelConvention, get_convention
from hrnetpp_lib.pose.keypoints import COCO17, SKELETONS, Skeleton
from hrnetpp_lib.recipe import Run

_HEADER_KEY, _CONFIG_KEY = "hrnetpp_lib", "hrnet"  # of the safetensors header, and within its entry
_HEAD = ("final_layer.weight", "final_layer.bias")
_STAGE1 = ("conv1.", "bn1.", "conv2.", "bn2.", "layer1.")
_MMPOSE = "https://download.openmmlab.com/mmpose/pretrain_models/"
_DRIVE = "the model zoo linked from github.com/leoxiaobin/deep-high-resolution-net.pytorch"
FILES = {  # name: (where, SHA-256 or the first digits of it)
    "hrnet_w48-8ef0771d.pth": (_MMPOSE, "8ef0771d"),
    "hrnet_w32-36af842e.pth": (_MMPOSE, "36af842e"),
    # Digests as others report them: the Drive folder publishes none.
    "pose_hrnet_w48_384x288.pth": (
        _DRIVE,
        "95e0fec3194826d5e3f806ea89be68bbb84517b114c3a32b3058c56610b5ef61",
    ),
    "pose_hrnet_w32_256x192.pth": (
        _DRIVE,
        "19bc083708bb8d873211e50d85d56344c10290c6e8b564c813fdde09645c4c1c",
    ),
}


@dataclass(frozen=True)
class LoadReport:
    """What became of every name: loaded and new make up the network; loaded, skipped, mismatched the file.

    Attributes:
        loaded: Copied from the file.
        skipped: In the file, not asked for.
        new: In the network, left as it was.
        mismatched: Wanted, but of another shape in the file; also in new.
    """

    loaded: tuple[str, ...]
    skipped: tuple[str, ...]
    new: tuple[str, ...]
    mismatched: tuple[str, ...]

    def __str__(self) -> str:
        rows = []
        for field in ("loaded", "skipped", "new", "mismatched"):
            names = getattr(self, field)
            parts = sorted({name.split(".")[0] for name in names})
            rows.append(f"{field:<10} {len(names):5d}  {', '.join(parts)}".rstrip())
        return "\n".join(rows)


def save_model(model: HRNet, path: Path | str, metadata: dict[str, str]) -> None:
    """Write weights, constructor arguments and metadata to one safetensors file, whole or not at all.

    Args:
        model: An unwrapped network, on any device.
        path: Target; its folder is made, an older file replaced.
        metadata: Kept in the file's header.
    """
    path = Path(path)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    # One entry only: the library writes several in no fixed order, and equal networks would differ in bytes.
    header = json.dumps(metadata | {_CONFIG_KEY: json.dumps(model.config)}, sort_keys=True)
    with whole_file(path) as part:
        try:
            save_file(tensors, part, metadata={_HEADER_KEY: header})
        except SafetensorError as error:  # so it reports a full disk
            raise OSError(str(error)) from error


def load_model(path: Path | str) -> tuple[HRNet, dict[str, str]]:
    """Rebuild a network from a file of `save_model`.

    Returns:
        The network on the CPU in training mode, and the metadata it was saved with.

    Raises:
        HrnetppError: If the file is missing, damaged, or was not written by `save_model`.
    """
    path = _existing(path)
    try:
        with safe_open(path, framework="pt") as file:
            metadata = json.loads((file.metadata() or {})[_HEADER_KEY])
        model = HRNet(**json.loads(metadata.pop(_CONFIG_KEY)))
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise HrnetppError(
            f"{path}: not a model saved by this package ({type(error).__name__}: {error}); copy it again, or "
            "build the network yourself and use load_weights"
        ) from error
    load_weights(model, path)
    return model, metadata


def load_weights(model: HRNet, path: Path | str) -> LoadReport:
    """Load all weights from an official pose checkpoint, an ImageNet file of the same trunk, or our own file.

    The trunk must agree name by name and shape by shape. Only final_layer may differ: a file for another
    number of keypoints, or one without heatmaps (ImageNet), leaves the network's own final_layer in place.

    Raises:
        HrnetppError: If the file is missing, damaged, holds code, or belongs to another architecture.

    Reference: HRNet++ report, training: each training stage starts from the one before.
    """
    file, own = _read(path), model.state_dict()
    # CHOICE: from 14 to 17 keypoints the final layer starts anew; its 12 shared rows are not copied.

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
            f"{len(mismatched)} of another shape, for example {wrong[0]}; build the network the file was "
            "made for, or use load_stage1 for stem and layer1 alone"
        )
    return _copy(model, file, [name for name in own if name in file and name not in mismatched], mismatched)


def load_stage1(model: HRNet, path: Path | str) -> LoadReport:
    """Load stem and layer1 alone, from a file in official or timm layout, into any of the variants.

    Squeeze-and-excite layers stay as they are unless the file has them.

    Raises:
        HrnetppError: If the file is missing, damaged, holds code, or its stem or layer1 has another shape.

    Reference: HRNet++ report, training: only the first stage is pretrained on ImageNet.
    """
    file, own = _read(path), model.state_dict()
    wanted = [name for name in own if name.startswith(_STAGE1) and (name in file or ".se." not in name)]
    for name in wanted:
        shape = tuple(file[name].shape) if name in file else None
        if shape != tuple(own[name].shape):
            found = f"has shape {shape}" if shape is not None else "is missing"
            raise HrnetppError(
                f"{path}: {name} {found}, expected {tuple(own[name].shape)}; use an HRNet file, and "
                "a network with the default stem_channels=64 and layer1_blocks=4"
            )
    return _copy(model, file, wanted)


def download(name: str, folder: Path | str) -> Path:
    """Return folder/name, fetched if it is not there, after checking its SHA-256.

    Raises:
        HrnetppError: If the name is unknown, the file cannot be fetched, or its digest is wrong.
    """
    if name not in FILES:
        raise HrnetppError(f"{name}: unknown weight file; choose one of {', '.join(FILES)}")
    path, (source, digest) = Path(folder) / name, FILES[name]
    by_hand = f"get {name} from {source} by hand and put it at {path}"
    if not path.is_file():
        if not source.endswith("/"):  # a page for people, no address of a file
            raise HrnetppError(f"{path}: not there, and it has no stable address; {by_hand}")
        import pooch

        try:
            pooch.retrieve(source + name, known_hash=None, fname=name, path=path.parent, progressbar=False)
        except OSError as error:
            raise HrnetppError(f"{path}: cannot be downloaded ({error}); {by_hand}") from error
    with open(path, "rb") as file:
        actual = hashlib.file_digest(file, "sha256").hexdigest()
    if not actual.startswith(digest):
        raise HrnetppError(
            f"{path}: SHA-256 is {actual}, expected {digest}...; delete the file and {by_hand}"
        )
    return path


def _copy(
    model: HRNet, file: dict[str, Tensor], names: list[str], mismatched: tuple[str, ...] = ()
) -> LoadReport:
    model.load_state_dict({name: file[name] for name in names}, strict=False)
    loaded = set(names)
    return LoadReport(
        loaded=tuple(names),
        skipped=tuple(name for name in file if name not in loaded and name not in mismatched),
        new=tuple(name for name in model.state_dict() if name not in loaded),
        mismatched=mismatched,
    )


def _existing(path: Path | str) -> Path:
    path = Path(path)
    if not path.is_file():
        listed = f"; see weights.download({path.name!r}, {str(path.parent)!r})" if path.name in FILES else ""
        raise HrnetppError(f"{path}: no such file; check the path or train the model first{listed}")
    return path


def _read(path: Path | str) -> dict[str, Tensor]:
    """Tensors of a weight file by name, without the wrappers of training scripts."""
    path = _existing(path)
    try:
        if path.suffix == ".safetensors":
            content = load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise HrnetppError(
            f"{path}: damaged, or holds objects other than tensors, refused because unpickling them "
            "can run code; download it again, or ask its author for a plain state_dict or safetensors file"
        ) from error
    except Exception as error:  # a damaged file can raise nearly anything
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise HrnetppError(f"{path}: damaged or not a weight file ({reason}); download it again") from error
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    if not isinstance(content, dict) or not all(isinstance(t, Tensor) for t in content.values()):
        raise HrnetppError(f"{path}: not a state_dict (names to tensors); save one with torch.save")
    return {name.removeprefix("module."): tensor for name, tensor in content.items()}


@dataclass(frozen=True)
class ModelCard:
    """How to use a network; stored in the checkpoint's header.

    Attributes:
        skeleton: The keypoints of the output channels.
        input_hw: Input height and width in px.
        decoder: How heatmaps become keypoints.
        alpha: Inverse temperature of the soft-argmax decoder.
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
        stage = run.stage
        coordinates = get_convention(stage.coordinates)
        return cls(skeleton, run.profile.input_hw, stage.decoder, stage.alpha, coordinates, run.name)


def save_checkpoint(model: HRNet, card: ModelCard, path: Path) -> None:
    """Write weights and card to one safetensors file, whole or not at all."""
    names = {"skeleton": card.skeleton.name, "coordinates": card.coordinates.name}
    content = asdict(replace(card, skeleton=None)) | names
    save_model(model, path, {"card": json.dumps(content)})


def load_checkpoint(path: Path) -> tuple[HRNet, ModelCard]:
    """Rebuild network and card from a file of `save_checkpoint`; the network is in eval mode.

    Raises:
        HrnetppError: If the file is missing, damaged, or was not written by this package, or a weight is not
            finite.
    """
    model, metadata = load_model(path)
    spoilt = [name for name, tensor in model.state_dict().items() if not tensor.isfinite().all()]
    if spoilt:
        raise HrnetppError(f"{path}: {spoilt[0]} is not finite; use another checkpoint, or train anew")
    try:
        content = json.loads(metadata["card"])
        content["skeleton"] = SKELETONS[content["skeleton"]]
        content["coordinates"] = get_convention(content["coordinates"])
        content["input_hw"] = tuple(content["input_hw"])
        card = ModelCard(**content)
    except (KeyError, TypeError, ValueError) as error:
        raise HrnetppError(
            f"{path}: holds weights but no model card ({error!r}); train with this package, or load the "
            "weights with weights.load_weights into a network of your choice"
        ) from error
    return model.eval(), card
