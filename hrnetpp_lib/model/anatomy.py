"""Facts about the parts of HRNet++ that one can measure without training: cost, alignment, bias."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from hrnetpp_lib.model.hrnet import HRNet
from hrnetpp_lib.pose.geometry import PixelConvention
from hrnetpp_lib.pose.heatmap import flip_back
from hrnetpp_lib.pose.softargmax import soft_argmax
from hrnetpp_lib.recipe import ABLATIONS

# Base channels -> architecture -> (million parameters, GMACs at 256x192, GMACs at 384x288), computed
# independently of this package, with 17 keypoints; convolutions and linear layers only.
REFERENCE_COST = {
    32: {
        "hrnet": (28.536, 7.645, 17.201),
        "hrnet+se": (28.966, 7.645, 17.202),
        "hrnet+avgpool": (26.308, 7.208, 16.217),
        "hrnet+skips": (28.955, 7.827, 17.612),
        "hrnet+head": (30.114, 7.831, 17.620),
        "hrnetpp": (28.734, 7.577, 17.047),
    },
    48: {
        "hrnet": (63.596, 15.692, 35.307),
        "hrnet+se": (64.471, 15.693, 35.307),
        "hrnet+avgpool": (58.681, 14.783, 33.263),
        "hrnet+skips": (64.538, 16.102, 36.230),
        "hrnet+head": (67.145, 16.110, 36.248),
        "hrnetpp": (64.048, 15.613, 35.129),
    },
}


def measure_cost(base_channels: int) -> dict[str, tuple[float, float, float]]:
    """What `REFERENCE_COST` says of one width, 32 or 48, as measured here."""
    cost = {}
    for architecture in ABLATIONS:
        with torch.device("meta"):
            model = HRNet(base_channels, **architecture.switches)
        millions = sum(p.numel() for p in model.parameters()) / 1e6
        macs = (count_macs(model, input_hw) / 1e9 for input_hw in ((256, 192), (384, 288)))
        cost[architecture.name] = (millions, *macs)
    return cost


def count_macs(model: nn.Module, input_hw: tuple[int, int]) -> int:
    """Multiply-accumulates of the convolutions and linear layers for one image (3, h, w).

    Official "GFLOPs" are this number / 2^30; the GMACs of most papers are this number / 10^9.
    """
    # The meta device carries shapes only, and the network stays as it is.
    state = {name: tensor.to("meta") for name, tensor in model.state_dict().items()}
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        torch.func.functional_call(model, state, torch.empty(1, 3, *input_hw, device="meta"))
    return counter.get_total_flops() // 2


def downsampled_blob(levels: int, average: bool, size: int = 64) -> tuple[Tensor, float]:
    """A centred blob taken down `levels` octaves and back up by nearest upsampling.

    Args:
        levels: How often resolution is halved.
        average: 2x2 average pooling if true, else the centre tap of a strided 3x3 convolution.
        size: Side of the square map; a multiple of 2**levels.

    Returns:
        The (size, size) map that comes back, and how many of its cells its centre of mass has moved along x.
    """
    centre = (size - 1) / 2
    cells = torch.arange(size, dtype=torch.float64)
    squared = (cells - centre) ** 2
    small = torch.exp(-(squared[:, None] + squared[None, :]) / (2 * (size / 8) ** 2))[None, None]
    for _ in range(levels):
        # A stride-2, padding-1 3x3 kernel is centred on input cell 2*i: its middle tap reads just that cell.
        small = F.avg_pool2d(small, 2) if average else small[..., ::2, ::2]
    back = F.interpolate(small, scale_factor=2**levels, mode="nearest")[0, 0]
    return back, float((back.sum(dim=0) * cells).sum() / back.sum()) - centre


def soft_argmax_bias(
    alpha: float,
    sigma: float,
    phases: Sequence[float],
    peak: float = 1.0,
    centre_xy: tuple[float, float] = (40.0, 40.0),
    heatmap_hw: tuple[int, int] = (96, 72),
) -> np.ndarray:
    """How far soft-argmax misses a Gaussian peak that lies between cells.

    Args:
        alpha: Inverse temperature.
        sigma: Of the peak, in cells.
        phases: Sub-cell shifts of the peak along x, in cells.
        peak: Height of the Gaussian.
        centre_xy: Whole cell that the phases are counted from.
        heatmap_hw: Size of the map in cells.

    Returns:
        (len(phases),) x error in cells; positive is towards larger x.
    """
    y, x = np.mgrid[: heatmap_hw[0], : heatmap_hw[1]]
    true_x = centre_xy[0] + np.asarray(phases, np.float64)
    squared = (x - true_x[:, None, None]) ** 2 + (y - centre_xy[1]) ** 2
    heatmaps = torch.from_numpy(peak * np.exp(-squared / (2 * sigma**2)))[None]
    return soft_argmax(heatmaps, alpha)[0, :, 0].double().numpy() - true_x


def flip_test_bias(
    coordinates: PixelConvention, x_input: float, input_hw: tuple[int, int] = (256, 192), sigma: float = 2.0
) -> float:
    """How many cells averaging with the mirrored crop moves the keypoint of a perfect network to the right.

    That network draws a Gaussian (sigma in cells) just where the keypoint (x_input, in input px) is, in the
    crop and in its mirror image; what counts is the averaged map's centre of mass.
    """
    stride = coordinates.stride_xy(input_hw)[0]
    cells = torch.arange(input_hw[1] // 4, dtype=torch.float64)

    def network(x: float) -> Tensor:
        return torch.exp(-((cells - x / stride) ** 2) / (2 * sigma**2))[None, None, None]

    mirrored = flip_back(network(input_hw[1] - 1 - x_input), (), coordinates.flip_shift)
    average = ((network(x_input) + mirrored) / 2).flatten()
    return float((average * cells).sum() / average.sum() - x_input / stride)
