"""A network's figures by hand, and decoded in several ways as if it had been run for each."""

import zlib
from dataclasses import replace

import numpy as np
import pytest
import torch

from hrnetpp_lib.data.annotations import labelled_persons
from hrnetpp_lib.data.crops import TrainCrops, normalise
from hrnetpp_lib.data.layout import load_coco, prepare_data
from hrnetpp_lib.evaluate.infer import Predictions, predict_boxes
from hrnetpp_lib.evaluate.measure import decodings, measure, predict_ways
from hrnetpp_lib.evaluate.score import score
from hrnetpp_lib.model.hrnet import HRNet
from hrnetpp_lib.model.weights import ModelCard
from hrnetpp_lib.pose.geometry import EXACT_SHIFT
from hrnetpp_lib.pose.heatmap import encode
from hrnetpp_lib.recipe import SMOKE, Augmentation

PROFILE = replace(SMOKE, synthetic_persons=(6, 4, 14), holdout_persons=1)
HW, SIGMA = (64, 96), 1.5
STILL = Augmentation(scale_std=0, rotation_std_deg=0, flip_probability=0, half_body_probability=0)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return load_coco(PROFILE, prepare_data(PROFILE, tmp_path_factory.mktemp("data")))


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    model = HRNet(8, 17, blocks_per_branch=1, modules=(1, 1, 1), stem_channels=8, layer1_blocks=1)
    for parameter in model.parameters():
        parameter.data = 0.3 * torch.randn_like(parameter)
    return model


def test_all_ways_of_one_pass_are_those_of_a_pass_each(model, data):
    cards = decodings(ModelCard(input_hw=HW, alpha=7.0), SIGMA)
    assert list(cards) == [
        f"{way}{shift}" for shift in ("", "_exact") for way in ("quarter", "soft", "soft_scaled")
    ]
    assert [cards[name].alpha for name in ("soft", "soft_scaled")] == [60, 15]
    assert {name for name, card in cards.items() if card.coordinates is EXACT_SHIFT} == {*list(cards)[3:]}
    table = data.val.select(np.arange(5))
    found, _ = predict_ways(model, cards, table, SIGMA)
    for name, card in cards.items():
        alone = predict_boxes(model, card, table)
        assert np.array_equal(found[name].keypoints, alone.keypoints), name
        assert np.array_equal(found[name].scores, alone.scores) and found[name].input_hw == HW
    assert len({found[name].keypoints.tobytes() for name in cards}) == len(cards)


def test_the_loss_is_that_of_the_crops_as_they_are(model, data):
    table = labelled_persons(data.truth)
    _, loss = predict_ways(model, {"one": ModelCard(input_hw=HW)}, table, SIGMA)
    crops, total = TrainCrops(table, HW, SIGMA, STILL), 0.0
    for person in range(len(table)):
        sample = crops[person]
        with torch.no_grad():
            heatmaps = model.eval()(normalise(torch.as_tensor(sample.image)[None]))[0].numpy()
        points = sample.keypoints_heatmap * 4
        target, weight = encode(points, table.keypoints[person, :, 2] > 0, HW, heatmaps.shape[1:], SIGMA)
        total += 0.5 * np.square((heatmaps - target) * weight.reshape(-1, 1, 1)).mean()
    assert loss == pytest.approx(total / len(table), rel=1e-5)


def shifted(data, cells: float, persons: slice = slice(None)) -> Predictions:
    """True poses, those of some persons moved to the right by so many cells of their crops."""
    table = labelled_persons(data.truth)
    keypoints = table.keypoints[:, :, :2].astype(np.float64)
    boxes, moved = table.bboxes_xywh, np.zeros(len(table))
    # A crop is 1.25 times as wide as the box or, by the input's shape, as 1.5 times its height.
    moved[persons] = cells * (1.25 * np.maximum(boxes[:, 2], 1.5 * boxes[:, 3]) / (HW[1] / 4))[persons]
    keypoints[:, :, 0] += moved[:, None]
    return Predictions(keypoints, np.ones(keypoints.shape[:2]), HW)


def test_figures_by_hand(data):
    perfect = measure(shifted(data, 0.0), None, data)
    assert (perfect.oks, perfect.pck, perfect.near_error_cells, perfect.miss_share) == (1, (1, 1), 0, 0)
    assert perfect.metrics == {} and perfect.loss is None and (perfect.persons == 1).all()
    near = measure(shifted(data, 0.1), None, data, loss=0.5)
    assert near.pck == (1, 1) and near.loss == 0.5 and 0.5 < near.oks < 1
    if not near.miss_share:
        assert near.near_error_cells == pytest.approx(0.1)
    assert measure(shifted(data, 0.51), None, data).pck == (0, 1)
    lost = measure(shifted(data, 100.0), None, data)
    assert (lost.oks, lost.pck, lost.near_error_cells, lost.miss_share) == (0, (0, 0), None, 1)


def test_inversions_are_told_by_keypoint(data):
    table, right = labelled_persons(data.truth), shifted(data, 0.0)
    ankles, both = [15, 16], (table.keypoints[:, 15:, 2] > 0).all(axis=1)
    apart = np.linalg.norm(table.keypoints[:, 15, :2] - table.keypoints[:, 16, :2], axis=1) > 1
    assert measure(right, None, data).inversions == (0,) * 17
    crossed = right.keypoints.copy()
    crossed[:10, ankles] = crossed[:10, ankles[::-1]]
    found = measure(replace(right, keypoints=crossed), None, data).inversions
    wrong = (both & apart)[:10].sum()
    assert wrong > 2 and found[:15] == (0,) * 15
    assert found[15:] == pytest.approx(
        [wrong / (table.keypoints[:, k, 2] > 0).sum() for k in ankles], abs=1e-4
    )
    crossed[:10, ankles] += 1e4  # nearer to the partner, but nowhere near it
    assert measure(replace(right, keypoints=crossed), None, data).inversions == (0,) * 17


def test_persons_are_kept_one_by_one_in_a_byte_each(data):
    half = measure(shifted(data, 100.0, slice(0, 7)), None, data)
    assert half.persons.tolist() == [0.0] * 7 + [1.0] * 7 and half.oks == 0.5
    near = measure(shifted(data, 0.2), None, data)
    assert near.oks == pytest.approx(near.persons.mean(), abs=0.5 / 255) and len(np.unique(near.persons)) > 3
    assert len(zlib.decompress(near.oks_of_persons)) == 14


def test_the_dataset_s_metrics_are_of_the_detectors_boxes(model, data):
    found = predict_boxes(model, ModelCard(input_hw=HW), data.val)
    assert measure(shifted(data, 0.0), found, data).metrics == score(found, data)
