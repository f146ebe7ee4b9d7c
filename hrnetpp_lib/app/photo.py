"""One photograph in, poses, COCO json and a picture out."""

from pathlib import Path

import numpy as np
import torch

from hrnetpp_lib.data.images import read_image
from hrnetpp_lib.draw import render_images, save
from hrnetpp_lib.errors import HrnetppError
from hrnetpp_lib.evaluate.infer import predict as predict_poses
from hrnetpp_lib.files import project_root, write_json
from hrnetpp_lib.model.weights import load_checkpoint
from hrnetpp_lib.pose.keypoints import Skeleton

_DRAWN_ABOVE = 0.2  # the score above which a keypoint is drawn, and counts in evaluation


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


def whole_image(image: np.ndarray) -> np.ndarray:
    """(1, 4) xywh: the box of a picture that shows one person and little else."""
    return np.array([[0.0, 0.0, image.shape[1], image.shape[0]]])


def newest_checkpoint(folders: tuple[Path, ...]) -> Path:
    """The regression network that was finished last.

    Args:
        folders: Where runs/ may lie.

    Raises:
        HrnetppError: If there is none; names the smallest command that trains one.
    """
    found = [p for folder in folders for p in folder.glob("runs/*/stage3_*/model.safetensors")]
    if not found:
        raise HrnetppError(
            "no finished regression network below runs/; give a checkpoint, or train one with python -m "
            "hrnetpp_lib train --profile mini (minutes on two cores; smoke: seconds, but poor)"
        )
    return max(found, key=lambda path: path.stat().st_mtime_ns)


def predict(
    image: str | Path | np.ndarray,
    checkpoint: str | Path | None = None,
    boxes_xywh: np.ndarray | None = None,
    detector: str | None = None,
    flip: bool = True,
    output_dir: str | Path | None = ".",
) -> np.ndarray:
    """Poses of one image by one of this package's checkpoints, drawn and written down.

    Says which checkpoint and boxes it used. For a file, `<its name>_poses.json` (COCO results) and
    `<its name>_poses.png` are written.

    Args:
        image: A path, or (height, width, 3) uint8 RGB.
        checkpoint: A model.safetensors that `train` wrote; by default the regression network finished last.
        boxes_xywh: (N, 4) persons in image px; by default one box, the whole image.
        detector: Name of a detector of the transformers library that finds the persons instead.
        flip: Whether to average with the mirrored crop.
        output_dir: Where to write; None for nowhere.

    Returns:
        (N, K, 3) as (x, y, score) in image px.

    Raises:
        HrnetppError: If a file is missing or damaged, a box has no area, or there is no checkpoint.
    """
    if boxes_xywh is not None and detector:
        raise HrnetppError("give boxes or a detector, not both")
    pixels = image if isinstance(image, np.ndarray) else read_image(Path(image), upright=True)
    checkpoint = Path(checkpoint) if checkpoint else newest_checkpoint((project_root(),))
    model, card = load_checkpoint(checkpoint)
    boxes, origin = (
        (whole_image(pixels), "the whole image") if boxes_xywh is None else (boxes_xywh, "as given")
    )
    if detector:
        boxes, origin = TransformersDetector(detector).detect(pixels)[0], f"by {detector}"
    poses = predict_poses(model, pixels, boxes, flip=flip, card=card)
    written = ""
    if output_dir is not None and not isinstance(image, np.ndarray):
        paths = write_prediction(Path(image), poses, boxes, card.skeleton, Path(output_dir))
        written = f": {paths[0]}, {paths[1]}"
    drawn = f"{(poses[:, :, 2] > _DRAWN_ABOVE).sum()} of {poses[:, :, 2].size} keypoints above {_DRAWN_ABOVE}"
    print(
        f"{len(poses)} poses, {drawn}, by {checkpoint} ({card.run}, {card.decoder}), boxes {origin}{written}"
    )
    return poses


def write_prediction(
    image_path: Path, poses: np.ndarray, boxes_xywh: np.ndarray, skeleton: Skeleton, output: Path
) -> tuple[Path, Path]:
    """Write `<output>/<image>_poses.json` (COCO results) and `.png` (poses drawn).

    Args:
        image_path: The photograph; its stem is the image id in the json, as a number if it is one.
        poses: (N, K, 3) image px and scores.
        boxes_xywh: (N, 4) image px.
        skeleton: Of the poses.
        output: Folder for both files.

    Returns:
        The two paths.
    """
    results = [
        {
            "image_id": int(image_path.stem) if image_path.stem.isdecimal() else image_path.stem,
            "category_id": 1,
            "keypoints": np.round(pose, 3).ravel().tolist(),
            "bbox": np.round(box, 2).tolist(),
            "score": float(pose[:, 2].mean()),
        }
        for pose, box in zip(poses, boxes_xywh, strict=True)
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
