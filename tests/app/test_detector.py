"""Persons by a detector: a stand-in of the transformers library, and its own small ones if it is there."""

import json
import re
import sys
from types import SimpleNamespace

import cv2
import huggingface_hub
import numpy as np
import pytest
import torch
from pycocotools.coco import COCO

import hrnetpp_lib.app.detector as module
from hrnetpp_lib.__main__ import main
from hrnetpp_lib.app.detector import detect, open_detector
from hrnetpp_lib.app.pictures import image_id
from hrnetpp_lib.data.annotations import read_coco_detections, read_person_boxes
from hrnetpp_lib.errors import HrnetppError
from hrnetpp_lib.evaluate.metrics import bbox_ap
from hrnetpp_lib.files import write_json

IMAGE, TALL = np.zeros((50, 90, 3), np.uint8), np.zeros((120, 40, 3), np.uint8)


class Fake(dict):
    """Inputs, processor and network of the transformers library in one; it sees three persons and a dog."""

    config = SimpleNamespace(id2label={2: "dog", 7: "person"})
    asked = []

    @classmethod
    def from_pretrained(cls, name):
        return cls()

    def to(self, device):
        self.asked.append(device)
        return self

    def eval(self):
        return self

    def __call__(self, images=None, return_tensors="pt", pixel_values=None, input_data_format=None):
        assert return_tensors == "pt" and not torch.is_grad_enabled()
        if pixel_values is None:
            assert input_data_format == "channels_last"
            return Fake(pixel_values=torch.zeros(len(images), 3, 8, 8))
        self.asked.append(len(pixel_values))
        return "raw outputs"

    def post_process_object_detection(self, outputs, threshold, target_sizes):
        assert outputs == "raw outputs"
        scores, labels = torch.tensor([0.5, 0.875, 0.75, 0.25]), torch.tensor([7, 2, 7, 7])
        boxes = torch.tensor([[1.0, 2, 11, 22], [0, 0, 9, 9], [30, 5, 96.5, 45], [-5, -3, 1, 1]])
        keep = scores > threshold
        return [{"scores": scores[keep], "labels": labels[keep], "boxes": boxes[keep]} for _ in target_sizes]


@pytest.fixture
def transformers(monkeypatch):
    quiet = SimpleNamespace(disable_progress_bar=lambda: None)
    fake = SimpleNamespace(AutoImageProcessor=Fake, AutoModelForObjectDetection=Fake)
    monkeypatch.setitem(sys.modules, "transformers", fake)
    monkeypatch.setitem(sys.modules, "transformers.utils.logging", quiet)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name, allow_patterns: name)
    monkeypatch.setattr(Fake, "asked", [])


def test_detected_boxes_are_persons_as_xywh_best_first_and_inside(transformers, monkeypatch):
    found = open_detector("any", "meta").find([IMAGE, TALL])
    assert Fake.asked == ["meta", "meta", 2]
    assert [boxes.tolist() for boxes, _ in found] == [
        [[30, 5, 60, 40], [1, 2, 10, 20]],
        [[30, 5, 10, 40], [1, 2, 10, 20]],
    ]
    assert [scores.tolist() for _, scores in found] == [[0.75, 0.5]] * 2
    assert all(part.dtype == np.float64 for one in found for part in one)
    ((boxes, scores),) = open_detector("any").find([IMAGE], threshold=0.0)
    assert boxes[2].tolist() == [0, 0, 1, 1] and scores[2] == 0.25
    ((boxes, scores),) = open_detector("any").find([IMAGE], threshold=0.9)
    assert boxes.shape == (0, 4) and scores.shape == (0,)
    monkeypatch.setattr(Fake, "config", SimpleNamespace(id2label={9: "person"}))
    ((boxes, scores),) = open_detector("any").find([IMAGE])
    assert boxes.shape == (0, 4) and scores.shape == (0,)


def test_detectors_that_cannot_be_used(transformers, monkeypatch):
    def broken(folder):
        raise OSError(f"{folder} has no weights")

    monkeypatch.setattr(Fake, "config", SimpleNamespace(id2label={0: "cat"}))
    with pytest.raises(HrnetppError, match="detector any: no label is named 'person'"):
        open_detector("any")
    monkeypatch.setattr(Fake, "from_pretrained", broken)
    with pytest.raises(HrnetppError, match=r"some/model: cannot be loaded.*no weights.*local folder"):
        open_detector("some/model")
    monkeypatch.setitem(sys.modules, "transformers", None)  # as where it is not installed
    with pytest.raises(HrnetppError, match=r"any: cannot be loaded.*transformers.*hrnetpp-lib\[detect\]"):
        open_detector("any")


def test_without_a_connection_a_detector_of_the_hub_is_refused_by_the_first_question(monkeypatch):
    asked = []

    def no_connection(*args, **kwargs):
        asked.append(args)
        raise ConnectionError("no such host")

    monkeypatch.setattr(huggingface_hub.HfApi, "repo_info", no_connection)
    with pytest.raises(HrnetppError, match=r"nobody/nothing: cannot be loaded.*no such host.*local folder"):
        open_detector("nobody/nothing")
    assert len(asked) == 1


@pytest.fixture
def folder(tmp_path):
    """Nine pictures, of which one is torn."""
    (tmp_path / "in").mkdir()
    for number in range(9):
        cv2.imwrite(str(tmp_path / f"in/{number}.png"), IMAGE if number % 2 else TALL)
    (tmp_path / "in/4.png").write_bytes(b"torn")
    return tmp_path / "in"


def test_a_killed_run_goes_on_and_writes_what_one_in_one_go_writes(transformers, folder, capsys, monkeypatch):
    whole, output = folder.parent / "whole.json", folder.parent / "boxes.json"
    command = ["detect", str(folder), "--detector", "any", "--output"]
    assert main([*command, str(whole)]) == 2  # for the torn one
    out, err = capsys.readouterr()
    assert "9 pictures to look at, by any on cpu\n" in out and "24 boxes of persons in 8 pictures" in out
    assert "4.png: this is no image" in err and "1 failures in 9 inputs" in err
    records = json.loads(whole.read_text())
    assert len(records) == 24 and [r["image_id"] for r in records[::3]] == [0, 1, 2, 3, 5, 6, 7, 8]
    assert records[0] == {
        **{"image_id": 0, "category_id": 1, "bbox": [30, 5, 10, 40], "score": 0.75},
        **{"file_name": "0.png", "detector": "any"},
    }
    assert Fake.asked[1:] == ["cpu", 4, "cpu", 4] and not list(folder.parent.glob("*.progress"))

    find = module.Detector.find
    calls = []

    def dies(self, images, threshold):
        calls.append(len(images))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return find(self, images, threshold)

    monkeypatch.setattr(module.Detector, "find", dies)
    assert main([*command, str(output)]) == 130
    journal = folder.parent / "boxes.json.progress"
    assert not output.exists() and len(journal.read_bytes().splitlines()) == 5
    journal.write_bytes(journal.read_bytes() + b'{"image_id":5,"fi')  # as a process that is killed leaves it
    capsys.readouterr()
    assert main([*command[:3], "other", "--output", str(output)]) == 2
    assert "is of the detector any, not of other; give another --output" in capsys.readouterr().err
    assert main([*command, str(output)]) == 2
    assert calls == [4, 4, 4] and output.read_bytes() == whole.read_bytes() and not journal.exists()
    assert "5 pictures to look at, 4 done before" in capsys.readouterr().out


def test_an_output_of_earlier_is_gone_on_with_and_other_files_are_not_touched(transformers, folder, capsys):
    output = folder.parent / "boxes.json"
    detect([folder / "0.png", folder / "1.png"], output, "any")
    truth = {"images": [{"id": 70 + n, "file_name": f"{n}.png", "height": 9, "width": 9} for n in (1, 2, 9)]}
    true = {"id": 1, "image_id": 71, "category_id": 1, "bbox": [30, 5, 60, 40], "area": 2400, "iscrowd": 0}
    truth |= {
        "annotations": [true, true | {"id": 2, "image_id": 79}],
        "categories": [{"id": 1, "name": "person"}],
    }
    write_json(folder.parent / "truth.json", truth)
    detect([folder / "1.png", folder / "2.png"], output, "any", folder.parent / "truth.json")
    said = capsys.readouterr().out
    assert "1 pictures to look at, 1 done before" in said and "9 boxes of persons in 3 pictures" in said
    assert f"person box AP 100.0 on 2 pictures of {folder.parent / 'truth.json'}" in said
    assert [r["image_id"] for r in json.loads(output.read_text())] == [0] * 3 + [71] * 3 + [72] * 3
    before = output.read_bytes()
    with pytest.raises(HrnetppError, match="boxes.json: is of the detector any, not of other"):
        detect([folder], output, "other")
    (folder.parent / "mine.json").write_text("[{}]")
    with pytest.raises(HrnetppError, match="mine.json: .*only what `detect` wrote can be gone on with"):
        detect([folder], folder.parent / "mine.json", "any")
    with pytest.raises(HrnetppError, match="truth.json: lists none of the pictures"):
        detect([folder / "3.png"], folder.parent / "three.json", "any", folder.parent / "truth.json")
    assert output.read_bytes() == before
    (folder.parent / "a.mp4").touch()
    for given, words in (
        (folder / "4.png", "no image"),
        (folder.parent / "a.mp4", "is a clip; predict --det"),
    ):
        with pytest.raises(HrnetppError, match=words):
            detect([given], folder.parent / "new.json", "any")
    names = ["a.mp4", "boxes.json", "in", "mine.json", "three.json", "truth.json"]
    assert sorted(path.name for path in folder.parent.iterdir()) == names


# ------------------------------------------------------------------- the library's own, if it is installed


def labels(persons: int) -> dict:
    names = {number: f"thing {number}" for number in range(5)} | {persons: "person"}
    return {"id2label": names, "label2id": {name: number for number, name in names.items()}}


@pytest.fixture(scope="module", params=["d_fine", "rt_detr_v2"])
def real_detector(request, tmp_path_factory):
    """The folder of a small one of random weights."""
    library = pytest.importorskip("transformers")
    torch.manual_seed(3)
    common = {"d_model": 32, "encoder_hidden_dim": 32, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32}
    common |= {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "decoder_layers": 2}
    common |= {"num_queries": 30, "num_denoising": 0, "decoder_in_channels": [32] * 3, **labels(3)}
    common |= {"encoder_in_channels": [16, 16, 32]}
    stages = {"out_features": ["stage2", "stage3", "stage4"], "hidden_sizes": [8, 16, 16, 32]}
    if request.param == "d_fine":
        ones = dict.fromkeys(("stage_num_blocks", "stage_numb_of_layers"), [1] * 4)
        sides = {"stage_in_channels": [8, 8, 16, 16], "stage_out_channels": [8, 16, 16, 32]}
        sides |= {"stage_mid_channels": [8] * 4, "stem_channels": [3, 8, 8]}
        backbone = library.HGNetV2Config(**ones, **sides, **stages)
        network = library.DFineForObjectDetection(library.DFineConfig(backbone_config=backbone, **common))
    else:
        kind = {"embedding_size": 8, "depths": [1] * 4, "layer_type": "basic"}
        backbone = library.RTDetrResNetConfig(**kind, **stages)
        network = library.RTDetrV2ForObjectDetection(
            library.RTDetrV2Config(backbone_config=backbone, **common)
        )
    folder = tmp_path_factory.mktemp(request.param)
    with torch.no_grad():  # nearly all that it sees are persons
        for name, weights in network.named_parameters():
            if re.search(r"(class_embed|score_head).*bias$", name):
                weights[3] += 1.0
    network.save_pretrained(folder)
    size = {"height": 64, "width": 96}
    library.RTDetrImageProcessor(size=size).save_pretrained(folder)
    return folder


def test_real_detectors_look_at_pictures_of_several_sizes_at_once(real_detector):
    random = np.random.default_rng(4)
    images = [random.integers(0, 256, (*hw, 3), np.uint8) for hw in ((50, 90), (120, 40), (64, 96))]
    opened = open_detector(str(real_detector))
    assert opened.label == 3 and not opened.network.training
    together = opened.find(images, threshold=0.05)
    assert sum(len(scores) for _, scores in together) > 5
    for image, (boxes, scores) in zip(images, together, strict=True):
        assert boxes.shape == (len(scores), 4) and (np.diff(scores) <= 0).all() and (scores > 0.05).all()
        end = boxes[:, :2] + boxes[:, 2:]
        assert (boxes[:, :2] >= 0).all() and (end <= image.shape[1::-1] + np.array(1e-9)).all()
        ((alone, its_scores),) = opened.find([image], threshold=0.05)
        np.testing.assert_allclose(its_scores, scores, atol=1e-4)
    middle = float(np.median(np.concatenate([scores for _, scores in together])))
    for (_, scores), (_, fewer) in zip(together, opened.find(images, middle), strict=True):
        np.testing.assert_allclose(fewer, scores[scores > middle], atol=1e-4)
    assert all(len(scores) == 0 for _, scores in opened.find(images, 1.0))


def test_real_detectors_write_what_the_readers_and_pycocotools_take(
    real_detector, real_data, tmp_path, capsys
):
    truth, folder, output = (
        real_data / "coco_test/test_coco.json",
        real_data / "coco_test",
        tmp_path / "b.json",
    )
    command = ["detect", str(folder), "--detector", str(real_detector), "--output", str(output)]
    assert main([*command, "--annotations", str(truth)]) == 0
    ap = float(re.search(r"person box AP ([\d.]+) on 4 pictures", capsys.readouterr().out)[1])
    assert ap == round(100 * bbox_ap(truth, output), 1)
    records = json.loads(output.read_text())
    assert records and len(COCO(truth).loadRes(str(output)).getAnnIds(catIds=[1])) == len(records)
    assert len(read_coco_detections(output, truth, folder)) == len(records)
    by_name = read_person_boxes(output)
    assert set(by_name) <= {path.name for path in folder.glob("*.jpg")}
    assert {r["image_id"] for r in records} <= {image_id(path) for path in folder.glob("*.jpg")}


def test_real_detectors_look_at_pictures_of_one_or_three_px(real_detector):
    detector = open_detector(str(real_detector))
    for shape in ((1, 1, 3), (3, 50, 3), (1, 90, 3)):
        ((boxes, scores),) = detector.find([np.full(shape, 90, np.uint8)], 0.0)
        assert len(boxes) == len(scores) and (boxes[:, :2] + boxes[:, 2:] <= shape[1::-1]).all()


def test_a_list_of_pictures_alone_says_the_ids_and_broken_truth_is_told_before(
    transformers, folder, tmp_path, capsys
):
    output, truth = tmp_path / "b.json", tmp_path / "truth.json"
    images = [{"id": 70 + n, "file_name": f"{n}.png", "width": 90, "height": 50} for n in range(9)]
    images = {"images": images, "categories": [{"id": 1, "name": "person"}]}
    command = ["detect", str(folder), "--output", str(output), "--annotations", str(truth)]
    for broken in ({}, {"image_id": None}):
        write_json(truth, images | {"annotations": [broken]})
        assert main(command) == 2
        assert str(truth) in (said := capsys.readouterr().err) and "image_id" in said
        assert not output.exists()
    write_json(truth, images)
    assert main(command) == 2  # one of the pictures is torn
    assert "person box AP" not in capsys.readouterr().out
    assert {one["image_id"] for one in json.loads(output.read_text())} == {70, 71, 72, 73, 75, 76, 77, 78}
    assert main(["detect", str(folder), "--output", str(tmp_path)]) == 2
    assert "is a folder; give the name of a json in it" in capsys.readouterr().err
