"""Where a notebook finds and leaves things: data, runs, figures and results of one profile."""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from matplotlib.figure import Figure

from hrnetpp_lib import draw as plots
from hrnetpp_lib.data.layout import DataPaths, StageData, load_stage_data, prepare_data
from hrnetpp_lib.errors import HrnetppError
from hrnetpp_lib.evaluate import table as report
from hrnetpp_lib.evaluate.infer import SINGLE_VIEW, TTA_VIEWS, Predictions, pick_device, predict_boxes
from hrnetpp_lib.files import read_json, sha256, write_json
from hrnetpp_lib.model.hrnet import HRNet
from hrnetpp_lib.model.weights import ModelCard, load_checkpoint
from hrnetpp_lib.recipe import Profile, Run, get_profile
from hrnetpp_lib.train.journal import headless, read_metrics
from hrnetpp_lib.train.loop import checkpoint_path, train_stage
from hrnetpp_lib.train.machine import train_in_processes

_DATA_IN_WORDS = {
    "synthetic": "synthetic people",
    "lspet": "photographs of Leeds Sports Pose Extended",
    "public": "AI Challenger and COCO 2017",
}


@dataclass(frozen=True)
class Workspace:
    """The folders of one profile below `root`."""

    profile: Profile
    root: Path
    data: DataPaths

    @property
    def runs(self) -> Path:
        return self.root / "runs" / self.profile.name

    @property
    def figures(self) -> Path:
        return self.root / "figures" / self.profile.name

    def stage_data(self, dataset: str) -> StageData:
        """Training and validation persons of 'ai_challenger' or 'coco'."""
        return load_stage_data(dataset, self.profile, self.data)

    def train(self, run: Run, data: StageData, processes: int = 1) -> Path:
        """Train a run, go on with it, or find it trained; see `train.train_stage`.

        With several processes (GPUs) it runs outside this one, and its log is shown as it grows.
        """
        if processes == 1:
            return train_stage(run, data, self.runs, self.data.root)
        train_in_processes(run, self.root, processes)
        return checkpoint_path(self.runs, run.name)

    def load(self, run: Run) -> tuple[HRNet, ModelCard]:
        """Network and card of a finished run, on the device in use."""
        model, card = load_checkpoint(self._checkpoint(run))
        return model.to(pick_device()), card

    def _checkpoint(self, run: Run) -> Path:
        """Where a finished run keeps its network; an error where the run is not finished."""
        path = checkpoint_path(self.runs, run.name)
        if not path.is_file():
            raise HrnetppError(
                f"{path}: not there; run the notebooks that train it, 3 to 6, with the same profile and "
                f"seed ({self.profile.name}, {run.seed})"
            )
        return path

    def networks(self, runs: dict[str, Run]) -> dict[str, Path]:
        """Checkpoints of those runs that are finished, by the names given to them.

        Raises:
            HrnetppError: If none is; names the smallest command that trains them.
        """
        found = {name: checkpoint_path(self.runs, run.name) for name, run in runs.items()}
        found = {name: path for name, path in found.items() if path.is_file()}
        if not found:
            raise HrnetppError(
                f"{self.runs}: no finished run to explore. Train the networks: python -m hrnetpp_lib train "
                f"--profile {self.profile.name}"
                + (
                    ""
                    if self.profile.name == "smoke"
                    else " (smoke takes seconds; then profile = 'smoke' above)"
                )
            )
        return found

    def predictions(self, run: Run, data: StageData, tta: bool = False) -> Predictions:
        """Poses of val's boxes by a finished run, with the flip test.

        Kept in the run's folder, under a name that changes with the network and with the boxes.
        """
        origin = [self.checkpoint_hash(run), data.val.fingerprint()]
        digest = hashlib.sha256(json.dumps(origin).encode()).hexdigest()[:10]
        path = self.runs / run.name / f"predictions_{'tta' if tta else 'single'}_{digest}.npz"
        if not path.is_file():
            model, card = self.load(run)
            predict_boxes(model, card, data.val, views=TTA_VIEWS if tta else SINGLE_VIEW).save(path)
        return Predictions.load(path)

    def checkpoint_hash(self, run: Run) -> dict[str, str]:
        """The run's name and the SHA-256 of its checkpoint, for provenance."""
        return {run.name: sha256(self._checkpoint(run))}

    def describe_data(self, data: StageData) -> str:
        """What a result was trained and measured on, in words."""
        return f"{len(data.train)} training persons, {_DATA_IN_WORDS[self.profile.data]}, {data.boxes}"

    def describe_run(self, run: Run) -> dict[str, object]:
        """Name, command, cost and whole recipe of a finished run, for provenance."""
        epochs = read_metrics(self.runs, run)
        return {
            "name": run.name,
            "command": f"python -m hrnetpp_lib train --profile {self.profile.name} "
            f"--architecture {run.architecture.name} --seed {run.seed}",
            "crops": epochs[-1]["step"] * self.profile.batch_size,
            "train_seconds": sum(epoch["seconds"] for epoch in epochs),
            "recipe": asdict(run),
        }

    def write_training_log(self, runs: Iterable[Run]) -> Path:
        """The metrics of every epoch of those runs in figures/<profile>/training_log.jsonl, a line each."""
        path = self.figures / "training_log.jsonl"
        lines = [json.dumps({"run": run.name} | e) for run in runs for e in read_metrics(self.runs, run)]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(lines) + "\n")
        return path

    def show(self, figure: Figure, name: str) -> Figure:
        """Save a figure as figures/<profile>/<name>.png and return it for display.

        Photographs are not ours to publish: headless runs, whose figures and notebooks are kept for others,
        blur them beyond recognition; an interactive session shows them as they are and saves nothing.
        """
        if self.profile.data != "synthetic":
            if not headless():
                return figure
            plots.blur_pictures(figure)
        return plots.save(figure, self.figures / f"{name}.png")

    def save_results(self, notebook: str, content: dict) -> None:
        """Write a notebook's results with their provenance to runs/<profile>/results/<notebook>.json."""
        provenance = report.provenance() | {"profile": self.profile.name}
        write_json(self.runs / "results" / f"{notebook}.json", content | {"provenance": provenance})

    def results(self, notebook: str) -> dict:
        """What `save_results` wrote."""
        return read_json(self.runs / "results" / f"{notebook}.json", dict)


def open_workspace(profile_name: str, root: str | Path) -> Workspace:
    """The workspace of a profile; makes the profile's data if it can be made.

    Raises:
        HrnetppError: If the profile is unknown or its data are missing.
    """
    profile, root = get_profile(profile_name), Path(root)
    return Workspace(profile, root, prepare_data(profile, root / "data"))
