"""Facts about parts of HRNet++ that one can measure without training: cost, alignment, bias, gradient."""

import copy
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

_COST = {  # at 32 and at 48 base channels; convolutions and linear layers only
    "hrnet": ((28.536, 7.645, 17.201), (63.596, 15.692, 35.307)),
    "hrnet+se": ((28.966, 7.645, 17.202), (64.471, 15.693, 35.307)),
    "hrnet+avgpool": ((26.308, 7.208, 16.217), (58.681, 14.783, 33.263)),
    "hrnet+skips": ((28.955, 7.827, 17.612), (64.538, 16.102, 36.230)),
    "hrnet+head": ((30.114, 7.831, 17.620), (67.145, 16.110, 36.248)),
    "hrnetpp": ((28.734, 7.577, 17.047), (64.048, 15.613, 35.129)),
}
# Base channels -> architecture -> (million parameters, GMACs at 256x192, GMACs at 384x288), computed
# independently of this package, with 17 keypoints.
REFERENCE_COST = {c: {name: pair[i] for name, pair in _COST.items()} for i, c in enumerate((32, 48))}


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
    shapes = copy.deepcopy(model).to("meta")  # which carries shapes only
    for layer in shapes.modules():  # what neither multiplies nor changes a shape would take most of the time
        if isinstance(layer, (nn.BatchNorm2d, nn.ReLU)):
            layer.forward = nn.Identity().forward
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        shapes(torch.empty(1, 3, *input_hw, device="meta"))
    return counter.get_total_flops() // 2


def downsampled_blob(levels: int, average: bool) -> tuple[Tensor, float]:
    """A centred blob of 64x64 cells taken down `levels` octaves and back up by nearest upsampling.

    Down by 2x2 average pooling, or else by the centre tap of a strided 3x3 convolution. Returns the map that
    comes back, and how many of its cells its centre of mass has moved along x.
    """
    cells, centre = torch.arange(64, dtype=torch.float64), 31.5
    squared = (cells - centre) ** 2
    small = torch.exp(-(squared[:, None] + squared[None, :]) / (2 * 8.0**2))[None, None]
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
    centre_xy: Sequence[float] = (40, 40),
) -> np.ndarray:
    """How many cells soft-argmax misses a Gaussian by that lies between the cells of a 96x72 map, along x.

    Its sigma is in cells, its height is `peak`, its place is centre_xy, moved along x by each of the phases.
    Returns (len(phases),), positive towards larger x.
    """
    y, x = np.mgrid[:96, :72]
    true_x = centre_xy[0] + np.asarray(phases, np.float64)
    squared = (x - true_x[:, None, None]) ** 2 + (y - centre_xy[1]) ** 2
    heatmaps = torch.from_numpy(peak * np.exp(-squared / (2 * sigma**2)))[None]
    return soft_argmax(heatmaps, alpha)[0, :, 0].double().numpy() - true_x


def gradient_near_peak(peak: float, alpha: float = 60.0, sigma: float = 3.0, cells: int = 2) -> float:
    """Which share of soft-argmax's gradient lies at most so many cells from a Gaussian's peak, 0..1.

    The gradient of x with respect to the 96x72 heatmap, in absolute values; the peak, of that height and of
    sigma cells, is on cell (36, 48).
    """
    y, x = np.mgrid[:96, :72]
    heatmap = torch.from_numpy(peak * np.exp(-((x - 36) ** 2 + (y - 48) ** 2) / (2 * sigma**2)))
    heatmap = heatmap[None, None].requires_grad_()
    soft_argmax(heatmap, alpha)[0, 0, 0].backward()
    gradient = heatmap.grad[0, 0].abs()
    near = (np.abs(x - 36) <= cells) & (np.abs(y - 48) <= cells)
    return float(gradient[torch.from_numpy(near)].sum() / gradient.sum())


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
