"""The recipe: what the report trains (stages, architectures) and how much of it a profile can afford.

A `TrainStage` is the method, a `Profile` the budget; `resolve` joins them into a `Run`, whose hash names its
folder. What a field may hold is said by its annotation: `check_run` and `read_recipe` refuse all else.
"""

import hashlib
import json
import math
import re
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from textwrap import dedent
from typing import Annotated, Literal, TypeVar

import msgspec
from msgspec import Meta

from hrnetpp_lib.errors import HrnetppError
from hrnetpp_lib.files import decode_json, read_bytes

Part = TypeVar("Part")
Share = Annotated[float, Meta(ge=0, le=1)]
Degrees = Annotated[float, Meta(ge=0, le=360)]
Factor = Annotated[float, Meta(gt=0, le=1e6)]
LearningRate = Annotated[float, Meta(gt=0, le=100)]
Count = Annotated[int, Meta(ge=0, le=10**6)]
Number = Annotated[int, Meta(ge=1, le=10**6)]
Channels = Annotated[int, Meta(ge=1, le=4096)]
Depth = Annotated[int, Meta(ge=1, le=32)]
SidePx = Annotated[int, Meta(ge=32, le=4096, multiple_of=32)]
Seed = Annotated[int, Meta(ge=0, le=2**63 - 1)]  # what torch takes
Name = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_+-]{1,100}\Z")]  # a folder's, or a part of it
PathBelow = Annotated[str, Meta(pattern=r"^(?!.*\.\.)[ -.0-~]{1,200}(/[ -.0-~]{1,200}){0,9}\Z")]


@dataclass(frozen=True)
class Augmentation:
    """Random scale, rotation, mirror and half body of a training crop (report; official code)."""

    # Scale is multiplied by N(1, std), clipped to [1-std, 1+std].
    scale_std: Annotated[float, Meta(ge=0, le=0.9)] = 0.35
    rotation_std_deg: Degrees = 45.0
    # DEVIATION: rotations go to 90 degrees as in the official code; the report writes [-45, 45].
    rotation_bound_deg: Degrees = 90.0
    rotation_probability: Share = 0.6
    flip_probability: Share = 0.5
    half_body_probability: Share = 0.3
    half_body_min_keypoints: Count = 8  # only persons with more labelled keypoints than this


NO_AUGMENTATION = Augmentation(
    scale_std=0.0, rotation_probability=0.0, flip_probability=0.0, half_body_probability=0.0
)


@dataclass(frozen=True)
class TrainStage:
    """One of the report's training stages."""

    name: str  # also the stage's part of a run folder's name
    dataset: Literal["ai_challenger", "coco"]  # report, data
    loss: Literal["heatmap_mse", "softargmax_l1"]  # report, losses
    lr_start: LearningRate  # Adam's learning rate at the first step (report, training)
    lr_end: LearningRate  # and at the last; a cosine per step between, constant if equal
    epochs: Number  # report, training
    # CHOICE: alpha is 60, the report's number for 384x288, at every input size.
    alpha: Factor = 60.0  # inverse temperature of soft-argmax (report 2.2.2); unused by heatmap_mse
    augmentation: Augmentation = field(default_factory=Augmentation)
    coordinates: Literal["official", "exact_shift", "udp"] = "official"  # see pose/geometry.py
    # What the starting weights of convs before a BN are multiplied by: the network computes the same, but
    # Adam's steps are so much smaller beside them.
    start_scale: Factor = 1.0

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
    """Which of the report's four changes to HRNet are on, and how each is read (report, network)."""

    name: Name
    se: bool = False
    avgpool_down: bool = False
    skips: bool = False
    subpixel_head: bool = False
    # Readings that the report leaves open; `hrnet.HRNet` says what they are.
    se_reduction: Channels = 8
    se_bias: float = 0.0
    downsampling: Literal["chain", "single_pool", "conv3x3"] = "chain"
    skip_sources: Literal["later", "same_stage", "adjacent"] = "later"
    skip_bn: bool = False
    head: Literal["subpixel", "subpixel_1x1", "nearest", "sum"] = "subpixel"

    @property
    def switches(self) -> dict[str, bool]:
        """The report's four changes."""
        return {name: getattr(self, name) for name in _ALONE.values()}

    @property
    def arguments(self) -> dict[str, object]:
        """Switches and readings as keyword arguments of `hrnet.HRNet`."""
        return {name: value for name, value in asdict(self).items() if name != "name"}


_ALONE = {"se": "se", "avgpool": "avgpool_down", "skips": "skips", "head": "subpixel_head"}
HRNET = Architecture("hrnet")
HRNETPP = Architecture("hrnetpp", se=True, avgpool_down=True, skips=True, subpixel_head=True)
_READINGS = {  # word in an architecture's name -> field and its value
    **{"se_bias3": ("se_bias", 3.0), "se_r16": ("se_reduction", 16), "skip_bn": ("skip_bn", True)},
    **{word: ("downsampling", word) for word in ("single_pool", "conv3x3")},
    **{word: ("skip_sources", word) for word in ("same_stage", "adjacent")},
    **{word: ("head", word) for word in ("subpixel_1x1", "nearest", "sum")},
}


def get_architecture(name: str) -> Architecture:
    """The architecture of a name such as hrnet, hrnetpp, hrnet+se, hrnetpp-head or hrnetpp+conv3x3.

    Behind the network it says what is added (+) or left out (-): se, avgpool, skips, head, or how one of
    them is read, by a word of `_READINGS`. Raises: HrnetppError if it has no sense, or changes nothing.
    """
    parts = re.fullmatch(r"(hrnet|hrnetpp)((?:[+-]\w+)*)", name)
    found = replace(HRNETPP if parts and parts[1] == "hrnetpp" else HRNET, name=name)
    for sign, word in re.findall(r"([+-])(\w+)", parts[2]) if parts else [("", "")]:
        field, value = (_ALONE[word], sign == "+") if word in _ALONE else _READINGS.get(word, ("name", name))
        if getattr(found, field) == value or (word in _READINGS and sign == "-"):
            known = f"{', '.join(_ALONE)}; read otherwise: {', '.join(_READINGS)}"
            wrong = f"unknown architecture {name!r}; give hrnet or hrnetpp, + or - what is not so already"
            raise HrnetppError(f"{wrong}, as in hrnet+se or hrnetpp-head: {known}")
        found = replace(found, **{field: value})
    return found


ABLATIONS = (HRNET, *(get_architecture(f"hrnet+{word}") for word in _ALONE), HRNETPP)
ARCHITECTURES = {architecture.name: architecture for architecture in ABLATIONS}


@dataclass(frozen=True)
class NetworkSize:
    """Width and depth of the network; the defaults are HRNet-W48."""

    base_channels: Channels = 48
    blocks_per_branch: Depth = 4
    modules: tuple[Depth, Depth, Depth] = (1, 4, 3)
    stem_channels: Channels = 64
    layer1_blocks: Depth = 4

    def __str__(self) -> str:
        return f"width {self.base_channels}, {self.blocks_per_branch} blocks a branch, modules {self.modules}"

    @property
    def weights_of_branches(self) -> int:
        """Weights of the branches' 3x3 convolutions, which are nearly all (HRNet-W48: 57 of 64 million)."""
        squares = sum(m * (4**b - 1) // 3 for m, b in zip(self.modules, (2, 3, 4), strict=True))
        return 18 * self.blocks_per_branch * self.base_channels**2 * squares


@dataclass(frozen=True)
class Profile:
    """A budget: how much data, which network and input size, how many epochs, on which device."""

    name: Name
    data: Literal["synthetic", "lspet", "public"]  # who writes the files the readers read
    network: NetworkSize
    input_hw: tuple[SidePx, SidePx]
    heatmap_sigma: Annotated[float, Meta(gt=0, le=100)]  # cells, at a quarter of the input size
    batch_size: Number
    epochs: tuple[Number, Number, Number]  # of the three stages
    lr_scales: tuple[Factor, Factor, Factor]  # multiplies the stages' learning rates
    ablation_epochs: Number  # of stage 2 from scratch, per architecture
    eval_every: Number  # epochs between two evaluations on val
    holdout_persons: Count  # held out of AI Challenger, whole images (report: 5K of 449K)
    boxes: PathBelow | None  # detections json below coco/person_detection_results; None: ground truth
    synthetic_persons: tuple[Count, Count, Count] = (0, 0, 0)  # COCO train, AI Challenger, COCO val
    imagenet_weights: PathBelow | None = None  # first-stage initialisation, below the data folder
    hrnet_lr_scale: Factor = 1.0  # multiplies plain HRNet's learning rates once more
    start_scale: Factor = 1.0  # multiplies `TrainStage.start_scale` of runs that start from random weights
    workers: Annotated[int, Meta(ge=0, le=1024)] = 0  # loader processes
    precision: Literal["fp32", "bf16", "auto"] = "fp32"  # auto: `resolve` takes bf16 where it is fast

    def describe_size(self) -> str:
        return f"{self.network}, input {self.input_hw[0]}x{self.input_hw[1]}"

    @property
    def heatmap_hw(self) -> tuple[int, int]:
        return self.input_hw[0] // 4, self.input_hw[1] // 4  # cells


# Of a profile, what decides nothing, and what decides by way of the stage alone.
_NO_PART = "workers", "eval_every", "ablation_epochs", "boxes"
_BY_STAGE = "epochs", "lr_scales", "hrnet_lr_scale", "start_scale"
_LATER = "start_scale", "se_reduction", "se_bias", "downsampling", "skip_sources", "skip_bn", "head"
_ENGINE_VERSION = 2  # raise it when the same recipe gives other weights: old runs are not taken for new
SYNTHETIC_BOXES = "COCO_val2017_detections_synthetic_person.json"

# fmt: off
SMOKE = Profile(
    name="smoke", data="synthetic", synthetic_persons=(32, 24, 12), holdout_persons=4, boxes=SYNTHETIC_BOXES,
    network=NetworkSize(8, blocks_per_branch=1, modules=(1, 1, 1), stem_channels=8, layer1_blocks=1),
    input_hw=(64, 64), heatmap_sigma=1.5, batch_size=8,
    epochs=(1, 1, 1), lr_scales=(2.0, 2.0, 10.0), ablation_epochs=1, eval_every=1,
)
MINI = Profile(
    name="mini", data="synthetic", synthetic_persons=(3000, 2000, 500), holdout_persons=100,
    boxes=SYNTHETIC_BOXES,
    # CHOICE: two blocks a branch, chosen on the val set that Table 1 is measured on, for trainings that end
    # alike. With one block and more epochs two of eight networks ended stage 2 at 62.3 and 64.4 AP, the one's
    # ankles not told apart, the other's ears and noses beside their places; the others at 65.3 to 69.2. With
    # two blocks one of sixteen, its ankles not told apart, ended at 60.7, the others at 66.0 to 70.2.
    network=NetworkSize(16, blocks_per_branch=2, modules=(1, 1, 1), stem_channels=32, layer1_blocks=1),
    input_hw=(128, 96), heatmap_sigma=1.5,
    # CHOICE: batches are half the study's, for twice the steps on the same crops.
    batch_size=16,
    # CHOICE: stage 3 has a fraction of the report's 31,000 steps, so its rate is 20 times the report's.
    # CHOICE: bf16 only where the CPU has instructions for it, side by side (train/together.py).
    # CHOICE: weights before a BN start 16 times larger, and stages 1 and 2 have the report's rates for both
    # networks, as in the study's E12.
    epochs=(4, 14, 4), lr_scales=(1.0, 1.0, 20.0), start_scale=16.0, ablation_epochs=2, eval_every=2,
    precision="auto",
)
LSPET = Profile(
    name="lspet", data="lspet", holdout_persons=200, boxes=None,
    network=NetworkSize(32), input_hw=(256, 192), heatmap_sigma=2.0, batch_size=64,
    epochs=(30, 100, 20), lr_scales=(1.0, 1.0, 1.0), ablation_epochs=30, eval_every=10,
    workers=8, precision="bf16",
)
LSPET_CPU = replace(  # what two CPU cores train in two hours
    LSPET, name="lspet_cpu", holdout_persons=100, workers=0,
    # CHOICE: W16 with three blocks a branch: nearly in proportion as deep as the report's, 7 MB in 16 bits.
    network=NetworkSize(16, blocks_per_branch=3, modules=(1, 2, 2), stem_channels=32, layer1_blocks=1),
    # CHOICE: in stages 1 and 2 HRNet++ has twice the report's rates, HRNet a quarter; others were not tried
    # to the end on photographs. In bf16 where the CPU has instructions for it.
    input_hw=(128, 96), heatmap_sigma=1.5, batch_size=32, epochs=(15, 60, 8), lr_scales=(2.0, 2.0, 20.0),
    hrnet_lr_scale=0.125, ablation_epochs=4, eval_every=5, precision="auto",
)
COCO = Profile(
    name="coco", data="public", holdout_persons=5000, boxes="COCO_val2017_detections_AP_H_56_person.json",
    network=NetworkSize(48), imagenet_weights="weights/hrnet_w48-8ef0771d.pth",
    # CHOICE: the report gives no batch size; official HRNet-W48 at this input uses 24 on each of 4 GPUs.
    input_hw=(384, 288), heatmap_sigma=3.0, batch_size=96,
    epochs=tuple(stage.epochs for stage in STAGES), lr_scales=(1.0, 1.0, 1.0),
    ablation_epochs=30, eval_every=10, workers=8, precision="bf16",
)
# fmt: on
PROFILES = {profile.name: profile for profile in (SMOKE, MINI, LSPET_CPU, LSPET, COCO)}


def get_profile(name: str) -> Profile:
    """The profile of that name. Raises: HrnetppError that lists the valid names."""
    if name not in PROFILES:
        raise HrnetppError(f"unknown profile {name!r}; choose one of {', '.join(PROFILES)}")
    return PROFILES[name]


@dataclass(frozen=True)
class Run:
    """One training run, fully determined: stage x profile x architecture x seed x where it starts from."""

    stage: TrainStage
    profile: Profile
    architecture: Architecture
    seed: Seed = 0
    previous: Name | None = None  # name of the run whose weights it starts from

    @property
    def hash(self) -> str:
        """Ten hex digits of everything that decides the weights; not the number of loader workers."""
        content = asdict(self) | {"engine": _ENGINE_VERSION}
        for name in (*_NO_PART, *_BY_STAGE):
            content["profile"].pop(name)
        # Fields that came later decide nothing where they are at their default: old runs keep their names.
        for part, default, fields in (("stage", STAGE1, _LATER[:1]), ("architecture", HRNET, _LATER[1:])):
            for name in fields:
                if content[part][name] == getattr(default, name):
                    content[part].pop(name)
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:10]

    @property
    def name(self) -> str:
        """Folder name of the run, below runs/<profile>/."""
        return f"{self.stage.name}-{self.architecture.name}-{self.hash}"

    def describe(self) -> str:
        """The recipe in one block of text, with what the profile scales down from the report."""
        stage, profile, report = self.stage, self.profile, STAGES[_position(self.stage)]
        network = self.architecture.arguments.items()
        on = [n if v is True else f"{n}={v}" for n, v in network if v != getattr(HRNET, n)]
        alpha = f", alpha {stage.alpha:g}" if stage.loss == "softargmax_l1" else ""
        size = "{}x{}, sigma {} cells".format(*profile.input_hw, profile.heatmap_sigma)
        rates, theirs = (f"{lr.lr_start:g} -> {lr.lr_end:g}" for lr in (stage, report))
        return dedent(f"""\
            run          {self.name}
            data         {stage.dataset} ({profile.data})
            network      {profile.network}; switches: {", ".join(on) or "none (plain HRNet)"}
            input        {size}, batch {profile.batch_size}, {profile.precision}
            loss         {stage.loss}{alpha}
            schedule     {stage.epochs} epochs (report: {report.epochs}), Adam, lr {rates} (report: {theirs})
            starts from  {self.previous or profile.imagenet_weights or "random weights"}
            seed         {self.seed}""")


def resolve(
    stage: TrainStage,
    profile: Profile,
    architecture: Architecture = HRNETPP,
    seed: int = 0,
    previous: Run | None = None,
    epochs: int | None = None,
) -> Run:
    """Join method and budget into one run: the profile scales the stage's epochs and learning rates.

    `seed` decides weights, order and augmentation; the run starts from the weights of `previous`; `epochs`
    overrides the profile's number (for ablations). Where the profile's precision is "auto", the run's is bf16
    if there are instructions for it here, else fp32. Raises: HrnetppError as `check_run`.
    """
    index, profile = _position(stage), _typed(profile, Profile)
    if profile.precision == "auto":
        profile = replace(profile, precision="bf16" if has_bf16() else "fp32")
    epochs = profile.epochs[index] if epochs is None else epochs
    scale = profile.lr_scales[index] * (profile.hrnet_lr_scale if architecture == HRNET else 1)
    budgeted = replace(stage, epochs=epochs, lr_start=stage.lr_start * scale, lr_end=stage.lr_end * scale)
    if previous is None:
        budgeted = replace(budgeted, start_scale=stage.start_scale * profile.start_scale)
    return check_run(Run(budgeted, profile, architecture, seed, previous.name if previous else None))


def has_bf16() -> bool:
    """Whether what trains here, a GPU or else the CPU, has instructions for bf16."""
    import torch  # heavy, and needed by profiles of precision auto alone

    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities = getattr(torch.cpu, "get_capabilities", dict)()  # older versions of torch do not tell
    return bool(capabilities.get("avx512_bf16"))


def _position(stage: TrainStage) -> int:
    """Which of the report's stages it is."""
    known = [stage.name for stage in STAGES]
    if stage.name not in known:
        raise HrnetppError(f"stage {stage.name!r} is unknown; choose one of {', '.join(known)}")
    return known.index(stage.name)


def _typed(part: Part, kind: type[Part]) -> Part:
    """A part of a recipe with every field as annotated: a whole number for a float is another hash."""
    try:
        return msgspec.convert(asdict(part), kind)
    except (msgspec.ValidationError, UnicodeError) as error:
        raise HrnetppError(f"a {kind.__name__.lower()} cannot be: {error}; recipe.py says what can") from None


def check_run(run: Run) -> Run:
    """The run, typed as annotated. Raises: HrnetppError if a part of it is none, or too large to train."""
    run = _typed(run, Run)
    _position(run.stage)
    profile, architecture = run.profile, run.architecture
    if profile.precision == "auto":
        raise HrnetppError("a run's precision is fp32 or bf16; `resolve` decides where a profile says auto")
    if architecture != _named(architecture):
        raise HrnetppError(f"architecture {architecture.name!r} has other switches than that name stands for")
    if (weights := profile.network.weights_of_branches) > 10**9:
        raise HrnetppError(f"profile {profile.name!r}: network of {weights} weights; 10^9 make sense")
    if (pixels := profile.batch_size * math.prod(profile.input_hw)) > 2**30:
        raise HrnetppError(f"profile {profile.name!r}: batch_size x input_hw: {pixels} px; 2^30 make sense")
    return run


def _named(architecture: Architecture) -> Architecture:
    """What the name of an architecture stands for; a name of one's own stands for anything."""
    try:
        return get_architecture(architecture.name)
    except HrnetppError:
        return architecture


def three_stages(
    profile: Profile,
    architecture: Architecture = HRNETPP,
    seed: int = 0,
    stages: tuple[TrainStage, TrainStage, TrainStage] = STAGES,
) -> tuple[Run, ...]:
    """The report's chain of runs: AI Challenger heatmaps, COCO heatmaps, COCO regression."""
    first = resolve(stages[0], profile, architecture, seed)
    second = resolve(stages[1], profile, architecture, seed, previous=first)
    return first, second, resolve(stages[2], profile, architecture, seed, previous=second)


def table_runs(profile: Profile, seed: int = 0) -> dict[str, Run]:
    """The networks of Table 1's rows, by their names in `evaluate.table.PARTS`."""
    (_, baseline, _), (_, heatmap, regression) = (
        three_stages(profile, one, seed) for one in (HRNET, HRNETPP)
    )
    return {"hrnet": baseline, "heatmap": heatmap, "regression": regression}


def change_stage(stage: TrainStage, name: str, value: str) -> TrainStage:
    """The stage with a field of it, or of its augmentation, set to a value given as text.

    Raises: HrnetppError if there is no such field, or the value is none for it.
    """
    content = asdict(stage)
    part = content["augmentation"] if name in content["augmentation"] else content
    if name not in part or name in ("name", "augmentation"):
        known = [*content, *content["augmentation"]]
        known = ", ".join(field for field in known if field not in ("name", "augmentation"))
        raise HrnetppError(f"a training stage has no {name!r} to set; choose one of {known}")
    part[name] = value
    try:
        return msgspec.convert(content, TrainStage, strict=False)
    except (msgspec.ValidationError, UnicodeError) as error:
        raise HrnetppError(f"{name}={value}: {error}; recipe.py says what can be") from None


def scaled_alpha(heatmap_sigma: float) -> float:
    """The alpha whose softmax is as wide, in sigmas (cells), as the report's 60 makes it at its 3 cells."""
    return STAGE3.alpha * (heatmap_sigma / 3) ** 2


def fitting_alpha(profile: Profile, seed: int = 0) -> Run:
    """HRNet++'s stage 3 with alpha for the profile's sigma (notebook 6)."""
    scaled = replace(STAGE3, alpha=scaled_alpha(profile.heatmap_sigma))
    return resolve(scaled, profile, seed=seed, previous=three_stages(profile, seed=seed)[1])


def ablation_runs(profile: Profile, seed: int = 0) -> tuple[Run, ...]:
    """Baseline, each switch alone, and all: stage 2 from random weights, at the report's learning rates."""
    alike, epochs = replace(profile, lr_scales=(1.0, 1.0, 1.0), hrnet_lr_scale=1.0), profile.ablation_epochs
    return tuple(resolve(STAGE2, alike, architecture, seed, epochs=epochs) for architecture in ABLATIONS)


def read_recipe(path: Path) -> Run:
    """The run of a recipe.json. Raises: HrnetppError if a field is missing, unknown or of a wrong value."""
    remedy = "give a recipe.json as training writes it"
    text = read_bytes(path, remedy, most_bytes=2**20)
    run = decode_json(text, Run, path, remedy)
    if unknown := _unknown_fields(decode_json(text, dict, path, remedy), asdict(run)):
        raise HrnetppError(f"{path}: has {', '.join(unknown)}, unknown to this version of the package")
    try:
        return check_run(run)
    except HrnetppError as error:
        raise HrnetppError(f"{path}: {error}") from None


def _unknown_fields(content: dict, known: dict) -> list[str]:
    """Names in a recipe's json that no field has, which msgspec passes over in dataclasses."""
    unknown = [repr(name) for name in content if name not in known]
    parts = [name for name, value in known.items() if isinstance(value, dict) and name in content]
    return unknown + [name for part in parts for name in _unknown_fields(content[part], known[part])]
