"""One photograph in, poses, COCO json and a picture out."""

from pathlib import Path

import numpy as np

from hrnetpp_lib.checkpoint import load_checkpoint
from hrnetpp_lib.detector import TransformersDetector
from hrnetpp_lib.errors import HrnetppError
from hrnetpp_lib.images import read_image
from hrnetpp_lib.infer import predict as predict_poses
from hrnetpp_lib.keypoints import Skeleton
from hrnetpp_lib.plots import render_images, save
from hrnetpp_lib.report import write_json

_DRAWN_ABOVE = 0.2  # the score above which a keypoint is drawn, and counts in evaluation
_PROJECT_ROOT = Path(__file__).resolve().parent.parent


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
    checkpoint = Path(checkpoint) if checkpoint else newest_checkpoint((Path(), _PROJECT_ROOT))
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
