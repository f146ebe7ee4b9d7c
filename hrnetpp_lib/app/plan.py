"""What a profile's training would take on this machine: what is there, how fast it is, what it costs.

Every figure is measured here, counted in the data, or computed from such figures; those that come from the
report because the data are absent say so.
"""

import math
import shutil
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import torch

from hrnetpp_lib.data.crops import Sample, TrainCrops
from hrnetpp_lib.data.layout import (
    StageData,
    data_paths,
    load_ai_challenger,
    load_coco,
    missing_files,
    prepare_data,
)
from hrnetpp_lib.data.persons import PersonTable, check_images
from hrnetpp_lib.errors import HrnetppError
from hrnetpp_lib.evaluate.infer import pick_device
from hrnetpp_lib.evaluate.metrics import bbox_ap
from hrnetpp_lib.model.anatomy import count_macs
from hrnetpp_lib.pose.keypoints import COCO17
from hrnetpp_lib.recipe import HRNETPP, Profile, Run, three_stages
from hrnetpp_lib.train.loader import EpochBatches, Loader, number_of_steps, usable_workers
from hrnetpp_lib.train.loop import TrainStep, build_model
from hrnetpp_lib.train.machine import SLOW_BF16, bytes_per_crop, free_bytes, imitates_bf16

# Persons with labelled keypoints, by the report and by the official HRNet code's count of train2017.
REPORTED = {"ai_challenger": (444_000, 5_000), "coco": (149_813, None)}
_STEPS, _LONGEST_S = 20, 60.0  # a machine that needs longer is measured over fewer steps
_CPU_MACS = 4e10  # a step of more than this takes a CPU too long to wait for twenty


def plan(profile: Profile, root: Path, gpus: int) -> Iterator[str]:
    """Lines of the plan, as they become known.

    Args:
        profile: The budget.
        root: Holds data/ and runs/.
        gpus: How many devices would share each batch.

    Raises:
        HrnetppError: If a batch cannot be divided among the GPUs, or a file that is there is broken.
    """
    runs = three_stages(profile)
    share = profile.batch_size // gpus
    number_of_steps(f"profile {profile.name}", profile.batch_size, profile.batch_size, gpus)
    yield f"profile {profile.name}: {profile.describe_size()}, batch {profile.batch_size} = {gpus} x {share}"
    data: dict[str, StageData] = {}
    yield from _check_data(profile, root, data)
    persons = {name: _persons(name, data) for name in REPORTED}
    device = pick_device()
    yield "\nspeed (this takes seconds on a GPU, minutes on a CPU)"
    model_rate = yield from _measure_model(runs[1], share, device)
    loader_rate = None
    if "coco" in data:
        try:
            loader_rate = yield from _measure_loader(runs[1], data["coco"].train)
        except HrnetppError as error:
            yield f"  loader: not measured: {error}"
    else:
        yield "  loader: not measured, COCO's pictures are missing"
    yield from _cost(runs, persons, model_rate, device, gpus)
    yield from _bottleneck(profile, model_rate, loader_rate, gpus)
    yield from _disk(runs, root)


def _check_data(profile: Profile, root: Path, data: dict[str, StageData]) -> Iterator[str]:
    """What is there and what is not; fills `data` with the sets that can be read."""
    paths = data_paths(profile, root / "data")
    if profile.data == "synthetic":
        prepare_data(profile, root / "data")
    yield "\ndata"
    missing = missing_files(profile, paths)
    yield from (f"  missing: {path}" for path in missing)
    for name, load in (("ai_challenger", load_ai_challenger), ("coco", load_coco)):
        if any(path.relative_to(paths.root).parts[0] == name for path in missing):
            continue
        data[name] = load(profile, paths)
        for role, table, reported in zip(
            ("train", "val"), (data[name].train, data[name].val), REPORTED[name], strict=True
        ):
            line = f"  {name} {role}: {len(table)} persons or boxes in {len(set(table.image_index))} images"
            if profile.data == "public" and reported:
                line += f" (report: {reported}; {len(table) - reported:+d})"
            yield line
            try:
                check_images(table)
            except HrnetppError as error:
                yield f"    {error}"
    boxes = paths.boxes_json(profile)
    if "coco" in data and boxes:
        yield f"  {boxes.name}: person box AP {100 * bbox_ap(paths.coco_json('val'), boxes):.1f} on val"


def _persons(name: str, data: dict[str, StageData]) -> tuple[int, str]:
    """Persons to train on, and where the number comes from."""
    if name in data:
        return len(data[name].train), "counted"
    return REPORTED[name][0], "the report's number"


def _measure_model(run: Run, share: int, device: torch.device) -> Iterator[str]:
    """Crops per second of one device, on random crops."""
    profile = run.profile
    model = build_model(run, len(COCO17))
    macs = count_macs(model, profile.input_hw)
    crops = share if device.type == "cuda" else max(2, min(share, int(_CPU_MACS // macs)))
    step = TrainStep(model.to(device, memory_format=torch.channels_last).train(), run)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.0, fused=True)
    batch = Sample(*(tensor.to(device) for tensor in _random_batch(run, crops)))
    available = free_bytes(device)

    def autocast() -> torch.autocast:
        return torch.autocast(device.type, torch.bfloat16, enabled=profile.precision == "bf16")

    kept = bytes_per_crop(step, batch, autocast)

    def make_steps(most: int) -> tuple[int, float]:
        done, seconds, started = 0, 0.0, _now(device)
        while done < most and seconds < _LONGEST_S:
            with autocast():
                loss = step(batch)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            done, seconds = done + 1, _now(device) - started
        return done, seconds

    make_steps(2)  # pick algorithms and fill caches
    steps, seconds = make_steps(_STEPS)
    rate = steps * crops / seconds
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "this CPU"
    yield f"  model on {name}, {steps} steps of {crops} crops, {profile.precision}: {rate:.2f} crops/s"
    if profile.precision == "bf16" and imitates_bf16(device):
        yield f"  {SLOW_BF16}"
    flop = 6 * macs  # 2 for each multiply-accumulate, forward once and backward twice
    yield f"  = {flop * rate / 1e12:.3f} TFLOP/s ({flop / 1e9:.3g} GFLOP a training crop)"
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    yield (
        f"  memory for {share} crops: {(kept * share + 4 * weights) / 2**30:.1f} GiB "
        f"({kept / 2**20:.0f} MiB a crop measured), {available / 2**30:.1f} GiB free"
    )
    return rate


def _random_batch(run: Run, crops: int) -> Sample:
    (height, width), (rows, columns) = run.profile.input_hw, run.profile.heatmap_hw
    keypoints = (crops, len(COCO17))
    return Sample(
        image=torch.randint(0, 256, (crops, height, width, 3), dtype=torch.uint8),
        peaks=torch.randint(0, min(rows, columns), (*keypoints, 2)),
        target_weight=torch.ones(keypoints),
        keypoints_heatmap=torch.rand(*keypoints, 2),
        keypoint_weight=torch.ones(keypoints),
        person=torch.zeros(crops),
        bad=torch.zeros(crops),
    )


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _measure_loader(run: Run, train: PersonTable) -> Iterator[str]:
    """Crops per second of one loader process."""
    workers = usable_workers(run.profile.workers)
    batches = EpochBatches(len(train), min(run.profile.batch_size, len(train)), run.seed)
    crops = 0
    started = time.perf_counter()
    loader = Loader(TrainCrops.of_run(train, run), batches, workers, pin_memory=False)
    with loader.explain_deaths():
        for batch in islice(loader, _STEPS):
            crops += len(batch.image)
    rate = crops / (time.perf_counter() - started)
    each = rate / max(workers, 1)
    yield f"  loader with {workers} processes, {crops} crops: {rate:.1f} crops/s, {each:.1f} a process"
    return each


def _cost(
    runs: tuple[Run, ...], persons: dict[str, tuple[int, str]], rate: float, device: torch.device, gpus: int
) -> Iterator[str]:
    """Samples and hours per stage of HRNet++."""
    unit = "GPU-hours" if device.type == "cuda" else "hours of this CPU"
    yield f"\ncost of {HRNETPP.name} ({unit} at the measured speed of the model, without evaluation)"
    total = 0
    for run in runs:
        number, origin = persons[run.stage.dataset]
        samples = number * run.stage.epochs
        total += samples
        yield (
            f"  {run.stage.name:24s} {run.stage.epochs:4d} epochs x {number} persons ({origin}) = "
            f"{_millions(samples)} samples, {samples / rate / 3600:.3g} {unit}"
        )
    flop = 6 * count_macs(build_model(runs[1], len(COCO17)), runs[1].profile.input_hw) * total
    yield f"  {'all':24s} {_millions(total)} samples, {total / rate / 3600:.3g} {unit}, {flop:.2g} FLOP"
    if device.type == "cuda":
        yield f"  on {gpus} such GPUs, if they scale perfectly: {total / rate / 3600 / gpus:.3g} hours"
    else:
        yield (
            f"  no GPU here to measure: {flop / 3.6e15:.3g} divided by a GPU's effective TFLOP/s are the "
            f"GPU-hours, and again by {gpus} the hours on {gpus}"
        )


def _millions(samples: int) -> str:
    return f"{samples / 1e6:.1f} M" if samples >= 1e6 else f"{samples}"


def _bottleneck(profile: Profile, model_rate: float, loader_rate: float | None, gpus: int) -> Iterator[str]:
    yield "\nbottleneck"
    if loader_rate is None:
        yield "  unknown: the loader was not measured"
        return
    if not profile.workers:
        together = 1 / (1 / model_rate + 1 / loader_rate)
        yield f"  the process that trains loads its crops itself: {together:.1f} crops/s together"
        return
    slower = "the loader" if loader_rate * profile.workers < model_rate else "the model"
    need = math.ceil(model_rate / loader_rate)
    yield f"  {slower}, with the profile's {profile.workers} loader processes for a device like this one"
    yield f"  {need} loader processes (cores) feed one such device, {need * gpus} feed {gpus}"


def _disk(runs: tuple[Run, ...], root: Path) -> Iterator[str]:
    """Weights and states while a run trains, and what it leaves."""
    weights = sum(
        t.numel() * t.element_size() for t in build_model(runs[1], len(COCO17)).state_dict().values()
    )
    # Three states (two kept, one being written) of weights and Adam's two moments; best and last weights.
    training, left = 9 * weights + 2 * weights, 2 * weights
    there = next(folder for folder in (root, *root.absolute().parents) if folder.exists())
    free = shutil.disk_usage(there).free
    yield "\ndisk"
    yield f"  a run while it trains {training / 2**20:.0f} MiB, when finished {left / 2**20:.0f} MiB"
    yield f"  three stages {(training + 2 * left) / 2**30:.2f} GiB at most; free here {free / 2**30:.0f} GiB"
    folder = data_paths(runs[0].profile, root / "data").root
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    yield f"  data below {folder.name}/: {size / 2**30:.2f} GiB"
