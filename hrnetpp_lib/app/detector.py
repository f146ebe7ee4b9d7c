"""A detector of persons, of the transformers library, and the COCO file of boxes that it writes."""

import contextlib
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import torch

from hrnetpp_lib.app.pictures import Failures, Frame, find_files, in_groups, is_clip, read_frames
from hrnetpp_lib.data.annotations import MEND_TRUTH, read_image_ids
from hrnetpp_lib.errors import HrnetppError
from hrnetpp_lib.evaluate.infer import pick_device
from hrnetpp_lib.evaluate.metrics import bbox_ap
from hrnetpp_lib.files import decode_json, read_json, whole_file

DETECTOR = "ustc-community/dfine-large-coco"  # on transformers' hub, 126 MB
Boxes = tuple[np.ndarray, np.ndarray]  # (N, 4) xywh in image px, float64, and scores (N,)
_ITS_FILES = ["*.json", "*.safetensors"]  # on the hub, of those that make a detector
_SURE = 0.3
# What a file of boxes keeps of each picture: box AP looks at as many, and low scores only add to it.
_ANY, _MOST_BOXES = 0.01, 100
_SECONDS_BETWEEN_LINES = 10.0
_IMAGES_A_BATCH = {"cpu": 4, "cuda": 32}


@dataclass(frozen=True)
class Detector:
    """A network that `open_detector` made ready."""

    name: str
    processor: object
    network: torch.nn.Module
    label: int  # of persons
    device: str

    @property
    def at_once(self) -> int:
        """How many images are best looked at together."""
        return _IMAGES_A_BATCH.get(torch.device(self.device).type, 4)

    @torch.no_grad()
    def find(self, images: Sequence[np.ndarray], threshold: float = _SURE) -> list[Boxes]:
        """Persons in each (h, w, 3) uint8 RGB image: boxes within it, best first, scored above a threshold.

        The images go through the network in one batch, whatever their sizes.
        """
        # Said, since a picture 1 or 3 px high would pass for one whose channels come first.
        layout = {"input_data_format": "channels_last", "return_tensors": "pt"}
        inputs = self.processor(images=list(images), **layout).to(self.device)
        sizes = [image.shape[:2] for image in images]
        found = self.processor.post_process_object_detection(
            self.network(**inputs), threshold=threshold, target_sizes=sizes
        )
        return [self._persons(one, size) for one, size in zip(found, sizes, strict=True)]

    def _persons(self, found: dict[str, torch.Tensor], hw: tuple[int, int]) -> Boxes:
        scores, corners = (found[key].double().cpu().numpy() for key in ("scores", "boxes"))
        corners = corners.reshape(-1, 2, 2).clip(0, hw[::-1])
        start, end = corners[:, 0], corners[:, 1]
        persons = np.flatnonzero((found["labels"].cpu().numpy() == self.label) & (end > start + 0.01).all(1))
        persons = persons[np.argsort(-scores[persons], kind="stable")]
        return np.hstack([start, end - start])[persons], scores[persons]


def open_detector(model: str, device: str = "cpu") -> Detector:
    """A COCO-trained D-FINE or RT-DETRv2 of the transformers library: a name on its hub, or a local folder.

    Raises: HrnetppError if it cannot be loaded or knows no person. Reference: Peng et al., arXiv 2410.13842.
    """
    try:
        from huggingface_hub import snapshot_download
        from transformers import AutoImageProcessor, AutoModelForObjectDetection
        from transformers.utils.logging import disable_progress_bar

        disable_progress_bar()  # of reading a file that lies here
        # Asked for once: without a connection `from_pretrained` goes on asking for 100 seconds.
        folder = model if os.path.isdir(model) else snapshot_download(model, allow_patterns=_ITS_FILES)
        processor = AutoImageProcessor.from_pretrained(folder)
        network = AutoModelForObjectDetection.from_pretrained(folder).to(device).eval()
    except (OSError, ValueError, ImportError) as error:
        remedy = "check the name and the connection, or give a local folder"
        if isinstance(error, ImportError):
            remedy = "pip install 'hrnetpp-lib[detect]'"
        raise HrnetppError(f"detector {model}: cannot be loaded ({error}); {remedy}") from error
    labels = [int(label) for label, name in network.config.id2label.items() if name == "person"]
    if len(labels) != 1:
        raise HrnetppError(f"detector {model}: no label is named 'person'; choose a model trained on COCO")
    return Detector(model, processor, network, labels[0], device)


class _Header(msgspec.Struct, forbid_unknown_fields=True):
    """The first line of a journal."""

    detector: str


class _Looked(msgspec.Struct):
    """Each further line: a picture that the detector has looked at."""

    image_id: int
    file_name: str
    boxes: list[tuple[float, float, float, float, float]]  # x, y, w, h, score


class _OfImage(msgspec.Struct):
    """What is needed of a true box to choose it."""

    image_id: int


class _Truth(msgspec.Struct):
    """COCO ground truth, or the list of pictures alone that there is of COCO's test images."""

    annotations: list[_OfImage] | None = None


class _Record(msgspec.Struct):
    """A box in the COCO result list that becomes of it."""

    image_id: int
    category_id: int
    bbox: tuple[float, float, float, float]
    score: float
    file_name: str
    detector: str


def detect(
    inputs: Sequence[str | Path], output: Path, detector: str = DETECTOR, annotations: Path | None = None
) -> None:
    """Write the boxes of persons in pictures as a COCO result list: for `evaluate`, `predict --detections`.

    What is done is kept in `<output>.progress` until the end: a run that was killed goes on. So does one with
    an `output` of earlier: pictures whose names are in it are left out. Boxes refer to pixels as they are
    stored, as COCO's do. What cannot be read is said, and the rest is done.

    Args:
        inputs: Photographs, folders and patterns, see `pictures.find_files`.
        output: A json; its records have image_id, category_id 1, bbox, score, file_name and the detector.
        detector: As of `open_detector`. On the GPU if there is one.
        annotations: COCO ground truth: says the image ids by file name and, if it has boxes, their AP.

    Raises: HrnetppError if a file cannot be used, at the end; or if another detector has begun `output`.
    """
    if not output.name or output.is_dir():
        raise HrnetppError(f"{output}: is a folder; give the name of a json in it")
    failures = Failures()
    found = find_files(inputs, failures.add)
    failures.begin(len(found) + len(failures))
    for path in filter(is_clip, found):
        failures.add(HrnetppError(f"{path}: is a clip; predict --detector finds the persons in it"))
    paths = [path for path in found if not is_clip(path)]
    if not paths:
        failures.end()
    ids = read_image_ids(annotations) if annotations else {}
    has_boxes = annotations and read_json(annotations, _Truth, mend=MEND_TRUTH).annotations is not None
    opened, journal = open_detector(detector, str(pick_device())), output.with_name(f"{output.name}.progress")
    if not journal.exists():
        _begin(journal, output, detector)
    done = {looked.file_name for looked in _read(journal, detector)}
    waiting = [path for path in paths if _name(path) not in done]
    before = f", {len(paths) - len(waiting)} done before" if len(waiting) < len(paths) else ""
    print(f"{len(waiting)} pictures to look at{before}, by {detector} on {opened.device}", flush=True)
    for looked in _look(opened, journal, waiting, failures):
        done.add(looked.file_name)
    if not done:
        journal.unlink()
        failures.end()
    boxes = _write(journal, output, detector, ids)
    journal.unlink()
    print(f"written: {output}, {boxes} boxes of persons in {len(done)} pictures")
    if has_boxes:
        print(_box_ap(annotations, output, done, ids))
    failures.end()


def _name(path: Path) -> str:
    return os.fsencode(path.name).decode(errors="replace")


def _begin(journal: Path, output: Path, detector: str) -> None:
    """A new journal, of what an earlier output has."""
    pictures: dict[str, _Looked] = {}
    if output.exists():
        remedy = "only what `detect` wrote can be gone on with; give another file"
        for record in read_json(output, list[_Record], remedy):
            _check_same(output, record.detector, detector)
            looked = _Looked(record.image_id, record.file_name, [])
            pictures.setdefault(record.file_name, looked).boxes.append((*record.bbox, record.score))
    with whole_file(journal) as part:
        part.write_bytes(b"".join(map(_line, [_Header(detector), *pictures.values()])))


def _check_same(path: Path, theirs: str, ours: str) -> None:
    if theirs != ours:
        raise HrnetppError(f"{path}: is of the detector {theirs}, not of {ours}; give another --output")


def _line(part: msgspec.Struct) -> bytes:
    return msgspec.json.encode(part) + b"\n"


def _read(journal: Path, detector: str) -> Iterator[_Looked]:
    """The pictures in a journal. What a killed run left of its last line is cut off."""
    remedy = "remove it to begin anew"
    with open(journal, "rb+") as file:
        _check_same(journal, decode_json(file.readline(), _Header, journal, remedy).detector, detector)
        while line := file.readline():
            if not line.endswith(b"\n"):
                file.truncate(file.tell() - len(line))
                return
            yield decode_json(line, _Looked, journal, remedy)


def _look(detector: Detector, journal: Path, paths: Sequence[Path], failures: Failures) -> Iterator[_Looked]:
    """Each picture once it is in the journal; says every ten seconds how far that is."""
    begun = said = time.monotonic()
    looked_at, frames = 0, read_frames(paths, failures.add, upright=False)
    with open(journal, "ab") as file, contextlib.closing(frames):
        for group in in_groups(frames, detector.at_once):
            found = detector.find([frame.pixels for frame in group], _ANY)
            looked = [_looked(frame, *boxes) for frame, boxes in zip(group, found, strict=True)]
            file.write(b"".join(map(_line, looked)))
            file.flush()
            yield from looked
            looked_at += len(looked)
            if (now := time.monotonic()) > said + _SECONDS_BETWEEN_LINES:
                said, rate = now, looked_at / (now - begun)
                print(f"{looked_at} of {len(paths)} pictures, {rate:.1f} a second", flush=True)


def _looked(frame: Frame, boxes: np.ndarray, scores: np.ndarray) -> _Looked:
    rows = np.column_stack([np.round(boxes, 2), np.round(scores, 5)])[:_MOST_BOXES]
    return _Looked(frame.image_id, _name(frame.path), [tuple(row) for row in rows.tolist()])


def _write(journal: Path, output: Path, detector: str, ids: dict[str, int]) -> int:
    """Make the COCO result list of a journal, image ids by file name where known; returns how many boxes."""
    boxes = 0
    with whole_file(output) as part, open(part, "wb") as file:
        for looked in _read(journal, detector):
            image_id = ids.get(looked.file_name, looked.image_id)
            for *bbox, score in looked.boxes:
                record = _Record(image_id, 1, tuple(bbox), score, looked.file_name, detector)
                file.write((b",\n" if boxes else b"[\n") + msgspec.json.encode(record))
                boxes += 1
        file.write(b"\n]\n" if boxes else b"[]\n")
    return boxes


def _box_ap(annotations: Path, output: Path, names: set[str], ids: dict[str, int]) -> str:
    """The box AP on those true pictures that were looked at, in words."""
    truth = read_json(annotations, dict, mend=MEND_TRUTH)
    known = {ids[name] for name in names & ids.keys()}
    if not known:
        raise HrnetppError(f"{annotations}: lists none of the pictures that were looked at; is it of others?")
    for part, key in (("images", "id"), ("annotations", "image_id")):
        truth[part] = [record for record in truth[part] if record[key] in known]
    try:
        ap = 100 * bbox_ap(truth, output)
    except HrnetppError as error:
        raise HrnetppError(f"{annotations}: {error}") from None
    return f"person box AP {ap:.1f} on {len(known)} pictures of {annotations}"
