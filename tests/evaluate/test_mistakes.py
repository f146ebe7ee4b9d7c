"""Kinds of errors: an example of each by its rule, and sentences that agree with their shares."""

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hrnetpp_lib.data.persons import PersonTable
from hrnetpp_lib.evaluate import mistakes
from hrnetpp_lib.evaluate.diagnose import LABELS, Diagnosis
from hrnetpp_lib.evaluate.metrics import ScoredPoses
from hrnetpp_lib.pose.keypoints import COCO17

GOOD, JITTER, INVERSION, SWAP, MISS = range(5)


@pytest.fixture
def found() -> Diagnosis:
    """Two people, in reversed order: jitter of 1, 2 and 30 px on different scales, a miss, the rest good."""
    labels = np.full((2, 17), GOOD)
    labels[0, [3, 4]], labels[1, 7], labels[1, 9], labels[1, 0] = JITTER, JITTER, MISS, -1
    error = np.where(labels == -1, np.nan, np.linspace(0, 0.16, 17))
    error[0, [3, 4]], error[1, 7], error[1, 9] = (1, 2), 30, 90
    return Diagnosis(np.array([1, 0]), np.array([5, 2]), labels, np.ones((2, 17)), error)


@pytest.fixture
def truth(tmp_path) -> PersonTable:
    keypoints = np.random.default_rng(0).uniform(0, 90, (2, 17, 3))
    boxes = np.array([[0.0, 0, 60, 80], [100, 50, 6, 8]])
    files, one, two = np.array([b"a.png", b"b.png"]), np.ones(2), np.array([0, 1])
    hw = np.full((2, 2), 300, np.int32)
    return PersonTable(
        *("made up", COCO17, tmp_path, files, two, hw, two, two, boxes, one, one, keypoints, {})
    )


def test_of_each_kind_the_median_error_in_cells_is_shown(found, truth):
    rng = np.random.default_rng(1)
    places, scores = rng.uniform(0, 90, (6, 17, 2)), rng.uniform(0, 1, (6, 17))
    poses = ScoredPoses(np.zeros(6), places, scores, np.ones(6))
    chosen = {one.kind: one for one in mistakes.pick_examples(found, truth, poses, (128, 96))}
    assert list(chosen) == ["good", "jitter", "miss"]  # what does not occur has no example
    # Cells are 75/24 px for person 0 and 7.5/24 for person 1: jitter of 3.2, 6.4 and 9.6 cells.
    jitter = chosen["jitter"]
    assert jitter.error_cells == pytest.approx(6.4) and jitter.keypoint == 4
    assert jitter.image == truth.image_path(1)
    np.testing.assert_array_equal(jitter.truth, truth.keypoints[1])
    np.testing.assert_array_equal(jitter.pose, np.column_stack([places[5], scores[5]]))
    assert jitter.frame_xywh == pytest.approx([99.25, 49, 7.5, 10])  # a quarter larger, around its middle
    assert chosen["miss"].error_cells == pytest.approx(90 * 24 / 75)
    np.testing.assert_array_equal(chosen["miss"].truth, truth.keypoints[0])
    assert mistakes.say_examples(list(chosen.values()), COCO17.names) == (
        f"In this run these keypoints are off by, in cells: good {chosen['good'].error_cells:.1f} "
        f"({COCO17.names[chosen['good'].keypoint].replace('_', ' ')}), jitter 6.4 (right ear), miss 28.8 "
        "(left wrist); of inversion and swap there is none."
    )


def test_the_best_and_the_worst_keypoint_by_hand(found):
    # Of two each: all good but the nose (one labelled), ears 3 and 4, elbow 7 and wrist 9.
    assert mistakes.title_keypoints(found, COCO17.names) == (
        "good most often: nose, 100%; least often: left ear, 50%"
    )


def test_shares_and_their_table_by_hand(found):
    shares = mistakes.share_kinds(found)
    assert list(shares) == list(LABELS)
    assert list(shares.values()) == pytest.approx([2900 / 33, 300 / 33, 0, 0, 100 / 33])
    last = mistakes.in_markdown({"heatmap": found}).splitlines()[-1]
    assert last == "| heatmap | 87.9 | 9.1 | 0.0 | 0.0 | 3.0 | 33 |"
    said = mistakes.say_kinds(shares, "heatmap")
    assert "87.9% of the heatmap model's" in said
    assert said.endswith("jitter 9.1%, miss 3.0%, inversion 0.0%, swap 0.0%.")


def test_who_finds_nobody_has_shares_errors_and_sentences_too(truth):
    nothing = np.zeros((0, 17))
    nobody = Diagnosis(np.zeros(0, int), np.zeros(0, int), nothing.astype(int), nothing, nothing)
    shares = mistakes.share_kinds(nobody)
    assert shares == dict.fromkeys(LABELS, 0.0)
    poses = ScoredPoses(np.zeros(0), np.zeros((0, 17, 2)), nothing, np.zeros(0))
    assert mistakes.pick_examples(nobody, truth, poses, (128, 96)) == []
    assert mistakes.say_change(shares, shares).endswith("no kind changed by a tenth of a point.")
    assert mistakes.title_keypoints(nobody, COCO17.names) == "nobody was found"
    assert mistakes.say_examples([], COCO17.names) == "In this run nobody was found, so there is no example."
    none = {"heatmap": np.zeros(0)}
    assert np.isnan(mistakes.median_errors(none)["heatmap"])
    assert "found anybody" in mistakes.say_precision(none)
    assert mistakes.title_precision(none) == "no network found anybody"


@given(st.lists(st.floats(0, 100), min_size=10, max_size=10))
def test_what_is_said_of_a_change_agrees_with_shares_of_one_digit(values):
    before, after = dict(zip(LABELS, values[:5], strict=True)), dict(zip(LABELS, values[5:], strict=True))
    said = mistakes.say_change(before, after)
    first, then = map(float, re.search(r"([\d.]+) -> ([\d.]+)%", said).groups())
    assert [f"{first:.1f}", f"{then:.1f}"] == [f"{before['jitter']:.1f}", f"{after['jitter']:.1f}"]
    assert f"could mend, {'fell' if then < first else 'rose' if then > first else 'stayed'} from" in said
    moved = {kind: round(round(after[kind], 1) - round(before[kind], 1), 1) for kind in LABELS}
    if largest := re.search(r"that of (\w+), ([+-][\d.]+) points", said):
        assert moved[largest[1]] == float(largest[2])
        assert abs(moved[largest[1]]) == max(map(abs, moved.values()))
        title = mistakes.title_kinds(before, after)
        assert title.endswith(f"{largest[1]} changed most, {largest[2]} points")
    else:
        assert not any(moved.values()) and "no kind" in mistakes.title_kinds(before, after)


@pytest.mark.parametrize(
    ("medians", "verdict"),
    [
        ((0.46, 0.48, 0.45), "the most precise is c."),
        ((0.46, 0.48, 0.461), "a and c are level."),
        ((0.46, 0.48, None), "the most precise is a."),
    ],
)
def test_the_most_precise_is_the_one_with_the_least_median(medians, verdict):
    errors = {
        name: np.array([] if value is None else [0.0, value, 9.0])
        for name, value in zip("abc", medians, strict=True)
    }
    said = mistakes.say_precision(errors)
    assert said.endswith(verdict)
    least = min(value for value in medians if value is not None)
    assert mistakes.title_precision(errors) == f"{verdict[:-1]}: half within {least:.2f} cells"
    known = [value for value in medians if value is not None]
    assert [float(n) for n in re.findall(r"\d\.\d\d", said)] == pytest.approx(known, abs=0.005)
