"""Multiply-accumulates of a network, counted layer by layer without computing anything."""

import torch
from torch import Tensor, nn


def count_macs(model: nn.Module, input_hw: tuple[int, int]) -> int:
    """Multiply-accumulates of the convolutions and linear layers for one image.

    Official "GFLOPs" are this number / 2^30; the GMACs of most papers are this number / 10^9.

    Args:
        model: Takes (B, 3, h, w); neither its weights nor its mode change.
        input_hw: Input height and width in px.

    Raises:
        HrnetppError: If the network does not accept input_hw.
    """
    macs = 0

    def count(layer: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal macs
        macs += output.numel() * layer.weight[0].numel()

    layers = [m for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    hooks = [layer.register_forward_hook(count) for layer in layers]
    # The meta device carries shapes only.
    state = {name: tensor.to("meta") for name, tensor in model.state_dict().items()}
    try:
        with torch.no_grad():
            torch.func.functional_call(model, state, torch.empty(1, 3, *input_hw, device="meta"))
    finally:
        for hook in hooks:
            hook.remove()
    return macs
