"""What one GPU does in ten minutes: python -m benchmarks.gpu [--data DIR] [--seconds 560] [--output FILE].

Trains HRNet++ W48 at 384x288 in bf16, channels last, compiled, on crops that lie on the device and on crops
that a loader cuts out of JPEGs; predicts; compares bf16 with fp32; kills a run and resumes it. Each part is
kept in benchmarks/gpu.json as soon as it is measured, whatever becomes of the next. `--rehearse` runs every
part with a tiny network on whatever device there is, the compiler without its code generation (minutes on a
CPU), and keeps nothing unless `--output` says where.
"""

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from unittest import mock

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read when torch is imported

import cv2  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
from safetensors.torch import load_file  # noqa: E402

from benchmarks.bench import crowd, make_training  # noqa: E402
from hrnetpp_lib.app.plan import random_batch  # noqa: E402
from hrnetpp_lib.data import layout  # noqa: E402
from hrnetpp_lib.data.crops import normalise, usable_workers  # noqa: E402
from hrnetpp_lib.data.synthetic import write_dataset  # noqa: E402
from hrnetpp_lib.evaluate import infer  # noqa: E402
from hrnetpp_lib.evaluate.table import provenance  # noqa: E402
from hrnetpp_lib.files import write_json  # noqa: E402
from hrnetpp_lib.recipe import COCO, HRNETPP, SMOKE, STAGE2, Profile, Run, resolve  # noqa: E402
from hrnetpp_lib.train.loader import load_batches  # noqa: E402
from hrnetpp_lib.train.loop import Training, batch_loss, build_model  # noqa: E402
from hrnetpp_lib.train.machine import compile_step, is_out_of_memory  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
GOALS = {"train": 900, "inference": 3000}  # crops/s on one H200


@dataclass
class Bench:
    """Sizes, and what one part leaves for the next."""

    profile: Profile
    batches: tuple[int, ...]  # sizes to try, until memory runs out
    seconds: float  # of each measurement
    folder: Path
    given: Path | None  # a folder in COCO's layout
    device: torch.device = field(default_factory=infer.pick_device)
    best: int = 0  # batch
    training: Training | None = None

    def run(self, batch: int, **changes: object) -> Run:
        return resolve(STAGE2, replace(self.profile, batch_size=batch, **changes), HRNETPP)

    def sync(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def rate(self, work: Callable[[], object], crops: int) -> float:
        """Crops per second, after a call that warms up."""
        work()
        self.sync()
        started, done = time.perf_counter(), 0
        while time.perf_counter() - started < self.seconds:
            work()
            self.sync()
            done += crops
        return round(done / (time.perf_counter() - started), 1)

    def gib(self) -> float | None:
        """The most memory that was taken since the last call."""
        if self.device.type != "cuda":
            return None
        most = torch.cuda.max_memory_allocated() / 2**30
        torch.cuda.reset_peak_memory_stats()
        return round(most, 1)


def train(bench: Bench) -> dict:
    """Crops/s of training steps by batch, crops already on the device; the best batch compiled, too."""
    found, data = {}, crowd(bench.batches[-1])[0]  # no picture of it is read
    for size in bench.batches:
        try:
            training = make_training(bench.run(size), data, bench.folder)
            batch = training._to_device(random_batch(bench.profile, size))
            rate = bench.rate(lambda t=training, b=batch: t._optimise(b, 0.0), size)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            break
        found[str(size)] = {"crops_per_s": rate, "memory_gib": bench.gib()}
        print(f"  batch {size}: {found[str(size)]}", flush=True)
        del training, batch
    bench.best = int(max(found, key=lambda size: found[size]["crops_per_s"]))
    training = make_training(bench.run(bench.best), data, bench.folder)
    batch, started, said = (
        training._to_device(random_batch(bench.profile, bench.best)),
        time.perf_counter(),
        [],
    )
    training.network = compile_step(training.network, batch, said.append)
    compiling = round(time.perf_counter() - started, 1)
    rate = bench.rate(lambda: training._optimise(batch, 0.0), bench.best)
    compiled = {"crops_per_s": rate, "memory_gib": bench.gib(), "compile_s": compiling, "said": said}
    return {"by_batch": found, "batch": bench.best, "compiled": compiled, "goal": GOALS["train"]}


def loader(bench: Bench) -> dict:
    """Crops/s of the same training with crops cut out of JPEGs by a process a core, and of these alone."""
    training = make_training(bench.run(bench.best or bench.batches[0]), training_data(bench), bench.folder)
    bench.training, workers = training, usable_workers(bench.profile.workers)
    size, steps = training.run.profile.batch_size, training.steps
    pinned = bench.device.type == "cuda"

    def epochs(step: Callable) -> float:
        started, done, number = None, 0, 0
        while not started or time.perf_counter() - started < 2 * bench.seconds:
            order = replace(training.batches, epoch=number)
            with load_batches(training.crops, order, workers, pinned) as batches:
                for batch in batches:
                    step(batch)
                    started, done = started or time.perf_counter(), done + 1
                    if time.perf_counter() - started > 2 * bench.seconds:
                        break
            number += 1
        return round((done - 1) * size / (time.perf_counter() - started), 1)

    def step(batch) -> None:
        training._optimise(training._to_device(batch), training.run.stage.lr_start)
        training.progress.step += 1

    alone = epochs(lambda batch: None)
    first = training._to_device(next_batch(training))
    training.network = compile_step(training.network, first, print)
    both = epochs(step)
    image = cv2.imread(str(training.crops.table.image_path(0)))
    jpeg = "x".join(map(str, image.shape[1::-1]))
    sizes = {"batch": size, "steps_an_epoch": steps, "workers": workers, "jpeg": jpeg}
    return {"loader_alone_crops_per_s": alone, "training_crops_per_s": both, **sizes}


def next_batch(training: Training):
    """The first batch of an epoch."""
    with load_batches(training.crops, training.batches, 0) as batches:
        return next(batches)


def training_data(bench: Bench) -> layout.StageData:
    """The given folder's, or synthetic people in JPEGs of twice their size, which is COCO's."""
    paths = layout.DataPaths(bench.given or bench.folder / "jpegs")
    if bench.given:
        return layout.load_coco(replace(bench.profile, boxes=None), paths)
    counts = bench.profile.synthetic_persons
    write_dataset(
        paths.root, lambda root: layout.DataPaths(root).sets(), *counts, processes=usable_workers(64)
    )
    data = layout.load_coco(replace(bench.profile, boxes=None), paths)
    tables = []
    for table in (data.train, data.val):
        for file in {table.image_path(person) for person in range(len(table))}:
            cv2.imwrite(str(file), cv2.resize(cv2.imread(str(file)), None, fx=2, fy=2))
        double = np.array([2, 2, 1], np.float32)
        larger = {"bboxes_xywh": 2 * table.bboxes_xywh, "keypoints": table.keypoints * double}
        tables.append(replace(table, **larger))
    return replace(data, train=tables[0], val=tables[1])


def inference(bench: Bench) -> dict:
    """Crops/s of the prepared network in bf16, without and with the flip test."""
    run = bench.run(bench.batches[0])
    card = infer.ModelCard.of_run(run, infer.ModelCard().skeleton)
    model = build_model(run, len(card.skeleton)).to(bench.device).eval()
    network, found = infer.prepare(model, card, precision="bf16"), {}
    for size in bench.batches[1::2]:  # each is compiled anew
        crops = random_batch(bench.profile, size).image.to(bench.device)
        try:
            plain, flipped = (
                bench.rate(
                    lambda c=crops, f=flip: infer.decode_heatmaps(infer.forward(network, c, card, f), card),
                    size,
                )
                for flip in (False, True)
            )
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            break
        found[str(size)] = {"crops_per_s": plain, "with_flip_test": flipped, "memory_gib": bench.gib()}
        print(f"  batch {size}: {found[str(size)]}", flush=True)
    most = max(each["crops_per_s"] for each in found.values())
    return {"by_batch": found, "crops_per_s": most, "runtime": network.runtime, "goal": GOALS["inference"]}


def precision(bench: Bench) -> dict:
    """How far bf16 moves the keypoints of a network that has learned something, and its loss."""
    training = bench.training
    model, card, table = training.model.eval(), training.card, training.data.val
    exact = infer.predict_boxes(model, card, table).keypoints
    ready = infer.prepare(model, card, precision="bf16")
    away = np.linalg.norm(infer.predict_boxes(ready, card, table).keypoints - exact, axis=-1)
    batch, losses = training._to_device(next_batch(training)), {}
    with torch.no_grad():
        for name, network in (("fp32", model), ("bf16", ready)):
            losses[name] = float(batch_loss(training.run, network(normalise(batch.image)), batch))
    moved = {f"{q}%": round(float(np.percentile(away, q)), 4) for q in (50, 90, 99, 100)}
    return {"steps_trained": training.progress.step, "keypoints_moved_px": moved, "loss": losses}


def resume(bench: Bench) -> dict:
    """Kill a run by SIGKILL in the middle of an epoch, go on, and compare with one that was left alone."""
    # Small, so that a state a step costs nothing: 3 epochs of 8 steps.
    profile = replace(SMOKE, name="killed", batch_size=4, epochs=(1, 3, 1))
    run = resolve(STAGE2, profile, HRNETPP)
    roots = [bench.folder / name for name in ("alone", "killed")]
    write_json(bench.folder / "killed.json", run)
    layout.prepare_data(profile, roots[0] / "data")
    shutil.copytree(roots[0] / "data", roots[1] / "data")

    def start(root: Path) -> subprocess.Popen:
        recipe = ["--recipe", str(bench.folder / "killed.json"), "--output", str(root), "--save-every", "0"]
        return subprocess.Popen([sys.executable, "-m", "hrnetpp_lib", "train", *recipe], cwd=ROOT)

    states, alone = roots[1] / "runs" / profile.name / run.name / "states", start(roots[0])
    if alone.wait():
        raise RuntimeError(f"the run that was left alone ended with {alone.returncode}")
    victim = start(roots[1])
    while victim.poll() is None and not any("step_00000011" in path.name for path in states.glob("step_*")):
        time.sleep(0.01)
    victim.kill()
    if victim.wait() != -signal.SIGKILL:
        raise RuntimeError(f"the run had ended with {victim.returncode} before it was killed")
    killed_at = max(path.name[5:13] for path in states.glob("step_*"))
    if (status := start(roots[1]).wait()) != 0:
        raise RuntimeError(f"the run that went on ended with {status}")
    ends = [load_file(root / "runs" / profile.name / run.name / "model.safetensors") for root in roots]
    away = max(
        float((a.double() - b.double()).abs().max()) for a, b in zip(*(e.values() for e in ends), strict=True)
    )
    return {"killed_after_step": int(killed_at), "steps": 24, "weights_differ_by": away}


PARTS = (train, inference, loader, precision, resume)


def measure_parts(bench: Bench, seconds: float, keep: Callable[[dict], None], parts=PARTS) -> dict:
    """Each part's result, or why it has none, kept after each; the time ends the part under way."""

    def ring(*_: object) -> None:
        raise TimeoutError(f"{seconds:.0f} s are over")

    found = {"provenance": provenance(), "network": bench.profile.describe_size(), "parts": {}}
    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    begun = time.perf_counter()
    try:
        for part in parts:
            if time.perf_counter() - begun > seconds:
                found["parts"][part.__name__] = {"error": "no time was left"}
                continue
            print(f"{part.__name__} ...", flush=True)
            started = time.perf_counter()
            try:
                result = part(bench)
            except Exception as error:
                result = {"error": f"{type(error).__name__}: {error}"}
            found["parts"][part.__name__] = result | {"seconds": round(time.perf_counter() - started, 1)}
            print(f"  {result}", flush=True)
            keep(found)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    keep(found)
    return found


def main(arguments: list[str] | None = None) -> int:
    """Measure; 1 if a part has no result."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--data", type=Path, metavar="DIR", help="a folder in COCO's layout; default: synthetic"
    )
    parser.add_argument("--seconds", type=float, default=560, help="until what is not done is left out")
    parser.add_argument("--output", type=Path, metavar="FILE", help="default: benchmarks/gpu.json")
    parser.add_argument("--rehearse", action="store_true", help="tiny, on any device")
    options = parser.parse_args(arguments)
    common = {"name": "gpu", "data": "synthetic", "imagenet_weights": None}
    large = replace(COCO, synthetic_persons=(2000, 10, 200), workers=16, **common)
    tiny = replace(SMOKE, synthetic_persons=(32, 10, 12), workers=1, precision="bf16", **common)
    output = options.output or (None if options.rehearse else Path(__file__).with_suffix(".json"))
    if not options.rehearse and not torch.cuda.is_available():
        parser.error("there is no GPU; --rehearse runs every part small")
    with tempfile.TemporaryDirectory() as folder:
        sizes = (tiny, (4, 8), 0.2) if options.rehearse else (large, (32, 64, 96, 128, 192), 8.0)
        bench = Bench(*sizes, Path(folder), options.data)
        keep = (lambda found: write_json(output, found)) if output else (lambda found: None)
        quickly = {"backend": "aot_eager"} if options.rehearse else {}
        with mock.patch.object(torch, "compile", partial(torch.compile, **quickly)):
            found = measure_parts(bench, options.seconds, keep)
    return int(any("error" in part for part in found["parts"].values()))


if __name__ == "__main__":
    sys.exit(main())
