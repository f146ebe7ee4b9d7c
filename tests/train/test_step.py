"""One step: the learning rate's cosine, targets made from cells, and the stage's own loss."""

from dataclasses import asdict, replace

import numpy as np
import pytest
import torch

from hrnetpp_lib.model.hrnet import HRNet
from hrnetpp_lib.pose.heatmap import encode, locate
from hrnetpp_lib.recipe import SMOKE, STAGE2, STAGE3, resolve
from hrnetpp_lib.train.loop import TrainStep, batch_loss, learning_rate


def batch_of(cells: list[int], weights: list[list[float]]) -> dict[str, torch.Tensor]:
    """B = 2, K = 3, on maps of 5x4 cells."""
    return {
        "centres": torch.tensor(cells).view(2, 3, 2),
        "target_weight": torch.tensor(weights),
        "keypoints_heatmap": torch.full((2, 3, 2), 2.0),
        "keypoint_weight": torch.tensor([[1.0, 0, 0], [0, 0, 0]]),
    }


def test_learning_rate_is_a_cosine_between_its_ends():
    assert learning_rate(STAGE2, 0, 10) == pytest.approx(1e-3)
    assert learning_rate(STAGE2, 5, 10) == pytest.approx((1e-3 + 5e-5) / 2)
    assert learning_rate(STAGE2, 10, 10) == pytest.approx(5e-5)
    assert learning_rate(replace(STAGE2, lr_end=1e-3), 7, 10) == pytest.approx(1e-3)


def test_heatmap_stages_take_half_the_squared_error_to_the_gaussians():
    run = resolve(STAGE2, replace(SMOKE, heatmap_sigma=1.0))
    batch = batch_of([1, 2, 0, 0, 3, 4, 2, 2, 0, 3, 1, 1], [[1.0, 0, 1], [1, 1, 0]])
    heatmaps = torch.rand(2, 3, 5, 4, generator=torch.Generator().manual_seed(0))
    total = 0.0
    for b in range(2):
        for k in range(3):
            x0, y0 = batch.peaks[b, k].tolist()
            for y in range(5):
                for x in range(4):
                    near = abs(x - x0) <= 3 and abs(y - y0) <= 3
                    target = np.exp(-((x - x0) ** 2 + (y - y0) ** 2) / 2) if near else 0.0
                    error = heatmaps[b, k, y, x].item() - target
                    total += 0.5 * (batch.target_weight[b, k].item() * error) ** 2
    assert batch_loss(run, heatmaps, batch).item() == pytest.approx(total / (2 * 3 * 5 * 4), rel=1e-5)


def test_targets_of_a_batch_are_those_of_encode_to_the_last_digit():
    run = resolve(STAGE2, replace(SMOKE, input_hw=(96, 64), heatmap_sigma=2.5))
    rng = np.random.default_rng(3)
    points, labelled = rng.uniform(-30, 120, (7, 5, 2)), rng.random((7, 5)) < 0.8
    args = (run.profile.input_hw, run.profile.heatmap_hw, run.profile.heatmap_sigma)
    located = [locate(p, v, *args) for p, v in zip(points, labelled, strict=True)]
    batch = {
        "centres": torch.from_numpy(np.stack([centres for centres, _ in located])),
        "target_weight": torch.from_numpy(np.stack([weight for _, weight in located])),
    }
    target = np.stack([encode(p, v, *args)[0] for p, v in zip(points, labelled, strict=True)])
    assert batch_loss(run, torch.from_numpy(target), batch).item() == 0
    assert target.any(axis=(2, 3)).any() and not target.any(axis=(2, 3)).all()


def test_the_regression_stage_takes_the_distance_of_the_centre_of_mass():
    batch = batch_of([0] * 12, [[1.0] * 3] * 2)
    flat = batch_loss(resolve(STAGE3, SMOKE), torch.zeros(2, 3, 5, 4), batch)
    assert flat.item() == pytest.approx((abs(1.5 - 2) + abs(2 - 2)) / 12)  # centre (1.5, 2) against (2, 2)


def test_raw_crops_in_and_a_gradient_for_every_weight():
    run = resolve(STAGE2, SMOKE)
    model = HRNet(num_keypoints=5, **asdict(SMOKE.network))
    batch = {
        "image": torch.randint(0, 255, (2, 96, 64, 3), dtype=torch.uint8),
        "centres": torch.full((2, 5, 2), 7),
        "target_weight": torch.ones(2, 5),
    }
    TrainStep(model, run)(batch).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
