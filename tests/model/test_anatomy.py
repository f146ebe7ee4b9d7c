"""What can be measured without training: cost against figures found elsewhere, and three biases."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from hrnetpp_lib.errors import HrnetppError
from hrnetpp_lib.model import anatomy
from hrnetpp_lib.model.hrnet import HRNet
from hrnetpp_lib.pose.geometry import EXACT_SHIFT, OFFICIAL, UDP


@pytest.mark.parametrize("base_channels", [32, 48])
def test_parameters_and_macs(base_channels):
    cost = anatomy.measure_cost(base_channels)
    rounded = {name: tuple(round(value, 3) for value in row) for name, row in cost.items()}
    assert rounded == anatomy.REFERENCE_COST[base_channels]


def test_count_macs_by_hand_and_without_side_effects():
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.BatchNorm2d(4), nn.Upsample(scale_factor=2), nn.Flatten()
    )
    model.append(nn.Linear(4 * 6 * 10, 7))
    assert anatomy.count_macs(model, (6, 10)) == 3 * 5 * 4 * 3 * 9 + 4 * 6 * 10 * 7
    assert model.training and model[1].num_batches_tracked == 0
    assert model[0].weight.device.type == "cpu"
    with torch.device("meta"), pytest.raises(HrnetppError, match="multiples of 32"):
        anatomy.count_macs(HRNet(8, blocks_per_branch=1, modules=(1, 1, 1)), (48, 64))


@pytest.mark.parametrize("levels", [0, 1, 3])
def test_average_pooling_keeps_a_blob_in_its_place(levels):
    assert anatomy.downsampled_blob(levels, average=True)[1] == pytest.approx(0, abs=1e-9)
    moved = anatomy.downsampled_blob(levels, average=False)[1]
    assert moved == pytest.approx((2**levels - 1) / 2, abs=0.02)


@pytest.mark.parametrize(("alpha", "sigma", "worst"), [(60, 3, 0.094), (60, 2, 0.25), (27, 2, 0.094)])
def test_bias_between_cells(alpha, sigma, worst):
    phases = np.linspace(-0.5, 0.5, 101)  # around the map's middle, so that the background pulls nowhere
    bias = anatomy.soft_argmax_bias(alpha, sigma, phases, centre_xy=(35.5, 48))
    assert np.abs(bias).max() == pytest.approx(worst, abs=0.002)
    assert np.allclose(bias, -bias[::-1], atol=1e-3)  # odd in the phase, so zero between cells


@pytest.mark.parametrize(("peak", "pull", "within"), [(0.2, -0.12, 0.01), (0.1, -8.9, 0.5)])
def test_weak_peaks_are_pulled_to_the_centre(peak, pull, within):
    found = anatomy.soft_argmax_bias(60, 3, [0.0], peak, centre_xy=(35.5 + 14.5, 47.5))[0]
    assert found == pytest.approx(pull, abs=within)


@pytest.mark.parametrize(("peak", "share"), [(1.0, 1.0), (0.2, 0.768), (0.15, 0.242), (0.1, 0.029)])
def test_gradient_leaves_a_weak_peak(peak, share):
    found = anatomy.gradient_near_peak(peak)
    assert found == pytest.approx(share, abs=0.001)
    # The derivative of the centre of mass by hand: alpha * mass * distance to it.
    y, x = np.mgrid[:96, :72]
    mass = np.exp(60 * peak * np.exp(-((x - 36) ** 2 + (y - 48) ** 2) / 18))
    pull = mass * np.abs(x - (mass * x).sum() / mass.sum())
    assert found == pytest.approx(pull[46:51, 34:39].sum() / pull.sum(), abs=1e-4)


def test_a_flat_map_spreads_the_gradient_by_distance_alone():
    # Of 72 columns around 35.5 in 96 rows; near are columns 34 to 38 of five rows.
    near = 5 * (1.5 + 0.5 + 0.5 + 1.5 + 2.5)
    everywhere = 96 * 2 * sum(k + 0.5 for k in range(36))
    assert anatomy.gradient_near_peak(1e-6) == pytest.approx(near / everywhere, rel=1e-3)


UNSHIFTED = replace(OFFICIAL, flip_shift=0.0)


@pytest.mark.parametrize(
    ("coordinates", "bias"), [(OFFICIAL, 0.125), (EXACT_SHIFT, 0.0), (UDP, 0.0), (UNSHIFTED, -0.375)]
)
@given(x=st.floats(50, 140))
def test_bias_of_the_flip_test(coordinates, bias, x):
    assert anatomy.flip_test_bias(coordinates, x) == pytest.approx(bias, abs=1e-4)
