"""One photograph in, poses out, and, if asked for, COCO json and the photograph with the poses drawn."""

import contextlib
import hashlib
import os
from pathlib import Path

import numpy as np
import torch

from hrnetpp_lib import draw
from hrnetpp_lib.data.images import read_image
from hrnetpp_lib.errors import HrnetppError
from hrnetpp_lib.evaluate import infer
from hrnetpp_lib.evaluate.metrics import rescore
from hrnetpp_lib.files import project_root, write_json
from hrnetpp_lib.model.weights import load_checkpoint
from hrnetpp_lib.pose.keypoints import AIC14, COCO17, Skeleton
from hrnetpp_lib.recipe import read_recipe, three_stages

_DRAWN_ABOVE = 0.2  # the score above which a keypoint is drawn, and counts in evaluation
# COCO's own categories are 1 to 90; poses with other keypoints must not be taken for its persons.
_CATEGORY_IDS = {COCO17.name: 1, AIC14.name: 1014}


def parse_boxes(text: str) -> np.ndarray:
    """(N, 4) xywh in image px from 'x,y,w,h x,y,w,h ...'. Raises: HrnetppError if it is another text."""
    try:
        boxes = [[float(number) for number in box.split(",")] for box in text.split()]
        if not boxes or any(len(box) != 4 for box in boxes):
            raise ValueError("a box has four numbers")
    except ValueError as error:
        remedy = "write x,y,w,h for each, with spaces between boxes"
        raise HrnetppError(f"boxes {text!r}: {error}; {remedy}") from error
    return np.array(boxes)


def newest_checkpoint(root: Path) -> Path:
    """The HRNet++ regression network in root/runs that was finished last, the end of a profile's own chain.

    Ablations are no candidates. Raises: HrnetppError if there is none; names a command that trains one.
    """
    found = []
    for path in root.glob("runs/*/stage3_*/model.safetensors"):
        with contextlib.suppress(HrnetppError):  # no recipe, or one of another version
            run = read_recipe(path.parent / "recipe.json")
            if path.parent.name == three_stages(run.profile, seed=run.seed)[-1].name:
                found.append(path)
    if not found:
        raise HrnetppError(
            f"{root / 'runs'}: no finished HRNet++ regression network; give a checkpoint, or train one with "
            "python -m hrnetpp_lib train --profile mini (minutes on two cores; smoke: seconds, but poor)"
        )
    return max(found, key=lambda path: path.stat().st_mtime_ns)


def predict(
    image: str | Path | np.ndarray,
    checkpoint: str | Path | None = None,
    boxes_xywh: np.ndarray | None = None,
    detector: str | None = None,
    flip: bool = True,
    output_dir: str | Path | None = None,
    runtime: str = "auto",
    precision: str = "fp32",
) -> np.ndarray:
    """Poses of one image by one of this package's checkpoints.

    Says what it used. Runs on the GPU if there is one; runtime and precision are `infer.prepare`'s.

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

    Raises: HrnetppError if a file cannot be used, a box has no area, or a checkpoint or a name is wanting.
    """
    if boxes_xywh is not None and detector:
        raise HrnetppError("give boxes or a detector, not both")
    if output_dir is not None and isinstance(image, np.ndarray):
        raise HrnetppError("output_dir: an array has no name to write its poses under; give the file's path")
    pixels = image if isinstance(image, np.ndarray) else read_image(Path(image), upright=True)
    checkpoint = Path(checkpoint) if checkpoint else newest_checkpoint(project_root())
    (model, card), device = load_checkpoint(checkpoint), infer.pick_device()
    if detector:
        boxes, box_scores = detect_persons(pixels, detector, str(device))
    else:
        boxes = infer.as_boxes([[0, 0, *pixels.shape[1::-1]]] if boxes_xywh is None else boxes_xywh)
        box_scores = np.ones(len(boxes))
    origin = f"by {detector}" if detector else "the whole image" if boxes_xywh is None else "as given"
    prepared = infer.prepare(model.to(device), card, runtime, precision)
    poses = infer.predict(prepared, pixels, boxes, flip=flip, card=card)
    drawn = f"{(poses[:, :, 2] > _DRAWN_ABOVE).sum()} of {poses[:, :, 2].size} keypoints above {_DRAWN_ABOVE}"
    network = f"{checkpoint} ({card.run}, {card.decoder}, {card.skeleton.name}, {prepared.described})"
    print(f"{len(poses)} poses, {drawn}, by {network}, boxes {origin}")
    if output_dir is not None:
        _write(Path(image), poses, boxes, box_scores, card.skeleton, Path(output_dir))
    return poses


def image_id(path: Path) -> int:
    """The image id of a file in COCO's sense: its stem, where that is a number, as in COCO's own files.

    Of any other name the first six bytes of its SHA-256, so that it is the same everywhere.
    """
    if path.stem.isascii() and path.stem.isdecimal() and len(path.stem) < 19:  # int64
        return int(path.stem)
    return int.from_bytes(hashlib.sha256(os.fsencode(path.name)).digest()[:6], "big")


def _write(
    path: Path, poses: np.ndarray, boxes: np.ndarray, box_scores: np.ndarray, skeleton: Skeleton, folder: Path
) -> None:
    """Write the poses' json and picture, and say where."""
    json_path, png_path = (folder / f"{path.stem}_poses.{suffix}" for suffix in ("json", "png"))
    scores, category = rescore(poses[:, :, 2], box_scores), _CATEGORY_IDS[skeleton.name]
    results = [
        {
            "image_id": image_id(path),
            "category_id": category,
            "keypoints": np.round(pose, 3).ravel(),
            "score": score,
            "bbox": np.round(box, 2),
            "bbox_score": box_score,
            "keypoint_set": skeleton.name,
            "file_name": os.fsencode(path.name).decode(errors="replace"),
        }
        for pose, score, box, box_score in zip(poses, scores, boxes, box_scores, strict=True)
    ]
    write_json(json_path, results)
    pixels = read_image(path, upright=True)
    figure = draw.render_images([pixels], [list(poses)], skeleton, [boxes], columns=1, threshold=_DRAWN_ABOVE)
    draw.save(figure, png_path)
    print(f"written: {json_path} (category {category}), {png_path}")


@torch.no_grad()
def detect_persons(image: np.ndarray, model: str, device: str = "cpu") -> tuple[np.ndarray, np.ndarray]:
    """Boxes (N, 4) xywh in image px and scores (N,) of persons in (h, w, 3) uint8 RGB, best first; float64.

    By a COCO-trained D-FINE or RT-DETRv2 of the transformers library: a name on its hub, or a local folder.
    Raises: HrnetppError if it cannot be loaded or knows no person. Reference: Peng et al., arXiv 2410.13842.
    """
    try:
        from transformers import AutoImageProcessor, AutoModelForObjectDetection

        processor = AutoImageProcessor.from_pretrained(model)
        network = AutoModelForObjectDetection.from_pretrained(model).to(device).eval()
    except (OSError, ValueError, ImportError) as error:
        remedy = "pip install 'hrnetpp-lib[detect]'; check the name and the network, or give a local folder"
        raise HrnetppError(f"detector {model}: cannot be loaded ({error}); {remedy}") from error
    labels = [int(label) for label, name in network.config.id2label.items() if name == "person"]
    if len(labels) != 1:
        raise HrnetppError(f"detector {model}: no label is named 'person'; choose a model trained on COCO")
    outputs = network(**processor(images=image, return_tensors="pt").to(device))
    (found,) = processor.post_process_object_detection(outputs, threshold=0.3, target_sizes=[image.shape[:2]])
    scores, corners = (found[key].double().cpu().numpy() for key in ("scores", "boxes"))
    persons = np.flatnonzero(found["labels"].cpu().numpy() == labels[0])
    persons = persons[np.argsort(-scores[persons], kind="stable")]
    start, end = np.split(corners[persons], 2, axis=1)
    return np.hstack([start, end - start]), scores[persons]
