"""Poses of one photograph: which network, which boxes, what is written; and a detector's stand-in."""

import json
import os
import re
import sys
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pycocotools.coco import COCO

import hrnetpp_lib
from hrnetpp_lib.__main__ import main
from hrnetpp_lib.app.photo import detect_persons, image_id, newest_checkpoint, parse_boxes, predict
from hrnetpp_lib.data.images import read_image
from hrnetpp_lib.errors import HrnetppError
from hrnetpp_lib.evaluate.metrics import rescore
from hrnetpp_lib.files import write_json
from hrnetpp_lib.model.hrnet import HRNet
from hrnetpp_lib.model.weights import ModelCard, save_checkpoint
from hrnetpp_lib.pose.keypoints import AIC14, COCO17
from hrnetpp_lib.recipe import HRNET, HRNETPP, SMOKE, STAGE3, resolve, three_stages

IMAGE = np.zeros((50, 90, 3), np.uint8)
BOXES = np.array([[10.0, 20.0, 100.0, 150.0], [60.5, 40.0, 80.0, 90.0]])


def tiny_checkpoint(path: Path, skeleton=COCO17) -> Path:
    torch.manual_seed(0)
    model = HRNet(8, len(skeleton), blocks_per_branch=1, modules=(1, 1, 1), stem_channels=8, layer1_blocks=1)
    for weights in model.parameters():
        if weights.dim() == 4:
            torch.nn.init.kaiming_normal_(weights)  # heatmaps worth decoding; the usual start gives 1e-12
    save_checkpoint(model, ModelCard(skeleton, (64, 64), "soft_argmax", run=f"tiny-{skeleton.name}"), path)
    return path


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("checkpoint") / "model.safetensors")


@pytest.fixture(scope="module")
def photograph(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("photograph") / "people.png"
    smooth = cv2.resize(np.random.default_rng(5).integers(0, 256, (9, 12, 3), np.uint8), (320, 240))
    cv2.imwrite(str(path), smooth)
    return path


@pytest.fixture
def command(checkpoint, photograph, tmp_path) -> list[str]:
    """`predict` into a new folder."""
    options = ["--checkpoint", str(checkpoint), "--output-dir", str(tmp_path / "new")]
    return ["predict", str(photograph), *options]


def finished(root: Path, run, checkpoint: Path, age: int) -> Path:
    """A run's folder as training leaves it, so many seconds old."""
    path = root / "runs" / run.profile.name / run.name / "model.safetensors"
    path.parent.mkdir(parents=True)
    path.write_bytes(checkpoint.read_bytes())
    write_json(path.parent / "recipe.json", asdict(run))
    os.utime(path, (1e9 - age, 1e9 - age))
    return path


def test_the_network_is_the_newest_of_a_whole_chain(checkpoint, photograph, tmp_path, monkeypatch):
    monkeypatch.setattr("hrnetpp_lib.app.photo.project_root", lambda: tmp_path)
    with pytest.raises(HrnetppError, match=r"runs: no finished HRNet\+\+.*train --profile mini"):
        predict(photograph)
    chain = three_stages(SMOKE)
    finished(tmp_path, chain[2], checkpoint, 9)
    newest = finished(tmp_path, three_stages(SMOKE, seed=3)[2], checkpoint, 8)
    # Notebook 6's: another alpha, and stage 2 from random weights; then other networks, stages and profiles.
    other_alpha = resolve(replace(STAGE3, alpha=15.0), SMOKE, previous=chain[1])
    renamed = replace(SMOKE, name="mine", batch_size=4)
    others = [
        resolve(STAGE3, SMOKE),
        three_stages(SMOKE, HRNET)[2],
        chain[1],
        resolve(STAGE3, renamed, HRNETPP),
    ]
    for age, run in enumerate([other_alpha, *others]):
        finished(tmp_path, run, checkpoint, age)
    damaged = finished(tmp_path, three_stages(renamed)[2], checkpoint, 0)
    (damaged.parent / "recipe.json").write_text("[1]")
    assert newest_checkpoint(tmp_path) == newest
    write_json(damaged.parent / "recipe.json", asdict(three_stages(renamed)[2]))
    assert newest_checkpoint(tmp_path) == damaged


def test_missing_broken_or_foreign_files_are_refused(tmp_path, photograph, checkpoint):
    for name, content in (("torn.safetensors", b"no weights at all"), ("broken.jpg", b"\xff\xd8 half")):
        (tmp_path / name).write_bytes(content)
    torch.save({"conv1.weight": torch.zeros(3)}, tmp_path / "foreign.pth")
    networks = [tmp_path / name for name in ("nothing.safetensors", "torn.safetensors", "foreign.pth")]
    calls = [(photograph, wrong, wrong.name) for wrong in (*networks, photograph)]
    calls += [(tmp_path / name, checkpoint, name) for name in ("nobody.jpg", "broken.jpg")]
    for image, network, name in calls:
        with pytest.raises(HrnetppError, match=name):
            predict(image, network)


def test_network_and_detector_go_where_the_gpu_is(checkpoint, transformers, monkeypatch):
    asked = []

    def poses_of(model, pixels, boxes, **_):
        asked.append(next(model.parameters()).device.type)
        return np.zeros((len(boxes), 17, 3))

    def as_given(model):
        model.described = "as given"
        return model

    monkeypatch.setattr("hrnetpp_lib.evaluate.infer.pick_device", lambda: torch.device("meta"))
    monkeypatch.setattr(Fake, "to", lambda self, device: asked.append(device) or self)
    monkeypatch.setattr("hrnetpp_lib.evaluate.infer.predict", poses_of)
    monkeypatch.setattr("hrnetpp_lib.evaluate.infer.prepare", lambda model, *_: as_given(model))
    predict(IMAGE, checkpoint, detector="any")
    assert asked == ["meta"] * 3  # network and inputs of the detector, and ours


@pytest.mark.parametrize("boxes", ["1,2,3", "a,b,c,d", "1,2,3,4,5", " ", "", "1;2;3;4", "1,2,3,4 5"])
def test_boxes_are_parsed_or_refused(boxes):
    np.testing.assert_array_equal(parse_boxes(" 1.5,2,3,4   -5,6,7,8 "), [[1.5, 2, 3, 4], [-5, 6, 7, 8]])
    with pytest.raises(HrnetppError, match="write x,y,w,h"):
        parse_boxes(boxes)


def test_the_command_refuses_in_one_line_and_writes_nothing(capsys, tmp_path, command):
    for box in ("10,10,0,20", "10,10,20,-5", "nan,1,2,3", "5"):
        assert main([*command, f"--boxes={box}"]) == 2
        message = capsys.readouterr().err
        assert message.startswith("error: box") and message.count("\n") == 1
    assert main([*command, "--boxes", "1,2,3,4", "--detector", "some/model"]) == 2
    assert "not both" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_poses_of_a_file_and_of_its_pixels(checkpoint, photograph, command, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    poses = hrnetpp_lib.predict(photograph, checkpoint)
    assert poses.shape == (1, 17, 3)
    assert str(checkpoint) in (said := capsys.readouterr().out) and "boxes the whole image" in said
    np.testing.assert_array_equal(poses, predict(read_image(photograph), str(checkpoint)))
    three = predict(str(photograph), checkpoint, np.array([[0, 0, 320, 240], *BOXES]))
    assert three.shape == (3, 17, 3)
    np.testing.assert_allclose(three[0], poses[0], atol=1e-4)
    assert not np.allclose(predict(photograph, checkpoint, flip=False), poses)
    assert main(command[:4]) == 0
    assert list(tmp_path.iterdir()) == []  # nothing is written unless told where to
    with pytest.raises(HrnetppError, match="an array has no name"):
        predict(read_image(photograph), checkpoint, output_dir=tmp_path)


def test_json_and_picture_are_written_where_told(capsys, tmp_path, checkpoint, photograph, command):
    assert main([*command, "--boxes", "10,20,100,150 60.5,40,80,90"]) == 0
    said = r"2 poses, \d+ of 34 keypoints above 0.2, by .*tiny-coco17.*boxes as given\n.*category 1\)"
    assert re.search(said, capsys.readouterr().out)
    results = json.loads((tmp_path / "new/people_poses.json").read_text())
    poses = predict(photograph, checkpoint, BOXES)
    for result, pose, box in zip(results, poses, BOXES, strict=True):
        assert result["image_id"] == image_id(photograph) and result["category_id"] == 1
        np.testing.assert_allclose(np.reshape(result["keypoints"], (17, 3)), pose, atol=1e-3)
        assert result["score"] == pytest.approx(rescore(pose[None, :, 2], np.ones(1))[0])
        assert result["bbox"] == box.tolist() and result["bbox_score"] == 1.0
        assert result["file_name"] == "people.png" and result["keypoint_set"] == "coco17"
    assert read_image(tmp_path / "new/people_poses.png").shape[1] == 1040
    coco = COCO()  # which accepts what is written
    coco.dataset = {"images": [{"id": image_id(photograph)}], "annotations": [], "categories": [{"id": 1}]}
    coco.createIndex()
    found = coco.loadRes(str(tmp_path / "new/people_poses.json"))
    assert found.getAnnIds(imgIds=[image_id(photograph)], catIds=[1]) == [1, 2]


def test_category_of_other_keypoints_and_scores_of_a_detector(tmp_path, photograph, monkeypatch, capsys):
    def detector(pixels, model, device):
        assert model == "some/model"
        return BOXES, np.array([0.9, 0.5])

    monkeypatch.setattr("hrnetpp_lib.app.photo.detect_persons", detector)
    path = tiny_checkpoint(tmp_path / "aic.safetensors", AIC14)
    poses = predict(photograph, path, detector="some/model", output_dir=tmp_path)
    said, results = capsys.readouterr().out, json.loads((tmp_path / "people_poses.json").read_text())
    assert poses.shape == (2, 14, 3) and "aic14" in said and "category 1014" in said
    assert "boxes by some/model" in said and [result["bbox_score"] for result in results] == [0.9, 0.5]
    assert [r["score"] for r in results] == pytest.approx(rescore(poses[:, :, 2], np.array([0.9, 0.5])))
    assert {(r["category_id"], r["keypoint_set"]) for r in results} == {(1014, "aic14")}


def test_image_ids_by_hand():
    assert image_id(Path("val2017/000000000139.jpg")) == 139
    assert image_id(Path("9" * 18 + ".png")) == int("9" * 18)
    # The first six bytes of SHA-256 of the name: printf people.png | sha256sum
    assert image_id(Path("elsewhere/people.png")) == 0xC9FE64415C8B
    assert image_id(Path("people.jpg")) != 0xC9FE64415C8B


@given(st.text(st.characters(blacklist_characters="/\0", blacklist_categories=("Cs",)), min_size=1))
def test_image_ids_are_int64_of_any_name(name):
    assert 0 <= image_id(Path("folder") / name) < 2**63


class Fake(dict):
    """Inputs, processor and network of the transformers library in one; it sees three persons and a dog."""

    config = SimpleNamespace(id2label={2: "dog", 7: "person"})

    @classmethod
    def from_pretrained(cls, name):
        return cls()

    def to(self, device):
        return self

    def eval(self):
        return self

    def __call__(self, images=None, return_tensors="pt", pixel_values=None):
        assert return_tensors == "pt" and (images is IMAGE or not torch.is_grad_enabled())
        return Fake(pixel_values=torch.zeros(1, 3, 8, 8)) if pixel_values is None else "raw outputs"

    def post_process_object_detection(self, outputs, threshold, target_sizes):
        assert outputs == "raw outputs" and [tuple(size) for size in target_sizes] == [(50, 90)]
        scores, labels = torch.tensor([0.5, 0.875, 0.75, 0.25]), torch.tensor([7, 2, 7, 7])
        boxes = torch.tensor([[1.0, 2, 11, 22], [0, 0, 9, 9], [30, 5, 36.5, 45], [0, 0, 1, 1]])
        keep = scores > threshold
        return [{"scores": scores[keep], "labels": labels[keep], "boxes": boxes[keep]}]


@pytest.fixture
def transformers(monkeypatch):
    fake = SimpleNamespace(AutoImageProcessor=Fake, AutoModelForObjectDetection=Fake)
    monkeypatch.setitem(sys.modules, "transformers", fake)


def test_detected_boxes_are_persons_as_xywh_best_first(transformers, monkeypatch):
    boxes, scores = detect_persons(IMAGE, "any")
    assert boxes.tolist() == [[30, 5, 6.5, 40], [1, 2, 10, 20]] and scores.tolist() == [0.75, 0.5]
    assert boxes.dtype == scores.dtype == np.float64
    monkeypatch.setattr(Fake, "config", SimpleNamespace(id2label={9: "person"}))
    boxes, scores = detect_persons(IMAGE, "any")
    assert boxes.shape == (0, 4) and scores.shape == (0,)


def test_detectors_that_cannot_be_used(transformers, monkeypatch):
    def offline(name):
        raise OSError(f"cannot connect to the hub to load {name}")

    monkeypatch.setattr(Fake, "config", SimpleNamespace(id2label={0: "cat"}))
    with pytest.raises(HrnetppError, match="detector any: no label is named 'person'"):
        detect_persons(IMAGE, "any")
    monkeypatch.setattr(Fake, "from_pretrained", offline)
    with pytest.raises(HrnetppError, match=r"some/model: cannot be loaded.*hub.*local folder"):
        detect_persons(IMAGE, "some/model")
    monkeypatch.setitem(sys.modules, "transformers", None)  # as where it is not installed
    with pytest.raises(HrnetppError, match=r"any: cannot be loaded.*transformers.*hrnetpp-lib\[detect\]"):
        detect_persons(IMAGE, "any")
