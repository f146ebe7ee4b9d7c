"""Decoding anew what a network has said: equal to the pipeline that predicts, and measured by hand."""

from dataclasses import asdict, replace

import numpy as np
import pytest
import torch

from hrnetpp_lib.data.crops import View
from hrnetpp_lib.evaluate.infer import TTA_VIEWS, predict
from hrnetpp_lib.explore.session import METHODS, TRUTH, Answer, Box, ask, compare
from hrnetpp_lib.model.hrnet import HRNet
from hrnetpp_lib.model.weights import ModelCard
from hrnetpp_lib.pose.geometry import UDP
from hrnetpp_lib.recipe import SMOKE

CARD = ModelCard(input_hw=(96, 64))
BOX = np.array([20.0, 10.0, 60.0, 100.0])


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    model = HRNet(num_keypoints=17, **asdict(SMOKE.network)).eval()
    with torch.no_grad():
        model.final_layer.weight *= 0.9 / model(torch.randn(1, 3, 96, 64)).max()  # hills as if trained
    return model


@pytest.fixture(scope="module")
def image():
    return np.random.default_rng(0).integers(0, 255, (130, 150, 3)).astype(np.uint8)


@pytest.mark.parametrize("flip", [True, False])
@pytest.mark.parametrize("views", [(View(),), TTA_VIEWS])
@pytest.mark.parametrize("decoder", ["quarter_offset", "soft_argmax"])
@pytest.mark.parametrize("coordinates", [CARD.coordinates, UDP], ids=lambda c: c.name)
def test_positions_are_those_of_predict(network, image, flip, views, decoder, coordinates):
    card = replace(CARD, decoder=decoder, coordinates=coordinates, alpha=20.0)
    answer = ask(network, card, image, BOX, views)
    method = METHODS[2] if decoder == "soft_argmax" else METHODS[1]
    found = answer.to_image(answer.positions(20.0, flip)[method])
    expected = predict(network, image, BOX[None], flip=flip, tta=views, card=card)[0]
    assert found == pytest.approx(expected[:, :2], abs=1e-3)
    assert answer.scores(flip) == pytest.approx(expected[:, 2], abs=1e-5)


def test_frames_go_both_ways_and_the_plain_view_is_shown(network, image):
    answer = ask(network, CARD, image, BOX, TTA_VIEWS)
    points = np.random.default_rng(1).uniform(0, 15, (17, 2))
    assert answer.to_heatmap(answer.to_image(points)) == pytest.approx(points)
    alone = ask(network, CARD, image, BOX)
    assert np.array_equal(answer.crops[0], alone.crops[0]) and answer.plain.shape == (5, 17, 24, 16)


def test_padding_is_the_crops_size_in_boxes(network, image):
    scales = {
        p: np.hypot(*ask(network, CARD, image, BOX, padding=p).matrices[0][:, 0]) for p in (1.0, 1.25, 2.0)
    }
    # The box of 60x100 px becomes 66.7x100 at 2:3; without padding that is the crop of 64x96.
    assert scales[1.0] == pytest.approx(0.96)
    assert scales[1.25] == pytest.approx(0.96 / 1.25) and scales[2.0] == pytest.approx(0.48)


def hill(x: float, y: float) -> Answer:
    """A single Gaussian for each of 17 keypoints on 24x16 cells, over a crop that is the image itself."""
    rows, columns = np.mgrid[:24, :16]
    maps = (
        torch.from_numpy(np.exp(-((columns - x) ** 2 + (rows - y) ** 2) / 8.0)).float().expand(1, 17, 24, 16)
    )
    crops = np.zeros((1, 96, 64, 3), np.uint8)
    return Answer(CARD, crops, np.array([[[1.0, 0, 0], [0, 1.0, 0]]]), maps, maps)


def test_rows_by_hand():
    answer = hill(7.4, 11.0)
    truth = np.zeros((17, 3))
    truth[9] = (4 * 7.4, 4 * 11.0, 2)
    truth[0] = (4 * 7.4, 4 * 11.0 + 8, 1)
    rows = compare(answer, Box(BOX, truth, area=900.0), 9, answer.positions(200.0, flip=False))
    assert [row.method for row in rows] == [*METHODS, TRUTH]
    assert rows[0].xy_heatmap.tolist() == [7, 11] and rows[1].xy_heatmap == pytest.approx([7.25, 11])
    assert rows[0].error_heatmap == pytest.approx(0.4) and rows[0].error_input == pytest.approx(1.6)
    sigma = CARD.skeleton.oks_sigmas
    similarity = np.exp(-(1.6**2) / (2 * sigma[9]) ** 2 / 900 / 2)
    nose = np.exp(-(1.6**2 + 8**2) / (2 * sigma[0]) ** 2 / 900 / 2)
    assert rows[0].similarity == pytest.approx(similarity) and rows[0].oks == pytest.approx(
        (similarity + nose) / 2
    )
    assert rows[3].xy_heatmap == pytest.approx([7.4, 11.0]) and rows[3].oks == 1


def test_without_truth_there_are_positions_only():
    answer = hill(3.0, 4.0)
    positions = answer.positions(60.0, flip=True)
    rows = compare(answer, Box(BOX), 5, positions)
    assert len(rows) == 3 and all(np.isnan([r.error_input, r.similarity, r.oks]).all() for r in rows)
    unlabelled = np.zeros((17, 3))
    unlabelled[3] = (10, 10, 2)
    rows = compare(answer, Box(BOX, unlabelled, 500.0), 5, positions)
    assert len(rows) == 3 and np.isnan(rows[0].similarity) and 0 <= rows[0].oks <= 1


def test_a_small_alpha_pulls_to_the_middle():
    answer = hill(3.0, 4.0)
    far = [np.hypot(*(answer.positions(a, False)[METHODS[2]][0] - (3, 4))) for a in (1.0, 5.0, 20.0, 60.0)]
    assert far == sorted(far, reverse=True) and far[0] > 4 and far[-1] < 0.1
