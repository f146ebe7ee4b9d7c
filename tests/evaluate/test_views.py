"""The flip test, TTA and the ensemble: measured by hand, and sentences that agree with their numbers."""

import re
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hrnetpp_lib.data.layout import Metric, StageData
from hrnetpp_lib.data.persons import PersonTable
from hrnetpp_lib.evaluate import views
from hrnetpp_lib.evaluate.infer import TTA_VIEWS, Predictions
from hrnetpp_lib.evaluate.table import METRICS, metrics_in_markdown
from hrnetpp_lib.model.weights import ModelCard
from hrnetpp_lib.pose.keypoints import COCO17

ROWS = [f"{name}{tta}" for name in ("heatmap", "regression", "ensemble") for tta in ("", " + TTA")]


def numbers(text: str) -> list[float]:
    return [float(number) for number in re.findall(r"[+-]?\d+\.\d+", text)]


def people(folder: Path, ids: list[int], boxes: list[list[float]], keypoints: np.ndarray) -> PersonTable:
    image_ids, image_index = np.unique(ids, return_inverse=True)
    files = np.array([f"{i}.png".encode() for i in image_ids])
    n, box = len(ids), np.array(boxes, float)
    hw = np.full((len(files), 2), 200, np.int32)
    columns = image_index, np.arange(n), box, np.ones(n), box[:, 2:].prod(axis=1), keypoints
    return PersonTable("made up", COCO17, folder, files, image_ids, hw, *columns, {})


@pytest.fixture
def data(tmp_path) -> StageData:
    """Three people with 2, 3 and 3 keypoints; the larger of the best labelled has two boxes, 1 and 2."""
    keypoints = np.zeros((3, 17, 3), np.float32)
    keypoints[0, :2], keypoints[1, :3], keypoints[2, [5, 6, 9]] = (9, 9, 2), (9, 9, 2), (60, 80, 2)
    truth = people(tmp_path, [4, 7, 7], [[0, 0, 90, 90], [5, 5, 20, 20], [40, 50, 60, 80]], keypoints)
    boxes = [[0, 0, 90, 90], [0, 0, 60, 60], [42, 50, 60, 80]]
    val = people(tmp_path, [4, 7, 7], boxes, np.zeros((3, 17, 3), np.float32))
    cv2.imwrite(str(tmp_path / "7.png"), np.full((200, 200, 3), 90, np.uint8))
    return StageData(truth, val, truth, Metric.COCO_AP, "made-up boxes")


def test_the_largest_of_the_best_labelled_people_is_shown_in_the_box_that_fits_best(data):
    assert views.largest_person(data) == (2, 2)


def test_views_of_a_box_by_hand(data, monkeypatch):
    """Five answers about a keypoint: 0, 3, 6, 9 and 12 px to the right of its label, whatever is seen."""
    label = data.truth.keypoints[2, :, :2].astype(float)
    found = np.stack([label + (3 * v, 0) for v in range(5)])
    said = Predictions(found, np.full((5, 17), 0.5), (128, 96))
    monkeypatch.setattr(views, "poses_of_crops", lambda *_: said)
    seen = views.look_at_box(None, ModelCard(input_hw=(128, 96)), data, box=2, person=2)
    assert seen.crops.shape == (6, 128, 96, 3) and seen.poses.shape == seen.truth.shape == (6, 17, 3)
    np.testing.assert_array_equal(seen.crops[-1], seen.crops[1])  # the plain view
    cell = 75 / 24  # the padded box of 60x80 px on 24 cells
    assert seen.error_cells[:, 5] == pytest.approx(np.array([0, 3, 6, 9, 12, 6]) / cell)
    assert seen.spread_cells[5] == pytest.approx(np.sqrt((36 + 9 + 0 + 9 + 36) / 5) / cell)
    assert np.isnan(seen.error_cells[:, 0]).all() and np.isnan(seen.spread_cells[0])  # not labelled
    # In every view the label is where the picture shows it: the same px per cell away from the answer.
    scale = 96 / 75 / np.array([view.scale for view in TTA_VIEWS])
    away = np.linalg.norm(seen.poses[:5, 5, :2] - seen.truth[:5, 5, :2], axis=1)
    assert away == pytest.approx([0, *(np.arange(1, 5) * 3 * scale[1:])])
    said = views.say_views(seen, COCO17.names)
    assert numbers(said)[:3] == [0.0, 3.84, 1.92] and "nearer than 2 of the five" in said
    assert said.endswith(f"left shoulder: {seen.spread_cells[5]:.2f} cells.")


@pytest.mark.parametrize(("mean", "word"), [(0.1, "each"), (0.35, "1"), (0.3, "2"), (0.9, "none")])
def test_a_mean_is_nearer_than_each_some_or_none(mean, word):
    errors = np.full((6, 17), np.nan)
    errors[:, 3] = 0.2, 0.3, 0.3, 0.35, 0.4, mean
    spread = np.where(np.arange(17) == 3, 1.0, np.nan)
    seen = SimpleNamespace(error_cells=errors, spread_cells=spread)
    assert f"nearer than {word} of the five" in views.say_views(seen, COCO17.names)


def test_flips_are_scored_without_and_with_each_shift(monkeypatch):
    monkeypatch.setattr(views, "predict_boxes", lambda model, card, boxes, flip=True: (flip, card))
    monkeypatch.setattr(
        views, "score", lambda found, data: {"AP": found[1].coordinates.flip_shift / 2 if found[0] else 0.1}
    )
    aps = views.score_flips(None, ModelCard(), SimpleNamespace(val=None))
    assert list(aps.values()) == [0.1, 0.0, 0.375, 0.5]
    assert list(aps) == ["no flip test", *(f"flip test, shift {shift}" for shift in ("0", "0.75", "1"))]
    said = views.say_flips(aps)
    assert [n for n in numbers(said) if n != 0.75] == [40.0, 27.5, -10.0]
    assert numbers(views.title_flips(aps)) == [40.0, 27.5]


def test_rows_are_scored_and_ensembles_are_averages(monkeypatch):
    one = {
        (name, tta): Predictions(np.full((2, 17, 2), x), np.ones((2, 17)), (128, 96))
        for (name, tta), x in {
            ("heatmap", False): 0.1,
            ("heatmap", True): 0.2,
            ("regression", False): 0.3,
            ("regression", True): 0.6,
        }.items()
    }
    monkeypatch.setattr(views, "score", lambda found, data: {"AP": found.keypoints.mean()})
    rows = views.score_rows(one, None)
    assert sorted(rows) == sorted(ROWS)
    assert [rows[name]["AP"] for name in ("ensemble", "ensemble + TTA")] == pytest.approx([0.2, 0.4])


@given(st.lists(st.floats(0, 1), min_size=36, max_size=36))
def test_steps_and_their_sentences_agree_with_the_table(values):
    rows = {name: dict(zip(METRICS, values[6 * i :], strict=False)) for i, name in enumerate(ROWS)}
    steps, table = views.measure_steps(rows), {}
    for line in metrics_in_markdown(rows).splitlines()[2:]:
        name, *cells = line.strip("| ").split(" | ")
        table[name] = dict(zip(METRICS, map(float, cells), strict=True))
    for step, (to, start) in views.STEPS.items():
        for metric, (here, _) in steps[step].items():
            assert here == pytest.approx(table[to][metric] - table[start][metric], abs=1e-6)
    said = views.say_tta(steps) + views.say_ensemble(steps)
    assert "-0.0" not in said and "+0.0" not in said
    one, two = steps["TTA, regression"], steps["TTA, ensemble"]
    told = [*one["AP"], *two["AP"], *one["AP50"], *two["AP50"], *one["APM"], *one["APL"]]
    told += [*steps["ensemble"]["AP"], *steps["ensemble, with TTA"]["AP"]]
    assert numbers(said) == pytest.approx(told, abs=0.051)
    title = views.title_steps(steps)
    assert numbers(title) == pytest.approx([steps[name]["AP"][0] for name in views.STEPS], abs=0.051)
    assert "-0.0" not in title and "+0.0" not in title


def test_the_reports_steps_are_those_of_its_table_and_a_metric_without_people_is_left_out():
    rows = {name: dict.fromkeys(METRICS, 0.5) | {"APM": -1.0} for name in ROWS}
    steps = views.measure_steps(rows)
    assert [steps[name]["AP"] for name in views.STEPS] == [(0, 0.2), (0, 0.3), (0, 0.0), (0, 0.1)]
    assert steps["TTA, regression"]["AP50"] == (0, -0.3) and "APM" not in steps["ensemble"]
    assert views.say_tta(steps).endswith("moved by 0.0 (report 0.0) for large ones.")
    assert " - |" in metrics_in_markdown(rows)
