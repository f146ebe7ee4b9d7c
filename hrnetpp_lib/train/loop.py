"""One training stage, from a recipe to a checkpoint.

A sample's way: `data.crops.TrainCrops` cuts a crop out of a picture, `loader` collates a batch of them,
`TrainStep` normalises it, runs the network and takes the loss, `Training._optimise` makes one step of Adam.
`accelerate` drives devices and processes; `resume` keeps what an interrupted run needs to go on.
"""

import contextlib
import math
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast, gather_object
from torch.utils.data import default_collate

from hrnetpp_lib.data.crops import Sample, TrainCrops, normalise, usable_workers
from hrnetpp_lib.data.layout import StageData
from hrnetpp_lib.data.persons import check_images
from hrnetpp_lib.errors import HrnetppError, Preempted
from hrnetpp_lib.evaluate.infer import Predictions, predict_boxes
from hrnetpp_lib.evaluate.score import score
from hrnetpp_lib.model.hrnet import HRNet
from hrnetpp_lib.model.losses import heatmap_mse, keypoint_l1
from hrnetpp_lib.model.weights import ModelCard, load_stem_and_layer1, load_weights, save_checkpoint
from hrnetpp_lib.pose.heatmap import draw_gaussians
from hrnetpp_lib.pose.softargmax import soft_argmax
from hrnetpp_lib.recipe import Run, TrainStage
from hrnetpp_lib.train import journal, resume
from hrnetpp_lib.train.journal import EpochBar
from hrnetpp_lib.train.loader import EpochBatches, Loader, number_of_steps
from hrnetpp_lib.train.machine import (
    EngineOptions,
    SigtermNotice,
    compile_step,
    is_out_of_memory,
    make_accelerator,
)

_EXPLODED = 100  # times the typical loss


def build_model(run: Run, num_keypoints: int) -> HRNet:
    """The run's network with random weights, drawn from the run's seed."""
    torch.manual_seed(run.seed)
    return HRNet(num_keypoints=num_keypoints, **asdict(run.profile.network), **run.architecture.switches)


def initialise(model: HRNet, run: Run, runs_dir: Path, data_dir: Path) -> str:
    """Load what the run starts from, and return a report of it.

    Raises:
        HrnetppError: If the previous run is not finished, or a weight file does not fit.
    """
    if run.previous:
        previous = checkpoint_path(runs_dir, run.previous)
        if not previous.is_file():
            raise HrnetppError(f"{previous}: not there; train {run.previous} before {run.name}")
        return f"{load_weights(model, previous)}\n(from {run.previous})"
    if run.profile.imagenet_weights:
        path = data_dir / run.profile.imagenet_weights
        return f"{load_stem_and_layer1(model, path)}\n(from {path})"
    return "random weights, N(0, 0.001)"


def checkpoint_path(runs_dir: Path, run_name: str) -> Path:
    """Where a finished run keeps its network."""
    return runs_dir / run_name / "model.safetensors"


_DEFAULT = EngineOptions()


def train_stage(
    run: Run, data: StageData, runs_dir: Path, data_dir: Path, options: EngineOptions = _DEFAULT
) -> Path:
    """Train one stage, or go on with it, or find it trained.

    Args:
        run: The resolved recipe.
        data: Training and validation persons.
        runs_dir: Gets a folder named after the run: recipe.json, data.json, metrics.jsonl, snapshots/,
            states/ while it trains, best.safetensors (highest metric on val), model.safetensors at its end.
        data_dir: Where weight files for initialisation lie.
        options: How to use this machine. Started by `accelerate launch`, the processes share each batch.

    Returns:
        Path of the checkpoint.

    Raises:
        HrnetppError: If the loss is not finite or explodes, memory or disk runs out, a picture cannot be
            read (one of val before the first step), the data changed since the run was begun, or the start
            is missing.
        Preempted: If SIGTERM came; the state is saved.

    Reference: HRNet++ report, training.
    """
    path = checkpoint_path(runs_dir, run.name)
    accelerator = make_accelerator(run, options, path.parent)
    # Found before the lock is taken: a finished run may lie in a folder that cannot be written to.
    if all(gather_object([path.is_file()])):
        now = data.train.fingerprint()
        resume.check_data(journal.read_data(path.parent) or now, now, path.parent)
        accelerator.print(f"{run.name}: found trained, {path}")
        resume.remove_states(path.parent / "states")
        return path
    with SigtermNotice() as notice, journal.lock(path.parent, accelerator.is_main_process):
        with notice.at_once():  # nothing is done that is not done again
            accelerator.init_trackers("tensorboard")
            training = Training(run, data, path.parent, options, accelerator, notice)
            training.prepare(runs_dir, data_dir)
        training.run_epochs()
        if accelerator.is_main_process:
            save_checkpoint(training.model, training.card, path)
            resume.remove_states(path.parent / "states")
        for tracker in accelerator.trackers:
            tracker.finish()
        if sum(gather_object([notice.received])):
            raise Preempted(
                f"{run.name}: SIGTERM, but this run is finished; the same command goes on after it"
            )
    return path


class Training:
    """A run under way: the loop over epochs and steps, and what it keeps between them."""

    def __init__(
        self,
        run: Run,
        data: StageData,
        folder: Path,
        options: EngineOptions,
        accelerator: Accelerator,
        notice: SigtermNotice,
    ):
        """A run at its beginning, with random weights; `train_stage` gives the arguments."""
        self.run, self.data, self.folder = run, data, folder
        self.options, self.accelerator, self.notice = options, accelerator, notice
        rank, processes = accelerator.process_index, accelerator.num_processes
        persons, size = len(data.train), run.profile.batch_size
        self.steps = number_of_steps(data.train.name, persons, size, processes * options.accumulate)
        self.batches = EpochBatches(persons, size, run.seed, rank, processes)
        self.crops = TrainCrops.of_run(data.train, run, skip_bad_images=options.skip_bad_images)
        self.card = ModelCard.of_run(run, data.train.skeleton)
        model = build_model(run, len(self.card.skeleton))
        self.model = model.to(accelerator.device, memory_format=torch.channels_last)
        # CHOICE: no weight decay: the report is silent, and the official recipe's never reaches Adam.
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=run.stage.lr_start, fused=True)
        self.network: torch.nn.Module = TrainStep(self.model, run)
        self.progress = resume.Progress(run.name, data.train.fingerprint(), processes, options.accumulate)
        self.saved_at = time.monotonic()

    def prepare(self, runs_dir: Path, data_dir: Path) -> None:
        """Everything up to the first step: weights, of a saved state or of a start, and checks."""
        if not self._resume():
            report = initialise(self.model, self.run, runs_dir, data_dir)
            self.accelerator.print(f"{self.run.name}, initial weights:\n{report}")
        self._wrap()
        if self.accelerator.is_main_process:
            check_images(self.data.val, decode=True)  # now, rather than after the first epochs

    def _resume(self) -> bool:
        """Go on from the newest saved state; whether there was one."""
        self.progress, remarks, wrong = resume.load_state(
            *(self.folder / "states", self.model, self.optimizer, self.progress),
            *(self.steps, self.run.stage.epochs),
        )
        steps = set(gather_object([self.progress.step]))  # nobody writes before everybody has read
        if len(steps) > 1:
            raise HrnetppError(
                f"{self.folder}: the processes find states of different steps ({sorted(steps)}); put runs/ "
                "on a file system that all machines share"
            )
        if self.accelerator.is_main_process:
            resume.set_aside(wrong)
            remarks.append(journal.cut_metrics(self.folder, self.progress.epoch))
            journal.write_origin(self.folder, self.run, self.progress.data)
        for remark in filter(None, remarks):
            self.accelerator.print(f"{self.run.name}: {remark}")
        return self.progress.step > 0

    def _wrap(self) -> None:
        """Prepare the step for several processes, for bf16 and, if asked for, for the compiler."""
        self.network = self.accelerator.prepare(self.network)
        if self.options.compile:
            share = self.run.profile.batch_size // self.accelerator.num_processes // self.options.accumulate
            example = default_collate([self.crops[i] for i in range(share)])
            self.network.train()
            self.network = compile_step(self.network, self._to_device(example), self.accelerator.print)

    def run_epochs(self) -> None:
        """Train, evaluate, log and save, epoch by epoch."""
        for epoch in range(self.progress.epoch, self.run.stage.epochs):
            self._train_epoch(epoch)
            record = self._summary(epoch)
            if (epoch + 1) % self.run.profile.eval_every == 0 or epoch + 1 == self.run.stage.epochs:
                self._save()
                with self.notice.at_once():  # scoring val may take longer than a scheduler waits
                    record |= self._evaluate(epoch)
            self._log(record)
            done = {"epoch": epoch + 1, "losses": [], "seconds": 0.0, "bad_images": 0}
            self.progress = replace(self.progress, typical_loss=record["loss"], **done)
            self._save()

    def _train_epoch(self, epoch: int) -> None:
        profile, progress = self.run.profile, self.progress
        done = progress.step - epoch * self.steps
        self.batches.start_at(epoch, done)
        size, name = profile.batch_size, f"{self.run.stage.name} epoch {epoch + 1}/{self.run.stage.epochs}"
        bar = EpochBar(name, self.steps * size, done * size, silent=not self.accelerator.is_main_process)
        self.network.train()
        on_gpu = self.accelerator.device.type == "cuda"
        started = time.perf_counter() - progress.seconds
        loader = Loader(self.crops, self.batches, profile.workers, pin_memory=on_gpu)
        with loader.explain_deaths():
            for batch in loader:
                self._report_bad_images(batch)
                lr = learning_rate(self.run.stage, progress.step, self.run.stage.epochs * self.steps)
                loss, stop, bad = self._optimise(self._to_device(batch), lr)
                progress.step += 1
                progress.losses.append(loss)
                progress.bad_images += bad
                progress.seconds = time.perf_counter() - started
                bar.advance(size, loss, lr)
                if stop:
                    self._save()
                    raise Preempted(
                        f"{self.run.name}: SIGTERM at step {progress.step}; the state is saved, the same "
                        "command goes on from it"
                    )
                if time.monotonic() - self.saved_at >= self.options.save_every_s:
                    self._save()
        bar.close()

    def _optimise(self, batch: Sample, lr: float) -> tuple[float, bool, int]:
        """One step of Adam on this process's share of a batch.

        Returns:
            Of all processes: loss of the whole batch, whether one must stop, persons replaced.
        """
        total = torch.zeros((), device=self.accelerator.device)
        for part, is_last in _parts(batch, self.options.accumulate):
            # Gradients of the parts add up, and go to the other processes once.
            together = contextlib.nullcontext() if is_last else self.accelerator.no_sync(self.network)
            try:
                with together:
                    # Losses are means over crops, and parts are equal: their mean is the whole batch's.
                    loss = self.network(part) / self.options.accumulate
                    self.accelerator.backward(loss)
                    total += loss.detach()
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                raise HrnetppError(
                    f"memory ran out with {len(part.image)} crops at once; cut each batch into more parts "
                    f"(train --accumulate {2 * self.options.accumulate} or more), use more processes, or a "
                    "profile with smaller batches"
                ) from error
        said = [total, total.new_tensor(self.notice.received), (batch.bad >= 0).sum().to(total)]
        loss, stops, bad = self.accelerator.reduce(torch.stack(said), "sum").tolist()
        loss /= self.accelerator.num_processes
        self._check_loss(loss, batch)  # before it can spoil the weights
        self.optimizer.param_groups[0]["lr"] = lr
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss, stops > 0, int(bad)

    def _check_loss(self, loss: float, batch: Sample) -> None:
        progress = self.progress
        typical = progress.typical_loss or (progress.losses[0] if progress.losses else 0.0)
        # A first batch may have no labelled keypoint, and no loss.
        if math.isfinite(loss) and (loss <= _EXPLODED * typical or not typical):
            return
        persons = ", ".join(map(str, batch.person.tolist()))
        raise HrnetppError(
            f"{self.run.name}: loss is {loss:g} at step {progress.step + 1}, epoch {progress.epoch + 1} "
            f"(typical: {typical:g}), on persons {persons} of {self.crops.table.name}. The last saved "
            "state is good; look at these persons, or lower the profile's lr_scales"
        )

    def _report_bad_images(self, batch: Sample) -> None:
        for person in batch.bad[batch.bad >= 0].tolist():
            path = self.crops.table.image_path(person)
            print(f"warning: person {person} replaced, its picture cannot be read: {path}", flush=True)

    def _to_device(self, batch: Sample) -> Sample:
        return Sample(*(tensor.to(self.accelerator.device, non_blocking=True) for tensor in batch))

    def _summary(self, epoch: int) -> dict:
        """The training figures of an epoch."""
        progress, stage = self.progress, self.run.stage
        return {
            "epoch": epoch + 1,
            "step": progress.step,
            "loss": sum(progress.losses) / len(progress.losses),
            "lr": learning_rate(stage, progress.step - 1, stage.epochs * self.steps),
            "seconds": progress.seconds,
            "samples_per_s": len(progress.losses) * self.run.profile.batch_size / progress.seconds,
            "bad_images": progress.bad_images,
            "processes": self.accelerator.num_processes,
            "accumulate": self.options.accumulate,
        }

    def _evaluate(self, epoch: int) -> dict:
        """The metric on val, the heatmaps of eight of its people, and the best network so far."""
        for buffer in self.model.buffers():
            broadcast(buffer)  # batch statistics differ between processes
        result = validate(self.model, self.card, self.data, self.accelerator, self.run.profile.workers)
        if self.accelerator.is_main_process:
            journal.save_snapshot(self.folder, epoch + 1, self.model, self.card, self.data.val)
            if self.progress.best is None or result["value"] > self.progress.best:
                self.progress.best = result["value"]
                save_checkpoint(self.model, self.card, self.folder / "best.safetensors")
        return result

    def _log(self, record: dict) -> None:
        if not self.accelerator.is_main_process:
            return
        journal.append_metrics(self.folder, record)
        self.accelerator.log({n: v for n, v in record.items() if isinstance(v, float)}, step=record["step"])
        print(journal.describe(record, self.run.stage.epochs), flush=True)

    def _save(self) -> None:
        """Save a state; all processes hold the same, so one writes."""
        self.saved_at = time.monotonic()
        # The loss tells a step later that weights are spoilt; no such state may push a good one out.
        if not all(parameter.isfinite().all() for parameter in self.model.parameters()):
            raise HrnetppError(
                f"{self.run.name}: weights are not finite after step {self.progress.step}. The last saved "
                "state is good; lower the profile's lr_scales"
            )
        if self.accelerator.is_main_process:
            resume.save_state(self.folder / "states", self.model, self.optimizer, self.progress)


def validate(
    model: HRNet, card: ModelCard, data: StageData, accelerator: Accelerator, workers: int = 0
) -> dict[str, object]:
    """Predict on val's boxes with the flip test, every process on its share, and score the result.

    Returns:
        On the main process metric, value (0..1) and boxes, ready to be logged; on others nothing.
    """
    rows = np.arange(accelerator.process_index, len(data.val), accelerator.num_processes)
    mine = predict_boxes(model, card, data.val.select(rows), workers=usable_workers(workers))
    # A list in, the concatenated lists of all processes out; nobody's rows are padded.
    shares = gather_object([(rows, mine)])
    if not accelerator.is_main_process:
        return {}
    order = np.argsort(np.concatenate([rows for rows, _ in shares]))
    predictions = Predictions(
        np.concatenate([share.keypoints for _, share in shares])[order],
        np.concatenate([share.scores for _, share in shares])[order],
    )
    return {"metric": data.metric.value, "value": score(predictions, data)["AP"], "boxes": data.boxes}


def _parts(batch: Sample, number: int) -> Iterator[tuple[Sample, bool]]:
    """A batch in equal parts, each with whether it is the last one."""
    size = len(batch.image) // number
    for i in range(number):
        yield Sample(*(tensor[i * size : (i + 1) * size] for tensor in batch)), i + 1 == number


def learning_rate(stage: TrainStage, step: int, steps: int) -> float:
    """Cosine from lr_start at step 0 to lr_end at the end (report, training)."""
    return stage.lr_end + (stage.lr_start - stage.lr_end) / 2 * (1 + math.cos(math.pi * step / steps))


def batch_loss(run: Run, heatmaps: torch.Tensor, batch: Sample) -> torch.Tensor:
    """The stage's loss of one batch.

    Args:
        run: Names the loss and the targets' sigma.
        heatmaps: (B, K, H, W) network output.
        batch: A collated batch of `data.TrainCrops`, on the same device.
    """
    if run.stage.loss == "heatmap_mse":
        weight = batch.target_weight
        target = draw_gaussians(batch.peaks, weight, heatmaps.shape[-2:], run.profile.heatmap_sigma)
        return heatmap_mse(heatmaps.float(), target, weight)
    keypoints = soft_argmax(heatmaps, run.stage.alpha)
    return keypoint_l1(keypoints, batch.keypoints_heatmap, batch.keypoint_weight)


class TrainStep(torch.nn.Module):
    """Raw crops in, loss out: what is wrapped for several processes, for bf16, and for the compiler."""

    def __init__(self, model: HRNet, run: Run):
        super().__init__()
        self.model, self.run = model, run

    def forward(self, batch: Sample) -> torch.Tensor:
        # Under bf16 the network leaves autocast before its last convolution: heatmaps and losses are fp32.
        return batch_loss(self.run, self.model(normalise(batch.image)), batch)
