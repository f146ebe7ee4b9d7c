"""Sentences about trainings: whatever the numbers are, they agree with them."""

import re
from dataclasses import replace

import numpy as np
import pytest
from data.test_overlap import A, B, tables
from hypothesis import given
from hypothesis import strategies as st

from hrnetpp_lib.evaluate import learning
from hrnetpp_lib.evaluate.infer import Predictions
from hrnetpp_lib.pose.keypoints import AIC14

METRIC = {"metric": "COCO AP", "boxes": "boxes.json"}
LOSSES = st.floats(1e-6, 10)
SHARES = st.floats(0, 1)


def pair(losses, val_losses, values):
    """The last epochs of two trainings."""
    ends = zip(("HRNet", "HRNet++"), losses, val_losses, values, strict=True)
    return {n: [{"epoch": 4, "loss": a, "val_loss": b, "value": c} | METRIC] for n, a, b, c in ends}


def hill(x: float, y: float, height: float = 1.0, sigma: float = 1.5) -> np.ndarray:
    ys, xs = np.mgrid[:24, :18]
    return height * np.exp(-((xs - x) ** 2 + (ys - y) ** 2) / (2 * sigma**2))


def test_losses_are_told_with_their_difference():
    made = pair((2e-3, 1.9e-3), (1e-3, 1.5e-3), (0.1, 0.2))
    training = "In this run HRNet++ ends at a training loss of 1.900e-03, 5.0% less than HRNet's 2.000e-03"
    on_val = "loss on val, where nothing is augmented, of 1.500e-03, 50.0% more than HRNet's 1.000e-03."
    assert learning.say_losses(made) == f"{training}, and at a {on_val}"
    assert learning.title_losses(made) == "HRNet++'s loss on val:\n50.0% higher at the end"
    level = pair((2e-3, 2.00001e-3), (1e-3, 1e-3), (0.1, 0.1))
    assert "2.000e-03, as HRNet's 2.000e-03, and" in learning.say_losses(level)
    assert learning.title_losses(level) == "HRNet++'s loss on val:\nthe same at the end"
    for epochs in made.values():  # of a run of an older version
        epochs[-1].pop("val_loss")
    assert learning.say_losses(made) == f"{training}."
    assert learning.title_losses(made) == "HRNet++'s training loss:\n5.0% lower at the end"


@given(st.tuples(LOSSES, LOSSES), st.tuples(SHARES, SHARES))
def test_whoever_is_ahead_is_said_to_be(losses, values):
    made = pair(losses, losses, values)
    said = learning.say_losses(made)
    ours, plain = (float(number) for number in re.findall(r"\d\.\d{3}e[+-]\d\d", said)[:2])
    assert ("less than" in said, "more than" in said, ", as HRNet" in said) == (
        *(ours < plain, ours > plain),
        ours == plain,
    )
    said = learning.say_metric(made)
    ours, plain = (float(number) for number in re.findall(r"(?:AP|HRNet at) (\d+\.\d)", said))
    ahead = "HRNet++" if ours > plain else "HRNet"
    end = f"{ahead} is ahead by {abs(ours - plain):.1f} points." if ours != plain else "the two are level."
    assert said.endswith(end) and learning.title_metric(made) == end[:-1]
    metrics = dict(zip(("HRNet", "HRNet++"), ({"AP": value} for value in values), strict=True))
    assert end in learning.say_stage_2(metrics, "boxes.json")
    assert "on boxes.json" in learning.say_stage_2(metrics, "boxes.json")
    assert "The report's step is +0.2" in learning.say_stage_2(metrics, "boxes.json")


@pytest.mark.parametrize(
    ("loss", "value", "verdict"),
    [
        (0.9, 0.4, "both still improved"),
        (0.9, 0.3, "only its loss still improved"),
        (1.1, 0.4, "only its COCO AP still improved"),
        (1.0, 0.3, "neither improved any more"),
        (0.998, 0.3, "neither improved any more"),
    ],
)
def test_what_still_improved_at_the_end(loss, value, verdict):
    epochs = [
        {"epoch": e, "value": v, "val_loss": x} | METRIC for e, v, x in ((8, 0.3, 1.0), (12, value, loss))
    ]
    epochs.insert(1, {"epoch": 9, "loss": 0.1})
    said = learning.say_end("HRNet++", epochs)
    assert said.startswith(
        "From epoch 8 to 12 HRNet++'s loss on val, where nothing is augmented, went 1.000e+00"
    )
    assert said.endswith(f"30.0 -> {100 * value:.1f}: {verdict}.")
    assert "nobody can say" in learning.say_end("HRNet++", epochs[:2])
    assert learning.title_end(epochs) == f"it ends at {100 * value:.1f}"


def test_a_second_hill_is_one_four_cells_away():
    assert learning.second_hill(hill(4, 5)) == pytest.approx(0, abs=0.01)
    assert learning.second_hill(hill(4, 5) + hill(13, 18, 0.6)) == pytest.approx(0.6, abs=0.01)
    assert learning.second_hill(hill(4, 5) + hill(6, 5, 0.9)) < 0.01
    assert learning.second_hill(np.zeros((4, 5))) == 0
    assert learning.spread_cells(hill(4, 5)) == 9 and learning.spread_cells(-np.ones((4, 5))) == 20


def snapshots(*epochs: list[np.ndarray]) -> list[dict]:
    """Maps of the second of two keypoints, person by person."""
    made = [np.stack([np.zeros((len(e), 24, 18)), np.stack(e)], axis=1) for e in epochs]
    return [{"epoch": 4 * (i + 1), "heatmaps": maps.astype(np.float16)} for i, maps in enumerate(made)]


def test_sharpening_tells_peak_width_and_hills_of_all_people():
    wide = hill(4, 5, 0.4, 3) + hill(14, 18, 0.3, 3)
    kept = snapshots([wide, wide, hill(4, 5, 0.5)], [hill(4, 5, 0.8)] * 2 + [hill(4, 5, 0.3)])
    said = learning.say_sharpening(kept, 1, "left wrist", 1.5)
    assert "over 3 people and from epoch 4 to 8" in said
    peak = float(re.search(r"left wrist rose, (\d\.\d\d) -> 0\.80,", said)[1])
    assert peak == pytest.approx(0.4, abs=0.01)
    width = int(re.search(r"half of it went (\d+) -> 9 cells \(a target's is 9\)", said)[1])
    assert width == learning.spread_cells(wide)
    assert said.endswith("stood in 2 of the first maps and 0 of the last.")
    still = learning.say_sharpening(kept[1:], 1, "left wrist", 1.5)
    assert "left wrist stayed, 0.80 -> 0.80, and the ground above half of it went 9 -> 9 cells" in still


def test_examples_are_the_sharpest_right_map_and_the_most_divided():
    maps = [hill(4, 5, 0.5), hill(12, 5, 0.9), hill(4, 5, 0.7), hill(4, 5) + hill(14, 18, 0.8)]
    truth = np.zeros((4, 2, 3))
    truth[:, 1] = [4 * 4 + 2, 4 * 5, 2]  # half a cell from the hill at (4, 5)
    assert learning.choose_examples(snapshots(maps[:3]), 1, truth[:3]) == {
        "sharpest": 2,
        "lowest peak": 0,
    }
    assert learning.choose_examples(snapshots(maps), 1, truth) == {"sharpest": 3, "lowest peak": 0}
    truth[3, 1, 2] = 0  # without a label nobody knows that it is right
    assert learning.choose_examples(snapshots(maps), 1, truth) == {"sharpest": 2, "most divided": 3}
    truth[:, 1, :2] = 0  # none is right: the nearest
    assert learning.choose_examples(snapshots(maps), 1, truth)["sharpest"] == 2


def test_maps_of_a_crop_count_those_near_the_truth():
    truth = np.array([[16.0, 20, 2], [16, 20, 1], [0, 0, 0]])
    said = learning.say_maps(np.stack([hill(5, 5), hill(10, 5), hill(1, 1)]), truth)
    assert "the peaks of 1 of the 2 labelled keypoints" in said and "median is 3.5 cells" in said


def test_a_persons_oks_is_that_of_the_most_confident_box():
    data = tables([[A, [1.0, 0, 10, 20], [80, 0, 9, 9]], [B]], [[A], [B]])
    truth = np.random.default_rng(0).uniform(0, 20, (2, 14, 3)).astype(np.float32)
    truth[:, :, 2] = 2
    people = replace(data.truth, keypoints=truth, areas=np.array([200.0, 200]))
    data = replace(data, truth=people, val=replace(data.val, bbox_scores=np.array([0.5, 0.8, 0.9, 0.4])))
    right = truth[[0, 0, 0, 1], :, :2].astype(float)
    wrong = right + 1000.0 * np.array([0, 1, 0, 0])[:, None, None]
    found = {
        n: Predictions(xy, np.ones((4, 14)), (64, 48)) for n, xy in (("HRNet", wrong), ("HRNet++", right))
    }
    rows, oks = learning.oks_of_persons(found, data)
    assert rows.tolist() == [1, 3] and len(AIC14) == 14
    np.testing.assert_allclose(oks["HRNet++"], [1, 1])
    np.testing.assert_allclose(oks["HRNet"], [0, 1], atol=1e-9)
    assert learning.say_oks(oks) == (
        "In this run, on 2 persons with a box, the median OKS is 100.0 for HRNet++ and 50.0 for HRNet; "
        "HRNet++ is nearer to the truth on 1 of them, HRNet on 0."
    )


def test_ranked_goes_from_the_best_to_the_worst():
    assert learning.ranked(np.array([0.1, 0.9, 0.5, 0.7, 0.3]), 3).tolist() == [1, 2, 0]
    assert learning.ranked(np.array([0.2, 0.4]), 4).tolist() == [1, 1, 0, 0]
