"""Table 1 and results files: the report's metrics, our rows beside them, and where numbers come from."""

import json
import subprocess
from functools import partial
from importlib.metadata import version
from itertools import product

import numpy as np
import pytest
from test_score import perfect

from hrnetpp_lib.data.layout import StageData, load_coco, prepare_data
from hrnetpp_lib.evaluate import table
from hrnetpp_lib.evaluate.metrics import COCO_METRICS
from hrnetpp_lib.evaluate.score import resample, score
from hrnetpp_lib.evaluate.statistics import judge
from hrnetpp_lib.evaluate.table import (
    METRICS,
    PAPER_TABLE_1,
    Claim,
    TableRow,
    Training,
    assemble,
    in_markdown,
    metrics_in_markdown,
)
from hrnetpp_lib.model.weights import ModelCard
from hrnetpp_lib.recipe import SMOKE, replace


def row(
    method: str = "ensemble", trainings: tuple = ((0.5, 0.6), (0.52, 0.66)), **metrics: float
) -> TableRow:
    difference = None if method == "HRNet" else (10.0, -2.5, 22.5)
    metrics = dict(zip(METRICS, (0.5, 0.75, 0.25, 0.125, 1.0, 0.0), strict=True)) | metrics
    rest = True, False, (0.45, 0.55), 0.56, trainings, difference, {"a run": "its hash"}, 3
    return TableRow(method, metrics, "some.json", *rest)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> StageData:
    """Twenty synthetic people to predict, on their true boxes."""
    profile = replace(SMOKE, synthetic_persons=(8, 8, 20), boxes=None)
    return load_coco(profile, prepare_data(profile, tmp_path_factory.mktemp("data")))


def test_the_table_is_assembled_from_six_sets_of_poses_of_either_shift(data, monkeypatch):
    monkeypatch.setattr("hrnetpp_lib.evaluate.table.resample", partial(resample, draws=30))
    parts = [("hrnet", False), *product(("heatmap", "regression"), (False, True))]
    shaken = {(*part, False): perfect(data.val, px) for part, px in zip(parts, (9, 6, 5, 4, 2), strict=True)}
    shaken |= {
        (*part, True): perfect(data.val, px / 2) for part, px in zip(parts, (9, 6, 5, 4, 2), strict=True)
    }
    hashes = {name: {f"run of {name}": f"hash of {name}"} for name in ("hrnet", "heatmap", "regression")}
    ahead = [0, 2, 5, 6, 5, 9]  # hundredths of AP
    known = [
        Training(seed, {m: (base + times * a / 100, 0.9) for m, a in zip(PAPER_TABLE_1, ahead, strict=True)})
        for seed, base, times in ((0, 0.1, 1), (1, 0.5, 1.5), (0, 0.3, 1), (1, 0.2, 0.5))
    ]
    rows, claims = assemble(shaken, hashes, data, 4, known)
    assert [r.method for r in rows] == list(PAPER_TABLE_1)
    # Noise of one seed: the mean of 6 and 4 px is 5 px, that of 5 and 2 px is 3.5 px.
    noise = (9.0, 6.0, 4.0, 2.0, 5.0, 3.5)
    expected = [score(perfect(data.val, px), data) for px in noise]
    for found, metrics, px in zip(rows, expected, noise, strict=True):
        assert found.metrics == pytest.approx(metrics) and found.interval[0] < found.interval[1]
        assert (found.boxes, found.flip, found.seed) == (data.boxes, True, 4)
        assert found.exact_shift == pytest.approx(score(perfect(data.val, px / 2), data)["AP"])
    assert [r.tta for r in rows] == [False, False, False, True, False, True]
    assert rows[0].runs == hashes["hrnet"] and rows[5].runs == hashes["heatmap"] | hashes["regression"]
    assert rows[0].difference is None
    assert [pair[0] for pair in rows[1].trainings] == pytest.approx([0.12, 0.53, 0.32, 0.21])
    assert [r.difference[0] for r in rows[1:]] == pytest.approx([2, 5, 6, 5, 9])
    pairs = [(0, 1), (1, 2), (2, 3), (2, 4), (3, 5)]
    assert [(c.worse, c.better) for c in claims] == [(rows[a].method, rows[b].method) for a, b in pairs]
    printed = [round(100 * metrics["AP"], 1) for metrics in expected]
    here = [printed[b] - printed[a] for a, b in pairs]
    assert [claim.here for claim in claims] == pytest.approx(here)
    assert [c.paper for c in claims] == pytest.approx([0.2, 0.2, 0.2, 0, 0.1])
    # Two trainings of a seed are one: here 3 and 3, and 4.5 and 1.5.
    assert claims[1].differences == pytest.approx([3, 3]) and claims[1].verdict.words == "larger"
    draws = resample({tta: shaken["regression", tta, False] for tta in (False, True)}, data, draws=30)
    assert rows[3].interval == draws.interval(True)
    rows, claims = assemble(shaken, hashes, data, 4)
    assert {(r.trainings, r.difference) for r in rows} == {((), None)}
    assert {c.verdict.words for c in claims} == {"not decided; no two pairs yet"}


def test_a_published_network_has_a_row_after_the_first_and_no_claim(data, monkeypatch):
    monkeypatch.setattr("hrnetpp_lib.evaluate.table.resample", partial(resample, draws=30))
    parts = [("hrnet", False), *product(("heatmap", "regression"), (False, True)), ("published", False)]
    shaken = {(*part, exact): perfect(data.val, 9 - 3 * exact) for part in parts for exact in (False, True)}
    hashes = {name: {f"run of {name}": "a hash"} for name, _ in parts}
    known = [Training(seed, dict.fromkeys(PAPER_TABLE_1, (0.1 + 0.4 * seed, 0.9))) for seed in range(2)]
    rows, claims = assemble(shaken, hashes, data, 4, known)
    first, theirs, *rest = rows
    assert [each.method for each in (first, *rest)] == list(PAPER_TABLE_1) and len(claims) == 5
    assert theirs.method == "published HRNet-W48" and theirs.runs == {"run of published": "a hash"}
    assert (theirs.trainings, theirs.difference, theirs.seed) == ((), None, None)
    assert theirs.metrics == first.metrics and theirs.exact_shift == first.exact_shift
    text = in_markdown("coco", "7 persons", rows)
    assert f"{table.PUBLISHED}: the official weights, beside what their authors measured on" in text
    line = next(line for line in text.splitlines() if line.startswith("| published"))
    figures = zip(PAPER_TABLE_1[first.method], METRICS, strict=True)  # the report quotes them
    cells = [f"{paper:.1f} / **{100 * theirs.metrics[metric]:.1f}**" for paper, metric in figures]
    assert line.startswith(f"| published HRNet-W48 | {' | '.join(cells)} | ") and line.endswith("|  |  |  |")


def test_the_highest_and_the_lowest_row_are_named_others_networks_apart():
    aps = {"HRNet": 0.501, table.PUBLISHED: 0.9, "HRNet++ (heatmap)": 0.449, "ensemble": 0.55}
    assert table.say_rows([row(method, AP=ap) for method, ap in aps.items()]) == (
        "In this run the highest row is ensemble, AP 55.0, the lowest HRNet++ (heatmap), 44.9; HRNet, the "
        "report's lowest, has place 2 of 3."
    )


def test_figures_stand_beside_their_authors_if_the_file_is_known(data):
    metrics = dict(zip(COCO_METRICS, np.arange(10) / 16, strict=True))
    card = ModelCard(input_hw=(256, 192))
    lines = table.beside_published("model.safetensors", metrics, data, card, ["TTA"])
    assert lines == [
        "AP 0.0000  AP50 0.0625  AP75 0.1250  APM 0.1875  APL 0.2500  "
        "AR 0.3125  AR50 0.3750  AR75 0.4375  ARM 0.5000  ARL 0.5625"
    ]
    name = "hrnet_w48_coco_256x192-b9e0b3ab_20200708.pth"
    ours, theirs, how, differs = table.beside_published(name, metrics, data, card, ["TTA"])
    assert ours == f"measured   {lines[0]}"
    assert theirs == (
        "published  AP 0.7560  AP50 0.9070  AP75 0.8250  APM -       APL -       "
        "AR 0.8060  AR50 0.9420  AR75 -       ARM -       ARL -"
    )
    assert how.startswith("published by github.com/open-mmlab/mmpose: COCO val2017, boxes COCO_val2017_det")
    images = len(data.truth.image_files)
    assert differs == f"measured otherwise: TTA, boxes {data.boxes}, {images} images, not 5000"
    truth = replace(data.truth, image_files=np.zeros(5000, "S1"))
    as_theirs = replace(data, truth=truth, boxes="COCO_val2017_detections_AP_H_56_person.json")
    assert table.beside_published(name, metrics, as_theirs, card, [])[-1] == "measured in the same way"
    small = replace(card, input_hw=(64, 32))
    assert table.beside_published(name, metrics, as_theirs, small, [])[-1].endswith("otherwise: input 64x32")


def test_claims_read_like_this():
    verdict = judge([[1.0, 2.0, 3.0]])[0]
    claim = Claim("a", "b", 0.2, -0.5, (1.0, 2.0, 3.0), verdict)
    over = f"over 3 seeds +2.0 [-0.5, +4.5]: {verdict.words}"
    assert str(claim) == f"a - b: report +0.2, these networks -0.5; {over}"
    none = judge([[1.0, -1.0]])[0]
    assert f"over 2 seeds +0.0 [{none.low:+.1f}, {none.high:+.1f}]: not decided" in str(
        Claim("a", "b", 0.2, -0.5, (1.0, -1.0), none)
    )
    text = str(Claim("a", "b", 0.2, -0.5, (), judge([[]])[0]))
    assert text == "a - b: report +0.2, these networks -0.5; not decided; no two pairs yet"


def test_what_is_said_of_all_claims_by_hand():
    sure, unsure = judge([[2.0, 2.1, 2.2, 1.9, 2.05], [1.0, -4.0, 5.0, 0.5, -2.0]])
    level = Claim("c", "b", 0.0, 1.0, (), unsure)  # the report's step does not go up
    claims = [
        Claim("a", "b", 0.2, 0.04, (), unsure),
        Claim("b", "d", 0.2, 1.5, (), sure),
        level,
        Claim("e", "f", 0.1, -3.0, (), unsure),
    ]
    said = table.say_claims(claims)
    assert said.startswith("In this run 1 of the 3 steps that go up in the report go up in these networks, ")
    assert said.endswith("By trainings of 5 seeds 1 of 4 steps are decided: b - d larger.")
    alone = table.say_claims([replace(level, verdict=judge([[0.4]])[0])])
    assert alone.endswith("By trainings of 1 seed 0 of 1 steps are decided.")


def test_the_reports_table():
    assert METRICS == ("AP", "AP50", "AP75", "APM", "APL", "AR")  # and the numbers, written down again
    assert list(PAPER_TABLE_1.items()) == [
        ("HRNet", (76.3, 90.8, 82.9, 72.3, 83.4, 81.2)),
        ("HRNet++ (heatmap)", (76.5, 90.9, 83.0, 72.7, 83.5, 81.4)),
        ("HRNet++ (regression)", (76.7, 90.9, 82.9, 72.8, 83.8, 81.5)),
        ("HRNet++ (regression) + TTA", (76.9, 90.6, 82.8, 73.2, 83.8, 81.7)),
        ("ensemble", (76.7, 90.9, 83.0, 72.8, 83.8, 81.5)),
        ("ensemble + TTA", (77.0, 90.7, 83.0, 73.4, 83.8, 81.8)),
    ]


def test_the_table_by_hand():
    # APM is -1 where there is no medium person: not a figure.
    assert in_markdown("lspet_cpu", "7 persons", [row(), row("HRNet", (), APM=-1.0)]) == (
        "Each cell: report (COCO val2017, 384x288) / **ours, profile `lspet_cpu`** (7 persons).\n"
        "HRNet: the report's is the published \"Original HRNet-W48\"; ours is plain, of the profile's size,\n"
        "trained and tested on the same data and boxes as the other rows. "
        "Its learning rates are 0.125 times theirs.\n"
        "In square brackets 95%: of AP over samples of the validation images, which says nothing about\n"
        "another training; of differences over seeds. Of 2 trainings: mean ± standard deviation.\n"
        "\n"
        "| method | AP | AP50 | AP75 | APM | APL | AR | ours: AP | exact flip shift "
        "| 2 trainings: AP | exact flip shift | minus first row |\n"
        "|---|---|---|---|---|---|---|---|---|---|---|---|\n"
        "| ensemble | 76.7 / **50.0** | 90.9 / **75.0** | 83.0 / **25.0** | 72.8 / **12.5** "
        "| 83.8 / **100.0** | 81.5 / **0.0** | 50.0 [45.0, 55.0] | 56.0 | 51.0 ± 1.4 | 63.0 ± 4.2 "
        "| +10.0 [-2.5, +22.5] |\n"
        "| HRNet | 76.3 / **50.0** | 90.8 / **75.0** | 82.9 / **25.0** | 72.3 / - "
        "| 83.4 / **100.0** | 81.2 / **0.0** | 50.0 [45.0, 55.0] | 56.0 |  |  |  |\n"
    )


@pytest.mark.parametrize("trainings", [(), ((0.5, 0.6),)], ids=["none", "one, which has no spread"])
def test_a_table_without_other_trainings_has_no_columns_for_them(trainings):
    lines = in_markdown("mini", "7 persons", [row(trainings=trainings)]).splitlines()
    assert lines[2] == "trained and tested on the same data and boxes as the other rows."
    assert lines[4] == "another training."
    assert [line.count("|") for line in lines[6:]] == [10, 10, 10] and "trainings" not in lines[6]


def test_results_are_written_with_their_provenance(tmp_path):
    rows = [row(), row("ensemble + TTA")]
    table.write_results(tmp_path / "new", "mini", "7 persons", rows, [{"name": "stage2"}])
    content = json.loads((tmp_path / "new" / "results.json").read_text())
    assert set(content.pop("provenance")) == {"git_revision", "versions", "device"}
    written = content.pop("rows")
    assert content == {"profile": "mini", "data": "7 persons", "runs": [{"name": "stage2"}]}
    expected = {
        "method": "ensemble",
        "metrics": rows[0].metrics,
        "boxes": "some.json",
        "flip": True,
        "tta": False,
    }
    expected |= {"interval": [0.45, 0.55], "exact_shift": 0.56, "trainings": [[0.5, 0.6], [0.52, 0.66]]}
    expected |= {"difference": [10.0, -2.5, 22.5], "runs": {"a run": "its hash"}, "seed": 3}
    assert written[0] == expected and written[1]["method"] == "ensemble + TTA"
    assert (tmp_path / "new" / "table_1.md").read_text() == in_markdown("mini", "7 persons", rows)
    assert {file.name for file in (tmp_path / "new").iterdir()} == {"results.json", "table_1.md"}


def test_provenance_names_code_versions_and_device(monkeypatch):
    monkeypatch.setenv("HRNETPP_REVISION", "abc-dirty")
    facts = table.provenance()
    assert facts["git_revision"] == "abc-dirty" and facts["device"] and json.dumps(facts)
    needed = {"python", "torch", "numpy", "opencv-python", "pycocotools", "papermill"}
    extra = {"openvino", "onnxruntime", "hotcoco", "simplejpeg"}
    assert needed <= set(facts["versions"]) <= needed | extra
    assert facts["versions"]["numpy"] == version("numpy")


def test_git_revision_of_a_clean_and_a_changed_checkout_and_of_no_checkout(tmp_path, monkeypatch):
    assert table.git_revision(tmp_path) == "unknown"
    assert table.git_revision(tmp_path / "missing") == "unknown"
    for key, value in {"NAME": "a", "EMAIL": "a@example.org"}.items():
        monkeypatch.setenv(f"GIT_AUTHOR_{key}", value)
        monkeypatch.setenv(f"GIT_COMMITTER_{key}", value)
    (tmp_path / "file").write_text("one")
    for command in ("init -q", "add file", "commit -q -m first", "tag v1", "rev-parse HEAD"):
        git = ["git", *command.split()]
        head = subprocess.run(git, cwd=tmp_path, check=True, capture_output=True, text=True).stdout
    assert table.git_revision(tmp_path) == "unknown"  # of another project, in which the package is installed
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "hrnetpp-lib"\n')
    assert table.git_revision(tmp_path) == head[:12]
    (tmp_path / "file").write_text("two")
    assert table.git_revision(tmp_path) == f"{head[:12]}-dirty"


def test_metrics_become_a_table_in_points_with_a_dash_for_nobody():
    rows = {"HRNet": {"AP": 0.1234, "APM": 1.0}, "HRNet++": {"AP": 0.0, "APM": -1.0}}
    lines = ["| | AP | APM |", "|---|---|---|", "| HRNet | 12.3 | 100.0 |", "| HRNet++ | 0.0 | - |"]
    assert metrics_in_markdown(rows).splitlines() == lines
