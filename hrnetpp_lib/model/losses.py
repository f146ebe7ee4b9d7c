"""The two losses: mean squared error of heatmaps (stages 1 and 2) and L1 of keypoints (stage 3)."""

from torch import Tensor


def heatmap_mse(pred: Tensor, target: Tensor, target_weight: Tensor) -> Tensor:
    """Half the squared error of weighted heatmaps, averaged over keypoints, batch and cells.

    Args:
        pred: (B, K, H, W) network output.
        target: (B, K, H, W) Gaussian targets.
        target_weight: (B, K) or (B, K, 1); multiplies both maps before squaring.

    Returns:
        Scalar.

    Raises:
        ValueError: If pred and target differ in shape, or the weights do not fit.

    Reference: official HRNet, JointsMSELoss with USE_TARGET_WEIGHT.
    """
    if pred.shape != target.shape:
        raise ValueError(f"pred {tuple(pred.shape)} and target {tuple(target.shape)} differ in shape")
    weight = _weight_like(target_weight, pred)[:, :, None, None]
    return 0.5 * ((pred - target) * weight).square().mean()


def keypoint_l1(pred_xy: Tensor, target_xy: Tensor, target_weight: Tensor) -> Tensor:
    """Absolute error of x and y, divided by the constant B*K*2 whatever the number of labelled keypoints.

    The constant makes the loss of a batch the mean of its parts' losses, on several processes too.

    Args:
        pred_xy: (B, K, 2) in heatmap px.
        target_xy: (B, K, 2) in heatmap px, not rounded.
        target_weight: (B, K) or (B, K, 1); 0 where unlabelled or outside the input.

    Returns:
        Scalar.

    Raises:
        ValueError: If pred_xy and target_xy differ in shape, or the weights do not fit.

    Reference: HRNet++ report, section 2.2.2.
    """
    if pred_xy.shape != target_xy.shape:
        raise ValueError(f"pred {tuple(pred_xy.shape)} and target {tuple(target_xy.shape)} differ in shape")
    weight = _weight_like(target_weight, pred_xy)[:, :, None]
    # CHOICE: the mean is over all keypoints, labelled or not; the report gives no normalisation.
    return ((pred_xy - target_xy).abs() * weight).mean()


def _weight_like(target_weight: Tensor, pred: Tensor) -> Tensor:
    """Target weight as (B, K)."""
    weight = target_weight[:, :, 0] if target_weight.ndim == 3 else target_weight
    if weight.shape != pred.shape[:2]:
        raise ValueError(f"target_weight {tuple(target_weight.shape)} does not fit {tuple(pred.shape)}")
    return weight
