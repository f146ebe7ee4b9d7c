"""HRNet and its HRNet++ changes, from the blocks to the network: one network, four switches::

    image -> stem (1/4) -> layer1 -> stage2 -> stage3 -> stage4 -> heatmaps (1/4)

    branch 0  1/4    C   [m1] -> [m2 m3 m4 m5] -> [m6 m7 m8] -> final 1x1
    branch 1  1/8   2C   [m1] -> [m2 m3 m4 m5] -> [m6 m7 m8]
    branch 2  1/16  4C           [m2 m3 m4 m5] -> [m6 m7 m8]
    branch 3  1/32  8C                            [m6 m7 m8]

Each m is an HR module: residual units on every branch, then every branch receives the sum of all others.
With all switches off, parameter names and order are those of the official pose checkpoints.
"""

import re
from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from typing import Annotated, Literal, get_type_hints

import msgspec
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hrnetpp_lib.errors import HrnetppError
from hrnetpp_lib.recipe import ARCHITECTURES, get_architecture

Width = Annotated[int, msgspec.Meta(ge=1, le=2048)]  # channels
Depth = Annotated[int, msgspec.Meta(ge=1, le=32)]  # units or modules, one after the other


def conv_bn(in_channels: int, out_channels: int, kernel: int, stride: int = 1) -> list[nn.Module]:
    """A conv without bias and its BN; official key names count or name the two."""
    conv = nn.Conv2d(in_channels, out_channels, kernel, stride, padding=kernel // 2, bias=False)
    return [conv, nn.BatchNorm2d(out_channels)]


def downsample(in_channels: int, out_channels: int, how: str, relu: bool, factor: int = 2) -> nn.Sequential:
    """Resolution / factor, then BN and maybe ReLU: the official strided conv, or one of its replacements."""
    if how == "strided":
        layers = conv_bn(in_channels, out_channels, 3, stride=2)
    else:
        # An average over 2x2 cells is centred on them; a strided 3x3 is centred on the first of them.
        layers = [nn.AvgPool2d(factor), *conv_bn(in_channels, out_channels, 3 if how == "conv3x3" else 1)]
    return nn.Sequential(*layers, *([nn.ReLU(inplace=True)] if relu else []))


def without_autocast(x: Tensor) -> torch.autocast:
    """A context in which x's device computes in the precision of what it is given."""
    return torch.autocast("cpu" if x.is_meta else x.device.type, enabled=False)  # meta knows no autocast


class SqueezeExcite(nn.Module):
    """Scales every channel by a gate in (0, 1) computed from the channel means (report, network)."""

    def __init__(self, channels: int, reduction: int):
        super().__init__()
        hidden = max(channels // reduction, 1)
        self.reduce = nn.Conv2d(channels, hidden, 1)
        self.expand = nn.Conv2d(hidden, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        # A quotient of sums is x.mean() to the bit, but its gradient is one number a channel, not a map.
        means = x.sum(dim=(2, 3), keepdim=True) / (x.shape[2] * x.shape[3])  # (B, C, 1, 1)
        with without_autocast(x):  # casts would take longer than these tiny convs
            gate = torch.sigmoid(self.expand(F.relu(self.reduce(means.to(self.reduce.weight.dtype)))))
        return x * gate.to(x.dtype)


class BasicBlock(nn.Module):
    """Residual unit of the branches: two 3x3 convs of equal width."""

    def __init__(self, channels: int):
        super().__init__()
        self.out_channels = channels
        self.conv1, self.bn1 = conv_bn(channels, channels, 3)
        self.conv2, self.bn2 = conv_bn(channels, channels, 3)
        self.relu, self.se = nn.ReLU(inplace=True), nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        return self.relu(self.se(self.bn2(self.conv2(out))) + x)


class Bottleneck(nn.Module):
    """Residual unit of layer1: 1x1, 3x3, 1x1 to four times the width."""

    def __init__(self, in_channels: int, width: int):
        super().__init__()
        self.out_channels = out = 4 * width
        self.conv1, self.bn1 = conv_bn(in_channels, width, 1)
        self.conv2, self.bn2 = conv_bn(width, width, 3)
        self.conv3, self.bn3 = conv_bn(width, out, 1)
        self.relu, self.se = nn.ReLU(inplace=True), nn.Identity()
        self.downsample = None if in_channels == out else nn.Sequential(*conv_bn(in_channels, out, 1))

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        identity = x if self.downsample is None else self.downsample(x)
        return self.relu(self.se(self.bn3(self.conv3(out))) + identity)


class HighResolutionModule(nn.Module):
    """HR module: residual units on every branch, then fusion to the first `num_outputs`, or none if 0."""

    def __init__(self, channels: Sequence[int], blocks: int, num_outputs: int, downsampling: str):
        super().__init__()
        units = (nn.Sequential(*(BasicBlock(width) for _ in range(blocks))) for width in channels)
        self.branches = nn.ModuleList(units)
        self.fuse_layers = nn.ModuleList(
            nn.ModuleList(self._path(channels, j, i, downsampling) for j in range(len(channels)))
            for i in range(num_outputs)
        )
        self.relu = nn.ReLU(inplace=True)

    @staticmethod
    def _path(channels: Sequence[int], source: int, target: int, how: str) -> nn.Module | None:
        steps, start, end = target - source, channels[source], channels[target]
        if steps == 0:
            return None
        if steps < 0:
            return nn.Sequential(*conv_bn(start, end, 1), nn.Upsample(scale_factor=2**-steps))
        if how == "single_pool":
            return downsample(start, end, how, relu=False, factor=2**steps)
        widths = pairwise([start] * steps + [end])
        return nn.Sequential(*(downsample(a, b, how, relu=k < steps - 1) for k, (a, b) in enumerate(widths)))

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
    """Decodes from the lowest resolution up, one factor of two at a time (report, network)."""

    def __init__(self, channels: Sequence[int], how: str):
        super().__init__()
        pairs = list(pairwise(reversed(channels)))  # (8C, 4C), (4C, 2C), (2C, C)
        self.up = nn.ModuleList(self._upsampler(low, high, how) for low, high in pairs)
        self.concat = how != "sum"
        self.merge = nn.ModuleList(
            nn.Sequential(*conv_bn(2 * high if self.concat else high, high, 1), nn.ReLU(inplace=True))
            for _, high in pairs
        )

    @staticmethod
    def _upsampler(low: int, high: int, how: str) -> nn.Sequential:
        if how == "nearest":
            return nn.Sequential(*conv_bn(low, high, 1), nn.ReLU(inplace=True), nn.Upsample(scale_factor=2))
        # CHOICE: sub-pixel convs are 3x3 and start as nearest upsampling (ICNR); the report says neither.
        conv = conv_bn(low, 4 * high, 1 if how == "subpixel_1x1" else 3)[0]
        # BN after the shuffle: before it, the four phases of a cell would be normalised apart.
        return nn.Sequential(conv, nn.PixelShuffle(2), nn.BatchNorm2d(high), nn.ReLU(inplace=True))

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        x = features[-1]
        for up, merge, high in zip(self.up, self.merge, reversed(features[:-1]), strict=True):
            # CHOICE: a 1x1 conv after each concatenation goes back to the branch's width; not in the report.
            x = merge(torch.cat([up(x), high], dim=1) if self.concat else up(x) + high)
        return x


class HRNet(nn.Module):
    """HRNet for heatmaps at a quarter of the input size; the four switches turn it into HRNet++.

    Weights start at N(0, 0.001), biases at 0, as in the official pose code: the heatmap loss is tiny.
    `config` holds the constructor's arguments, from which `weights.load_checkpoint` rebuilds the network.

    Args:
        base_channels: Width C of the highest resolution: 32 or 48 in the papers.
        num_keypoints: Number of heatmaps K.
        se: Squeeze-and-excite gate at the end of every residual unit.
        avgpool_down: Average pooling + 1x1 conv instead of every strided conv past the stem.
        skips: 1x1 convs from every HR module to all later ones of the same resolution.
        subpixel_head: Progressive sub-pixel upsampling instead of the last fusion.
        se_reduction: Channels per hidden unit of a gate.
        se_bias: Start of the gates' last bias; 3 keeps pretrained residuals nearly whole (gate 0.95).
        downsampling: With avgpool_down: 2x2 steps; one pool and 1x1 per path; 2x2 steps with 3x3 convs.
        skip_sources: With skips: all later modules but the next; those of the same stage; the next one too.
        skip_bn: Batch normalisation after each skip conv.
        head: With subpixel_head: as the report; 1x1 sub-pixel convs; nearest upsampling; sum for concat.
        blocks_per_branch, layer1_blocks: Residual units per branch of an HR module, and in layer1.
        modules: HR modules in stages 2, 3 and 4.
        stem_channels: Width of the stem and of layer1's inner convs.

    Raises: HrnetppError if a size is out of range, a variant is unknown, or its switch is off.
    Reference: HRNet++ report, network; Sun et al., CVPR 2019.
    """

    def __init__(
        self,
        base_channels: Width = 48,
        num_keypoints: Width = 17,
        se: bool = False,
        avgpool_down: bool = False,
        skips: bool = False,
        subpixel_head: bool = False,
        *,
        se_reduction: Width = 8,
        se_bias: float = 0.0,
        downsampling: Literal["chain", "single_pool", "conv3x3"] = "chain",
        skip_sources: Literal["later", "same_stage", "adjacent"] = "later",
        skip_bn: bool = False,
        head: Literal["subpixel", "subpixel_1x1", "nearest", "sum"] = "subpixel",
        blocks_per_branch: Depth = 4,
        modules: tuple[Depth, Depth, Depth] = (1, 4, 3),
        stem_channels: Width = 64,
        layer1_blocks: Depth = 4,
    ):
        modules = tuple(modules)
        config = {name: value for name, value in locals().items() if name not in ("self", "__class__")}
        super().__init__()
        self.config = _checked(config)
        widths = [base_channels * 2**branch for branch in range(4)]
        self._build_trunk(widths, downsampling if avgpool_down else "strided")
        self.skips = nn.ModuleDict(self._skip_convs(widths) if skips else {})
        self.head = ProgressiveHead(widths, head) if subpixel_head else None
        self.final_layer = nn.Conv2d(base_channels, num_keypoints, 1)
        if se:
            for unit in [m for m in self.modules() if isinstance(m, (BasicBlock, Bottleneck))]:
                unit.se = SqueezeExcite(unit.out_channels, se_reduction)
        self._init_weights()

    def _build_trunk(self, widths: list[int], downsampling: str) -> None:
        stem, blocks = self.config["stem_channels"], self.config["blocks_per_branch"]
        self.conv1, self.bn1 = conv_bn(3, stem, 3, stride=2)
        self.conv2, self.bn2 = conv_bn(stem, stem, 3, stride=2)
        self.relu = nn.ReLU(inplace=True)
        units = (Bottleneck(4 * stem if i else stem, stem) for i in range(self.config["layer1_blocks"]))
        self.layer1 = nn.Sequential(*units)
        incoming, first = 4 * stem, nn.Sequential(*conv_bn(4 * stem, widths[0], 3), nn.ReLU(inplace=True))
        kept = [first]
        for stage, count in zip((2, 3, 4), self.config["modules"], strict=True):
            # The extra Sequential is a chain of one step, as official key names have it.
            new = nn.Sequential(downsample(incoming, widths[stage - 1], downsampling, relu=True))
            setattr(self, f"transition{stage - 1}", nn.ModuleList([*kept, new]))
            kept, incoming = [None] * stage, widths[stage - 1]
            outputs = [stage] * count
            if stage == 4:
                outputs[-1] = 0 if self.config["subpixel_head"] else 1
            hr_modules = (HighResolutionModule(widths[:stage], blocks, n, downsampling) for n in outputs)
            setattr(self, f"stage{stage}", nn.Sequential(*hr_modules))

    def _skip_convs(self, widths: list[int]) -> dict[str, nn.Module]:
        """One conv for each source module, target module (both counted from 1) and common branch."""
        stages = [s for s, count in zip((2, 3, 4), self.config["modules"], strict=True) for _ in range(count)]
        sources, convs = self.config["skip_sources"], {}
        # CHOICE: no skip to the very next module: it gets the output as its input already.
        gap = 1 if sources == "adjacent" else 2
        for target in range(len(stages)):
            for source in range(target - gap + 1):
                if sources == "same_stage" and stages[source] != stages[target]:
                    continue
                for branch, width in enumerate(widths[: stages[source]]):
                    # CHOICE: skips have neither BN nor ReLU: training starts near a network without them.
                    layers = conv_bn(width, width, 1)[: 2 if self.config["skip_bn"] else 1]
                    convs[f"m{source + 1}_m{target + 1}_branch{branch}"] = nn.Sequential(*layers)
        return convs

    @torch.no_grad()
    def _init_weights(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                module.weight.normal_(std=0.001)
                if module.bias is not None:
                    module.bias.zero_()
        for module in self.modules():
            if isinstance(module, SqueezeExcite):
                # CHOICE: squeeze-and-excite gates start at 0.5; the report does not say where.
                module.expand.bias.fill_(self.config["se_bias"])
        for up in self.head.up if self.head else ():
            if isinstance(up[1], nn.PixelShuffle):  # ICNR: the four phases of a cell start equal
                up[0].weight.copy_(up[0].weight[::4].repeat_interleave(4, dim=0))

    def forward(self, images: Tensor) -> Tensor:
        """Raw heatmaps (B, K, h/4, w/4) of normalised RGB (B, 3, h, w), h and w multiples of 32.

        They have the weights' precision (fp32) even under autocast. Raises: HrnetppError for other shapes.
        """
        if images.ndim != 4 or images.shape[1] != 3 or any(n < 32 or n % 32 for n in images.shape[2:]):
            raise HrnetppError(f"images of shape {tuple(images.shape)}: give (B, 3, h, w), multiples of 32")
        x = self.relu(self.bn1(self.conv1(images)))
        x = self.relu(self.bn2(self.conv2(x)))
        features, history = [self.layer1(x)], []
        for stage in (2, 3, 4):
            transition = getattr(self, f"transition{stage - 1}")
            features = [features[i] if t is None else t(features[-1]) for i, t in enumerate(transition)]
            for module in getattr(self, f"stage{stage}"):
                features = module(self._add_skips(features, history))
                history.append(features)
        x = features[0] if self.head is None else self.head(features)
        # Rounded to bf16, heatmaps would move the soft-argmax by up to half a cell.
        with without_autocast(x):
            return self.final_layer(x.to(self.final_layer.weight.dtype))

    def _add_skips(self, features: list[Tensor], history: list[list[Tensor]]) -> list[Tensor]:
        """Add to a module's inputs what earlier modules' outputs contribute (one history entry each)."""
        target, total = len(history) + 1, list(features)
        for source, outputs in enumerate(history, start=1):
            for branch, output in enumerate(outputs):
                if (key := f"m{source}_m{target}_branch{branch}") in self.skips:
                    total[branch] = total[branch] + self.skips[key](output)
        return total


# The constructor's arguments as one type, so that a file that holds them is checked as they are.
_ARGUMENTS = get_type_hints(HRNet.__init__, include_extras=True)
HRNetConfig = msgspec.defstruct("HRNetConfig", list(_ARGUMENTS.items()), forbid_unknown_fields=True)
_NEEDS = (  # option, and the switch without which it means nothing
    *(("se_reduction", "se"), ("se_bias", "se"), ("downsampling", "avgpool_down")),
    *(("skip_sources", "skips"), ("skip_bn", "skips"), ("head", "subpixel_head")),
)


def _checked(config: dict) -> dict:
    try:
        msgspec.convert(config, HRNetConfig)
    except msgspec.ValidationError as error:
        raise HrnetppError(f"no such network: {error}; see the arguments of hrnet.HRNet") from None
    for name, switch in _NEEDS:
        if config[name] != HRNet.__init__.__kwdefaults__[name] and not config[switch]:
            raise HrnetppError(f"{name}={config[name]!r} has no effect without {switch}=True")
    return config


def create_model(name: str, num_keypoints: int = 17, **switches) -> HRNet:
    """Build a network by name, `<architecture>_w<base_channels>`: hrnet_w32, hrnetpp_w48, hrnetpp-head_w32.

    The architecture is one of `recipe.get_architecture`; switches are arguments of `HRNet` and go first.
    Raises: HrnetppError if the name or an argument's value is unknown.
    """
    parts = re.fullmatch(r"(.+)_w([1-9][0-9]{0,3})", name)
    try:
        architecture = get_architecture(parts[1] if parts else "")
    except HrnetppError:
        known = ", ".join(ARCHITECTURES)
        wanted = f"give <architecture>_w<channels>, of {known}, or as `get_architecture` reads it"
        raise HrnetppError(f"no model is called {name!r}; {wanted}") from None
    return HRNet(int(parts[2]), num_keypoints, **(architecture.arguments | switches))


# The official networks, and the report's with all four switches on unless given; arguments as above.
hrnet_w32, hrnet_w48 = partial(create_model, "hrnet_w32"), partial(create_model, "hrnet_w48")
hrnetpp_w32, hrnetpp_w48 = partial(create_model, "hrnetpp_w32"), partial(create_model, "hrnetpp_w48")
