"""The building blocks of HRNet and HRNet++: residual units, the exchange block, the sub-pixel head."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def conv2d(in_channels: int, out_channels: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, kernel, stride, padding=kernel // 2, bias=False)


def downsample(in_channels: int, out_channels: int, how: str, relu: bool, factor: int = 2) -> nn.Sequential:
    """Resolution / factor, then BN and maybe ReLU: the official strided conv, or one of its replacements."""
    if how == "strided":
        layers = [conv2d(in_channels, out_channels, 3, stride=2)]
    else:
        # An average over 2x2 cells is centred on them; a strided 3x3 is centred on the first of them.
        layers = [nn.AvgPool2d(factor), conv2d(in_channels, out_channels, 3 if how == "conv3x3" else 1)]
    layers.append(nn.BatchNorm2d(out_channels))
    return nn.Sequential(*layers, nn.ReLU(inplace=True)) if relu else nn.Sequential(*layers)


class SqueezeExcite(nn.Module):
    """Scales every channel by a gate in (0, 1) computed from the channel means (report, network)."""

    def __init__(self, channels: int, reduction: int):
        super().__init__()
        hidden = max(channels // reduction, 1)
        self.reduce = nn.Conv2d(channels, hidden, 1)
        self.expand = nn.Conv2d(hidden, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        means = x.mean(dim=(2, 3), keepdim=True)  # (B, C, 1, 1)
        return x * torch.sigmoid(self.expand(F.relu(self.reduce(means))))


class BasicBlock(nn.Module):
    """Residual unit of the branches: two 3x3 convs of equal width."""

    def __init__(self, channels: int):
        super().__init__()
        self.out_channels = channels
        self.conv1 = conv2d(channels, channels, 3)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = conv2d(channels, channels, 3)
        self.bn2 = nn.BatchNorm2d(channels)
        self.se = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        return self.relu(self.se(self.bn2(self.conv2(out))) + x)


class Bottleneck(nn.Module):
    """Residual unit of layer1: 1x1, 3x3, 1x1 to four times the width."""

    def __init__(self, in_channels: int, width: int):
        super().__init__()
        self.out_channels = 4 * width
        self.conv1 = conv2d(in_channels, width, 1)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = conv2d(width, width, 3)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = conv2d(width, 4 * width, 1)
        self.bn3 = nn.BatchNorm2d(4 * width)
        self.relu = nn.ReLU(inplace=True)
        self.se = nn.Identity()
        self.downsample = None
        if in_channels != 4 * width:
            self.downsample = nn.Sequential(conv2d(in_channels, 4 * width, 1), nn.BatchNorm2d(4 * width))

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        identity = x if self.downsample is None else self.downsample(x)
        return self.relu(self.se(self.bn3(self.conv3(out))) + identity)


class HighResolutionModule(nn.Module):
    """One exchange block: residual units on every branch, then fusion to the first `num_outputs` branches.

    Args:
        channels: Width of each branch, highest resolution first.
        blocks: Residual units per branch.
        num_outputs: Fused outputs; 0 leaves the branches as they are.
        downsampling: "strided", or one of VARIANTS["downsampling"].
    """

    def __init__(self, channels: Sequence[int], blocks: int, num_outputs: int, downsampling: str):
        super().__init__()
        self.branches = nn.ModuleList(
            nn.Sequential(*(BasicBlock(width) for _ in range(blocks))) for width in channels
        )
        self.fuse_layers = nn.ModuleList(
            nn.ModuleList(self._path(channels, j, i, downsampling) for j in range(len(channels)))
            for i in range(num_outputs)
        )
        self.relu = nn.ReLU(inplace=True)

    @staticmethod
    def _path(channels: Sequence[int], source: int, target: int, how: str) -> nn.Module | None:
        steps = target - source
        if steps == 0:
            return None
        if steps < 0:
            return nn.Sequential(
                conv2d(channels[source], channels[target], 1),
                nn.BatchNorm2d(channels[target]),
                nn.Upsample(scale_factor=2**-steps, mode="nearest"),
            )
        if how == "single_pool":
            return downsample(channels[source], channels[target], how, relu=False, factor=2**steps)
        widths = [channels[source]] * steps + [channels[target]]
        return nn.Sequential(
            *(downsample(a, b, how, relu=k < steps - 1) for k, (a, b) in enumerate(pairwise(widths)))
        )

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        features = [branch(x) for branch, x in zip(self.branches, features, strict=True)]
        if not self.fuse_layers:
            return features
        fused = []
        for paths in self.fuse_layers:
            terms = [x if path is None else path(x) for path, x in zip(paths, features, strict=True)]
            fused.append(self.relu(sum(terms[1:], start=terms[0])))
        return fused


class ProgressiveHead(nn.Module):
    """Decodes from the lowest resolution up, one factor of two at a time (report, network).

    Args:
        channels: Width of each branch, highest resolution first.
        how: One of VARIANTS["head"].
    """

    def __init__(self, channels: Sequence[int], how: str):
        super().__init__()
        pairs = list(pairwise(reversed(channels)))  # (8C, 4C), (4C, 2C), (2C, C)
        self.up = nn.ModuleList(self._upsampler(low, high, how) for low, high in pairs)
        self.concat = how != "sum"
        self.merge = nn.ModuleList(
            nn.Sequential(
                conv2d(2 * high if self.concat else high, high, 1),
                nn.BatchNorm2d(high),
                nn.ReLU(inplace=True),
            )
            for _, high in pairs
        )

    @staticmethod
    def _upsampler(low: int, high: int, how: str) -> nn.Sequential:
        if how == "nearest":
            return nn.Sequential(
                conv2d(low, high, 1), nn.BatchNorm2d(high), nn.ReLU(inplace=True), nn.Upsample(scale_factor=2)
            )
        # CHOICE: sub-pixel convs are 3x3 and start as nearest upsampling (ICNR); the report says neither.
        conv = conv2d(low, 4 * high, 1 if how == "subpixel_1x1" else 3)
        # BN after the shuffle: before it, the four phases of a cell would be normalised apart.
        return nn.Sequential(conv, nn.PixelShuffle(2), nn.BatchNorm2d(high), nn.ReLU(inplace=True))

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        x = features[-1]
        for up, merge, high in zip(self.up, self.merge, reversed(features[:-1]), strict=True):
            # CHOICE: a 1x1 conv after each concatenation goes back to the branch's width; not in the report.
            x = merge(torch.cat([up(x), high], dim=1) if self.concat else up(x) + high)
        return x

    @torch.no_grad()
    def start_as_nearest(self) -> None:
        """ICNR: the four phases of a cell start equal, so that sub-pixel starts as nearest upsampling."""
        for up in self.up:
            if isinstance(up[1], nn.PixelShuffle):
                up[0].weight.copy_(up[0].weight[::4].repeat_interleave(4, dim=0))
