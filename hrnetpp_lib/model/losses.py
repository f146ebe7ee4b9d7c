"""The two losses: mean squared error of heatmaps (stages 1 and 2) and L1 of keypoints (stage 3)."""

from torch import Tensor

from hrnetpp_lib.errors import HrnetppError


def heatmap_mse(pred: Tensor, target: Tensor, target_weight: Tensor) -> Tensor:
    """Half the squared error of weighted heatmaps, a scalar, averaged over keypoints, batch and cells.

    Args:
        pred: (B, K, H, W) network output.
        target: (B, K, H, W) Gaussian targets.
        target_weight: (B, K) or (B, K, 1); multiplies both maps before squaring.

    Raises: HrnetppError if pred and target differ in shape, or the weights do not fit.
    Reference: official HRNet, JointsMSELoss with USE_TARGET_WEIGHT.
    """
    weight = _checked_weight(pred, target, target_weight)[:, :, None, None]
    return 0.5 * ((pred - target) * weight).square().mean()


def keypoint_l1(pred_xy: Tensor, target_xy: Tensor, target_weight: Tensor) -> Tensor:
    """Absolute error of x and y, a scalar, divided by B*K*2 however many keypoints are labelled.

    The constant makes the loss of a batch the mean of its parts' losses, on several processes too.

    Args:
        pred_xy: (B, K, 2) in heatmap px.
        target_xy: (B, K, 2) in heatmap px, not rounded.
        target_weight: (B, K) or (B, K, 1); 0 where unlabelled or outside the input.

    Raises: HrnetppError if pred_xy and target_xy differ in shape, or the weights do not fit.
    Reference: HRNet++ report, section 2.2.2.
    """
    weight = _checked_weight(pred_xy, target_xy, target_weight)[:, :, None]
    # CHOICE: the mean is over all keypoints, labelled or not; the report gives no normalisation.
    return ((pred_xy - target_xy).abs() * weight).mean()


def _checked_weight(pred: Tensor, target: Tensor, target_weight: Tensor) -> Tensor:
    """Target weight as (B, K)."""
    weight = target_weight[:, :, 0] if target_weight.ndim == 3 else target_weight
    if pred.shape != target.shape or weight.shape != pred.shape[:2]:
        shapes = [tuple(tensor.shape) for tensor in (pred, target, target_weight)]
        raise HrnetppError(f"prediction, target and weight of shapes {shapes} do not fit together")
    return weight
