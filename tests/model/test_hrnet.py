"""The network: the official one with all switches off, the report's four changes with them on."""

import pytest
import torch
from official_hrnet import OfficialForward, official_shapes
from torch import nn
from torch.nn import functional as F

from hrnetpp_lib.errors import HrnetppError
from hrnetpp_lib.model import hrnet
from hrnetpp_lib.model.hrnet import BasicBlock, Bottleneck, HRNet, SqueezeExcite, create_model

ALL_ON = {"se": True, "avgpool_down": True, "skips": True, "subpixel_head": True}
SMALL = {"blocks_per_branch": 1, "modules": (1, 1, 1), "stem_channels": 8, "layer1_blocks": 1}


def small(base_channels: int = 8, num_keypoints: int = 5, **switches) -> HRNet:
    torch.manual_seed(0)
    return HRNet(base_channels, num_keypoints, **(SMALL | switches))


def on_meta(*args, **switches) -> HRNet:
    with torch.device("meta"):
        return HRNet(*args, **switches)


def shake(model: nn.Module) -> nn.Module:
    """Weights of ordinary size and BN statistics far from 0 and 1, so that every layer matters."""
    generator = torch.Generator().manual_seed(1)
    for tensor in [*model.parameters(), *model.buffers()]:
        if tensor.ndim >= 2:
            tensor.data.normal_(0, tensor[0].numel() ** -0.5, generator=generator)
        elif tensor.is_floating_point():
            tensor.data.uniform_(0.5, 1.5, generator=generator)
    return model


@pytest.mark.parametrize(("base_channels", "params"), [(32, 28_536_113), (48, 63_595_745)])
def test_state_dict_is_the_official_one(base_channels, params):
    model = on_meta(base_channels)
    shapes = [(name, tuple(tensor.shape)) for name, tensor in model.state_dict().items()]
    assert shapes == official_shapes(base_channels, 17)
    assert len(shapes) == 1754
    assert sum(p.numel() for p in model.parameters()) == params


def test_forward_is_the_official_one_in_float64():
    depth = {"modules": (1, 2, 2), "blocks_per_branch": 2, "layer1_blocks": 2}
    model = shake(small(**depth)).double().eval()
    images = torch.randn(2, 3, 64, 96, dtype=torch.float64)
    with torch.no_grad():
        expected = OfficialForward(model.state_dict())(images, (1, 2, 2), 2, 2)
        actual = model(images)
    assert actual.shape == (2, 5, 16, 24) and actual.dtype == torch.float64
    assert expected.std() > 0.1
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)


def test_training_step_is_the_official_one():
    model = shake(small()).double().train()
    twin = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    leaves = {name: twin[name].requires_grad_() for name, _ in model.named_parameters()}
    images = torch.randn(2, 3, 64, 96, dtype=torch.float64)
    model(images).square().mean().backward()
    OfficialForward(twin, training=True)(images, (1, 1, 1), 1, 1).square().mean().backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, leaves[name].grad, rtol=1e-8, atol=1e-10)
    for name, buffer in model.named_buffers():
        expected = twin[name] if buffer.is_floating_point() else torch.tensor(1)
        torch.testing.assert_close(buffer, expected, rtol=1e-9, atol=1e-9)


def test_initial_weights_follow_the_official_rule():
    model = small(base_channels=16, stem_channels=32)
    convs = torch.cat([m.weight.flatten() for m in model.modules() if isinstance(m, nn.Conv2d)])
    assert convs.std().item() == pytest.approx(1e-3, rel=0.01) and abs(convs.mean().item()) < 1e-5
    assert not model.final_layer.bias.any()
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    assert all(m.momentum == 0.1 and m.eps == 1e-5 for m in norms)
    assert all((m.weight == 1).all() and (m.bias == 0).all() for m in norms)


@pytest.mark.parametrize(("base_channels", "hidden"), [(32, {4, 8, 16, 32}), (48, {6, 12, 24, 48, 32})])
def test_every_residual_unit_has_a_gate(base_channels, hidden):
    model = on_meta(base_channels, se=True)
    gates = [m for m in model.modules() if isinstance(m, SqueezeExcite)]
    units = [m for m in model.modules() if isinstance(m, (BasicBlock, Bottleneck))]
    assert len(gates) == len(units) == 108
    assert all(m.se.expand.out_channels == m.out_channels for m in units)
    assert {gate.reduce.out_channels for gate in gates} == hidden


def test_gate_multiplies_the_residual_before_the_sum():
    x = torch.rand(2, 8, 6, 4)
    for bias, start in ((0.0, 0.5), (3.0, 0.952574)):  # the sigmoid of the bias
        unit = small(se=True, se_bias=bias).stage2[0].branches[0][0]
        torch.testing.assert_close(unit.se(x), start * x, rtol=1e-5, atol=1e-6)
    shake(unit).eval()
    residual = unit.bn2(unit.conv2(torch.relu(unit.bn1(unit.conv1(x)))))
    hidden = torch.relu(residual.mean((2, 3)) @ unit.se.reduce.weight[:, :, 0, 0].T + unit.se.reduce.bias)
    gate = torch.sigmoid(hidden @ unit.se.expand.weight[:, :, 0, 0].T + unit.se.expand.bias)
    torch.testing.assert_close(unit(x), torch.relu(residual * gate[:, :, None, None] + x))


@pytest.mark.parametrize("shape", [(3, 16, 7, 5), (2, 24, 8, 6)])
def test_gate_is_the_plain_formula_to_the_bit(shape):
    """In fp32, gradients and channels_last included, as with `mean`."""
    gate = shake(SqueezeExcite(shape[1], 8))
    gate.reduce.bias.data[::2] = -1.0  # one hidden unit or two that ReLU silences
    x, weight = (torch.randn(shape).to(memory_format=torch.channels_last) for _ in range(2))
    found = []
    for plain in (True, False):
        leaf = x.clone().requires_grad_()
        if plain:
            hidden = F.relu(gate.reduce(leaf.mean((2, 3), keepdim=True)))
            out = leaf * torch.sigmoid(gate.expand(hidden))
        else:
            out = gate(leaf)
        gate.zero_grad()
        (out * weight).sum().backward()
        found.append([out.detach(), leaf.grad, *(p.grad.clone() for p in gate.parameters())])
    assert all(map(torch.equal, *found)) and all(tensor.any() for tensor in found[0])


def test_gate_is_computed_in_fp32_under_bf16():
    gate, rounded = shake(SqueezeExcite(16, 8)), torch.bfloat16
    x, seen = torch.randn(3, 16, 7, 5).to(rounded), []
    hooks = [conv.register_forward_hook(lambda *call: seen.append(call[2])) for conv in gate.children()]
    with torch.autocast("cpu", rounded):
        out = gate(x)
    for hook in hooks:
        hook.remove()
    assert out.dtype == rounded and [tensor.dtype for tensor in seen] == [torch.float32] * 2
    torch.testing.assert_close(out.float(), gate(x.float()), rtol=2**-7, atol=1e-3)


def test_only_the_stem_keeps_strided_convs():
    model, plain = on_meta(48, avgpool_down=True), on_meta(48)
    strided = [name for name, m in model.named_modules() if getattr(m, "stride", 1) == (2, 2)]
    assert strided == ["conv1", "conv2"]
    pools = [name for name, m in model.named_modules() if isinstance(m, nn.AvgPool2d)]
    prefixes = ("trans", "stage2", "stage3", "stage4")
    assert [sum(name.startswith(prefix) for name in pools) for prefix in prefixes] == [3, 1, 16, 20]
    assert model.transition1[0][0].kernel_size == (3, 3)
    relus = [sum(isinstance(layer, nn.ReLU) for layer in m.modules()) for m in (model, plain)]
    assert relus[0] == relus[1]
    conv3x3 = on_meta(48, avgpool_down=True, downsampling="conv3x3")
    sizes = [sum(p.numel() for p in m.parameters()) for m in (conv3x3, plain)]
    assert sizes[0] == sizes[1]
    single = on_meta(16, modules=(1, 1, 2), avgpool_down=True, downsampling="single_pool")
    pool, conv, *others = single.stage4[0].fuse_layers[3][0]
    assert pool.kernel_size == 8 and conv.weight.shape == (128, 16, 1, 1)
    assert [type(layer) for layer in others] == [nn.BatchNorm2d]


@pytest.mark.parametrize("levels", [1, 2, 3])
@pytest.mark.parametrize(("how", "shift"), [("strided", 1.0), ("chain", 0.0), ("single_pool", 0.0)])
def test_average_pooling_keeps_a_blob_centred(how, shift, levels):
    """Stride 2 moves the centre of mass by (2^n - 1)/2 px after nearest upsampling, pooling by nothing."""
    x, y = torch.meshgrid(torch.arange(64.0), torch.arange(96.0), indexing="ij")
    blob = torch.exp(-((x - 31.5) ** 2 + (y - 47.5) ** 2) / (2 * 8.0**2))[None, None]
    down = blob
    for factor in [2**levels] if how == "single_pool" else [2] * levels:
        conv = hrnet.downsample(1, 1, how, relu=False, factor=factor)[:-1]  # without BN
        conv[-1].weight.data.fill_(1 / conv[-1].weight.numel())
        down = conv(down)
    up = F.interpolate(down, scale_factor=2**levels, mode="nearest")[0, 0]
    centre = torch.stack([(up * axis).sum() / up.sum() for axis in (x, y)])
    expected = torch.tensor([31.5, 47.5]) + shift * (2**levels - 1) / 2
    torch.testing.assert_close(centre, expected, rtol=0, atol=0.02)


def test_skips_join_every_pair_of_modules_two_or_more_apart():
    model = on_meta(48, skips=True)
    branches = {1: 2, 2: 3, 3: 3, 4: 3, 5: 3, 6: 4, 7: 4, 8: 4}
    expected = {
        f"m{source}_m{target}_branch{branch}": (48 * 2**branch,) * 2 + (1, 1)
        for source in branches
        for target in range(source + 2, 9)
        for branch in range(branches[source])
    }
    assert {name: tuple(skip[0].weight.shape) for name, skip in model.skips.items()} == expected
    assert [sum(name.endswith(f"branch{b}") for name in expected) for b in range(4)] == [21, 21, 15, 1]
    assert all(len(skip) == 1 and skip[0].bias is None for skip in model.skips.values())
    assert len(on_meta(48, skips=True, skip_sources="adjacent").skips) == 58 + 7 + 7 + 6 + 2
    assert len(on_meta(48, skips=True, skip_sources="same_stage").skips) == 3 * 3 + 4 * 1
    assert len(on_meta(48, skips=True, skip_bn=True).skips["m1_m3_branch0"]) == 2


@pytest.mark.parametrize("sources", ["later", "adjacent"])
def test_skips_add_the_fused_outputs_of_earlier_modules(sources):
    model = small(modules=(1, 2, 1), skips=True, skip_sources=sources).eval()
    for number, skip in enumerate(model.skips.values(), start=1):
        skip[0].weight.data.copy_(number * torch.eye(skip[0].weight.shape[0])[:, :, None, None])
    blocks = [*model.stage2, *model.stage3, *model.stage4]
    inputs, outputs = {}, {}

    def record(block, args, out):
        number = blocks.index(block) + 1
        inputs[number], outputs[number] = [[x.clone() for x in xs] for xs in (args[0], out)]

    for block in blocks:
        block.register_forward_hook(record)
    shake(model.stage2), shake(model.stage3)
    with torch.no_grad():
        model(torch.randn(2, 3, 64, 32))
        for target in range(2, 5):
            for branch, actual in enumerate(inputs[target]):
                fed = outputs[target - 1]
                transition = {2: model.transition2, 4: model.transition3}.get(target)
                expected = fed[branch] if branch < len(fed) else transition[branch](fed[-1])
                for source in range(1, target):
                    key = f"m{source}_m{target}_branch{branch}"
                    if key in model.skips:
                        expected = expected + (list(model.skips).index(key) + 1) * outputs[source][branch]
                torch.testing.assert_close(actual, expected)


def test_last_module_does_not_fuse_before_the_subpixel_head():
    model = on_meta(48, subpixel_head=True)
    assert [len(block.fuse_layers) for block in model.stage4] == [4, 4, 0]
    shapes = [[tuple(part[0].weight.shape) for part in parts] for parts in (model.head.up, model.head.merge)]
    assert shapes[0] == [(768, 384, 3, 3), (384, 192, 3, 3), (192, 96, 3, 3)]
    assert shapes[1] == [(192, 384, 1, 1), (96, 192, 1, 1), (48, 96, 1, 1)]
    order = [type(layer) for layer in model.head.up[0]]
    assert order == [nn.Conv2d, nn.PixelShuffle, nn.BatchNorm2d, nn.ReLU]


def test_subpixel_upsampling_starts_as_nearest():
    up = small(subpixel_head=True).head.up[0]
    x = torch.randn(2, 64, 3, 5)
    nearest = F.interpolate(F.conv2d(x, up[0].weight[::4], padding=1), scale_factor=2, mode="nearest")
    assert nearest.abs().max() > 0
    torch.testing.assert_close(up[1](up[0](x)), nearest)
    assert up[0].weight[::4].std().item() == pytest.approx(1e-3, rel=0.05)


def test_head_decodes_from_low_to_high_resolution():
    head = shake(small(subpixel_head=True).head).eval()
    features = [torch.randn(2, 8 * 2**r, 24 // 2**r, 16 // 2**r) for r in range(4)]
    x = features[3]
    for n, high in enumerate((features[2], features[1], features[0])):
        up = torch.relu(head.up[n][2](F.pixel_shuffle(head.up[n][0](x), 2)))
        x = torch.relu(head.merge[n][1](head.merge[n][0](torch.cat([up, high], 1))))
    torch.testing.assert_close(head(features), x)
    assert x.shape == (2, 8, 24, 16)


@pytest.mark.parametrize(
    ("how", "up", "merge"),
    [("subpixel_1x1", (128, 64, 1, 1), 64), ("nearest", (32, 64, 1, 1), 64), ("sum", (128, 64, 3, 3), 32)],
)
def test_head_variants(how, up, merge):
    model = small(subpixel_head=True, head=how)
    assert tuple(model.head.up[0][0].weight.shape) == up
    assert tuple(model.head.merge[0][0].weight.shape) == (32, merge, 1, 1)
    assert model(torch.randn(2, 3, 32, 64)).shape == (2, 5, 8, 16)


@pytest.mark.parametrize("switches", [ALL_ON, ALL_ON | {"head": "sum", "skip_bn": True}])
def test_gradients_reach_every_parameter(switches):
    model = shake(small(**switches)).train()
    model(torch.randn(3, 3, 64, 96)).square().sum().backward()
    silent = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert silent == []


def test_final_layer_runs_in_fp32_under_autocast():
    model = shake(small(**ALL_ON)).eval()
    seen = {}
    model.final_layer.register_forward_hook(lambda _, args, out: seen.update(input=args[0]))
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        heatmaps = model(torch.randn(1, 3, 32, 64))
        assert model.conv1(torch.randn(1, 3, 32, 64)).dtype == torch.bfloat16
    assert heatmaps.dtype == seen["input"].dtype == torch.float32
    exact = F.conv2d(seen["input"], model.final_layer.weight, model.final_layer.bias)
    torch.testing.assert_close(heatmaps, exact, rtol=0, atol=1e-6)


def test_bad_images_are_refused():
    model = small()
    for shape in [(2, 3, 64, 48), (2, 3, 48, 64), (2, 1, 64, 64), (3, 64, 64), (2, 64, 64, 3), (1, 3, 0, 64)]:
        with pytest.raises(HrnetppError, match=r"give \(B, 3, h, w\), multiples of 32"):
            model(torch.zeros(shape))


@pytest.mark.parametrize(
    ("switches", "message"),
    [
        ({"head": "bilinear", "subpixel_head": True}, "Invalid enum value 'bilinear' - at"),
        *[({"downsampling": "conv3x3"}, "no effect without avgpool_down"), ({"se": 1}, "got `int` - at")],
        *[({"se_bias": 3.0}, "no effect without se"), ({"modules": (1, 4)}, "length 3.*at")],
        *[({"modules": (1, 0, 3)}, ">= 1 - at"), ({"num_keypoints": 0}, ">= 1 - at")],
        *[({"base_channels": 10**6}, "<= 2048 - at"), ({"blocks_per_branch": 10**5}, "<= 32 - at")],
        ({"layer1_blocks": 2.0}, "Expected `int`, got `float` - at"),
    ],
)
def test_bad_arguments_are_refused(switches, message):
    place = rf" `\$\.{next(iter(switches))}" if message.endswith("at") else ""
    with pytest.raises(HrnetppError, match=message + place):
        small(**switches)


def test_create_model_by_name():
    with torch.device("meta"):
        model = create_model("hrnetpp_w48", num_keypoints=14, skips=False)
        twin = hrnet.hrnetpp_w48(14, skips=False)
        mixed = create_model("hrnet+se_w18", **SMALL)
        plain = hrnet.hrnet_w32()
        read = create_model("hrnetpp-head+conv3x3_w18", **SMALL)
    assert model.config == twin.config and model.config["num_keypoints"] == 14
    assert [model.config[switch] for switch in ALL_ON] == [True, True, False, True]
    assert [mixed.config[switch] for switch in ALL_ON] == [True, False, False, False]
    assert [read.config[switch] for switch in (*ALL_ON, "downsampling")] == [
        True,
        True,
        True,
        False,
        "conv3x3",
    ]
    assert mixed.config["base_channels"] == 18 and plain.config == HRNet(32).config


def test_unknown_names_are_refused():
    for name in ["hrnet", "hrnet_w", "resnet_w32", "hrnet_w032", "hrnet_w-8", "hrnet_w9" * 99]:
        with pytest.raises(HrnetppError, match=r"give <architecture>_w<channels>, of hrnet, hrnet\+se, "):
            create_model(name)
