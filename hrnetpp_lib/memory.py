"""How much memory a training step takes, and which batch would fit after it ran out."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import psutil
import torch

from hrnetpp_lib.errors import HrnetppError

# The allocator cannot use the last tenth: fragments, convolution workspaces, the display.
_USABLE = 0.9
# Weights, their gradients and Adam's two moments.
_COPIES_OF_WEIGHTS = 4
_PHRASES = (
    "can't allocate memory",
    "not enough memory",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
)


def kept_for_backward(step: torch.nn.Module, batch: dict[str, torch.Tensor]) -> int:
    """Bytes of activations that one forward keeps for its backward.

    Args:
        step: Raw batch in, loss out.
        batch: On the step's device.
    """
    storages: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        loss = step(batch)
    weights = {parameter.untyped_storage().data_ptr() for parameter in step.parameters()}
    del loss
    return sum(size for address, size in storages.items() if address not in weights)


def free_bytes(device: torch.device) -> int:
    """Memory that this process could use on a device, beyond what it has in use."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return free + unused
    return psutil.virtual_memory().available


def fitting_crops(per_crop: int, weights: int, available: int) -> int:
    """How many crops a step can take at once.

    Args:
        per_crop: Bytes of activations a crop keeps.
        weights: Bytes of the network's weights.
        available: Bytes free before any of it is there.
    """
    return max(0, int((_USABLE * available - _COPIES_OF_WEIGHTS * weights) // max(per_crop, 1)))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory ran out; only CUDA's allocator has one of its own for that."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or (
        isinstance(error, RuntimeError) and any(phrase in str(error) for phrase in _PHRASES)
    )


def bytes_per_crop(
    step: torch.nn.Module,
    batch: dict[str, torch.Tensor],
    autocast: Callable[[], AbstractContextManager] = nullcontext,
) -> int:
    """What one crop more adds to `kept_for_backward`; weights that autocast copies are counted by no crop.

    Args:
        step: Raw batch in, loss out.
        batch: At least two crops, on the step's device.
        autocast: The precision that the step is run in.
    """
    with autocast():
        one, two = (
            kept_for_backward(step, {name: tensor[:n].clone() for name, tensor in batch.items()})
            for n in (1, 2)
        )
    return two - one if len(batch["image"]) > 1 else one


def out_of_memory(
    step: torch.nn.Module,
    batch: dict[str, torch.Tensor],
    available: int,
    autocast: Callable[[], AbstractContextManager] = nullcontext,
) -> HrnetppError:
    """The message for a step that did not fit; measures what one crop takes.

    Args:
        step: Raw batch in, loss out.
        batch: The one that did not fit.
        available: `free_bytes` before the first step.
        autocast: The precision that the step was run in.
    """
    crops = len(batch["image"])
    step.zero_grad(set_to_none=True)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    try:
        per_crop = bytes_per_crop(step, batch, autocast)
    except (RuntimeError, MemoryError):
        return HrnetppError(f"memory ran out with {crops} crops at once, and two alone do not fit either")
    weights = sum(p.numel() * p.element_size() for p in step.parameters())
    fitting = min(fitting_crops(per_crop, weights, available), crops - 1)
    parts = -(-crops // max(fitting, 1))
    return HrnetppError(
        f"memory ran out with {crops} crops at once ({per_crop / 2**20:.0f} MiB each, "
        f"{available / 2**30:.1f} GiB were free): about {max(fitting, 1)} would likely fit. Cut each "
        f"batch into parts (train --accumulate {parts} or more), or use more processes or smaller batches"
    )
