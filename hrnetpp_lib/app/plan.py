"""What a profile's trainings would take here: measured, counted, or the report's numbers, which say so."""

import math
import shutil
import time
from collections.abc import Generator, Iterator
from itertools import islice
from pathlib import Path

import torch
from torch.utils.benchmark import Timer

from hrnetpp_lib.data import layout
from hrnetpp_lib.data.crops import Sample, TrainCrops, usable_workers
from hrnetpp_lib.data.persons import PersonTable, check_images
from hrnetpp_lib.errors import HrnetppError
from hrnetpp_lib.evaluate.infer import pick_device
from hrnetpp_lib.evaluate.metrics import bbox_ap
from hrnetpp_lib.evaluate.runtime import imitates_bf16
from hrnetpp_lib.model.anatomy import count_macs
from hrnetpp_lib.pose.keypoints import COCO17
from hrnetpp_lib.recipe import HRNET, Profile, Run, ablation_runs, fitting_alpha, three_stages
from hrnetpp_lib.train.loader import EpochBatches, load_batches, number_of_steps
from hrnetpp_lib.train.loop import TrainStep, build_model
from hrnetpp_lib.train.machine import SLOW_BF16
from hrnetpp_lib.train.together import processes_at_once

# Persons with labelled keypoints, by the report and by the official HRNet code's count of train2017.
REPORTED = {"ai_challenger": (444_000, 5_000), "coco": (149_813, None)}
_MEASURED_S, _LOADED_BATCHES = 20.0, 20
_CPU_MACS = 4e10  # a step of more than this takes a CPU too long to wait for
_FLOP = 6  # of a multiply-accumulate: two, forward once and backward twice


def notebook_runs(profile: Profile) -> tuple[Run, ...]:
    """Every training of the notebooks, each once: two networks' heatmap stages, stage 3, ablations, alpha."""
    (*plain, _), chain = three_stages(profile, HRNET), three_stages(profile)
    runs = (*plain, *chain, *ablation_runs(profile), fitting_alpha(profile))
    return tuple({run.name: run for run in runs}.values())


def plan(profile: Profile, root: Path, gpus: int) -> Iterator[str]:
    """Lines of the plan, as they become known, for `gpus` devices that share each batch; data/ is in `root`.

    Raises: HrnetppError if a batch cannot be divided among the GPUs, or a file that is there is broken.
    """
    if gpus < 1:
        raise HrnetppError(f"{gpus} GPUs: must be at least 1")
    number_of_steps(f"profile {profile.name}", profile.batch_size, profile.batch_size, gpus)
    heatmap_run, share = three_stages(profile)[1], profile.batch_size // gpus
    yield f"profile {profile.name}: {profile.describe_size()}, batch {profile.batch_size} = {gpus} x {share}"
    data = yield from _check_data(profile, root)
    persons = {name: (reported[0], "the report's number") for name, reported in REPORTED.items()}
    persons |= {name: (len(there.train), "counted") for name, there in data.items()}
    yield "\nspeed (this takes seconds on a GPU, minutes on a CPU)"
    model_rate = yield from _measure_model(heatmap_run, share)
    loader_rate = (yield from _measure_loader(heatmap_run, data["coco"].train)) if "coco" in data else None
    yield from _cost(notebook_runs(profile), persons, model_rate, gpus)
    yield _bottleneck(profile, model_rate, loader_rate, gpus)
    there = next(folder for folder in (root, *root.absolute().parents) if folder.exists())
    yield f"disk: {shutil.disk_usage(there).free / 2**30:.0f} GiB free below {root}"


def _check_data(profile: Profile, root: Path) -> Generator[str, None, dict[str, layout.StageData]]:
    """Lines of what is there and what is not; returns the sets that can be read."""
    paths, data = layout.data_paths(profile, root / "data"), {}
    if profile.data == "synthetic":
        layout.prepare_data(profile, root / "data")
    yield "\ndata"
    missing = layout.missing_files(profile, paths)
    yield from (f"  missing: {path}" for path in missing)
    absent = {path.relative_to(paths.root).parts[0] for path in missing}
    for name in [name for name in REPORTED if name not in absent]:
        data[name] = layout.load_stage_data(name, profile, paths)
        for role, reported in zip(("train", "val"), REPORTED[name], strict=True):
            table = getattr(data[name], role)
            line = f"  {name} {role}: {len(table)} persons or boxes in {len(set(table.image_index))} images"
            if profile.data == "public" and reported:
                line += f" (report: {reported}; {len(table) - reported:+d})"
            yield line
            try:
                check_images(table)
            except HrnetppError as error:
                yield f"    {error}"
    if "coco" in data and (boxes := paths.boxes_json(profile)):
        yield f"  {boxes.name}: person box AP {100 * bbox_ap(paths.coco_json('val'), boxes):.1f} on val"
    return data


def _measure_model(run: Run, share: int) -> Generator[str, None, float]:
    """Lines; returns crops per second of one device, on random crops."""
    profile, device = run.profile, pick_device()
    on_gpu = device.type == "cuda"
    macs = count_macs(build_model(run, len(COCO17)), profile.input_hw)
    crops = share if on_gpu else max(2, min(share, int(_CPU_MACS // macs)))
    rate = training_speed(run, crops)
    name = torch.cuda.get_device_name(device) if on_gpu else "one thread of this CPU"
    yield f"  model on {name}, steps of {crops} crops, {profile.precision}: {rate:.2f} crops/s"
    if profile.precision == "bf16" and imitates_bf16(device):
        yield f"  {SLOW_BF16}"
    yield f"  = {_FLOP * macs * rate / 1e12:.3f} TFLOP/s ({_FLOP * macs / 1e9:.3g} GFLOP a training crop)"
    if on_gpu:
        yield f"  memory: {torch.cuda.max_memory_allocated(device) / 2**30:.1f} GiB at most"
    return rate


def training_speed(run: Run, crops: int) -> float:
    """Crops per second of a GPU, or of one thread of a CPU, in steps on so many random crops."""
    profile, device = run.profile, pick_device()
    model = build_model(run, len(COCO17)).to(device, memory_format=torch.channels_last).train()
    step, optimizer = TrainStep(model, run), torch.optim.Adam(model.parameters(), lr=0.0, fused=True)
    batch = Sample(*(tensor.to(device) for tensor in random_batch(profile, crops)))

    def make_step() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=profile.precision == "bf16"):
            loss = step(batch)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    timer = Timer("make_step()", globals={"make_step": make_step}, num_threads=1)  # as each of `together` has
    return crops / timer.blocked_autorange(min_run_time=_MEASURED_S).median


def random_batch(profile: Profile, crops: int) -> Sample:
    """A batch of noise in the sizes of a profile: every keypoint labelled and inside."""
    keypoints, ones = (crops, len(COCO17)), torch.ones(crops, len(COCO17))
    image = torch.randint(0, 256, (crops, *profile.input_hw, 3), dtype=torch.uint8)
    peaks = torch.randint(0, min(profile.heatmap_hw), (*keypoints, 2))
    return Sample(image, peaks, ones, torch.rand(*keypoints, 2), ones, torch.zeros(crops), torch.zeros(crops))


def _measure_loader(run: Run, train: PersonTable) -> Generator[str, None, float | None]:
    """Lines; returns crops per second of one loader process, None where that cannot be measured."""
    workers = usable_workers(run.profile.workers)
    batches = EpochBatches(len(train), min(run.profile.batch_size, len(train)), run.seed)
    started = time.perf_counter()
    try:
        with load_batches(TrainCrops.of_run(train, run), batches, workers) as loader:
            crops = sum(len(batch.image) for batch in islice(loader, _LOADED_BATCHES))
    except HrnetppError as error:
        yield f"  loader: not measured: {error}"
        return None
    rate = crops / (time.perf_counter() - started)
    each = rate / max(workers, 1)
    yield f"  loader with {workers} processes, {crops} crops: {rate:.1f} crops/s, {each:.1f} a process"
    return each


def _cost(runs: tuple[Run, ...], persons: dict[str, tuple], rate: float, gpus: int) -> Iterator[str]:
    """Samples, hours and disk of every training, and of all."""
    on_gpu, sizes = pick_device().type == "cuda", {}
    unit = "GPU-hours" if on_gpu else "hours of one process"
    yield f"\ncost of the notebooks' trainings ({unit} at HRNet++'s measured speed, without evaluation)"
    samples = flop = left = 0
    for run in runs:
        if run.architecture not in sizes:
            model = build_model(run, len(COCO17))
            weights = sum(tensor.nbytes for tensor in model.state_dict().values())
            sizes[run.architecture] = count_macs(model, run.profile.input_hw), weights
        (number, origin), (macs, weights) = persons[run.stage.dataset], sizes[run.architecture]
        mine, kept = number * run.stage.epochs, 2 * weights  # best and last
        samples, flop, left = samples + mine, flop + _FLOP * macs * mine, left + kept
        what = f"{run.stage.epochs:4d} epochs x {number} persons ({origin}) = {mine:,} samples"
        yield f"  {run.name:50s} {what}, {mine / rate / 3600:.3g} {unit}, {kept / 2**20:.0f} MiB"
    hours, name = samples / rate / 3600, f"all {len(runs)} trainings"
    yield f"  {name:50s} {samples:,} samples, {hours:.3g} {unit}, {left / 2**20:.0f} MiB, {flop:.2g} FLOP"
    # Two states are kept and one is being written, each of weights and Adam's two moments.
    yield f"  beside them {9 * max(sizes.values())[1] / 2**20:.0f} MiB while a run trains"
    if on_gpu:
        yield f"  on {gpus} such GPUs, if they scale perfectly: {hours / gpus:.3g} hours"
    else:
        most = min(processes_at_once(runs), len(runs))
        yield f"  side by side, with {most} at once all the time: {hours / most:.3g} hours of this CPU"
        division = f"{flop / 3.6e15:.3g} divided by a GPU's effective TFLOP/s are the GPU-hours"
        yield f"  no GPU here to measure: {division}, and again by {gpus} the hours on {gpus}"


def _bottleneck(profile: Profile, model_rate: float, loader_rate: float | None, gpus: int) -> str:
    if loader_rate is None:
        return "bottleneck: unknown, the loader was not measured"
    if not profile.workers:
        together = 1 / (1 / model_rate + 1 / loader_rate)
        return f"bottleneck: the process that trains loads its crops itself, {together:.1f} crops/s together"
    slower = "the loader" if loader_rate * profile.workers < model_rate else "the model"
    need = math.ceil(model_rate / loader_rate)
    feed = f"{need} of them (cores) feed one such device, {need * gpus} feed {gpus}"
    return f"bottleneck: {slower}, with the profile's {profile.workers} loader processes; {feed}"
