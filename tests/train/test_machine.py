"""What the engine asks of the machine: precision per run, TensorBoard, a compiler that may be missing."""

import subprocess
import sys
from dataclasses import replace

import pytest
import torch

import hrnetpp_lib.train.machine as module
from hrnetpp_lib.errors import HrnetppError
from hrnetpp_lib.recipe import SMOKE, STAGE2, resolve
from hrnetpp_lib.train.machine import Machine, compile_step, make_accelerator, processes


class Step(torch.nn.Module):
    """A layer with batch statistics."""

    def __init__(self):
        super().__init__()
        self.layer, self.norm = torch.nn.Linear(3, 5), torch.nn.BatchNorm1d(5)

    def forward(self, batch):
        return self.norm(self.layer(batch.image)).square().mean()


def test_alone_this_process_is_the_main_one():
    assert processes().num_processes == 1 and processes().is_main_process


def test_leaving_keeps_what_was_printed_and_the_status_and_skips_the_clean_up():
    lines = [
        "import atexit",
        "from hrnetpp_lib.train.machine import leave",
        "atexit.register(print, 'cleaned up')",
        "print('last words')",
        "leave(75)",
    ]
    done = subprocess.run([sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (75, "last words\n")


def test_runs_of_one_process_may_differ_in_precision(tmp_path):
    layer = torch.nn.Linear(3, 5)
    for precision, expected in (("bf16", torch.bfloat16), ("fp32", torch.float32), ("bf16", torch.bfloat16)):
        run = resolve(STAGE2, replace(SMOKE, precision=precision))
        accelerator = make_accelerator(run, Machine(), tmp_path)
        with accelerator.autocast():
            assert layer(torch.ones(2, 3)).dtype == expected
    assert not list(tmp_path.iterdir())


def test_a_cpu_that_imitates_bf16_is_warned_of(tmp_path, monkeypatch, capsys):
    for capability, slow in (("AVX2", True), ("AVX512", False), ("SVE256", False)):
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda answer=capability: answer)
        for precision in ("bf16", "fp32"):
            make_accelerator(resolve(STAGE2, replace(SMOKE, precision=precision)), Machine(), tmp_path)
            warned = "imitates it" in capsys.readouterr().out
            assert warned == (slow and precision == "bf16" and not torch.cuda.is_available())


def test_tensorboard_missing_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "is_tensorboard_available", lambda: False)
    with pytest.raises(HrnetppError, match="tensorboard is not installed; install the extra watch"):
        make_accelerator(resolve(STAGE2, SMOKE), Machine(tensorboard=True), tmp_path)


def test_where_compiling_fails_training_goes_on_and_the_trial_leaves_no_trace(monkeypatch):
    step, said = Step(), []
    before = {name: tensor.clone() for name, tensor in step.state_dict().items()}

    def broken(network):
        def run(batch):
            network(batch)
            raise RuntimeError("no C++ compiler\nfound")

        return run

    monkeypatch.setattr(torch, "compile", broken)
    network = compile_step(step, {"image": torch.randn(4, 3)}, said.append)
    assert network is step and said == [
        "torch.compile failed (RuntimeError: no C++ compiler); training goes on without it"
    ]
    assert all(torch.equal(tensor, before[name]) for name, tensor in step.state_dict().items())
    assert all(p.grad is None for p in step.parameters())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # within torch's compiler
def test_compiled_steps_compute_the_same():
    step, said = Step(), []
    batch = {"image": torch.randn(4, 3)}
    compiled = compile_step(step, batch, said.append)
    assert said == [] and compiled is not step
    assert compiled(batch).item() == pytest.approx(step(batch).item(), rel=1e-5)
