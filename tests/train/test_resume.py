"""Saved states: complete or not there, checked when read, and tied to the data that they were trained on."""

import errno
from dataclasses import asdict, replace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hrnetpp_lib.errors import HrnetppError
from hrnetpp_lib.model.hrnet import HRNet
from hrnetpp_lib.recipe import SMOKE
from hrnetpp_lib.train import resume
from hrnetpp_lib.train.resume import Progress, list_states, load_state, remove_states, save_state

DATA = {"persons": 11, "images": 7, "keypoints": 123, "bboxes_xywh": 9}
FRESH = Progress(dict(DATA), processes=1)


def network(seed: int) -> tuple[HRNet, torch.optim.Adam]:
    """A trained step's worth of weights, buffers and moments."""
    torch.manual_seed(seed)
    model = HRNet(num_keypoints=3, **asdict(SMOKE.network))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True)
    model(torch.randn(2, 3, 64, 32)).square().mean().backward()
    optimizer.step()
    return model, optimizer


def saved(folder, steps) -> list:
    return [
        save_state(folder, *network(step), replace(FRESH, step=step, losses=[0.5, step / 3]))
        for step in steps
    ]


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_everything_comes_back_and_only_two_are_kept(tmp_path):
    saved(tmp_path, [3, 12, 7])
    assert [int(path.name[5:13]) for path in list_states(tmp_path)] == [12, 7]
    model, optimizer = network(99)
    progress, remarks = load_state(tmp_path, model, optimizer, FRESH)
    then, moments = network(12)
    assert progress == replace(FRESH, step=12, losses=[0.5, 4.0]) and "step 12" in remarks[0]
    assert same(model.state_dict(), then.state_dict())
    before, after = moments.state_dict()["state"], optimizer.state_dict()["state"]
    assert before.keys() == after.keys() and all(same(before[p], after[p]) for p in before)


def test_no_state_means_a_fresh_run(tmp_path):
    model, optimizer = network(1)
    assert load_state(tmp_path / "none", model, optimizer, FRESH) == (FRESH, [])
    remove_states(tmp_path / "none")


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.floats(0, 1, exclude_max=True), st.sampled_from(["flip", "cut", "empty"]))
def test_a_damaged_newest_state_falls_back_to_the_one_before(tmp_path_factory, where, damage):
    folder = tmp_path_factory.mktemp("states")
    old, new = saved(folder, [5, 6])
    content = bytearray(new.read_bytes())
    at = int(where * len(content))
    if damage == "flip":
        content[at] ^= 0x10
    new.write_bytes(content if damage == "flip" else content[:at] if damage == "cut" else b"")
    progress, remarks = load_state(folder, *network(0), FRESH)
    assert progress.step == 5 and remarks[0].startswith("warning") and new.name in remarks[0]
    old.write_bytes(b"gone too")
    progress, remarks = load_state(folder, *network(0), FRESH)
    assert progress is FRESH and "starts anew" in remarks[-1]


def test_data_that_changed_are_refused_with_the_difference(tmp_path):
    saved(tmp_path, [4])
    for change, message in (
        ({"persons": 10}, "persons 11 -> 10"),
        ({"keypoints": 5}, "same numbers; different columns: keypoints"),
    ):
        with pytest.raises(HrnetppError, match=message):
            load_state(tmp_path, *network(0), Progress(DATA | change, processes=1))
    progress, remarks = load_state(tmp_path, *network(0), Progress(DATA, processes=2))
    assert progress.step == 4 and "1 processes before, 2 now" in remarks[-1]


def test_a_full_disk_leaves_the_states_before_alone(tmp_path, monkeypatch):
    before = saved(tmp_path, [1, 2])

    def full(*_):
        (tmp_path / "state.part").write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(resume.torch, "save", full)
    with pytest.raises(HrnetppError, match="step 3 cannot be written .*No space left"):
        saved(tmp_path, [3])
    assert sorted(tmp_path.iterdir()) == sorted(before)
    assert load_state(tmp_path, *network(0), FRESH)[0].step == 2


def test_what_a_killed_save_leaves_is_not_taken_for_a_state(tmp_path):
    (path,) = saved(tmp_path, [8])
    (tmp_path / "state.part").write_bytes(path.read_bytes()[:1000])
    assert load_state(tmp_path, *network(0), FRESH)[0].step == 8
    remove_states(tmp_path)
    assert not tmp_path.exists()
