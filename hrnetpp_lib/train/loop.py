"""One training stage, from a recipe to a checkpoint.

A sample's way: `data.crops.TrainCrops` cuts a crop out of a picture, `loader` collates a batch of them,
`TrainStep` normalises it, runs the network and takes the loss, `Training._optimise` makes one step of Adam.
"""

import contextlib
import math
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast, gather_object
from torch.utils.data import DataLoader, default_collate

from hrnetpp_lib.data.crops import Sample, TrainCrops, normalise, usable_workers
from hrnetpp_lib.data.layout import StageData
from hrnetpp_lib.data.overlap import labelled_truth
from hrnetpp_lib.data.persons import check_images
from hrnetpp_lib.errors import HrnetppError, Preempted
from hrnetpp_lib.evaluate.infer import Predictions, predict_boxes
from hrnetpp_lib.evaluate.score import score
from hrnetpp_lib.files import read_json, write_json
from hrnetpp_lib.model.hrnet import HRNet
from hrnetpp_lib.model.losses import heatmap_mse, keypoint_l1
from hrnetpp_lib.model.weights import (
    ModelCard,
    load_stem_and_layer1,
    load_weights,
    save_checkpoint,
    scale_normalised,
)
from hrnetpp_lib.pose.heatmap import draw_gaussians
from hrnetpp_lib.pose.softargmax import soft_argmax
from hrnetpp_lib.recipe import NO_AUGMENTATION, Run, TrainStage
from hrnetpp_lib.train import journal, machine, resume
from hrnetpp_lib.train.loader import EpochBatches, load_batches, number_of_steps

_EXPLODED = 100  # times the typical loss
_DEFAULT = machine.EngineOptions()


def build_model(run: Run, num_keypoints: int) -> HRNet:
    """The run's network with random weights, drawn from the run's seed."""
    torch.manual_seed(run.seed)
    return HRNet(num_keypoints=num_keypoints, **asdict(run.profile.network), **run.architecture.arguments)


def initialise(model: HRNet, run: Run, runs_dir: Path, data_dir: Path) -> str:
    """Load what the run starts from, give a report. Raises: HrnetppError if that is not there or not fit."""
    scale = run.stage.start_scale
    scaled = f", times {scale:g} before a BN" if scale != 1 else ""
    if run.previous:
        previous = checkpoint_path(runs_dir, run.previous)
        if not previous.is_file():
            raise HrnetppError(f"{previous}: not there; train {run.previous} before {run.name}")
        report = load_weights(model, previous)
        scale_normalised(model, scale)
        return f"{report}\n(from {run.previous}{scaled})"
    scale_normalised(model, scale)
    if run.profile.imagenet_weights:
        path = data_dir / run.profile.imagenet_weights
        return f"{load_stem_and_layer1(model, path)}\n(from {path})"
    return f"random weights, N(0, 0.001){scaled}"


def checkpoint_path(runs_dir: Path, run_name: str) -> Path:
    """Where a finished run keeps its network."""
    return runs_dir / run_name / "model.safetensors"


def train_stage(
    run: Run, data: StageData, runs_dir: Path, data_dir: Path, options: machine.EngineOptions = _DEFAULT
) -> Path:
    """Train one stage, or go on with it, or find it trained; returns the checkpoint's path.

    In runs_dir it fills a folder named after the run; weights to start from lie in data_dir. Started by
    `accelerate launch`, the processes share each batch.

    Raises: HrnetppError if the loss is not finite or explodes, memory or disk runs out, a picture cannot be
    read (one of val before the first step), the data changed since the run was begun, or the start is
    missing. Preempted if SIGTERM came; the state is saved.
    """
    path = checkpoint_path(runs_dir, run.name)
    folder = path.parent
    accelerator = machine.make_accelerator(run, options, folder)
    # Found before the lock is taken: a finished run may lie in a folder that cannot be written to.
    if all(gather_object([path.is_file()])):
        origin, remedy = folder / "data.json", "delete it, or the run to train anew"
        if origin.exists():
            resume.check_data(read_json(origin, dict[str, int], remedy), data.train.fingerprint(), folder)
        accelerator.print(f"{run.name}: found trained, {path}")
        resume.remove_states(folder / "states")
        return path
    lock = journal.lock(folder) if accelerator.is_main_process else contextlib.nullcontext()
    with machine.SigtermNotice() as notice, lock:
        with notice.at_once():  # nothing is done that is not done again
            accelerator.init_trackers("tensorboard")
            training = Training(run, data, folder, options, accelerator, notice)
            training.prepare(runs_dir, data_dir)
        training.run_epochs()
        if accelerator.is_main_process:
            save_checkpoint(training.model, training.card, path)
            resume.remove_states(folder / "states")
        for tracker in accelerator.trackers:
            tracker.finish()
        if sum(gather_object([notice.received])):
            raise Preempted(
                f"{run.name}: SIGTERM, but this run is finished; the same command goes on after it"
            )
    return path


@dataclass(eq=False)
class Training:
    """A run under way: the loop over epochs and steps, and what it keeps between them."""

    run: Run
    data: StageData
    folder: Path
    options: machine.EngineOptions
    accelerator: Accelerator
    notice: machine.SigtermNotice

    def __post_init__(self) -> None:
        run, data, options, accelerator = self.run, self.data, self.options, self.accelerator
        self.is_first = accelerator.is_main_process
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
        self._resume()
        if not self.progress.step:
            report = initialise(self.model, self.run, runs_dir, data_dir)
            self.accelerator.print(f"{self.run.name}, initial weights:\n{report}")
        self.network = self.accelerator.prepare(self.network)
        if self.options.compile:
            share = self.run.profile.batch_size // self.accelerator.num_processes // self.options.accumulate
            example = self._to_device(default_collate([self.crops[i] for i in range(share)]))
            self.network = machine.compile_step(self.network.train(), example, self.accelerator.print)
        if self.is_first:
            check_images(self.data.val, decode=True)  # now, rather than after the first epochs

    def _resume(self) -> None:
        """Go on from the newest saved state, if there is one."""
        length = (self.steps, self.run.stage.epochs)
        self.progress, remarks, wrong = resume.load_state(
            self.folder / "states", self.model, self.optimizer, self.progress, *length
        )
        steps = set(gather_object([self.progress.step]))  # nobody writes before everybody has read
        if len(steps) > 1:
            raise HrnetppError(
                f"{self.folder}: the processes find states of different steps ({sorted(steps)}); put runs/ "
                "on a file system that all machines share"
            )
        if self.is_first:
            resume.set_aside(wrong)
            remarks.append(journal.cut_metrics(self.folder, self.progress.epoch))
            write_json(self.folder / "recipe.json", self.run)
            write_json(self.folder / "data.json", self.progress.data)
        for remark in filter(None, remarks):
            self.accelerator.print(f"{self.run.name}: {remark}")

    def run_epochs(self) -> None:
        """Train, evaluate, log and save, epoch by epoch."""
        stage, every = self.run.stage, self.run.profile.eval_every
        for epoch in range(self.progress.epoch, stage.epochs):
            self._train_epoch(epoch)
            progress, number = self.progress, len(self.progress.losses)
            lr = learning_rate(stage, progress.step - 1, stage.epochs * self.steps)
            speed = number * self.run.profile.batch_size / progress.seconds
            record = {"epoch": epoch + 1, "step": progress.step, "loss": sum(progress.losses) / number}
            record |= {"lr": lr, "seconds": progress.seconds, "samples_per_s": speed}
            record |= {name: getattr(progress, name) for name in ("bad_images", "processes", "accumulate")}
            if (epoch + 1) % every == 0 or epoch + 1 == stage.epochs:
                self._save()
                with self.notice.at_once():  # scoring val may take longer than a scheduler waits
                    record |= self._evaluate(epoch)
            if self.is_first:
                journal.append_metrics(self.folder, record)
                self.accelerator.log({n: v for n, v in record.items() if isinstance(v, float)}, progress.step)
                print(journal.describe(record, stage.epochs), flush=True)
            done = {"epoch": epoch + 1, "losses": [], "seconds": 0.0, "bad_images": 0}
            self.progress = replace(progress, typical_loss=record["loss"], **done)
            self._save()

    def _train_epoch(self, epoch: int) -> None:
        profile, stage, progress = self.run.profile, self.run.stage, self.progress
        done, size = progress.step - epoch * self.steps, profile.batch_size
        batches = replace(self.batches, epoch=epoch, first_step=done)
        name = f"{stage.name} epoch {epoch + 1}/{stage.epochs}"
        bar = journal.progress_bar(name, self.steps * size, done * size, silent=not self.is_first)
        self.network.train()
        started = time.perf_counter() - progress.seconds
        on_gpu = self.accelerator.device.type == "cuda"
        with bar, load_batches(self.crops, batches, profile.workers, pin_memory=on_gpu) as loader:
            for batch in loader:
                for person in batch.bad[batch.bad >= 0].tolist():
                    path = self.crops.table.image_path(person)
                    print(
                        f"warning: person {person} replaced, its picture cannot be read: {path}", flush=True
                    )
                lr = learning_rate(stage, progress.step, stage.epochs * self.steps)
                loss, stop, bad = self._optimise(self._to_device(batch), lr)
                progress.step += 1
                progress.losses.append(loss)
                progress.bad_images += bad
                progress.seconds = time.perf_counter() - started
                bar.set_postfix_str(f"loss {loss:.2e}, lr {lr:.1e}", refresh=False)
                bar.update(size)
                if stop or time.monotonic() - self.saved_at >= self.options.save_every_s:
                    self._save()
                if stop:
                    raise Preempted(
                        f"{self.run.name}: SIGTERM at step {progress.step}; the state is saved, the same "
                        "command goes on from it"
                    )

    def _optimise(self, batch: Sample, lr: float) -> tuple[float, bool, int]:
        """One step of Adam on this process's share of a batch.

        Gives, of all processes: loss of the whole batch, whether one must stop, persons replaced.
        """
        accumulate, total = self.options.accumulate, torch.zeros((), device=self.accelerator.device)
        for i, part in enumerate(zip(*(tensor.chunk(accumulate) for tensor in batch), strict=True), 1):
            # Gradients of the parts add up, and go to the other processes once.
            last = i == accumulate
            together = contextlib.nullcontext() if last else self.accelerator.no_sync(self.network)
            try:
                with together:
                    # Losses are means over crops, and parts are equal: their mean is the whole batch's.
                    loss = self.network(Sample(*part)) / accumulate
                    self.accelerator.backward(loss)
                    total += loss.detach()
            except (RuntimeError, MemoryError) as error:
                if not machine.is_out_of_memory(error):
                    raise
                raise HrnetppError(
                    f"memory ran out with {len(part[0])} crops at once; cut each batch into more parts "
                    f"(train --accumulate {2 * accumulate} or more), use more processes, or a "
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

    def _to_device(self, batch: Sample) -> Sample:
        return Sample(*(tensor.to(self.accelerator.device, non_blocking=True) for tensor in batch))

    def _evaluate(self, epoch: int) -> dict:
        """On the main process, the metric's name, its value (0..1) on val and its boxes; on others nothing.

        Every process predicts its share of the boxes. Keeps eight people's heatmaps and the best network.
        """
        for buffer in self.model.buffers():
            broadcast(buffer)  # batch statistics differ between processes
        model, card, data = self.model, self.card, self.data
        rows = np.arange(self.accelerator.process_index, len(data.val), self.accelerator.num_processes)
        workers = usable_workers(self.run.profile.workers)
        mine = predict_boxes(model, card, data.val.select(rows), workers=workers)
        # A list in, the concatenated lists of all processes out; nobody's rows are padded.
        shares = gather_object([(rows, mine.keypoints, mine.scores)])
        if not self.is_first:
            return {}
        rows, keypoints, scores = map(np.concatenate, zip(*shares, strict=True))
        order = np.argsort(rows)
        value = score(Predictions(keypoints[order], scores[order], card.input_hw), data)["AP"]
        journal.save_snapshot(self.folder, epoch + 1, model, card, data.val)
        if self.progress.best is None or value > self.progress.best:
            self.progress.best = value
            save_checkpoint(model, card, self.folder / "best.safetensors")
        scored = {"metric": data.metric.value, "value": value, "boxes": data.boxes}
        return scored | {"val_loss": self._loss_on_val()}

    @torch.no_grad()
    def _loss_on_val(self) -> float:
        """The run's loss on val's labelled persons, on their true boxes and without augmentation."""
        run, table = self.run, labelled_truth(self.data)
        what = run.profile.input_hw, run.profile.heatmap_sigma, NO_AUGMENTATION, self.card.coordinates
        # A generator of its own: the global one has its part in the training.
        batches = DataLoader(TrainCrops(table, *what), run.profile.batch_size, generator=torch.Generator())
        self.model.eval()
        total = 0.0
        for batch in map(self._to_device, batches):
            heatmaps = self.model(normalise(batch.image))
            total += float(batch_loss(run, heatmaps, batch)) * len(heatmaps)
        return total / max(len(table), 1)

    def _save(self) -> None:
        """Save a state; all processes hold the same, so one writes."""
        self.saved_at = time.monotonic()
        # The loss tells a step later that weights are spoilt; no such state may push a good one out.
        if not all(parameter.isfinite().all() for parameter in self.model.parameters()):
            raise HrnetppError(
                f"{self.run.name}: weights are not finite after step {self.progress.step}. The last saved "
                "state is good; lower the profile's lr_scales"
            )
        if self.is_first:
            resume.save_state(self.folder / "states", self.model, self.optimizer, self.progress)


def learning_rate(stage: TrainStage, step: int, steps: int) -> float:
    """Cosine from lr_start at step 0 to lr_end at the end (report, training)."""
    return stage.lr_end + (stage.lr_start - stage.lr_end) / 2 * (1 + math.cos(math.pi * step / steps))


class TrainStep(torch.nn.Module):
    """Raw crops in, loss out: what is wrapped for several processes, for bf16, and for the compiler."""

    def __init__(self, model: HRNet, run: Run):
        super().__init__()
        self.model, self.run = model, run

    def forward(self, batch: Sample) -> torch.Tensor:
        # Under bf16 the network leaves autocast before its last convolution: heatmaps and losses are fp32.
        return batch_loss(self.run, self.model(normalise(batch.image)), batch)


def batch_loss(run: Run, heatmaps: torch.Tensor, batch: Sample) -> torch.Tensor:
    """The run's loss of (B, K, H, W) network output and a collated batch on the same device."""
    if run.stage.loss == "heatmap_mse":
        weight = batch.target_weight
        target = draw_gaussians(batch.peaks, weight, heatmaps.shape[-2:], run.profile.heatmap_sigma)
        return heatmap_mse(heatmaps.float(), target, weight)
    keypoints = soft_argmax(heatmaps, run.stage.alpha)
    return keypoint_l1(keypoints, batch.keypoints_heatmap, batch.keypoint_weight)
