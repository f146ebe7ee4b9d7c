"""Networks that others published: which files, where they are, what their authors measured."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from torch import Tensor
from tqdm.std import tqdm

from hrnetpp_lib.errors import HrnetppError
from hrnetpp_lib.files import check_file, replace_durably, sha256
from hrnetpp_lib.pose.geometry import Size

METRICS = ("AP", "AP50", "AP75", "APM", "APL", "AR", "AR50", "AR75", "ARM", "ARL")
BOXES = "COCO_val2017_detections_AP_H_56_person.json"  # of person AP 56.4; all figures below are on them
_SITE = "https://download.openmmlab.com/mmpose/"


@dataclass(frozen=True)
class PublishedFile:
    """A weight file that others published.

    Attributes:
        by: Who.
        source: The address of its folder, with a slash at its end, or a page for people.
        digest: Its SHA-256, or the first digits of it; empty where nobody tells it.
        figures: What its authors measured with flip test on COCO val2017 and `BOXES`: metric -> percent.
    """

    by: str
    source: str
    digest: str = ""
    figures: Mapping[str, float] = field(default_factory=dict)


def _official(digest: str, *figures: float) -> PublishedFile:
    by = "github.com/leoxiaobin/deep-high-resolution-net.pytorch"
    return PublishedFile(
        by, f"the model zoo linked from {by}", digest, dict(zip(METRICS, figures, strict=True))
    )


def _mmpose(folder: str, digest: str, *figures: float) -> PublishedFile:
    names = ("AP", "AP50", "AP75", "AR", "AR50") if figures else ()
    return PublishedFile(
        "github.com/open-mmlab/mmpose", _SITE + folder, digest, dict(zip(names, figures, strict=True))
    )


_V0, _V1 = "top_down/hrnet/", "v1/body_2d_keypoint/topdown_heatmap/coco/"
# Digests of the zoo's files as others report them, those of the rest from their names. Figures: README of the
# official code; hrnet_coco.md of mmpose 0.x and 1.x.
FILES = {
    "hrnet_w48-8ef0771d.pth": _mmpose("pretrain_models/", "8ef0771d"),  # ImageNet
    "hrnet_w32-36af842e.pth": _mmpose("pretrain_models/", "36af842e"),
    "pose_hrnet_w32_256x192.pth": _official(
        "19bc083708bb8d873211e50d85d56344c10290c6e8b564c813fdde09645c4c1c",
        *(74.4, 90.5, 81.9, 70.8, 81.0, 79.8, 94.2, 86.5, 75.7, 85.8),
    ),
    "pose_hrnet_w32_384x288.pth": _official(
        "", *(75.8, 90.6, 82.5, 72.0, 82.7, 80.9, 94.3, 86.9, 76.7, 87.1)
    ),
    "pose_hrnet_w48_256x192.pth": _official(
        "", *(75.1, 90.6, 82.2, 71.5, 81.8, 80.4, 94.3, 86.7, 76.2, 86.4)
    ),
    "pose_hrnet_w48_384x288.pth": _official(
        "95e0fec3194826d5e3f806ea89be68bbb84517b114c3a32b3058c56610b5ef61",
        *(76.3, 90.8, 82.9, 72.3, 83.4, 81.2, 94.2, 87.1, 76.7, 87.6),
    ),
    "hrnet_w32_coco_256x192-c78dce93_20200708.pth": _mmpose(_V0, "c78dce93", 74.6, 90.4, 81.9, 79.9, 94.2),
    "hrnet_w32_coco_384x288-d9f0d786_20200708.pth": _mmpose(_V0, "d9f0d786", 76.0, 90.6, 82.9, 81.0, 94.3),
    "hrnet_w48_coco_256x192-b9e0b3ab_20200708.pth": _mmpose(_V0, "b9e0b3ab", 75.6, 90.7, 82.5, 80.6, 94.2),
    "hrnet_w48_coco_384x288-314c8528_20200708.pth": _mmpose(_V0, "314c8528", 76.7, 91.0, 83.1, 81.6, 94.6),
    "td-hm_hrnet-w32_8xb64-210e_coco-256x192-81c58e40_20220909.pth": _mmpose(
        _V1, "81c58e40", 74.9, 90.6, 82.1, 80.4, 94.5
    ),
    "td-hm_hrnet-w32_8xb64-210e_coco-384x288-ca5956af_20220909.pth": _mmpose(
        _V1, "ca5956af", 76.1, 90.8, 82.6, 81.1, 94.4
    ),
    "td-hm_hrnet-w48_8xb32-210e_coco-256x192-0e67c616_20220913.pth": _mmpose(
        _V1, "0e67c616", 75.6, 90.8, 82.6, 80.9, 94.5
    ),
    "td-hm_hrnet-w48_8xb32-210e_coco-384x288-c161b7de_20220915.pth": _mmpose(
        _V1, "c161b7de", 76.7, 91.1, 83.2, 81.7, 94.7
    ),
}
_USUAL_INPUT = {32: (256, 192), 48: (384, 288)}
# Sets of as many keypoints as COCO or AI Challenger, but other ones.
_OTHER_KEYPOINTS = re.compile("h36m|posetrack|ap10k|macaque|crowdpose|lsp", re.IGNORECASE)


# ------------------------------------------------------------------------------------------ what a file is


def known_digest(name: str) -> str:
    """The first digits of a file's SHA-256: as listed here, or as its own name says; else nothing.

    Names say it as in `hrnet_w48-8ef0771d.pth` and `..._384x288-314c8528_20200708.pth`.
    """
    said = re.search(r"-([0-9a-f]{8})(_\d{8})?\.pth\Z", name)
    return FILES[name].digest if name in FILES else said[1] if said else ""


def check_digest(path: Path, remedy: str) -> None:
    """Refuse a file that is not the one of its name. Raises: HrnetppError that ends with the remedy."""
    if (digest := known_digest(path.name)) and not (actual := sha256(path)).startswith(digest):
        raise HrnetppError(f"{path}: SHA-256 is {actual}, not {digest}...; {remedy}")


def official_name(name: str) -> str:
    """The official pose code's name of a tensor, for that of mmpose, 0.x or 1.x, or of several processes."""
    name = name.removeprefix("module.")
    return re.sub(r"\A(backbone\.|(keypoint_)?head\.(?=final_layer\.))", "", name)


def network_of(tensors: Mapping[str, Tensor]) -> dict[str, object]:
    """The arguments of `HRNet` that tensors by official names tell; {} where they are no pose network's.

    Only those of the rest's usual values come out right: whether they do, the shapes will tell.
    """
    head, stem = tensors.get("final_layer.weight"), tensors.get("conv1.weight")
    if head is None or stem is None or head.ndim != 4 or not stem.ndim:
        return {}

    def count(prefix: str) -> int:
        return len({name[len(prefix) :].split(".")[0] for name in tensors if name.startswith(prefix)})

    found = {"num_keypoints": head.shape[0], "base_channels": head.shape[1], "stem_channels": stem.shape[0]}
    found |= {"layer1_blocks": count("layer1."), "blocks_per_branch": count("stage2.0.branches.0.")}
    found |= {"modules": tuple(count(f"stage{stage}.") for stage in (2, 3, 4))}
    found |= {"skips": count("skips.") > 0, "subpixel_head": count("head.") > 0}
    found |= {"avgpool_down": "transition1.1.0.0.weight" not in tensors}
    gate = tensors.get("layer1.0.se.reduce.weight")
    if gate is not None and gate.ndim == 4 and gate.shape[0]:
        found |= {"se": True, "se_reduction": gate.shape[1] // gate.shape[0]}
    return found


def parse_size(text: str) -> Size:
    """Height and width from '384x288'. Raises: HrnetppError if it is another text or no size of an input."""
    parts = re.fullmatch(r"(\d{1,5})x(\d{1,5})", text)
    size = (int(parts[1]), int(parts[2])) if parts else (0, 0)
    if any(side % 32 or not 32 <= side <= 2048 for side in size):
        raise HrnetppError(f"input {text!r}: give height x width, multiples of 32, as in 384x288")
    return size


def input_of(path: Path, base_channels: int) -> tuple[Size, str]:
    """Input height and width of a published network, and what says so.

    Raises: HrnetppError if neither its name nor its width does.
    """
    if said := re.findall(r"(?<!\d)\d{2,4}x\d{2,4}(?!\d)", path.stem):
        return parse_size(said[-1]), "by its name"
    if base_channels not in _USUAL_INPUT:
        wanted = "say it by --input, as in 384x288, or input_hw"
        raise HrnetppError(
            f"{path}: neither its name nor width {base_channels} tells the input size; {wanted}"
        )
    return _USUAL_INPUT[base_channels], f"as usual for W{base_channels}"


def keypoints_of(path: Path, number: int) -> str:
    """Name of a published network's keypoint set. Raises: HrnetppError if it is none of this package's."""
    sets, other = {17: "coco17", 14: "aic14"}, _OTHER_KEYPOINTS.search(path.stem)
    if number not in sets or other:
        found = f"{number} keypoints" + (f" of {other[0]}, by its name" if other else "")
        raise HrnetppError(f"{path}: has {found}; this package knows COCO's 17 and AI Challenger's 14 alone")
    return sets[number]


# ------------------------------------------------------------------------------------------------ download


def download(name: str, folder: Path | str) -> Path:
    """Return folder/name, fetched if it is not there, after checking its SHA-256.

    Shows how far it is. What came before a connection broke is kept, and the same call goes on from there.

    Raises: HrnetppError if the name is unknown, the file cannot be fetched, or its digest is wrong.
    """
    if name not in FILES:
        raise HrnetppError(f"{name}: unknown weight file; choose one of {', '.join(FILES)}")
    path, source = Path(folder) / name, FILES[name].source
    by_hand = f"get {name} from {source} by hand and put it at {path}"
    if not path.exists():
        if not source.endswith("/"):  # a page for people, no address of a file
            raise HrnetppError(f"{path}: not there, and it has no stable address; {by_hand}")
        part = path.with_name(f"{name}.part")
        try:
            part.parent.mkdir(parents=True, exist_ok=True)
            _fetch(source + name, part)
        except OSError as error:
            again = "give the same again to go on where it broke"
            raise HrnetppError(f"{path}: cannot be downloaded ({error}); {again}, or {by_hand}") from error
        if not (actual := sha256(part)).startswith(FILES[name].digest):
            part.unlink()
            wrong = f"what came has SHA-256 {actual}, not {FILES[name].digest}..., and was deleted"
            raise HrnetppError(f"{path}: {wrong}; try again, or {by_hand}")
        replace_durably(part, path)
    check_file(path, by_hand)
    check_digest(path, f"delete the file and {by_hand}")
    return path


def _fetch(url: str, part: Path) -> None:
    """Write what is at an address, or what is still wanting of it. Raises: OSError if that cannot be done."""
    start = part.stat().st_size if part.exists() else 0
    try:
        response = urlopen(Request(url, headers={"Range": f"bytes={start}-"} if start else {}), timeout=60)
    except HTTPError as error:
        error.close()
        if error.code == 416 and start:  # nothing is wanting
            return
        raise
    with response:
        start = start if response.status == 206 else 0  # a server that knows no ranges sends it all
        total = start + length if (length := int(response.headers.get("Content-Length", 0))) else None
        shown = {"unit": "B", "unit_scale": True, "desc": part.stem, "mininterval": 1}
        with open(part, "ab" if start else "wb") as file, tqdm(total=total, initial=start, **shown) as line:
            for chunk in iter(partial(response.read, 2**20), b""):
                file.write(chunk)
                line.update(len(chunk))
    if total and part.stat().st_size < total:
        raise ConnectionError(f"the connection broke after {part.stat().st_size} of {total} bytes")
