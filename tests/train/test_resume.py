"""Saved states: complete or not there, checked in every part when read, tied to their run and its data."""

import os
import shutil
from dataclasses import asdict, replace

import msgspec
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from hrnetpp_lib.errors import HrnetppError
from hrnetpp_lib.files import sha256
from hrnetpp_lib.model.hrnet import HRNet
from hrnetpp_lib.recipe import SMOKE
from hrnetpp_lib.train import resume
from hrnetpp_lib.train.resume import Progress, list_states, load_state, remove_states, save_state, set_aside

DATA = {"persons": 11, "images": 7, "keypoints": 123, "bboxes_xywh": 9}
FRESH = Progress("stage2", dict(DATA))
STEPS, EPOCHS = 5, 4


def network(seed: int) -> tuple[HRNet, torch.optim.Adam]:
    """A trained step's worth of weights, buffers and moments, laid out as in training."""
    torch.manual_seed(seed)
    model = HRNet(num_keypoints=3, **asdict(SMOKE.network)).to(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True)
    take_step(model, optimizer)
    return model, optimizer


def take_step(model, optimizer) -> None:
    model(torch.randn(2, 3, 64, 32, generator=torch.Generator().manual_seed(1))).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()


def after(step: int) -> Progress:
    """The progress of a run after a step."""
    epoch, rest = divmod(step, STEPS)
    return replace(FRESH, epoch=epoch, step=step, losses=[0.5] * rest, best=0.25 if epoch else None)


def saved(folder, steps) -> list:
    return [save_state(folder, *network(step), after(step)) for step in steps]


def load(folder, fresh=FRESH):
    return load_state(folder, *network(99), fresh, STEPS, EPOCHS)


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_everything_comes_back_and_only_two_are_kept(tmp_path):
    saved(tmp_path, [3, 12, 7])
    assert [int(path.name[5:13]) for path in list_states(tmp_path)] == [12, 7]
    model, optimizer = network(99)
    progress, remarks, wrong = load_state(tmp_path, model, optimizer, FRESH, STEPS, EPOCHS)
    assert progress == after(12) and len(remarks) == 1 and "step 12" in remarks[0] and not wrong
    then, moments = network(12)
    assert same(model.state_dict(), then.state_dict())
    for parameter in moments.state:
        moments.state[parameter]["step"] += 11  # its file says twelve
    for mine, theirs in zip(model.parameters(), then.parameters(), strict=True):
        found, expected = optimizer.state[mine], moments.state[theirs]
        assert same(found, expected) and found["step"].dtype == expected["step"].dtype
        assert found["exp_avg"].stride() == mine.stride() == expected["exp_avg_sq"].stride()
    take_step(model, optimizer)
    take_step(then, moments)
    assert same(model.state_dict(), then.state_dict())


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.floats(0, 1, exclude_max=True), st.sampled_from(["flip", "cut", "empty"]))
def test_a_damaged_newest_state_falls_back_to_the_one_before(tmp_path_factory, where, damage):
    folder = tmp_path_factory.mktemp("states")
    old, new = saved(folder, [5, 6])
    content = bytearray(new.read_bytes())
    at = int(where * len(content))
    content[at] ^= 0x10
    new.write_bytes({"flip": content, "cut": content[:at], "empty": b""}[damage])
    progress, remarks, wrong = load(folder)
    assert progress.step == 5 and remarks[0].startswith(f"warning: {new}") and wrong == [new]
    old.write_bytes(b"gone too")
    progress, remarks, wrong = load(folder)
    assert progress is FRESH and "starts anew" in remarks[-1] and wrong == [new, old]
    set_aside(wrong)
    assert not list_states(folder) and len(list(folder.glob("*.damaged"))) == 2


def rewrite(path, progress: dict | None = None, tensors: dict | None = None, step: int | None = None) -> None:
    """The same state with other content, and a name whose digest fits it again."""
    with safe_open(path, "pt") as file:
        header = msgspec.json.decode(file.metadata()["progress"]) | (progress or {})
    content = {n: t for n, t in (load_file(path) | (tensors or {})).items() if t is not None}
    path.unlink()
    save_file(content, path, {"progress": msgspec.json.encode(header).decode()})
    path.rename(path.with_name(f"step_{step or 7:08d}_{sha256(path)[:16]}.safetensors"))


@pytest.fixture(scope="module")
def seventh(tmp_path_factory):
    return saved(tmp_path_factory.mktemp("seventh"), [7])[0]


@pytest.fixture(scope="module")
def target():
    """A network that nothing is to be loaded into."""
    return network(99)


WEIGHT = "model.final_layer.bias"  # (3,)
MOMENT = "exp_avg_sq.final_layer.bias"


NOT_FINITE = [torch.tensor([0.0, float(number), 0.0]) for number in ("nan", "inf")]
WRONG = {"step": 8, "epoch": 2, "losses": [0.5] * 7, "run": "stage3", "data": [1], "processes": -1}
WRONG |= {"seconds": "1", "typical_loss": 1e39, "best": 7.0, "bad_images": None}
CHANGES = [{"progress": {key: wrong}} for key, wrong in WRONG.items()]
CHANGES += [{"progress": {"losses": [0.5, wrong]}} for wrong in (None, 1e39)]
CHANGES += [{"progress": {"step": 7, "epoch": 0, "losses": [0.5] * 7}}, {"step": 8}]
CHANGES += [{"progress": {"step": 32, "epoch": 6}, "step": 32}]
CHANGES += [{"tensors": {WEIGHT: t}} for t in (*NOT_FINITE, torch.zeros(4), torch.zeros(3).double(), None)]
CHANGES += [{"tensors": {MOMENT: t}} for t in (*NOT_FINITE, torch.tensor([0.0, -1.0, 0.0]))]
CHANGES += [{"tensors": {"model.more": torch.zeros(1)}}]


@pytest.mark.parametrize("change", CHANGES, ids=str)
def test_a_state_that_is_wrong_in_any_part_is_left_aside_and_unloaded(tmp_path, seventh, target, change):
    """Its digest is right: it was written so, not damaged since."""
    rewrite(shutil.copy(seventh, tmp_path / seventh.name), **change)
    model, optimizer = target
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    progress, remarks, wrong = load_state(tmp_path, model, optimizer, FRESH, STEPS, EPOCHS)
    assert progress is FRESH and wrong == list_states(tmp_path) != [] and "starts anew" in remarks[-1]
    assert remarks[0].startswith(f"warning: {wrong[0]}") and "\n" not in remarks[0]
    assert same(model.state_dict(), weights)
    assert all(state["step"] == 1 for state in optimizer.state.values())


def test_what_is_called_like_a_state_and_is_none_does_not_break(tmp_path, seventh):
    assert load(tmp_path / "none") == (FRESH, [], [])
    remove_states(tmp_path / "none")
    rewrite(shutil.copy(seventh, tmp_path / seventh.name))  # as it was: this one is taken
    (state,) = list_states(tmp_path)
    digest = 16 * "0"
    os.mkfifo(tmp_path / f"step_00000009_{digest}.safetensors")
    with open(tmp_path / f"step_00000010_{digest}.safetensors", "wb") as file:
        file.truncate(2**40)  # holes
    (tmp_path / "step_11").mkdir()
    (tmp_path / "step_00000012_0123456789abcdef.pt").write_bytes(b"of an older version")
    (tmp_path / f"step_00000013_{digest}.safetensors").symlink_to("nowhere")
    progress, remarks, wrong = load(tmp_path)
    assert progress == after(7) and len(wrong) == 5 and all(r.startswith("warning: ") for r in remarks[:5])
    set_aside(wrong)
    assert list_states(tmp_path) == [state]
    saved(tmp_path, [8, 9])
    remove_states(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["step_11.damaged"]  # a folder is none of ours


def test_changed_data_are_refused_and_other_processes_and_parts_noticed(tmp_path):
    saved(tmp_path, [4])
    for change, message in (({"persons": 10}, "persons 11 -> 10"), ({"keypoints": 5}, "columns: keypoints")):
        with pytest.raises(HrnetppError, match=message):
            load(tmp_path, replace(FRESH, data=DATA | change))
    progress, remarks, _ = load(tmp_path, replace(FRESH, processes=2, accumulate=3))
    assert (progress.step, progress.processes, progress.accumulate) == (4, 2, 3)
    assert "processes was 1 and is 2 now" in remarks[1] and "accumulate was 1 and is 3 now" in remarks[2]


@pytest.mark.parametrize("error", [SafetensorError("I/O error: No space left"), OSError(30, "Read-only")])
def test_a_disk_that_cannot_be_written_leaves_the_states_before_alone(tmp_path, monkeypatch, error):
    before = saved(tmp_path, [1, 2])

    def full(*_):
        (tmp_path / "state.part").write_bytes(b"half")
        raise error

    monkeypatch.setattr(resume, "save_file", full)
    with pytest.raises(HrnetppError, match="step 3 cannot be written .*(No space left|Read-only)"):
        saved(tmp_path, [3])
    assert sorted(tmp_path.iterdir()) == sorted(before)
    (tmp_path / "state.part").write_bytes(before[1].read_bytes()[:1000])  # as a killed save leaves it
    assert load(tmp_path)[0].step == 2
    remove_states(tmp_path)
    assert not tmp_path.exists()
