"""The study: what each of the report's claims is worth, by trainings that differ in their seed."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from hrnetpp_lib.recipe import (
    HRNET,
    HRNETPP,
    LSPET_CPU,
    STAGE1,
    STAGE2,
    STAGE3,
    SYNTHETIC_BOXES,
    Architecture,
    NetworkSize,
    Profile,
    Run,
    TrainStage,
    get_architecture,
    resolve,
)

# CHOICE: as deep as the report's network in proportion: the four changes add or take the same shares of it.
_SIZE = NetworkSize(16, blocks_per_branch=4, modules=(1, 2, 2), stem_channels=32, layer1_blocks=1)
# fmt: off
STUDY = Profile(
    name="study", data="synthetic", synthetic_persons=(12000, 8000, 1000), holdout_persons=500,
    boxes=SYNTHETIC_BOXES, network=_SIZE, input_hw=(128, 96), heatmap_sigma=1.5, batch_size=16,
    epochs=(4, 3, 2), lr_scales=(2.0, 2.0, 20.0), ablation_epochs=3, eval_every=1000, precision="bf16",
)
PHOTOGRAPHS = replace(
    LSPET_CPU, name="study_photographs", network=replace(_SIZE, base_channels=32), batch_size=16,
    epochs=(4, 9, 4), lr_scales=(2.0, 2.0, 20.0), eval_every=1000, precision="bf16",
)
# fmt: on
# What stages 1 and 2 multiply the report's learning rates by, for either network.
RATES = {"hrnet": 2.0, "hrnetpp": 2.0}
_PAIR = (HRNET, HRNETPP)
_LEFT_OUT = tuple(get_architecture(f"hrnetpp-{word}") for word in ("se", "avgpool", "skips", "head"))
_CONV3X3 = get_architecture("hrnetpp+conv3x3")
# CHOICE: in a first, small training HRNet++ left stage 1 with 1.49 times plain HRNet's weights.
_SHRUNK = replace(STAGE2, shrink_start=1.5)
_CONTROL = replace(STAGE3, loss="heatmap_mse")


@dataclass(frozen=True)
class Experiment:
    """A question, and the trainings that answer it, seed by seed."""

    name: str
    question: str
    seeds: int  # so many at least
    runs: Callable[[int], tuple[Run, ...]]  # of a seed, in the order of training


def _run(
    architecture: Architecture,
    seed: int,
    stage: TrainStage = STAGE2,
    previous: Run | None = None,
    profile: Profile = STUDY,
    **settings: float,
) -> Run:
    """A run of the study at the network's rate, or at `rate`; `epochs` instead of the profile's."""
    rate = settings.pop("rate", RATES["hrnetpp" if architecture.skips or architecture.se else "hrnet"])
    budget = replace(profile, lr_scales=(rate, rate, profile.lr_scales[2]))
    return resolve(stage, budget, architecture, seed, previous, **settings)


def _long(architecture: Architecture, seed: int) -> Run:
    return _run(architecture, seed, epochs=5)


def _handed_over(architecture: Architecture, seed: int) -> tuple[Run, ...]:
    """From scratch, stage 1, and stage 2 from it, as it is and shrunk."""
    first = _run(architecture, seed, STAGE1)
    return (
        _run(architecture, seed),
        first,
        *(_run(architecture, seed, stage, first) for stage in (STAGE2, _SHRUNK)),
    )


def _refined(seed: int) -> tuple[Run, ...]:
    """Stage 3 and its control from HRNet++'s long run."""
    start = _long(HRNETPP, seed)
    return tuple(_run(HRNETPP, seed, stage, start) for stage in (STAGE3, _CONTROL))


def _on_photographs(seed: int) -> tuple[Run, ...]:
    scratch, first = (
        [_run(a, seed, stage, profile=PHOTOGRAPHS) for a in _PAIR] for stage in (STAGE2, STAGE1)
    )
    second = [_run(one.architecture, seed, STAGE2, one, PHOTOGRAPHS) for one in first]
    third = [_run(HRNETPP, seed, stage, second[1], PHOTOGRAPHS) for stage in (STAGE3, _CONTROL)]
    return (*scratch, *first, *second, *third)


def _side_by_side(*arms: tuple[Run, ...]) -> tuple[Run, ...]:
    return tuple(run for step in zip(*arms, strict=True) for run in step)


# fmt: off
EXPERIMENTS = {one.name: one for one in (
    Experiment("E3", "is one of the networks mis-tuned? (chosen on the dev set)", 2, lambda seed: tuple(
        _run(a, seed, rate=rate) for rate in (1.0, 2.0, 4.0) for a in _PAIR)),
    Experiment("E1", "heatmaps: HRNet++ over HRNet", 8, lambda seed: tuple(_long(a, seed) for a in _PAIR)),
    Experiment("E5", "regression: soft-argmax with L1, and its control", 8, lambda seed: (
        _long(HRNETPP, seed), *_refined(seed))),
    Experiment("E6", "test-time augmentation, ensemble, flip shift", 8, lambda seed: (
        *(_long(a, seed) for a in _PAIR), *_refined(seed))),
    Experiment("E4", "which of the four changes?", 4, lambda seed: tuple(
        _run(a, seed) for a in (*_PAIR, *_LEFT_OUT, _CONV3X3))),
    Experiment("E2", "the handover from stage 1", 4, lambda seed: _side_by_side(
        *(_handed_over(a, seed) for a in _PAIR))),
    Experiment("E7", "photographs, from scratch and by stages", 2, _on_photographs),
)}
# fmt: on


def all_runs(experiments: Iterable[Experiment], seeds: int = 0) -> tuple[Run, ...]:
    """The trainings of some experiments, each once: an experiment after the other, seed by seed.

    With `seeds`, an experiment has that many at least; what a run starts from comes before it.
    """
    listed = (r for one in experiments for seed in range(max(seeds, one.seeds)) for r in one.runs(seed))
    return tuple({run.name: run for run in listed}.values())
