"""Pictures and clips in, poses out: which network, which boxes, what is written, what is refused."""

import json
import os
import re
import signal
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

import hrnetpp_lib
from hrnetpp_lib import draw
from hrnetpp_lib.__main__ import main
from hrnetpp_lib.app.photo import (
    default_checkpoint,
    packaged_checkpoint,
    parse_boxes,
    predict,
    predict_files,
)
from hrnetpp_lib.app.pictures import image_id
from hrnetpp_lib.data.images import read_image
from hrnetpp_lib.errors import HrnetppError
from hrnetpp_lib.evaluate.metrics import rescore
from hrnetpp_lib.files import write_json
from hrnetpp_lib.model.hrnet import HRNet
from hrnetpp_lib.model.weights import ModelCard, load_checkpoint, save_checkpoint
from hrnetpp_lib.pose.keypoints import AIC14, COCO17
from hrnetpp_lib.recipe import HRNET, HRNETPP, SMOKE, STAGE3, resolve, three_stages

IMAGE = np.zeros((50, 90, 3), np.uint8)
SCORES = np.array([0.9, 0.5])
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


def clip(path: Path, frames: int, wh: tuple[int, int]) -> Path:
    """A clip whose grey goes from dark to bright."""
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), 25.0, wh)
    for number in range(frames):
        writer.write(np.full((*wh[::-1], 3), 20 + 200 * number // frames, np.uint8))
    writer.release()
    return path


def frames_of(path: Path) -> list[np.ndarray]:
    capture, frames = cv2.VideoCapture(str(path)), []
    while (read := capture.read())[0]:
        frames.append(read[1])
    return frames


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
    monkeypatch.setattr("hrnetpp_lib.app.photo.packaged_checkpoint", lambda package: None)
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
    assert default_checkpoint(tmp_path) == newest
    write_json(damaged.parent / "recipe.json", asdict(three_stages(renamed)[2]))
    assert default_checkpoint(tmp_path) == damaged


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


def test_the_packaged_network_stands_in_for_one_of_ones_own(checkpoint, tmp_path):
    package = tmp_path / "site" / "hrnetpp_lib"
    assert packaged_checkpoint(package) is None
    for place in (package.parent, package):  # of a checkout, and of a package; the nearer one counts
        (place / "weights").mkdir(parents=True)
        path = place / "weights" / "lspet_cpu_hrnetpp.safetensors"
        path.write_bytes(checkpoint.read_bytes())
        assert packaged_checkpoint(package) == path


def test_what_is_packaged_comes_after_what_was_trained(checkpoint, photograph, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("hrnetpp_lib.app.photo.project_root", lambda: tmp_path)
    monkeypatch.setattr("hrnetpp_lib.app.photo.packaged_checkpoint", lambda package: checkpoint)
    predict(photograph)
    assert f"by {checkpoint} (tiny-coco17" in capsys.readouterr().out
    finished(tmp_path, three_stages(SMOKE)[2], checkpoint, 5)  # which proves that the code runs, no more
    predict(photograph)
    assert f"by {checkpoint} (" in capsys.readouterr().out
    trained = finished(tmp_path, three_stages(replace(SMOKE, name="mine"))[2], checkpoint, 9)
    predict(photograph)
    assert f"by {trained} (" in capsys.readouterr().out


def test_network_and_detector_go_where_the_gpu_is(checkpoint, monkeypatch):
    asked = []

    def poses_of(model, images, flip, card, batch_size):
        for _, boxes in images:
            asked.append(next(model.parameters()).device.type)
            yield np.zeros((len(boxes), 17, 3))

    def as_given(model):
        model.described, model.device = "as given", next(model.parameters()).device
        return model

    def detector(name, device):
        asked.append(device)
        return SimpleNamespace(find=lambda images: [(BOXES, np.ones(2))] * len(images), at_once=4)

    monkeypatch.setattr("hrnetpp_lib.evaluate.infer.pick_device", lambda: torch.device("meta"))
    monkeypatch.setattr("hrnetpp_lib.app.photo.open_detector", detector)
    monkeypatch.setattr("hrnetpp_lib.evaluate.infer.predict_images", poses_of)
    monkeypatch.setattr("hrnetpp_lib.evaluate.infer.prepare", lambda model, *_: as_given(model))
    predict(IMAGE, checkpoint, detector="any")
    assert asked == ["meta"] * 2


@pytest.mark.parametrize(
    "boxes", ["1,2,3", "a,b,c,d", "1,2,3,4,5", " ", "", "1;2;3;4", "1,2,3,4 5", "1,nan,3,4"]
)
def test_boxes_are_parsed_or_refused(boxes):
    np.testing.assert_array_equal(parse_boxes(" 1.5,2,3,4   -5,6,7,8 "), [[1.5, 2, 3, 4], [-5, 6, 7, 8]])
    with pytest.raises(HrnetppError, match="write x,y,w,h"):
        parse_boxes(boxes)


def test_the_command_refuses_in_one_line_and_writes_nothing(capsys, tmp_path, command):
    for box in ("10,10,0,20", "10,10,20,-5", "nan,1,2,3", "5"):
        assert main([*command, f"--boxes={box}"]) == 2
        message = capsys.readouterr().err
        assert message.startswith("error: ") and " box" in message and message.count("\n") == 1
    for other in (["--detector", "some/model"], ["--detections", "some.json"]):
        assert main([*command, "--boxes", "1,2,3,4", *other]) == 2
        assert "not both" in capsys.readouterr().err
    assert main([*command[:2], command[1], "two.png", *command[2:], "--boxes", "1,2,3,4"]) == 2
    assert "boxes are for one picture" in capsys.readouterr().err
    assert main(["predict", str(tmp_path / "no*.jpg"), *command[2:]]) == 2
    assert re.fullmatch(r"error: .*no\*.jpg: no file has such a name; .*\n", capsys.readouterr().err)
    assert list(tmp_path.iterdir()) == []


def test_poses_of_a_file_of_its_pixels_and_of_several(
    checkpoint, photograph, command, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    poses = hrnetpp_lib.predict(photograph, checkpoint)
    assert poses.keypoints.shape == (1, 17, 2) and poses.scores.shape == (1, 17)
    assert poses.boxes_xywh.tolist() == [[0, 0, 320, 240]] and poses.skeleton == COCO17
    assert str(checkpoint) in (said := capsys.readouterr().out) and "boxes the whole image" in said
    of_pixels = predict(read_image(photograph), str(checkpoint))
    np.testing.assert_array_equal(poses.keypoints, of_pixels.keypoints)
    np.testing.assert_array_equal(poses.draw(), of_pixels.draw())
    three = predict(str(photograph), checkpoint, np.array([[0, 0, 320, 240], *BOXES]))
    assert len(three) == 3 and three.box_scores.tolist() == [1, 1, 1]
    np.testing.assert_allclose(three.keypoints[0], poses.keypoints[0], atol=1e-4)
    assert not np.allclose(predict(photograph, checkpoint, flip=False).keypoints, poses.keypoints)
    many = predict([photograph, IMAGE, photograph], checkpoint, [BOXES[:1], [[5, 6, 7, 8]] * 20, BOXES])
    assert [len(one) for one in many] == [1, 20, 2]
    for one, boxes in ((many[0], three.keypoints[1:2]), (many[2], three.keypoints[1:])):
        np.testing.assert_allclose(one.keypoints, boxes, atol=1e-4)
    assert predict([], checkpoint) == []
    with pytest.raises(HrnetppError, match="entries for 1 pictures, there are 2"):
        predict([IMAGE, IMAGE], checkpoint, [BOXES])
    with pytest.raises(HrnetppError, match="picture 1: box .* has no area in the image of 90x50"):
        predict([IMAGE, IMAGE], checkpoint, [BOXES[:1], [[95, 0, 9, 9]]])
    assert main(command[:4]) == 0
    assert list(tmp_path.iterdir()) == []  # nothing is written unless told where to


def test_json_and_picture_are_written_where_told(capsys, tmp_path, checkpoint, photograph, command):
    assert main([*command, "--boxes", "10,20,100,150 60.5,40,80,90"]) == 0
    said = r"network .*tiny-coco17.*boxes as given\n.*people.png: 2 poses, \d+ of 34 keypoints above 0.2\n"
    assert re.search(said + r"2 poses in 1 pictures or frames, .*\n.*category 1\)", capsys.readouterr().out)
    poses = predict(photograph, checkpoint, BOXES)
    expected = [one | {"file_name": "people.png"} for one in poses.coco_results(image_id(photograph))]
    assert json.loads((tmp_path / "new/poses.json").read_text()) == expected
    drawn = read_image(tmp_path / "new/people_poses.jpg")
    assert np.abs(drawn.astype(int) - poses.draw()).mean() < 10  # a JPEG's
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["people_poses.jpg", "poses.json"]
    coco = COCO()  # which accepts what is written
    coco.dataset = {"images": [{"id": image_id(photograph)}], "annotations": [], "categories": [{"id": 1}]}
    coco.createIndex()
    found = coco.loadRes(str(tmp_path / "new/poses.json"))
    assert found.getAnnIds(imgIds=[image_id(photograph)], catIds=[1]) == [1, 2]


def test_many_pictures_are_done_whatever_some_of_them_are(capsys, tmp_path, checkpoint, photograph):
    folder = tmp_path / "pictures"
    (folder / "below").mkdir(parents=True)
    for name in ("7.jpg", "b.PNG", "c.jpg", "below/7.png", "below/c.png"):
        cv2.imwrite(str(folder / name), cv2.imread(str(photograph)))
    (folder / "torn.jpg").write_bytes((folder / "c.jpg").read_bytes()[:900])
    huge = bytearray((folder / "c.jpg").read_bytes())
    frame = huge.index(b"\xff\xc0")
    huge[frame + 5 : frame + 9] = (30_000).to_bytes(2, "big") * 2
    (folder / "huge.jpg").write_bytes(huge)
    clip(folder / "walk.mp4", 20, (64, 48))
    (folder / "empty.mp4").write_bytes(b"nothing at all")
    (folder / "notes.txt").touch()
    inputs = [str(folder), str(folder / "gone.jpg"), str(folder / "*" / "*.png"), str(folder / "7.jpg")]
    options = ["--checkpoint", str(checkpoint), "--output-dir", str(tmp_path / "new")]
    assert main(["predict", *inputs, *options]) == 2
    out, err = capsys.readouterr()
    lines = err.splitlines()
    assert lines[-1] == "error: 5 failures in 10 inputs, named above; all else is done" and len(lines) == 6
    words = (
        "truncated",
        "more than 268435456",
        "no such file",
        "no frame",
        "gets the image id 7 by its name",
    )
    assert all(sum(word in line for line in lines) == 1 for word in words)
    assert re.search(r"walk.mp4: 20 frames, 20 poses, [\d.]+ frames/s\n", out) and "24 poses in 24" in out
    names = ["7_poses.jpg", "b_poses.jpg", "c_poses.jpg", "c_poses_2.jpg", "poses.json", "walk_poses.mp4"]
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == names
    results = json.loads((tmp_path / "new/poses.json").read_text())
    frames = [(one["image_id"], one["frame"]) for one in results if one["file_name"] == "walk.mp4"]
    first = image_id(folder / "walk.mp4")
    assert frames == [(first + number, number) for number in range(20)]
    alone = predict(folder / "b.PNG", checkpoint)
    (of_b,) = [one for one in results if one["file_name"] == "b.PNG"]
    np.testing.assert_allclose(of_b["keypoints"], alone.coco_results(0)[0]["keypoints"], atol=2e-3)
    assert [frame.shape for frame in frames_of(tmp_path / "new/walk_poses.mp4")] == [(48, 64, 3)] * 20
    assert (
        main(["predict", str(folder / "empty.mp4"), *options[:2], "--output-dir", str(tmp_path / "x")]) == 2
    )
    assert re.fullmatch(r"error: .*empty.mp4: has no frame .*\n", capsys.readouterr().err)
    assert not (tmp_path / "x" / "poses.json").exists()


@pytest.fixture
def ctrl_c():
    """Ctrl-C as in a foreground program: what a shell starts behind an & ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("ctrl_c")
@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_and_kill_keep_what_is_done(sent, capsys, tmp_path, checkpoint, photograph, monkeypatch):
    clip(tmp_path / "walk.mp4", 20, (64, 48))
    calls, paint = [], draw.paint_poses

    def interrupted(*arguments):
        calls.append(True)
        if len(calls) == 6:  # a photograph and four frames are done
            signal.raise_signal(sent)
        return paint(*arguments)

    monkeypatch.setattr(draw, "paint_poses", interrupted)
    inputs = ["predict", str(photograph), str(tmp_path / "walk.mp4"), "--checkpoint", str(checkpoint)]
    inputs += ["--runtime", "torch"]
    assert main([*inputs, "--output-dir", str(tmp_path / "new")]) == 130
    out, err = capsys.readouterr()
    assert err == "interrupted after 6 pictures or frames; what is written has their poses\n"
    assert "walk.mp4: 5 of 20 frames" in out and "6 poses in 6 pictures" in out
    names = ["people_poses.jpg", "poses.json", "walk_poses.mp4"]
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == names
    results = json.loads((tmp_path / "new" / "poses.json").read_text())
    assert [one.get("frame") for one in results] == [None, 0, 1, 2, 3, 4]
    assert len(frames_of(tmp_path / "new" / "walk_poses.mp4")) == 5
    monkeypatch.setattr("hrnetpp_lib.app.poses.Poses.describe", lambda _: signal.raise_signal(sent))
    assert main(inputs) == 130
    said = "interrupted after 1 pictures or frames; nothing is written without --output-dir\n"
    assert capsys.readouterr().err == said


def test_the_input_of_a_published_network_is_as_given(capsys, tmp_path, checkpoint, photograph):
    torch.save(load_checkpoint(checkpoint)[0].state_dict(), path := tmp_path / "theirs.pth")
    command = ["predict", str(photograph), "--runtime", "torch", "--checkpoint", str(path)]
    assert main([*command, "--input", "96x64"]) == 0
    assert (
        "theirs.pth: no card, so read as HRNet-W8, coco17, input 96x64 (as given)" in capsys.readouterr().out
    )
    for wrong, words in ((["--input", "x"], "input 'x': give height x width"), ([], "theirs.pth: ")):
        assert main([*command, *wrong]) == 2
        assert re.fullmatch(rf"error: .*{words}.*\n", capsys.readouterr().err)


def test_no_boxes_are_nobody(checkpoint, photograph):
    assert len(predict(photograph, checkpoint, boxes_xywh=[])) == 0
    many = predict([photograph] * 2, checkpoint, boxes_xywh=[[], BOXES[:1]])
    assert [len(one) for one in many] == [0, 1]


def test_what_an_earlier_run_drew_is_no_input_of_the_next(capsys, tmp_path, checkpoint, photograph):
    for name in ("a.png", "mine_poses.png"):
        cv2.imwrite(str(tmp_path / name), cv2.imread(str(photograph)))
    command = ["predict", str(tmp_path), "--checkpoint", str(checkpoint), "--output-dir", str(tmp_path)]
    assert main(command) == 0 and "left out" not in capsys.readouterr().out
    first = (tmp_path / "poses.json").read_bytes()
    assert {one["file_name"] for one in json.loads(first)} == {"a.png", "mine_poses.png"}
    assert main(command) == 0
    assert "2 pictures or clips that an earlier run drew are left out" in capsys.readouterr().out
    assert (tmp_path / "poses.json").read_bytes() == first  # mine_poses.png is the user's own


def test_boxes_of_a_file_find_their_pictures(capsys, tmp_path, checkpoint, photograph):
    for name in ("12.png", "a.png", "b.png", "nobody.png"):
        cv2.imwrite(str(tmp_path / name), cv2.imread(str(photograph)))
    record = {"category_id": 1, "score": 0.75, "bbox": BOXES[0].tolist()}
    boxes = [
        record | {"image_id": 12},
        record | {"image_id": 12, "category_id": 3},
        record | {"image_id": 12, "file_name": "val/a.png", "score": 0.125, "bbox": BOXES[1].tolist()},
        record | {"image_id": 3, "file_name": "b.png", "bbox": [330, 0, 5, 5]},
        record | {"image_id": 12, "file_name": "a.png", "bbox": [3, 4, 0, 5]},
        record | {"image_id": 4, "file_name": "elsewhere.png"},
    ]
    write_json(tmp_path / "boxes.json", boxes)
    command = [
        "predict",
        str(tmp_path),
        "--checkpoint",
        str(checkpoint),
        "--output-dir",
        str(tmp_path / "new"),
    ]
    assert main([*command, "--detections", str(tmp_path / "boxes.json")]) == 2
    out, err = capsys.readouterr()
    assert "nobody.png: no box of a person" in out and f"boxes of {tmp_path / 'boxes.json'}" in out
    of = f"png in {tmp_path / 'boxes.json'}: box"
    assert (
        f"b.{of} [330.0, 0.0, 5.0, 5.0] has" in err and f"a.{of} [3.0, 4.0, 0.0, 5.0] has no area in" in err
    )
    results = json.loads((tmp_path / "new/poses.json").read_text())
    found = [(one["file_name"], one["box_xywh"], one["box_score"]) for one in results]
    assert found == [("12.png", BOXES[0].tolist(), 0.75), ("a.png", BOXES[1].tolist(), 0.125)]
    write_json(tmp_path / "other.json", boxes[-1:])
    (tmp_path / "clip.mp4").touch()
    for inputs in (str(tmp_path), str(tmp_path / "clip.mp4")):
        assert main(["predict", inputs, *command[2:], "--detections", str(tmp_path / "other.json")]) == 2
        assert "has no person's box in the pictures" in capsys.readouterr().err
    write_json(tmp_path / "other.json", [])
    assert main(["predict", str(tmp_path), *command[2:], "--detections", str(tmp_path / "other.json")]) == 2
    assert "other.json: has no person's box (category 1) at all; find" in capsys.readouterr().err
    write_json(tmp_path / "other.json", [boxes[0] | {"image_id": image_id(tmp_path / "clip.mp4") + 7}])
    assert main(
        ["predict", str(tmp_path / "clip.mp4"), *command[2:], "--detections", f"{tmp_path}/other.json"]
    )
    assert "has no frame that OpenCV can decode" in capsys.readouterr().err  # its boxes would do


def test_real_photographs_and_their_detections_are_evaluated_by_pycocotools(tmp_path, real_data, checkpoint):
    folder, new = real_data / "coco_test", tmp_path / "new"
    predict_files([folder], checkpoint, detections=folder / "test_coco_det_AP_H_56.json", output_dir=new)
    truth = COCO(folder / "test_coco.json")
    evaluation = COCOeval(truth, truth.loadRes(str(new / "poses.json")), "keypoints")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    results = json.loads((new / "poses.json").read_text())
    assert len(results) == len(json.loads((folder / "test_coco_det_AP_H_56.json").read_text()))
    assert evaluation.stats[0] >= 0 and len(list(new.glob("*.jpg"))) == 4


def test_category_of_other_keypoints_and_scores_of_a_detector(tmp_path, photograph, monkeypatch, capsys):
    def detector(name, device):
        assert name == "some/model"
        nobody = np.zeros((0, 4)), np.zeros(0)
        return SimpleNamespace(
            find=lambda images: [nobody if len(image) == 50 else (BOXES, SCORES) for image in images],
            at_once=3,
        )

    monkeypatch.setattr("hrnetpp_lib.app.photo.open_detector", detector)
    cv2.imwrite(str(tmp_path / "nobody.png"), IMAGE)
    path = tiny_checkpoint(tmp_path / "aic.safetensors", AIC14)
    command = ["predict", str(photograph), str(tmp_path / "nobody.png"), "--checkpoint", str(path)]
    options = ["--detector", "some/model", "--output-dir", str(tmp_path), "--runtime", "torch"]
    assert main([*command, *options]) == 0
    said, results = capsys.readouterr().out, json.loads((tmp_path / "poses.json").read_text())
    assert "nobody.png: no box of a person" in said and "aic14" in said and "category 1014" in said
    assert "boxes by some/model" in said and [result["box_score"] for result in results] == [0.9, 0.5]
    poses = predict(photograph, path, detector="some/model", runtime="torch")
    assert [r["score"] for r in results] == pytest.approx(rescore(poses.scores, SCORES))
    assert {(r["category_id"], r["keypoint_set"]) for r in results} == {(1014, "aic14")}
