"""What a step takes: counted by hand for a network of one layer, and the advice after memory ran out."""

import pytest
import torch

from hrnetpp_lib.train.machine import (
    fitting_crops,
    free_bytes,
    is_out_of_memory,
    kept_for_backward,
    out_of_memory,
)


class Step(torch.nn.Module):
    """Keeps its input and one product of the same size, as fp32."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(5))

    def forward(self, batch):
        x = batch.image.float()  # (B, 7, 5)
        return (x * self.weight).square().mean()


def test_kept_bytes_by_hand_and_in_proportion_to_the_batch():
    sizes = [kept_for_backward(Step(), {"image": torch.ones(b, 7, 5)}) for b in (1, 3)]
    assert sizes == [2 * 4 * 35, 3 * 2 * 4 * 35]  # x for the weight's gradient, the product for the square's


def test_fitting_crops_by_hand():
    assert fitting_crops(per_crop=10, weights=100, available=1000) == (900 - 400) // 10
    assert fitting_crops(10, 1000, 1000) == 0


def test_only_memory_errors_are_taken_for_memory_errors():
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory")) and is_out_of_memory(MemoryError())
    assert is_out_of_memory(RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to"))
    assert is_out_of_memory(RuntimeError("CUDA error: out of memory"))
    assert not is_out_of_memory(RuntimeError("shapes do not match"))
    assert not is_out_of_memory(ValueError("not enough memory of it"))


def test_the_advice_names_a_batch_that_fits():
    batch = {"image": torch.ones(16, 7, 5)}
    available = int((5.5 * 280 + 4 * 20) / 0.9)
    message = str(out_of_memory(Step(), batch, available))
    assert "with 16 crops at once" in message and "about 5 would likely fit" in message
    assert "--accumulate 4" in message  # 16 crops in 4 parts are 4 at once


def test_when_not_even_one_fits():
    class Never(Step):
        def forward(self, batch):
            raise torch.OutOfMemoryError("CUDA out of memory")

    assert "two alone do not fit" in str(out_of_memory(Never(), {"image": torch.ones(2, 7, 5)}, 100))


def test_free_memory_of_this_machine_is_a_number():
    assert free_bytes(torch.device("cpu")) > 10 * 2**20


@pytest.mark.parametrize("parts", [1, 2])
def test_the_network_itself_can_be_measured(parts):
    from dataclasses import asdict

    from hrnetpp_lib.model.hrnet import HRNet
    from hrnetpp_lib.recipe import SMOKE, STAGE2, resolve
    from hrnetpp_lib.train.loop import TrainStep

    step = TrainStep(HRNet(num_keypoints=5, **asdict(SMOKE.network)), resolve(STAGE2, SMOKE))
    batch = {
        "image": torch.zeros(2 * parts, 64, 96, 3, dtype=torch.uint8),
        "centres": torch.ones(2 * parts, 5, 2, dtype=torch.int64),
        "target_weight": torch.ones(2 * parts, 5),
    }
    one = kept_for_backward(step, {name: tensor[:1] for name, tensor in batch.items()})
    assert kept_for_backward(step, batch) == pytest.approx(2 * parts * one, rel=0.05)
