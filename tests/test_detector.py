"""Boxes of single pictures: looked up in files, or from a stand-in for the transformers library."""

import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from hrnetpp_lib.detector import GroundTruthBoxes, JsonDetector, TransformersDetector
from hrnetpp_lib.errors import HrnetppError

IMAGE = np.zeros((50, 90, 3), np.uint8)


@pytest.fixture
def files(tmp_path):
    person = {"category_id": 1, "image_id": 3, "iscrowd": 0, "area": 9, "keypoints": [0] * 51}
    ground_truth = {
        "images": [{"id": i, "file_name": f"{i}.jpg", "height": 50, "width": 90} for i in (3, 4, 5)],
        "annotations": [person | {"id": 1, "bbox": [1, 2, 30, 40]}, person | {"id": 2, "bbox": [5, 6, 7, 8]}],
        "categories": [{"id": 1, "name": "person"}],
    }
    boxes = [
        {"image_id": image, "category_id": 1, "bbox": [10 * image, 2, 3, 4], "score": score}
        for image, score in ((3, 0.25), (4, 0.5), (3, 0.75))
    ]
    (tmp_path / "gt.json").write_text(json.dumps(ground_truth))
    (tmp_path / "boxes.json").write_text(json.dumps(boxes))
    return tmp_path / "boxes.json", tmp_path / "gt.json", tmp_path


def test_json_boxes_of_one_picture_come_best_first(files):
    detector = JsonDetector(*files)
    boxes, scores = detector.detect(IMAGE, "3.jpg")
    assert boxes.tolist() == [[30, 2, 3, 4]] * 2 and scores.tolist() == [0.75, 0.25]
    assert detector.detect(IMAGE, "4.jpg")[0].tolist() == [[40, 2, 3, 4]]
    boxes, scores = detector.detect(IMAGE, "5.jpg")
    assert boxes.shape == (0, 4) and scores.shape == (0,)


def test_true_boxes_include_persons_without_keypoints(files):
    boxes, scores = GroundTruthBoxes(*files[1:]).detect(IMAGE, "3.jpg")
    assert boxes.tolist() == [[1, 2, 30, 40], [5, 6, 7, 8]] and scores.tolist() == [1, 1]


@pytest.mark.parametrize("file_name", ["", "6.jpg"])
def test_picture_that_the_file_does_not_list(files, file_name):
    with pytest.raises(HrnetppError, match=f"boxes.json: has no image '{file_name}'"):
        JsonDetector(*files).detect(IMAGE, file_name)


def test_real_detections_of_one_photograph(real_data):
    folder = real_data / "coco_test"
    detector = JsonDetector(folder / "test_coco_det_AP_H_56.json", folder / "test_coco.json", folder)
    boxes, scores = detector.detect(IMAGE, "000000000785.jpg")
    assert len(boxes) == len(scores) > 1 and (np.diff(scores) <= 0).all()
    assert boxes[0].tolist() == [277.1183158543966, 45.699667786163765, 225.09126579259754, 333.5602652943344]


class FakeInputs(dict):
    def to(self, device):
        self.device = device
        return self


class FakeProcessor:
    """Answers with two persons and a dog in corners, of which it keeps those above the threshold."""

    def __call__(self, images, return_tensors):
        assert images is IMAGE and return_tensors == "pt"
        return FakeInputs(pixel_values=torch.zeros(1, 3, 8, 8))

    def post_process_object_detection(self, outputs, threshold, target_sizes):
        assert outputs == "raw outputs" and [tuple(size) for size in target_sizes] == [(50, 90)]
        scores, labels = torch.tensor([0.5, 0.875, 0.75]), torch.tensor([7, 2, 7])
        boxes = torch.tensor([[1.0, 2, 11, 22], [0, 0, 9, 9], [30, 5, 36.5, 45]])
        keep = scores > threshold
        return [{"scores": scores[keep], "labels": labels[keep], "boxes": boxes[keep]}]


class FakeNetwork:
    config = SimpleNamespace(id2label={2: "dog", 7: "person"})

    def to(self, device):
        return self

    def eval(self):
        return self

    def __call__(self, pixel_values):
        assert not torch.is_grad_enabled()
        return "raw outputs"


@pytest.fixture
def transformers(monkeypatch):
    """A stand-in for the library with the calls that TransformersDetector makes."""
    fake = SimpleNamespace(
        AutoImageProcessor=SimpleNamespace(from_pretrained=lambda name: FakeProcessor()),
        AutoModelForObjectDetection=SimpleNamespace(from_pretrained=lambda name: FakeNetwork()),
    )
    monkeypatch.setitem(sys.modules, "transformers", fake)
    return fake


def test_network_boxes_are_persons_as_xywh_best_first(transformers):
    boxes, scores = TransformersDetector("any").detect(IMAGE)
    assert boxes.tolist() == [[30, 5, 6.5, 40], [1, 2, 10, 20]] and scores.tolist() == [0.75, 0.5]
    assert boxes.dtype == scores.dtype == np.float64
    assert len(TransformersDetector("any", score_threshold=0.6).detect(IMAGE)[0]) == 1
    boxes, scores = TransformersDetector("any", score_threshold=0.8).detect(IMAGE)
    assert boxes.shape == (0, 4) and scores.shape == (0,)


def test_transformers_not_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(HrnetppError, match=r"any: cannot import transformers.*hrnetpp-lib\[detect\]"):
        TransformersDetector("any")


def test_weights_that_cannot_be_fetched(transformers):
    def offline(name):
        raise OSError(f"cannot connect to the hub to load {name}")

    transformers.AutoModelForObjectDetection.from_pretrained = offline
    with pytest.raises(HrnetppError, match=r"some/model: its weights cannot be loaded.*hub.*folder"):
        TransformersDetector("some/model")


def test_model_without_persons(transformers, monkeypatch):
    monkeypatch.setattr(FakeNetwork, "config", SimpleNamespace(id2label={0: "cat"}))
    with pytest.raises(HrnetppError, match="no label is named 'person'"):
        TransformersDetector("any")
