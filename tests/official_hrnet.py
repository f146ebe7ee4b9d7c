"""The official pose network, described a second time without the library, to compare with."""

from itertools import product

import torch
from torch import Tensor
from torch.nn import functional as F


def official_shapes(c: int, k: int) -> list[tuple[str, tuple[int, ...]]]:
    """Names and shapes of the state_dict for width c and k keypoints, in order."""
    out = []

    def conv(name, cout, cin, kernel):
        out.append((f"{name}.weight", (cout, cin, kernel, kernel)))

    def bn(name, width):
        fields = ("weight", "bias", "running_mean", "running_var")
        out.extend(
            [*((f"{name}.{field}", (width,)) for field in fields), (f"{name}.num_batches_tracked", ())]
        )

    def conv_bn(name, cout, cin, kernel):
        conv(f"{name}.0", cout, cin, kernel)
        bn(f"{name}.1", cout)

    for number, cin in ((1, 3), (2, 64)):
        conv(f"conv{number}", 64, cin, 3)
        bn(f"bn{number}", 64)
    for unit in range(4):
        name, cin = f"layer1.{unit}", 256 if unit else 64
        for number, shape in enumerate(((64, cin, 1), (64, 64, 3), (256, 64, 1)), 1):
            conv(f"{name}.conv{number}", *shape)
            bn(f"{name}.bn{number}", shape[0])
        if unit == 0:
            conv_bn(f"{name}.downsample", 256, 64, 1)
    widths = [c, 2 * c, 4 * c, 8 * c]
    for stage, modules in ((2, 1), (3, 4), (4, 3)):
        if stage == 2:
            conv_bn("transition1.0", c, 256, 3)
            conv_bn("transition1.1.0", 2 * c, 256, 3)
        else:
            conv_bn(f"transition{stage - 1}.{stage - 1}.0", widths[stage - 1], widths[stage - 2], 3)
        for m in range(modules):
            for b in range(stage):
                for unit, number in product(range(4), (1, 2)):
                    name = f"stage{stage}.{m}.branches.{b}.{unit}"
                    conv(f"{name}.conv{number}", widths[b], widths[b], 3)
                    bn(f"{name}.bn{number}", widths[b])
            for i, j in product(range(1 if (stage, m) == (4, 2) else stage), range(stage)):
                name = f"stage{stage}.{m}.fuse_layers.{i}.{j}"
                if j > i:
                    conv_bn(name, widths[i], widths[j], 1)
                for step in range(i - j):
                    conv_bn(f"{name}.{step}", widths[i] if step == i - j - 1 else widths[j], widths[j], 3)
    out += [("final_layer.weight", (k, c, 1, 1)), ("final_layer.bias", (k,))]
    return out


class OfficialForward:
    """The forward pass from a state_dict alone; with training=True it updates its BN statistics."""

    def __init__(self, state: dict[str, Tensor], training: bool = False):
        self.state, self.training = state, training

    def conv(self, name, x, stride=1):
        weight = self.state[f"{name}.weight"]
        return F.conv2d(x, weight, self.state.get(f"{name}.bias"), stride, padding=weight.shape[-1] // 2)

    def bn(self, name, x):
        fields = ("running_mean", "running_var", "weight", "bias")
        tensors = (self.state[f"{name}.{field}"] for field in fields)
        return F.batch_norm(x, *tensors, self.training, momentum=0.1, eps=1e-5)

    def conv_bn(self, name, x, stride=1):
        return self.bn(f"{name}.1", self.conv(f"{name}.0", x, stride))

    def residual_unit(self, name, x, convs):
        out = x
        for number in range(1, convs + 1):
            out = self.bn(f"{name}.bn{number}", self.conv(f"{name}.conv{number}", out))
            out = torch.relu(out) if number < convs else out
        identity = self.conv_bn(f"{name}.downsample", x) if f"{name}.downsample.0.weight" in self.state else x
        return torch.relu(out + identity)

    def path(self, name, x, j, i):
        """What branch j gives to branch i."""
        if j > i:
            return F.interpolate(self.conv_bn(name, x), scale_factor=2 ** (j - i), mode="nearest")
        for step in range(i - j):
            x = self.conv_bn(f"{name}.{step}", x, stride=2)
            x = torch.relu(x) if step < i - j - 1 else x
        return x

    def hr_module(self, name, ys, blocks, outputs):
        for b in range(len(ys)):
            for unit in range(blocks):
                ys[b] = self.residual_unit(f"{name}.branches.{b}.{unit}", ys[b], convs=2)
        fused = []
        for i in range(outputs):
            terms = [self.path(f"{name}.fuse_layers.{i}.{j}", y, j, i) for j, y in enumerate(ys)]
            fused.append(torch.relu(sum(terms)))
        return fused

    def __call__(self, x: Tensor, modules: tuple[int, ...], blocks: int, layer1_blocks: int) -> Tensor:
        for number in (1, 2):
            x = torch.relu(self.bn(f"bn{number}", self.conv(f"conv{number}", x, stride=2)))
        for unit in range(layer1_blocks):
            x = self.residual_unit(f"layer1.{unit}", x, convs=3)
        ys = [torch.relu(self.conv_bn("transition1.0", x))]
        ys.append(torch.relu(self.conv_bn("transition1.1.0", x, stride=2)))
        for stage, count in zip((2, 3, 4), modules, strict=True):
            if stage > 2:
                name = f"transition{stage - 1}.{stage - 1}.0"
                ys = [*ys, torch.relu(self.conv_bn(name, ys[-1], stride=2))]
            for m in range(count):
                last = (stage, m) == (4, count - 1)
                ys = self.hr_module(f"stage{stage}.{m}", ys, blocks, outputs=1 if last else stage)
        return self.conv("final_layer", ys[0])
