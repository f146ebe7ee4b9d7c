"""What one training step computes: learning rate, and the loss of a batch of raw crops."""

import math

import torch

from hrnetpp_lib.data import normalise
from hrnetpp_lib.heatmap import draw
from hrnetpp_lib.hrnet import HRNet
from hrnetpp_lib.losses import heatmap_mse, keypoint_l1
from hrnetpp_lib.recipe import Run, TrainStage
from hrnetpp_lib.softargmax import soft_argmax


def learning_rate(stage: TrainStage, step: int, steps: int) -> float:
    """Cosine from lr_start at step 0 to lr_end at the end (report, training)."""
    return stage.lr_end + (stage.lr_start - stage.lr_end) / 2 * (1 + math.cos(math.pi * step / steps))


def batch_loss(run: Run, heatmaps: torch.Tensor, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """The stage's loss of one batch.

    Args:
        run: Names the loss and the targets' sigma.
        heatmaps: (B, K, H, W) network output.
        batch: A collated batch of `data.TrainCrops`, on the same device.
    """
    if run.stage.loss == "heatmap_mse":
        weight = batch["target_weight"]
        target = draw(batch["centres"], weight, heatmaps.shape[-2:], run.profile.heatmap_sigma)
        return heatmap_mse(heatmaps.float(), target, weight)
    keypoints = soft_argmax(heatmaps, run.stage.alpha)
    return keypoint_l1(keypoints, batch["keypoints_heatmap"], batch["keypoint_weight"])


class TrainStep(torch.nn.Module):
    """Raw crops in, loss out: what is wrapped for several processes, for bf16, and for the compiler."""

    def __init__(self, model: HRNet, run: Run):
        super().__init__()
        self.model, self.run = model, run

    def forward(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        # Under bf16 the network leaves autocast before its last convolution: heatmaps and losses are fp32.
        return batch_loss(self.run, self.model(normalise(batch["image"])), batch)
