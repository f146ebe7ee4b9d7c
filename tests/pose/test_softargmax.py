"""Soft-argmax: hand-computed forward and gradient, and precision."""

import math

import pytest
import torch

from hrnetpp_lib.errors import HrnetppError
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


def test_bad_input():
    with pytest.raises(HrnetppError, match="B, K, H, W"):
        soft_argmax(torch.zeros(3, 4, 5))
    for alpha in 0, -60.0, math.nan, math.inf:
        with pytest.raises(HrnetppError, match="alpha must be finite and > 0"):
            soft_argmax(torch.zeros(1, 1, 2, 3), alpha)
