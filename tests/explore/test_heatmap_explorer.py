"""The heatmap explorer without a browser: every control changes what it should; mistakes become messages."""

import copy
import os
from datetime import UTC, datetime

import cv2
import numpy as np
import pytest

from hrnetpp_lib.explore.heatmap_explorer import HeatmapExplorer
from hrnetpp_lib.explore.session import Box
from hrnetpp_lib.model.weights import save_checkpoint


@pytest.fixture
def explorer(networks, table):
    return HeatmapExplorer(networks, table)


def shown(explorer) -> dict[str, object]:
    pictures = ("strip", "whole", "crop", "map", "marginals")
    return {name: getattr(explorer, name).png for name in pictures} | {"table": explorer.table.value}


def gesture(picture, kind, start, end=None):
    start, end = (np.asarray(place).tolist() for place in (start, start if end is None else end))
    picture.gesture = {"kind": kind, "from": start, "to": end, "number": picture.gesture["number"] + 1}


ALPHA, ALL = {"map", "marginals", "table"}, {"whole", "crop", "map", "marginals", "table"}
CHANGES = [("alpha", 3.0, ALPHA), ("blend", 0.1, {"crop"}), ("keypoint", 11, ALPHA | {"crop"})]
CHANGES += [("shape", "3-D", {"map"}), ("flip", False, ALL), ("tta", True, ALL), ("padding", 1.8, ALL)]
CHANGES += [("shift_x", 0.2, ALL), ("shift_y", -0.2, ALL), ("network", "two", ALL)]


@pytest.mark.parametrize(("control", "value", "changed"), CHANGES)
def test_each_control_changes_what_it_should(explorer, control, value, changed):
    explorer.keypoint.value = 9
    before, answer = shown(explorer), explorer.answer
    getattr(explorer, control).value = value
    after = shown(explorer)
    assert {name for name in after if after[name] != before[name]} == changed
    new_forward = control in ("tta", "padding", "shift_x", "shift_y", "network")
    assert (explorer.answer is not answer) == new_forward and not explorer.message.value


def test_a_click_picks_the_nearest_keypoint_of_the_networks_own_decoder_whatever_the_slider(explorer):
    explorer.alpha.value = 3.0
    for name, decoder in (("one", "quarter_offset"), ("two", "soft_argmax")):
        explorer.network.value = name
        assert np.array_equal(explorer._pose, explorer.answer.positions(60.0, True)[decoder])
    place = explorer.answer.to_image(explorer._pose)[13] / explorer._image.shape[1::-1]
    gesture(explorer.whole, "click", place)
    assert explorer.keypoint.value == 13
    gesture(explorer.crop, "click", explorer._pose[4] * 4 / (64, 96))
    assert explorer.keypoint.value == 4


def test_the_box_is_dragged_or_drawn_anew(explorer):
    size = np.array(explorer._image.shape[1::-1], float)
    x, y, w, h = before = explorer._shown_bbox.copy()
    inside = np.array([x + w / 2, y + h / 2]) / size
    gesture(explorer.whole, "drag", inside, inside + 0.05)
    gesture(explorer.whole, "drop", inside, inside + 0.1)
    assert explorer._shown_bbox == pytest.approx([x + 0.1 * size[0], y + 0.1 * size[1], w, h])
    gesture(explorer.whole, "drop", [0.01, 0.02], [0.2, 0.1])
    assert explorer._shown_bbox == pytest.approx([*(size * (0.01, 0.02)), *(size * (0.19, 0.08))])
    gesture(explorer.whole, "drop", [0, 0], [1, 1])  # json has no decimal point for corners
    assert explorer._shown_bbox == pytest.approx([0, 0, *size])
    gesture(explorer.strip, "click", [0.1, 0.5])
    assert explorer._shown_bbox == pytest.approx(before)
    gesture(explorer.whole, "drop", [0.5, 0.5], [9.0, -9.0])  # it cannot leave the picture
    x, y, w, h = explorer._shown_bbox
    assert (x + w / 2, y + h / 2) == pytest.approx((size[0], 0))


def test_on_a_picture_of_which_nothing_is_known_a_box_is_drawn(tmp_path, networks):
    explorer = HeatmapExplorer(networks, save_noise(tmp_path / "me.png", (900, 1200)))
    assert explorer._shown_bbox.tolist() == [0, 0, 1200, 900]
    gesture(explorer.whole, "drop", [0.25, 0.2], [0.5, 0.8])
    assert explorer._shown_bbox == pytest.approx([300, 180, 300, 540])
    explorer.shift_x.value = 0.1
    gesture(explorer.whole, "drop", [0.4, 0.5], [0.45, 0.5])
    assert explorer._shown_bbox == pytest.approx([390, 180, 300, 540])
    drawn = cv2.imdecode(np.frombuffer(explorer.whole.png, np.uint8), cv2.IMREAD_COLOR)
    assert drawn.shape[1] / drawn.shape[0] == pytest.approx(4 / 3, rel=0.02)
    for hw in ((3000, 1), (1, 2000), (1, 1)):  # without any height or width
        explorer.path.value = save_noise(tmp_path / f"{hw[0]}x{hw[1]}.png", hw)
        assert explorer._image.shape[:2] == hw and not explorer.message.value


def test_people_are_picked_in_the_strip_and_in_the_menu(explorer):
    before = shown(explorer)
    gesture(explorer.strip, "click", [0.9, 0.2])
    assert explorer._person == explorer.person.value == 1 and shown(explorer)["strip"] != before["strip"]
    explorer.shift_x.value, explorer.shift_y.value = 0.2, -0.1
    x, y, w, h = explorer._boxes[1].bbox_xywh
    assert explorer._shown_bbox == pytest.approx([x + 0.2 * w, y - 0.1 * h, w, h])
    explorer.person.value = 0
    assert explorer._person == 0 and explorer.shift_x.value == 0 and shown(explorer) == before


def test_a_drawn_box_meets_the_person_it_is_around_or_nobody(explorer):
    size = np.array(explorer._image.shape[1::-1], float)
    x, y, w, h = explorer._boxes[1].bbox_xywh
    outside = np.array([0.5, 0.5]) / size  # a drag that starts in the box would move it
    explorer._box = Box(np.array([x, y, 1.0, 1.0]))
    explorer._ask()
    gesture(explorer.whole, "drop", ((x + w) / size[0], y / size[1]), (x / size[0], (y + h) / size[1]))
    assert explorer._person == explorer.person.value == 1 and explorer._truth is explorer._boxes[1].truth
    gesture(explorer.whole, "drop", outside, 6 / size)
    assert explorer._truth is None and "not labelled" in explorer.table.value


def test_it_opens_on_the_best_labelled_person_and_knows_weak_networks_and_other_keypoints(table, networks):
    table.keypoints[0, np.flatnonzero(table.keypoints[0, :, 2])[:2]] = 0
    weak = copy.deepcopy(networks["two"])
    weak[0].final_layer.weight.data *= 1e-3
    explorer = HeatmapExplorer(networks | {"weak": weak}, table)
    assert explorer._person == 1 and "too weak" not in explorer.hint.value
    explorer.network.value = "weak"
    assert "too weak" in explorer.hint.value
    explorer.keypoint.value = 16
    explorer.network.value = "fourteen"  # other keypoints have their own menu and no truth
    assert [name for name, _ in explorer.keypoint.options][-1] == "neck" and explorer.keypoint.value == 13
    assert "–" in explorer.table.value
    explorer.network.value = "one"
    assert len(explorer.keypoint.options) == 17


def upload(explorer, name: str, content: bytes) -> None:
    """As ipywidgets brings files."""
    file = {"name": name, "type": "image/png", "size": len(content), "content": content}
    explorer.upload.value = (file | {"last_modified": datetime.now(UTC)},)


def save_noise(path, hw=(50, 40)) -> str:
    cv2.imwrite(str(path), np.random.default_rng(0).integers(0, 255, (*hw, 3), np.uint8))
    return str(path)


def test_own_pictures_by_path_and_upload_and_mistakes_become_messages(explorer, tmp_path):
    explorer.path.value = save_noise(tmp_path / "me.png")
    assert explorer.picture.options[-1][0] == "me.png" and explorer._image.shape == (50, 40, 3)
    upload(explorer, "up.png", (tmp_path / "me.png").read_bytes())
    assert explorer.picture.options[-1][0] == "up.png" and not explorer.message.value
    explorer.path.value = str(tmp_path / "nobody.png")
    assert "nobody.png" in explorer.message.value and len(explorer.picture.options) == 3
    upload(explorer, "up.png", b"no")
    assert "up.png" in explorer.message.value and len(explorer.picture.options) == 3
    explorer.picture.value = 0
    explorer.picture.value = 2  # the one before is still what it was
    assert explorer._image.shape == (50, 40, 3) and not explorer.message.value
    explorer.path.value = "/<u>/x.png"
    assert "&lt;u&gt;" in explorer.message.value
    explorer.path.value = f"'{tmp_path / 'me.png'}'"  # known already
    assert explorer.picture.value == 1 and len(explorer.picture.options) == 3
    save_noise(tmp_path / "you.png")
    (tmp_path / "zzz.png").write_bytes(b"torn, but not the first")
    explorer.path.value = str(tmp_path)
    names = ["dots.png", "me.png", "up.png", "you.png", "zzz.png"]
    assert [name for name, _ in explorer.picture.options] == names and not explorer.message.value


def test_a_network_by_its_path_is_chosen_and_mistakes_become_messages(explorer, networks, tmp_path):
    model, card = networks["two"]
    save_checkpoint(model, card, tmp_path / "mine.safetensors")
    (tmp_path / "text.onnx").write_text("no graph")
    before = shown(explorer)
    for name in ("gone.pth", "text.onnx"):
        explorer.file.value = str(tmp_path / name)
        assert name in explorer.message.value and shown(explorer) == before
    explorer.file.value = f'"{tmp_path / "mine.safetensors"}"'
    assert explorer.network.value == "mine.safetensors" and explorer.network.options[:2] == ("one", "two")
    assert explorer.answer.card == card and not explorer.message.value
    found = shown(explorer)
    explorer.network.value = "two"
    assert shown(explorer)["table"] == found["table"] != before["table"]


def test_what_cannot_be_read_is_a_message_and_changes_nothing(explorer, tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "torn.png").write_bytes(b"\x89PNG\r\n\x1a\n torn")
    (tmp_path / "text.jpg").write_text("no picture")
    before = shown(explorer)
    for path in ("pipe.png", "torn.png", "text.jpg", "x" * 5000, "\0"):
        explorer.path.value = str(tmp_path / path)
        assert explorer.message.value and shown(explorer) == before, path
    assert len(explorer.picture.options) == 1
    for name in ("b.png", "a.png"):
        explorer.path.value = save_noise(tmp_path / name)
    before = shown(explorer)
    (tmp_path / "b.png").unlink()
    explorer.picture.value = 1
    assert "b.png" in explorer.message.value and shown(explorer) == before


def test_real_photographs_open(networks, real_data):
    explorer = HeatmapExplorer(networks, real_data / "coco_test")
    assert len(explorer.picture.options) == 4
    for i in range(4):
        explorer.picture.value = i
    assert not explorer.message.value and "–" in explorer.table.value
