"""The lines and heatmaps that a run leaves; bars for people, lines for logs."""

import errno
import json
import os
import subprocess
import sys
from dataclasses import asdict, replace

import numpy as np
import pytest

import hrnetpp_lib.train.journal as module
from hrnetpp_lib.errors import HrnetppError
from hrnetpp_lib.model.hrnet import HRNet
from hrnetpp_lib.model.weights import ModelCard
from hrnetpp_lib.recipe import SMOKE, STAGE2, resolve
from hrnetpp_lib.train.journal import (
    EpochBar,
    append_metrics,
    cut_metrics,
    describe,
    lock,
    read_data,
    read_metrics,
    read_snapshots,
    save_snapshot,
)

RUN = resolve(STAGE2, replace(SMOKE, input_hw=(96, 64)))
RECORD = {"epoch": 7, "step": 35, "loss": 0.0123, "lr": 1e-3, "seconds": 2.5, "samples_per_s": 98.7}
RECORD |= {"bad_images": 0, "processes": 2, "accumulate": 1}
SCORED = {"metric": "COCO AP", "value": 0.5149, "boxes": "ground-truth boxes"}


@pytest.fixture
def folder(tmp_path):
    """The run's, empty."""
    folder = tmp_path / RUN.name
    folder.mkdir()
    return folder


def test_training_draws_nothing():
    code = "import hrnetpp_lib.train.loop, sys; print([m for m in sys.modules if 'matplotlib' in m])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"


def test_metrics_come_back_and_can_be_cut(tmp_path, folder):
    with pytest.raises(HrnetppError, match=f"metrics.jsonl: there is no such file; train {RUN.name} first"):
        read_metrics(tmp_path, RUN)
    for epoch in range(1, 5):
        append_metrics(folder, RECORD | {"epoch": epoch})
    append_metrics(folder, RECORD | SCORED | {"epoch": 5})
    assert read_metrics(tmp_path, RUN)[3:] == [RECORD | {"epoch": 4}, RECORD | SCORED | {"epoch": 5}]
    assert json.loads((folder / "metrics.jsonl").read_text().splitlines()[0]) == RECORD | {"epoch": 1}
    cut_metrics(folder, 3)
    assert [record["epoch"] for record in read_metrics(tmp_path, RUN)] == [1, 2, 3]
    assert "lacks 1 of the 4 epochs" in cut_metrics(folder, 4) and not cut_metrics(folder, 3)
    cut_metrics(folder, 0)
    with pytest.raises(HrnetppError, match="holds no epoch yet"):
        read_metrics(tmp_path, RUN)


LINES = [json.dumps(RECORD | {"epoch": epoch}).encode() for epoch in (1, 2, 3)]
WHOLE = b"\n".join(LINES) + b"\n"


@pytest.mark.parametrize(
    ("content", "line", "left"),
    [
        (WHOLE[:-40], 3, [1, 2]),
        (WHOLE + b"\xff\xfe\x80", 4, [1, 2, 3]),
        (b"\n".join([LINES[0], LINES[2]]) + b"\n", None, [1, 3]),
        (WHOLE + LINES[2], 4, [1, 2, 3]),
        (b"3\n" + WHOLE, 1, [1, 2, 3]),
        (WHOLE.replace(b"0.0123", b"1e39"), 1, []),
        (WHOLE.replace(b"0.0123", b"NaN"), 1, []),
        (WHOLE.replace(b'"step": 35', b'"step": "35"'), 1, []),
        (WHOLE.replace(b'"step": 35', b'"step": 35, "metric": "COCO AP"'), 1, []),
    ],
    ids=[
        "cut",
        "bytes",
        "a line lost",
        "a line twice",
        "text",
        "too large",
        "no number",
        "another type",
        "half a score",
    ],
)
def test_damaged_metrics_cost_their_lines_and_no_others(tmp_path, folder, content, line, left):
    path = folder / "metrics.jsonl"
    path.write_bytes(content)
    if line:
        with pytest.raises(HrnetppError, match=rf"^{path}, line {line}: .*; delete the line"):
            read_metrics(tmp_path, RUN)
    assert (f"lacks {3 - len(left)} of the 3" in cut_metrics(folder, 3)) == (len(left) < 3)
    append_metrics(folder, RECORD | {"epoch": 4})
    assert [record["epoch"] for record in read_metrics(tmp_path, RUN)] == [*left, 4]


@pytest.mark.parametrize("content", ["[1]", '{"persons": 1.5}', '{"persons": 1', "[" * 100_000])
def test_damaged_fingerprints_are_one_line(folder, content):
    assert read_data(folder) is None
    (folder / "data.json").write_text(content)
    with pytest.raises(HrnetppError, match=r"data.json: [^\n]*; delete it, or the run to train anew$"):
        read_data(folder)


@pytest.mark.parametrize("name", ["metrics.jsonl", "data.json", "snapshots/epoch_001.npz"])
def test_pipes_do_not_hold_the_reader(tmp_path, folder, name):
    (folder / name).parent.mkdir(exist_ok=True)
    os.mkfifo(folder / name)
    read = {"m": read_metrics, "s": read_snapshots}.get(name[0], lambda *_: read_data(folder))
    with pytest.raises(HrnetppError, match=f"{name}: is no regular file"):
        read(tmp_path, RUN)


def test_a_folder_that_cannot_be_written_to_is_named(tmp_path, folder, monkeypatch):
    (tmp_path / "file").touch()
    with pytest.raises(HrnetppError, match="file/gone/metrics.jsonl: cannot be written"):
        append_metrics(tmp_path / "file" / "gone", RECORD)
    with (
        pytest.raises(HrnetppError, match="file/gone: cannot be written to"),
        lock(tmp_path / "file/gone", True),
    ):
        raise AssertionError
    with pytest.raises(OSError, match="of the work"), lock(folder, True):  # not taken for the lock's own
        raise OSError(errno.EIO, "of the work")


def test_a_second_training_is_kept_out(folder):
    with lock(folder, True):
        with pytest.raises(HrnetppError, match="another process trains this run"), lock(folder, True):
            raise AssertionError
        with lock(folder, False):
            pass
    with lock(folder, True):
        pass


def test_an_epoch_in_one_line():
    assert describe(RECORD, 30) == "epoch   7/30  loss 1.230e-02  lr 1.0e-03  99 crops/s"
    full = RECORD | SCORED | {"bad_images": 3}
    assert describe(full, 30).endswith("3 unreadable pictures replaced  COCO AP 0.515 (ground-truth boxes)")


def test_snapshots_hold_the_same_eight_people(tmp_path, folder, one_person):
    table = one_person.select(np.zeros(11, int))
    table.bbox_scores[:] = np.linspace(0, 1, 11)
    with pytest.raises(HrnetppError, match="holds no snapshot; train"):
        read_snapshots(tmp_path, RUN)
    model = HRNet(**asdict(SMOKE.network))
    for epoch in (10, 2):
        save_snapshot(folder, epoch, model, ModelCard(input_hw=(96, 64)), table)
    first, second = read_snapshots(tmp_path, RUN)
    assert (first["epoch"], second["epoch"]) == (2, 10)
    assert first["crops"].shape == (8, 96, 64, 3) and first["heatmaps"].shape == (8, 17, 24, 16)
    assert np.array_equal(first["crops"], second["crops"]) and first["crops"].any()
    assert sorted(path.name for path in (folder / "snapshots").iterdir()) == [
        "epoch_002.npz",
        "epoch_010.npz",
    ]


CROPS, MAPS = np.ones((3, 96, 64, 3), np.uint8), np.ones((3, 17, 24, 16), np.float16)


@pytest.mark.parametrize(
    "arrays",
    [
        {"crops": CROPS},
        {"crops": CROPS[:, :, :32], "heatmaps": MAPS},
        {"crops": CROPS[:2], "heatmaps": MAPS},
        {"crops": CROPS, "heatmaps": MAPS[:, :, :16]},
        {"crops": CROPS, "heatmaps": MAPS[..., None]},
        {"crops": CROPS, "heatmaps": MAPS.astype(float)},
        {"crops": CROPS, "heatmaps": MAPS * np.float16(np.inf)},
        {"crops": np.array({"code": 1}, object), "heatmaps": MAPS},
        {"crops": np.uint8(3), "heatmaps": MAPS},
        {"crops": CROPS, "heatmaps": np.zeros(2**28, np.uint8)},  # 260 KB in the file
    ],
)
def test_snapshots_that_are_none_of_this_run_are_one_line(tmp_path, folder, arrays):
    path = folder / "snapshots" / "epoch_003.npz"
    path.parent.mkdir()
    np.savez_compressed(path, **{"crops": CROPS, "heatmaps": MAPS})
    assert read_snapshots(tmp_path, RUN)[0]["epoch"] == 3
    np.savez_compressed(path, **arrays)
    with pytest.raises(HrnetppError, match=rf"^{path}: [^\n]*; delete it, or the folder to train anew$"):
        read_snapshots(tmp_path, RUN)


@pytest.fixture
def logged(monkeypatch):
    monkeypatch.setenv("HRNETPP_HEADLESS", "1")
    monkeypatch.setattr(module, "_SECONDS_BETWEEN_LINES", -1)


def test_lines_say_how_far_how_fast_and_how_long(logged, capsys):
    bar = EpochBar("stage2 epoch 3/8", crops=100, done=40)
    bar.advance(20, loss=0.0125, lr=5e-4)
    bar.close()
    line = capsys.readouterr().out
    assert line.startswith("stage2 epoch 3/8: 60/100 crops, ")
    assert "loss 1.250e-02, lr 5.0e-04" in line and line.endswith("min to go\n")


def test_other_processes_and_quick_epochs_say_nothing(monkeypatch, logged, capsys):
    EpochBar("x", 10, 0, silent=True).advance(5, 0.1, 1e-3)
    monkeypatch.setattr(module, "_SECONDS_BETWEEN_LINES", 300)
    EpochBar("x", 10, 0).advance(5, 0.1, 1e-3)
    assert capsys.readouterr() == ("", "")


def test_people_see_a_bar_that_starts_where_the_epoch_does(monkeypatch, capsys):
    monkeypatch.setattr(module, "headless", lambda: False)
    bar = EpochBar("stage2 epoch 3/8", crops=100, done=40)
    bar.advance(20, loss=0.0125, lr=5e-4)
    bar._bar.refresh()
    bar.close()
    shown = capsys.readouterr().err
    assert "stage2 epoch 3/8" in shown and "60/100" in shown and "loss 1.25e-02, lr 5.0e-04" in shown
