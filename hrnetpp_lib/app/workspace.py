"""Where a notebook finds and leaves things: data, runs, figures and results of one profile."""

import contextlib
import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from hrnetpp_lib import draw
from hrnetpp_lib.app.study import read_results
from hrnetpp_lib.app.verdicts import as_planned, planned_seeds, trainings
from hrnetpp_lib.data.crops import BoxCrops
from hrnetpp_lib.data.layout import DataPaths, StageData, load_stage_data, prepare_data
from hrnetpp_lib.data.overlap import truth_in_crops
from hrnetpp_lib.errors import HrnetppError
from hrnetpp_lib.evaluate import table
from hrnetpp_lib.evaluate.infer import SINGLE_VIEW, TTA_VIEWS, Predictions, pick_device, predict_boxes
from hrnetpp_lib.evaluate.score import score
from hrnetpp_lib.files import read_json, sha256, whole_file, write_json
from hrnetpp_lib.model.hrnet import HRNet
from hrnetpp_lib.model.weights import ModelCard, load_checkpoint
from hrnetpp_lib.pose.geometry import EXACT_SHIFT, transform_points
from hrnetpp_lib.recipe import HRNET, HRNETPP, Profile, Run, get_profile, table_runs, three_stages
from hrnetpp_lib.train.journal import Epoch, kept_people, read_metrics, read_snapshots
from hrnetpp_lib.train.loop import checkpoint_path
from hrnetpp_lib.train.machine import train_in_processes
from hrnetpp_lib.train.together import train_together

_DATA_IN_WORDS = {
    "synthetic": "synthetic people",
    "lspet": "photographs of Leeds Sports Pose Extended",
    "public": "AI Challenger and COCO 2017",
}


# What a profile's Table 1 can say about the report.
_SCOPE = {
    "smoke": "It proves that the code runs. Its numbers mean nothing.",
    "mini": (
        "It trains a narrow, shallow network on drawn people at 128x96: there skip paths, pooling and "
        "head weigh more than in W48, and nothing starts from ImageNet."
    ),
    "lspet_cpu": (
        "It is what two cores learn from photographs: a small network at 128x96, random weights, 4,000 "
        "training persons, true boxes, no face keypoints, noisy labels."
    ),
    "lspet": (
        "It trains the full W32 at 256x192 on photographs of sports: the report's network in kind, with "
        "4,000 training persons, random weights and true boxes."
    ),
    "coco": "It is the report's own setting: its numbers speak about the report.",
}


_SETS_IN_WORDS = {
    "synthetic": {
        "coco": "synthetic people in COCO's format",
        "ai_challenger": "synthetic people in AI Challenger's format",
    },
    "lspet": {
        "coco": "Leeds Sports Pose in COCO's format",
        "ai_challenger": "Leeds Sports Pose in AI Challenger's format",
    },
    "public": {"coco": "COCO 2017", "ai_challenger": "AI Challenger"},
}


@dataclass(frozen=True)
class Workspace:
    """The folders of one profile below `root`, and whether photographs are shown; see `show`."""

    profile: Profile
    root: Path
    data: DataPaths
    show_photographs: bool = False

    @property
    def runs(self) -> Path:
        return self.root / "runs" / self.profile.name

    @property
    def figures(self) -> Path:
        return self.root / "figures" / self.profile.name

    def stage_data(self, dataset: str) -> StageData:
        """Training and validation persons of 'ai_challenger' or 'coco'."""
        return load_stage_data(dataset, self.profile, self.data)

    def describe_set(self, dataset: str) -> str:
        """Who is really in 'ai_challenger' or 'coco' of this profile, for titles."""
        return _SETS_IN_WORDS[self.profile.data][dataset]

    def pair(self, stage: int, seed: int = 0) -> dict[str, Run]:
        """That stage (1 to 3) of plain HRNet and of HRNet++, by their names."""
        names = {"HRNet": HRNET, "HRNet++": HRNETPP}
        return {name: three_stages(self.profile, one, seed)[stage - 1] for name, one in names.items()}

    def epochs(self, runs: dict[str, Run]) -> dict[str, list[Epoch]]:
        """What the epochs of runs came to, by the names given to them. Raises as `journal.read_metrics`."""
        return {name: read_metrics(self.runs, run) for name, run in runs.items()}

    def snapshots(self, run: Run, data: StageData) -> tuple[list[dict], np.ndarray]:
        """A run's heatmaps of eight people as they sharpen, and (8, K, 3) their true keypoints in the crops.

        The second are in px, the third number 0 where there is no label. Raises as `journal.read_snapshots`.
        """
        truth = truth_in_crops(data, kept_people(data.val), run.profile.input_hw)
        return read_snapshots(self.runs, run), truth

    def in_crops(
        self, rows: np.ndarray, found: dict[str, Predictions], data: StageData
    ) -> tuple[list[np.ndarray], np.ndarray, dict[str, list[np.ndarray]]]:
        """Some of val's boxes as their crops, and in px of these the truth and several networks' poses.

        Returns:
            crops (h, w, 3) uint8 RGB, true keypoints (n, K, 3), and name -> n poses (K, 3) as (x, y, score).
        """
        size = self.profile.input_hw
        boxes = BoxCrops(data.val, size)
        crops, matrices = zip(*(boxes[row] for row in rows), strict=True)
        poses = {
            name: [
                np.column_stack([transform_points(one.keypoints[row], matrix[0]), one.scores[row]])
                for row, matrix in zip(rows, matrices, strict=True)
            ]
            for name, one in found.items()
        }
        return [crop[0] for crop in crops], truth_in_crops(data, rows, size), poses

    def metrics(self, run: Run, data: StageData) -> dict[str, float]:
        """The dataset's metrics, 0..1, of a finished run on val's boxes, with the flip test."""
        return score(self.predictions(run, data), data)

    def train(self, runs: Iterable[Run], processes: int = 1) -> list[Path]:
        """Train runs side by side, go on with them, or find them trained; returns their checkpoints.

        With several processes (GPUs) that share each batch they train one after the other. Raises as
        `together.train_together` or `machine.train_in_processes`.
        """
        runs = tuple(runs)
        if processes == 1:
            return train_together(runs, self.root)
        for run in runs:
            train_in_processes(run, self.root, processes)
        return [checkpoint_path(self.runs, run.name) for run in runs]

    def load(self, run: Run) -> tuple[HRNet, ModelCard]:
        """Network and card of a finished run, on the device in use."""
        model, card = load_checkpoint(self._checkpoint(run))
        return model.to(pick_device()), card

    def _checkpoint(self, run: Run) -> Path:
        """Where a finished run keeps its network; an error where the run is not finished."""
        path = checkpoint_path(self.runs, run.name)
        if not path.is_file():
            same = f"with the same profile and seed ({self.profile.name}, {run.seed})"
            raise HrnetppError(f"{path}: not there; run the notebooks that train it, 3 to 6, {same}")
        return path

    def networks(self, runs: dict[str, Run]) -> dict[str, Path]:
        """Checkpoints of those runs that are finished, by the names given to them; an error if none is."""
        found = {name: checkpoint_path(self.runs, run.name) for name, run in runs.items()}
        found = {name: path for name, path in found.items() if path.is_file()}
        if not found:
            raise HrnetppError(
                f"{self.runs}: no finished run to explore. Train the networks: python -m hrnetpp_lib train "
                f"--profile {self.profile.name} (smoke takes seconds; then profile = 'smoke' above)"
            )
        return found

    def predictions(
        self, run: Run, data: StageData, tta: bool = False, exact_shift: bool = False
    ) -> Predictions:
        """Poses of val's boxes by a finished run, with the flip test; kept in the run's folder.

        The flip test shifts the mirrored heatmaps as the network's recipe says, or exactly.
        """
        return self._predictions(run.name, self._checkpoint(run), data, tta, exact_shift)

    def _predictions(
        self, name: str, checkpoint: Path, data: StageData, tta: bool, exact_shift: bool
    ) -> Predictions:
        """The same of a checkpoint, kept in the folder of a name."""
        views, flip = TTA_VIEWS if tta else SINGLE_VIEW, "exact flip" if exact_shift else "flip"
        origin = [{name: sha256(checkpoint)}, data.val.fingerprint(), [asdict(view) for view in views], flip]
        digest = hashlib.sha256(json.dumps(origin).encode()).hexdigest()[:10]
        path = self.runs / name / f"predictions_{'tta' if tta else 'single'}_{digest}.npz"
        with contextlib.suppress(HrnetppError):  # a damaged file is made anew
            kept = Predictions.load(path)
            if kept.keypoints.shape == (len(data.val), len(data.val.skeleton), 2):
                return kept
        model, card = load_checkpoint(checkpoint)
        card = replace(card, coordinates=EXACT_SHIFT) if exact_shift else card
        found = predict_boxes(model.to(pick_device()), card, data.val, views=views)
        found.save(path)
        return found

    def table_1(self, seed: int = 0) -> tuple[list[table.TableRow], list[table.Claim]]:
        """The report's Table 1 by notebooks 3 to 5's networks, measured and written: its rows and its claims.

        Profile coco's has a row of the published network too, if its file is at `DataPaths.published`.
        The claims are judged by the trainings of the profile that the study's results have.
        """
        data = self.stage_data("coco")
        baselines, stages = (three_stages(self.profile, a, seed) for a in (HRNET, HRNETPP))
        runs, known = table_runs(self.profile, seed), trainings(read_results(self.root), self.profile)
        wanted = {
            (*part, shift) for parts in table.PARTS.values() for part in parts for shift in (False, True)
        }
        found = {part: self.predictions(runs[part[0]], data, *part[1:]) for part in sorted(wanted)}
        hashes = {name: self.checkpoint_hash(run) for name, run in runs.items()}
        theirs = self.data.published
        if self.profile.data == "public" and theirs.is_file():
            hashes["published"] = {theirs.stem: sha256(theirs)}
            for shift in (False, True):
                of_theirs = self._predictions(theirs.stem, theirs, data, tta=False, exact_shift=shift)
                found["published", False, shift] = of_theirs
        rows, claims = table.assemble(found, hashes, data, seed, known)
        planned = planned_seeds(self.profile)
        claims = [replace(claim, verdict=as_planned(claim.verdict, planned)) for claim in claims]
        words, trained = self.describe_data(data), [*map(self.describe_run, (*baselines[:2], *stages))]
        table.write_results(self.figures, self.profile.name, words, rows, trained)
        return rows, claims

    def checkpoint_hash(self, run: Run) -> dict[str, str]:
        """The run's name and the SHA-256 of its checkpoint, for provenance."""
        return {run.name: sha256(self._checkpoint(run))}

    def describe_data(self, data: StageData) -> str:
        """What a result was trained and measured on, in words."""
        return f"{len(data.train)} training persons, {_DATA_IN_WORDS[self.profile.data]}, {data.boxes}"

    def describe_run(self, run: Run) -> dict[str, object]:
        """Name, command, cost and whole recipe of a finished run, for provenance."""
        epochs, architecture = read_metrics(self.runs, run), run.architecture.name
        command = f"train --profile {self.profile.name} --architecture {architecture} --seed {run.seed}"
        return {
            "name": run.name,
            "command": f"python -m hrnetpp_lib {command}",
            "crops": epochs[-1]["step"] * self.profile.batch_size,
            "train_seconds": sum(epoch["seconds"] for epoch in epochs),
            "recipe": asdict(run),
        }

    def say_trained_on(self) -> str:
        """What the profile's networks know, and so what to expect of them on photographs."""
        seen = f"This profile's networks were trained on {_DATA_IN_WORDS[self.profile.data]}: "
        if self.profile.data == "synthetic":
            return (
                f"{seen}on photographs they are **poor**, and show how a network fails on what it never saw."
            )
        return f"{seen}other photographs of the kind are what they were trained for; how well, says Table 1."

    def say_scope(self) -> str:
        """What this profile's Table 1 can say about the report, in markdown."""
        return f"Profile `{self.profile.name}`. {_SCOPE[self.profile.name]}"

    def write_training_log(self, runs: Iterable[Run]) -> None:
        """The metrics of every epoch of those runs in figures/<profile>/training_log.jsonl, a line each."""
        lines = [json.dumps({"run": run.name} | e) for run in runs for e in read_metrics(self.runs, run)]
        with whole_file(self.figures / "training_log.jsonl") as part:
            part.write_text("\n".join(lines) + "\n")

    def show(self, figure: Figure, name: str) -> Figure:
        """Save a figure as figures/<profile>/<name>.png and return it for display.

        Photographs are not ours to publish: plain ground takes their place unless they are asked for, which
        saves nothing.
        """
        if self.profile.data != "synthetic":
            if self.show_photographs:
                return figure
            draw.hide_pictures(figure)
        return draw.save(figure, self.figures / f"{name}.png")

    def save_results(self, notebook: str, content: dict) -> None:
        """Write a notebook's results with their provenance to runs/<profile>/results/<notebook>.json."""
        provenance = table.provenance() | {"profile": self.profile.name}
        write_json(self.runs / "results" / f"{notebook}.json", content | {"provenance": provenance})

    def results(self, notebook: str) -> dict:
        """What `save_results` wrote."""
        return read_json(self.runs / "results" / f"{notebook}.json", dict)


def open_workspace(profile_name: str, root: str | Path, show_photographs: bool = False) -> Workspace:
    """The workspace of a profile; makes the profile's data below root/data if it can be made.

    Args:
        profile_name: One of the profiles.
        root: The folder of data/, runs/ and figures/.
        show_photographs: Whether figures show photographs, and are not saved.

    Raises: HrnetppError if the profile is unknown or its data are missing.
    """
    profile, root = get_profile(profile_name), Path(root)
    if profile.data != "synthetic" and not show_photographs:
        print("Photographs are not ours to publish: in every figure a plain ground takes their place.")
    return Workspace(profile, root, prepare_data(profile, root / "data"), show_photographs)
