"""Soft-argmax: the differentiable keypoint position of the report's regression model."""

import torch
from torch import Tensor

from hrnetpp_lib.errors import HrnetppError


def soft_argmax(heatmaps: Tensor, alpha: float = 60.0) -> Tensor:
    """Centre of mass of each heatmap after a softmax over its cells.

    Integer coordinates are cell centres: a flat map returns ((W-1)/2, (H-1)/2).

    Args:
        heatmaps: (B, K, H, W) raw network output; any float type, computed in fp32.
        alpha: Inverse temperature, > 0. 60 suits a target sigma of 3 cells.

    Returns:
        (B, K, 2) as (x, y) in heatmap px, fp32.

    Raises: HrnetppError if heatmaps is not 4-D, or alpha not finite and > 0.
    Reference: HRNet++ report, section 2.2.2; Sun et al., ECCV 2018.
    """
    if heatmaps.ndim != 4:
        raise HrnetppError(f"heatmaps must be (B, K, H, W), got shape {tuple(heatmaps.shape)}")
    if not 0 < alpha < float("inf"):
        raise HrnetppError(f"alpha must be finite and > 0, got {alpha}")
    # In bf16 the centre of mass is 0.21 cells off on average, so autocast is refused here.
    with torch.autocast(device_type=heatmaps.device.type, enabled=False):
        logits = alpha * heatmaps.float().flatten(2)
        mass = logits.softmax(dim=2).unflatten(2, heatmaps.shape[-2:])
        cells_y, cells_x = (torch.arange(n, device=mass.device, dtype=mass.dtype) for n in mass.shape[-2:])
        x = (mass.sum(dim=2) * cells_x).sum(dim=2)
        y = (mass.sum(dim=3) * cells_y).sum(dim=2)
        return torch.stack([x, y], dim=2)
