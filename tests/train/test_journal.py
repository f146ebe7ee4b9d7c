"""The lines and heatmaps that a run leaves; bars for people, lines for logs."""

import errno
import json
import os
import sys
from dataclasses import asdict, replace

import numpy as np
import pytest

from hrnetpp_lib.errors import HrnetppError
from hrnetpp_lib.model.hrnet import HRNet
from hrnetpp_lib.model.weights import ModelCard
from hrnetpp_lib.recipe import SMOKE, STAGE2, resolve
from hrnetpp_lib.train import journal
from hrnetpp_lib.train.journal import append_metrics, cut_metrics, lock, read_metrics, read_snapshots

RUN = resolve(STAGE2, replace(SMOKE, input_hw=(96, 64)))
RECORD = {"epoch": 7, "step": 35, "loss": 0.0123, "lr": 1e-3, "seconds": 2.5, "samples_per_s": 98.7}
RECORD |= {"bad_images": 0, "processes": 2, "accumulate": 1}
SCORED = {"metric": "COCO AP", "value": 0.5149, "boxes": "ground-truth boxes", "val_loss": 1.5e-3}


@pytest.fixture
def folder(tmp_path):
    """The run's, empty."""
    folder = tmp_path / RUN.name
    (folder / "snapshots").mkdir(parents=True)
    return folder


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
DAMAGES = {  # content, the line that is refused, and the epochs that are left of three
    "cut": (WHOLE[:-40], 3, [1, 2]),
    "bytes": (WHOLE + b"\xff\xfe\x80", 4, [1, 2, 3]),
    "a line lost": (b"\n".join([LINES[0], LINES[2]]) + b"\n", None, [1, 3]),
    "a line twice": (WHOLE + LINES[2], 4, [1, 2, 3]),
    "text": (b"3\n" + WHOLE, 1, [1, 2, 3]),
    "too large": (WHOLE.replace(b"0.0123", b"1e39"), 1, []),
    "no number": (WHOLE.replace(b"0.0123", b"NaN"), 1, []),
    "another type": (WHOLE.replace(b'"step": 35', b'"step": "35"'), 1, []),
    "half a score": (WHOLE.replace(b'"step": 35', b'"step": 35, "metric": "COCO AP"'), 1, []),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_metrics_cost_their_lines_and_no_others(tmp_path, folder, damage):
    path, (content, line, left) = folder / "metrics.jsonl", DAMAGES[damage]
    path.write_bytes(content)
    if line:
        with pytest.raises(HrnetppError, match=rf"^{path}, line {line}: .*; delete the line"):
            read_metrics(tmp_path, RUN)
    assert (f"lacks {3 - len(left)} of the 3" in cut_metrics(folder, 3)) == (len(left) < 3)
    append_metrics(folder, RECORD | {"epoch": 4})
    assert [record["epoch"] for record in read_metrics(tmp_path, RUN)] == [*left, 4]


@pytest.mark.parametrize(
    ("name", "read"), [("metrics.jsonl", read_metrics), ("snapshots/epoch_001.npz", read_snapshots)]
)
def test_pipes_do_not_hold_the_reader(tmp_path, folder, name, read):
    os.mkfifo(folder / name)
    with pytest.raises(HrnetppError, match=f"{name}: is no regular file"):
        read(tmp_path, RUN)


def test_a_folder_keeps_a_second_training_out_and_is_named_where_nothing_can_be_written(tmp_path, folder):
    (tmp_path / "file").touch()
    with pytest.raises(HrnetppError, match="file/gone/metrics.jsonl: cannot be written"):
        append_metrics(tmp_path / "file" / "gone", RECORD)
    with pytest.raises(HrnetppError, match="file/gone: cannot be written to"), lock(tmp_path / "file/gone"):
        raise AssertionError
    with pytest.raises(OSError, match="of the work"), lock(folder):  # not taken for the lock's own
        with pytest.raises(HrnetppError, match="another process trains this run"), lock(folder):
            raise AssertionError
        raise OSError(errno.EIO, "of the work")
    with lock(folder):
        pass


def test_an_epoch_in_one_line():
    assert journal.describe(RECORD, 30) == "epoch   7/30  loss 1.230e-02  lr 1.0e-03  99 crops/s"
    full = journal.describe(RECORD | SCORED | {"bad_images": 3}, 30)
    assert full.endswith("pictures replaced  val loss 1.500e-03  COCO AP 0.515 (ground-truth boxes)")


def test_snapshots_hold_the_same_eight_people(tmp_path, folder, one_person):
    table = one_person.select(np.zeros(11, int))
    table.bbox_scores[:] = np.linspace(0, 1, 11)
    with pytest.raises(HrnetppError, match="holds no snapshot; train"):
        read_snapshots(tmp_path, RUN)
    model = HRNet(**asdict(SMOKE.network))
    for epoch in (10, 2):
        journal.save_snapshot(folder, epoch, model, ModelCard(input_hw=(96, 64)), table)
    first, second = read_snapshots(tmp_path, RUN)
    assert (first["epoch"], second["epoch"]) == (2, 10)
    assert first["crops"].shape == (8, 96, 64, 3) and first["heatmaps"].shape == (8, 17, 24, 16)
    assert np.array_equal(first["crops"], second["crops"]) and first["crops"].any()
    assert {path.name for path in (folder / "snapshots").iterdir()} == {"epoch_002.npz", "epoch_010.npz"}


CROPS, MAPS = np.ones((3, 96, 64, 3), np.uint8), np.ones((3, 17, 24, 16), np.float16)
STRANGE = [{"crops": crops} for crops in (CROPS[:, :, :32], CROPS[:2], np.uint8(3), np.array({1: 2}, object))]
STRANGE += [
    {"heatmaps": maps} for maps in (MAPS[:, :, :16], MAPS[..., None], MAPS.astype(float), MAPS * np.inf)
]
STRANGE += [{"heatmaps": None}, {"heatmaps": np.zeros(2**28, np.uint8)}]  # the last is 260 KB in the file


@pytest.mark.parametrize("change", STRANGE)
def test_snapshots_that_are_none_of_this_run_are_one_line(tmp_path, folder, change):
    path, arrays = folder / "snapshots" / "epoch_003.npz", {"crops": CROPS, "heatmaps": MAPS}
    np.savez_compressed(path, **arrays)
    assert read_snapshots(tmp_path, RUN)[0]["epoch"] == 3
    np.savez_compressed(path, **{name: a for name, a in (arrays | change).items() if a is not None})
    with pytest.raises(HrnetppError, match=rf"^{path}: [^\n]*; delete it, or the folder to train anew$"):
        read_snapshots(tmp_path, RUN)


def test_logs_get_seldom_a_line_of_how_far_how_fast_and_how_long(monkeypatch, capsys):
    monkeypatch.setenv("HRNETPP_HEADLESS", "1")

    def advance(silent: bool = False) -> str:
        with journal.progress_bar("stage2 epoch 3/8", 100, 40, silent) as bar:
            bar.set_postfix_str("loss 1.25e-02", refresh=False)
            bar.update(20)
        said = capsys.readouterr()
        assert not said.err
        return said.out

    assert not advance()  # a quick epoch
    monkeypatch.setattr(journal, "_SECONDS_BETWEEN_LINES", 1e-9)
    line = advance()
    assert "stage2 epoch 3/8: 60/100 crops, " in line and "crop/s, loss 1.25e-02, 00:0" in line
    assert line.count(" to go\n") == 1 and not advance(silent=True)


def test_people_see_a_bar_that_starts_where_the_epoch_does(monkeypatch, capsys):
    monkeypatch.delenv("HRNETPP_HEADLESS", raising=False)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with journal.progress_bar("stage2 epoch 3/8", 100, 40, silent=False) as bar:
        bar.update(20)
        bar.refresh()
    shown = capsys.readouterr().err
    assert "stage2 epoch 3/8:  40%" in shown and "60/100" in shown
