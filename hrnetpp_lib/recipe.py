"""The recipe: what the report trains (stages, architectures) and how much of it a profile can afford.

A `TrainStage` is the method and the same everywhere; a `Profile` is the budget. `resolve` joins the two
into a `Run`, whose hash names its folder: a finished run is found again, and never trained twice.
"""

import hashlib
import json
import re
import sys
from dataclasses import MISSING, asdict, dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from types import NoneType, UnionType
from typing import Literal, get_args, get_origin, get_type_hints

from hrnetpp_lib.errors import HrnetppError


@dataclass(frozen=True)
class Augmentation:
    """Random scale, rotation, mirror and half body of a training crop (report; official code)."""

    scale_std: float = 0.35  # scale is multiplied by N(1, std), clipped to [1-std, 1+std]
    rotation_std_deg: float = 45.0
    # DEVIATION: rotations go to 90 degrees as in the official code; the report writes [-45, 45].
    rotation_bound_deg: float = 90.0
    rotation_probability: float = 0.6
    flip_probability: float = 0.5
    half_body_probability: float = 0.3
    half_body_min_keypoints: int = 8  # only persons with more labelled keypoints than this


@dataclass(frozen=True)
class TrainStage:
    """One of the report's training stages."""

    name: str  # also the stage's part of a run folder's name
    dataset: Literal["ai_challenger", "coco"]  # report, data
    loss: Literal["heatmap_mse", "softargmax_l1"]  # report, losses
    lr_start: float  # Adam's learning rate at the first step (report, training)
    lr_end: float  # and at the last; a cosine per step between, constant if equal
    epochs: int  # report, training
    # CHOICE: alpha is 60, the report's number for 384x288, at every input size.
    alpha: float = 60.0  # inverse temperature of soft-argmax (report 2.2.2); unused by heatmap_mse
    augmentation: Augmentation = field(default_factory=Augmentation)
    coordinates: Literal["official", "exact_shift", "udp"] = "official"  # see coordinates.py

    @property
    def decoder(self) -> Literal["quarter_offset", "soft_argmax"]:
        """How a network trained by this stage is decoded (report, testing)."""
        return "soft_argmax" if self.loss == "softargmax_l1" else "quarter_offset"


STAGE1 = TrainStage("stage1_ai_challenger", "ai_challenger", "heatmap_mse", 1e-3, 1e-3, epochs=30)
STAGE2 = TrainStage("stage2_coco_heatmap", "coco", "heatmap_mse", 1e-3, 5e-5, epochs=150)
STAGE3 = TrainStage("stage3_coco_regression", "coco", "softargmax_l1", 2e-5, 2e-7, epochs=20)
STAGES = (STAGE1, STAGE2, STAGE3)


@dataclass(frozen=True)
class Architecture:
    """Which of the report's four changes to HRNet are on (report, network)."""

    name: str
    se: bool = False
    avgpool_down: bool = False
    skips: bool = False
    subpixel_head: bool = False

    @property
    def switches(self) -> dict[str, bool]:
        """The four switches as keyword arguments of `hrnet.HRNet`."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name != "name"}


HRNET = Architecture("hrnet")
HRNETPP = Architecture("hrnetpp", se=True, avgpool_down=True, skips=True, subpixel_head=True)
ABLATIONS = (
    HRNET,
    replace(HRNET, name="hrnet+se", se=True),
    replace(HRNET, name="hrnet+avgpool", avgpool_down=True),
    replace(HRNET, name="hrnet+skips", skips=True),
    replace(HRNET, name="hrnet+head", subpixel_head=True),
    HRNETPP,
)
ARCHITECTURES = {architecture.name: architecture for architecture in ABLATIONS}


@dataclass(frozen=True)
class Network:
    """Width and depth of the network; the defaults are HRNet-W48."""

    base_channels: int = 48
    blocks_per_branch: int = 4
    modules: tuple[int, int, int] = (1, 4, 3)
    stem_channels: int = 64
    layer1_blocks: int = 4


@dataclass(frozen=True)
class Profile:
    """A budget: how much data, which network and input size, how many epochs, on which device."""

    name: str
    data: Literal["synthetic", "lspet", "public"]  # who writes the files the readers read
    network: Network
    input_hw: tuple[int, int]  # px
    heatmap_sigma: float  # cells, at a quarter of the input size
    batch_size: int
    epochs: tuple[int, int, int]  # of the three stages
    lr_scales: tuple[float, float, float]  # multiplies the stages' learning rates
    ablation_epochs: int  # of stage 2 from scratch, per architecture
    eval_every: int  # epochs between two evaluations on val
    holdout_persons: int  # held out of AI Challenger, whole images (report: 5K of 449K)
    boxes: str | None  # detections json below coco/person_detection_results; None: ground truth
    synthetic_persons: tuple[int, int, int] = (0, 0, 0)  # COCO train, AI Challenger, COCO val
    imagenet_weights: str | None = None  # first-stage initialisation, below the data folder
    workers: int = 0  # loader processes
    precision: Literal["fp32", "bf16"] = "fp32"

    def describe_size(self) -> str:
        """Network and input in a few words."""
        net = self.network
        return (
            f"width {net.base_channels}, {net.blocks_per_branch} blocks a branch, modules {net.modules}, "
            f"input {self.input_hw[0]}x{self.input_hw[1]}"
        )

    @property
    def heatmap_hw(self) -> tuple[int, int]:
        """Heatmap height and width in cells."""
        return self.input_hw[0] // 4, self.input_hw[1] // 4


_SYNTHETIC_BOXES = "COCO_val2017_detections_synthetic_person.json"

SMOKE = Profile(
    name="smoke",
    data="synthetic",
    network=Network(8, blocks_per_branch=1, modules=(1, 1, 1), stem_channels=8, layer1_blocks=1),
    input_hw=(64, 64),
    heatmap_sigma=1.5,
    batch_size=8,
    epochs=(1, 1, 1),
    lr_scales=(2.0, 2.0, 10.0),
    ablation_epochs=1,
    eval_every=1,
    holdout_persons=4,
    boxes=_SYNTHETIC_BOXES,
    synthetic_persons=(32, 24, 12),
)
MINI = Profile(
    name="mini",
    data="synthetic",
    network=Network(16, blocks_per_branch=1, modules=(1, 1, 1), stem_channels=32, layer1_blocks=1),
    input_hw=(128, 96),
    heatmap_sigma=1.5,
    batch_size=16,
    epochs=(3, 8, 3),
    # CHOICE: stage 3 has a fraction of the report's 31,000 steps, so each is longer.
    lr_scales=(2.0, 2.0, 20.0),
    ablation_epochs=2,
    eval_every=2,
    holdout_persons=100,
    boxes=_SYNTHETIC_BOXES,
    synthetic_persons=(3000, 2000, 500),
)
LSPET = Profile(
    name="lspet",
    data="lspet",
    network=Network(32),
    input_hw=(256, 192),
    heatmap_sigma=2.0,
    batch_size=64,
    epochs=(30, 100, 20),
    lr_scales=(1.0, 1.0, 1.0),
    ablation_epochs=30,
    eval_every=10,
    holdout_persons=200,
    boxes=None,
    workers=8,
    precision="bf16",
)
# What two CPU cores train in a few hours.
LSPET_CPU = replace(
    LSPET,
    name="lspet_cpu",
    network=Network(32, blocks_per_branch=1, modules=(1, 2, 2), stem_channels=32, layer1_blocks=1),
    input_hw=(128, 96),
    heatmap_sigma=1.5,
    batch_size=32,
    epochs=(60, 150, 20),
    ablation_epochs=15,
    holdout_persons=100,
    workers=0,
)
COCO = Profile(
    name="coco",
    data="public",
    network=Network(48),
    input_hw=(384, 288),
    heatmap_sigma=3.0,
    # CHOICE: the report gives no batch size; official HRNet-W48 at this input uses 24 on each of 4 GPUs.
    batch_size=96,
    epochs=(STAGE1.epochs, STAGE2.epochs, STAGE3.epochs),
    lr_scales=(1.0, 1.0, 1.0),
    ablation_epochs=30,
    eval_every=10,
    holdout_persons=5000,
    boxes="COCO_val2017_detections_AP_H_56_person.json",
    imagenet_weights="weights/hrnet_w48-8ef0771d.pth",
    workers=8,
    precision="bf16",
)
PROFILES = {profile.name: profile for profile in (SMOKE, MINI, LSPET_CPU, LSPET, COCO)}


def get_profile(name: str, **changes: object) -> Profile:
    """The profile of that name, with single fields changed.

    Raises:
        HrnetppError: If the profile or a field is unknown; the message lists the valid ones.
    """
    if name not in PROFILES:
        raise HrnetppError(f"unknown profile {name!r}; choose one of {', '.join(PROFILES)}")
    valid = [f.name for f in fields(Profile) if f.name not in ("name", "data")]
    unknown = sorted(set(changes) - set(valid))
    if unknown:
        raise HrnetppError(f"profile {name!r} has no field {', '.join(unknown)}; it has {', '.join(valid)}")
    return replace(PROFILES[name], **changes)


# Raise it when the same recipe gives other weights than before, so that older runs are not taken for new.
_ENGINE_VERSION = 2


@dataclass(frozen=True)
class Run:
    """One training run, fully determined: stage x profile x architecture x seed x where it starts from."""

    stage: TrainStage
    profile: Profile
    architecture: Architecture
    seed: int = 0
    previous: str | None = None  # name of the run whose weights it starts from

    @property
    def hash(self) -> str:
        """Ten hex digits of everything that decides the weights; not the number of loader workers."""
        content = asdict(self) | {"engine": _ENGINE_VERSION}
        for budget in ("workers", "eval_every", "ablation_epochs", "boxes", "epochs", "lr_scales"):
            content["profile"].pop(budget)
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:10]

    @property
    def name(self) -> str:
        """Folder name of the run, below runs/<profile>/."""
        return f"{self.stage.name}-{self.architecture.name}-{self.hash}"

    def describe(self) -> str:
        """The recipe in one block of text, with what the profile scales down from the report."""
        report = next(stage for stage in STAGES if stage.name == self.stage.name)
        net = self.profile.network
        on = [name for name, value in self.architecture.switches.items() if value]
        lines = [
            f"run          {self.name}",
            f"data         {self.stage.dataset} ({self.profile.data})",
            f"network      width {net.base_channels}, {net.blocks_per_branch} blocks a branch, modules "
            f"{net.modules}; switches: {', '.join(on) or 'none (plain HRNet)'}",
            f"input        {self.profile.input_hw[0]}x{self.profile.input_hw[1]}, sigma "
            f"{self.profile.heatmap_sigma} cells, batch {self.profile.batch_size}, {self.profile.precision}",
            f"loss         {self.stage.loss}"
            + (f", alpha {self.stage.alpha:g}" if self.stage.loss == "softargmax_l1" else ""),
            f"schedule     {self.stage.epochs} epochs (report: {report.epochs}), Adam, lr "
            f"{self.stage.lr_start:g} -> {self.stage.lr_end:g} "
            f"(report: {report.lr_start:g} -> {report.lr_end:g})",
            f"starts from  {self.previous or self.profile.imagenet_weights or 'random weights'}",
            f"seed         {self.seed}",
        ]
        return "\n".join(lines)


def resolve(
    stage: TrainStage,
    profile: Profile,
    architecture: Architecture = HRNETPP,
    seed: int = 0,
    previous: Run | None = None,
    epochs: int | None = None,
) -> Run:
    """Join method and budget into one run.

    Args:
        stage: One of `STAGES`, perhaps with fields replaced.
        profile: The budget; scales the stage's epochs and learning rates.
        architecture: Which of the four changes are on.
        seed: Seeds weights, order and augmentation.
        previous: The run whose weights this one starts from.
        epochs: Overrides the profile's number of epochs (for ablations).

    Raises:
        HrnetppError: See `check_run`.
    """
    index = [known.name for known in STAGES].index(stage.name)
    epochs = profile.epochs[index] if epochs is None else epochs
    scale = profile.lr_scales[index]
    budgeted = replace(stage, epochs=epochs, lr_start=stage.lr_start * scale, lr_end=stage.lr_end * scale)
    run = Run(budgeted, profile, architecture, seed, previous.name if previous else None)
    check_run(run)
    return run


def check_run(run: Run) -> None:
    """Make sure that a run can be trained.

    Raises:
        HrnetppError: If the stage is unknown, a name cannot be a folder's, the input size is no multiple of
            32, or a number is out of range.
    """
    stage, profile, augmentation = run.stage, run.profile, run.stage.augmentation
    if stage.name not in [known.name for known in STAGES]:
        known = ", ".join(known.name for known in STAGES)
        raise HrnetppError(f"stage {stage.name!r} is unknown; choose one of {known}")
    for name in (profile.name, run.architecture.name, run.previous or "none"):
        if not re.fullmatch(r"[\w+-]+", name):
            raise HrnetppError(f"name {name!r} cannot be a folder's; use letters, digits, _, + and -")
    if any(side % 32 or side < 32 for side in profile.input_hw):
        raise HrnetppError(f"profile {profile.name!r}: input_hw {profile.input_hw} must be multiples of 32")
    positive = {name: getattr(stage, name) for name in ("epochs", "lr_start", "lr_end", "alpha")}
    positive |= {name: getattr(profile, name) for name in ("heatmap_sigma", "batch_size", "eval_every")}
    counts = {"seed": run.seed, "workers": profile.workers, "holdout_persons": profile.holdout_persons}
    shares = {name: value for name, value in asdict(augmentation).items() if "probability" in name}
    wrong = [f"{name} {value} must be positive" for name, value in positive.items() if not value > 0]
    wrong += [f"{name} {value} must not be negative" for name, value in counts.items() if value < 0]
    wrong += [f"{name} {value} must be 0 to 1" for name, value in shares.items() if not 0 <= value <= 1]
    if wrong:
        raise HrnetppError(f"profile {profile.name!r}, {stage.name}: {'; '.join(wrong)}")


def three_stages(profile: Profile, architecture: Architecture = HRNETPP, seed: int = 0) -> tuple[Run, ...]:
    """The report's chain of runs: AI Challenger heatmaps, COCO heatmaps, COCO regression."""
    chain: list[Run] = []
    for stage in STAGES:
        chain.append(resolve(stage, profile, architecture, seed, previous=chain[-1] if chain else None))
    return tuple(chain)


def ablation_runs(profile: Profile, seed: int = 0) -> tuple[Run, ...]:
    """Baseline, each switch alone, and all: stage 2 from random weights, at equal data and recipe."""
    return tuple(
        resolve(STAGE2, profile, architecture, seed, epochs=profile.ablation_epochs)
        for architecture in ABLATIONS
    )


def read_recipe(path: Path) -> Run:
    """The run that a recipe.json describes; `dataclasses.asdict` of it is what the file holds.

    Raises:
        HrnetppError: If the file cannot be read, or a field is missing, unknown or of a wrong value.
    """
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise HrnetppError(f"{path}: no recipe can be read from it ({error})") from error
    try:
        run = _build(Run, content, "recipe")
        check_run(run)
    except HrnetppError as error:
        raise HrnetppError(f"{path}: {error}") from error
    return run


def _build(kind: type, value: object, where: str) -> object:
    """A value of json as the annotated type: json knows no tuples and no dataclasses."""
    if is_dataclass(kind):
        if not isinstance(value, dict):
            raise HrnetppError(f"{where} must hold the fields of a {kind.__name__}")
        known = {field.name: field.default is MISSING for field in fields(kind)}
        unknown = [name for name in value if name not in known]
        missing = [name for name, needed in known.items() if needed and name not in value]
        if missing:
            raise HrnetppError(f"{where} lacks {', '.join(missing)}")
        if unknown:
            raise HrnetppError(f"{where} has {', '.join(unknown)}, unknown to this version of the package")
        types = get_type_hints(kind)
        return kind(**{name: _build(types[name], v, f"{where}.{name}") for name, v in value.items()})
    if not _fits(kind, value):
        raise HrnetppError(f"{where} is {value!r}; give {_in_words(kind)}")
    if kind is float:
        return float(value)
    return tuple(value) if get_origin(kind) is tuple else value


def _fits(kind: type, value: object) -> bool:
    parts = get_args(kind)
    if get_origin(kind) is Literal:
        return value in parts
    if get_origin(kind) is UnionType:
        return any(_fits(part, value) for part in parts)
    if get_origin(kind) is tuple:
        return isinstance(value, list) and len(value) == len(parts) and all(map(_fits, parts, value))
    if kind is float:
        return type(value) in (int, float) and abs(value) <= sys.float_info.max  # no NaN either
    return type(value) is kind  # so that True is no 1


def _in_words(kind: type) -> str:
    if get_origin(kind) is Literal:
        return f"one of {', '.join(map(repr, get_args(kind)))}"
    if get_origin(kind) is UnionType:
        return " or ".join(map(_in_words, get_args(kind)))
    if get_origin(kind) is tuple:
        return f"a list of {', '.join(map(_in_words, get_args(kind)))}"
    return {int: "a whole number", float: "a finite number", str: "a text", bool: "true or false"}.get(
        kind, "null" if kind is NoneType else str(kind)
    )
