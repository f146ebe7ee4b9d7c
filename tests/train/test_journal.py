"""The lines and pictures that a run leaves."""

import json
from dataclasses import asdict

import cv2
import numpy as np
import pytest
from test_data import dotted_table

from hrnetpp_lib.errors import HrnetppError
from hrnetpp_lib.model.hrnet import HRNet
from hrnetpp_lib.model.weights import ModelCard
from hrnetpp_lib.recipe import SMOKE, STAGE2, Network, resolve
from hrnetpp_lib.train.journal import (
    append_metrics,
    cut_metrics,
    describe,
    read_metrics,
    read_snapshots,
    save_snapshot,
)

RECORD = {"epoch": 7, "loss": 0.0123, "lr": 1e-3, "samples_per_s": 98.7, "bad_images": 0}


def test_metrics_come_back_and_can_be_cut(tmp_path):
    run = resolve(STAGE2, SMOKE)
    with pytest.raises(HrnetppError, match="train .* first"):
        read_metrics(tmp_path, run)
    folder = tmp_path / run.name
    folder.mkdir()
    for epoch in range(1, 5):
        append_metrics(folder, RECORD | {"epoch": epoch})
    with open(folder / "metrics.jsonl", "a") as file:
        file.write('{"epoch": 5, "lo')  # killed here
    cut_metrics(folder, 3)
    assert [record["epoch"] for record in read_metrics(tmp_path, run)] == [1, 2, 3]
    assert "lacks 1 of the 4 epochs" in cut_metrics(folder, 4) and not cut_metrics(folder, 3)
    cut_metrics(folder, 0)
    assert read_metrics(tmp_path, run) == []


@pytest.mark.parametrize("damage", ["cut", "bytes", "a line lost", "a line twice", "text"])
def test_damaged_metrics_cost_their_lines_and_no_others(tmp_path, damage):
    run = resolve(STAGE2, SMOKE)
    folder = tmp_path / run.name
    folder.mkdir()
    lines = [json.dumps(RECORD | {"epoch": epoch}).encode() for epoch in (1, 2, 3)]
    whole = b"\n".join(lines) + b"\n"
    content, left = {
        "cut": (whole[:-40], [1, 2]),
        "bytes": (whole + b"\xff\xfe\x80", [1, 2, 3]),
        "a line lost": (b"\n".join([lines[0], lines[2]]) + b"\n", [1, 3]),
        "a line twice": (whole + lines[2], [1, 2, 3]),
        "text": (b"3\n" + whole, [1, 2, 3]),
    }[damage]
    path = folder / "metrics.jsonl"
    path.write_bytes(content)
    if damage in ("cut", "bytes", "text"):
        with pytest.raises(HrnetppError, match=rf"{path}: line \d is damaged; delete"):
            read_metrics(tmp_path, run)
    assert ("lacks 1 of the 3" in cut_metrics(folder, 3)) == (len(left) == 2)
    append_metrics(folder, RECORD | {"epoch": 4})
    assert [record["epoch"] for record in read_metrics(tmp_path, run)] == [*left, 4]


def test_a_folder_that_cannot_be_written_to_is_named(tmp_path):
    with pytest.raises(HrnetppError, match="gone"):
        append_metrics(tmp_path / "gone", RECORD)


def test_an_epoch_in_one_line():
    assert describe(RECORD, 30) == "epoch   7/30  loss 1.230e-02  lr 1.0e-03  99 crops/s"
    full = RECORD | {"bad_images": 3, "metric": "COCO AP", "value": 0.5149, "boxes": "ground-truth boxes"}
    assert describe(full, 30).endswith("3 unreadable pictures replaced  COCO AP 0.515 (ground-truth boxes)")


def test_snapshots_hold_the_same_eight_people_as_arrays_and_as_a_picture(tmp_path):
    table = dotted_table(tmp_path).select(np.zeros(11, int))
    table.bbox_scores[:] = np.linspace(0, 1, 11)
    model = HRNet(**small())
    for epoch in (2, 10):
        save_snapshot(tmp_path / "run", epoch, model, ModelCard(input_hw=(96, 64)), table)
    run = resolve(STAGE2, SMOKE)
    (tmp_path / "run").rename(tmp_path / run.name)
    first, second = read_snapshots(tmp_path, run)
    assert (first["epoch"], second["epoch"]) == (2, 10)
    assert first["crops"].shape == (8, 96, 64, 3) and first["heatmaps"].shape == (8, 17, 24, 16)
    assert np.array_equal(first["crops"], second["crops"])
    picture = cv2.imread(str(tmp_path / run.name / "snapshots" / "epoch_010.png"))
    assert picture.shape[1] > 900 and picture.std() > 10


def small() -> dict:
    return asdict(Network(8, blocks_per_branch=1, modules=(1, 1, 1), stem_channels=8, layer1_blocks=1))


def test_json_lines_are_plain_json(tmp_path):
    append_metrics(tmp_path, RECORD)
    assert json.loads((tmp_path / "metrics.jsonl").read_text()) == RECORD
