"""What the engine asks of the machine: precision, compiler, memory, SIGTERM, processes of its own."""

import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch

from hrnetpp_lib.errors import HrnetppError, Preempted
from hrnetpp_lib.recipe import SMOKE, STAGE2, resolve
from hrnetpp_lib.train import machine
from hrnetpp_lib.train.machine import (
    EngineOptions,
    SigtermNotice,
    compile_step,
    make_accelerator,
    preemptible,
)

RUN = resolve(STAGE2, SMOKE)


class Step(torch.nn.Sequential):
    """A layer with batch statistics."""

    def forward(self, batch):
        return super().forward(batch["image"]).square().mean()


def make_step() -> Step:
    return Step(torch.nn.Linear(3, 5), torch.nn.BatchNorm1d(5))


def send() -> None:
    """As a scheduler does."""
    os.kill(os.getpid(), signal.SIGTERM)


def test_numbers_that_make_no_sense_are_refused(tmp_path):
    wrong = {"accumulate": (0, -1, 1.5), "save_every_s": (-1, float("nan"), float("inf"))}
    for name, value in [(name, value) for name, values in wrong.items() for value in values]:
        with pytest.raises(HrnetppError, match=rf"^{name} is {value}; give .* on$"):
            EngineOptions(**{name: value})
    for number in (0, -1, 1.5):
        with pytest.raises(HrnetppError, match=f"training in {number} processes: give a whole number"):
            machine.train_in_processes(RUN, tmp_path, number)
    assert not list(tmp_path.iterdir())


def test_leaving_keeps_what_was_printed_and_the_status_and_skips_the_clean_up():
    code = (
        "import atexit; from hrnetpp_lib.train.machine import leave; atexit.register(print, 'cleaned up'); "
    )
    code += "print('last words'); leave(75)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (75, "last words\n")


def test_runs_of_one_process_may_differ_in_precision_and_tensorboard_may_be_missing(tmp_path, monkeypatch):
    layer = torch.nn.Linear(3, 5)
    for precision, expected in (("bf16", torch.bfloat16), ("fp32", torch.float32), ("bf16", torch.bfloat16)):
        run = resolve(STAGE2, replace(SMOKE, precision=precision))
        accelerator = make_accelerator(run, EngineOptions(tensorboard=True), tmp_path)
        with accelerator.autocast():
            assert layer(torch.ones(2, 3)).dtype == expected
    assert not list(tmp_path.iterdir()) and accelerator.num_processes == 1 and accelerator.is_main_process
    monkeypatch.setattr(machine, "is_tensorboard_available", lambda: False)
    with pytest.raises(HrnetppError, match="tensorboard is not installed; install the extra watch"):
        make_accelerator(RUN, EngineOptions(tensorboard=True), tmp_path)


def test_a_cpu_that_imitates_bf16_is_warned_of(tmp_path, monkeypatch, capsys):
    for capability, slow in (("AVX2", True), ("AVX512", False), ("SVE256", False)):
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda answer=capability: answer)
        for precision in ("bf16", "fp32"):
            make_accelerator(resolve(STAGE2, replace(SMOKE, precision=precision)), EngineOptions(), tmp_path)
            warned = "imitates it" in capsys.readouterr().out
            assert warned == (slow and precision == "bf16" and not torch.cuda.is_available())


def test_where_compiling_fails_training_goes_on_and_the_trial_leaves_no_trace(monkeypatch):
    step, said = make_step(), []
    before = {name: tensor.clone() for name, tensor in step.state_dict().items()}

    def broken(network):
        def run(batch):
            network(batch)
            raise RuntimeError("no C++ compiler\nfound")

        return run

    monkeypatch.setattr(torch, "compile", broken)
    assert compile_step(step, {"image": torch.randn(4, 3)}, said.append) is step
    assert said == ["torch.compile failed (RuntimeError: no C++ compiler); training goes on without it"]
    assert all(torch.equal(tensor, before[name]) for name, tensor in step.state_dict().items())
    assert all(p.grad is None for p in step.parameters())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # within torch's compiler
def test_compiled_steps_compute_the_same():
    step, said, batch = make_step(), [], {"image": torch.randn(4, 3)}
    compiled = compile_step(step, batch, said.append)
    assert said == [] and compiled is not step
    assert compiled(batch).item() == pytest.approx(step(batch).item(), rel=1e-5)


def test_only_memory_errors_are_taken_for_memory_errors():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60)  # the allocator's own words on this machine
    for error in (
        *(caught.value, MemoryError(), torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")),
        RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes"),
        RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be reported later"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    ):
        assert machine.is_out_of_memory(error), error
    for error in (RuntimeError("shapes do not match"), ValueError("not enough memory of it")):
        assert not machine.is_out_of_memory(error)


def test_a_notice_takes_over_is_noted_and_hands_back():
    before = signal.getsignal(signal.SIGTERM)
    with SigtermNotice() as outer:
        with SigtermNotice() as inner:
            send()
        assert inner.received and not outer.received
        send()
        with SigtermNotice() as late:  # noted before it began
            assert outer.received and late.received
    assert signal.getsignal(signal.SIGTERM) is before

    def handler_inside():  # in another thread: nothing is done
        with SigtermNotice():
            return signal.getsignal(signal.SIGTERM)

    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(handler_inside).result() is before


def test_where_nothing_can_be_lost_it_raises_once_what_no_handler_of_bad_input_takes():
    with SigtermNotice() as notice:
        with pytest.raises(Preempted, match="the same command goes on") as caught, notice.at_once():
            try:
                send()
            except Exception as error:
                raise AssertionError from error
            finally:
                send()  # launcher and scheduler both do: what is being put in order is not disturbed
                caught_in_order = True
        assert caught_in_order and caught.value.code == 75
        send()  # noted only
        with pytest.raises(Preempted), notice.at_once():  # one that came before
            raise AssertionError


def test_one_that_python_drops_in_a_destructor_counts_at_the_end(monkeypatch):
    dropped, dying = [], type("Dying", (), {"__del__": lambda self: send()})
    monkeypatch.setattr(sys, "unraisablehook", dropped.append)
    with SigtermNotice() as notice, pytest.raises(Preempted), notice.at_once():
        dying()
    assert len(dropped) == 1


def test_a_command_that_was_preempted_leaves_its_mark_and_may_be_told_again(tmp_path, monkeypatch):
    mark, told = tmp_path / "runs" / "smoke" / "PREEMPTED", []
    before = signal.signal(signal.SIGTERM, lambda *_: told.append("who ends on it"))
    try:
        for rank, marked in (("1", False), ("0", True)):
            monkeypatch.setenv("RANK", rank)
            with pytest.raises(Preempted), preemptible(tmp_path, (RUN,)) as notice, notice.at_once():
                send()
            send()
            assert mark.is_file() == marked and not told
        assert mark.read_text() == f"{RUN.name}\n"
        with pytest.raises(HrnetppError), preemptible(tmp_path, (RUN,)):
            raise HrnetppError("bad input")
        assert not mark.exists()
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize(("marked", "kind"), [(RUN.name, Preempted), ("another run", HrnetppError)])
def test_a_failed_launch_is_preemption_where_the_mark_names_the_run(tmp_path, monkeypatch, marked, kind):
    mark = tmp_path / "runs" / "smoke" / "PREEMPTED"
    mark.parent.mkdir(parents=True)

    def launch(script: str) -> None:
        monkeypatch.setattr(machine, "_launch_command", lambda *_: [sys.executable, "-c", script])
        machine.train_in_processes(RUN, tmp_path, 2)

    with pytest.raises(kind):
        launch(f"import pathlib; pathlib.Path({str(mark)!r}).write_text({marked + chr(10)!r}); print(1 / 0)")
    with pytest.raises(HrnetppError, match="(?s)in 2 processes failed: .*TypeError"):  # not the old mark's
        launch("print('no' / 1)")
