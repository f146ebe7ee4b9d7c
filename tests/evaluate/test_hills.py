"""Hills of a heatmap, examples by their rules, and sentences that agree with their numbers."""

import re
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hrnetpp_lib.data.persons import PersonTable
from hrnetpp_lib.evaluate import hills
from hrnetpp_lib.model.weights import ModelCard
from hrnetpp_lib.pose.keypoints import COCO17


def hill(height: float, x: float, y: float) -> np.ndarray:
    ys, xs = np.mgrid[:32, :24]
    return height * np.exp(-((xs - x) ** 2 + (ys - y) ** 2) / 4.5)


def example(heatmap: np.ndarray, true_xy: tuple[float, float] = (9.5, 16)) -> hills.Landing:
    pose = np.zeros((17, 3))
    truth = pose.copy()
    truth[9] = 4 * true_xy[0], 4 * true_xy[1], 2
    heatmap = heatmap.astype(np.float32)
    seen = np.zeros((128, 96, 3), np.uint8), heatmap, truth, pose, np.array([4.0, 4.0])
    return hills.Landing("left wrist", 9, *seen, *hills.two_highest(heatmap))


def test_two_highest_by_hand():
    both = np.maximum(hill(0.8, 9, 16), hill(0.5, 9, 22))
    heights, apart = hills.two_highest(both)
    assert heights == pytest.approx((0.8, 0.5)) and apart == 6
    # One that is nearer than four cells is part of the first.
    beside = both.copy()
    beside[18, 11] = 0.79
    assert hills.two_highest(beside)[0] == pytest.approx((0.8, 0.5))
    assert hills.two_highest(np.eye(3, 5))[1] == 0 and hills.two_highest(np.eye(3, 5))[0] == (1, 0)
    low = np.full((32, 24), -1.0)
    low[16, 9] = 0.3
    assert hills.two_highest(low)[0] == pytest.approx((0.3, 0.0))  # a negative plain is no hill


def test_examples_are_chosen_by_their_rules(tmp_path, monkeypatch):
    """Of each of four people 5 keypoints are labelled; the maps are made up, the crops real."""
    keypoints = np.zeros((5, 17, 3), np.float32)
    keypoints[:4, :5] = 50, 60, 2  # the fifth person has no labels
    cv2.imwrite(str(tmp_path / "a.png"), np.full((150, 120, 3), 90, np.uint8))
    boxes = np.tile([10.0, 10, 60, 80], (5, 1))
    columns = np.zeros(5, np.int32), np.arange(5), boxes, np.ones(5), np.full(5, 4800.0), keypoints
    files, hw = np.array([b"a.png"]), np.array([[150, 120]], np.int32)
    table = PersonTable("made up", COCO17, tmp_path, files, np.array([1]), hw, *columns, {})
    # The label in the crop: 10 px right of and 10 below the box's middle, on 75 px for 24 cells.
    x, y = 12 + 10 * 24 / 75, 16 + 10 * 24 / 75
    maps = np.zeros((4, 17, 32, 24), np.float32)
    maps[:, :5] = hill(0.5, x + 3, y)  # three cells off, one hill
    maps[1, 2] = hill(0.9, x, y)  # right, one hill
    maps[1, 3] = np.maximum(hill(0.9, x, y), hill(0.3, x, y + 8))  # right, with another hill
    maps[2, 4] = np.maximum(hill(0.7, x + 3, y), hill(0.6, x - 6, y))  # two hills, high
    maps[3, 0] = np.maximum(hill(0.2, x + 3, y), hill(0.2, x - 6, y))  # two hills, low
    monkeypatch.setattr(hills, "forward", lambda model, crops, card: torch.from_numpy(maps))
    model, card = torch.nn.Identity(), ModelCard(input_hw=(128, 96), decoder="soft_argmax")
    sharp, two = hills.pick_examples(model, card, table)
    np.testing.assert_array_equal(sharp.heatmap, maps[1, 2])
    np.testing.assert_array_equal(two.heatmap, maps[2, 4])
    assert (sharp.name, sharp.keypoint, two.name) == ("right eye", 2, "right ear")
    assert two.heights == pytest.approx((0.7, 0.6), abs=0.05) and 8 <= two.apart <= 10
    assert sharp.crop.shape == (128, 96, 3) and sharp.true_xy == pytest.approx([15.2, 19.2], abs=1e-4)
    assert sharp.pose[2, :2] == pytest.approx(4 * sharp.places(60)["soft_argmax"])


def test_places_and_errors_by_hand():
    one = example(hill(0.8, 9.2, 16))
    places = one.places(alpha=60)
    assert places["arg_max"].tolist() == [9, 16] and places["quarter_offset"].tolist() == [9.25, 16]
    # Of two cells: 1 / (1 + exp(60 * 0.8 * (exp(-0.04 / 4.5) - exp(-0.64 / 4.5)))) = 0.0026 on the further.
    assert places["soft_argmax"] == pytest.approx([9.0026, 16], abs=2e-4)
    errors = one.errors(60)
    assert errors["arg_max"] == 0.5 and errors["quarter_offset"] == 0.25
    lines = hills.in_markdown(one, 60).splitlines()
    assert lines[2] == "| arg max | 9.00 | 16.00 | 0.50 |" and lines[-1] == "| label | 9.50 | 16.00 | |"


@given(st.floats(4, 20), st.floats(6, 26), st.floats(0.1, 1), st.floats(0, 1), st.floats(0, 23))
def test_what_is_said_of_positions_agrees_with_the_table(x, y, height, second, true_x):
    one = example(np.maximum(hill(height, x, y), hill(second, 23 - x, y)), (true_x, 16))
    said, rows = hills.say_positions(one, 60), hills.in_markdown(one, 60).splitlines()[2:5]
    table = {row.split(" | ")[0].strip("| "): float(row.split(" | ")[-1].strip("| ")) for row in rows}
    least, apart = map(float, re.findall(r"\d+\.\d\d", said))
    assert least == min(table.values())
    named = re.search(r"In this run (.+) comes? nearest", said)[1].split(" and ")
    assert named == [name for name, error in table.items() if error == least]
    assert ("the network's own" in said) == (apart < least)


def test_what_is_said_of_hills():
    assert hills.say_hills(example(hill(0.8, 9, 16))) == "In this run it has one hill, 0.800 high."
    said = hills.say_hills(example(np.maximum(hill(0.8, 9, 16), hill(0.4, 9, 24))))
    assert said.endswith("0.800 high, the next 0.400 (50% of it) and 8.0 cells away.")
    low = SimpleNamespace(heights=(0.3, 0.001), ratio=0, apart=5)
    assert hills.say_hills(low).endswith("one hill, 0.300 high.")


def test_what_is_said_of_alphas():
    said = hills.say_alphas({1: 7.3, 20: 0.161, 60: 2.04}, {1: 3.0, 20: 2.002, 60: 1.998}, 60)
    first, second = said.split(" on the first and ")
    assert "alpha 60, the dashed line, errs by 2.04 cells (the best, alpha 20, by 0.16)" in first
    assert second == "2.00 cells (no other alpha does better) on the second."


def test_the_softmax_that_is_spread_the_widest_is_that_of_a_peak_high_enough():
    maps = torch.zeros(4, 5, 6)
    maps[0, 1, 1] = 0.9  # one cell
    maps[1, 2, 2:5] = 0.5  # three
    maps[2, 3, 3:5] = 0.6  # two
    maps[3, :, :] = 0.4  # all, but low
    assert hills.most_spread(maps, 60.0) == 1
    assert hills.most_spread(maps[[0, 2, 3]], 60.0) == 1
