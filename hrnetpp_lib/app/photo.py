"""One photograph in, poses out, and, if asked for, COCO json and the photograph with the poses drawn."""

import hashlib
import os
from pathlib import Path

import numpy as np
import torch

from hrnetpp_lib.data.images import read_image
from hrnetpp_lib.draw import render_images, save
from hrnetpp_lib.errors import HrnetppError
from hrnetpp_lib.evaluate.infer import as_boxes, pick_device
from hrnetpp_lib.evaluate.infer import predict as predict_poses
from hrnetpp_lib.evaluate.metrics import rescore
from hrnetpp_lib.files import project_root, write_json
from hrnetpp_lib.model.weights import load_checkpoint
from hrnetpp_lib.pose.keypoints import AIC14, COCO17, Skeleton
from hrnetpp_lib.recipe import read_recipe, three_stages

_DRAWN_ABOVE = 0.2  # the score above which a keypoint is drawn, and counts in evaluation
# COCO's own categories are 1 to 90; poses with other keypoints must not be taken for its persons.
_CATEGORY_IDS = {COCO17.name: 1, AIC14.name: 1014}


def parse_boxes(text: str) -> np.ndarray:
    """Boxes from 'x,y,w,h x,y,w,h ...'.

    Returns:
        (N, 4) xywh in image px.

    Raises:
        HrnetppError: If a box is not four numbers.
    """
    try:
        boxes = [[float(number) for number in box.split(",")] for box in text.split()]
    except ValueError as error:
        raise HrnetppError(
            f"boxes {text!r}: {error}; write x,y,w,h for each, with spaces between boxes"
        ) from error
    if not boxes or any(len(box) != 4 for box in boxes):
        raise HrnetppError(f"boxes {text!r}: write x,y,w,h for each, with spaces between boxes")
    return np.array(boxes)


def newest_checkpoint(root: Path) -> Path:
    """The HRNet++ regression network that was finished last, at the end of a whole chain of three stages.

    Ablations, which differ from the profile's chain in some field, are no candidates.

    Args:
        root: The folder of runs/.

    Raises:
        HrnetppError: If there is none; names the smallest command that trains one.
    """
    found = [path for path in root.glob("runs/*/stage3_*/model.safetensors") if _ends_a_chain(path.parent)]
    if not found:
        raise HrnetppError(
            f"{root / 'runs'}: no finished HRNet++ regression network; give a checkpoint, or train one with "
            "python -m hrnetpp_lib train --profile mini (minutes on two cores; smoke: seconds, but poor)"
        )
    return max(found, key=lambda path: path.stat().st_mtime_ns)


def _ends_a_chain(folder: Path) -> bool:
    """Whether the run of a folder is stage 3 of its profile's own chain."""
    try:
        run = read_recipe(folder / "recipe.json")
        return folder.name == three_stages(run.profile, seed=run.seed)[-1].name
    except HrnetppError:  # no recipe, or one of another version
        return False


def predict(
    image: str | Path | np.ndarray,
    checkpoint: str | Path | None = None,
    boxes_xywh: np.ndarray | None = None,
    detector: str | None = None,
    flip: bool = True,
    output_dir: str | Path | None = None,
) -> np.ndarray:
    """Poses of one image by one of this package's checkpoints.

    Says which checkpoint and boxes it used, and runs on the GPU if there is one.

    Args:
        image: A path, or (height, width, 3) uint8 RGB.
        checkpoint: A model.safetensors that `train` wrote; by default that of `newest_checkpoint`.
        boxes_xywh: (N, 4) persons in image px; by default one box, the whole image.
        detector: Name of a detector of the transformers library that finds the persons instead.
        flip: Whether to average with the mirrored crop.
        output_dir: Gets `<image>_poses.json`, a COCO result list, and `.png`; None for nothing. Persons are
            category 1 if they have COCO's keypoints, 1014 with AI Challenger's 14; `image_id` says which
            image; the score is `metrics.rescore`'s; box, its score and the file's name are kept beside.

    Returns:
        (N, K, 3) as (x, y, score) in image px.

    Raises:
        HrnetppError: If a file is missing or damaged, a box has no area, there is no checkpoint, or there
            is no name to write an array's poses under.
    """
    if boxes_xywh is not None and detector:
        raise HrnetppError("give boxes or a detector, not both")
    if output_dir is not None and isinstance(image, np.ndarray):
        raise HrnetppError("output_dir: an array has no name to write its poses under; give the file's path")
    pixels = image if isinstance(image, np.ndarray) else read_image(Path(image), upright=True)
    checkpoint = Path(checkpoint) if checkpoint else newest_checkpoint(project_root())
    model, card = load_checkpoint(checkpoint)
    device = pick_device()
    boxes, box_scores, origin = _persons(pixels, boxes_xywh, detector, str(device))
    poses = predict_poses(model.to(device), pixels, boxes, flip=flip, card=card)
    drawn = f"{(poses[:, :, 2] > _DRAWN_ABOVE).sum()} of {poses[:, :, 2].size} keypoints above {_DRAWN_ABOVE}"
    print(
        f"{len(poses)} poses, {drawn}, by {checkpoint} ({card.run}, {card.decoder}, {card.skeleton.name}), "
        f"boxes {origin}"
    )
    if output_dir is not None:
        paths = _write(Path(image), poses, boxes, box_scores, card.skeleton, Path(output_dir))
        print(f"written: {paths[0]} (category {_CATEGORY_IDS[card.skeleton.name]}), {paths[1]}")
    return poses


def _persons(
    pixels: np.ndarray, boxes_xywh: np.ndarray | None, detector: str | None, device: str
) -> tuple[np.ndarray, np.ndarray, str]:
    """Boxes (N, 4) and their scores (N,), and where they come from, in words."""
    if detector:
        return *TransformersDetector(detector, device=device).detect(pixels), f"by {detector}"
    whole = [[0, 0, pixels.shape[1], pixels.shape[0]]]
    boxes = as_boxes(whole if boxes_xywh is None else boxes_xywh)
    return boxes, np.ones(len(boxes)), "the whole image" if boxes_xywh is None else "as given"


def image_id(path: Path) -> int:
    """The image id of a file in COCO's sense: its stem, where that is a number, as in COCO's own files.

    Of any other name the first six bytes of its SHA-256, so that it is the same everywhere.
    """
    if path.stem.isascii() and path.stem.isdecimal() and len(path.stem) < 19:  # int64
        return int(path.stem)
    return int.from_bytes(hashlib.sha256(os.fsencode(path.name)).digest()[:6], "big")


def _write(
    image_path: Path,
    poses: np.ndarray,
    boxes_xywh: np.ndarray,
    box_scores: np.ndarray,
    skeleton: Skeleton,
    output: Path,
) -> tuple[Path, Path]:
    """Write the poses' json and picture, and return their paths."""
    scores = rescore(poses[:, :, 2], box_scores)
    results = [
        {
            "image_id": image_id(image_path),
            "category_id": _CATEGORY_IDS[skeleton.name],
            "keypoints": np.round(pose, 3).ravel(),
            "score": score,
            "bbox": np.round(box, 2),
            "bbox_score": box_score,
            "keypoint_set": skeleton.name,
            "file_name": os.fsencode(image_path.name).decode(errors="replace"),
        }
        for pose, score, box, box_score in zip(poses, scores, boxes_xywh, box_scores, strict=True)
    ]
    json_path, png_path = output / f"{image_path.stem}_poses.json", output / f"{image_path.stem}_poses.png"
    write_json(json_path, results)
    figure = render_images(
        [read_image(image_path, upright=True)],
        [list(poses)],
        skeleton,
        boxes=[boxes_xywh],
        columns=1,
        threshold=_DRAWN_ABOVE,
    )
    save(figure, png_path)
    return json_path, png_path


class TransformersDetector:
    """A COCO-trained D-FINE or RT-DETRv2 of the transformers library (extra `detect`).

    Args:
        model: Name on the Hugging Face hub, or a local folder.
        score_threshold: Boxes that score less are left out; 0 keeps all, as evaluation wants it.
        device: Where it runs.

    Raises:
        HrnetppError: If transformers is absent, the weights cannot be had, or the model knows no person.

    Reference: Peng et al., D-FINE, arXiv 2410.13842.
    """

    def __init__(
        self,
        model: str = "ustc-community/dfine-large-coco",
        score_threshold: float = 0.3,
        device: str = "cpu",
    ):
        try:
            from transformers import AutoImageProcessor, AutoModelForObjectDetection
        except ImportError as error:
            raise HrnetppError(
                f"detector {model}: cannot import transformers ({error}); pip install 'hrnetpp-lib[detect]'"
            ) from error
        try:
            self._processor = AutoImageProcessor.from_pretrained(model)
            self._network = AutoModelForObjectDetection.from_pretrained(model).to(device).eval()
        except (OSError, ValueError, ImportError) as error:
            raise HrnetppError(
                f"detector {model}: its weights cannot be loaded ({error}); check the name and the network, "
                "or pass a folder that holds them"
            ) from error
        labels = self._network.config.id2label
        person_labels = [int(label) for label, name in labels.items() if name == "person"]
        if len(person_labels) != 1:
            raise HrnetppError(
                f"detector {model}: no label is named 'person'; choose a model trained on COCO"
            )
        self._person_label, self._score_threshold, self._device = person_labels[0], score_threshold, device

    @torch.no_grad()
    def detect(self, image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Boxes of the persons, best first.

        Args:
            image: (h, w, 3) uint8 RGB.

        Returns:
            Boxes (N, 4) as xywh in image px, and scores (N,), both float64.
        """
        inputs = self._processor(images=image, return_tensors="pt").to(self._device)
        found = self._processor.post_process_object_detection(
            self._network(**inputs), threshold=self._score_threshold, target_sizes=[image.shape[:2]]
        )[0]
        scores, corners = (found[key].double().cpu().numpy() for key in ("scores", "boxes"))
        persons = np.flatnonzero(found["labels"].cpu().numpy() == self._person_label)
        persons = persons[np.argsort(-scores[persons], kind="stable")]
        start, end = np.split(corners[persons], 2, axis=1)
        return np.hstack([start, end - start]), scores[persons]
