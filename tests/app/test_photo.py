"""Boxes of single pictures, from a stand-in for the transformers library."""

import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from hrnetpp_lib.app.photo import TransformersDetector
from hrnetpp_lib.errors import HrnetppError

IMAGE = np.zeros((50, 90, 3), np.uint8)


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
