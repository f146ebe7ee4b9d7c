"""What explorers accept: networks in several forms, tables, pictures and folders; and what they refuse."""

from dataclasses import asdict
from pathlib import Path

import cv2
import numpy as np
import pytest
from test_data import dotted_table

from hrnetpp_lib.errors import HrnetppError
from hrnetpp_lib.explore.session import (
    Box,
    Scene,
    best_labelled,
    best_match,
    open_networks,
    open_picture,
    open_scenes,
    thumbnails,
    whole_image_box,
)
from hrnetpp_lib.model.hrnet import HRNet
from hrnetpp_lib.model.weights import ModelCard, save_checkpoint
from hrnetpp_lib.recipe import SMOKE


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "stage3_x" / "model.safetensors"
    save_checkpoint(HRNet(**asdict(SMOKE.network)), ModelCard(input_hw=(64, 64), run="stage3_x"), path)
    return path


def test_networks_come_as_file_as_pair_or_by_name(checkpoint):
    assert list(open_networks(checkpoint)) == list(open_networks(str(checkpoint))) == ["stage3_x"]
    pair = open_networks(checkpoint)["stage3_x"]
    assert not pair[0].training and list(open_networks(pair)) == ["stage3_x"]
    assert list(open_networks({"a": checkpoint, "b": pair})) == ["a", "b"]


@pytest.mark.parametrize("nothing", [{}, None])
def test_no_network_names_the_smallest_command(nothing):
    with pytest.raises(HrnetppError, match="train --profile smoke"):
        open_networks(nothing)


def test_scenes_of_a_table_keep_rows_order_and_truth(tmp_path):
    table = dotted_table(tmp_path).select(np.zeros(3, int))
    table.bbox_scores[:] = (0.2, 0.9, 0.5)
    table.keypoints[2] = 0
    (scene,) = open_scenes(table)
    assert scene.rows == (1, 2, 0) and scene.name == "dots.png"
    assert [box.truth is None for box in scene.boxes] == [False, True, False]
    assert scene.boxes[0].area == 13000


def test_pictures_come_one_by_one_or_by_the_folder(tmp_path):
    for name in ("b.png", "a.jpg", "notes.txt"):
        cv2.imwrite(str(tmp_path / f"{name}.png"), np.zeros((8, 9, 3), np.uint8))
        (tmp_path / f"{name}.png").rename(tmp_path / name)
    assert [s.name for s in open_scenes(tmp_path)] == ["a.jpg", "b.png"]
    assert [s.name for s in open_scenes([tmp_path / "b.png", str(tmp_path / "a.jpg")])] == ["b.png", "a.jpg"]
    with pytest.raises(HrnetppError, match="c.png: no picture there"):
        open_scenes(tmp_path / "c.png")
    (tmp_path / "empty").mkdir()
    with pytest.raises(HrnetppError, match="empty"):
        open_scenes(tmp_path / "empty")


def test_an_upload_stays_in_its_folder_and_must_be_a_picture(tmp_path):
    data = cv2.imencode(".png", np.zeros((8, 9, 3), np.uint8))[1].tobytes()
    scenes = [open_picture(data, name, tmp_path) for name in ("../../me.png", "me.png", "x" * 300 + ".png")]
    assert scenes[0].name == scenes[1].name == "me.png" and len({scene.path for scene in scenes}) == 3
    assert all(tmp_path in scene.path.parents and scene.path.read_bytes() == data for scene in scenes)
    with pytest.raises(HrnetppError, match=r"^no.jpg"):
        open_picture(b"no picture", "no.jpg", tmp_path)


@pytest.mark.parametrize("path", ["~nobody-of-this-name/x.jpg", "x" * 5000, "x\0y.jpg"])
def test_paths_that_cannot_be_looked_at_are_refused(path):
    with pytest.raises(HrnetppError):
        open_scenes(path)


def test_the_best_labelled_person_is_found_across_pictures():
    def box(labelled: int) -> Box:
        return Box(
            np.array([0.0, 0, 9, 9]), np.repeat([[1.0, 1, 2], [0, 0, 0]], (labelled, 5 - labelled), axis=0)
        )

    scenes = [
        Scene("a", Path("a"), (box(2), box(4)), (7, 5)),
        Scene("b", Path("b"), (box(4), Box(np.array([0.0, 0, 9, 9]))), (3, 9)),
        Scene("c", Path("c")),
    ]
    assert [scene.best_labelled for scene in scenes] == [1, 0, 0]
    assert best_labelled(scenes) == 1  # of two with four labels the first row of the table
    assert best_labelled(scenes[2:]) == 0


def test_the_box_that_overlaps_most_by_hand():
    boxes = [Box(np.array(b, float)) for b in ([0, 0, 10, 10], [20, 0, 10, 10], [22, 0, 10, 10])]
    assert best_match(np.array([0.0, 0, 10, 5]), boxes) == 0  # 50 / 100
    assert best_match(np.array([23.0, 0, 10, 10]), boxes) == 2
    assert best_match(np.array([0.0, 8, 10, 10]), boxes) is None  # 20 / 180
    assert best_match(np.array([0.0, 8, 10, 10]), boxes, threshold=0.1) == 0


def test_thumbnails_frame_the_chosen_one():
    image = np.full((50, 80, 3), 99, np.uint8)
    assert whole_image_box(image).bbox_xywh.tolist() == [0, 0, 80, 50]
    strip = thumbnails(image, [whole_image_box(image)] * 3, chosen=1, height=40)
    assert strip.shape == (40, 90, 3)
    assert (strip[0, 30:60] == (240, 228, 66)).all() and not (strip[0, :30] == (240, 228, 66)).any()
