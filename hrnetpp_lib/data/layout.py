"""Which files a profile reads: one folder layout, written by us for the small profiles, downloaded for COCO::

<data>/coco/annotations/person_keypoints_{train,val}2017.json
<data>/coco/{train2017,val2017}/*.jpg, or all of them in <data>/coco/images/
<data>/coco/person_detection_results/<boxes>.json
<data>/weights/{hrnet_w48-8ef0771d,pose_hrnet_w48_384x288}.pth; Table 1 has a row of the second, if there
<data>/ai_challenger/ai_challenger_keypoint_{train_20170902,validation_20170911}/...
"""

from dataclasses import dataclass
from enum import Enum
from pathlib import Path

import numpy as np

from hrnetpp_lib.data import annotations
from hrnetpp_lib.data.annotations import labelled_persons, read_ai_challenger, read_coco, read_coco_truth
from hrnetpp_lib.data.lspe import write_lspe
from hrnetpp_lib.data.persons import PersonTable, concat, split_by_image
from hrnetpp_lib.data.synthetic import write_dataset
from hrnetpp_lib.errors import HrnetppError
from hrnetpp_lib.files import whole_folder
from hrnetpp_lib.recipe import Profile

GROUND_TRUTH_BOXES = "ground-truth boxes"


class Metric(Enum):
    """How a dataset measures poses; the values are for people."""

    COCO_AP = "COCO AP"
    AI_CHALLENGER_AP = "AI Challenger AP"


@dataclass(frozen=True)
class StageData:
    """What one training stage reads."""

    train: PersonTable  # labelled persons
    val: PersonTable  # boxes to predict on, with the labels where the boxes are the true ones
    truth: PersonTable  # the true persons of val's images, which the metric counts; COCO's is a `CocoTruth`
    metric: Metric  # the dataset's own
    boxes: str  # where val's boxes come from, for every number measured on them

    @property
    def trained_keypoints(self) -> np.ndarray:
        """(K,) bool: keypoints that some training person has labelled; the others' channels never train."""
        return (self.train.keypoints[:, :, 2] > 0).any(axis=0)


@dataclass(frozen=True)
class DataPaths:
    """The files below a data folder."""

    root: Path

    @property
    def coco(self) -> Path:
        return self.root / "coco"

    def coco_json(self, split: str) -> Path:
        return self.coco / "annotations" / f"person_keypoints_{split}2017.json"

    def coco_images(self, split: str) -> Path:
        """The split's folder, or images/ where one flat folder holds the images of all splits."""
        official, flat = self.coco / f"{split}2017", self.coco / "images"
        return flat if flat.is_dir() and not official.exists() else official

    def boxes_json(self, profile: Profile) -> Path | None:
        return self.coco / "person_detection_results" / profile.boxes if profile.boxes else None

    @property
    def published(self) -> Path:
        """The network that others published, of which Table 1 has a row where the file is there."""
        return self.root / "weights" / "pose_hrnet_w48_384x288.pth"

    def ai_challenger(self, split: str) -> tuple[Path, Path]:
        """Annotations and image folder."""
        folder_day, json_day = ("20170902", "20170909") if split == "train" else ("20170911", "20170911")
        folder = self.root / "ai_challenger" / f"ai_challenger_keypoint_{split}_{folder_day}"
        json_name = f"keypoint_{split}_annotations_{json_day}.json"
        return folder / json_name, folder / f"keypoint_{split}_images_{folder_day}"

    def sets(self) -> dict[str, tuple[Path, Path]]:
        """Annotations and image folder of each of the four sets."""
        challenger = {f"ai_challenger_{s}": self.ai_challenger(s) for s in ("train", "validation")}
        coco = {f"coco_{s}": (self.coco_json(s), self.coco_images(s)) for s in ("train", "val")}
        return challenger | coco


def data_paths(profile: Profile, root: Path) -> DataPaths:
    """Where below the data folder a profile's files lie; profiles share real ones, and each makes its own."""
    return DataPaths(root / {"synthetic": profile.name, "lspet": "lspet", "public": "coco"}[profile.data])


def prepare_data(profile: Profile, root: Path, val_only: bool = False) -> DataPaths:
    """Make the profile's files below the data folder where we can, and check that all are there.

    With `val_only` those alone that `load_coco` reads then: nobody needs training data to evaluate a network.

    Raises: HrnetppError if files must be downloaded, which, and where to.
    """
    paths = data_paths(profile, root)
    if profile.data == "synthetic":
        places, counts = (lambda folder: DataPaths(folder).sets()), profile.synthetic_persons
        write_dataset(paths.root, places, *counts, seed=0, processes=2)
    if missing := missing_files(profile, paths, val_only):
        places = "; ".join(map(str, missing))
        remedy = (
            f"To get them: {how_to_get(profile, val_only)}. Or try --profile mini, which makes its own data"
        )
        raise HrnetppError(f"profile {profile.name!r}: not found: {places}. {remedy}")
    return paths


def how_to_get(profile: Profile, val_only: bool = False) -> str:
    """What somebody does who lacks the data of a profile that cannot make its own, or those of val."""
    if profile.data == "lspet":
        what = "download joints.mat and the images of Leeds Sports Pose Extended, and give"
        return f"{what} python -m hrnetpp_lib convert-lspe joints.mat images/"
    if val_only:
        return "download COCO 2017's val and its person detections to these places (README, 'The ladder')"
    return (
        "download AI Challenger, COCO 2017 and its person detections to these places, and the weights by "
        "hrnetpp_lib.model.weights.download (README, 'The ladder')"
    )


def convert_lspe(joints_mat: Path, images: Path, root: Path, skip_missing_images: bool = False) -> Path:
    """`write_lspe` into the data folder `root`; the folder written, whole or not at all.

    Raises: HrnetppError if something is missing or broken, or the folder is there already.
    """
    target = root / "lspet"
    with whole_folder(target) as part:
        if part is None:
            raise HrnetppError(f"{target}: is there already; delete it to convert anew")
        counts = write_lspe(joints_mat, images, DataPaths(part).sets(), skip_missing_images)
    print(f"{target}: " + ", ".join(f"{number} {what}" for what, number in counts.items()), flush=True)
    return target


def missing_files(profile: Profile, paths: DataPaths, val_only: bool = False) -> list[Path]:
    """Files and folders that the profile's stages read, or evaluation alone, and that are not there."""
    files = [
        path for name, pair in paths.sets().items() for path in pair if not val_only or name == "coco_val"
    ]
    weights = None if val_only else profile.imagenet_weights
    files += filter(None, (paths.boxes_json(profile), weights and paths.root / weights))
    return [path for path in files if not path.exists()]


def load_coco(profile: Profile, paths: DataPaths, val_only: bool = False) -> StageData:
    """COCO train persons, and val boxes of the profile's detector or, without one, of the ground truth.

    With `val_only` val's labelled persons stand for those of train, which are not read: of both sets the same
    keypoints are labelled.
    """
    sets, boxes = paths.sets(), paths.boxes_json(profile)
    truth = read_coco_truth(*sets["coco_val"])
    val, source = labelled_persons(truth), GROUND_TRUTH_BOXES
    train = val if val_only else read_coco(*sets["coco_train"])
    if boxes:
        val, source = annotations.read_coco_detections(boxes, truth, truth.image_dir), boxes.name
    return StageData(train, val, truth, Metric.COCO_AP, source)


def load_ai_challenger(profile: Profile, paths: DataPaths) -> StageData:
    """AI Challenger's two parts pooled, with whole images held out (report: 444K and 5K persons)."""
    pooled = concat([read_ai_challenger(*paths.ai_challenger(split)) for split in ("train", "validation")])
    # CHOICE: whole images are held out, by the hash of their name; the report gives the numbers alone.
    train, holdout = split_by_image(pooled, profile.holdout_persons)
    return StageData(train, holdout, holdout, Metric.AI_CHALLENGER_AP, GROUND_TRUTH_BOXES)


def load_stage_data(dataset: str, profile: Profile, paths: DataPaths) -> StageData:
    """The data of a training stage's `dataset` field. Raises: HrnetppError for another, or a broken file."""
    loaders = {"coco": load_coco, "ai_challenger": load_ai_challenger}
    if dataset not in loaders:
        raise HrnetppError(f"no dataset is called {dataset!r}; choose one of {', '.join(loaders)}")
    return loaders[dataset](profile, paths)
