"""What is kept of a picture's poses, how they are shown, and the clip and json that they go to."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from hrnetpp_lib.app import poses as poses_module
from hrnetpp_lib.app.pictures import Frame
from hrnetpp_lib.app.poses import Poses, pose_files
from hrnetpp_lib.data.images import decode_image
from hrnetpp_lib.errors import HrnetppError
from hrnetpp_lib.pose.keypoints import AIC14, COCO17


def poses_of(image, skeleton=COCO17, persons=2) -> Poses:
    """Persons whose keypoints lie on a diagonal, the last with a box that is in doubt."""
    points = np.arange(len(skeleton), dtype=float)
    keypoints = np.stack([np.stack([points + 3 * n, points + 0.25], 1) for n in range(2)])[:persons]
    scores = np.full((persons, len(skeleton)), 0.5)
    scores[:, ::2] = 0.125
    boxes = np.array([[1.0, 2.0, 30.123456, 20.0]] * persons).reshape(-1, 4)
    return Poses(keypoints, scores, boxes, np.array([0.75, 0.25])[:persons], skeleton, image)


def test_scores_records_and_words_by_hand():
    poses = poses_of(np.zeros((40, 50, 3), np.uint8))
    assert poses.instance_scores == pytest.approx([0.375, 0.125])  # the box's by the mean of those above 0.2
    assert repr(poses) == "Poses(2 poses, 16 of 34 keypoints above 0.2, coco17)"
    first, second = poses.coco_results(77)
    assert (first["image_id"], first["category_id"], first["keypoint_set"]) == (77, 1, "coco17")
    assert first["keypoints"][:6] == [0, 0.25, 0.125, 1, 1.25, 0.5] and len(first["keypoints"]) == 51
    assert first["box_xywh"] == [1, 2, 30.12, 20] and first["box_score"] == 0.75
    assert second["score"] == pytest.approx(0.125)
    other = poses_of(poses.image, AIC14, 1).coco_results(3)[0]
    assert other["category_id"] == 1014 and len(other["keypoints"]) == 42
    json.dumps([first, second, other])


def test_it_shows_itself_and_draws_whom_it_is_sure_of(tmp_path):
    image = np.full((1200, 60, 3), 90, np.uint8)
    poses = poses_of(image)
    drawn = poses.draw()
    assert drawn.shape == image.shape and (image == 90).all()
    assert (drawn[2, 10:30] != 90).any() and (drawn != poses_of(image, persons=1).draw()).sum() == 0
    assert (poses.draw(threshold=0.9) != 90).sum() > 0  # boxes alone
    assert (poses_of(image, persons=0).draw() == 90).all()
    assert decode_image(poses._repr_png_(), "png").shape == (900, 45, 3)
    cv2.imwrite(str(tmp_path / "a.png"), image)
    np.testing.assert_array_equal(poses_of(tmp_path / "a.png").draw(), drawn)


def test_names_that_are_taken_and_clips_of_odd_size(tmp_path):
    image, wrong = np.full((45, 61, 3), 90, np.uint8), []
    inputs = [tmp_path / "a.jpg", tmp_path / "A.png", tmp_path / "a_poses.jpg"]
    inputs[2].write_bytes(b"somebody's")
    with pose_files(tmp_path, inputs, wrong.append) as files:
        for path in inputs[:2]:
            files.add(Frame(path, 1, image), poses_of(image))
        for path, frames in ((Path("b.avi"), 3), (Path("b.mov"), 2)):
            for number in range(frames):
                files.add(Frame(path, number, image, number, (0, 10.0)), poses_of(image, persons=number))
        files.add(Frame(Path("c.png"), 5, image), poses_of(image, persons=0))
    names = ["A_poses_3.jpg", "a_poses.jpg", "a_poses_2.jpg", "b_poses.mp4", "b_poses_2.mp4", "c_poses.jpg"]
    assert sorted(path.name for path in tmp_path.iterdir()) == [*names, "poses.json"] and not wrong
    assert inputs[2].read_bytes() == b"somebody's"
    clip = cv2.VideoCapture(str(tmp_path / "b_poses.mp4"))
    facts = [clip.get(key) for key in (cv2.CAP_PROP_FRAME_COUNT, cv2.CAP_PROP_FPS)]
    assert facts == [3, 10] and clip.read()[1].shape == (44, 60, 3)
    results = json.loads((tmp_path / "poses.json").read_text())
    assert [(one["file_name"], one.get("frame")) for one in results] == [
        *[("a.jpg", None)] * 2,
        *[("A.png", None)] * 2,
        ("b.avi", 1),
        *[("b.avi", 2)] * 2,
        ("b.mov", 1),
    ]


def test_a_picture_too_wide_for_a_jpeg_is_not_drawn_and_its_poses_are_kept(tmp_path):
    wide = np.zeros((2, 65501, 3), np.uint8)
    found = np.zeros((1, 17, 2)), np.ones((1, 17)), np.array([[0.0, 0, 9, 2]]), np.ones(1)
    said = []
    with pose_files(tmp_path, [Path("wide.png")], said.append) as files:
        files.add(Frame(Path("wide.png"), 5, wide), Poses(*found, COCO17, wide))
    assert [path.name for path in tmp_path.iterdir()] == ["poses.json"]
    (error,) = said
    assert str(error) == "wide.png: not drawn, its poses are written (OpenCV writes no .jpg of 65501x2 px)"
    assert len(json.loads((tmp_path / "poses.json").read_text())) == 1


def test_nothing_or_nobody_is_a_list_too_and_an_error_leaves_none(tmp_path):
    with pose_files(tmp_path, [], None):
        pass
    assert json.loads((tmp_path / "poses.json").read_text()) == []
    frame = Frame(Path("b.avi"), 0, np.zeros((48, 64, 3), np.uint8), 0, (0, 10.0))
    with pytest.raises(KeyError), pose_files(tmp_path / "new", [], None) as files:
        files.add(frame, poses_of(frame.pixels))
        raise KeyError
    assert list((tmp_path / "new").iterdir()) == []


def test_clips_that_cannot_be_written(tmp_path, monkeypatch, capfd):
    wide, wrong = np.zeros((4, 20_000, 3), np.uint8), []
    with pose_files(tmp_path, [], wrong.append) as files:
        for number in range(2):
            files.add(Frame(Path("b.avi"), number, wide, number, (0, 10.0)), poses_of(wide))
    assert len(json.loads((tmp_path / "poses.json").read_text())) == 4
    assert [str(error) for error in wrong] == [
        f"{tmp_path / 'b_poses.mp4'}: OpenCV writes no mp4 of 20000x4 px here; the poses are in poses.json"
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["poses.json"] and capfd.readouterr().err == ""
    image = np.zeros((48, 64, 3), np.uint8)
    monkeypatch.setattr(poses_module.draw, "paint_poses", lambda *_: np.zeros((6, 8, 3), np.uint8))
    with (
        pytest.raises(HrnetppError, match="b_poses.mp4: cannot be written whole"),
        pose_files(tmp_path, [], wrong.append) as files,
    ):
        files.add(Frame(Path("b.avi"), 0, image, 0, (0, 10.0)), poses_of(image))
