"""Losses in float64 against explicit sums."""

import pytest
import torch

from hrnetpp_lib.errors import HrnetppError
from hrnetpp_lib.model.losses import heatmap_mse, keypoint_l1

B, K, H, W = 2, 3, 5, 4


def test_heatmap_mse_and_its_gradient():
    generator = torch.Generator().manual_seed(0)
    pred = torch.rand(B, K, H, W, dtype=torch.float64, generator=generator, requires_grad=True)
    target = torch.rand(B, K, H, W, dtype=torch.float64, generator=generator)
    weight = torch.tensor([[1.0, 0.0, 0.5], [1.0, 1.0, 0.0]], dtype=torch.float64)
    loss = heatmap_mse(pred, target, weight[:, :, None])
    difference = (pred - target) * weight[:, :, None, None]
    expected = sum(0.5 * (difference[:, k] ** 2).sum().item() / (B * H * W) / K for k in range(K))
    assert loss.item() == pytest.approx(expected, abs=1e-14)
    loss.backward()
    by_hand = (pred - target).detach() * weight[:, :, None, None] ** 2 / (B * K * H * W)
    assert (pred.grad - by_hand).abs().max() < 1e-14


def test_keypoint_l1_divides_by_a_constant():
    pred = torch.zeros(B, K, 2, dtype=torch.float64)
    target = torch.ones(B, K, 2, dtype=torch.float64)
    target[0, 0] = torch.tensor([3.0, -5.0])
    weight = torch.zeros(B, K)
    weight[0, 0] = weight[1, 2] = 1
    assert keypoint_l1(pred, target, weight).item() == pytest.approx((3 + 5 + 1 + 1) / (B * K * 2))


def test_keypoint_l1_of_a_batch_is_the_mean_of_its_halves():
    pred, target = torch.rand(4, K, 2), torch.rand(4, K, 2)
    weight = torch.tensor([[1.0, 0, 0], [1, 1, 1], [0, 0, 0], [0, 1, 1]])
    halves = [keypoint_l1(pred[s], target[s], weight[s]) for s in (slice(0, 2), slice(2, 4))]
    assert torch.allclose(keypoint_l1(pred, target, weight), sum(halves) / 2)


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(HrnetppError, match=r"\(2, 3, 4, 5\), \(2, 3\)\] do not fit"):
        heatmap_mse(torch.zeros(B, K, H, W), torch.zeros(B, K, W, H), torch.ones(B, K))
    with pytest.raises(HrnetppError, match="do not fit"):
        keypoint_l1(torch.zeros(B, K, 2), torch.zeros(B, K, 2), torch.ones(K, B))
