"""Soft-argmax: hand-computed forward and gradient, precision, and its bias."""

import math

import numpy as np
import pytest
import torch

from hrnetpp_lib.model.anatomy import soft_argmax_bias
from hrnetpp_lib.pose.softargmax import soft_argmax


def test_forward_by_hand():
    maps = torch.zeros(2, 3, 2, 4)
    maps[1, 2, 1, 3] = math.log(9.0)  # mass 9 against seven times 1
    keypoints = soft_argmax(maps, alpha=1.0)
    assert keypoints.shape == (2, 3, 2)
    assert torch.allclose(keypoints[0, 0], torch.tensor([1.5, 0.5]))
    # x: (9*3 + (0+1+2) + (0+1+2+3)) / 16, y: (9 + 3) / 16
    assert torch.allclose(keypoints[1, 2], torch.tensor([36 / 16, 12 / 16]))


def test_gradient_by_hand():
    maps = torch.tensor([[[[0.0, math.log(3.0) / 2, 0.0]]]], requires_grad=True)
    soft_argmax(maps, alpha=2.0)[0, 0, 0].backward()
    # mass (1, 3, 1)/5, x = 1; dx/dH_i = alpha * mass_i * (i - x)
    assert torch.allclose(maps.grad.flatten(), torch.tensor([-2 / 5, 0.0, 2 / 5]), atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_fp32_whatever_the_input_and_autocast(dtype):
    maps = torch.rand(2, 3, 5, 7).to(dtype)
    with torch.autocast("cpu", torch.bfloat16):
        inside = soft_argmax(maps, 60.0)
    assert inside.dtype == torch.float32
    assert torch.equal(inside, soft_argmax(maps.float(), 60.0))


def test_large_logits_do_not_overflow_and_constants_do_not_matter():
    maps = torch.zeros(1, 2, 5, 7)
    maps[0, :, 3, 6] = 1e4
    assert soft_argmax(maps, 60.0)[0, 0].tolist() == [6.0, 3.0]
    small = torch.rand(1, 2, 5, 7)
    assert torch.allclose(soft_argmax(small + 100, 5.0), soft_argmax(small, 5.0), atol=1e-3)


@pytest.mark.parametrize(("alpha", "sigma", "worst"), [(60, 3, 0.094), (60, 2, 0.25), (27, 2, 0.094)])
def test_bias_between_cells(alpha, sigma, worst):
    middle = {"centre_xy": (36.0, 48.0), "heatmap_hw": (97, 73)}  # so that the background pulls nowhere
    bias = soft_argmax_bias(alpha, sigma, np.linspace(-0.5, 0.5, 101), **middle)
    assert np.abs(bias).max() == pytest.approx(worst, abs=0.002)
    assert np.allclose(bias, -bias[::-1], atol=1e-3)  # odd in the phase, so zero on a cell


def test_weak_peaks_are_pulled_to_the_centre():
    off_centre = (35.5 + 14.5, 47.5)
    weak = soft_argmax_bias(60, 3, [0.0], peak=0.2, centre_xy=off_centre)[0]
    faint = soft_argmax_bias(60, 3, [0.0], peak=0.1, centre_xy=off_centre)[0]
    assert weak == pytest.approx(-0.12, abs=0.01)
    assert faint == pytest.approx(-8.9, abs=0.5)


def test_bad_input():
    with pytest.raises(ValueError, match="B, K, H, W"):
        soft_argmax(torch.zeros(3, 4, 5))
    with pytest.raises(ValueError, match="alpha"):
        soft_argmax(torch.zeros(1, 1, 2, 3), alpha=0)
