"""One photograph in, poses, COCO json and a picture out."""

from pathlib import Path

import numpy as np

from hrnetpp_lib.checkpoint import load_checkpoint
from hrnetpp_lib.errors import HrnetppError
from hrnetpp_lib.images import read_image
from hrnetpp_lib.infer import predict as predict_poses
from hrnetpp_lib.keypoints import Skeleton
from hrnetpp_lib.plots import render_images, save
from hrnetpp_lib.report import write_json


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


def predict(
    image: str | Path | np.ndarray,
    checkpoint: str | Path,
    boxes_xywh: np.ndarray | None = None,
    flip: bool = True,
) -> np.ndarray:
    """Poses of one image by one of this package's checkpoints.

    Args:
        image: A path, or (height, width, 3) uint8 RGB.
        checkpoint: A model.safetensors that `train` wrote.
        boxes_xywh: (N, 4) persons in image px; by default one box, the whole image.
        flip: Whether to average with the mirrored crop.

    Returns:
        (N, K, 3) as (x, y, score) in image px.

    Raises:
        HrnetppError: If a file is missing or damaged, or a box has no area.
    """
    model, card = load_checkpoint(Path(checkpoint))
    pixels = image if isinstance(image, np.ndarray) else read_image(Path(image))
    boxes = whole_image(pixels) if boxes_xywh is None else boxes_xywh
    return predict_poses(model, pixels, boxes, flip=flip, card=card)


def write_prediction(
    image_path: Path, poses: np.ndarray, boxes_xywh: np.ndarray, skeleton: Skeleton, output: Path
) -> tuple[Path, Path]:
    """Write `<output>/<image>_poses.json` (COCO results) and `.png` (poses drawn).

    Args:
        image_path: The photograph; its stem is the image id in the json.
        poses: (N, K, 3) image px and scores.
        boxes_xywh: (N, 4) image px.
        skeleton: Of the poses.
        output: Folder for both files.

    Returns:
        The two paths.
    """
    results = [
        {
            "image_id": image_path.stem,
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
        [read_image(image_path)], [list(poses)], skeleton, boxes=[boxes_xywh], columns=1, threshold=0.2
    )
    save(figure, png_path)
    return json_path, png_path
