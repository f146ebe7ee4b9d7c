"""Table 1 and results files: the report's figures, our rows beside them, and where numbers come from."""

import hashlib
import json
import subprocess
from importlib.metadata import version

import pytest

from hrnetpp_lib.errors import HrnetppError
from hrnetpp_lib.evaluate.table import (
    METRICS,
    PAPER_TABLE_1,
    Row,
    git_revision,
    provenance,
    table_1,
    write_results,
)
from hrnetpp_lib.files import read_json, sha256, write_json


def row(method: str = "ensemble", **metrics: float) -> Row:
    return Row(
        method,
        dict(zip(METRICS, (0.5, 0.75, 0.25, 0.125, 1.0, 0.0), strict=True)) | metrics,
        "some.json",
        True,
        False,
        (0.45, 0.55),
        None if method == "Original HRNet-W48" else (0.1, -0.025, 0.225),
    )


def test_the_reports_table():
    # The report's Table 1, written down a second time: AP, AP50, AP75, APM, APL, AR.
    assert METRICS == ("AP", "AP50", "AP75", "APM", "APL", "AR")
    assert list(PAPER_TABLE_1.items()) == [
        ("Original HRNet-W48", (76.3, 90.8, 82.9, 72.3, 83.4, 81.2)),
        ("HRNet++ (heatmap)", (76.5, 90.9, 83.0, 72.7, 83.5, 81.4)),
        ("HRNet++ (regression)", (76.7, 90.9, 82.9, 72.8, 83.8, 81.5)),
        ("HRNet++ (regression) + TTA", (76.9, 90.6, 82.8, 73.2, 83.8, 81.7)),
        ("ensemble", (76.7, 90.9, 83.0, 72.8, 83.8, 81.5)),
        ("ensemble + TTA", (77.0, 90.7, 83.0, 73.4, 83.8, 81.8)),
    ]


def test_the_table_by_hand():
    # APM is -1 where there is no medium person: not a figure.
    assert table_1("mini", "7 persons", [row(), row("Original HRNet-W48", APM=-1.0)]) == (
        "Each cell: report (COCO val2017, 384x288) / **ours, profile `mini`** (7 persons).\n"
        "Original HRNet: the report's is the published one; ours is a plain HRNet of the profile's size,\n"
        "trained and tested on the same data and boxes as the other rows.\n"
        "In square brackets 95% of a bootstrap over the validation images; differences are paired.\n"
        "\n"
        "| method | AP | AP50 | AP75 | APM | APL | AR | ours: AP | ours: AP minus first row |\n"
        "|---|---|---|---|---|---|---|---|---|\n"
        "| ensemble | 76.7 / **50.0** | 90.9 / **75.0** | 83.0 / **25.0** | 72.8 / **12.5** "
        "| 83.8 / **100.0** | 81.5 / **0.0** | 50.0 [45.0, 55.0] | +10.0 [-2.5, +22.5] |\n"
        "| Original HRNet-W48 | 76.3 / **50.0** | 90.8 / **75.0** | 82.9 / **25.0** | 72.3 / - "
        "| 83.4 / **100.0** | 81.2 / **0.0** | 50.0 [45.0, 55.0] |  |\n"
    )


def test_an_unknown_row_is_refused_with_the_known_ones():
    with pytest.raises(HrnetppError, match=r"'my model' is not a row of Table 1.*ensemble \+ TTA"):
        table_1("mini", "", [row("my model")])


def test_results_are_written_with_their_provenance(tmp_path):
    rows = [row(), row("ensemble + TTA")]
    path = write_results(tmp_path / "figures", "mini", "7 persons", rows, [{"name": "stage2"}])
    content = json.loads(path.read_text())
    assert path == tmp_path / "figures" / "results.json"
    assert set(content) == {"profile", "data", "provenance", "rows", "runs"}
    assert content["profile"] == "mini" and content["data"] == "7 persons"
    assert content["runs"] == [{"name": "stage2"}]
    assert content["rows"][0] == {
        "method": "ensemble",
        "metrics": rows[0].metrics,
        "boxes": "some.json",
        "flip": True,
        "tta": False,
        "interval": [0.45, 0.55],
        "difference": [0.1, -0.025, 0.225],
        "runs": {},
        "seed": 0,
    }
    assert (path.parent / "table_1.md").read_text() == table_1("mini", "7 persons", rows)
    assert {file.name for file in path.parent.iterdir()} == {"results.json", "table_1.md"}


def test_provenance_names_code_versions_and_device(monkeypatch):
    monkeypatch.setenv("HRNETPP_REVISION", "abc-dirty")
    facts = provenance()
    assert set(facts) == {"git_revision", "versions", "device"}
    assert facts["git_revision"] == "abc-dirty"
    assert set(facts["versions"]) == {"python", "torch", "numpy", "opencv-python", "pycocotools", "papermill"}
    assert facts["versions"]["numpy"] == version("numpy")
    assert facts["device"]
    json.dumps(facts)


def test_git_revision_of_a_clean_and_a_changed_checkout_and_of_no_checkout(tmp_path, monkeypatch):
    assert git_revision(tmp_path) == "unknown"
    assert git_revision(tmp_path / "missing") == "unknown"
    for key, value in {"NAME": "a", "EMAIL": "a@example.org"}.items():
        monkeypatch.setenv(f"GIT_AUTHOR_{key}", value)
        monkeypatch.setenv(f"GIT_COMMITTER_{key}", value)
    (tmp_path / "file").write_text("one")
    for command in (["init", "-q"], ["add", "file"], ["commit", "-q", "-m", "first"], ["tag", "v1"]):
        subprocess.run(["git", *command], cwd=tmp_path, check=True, capture_output=True)
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=tmp_path, capture_output=True, text=True).stdout
    assert git_revision(tmp_path) == head[:12]
    (tmp_path / "file").write_text("two")
    assert git_revision(tmp_path) == f"{head[:12]}-dirty"


def test_sha256_of_a_file(tmp_path):
    (tmp_path / "file").write_bytes(b"abc")
    assert sha256(tmp_path / "file") == hashlib.sha256(b"abc").hexdigest()
    assert sha256(tmp_path / "file").startswith("ba7816bf")


def test_json_comes_back_and_leaves_no_temporary_file(tmp_path):
    path = tmp_path / "a" / "b.json"
    write_json(path, {"x": [1, 2.5, None], "y": "ü"})
    write_json(path, {"x": [1, 2.5, None], "y": "ß"})
    assert read_json(path, dict) == {"x": [1, 2.5, None], "y": "ß"}
    assert [file.name for file in path.parent.iterdir()] == ["b.json"]
    assert path.read_text().endswith("}\n")


def test_a_failed_write_keeps_the_old_file(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"kept": 1})
    with pytest.raises(TypeError):
        write_json(path, {"bad": object()})
    assert read_json(path, dict) == {"kept": 1}


@pytest.mark.parametrize("content", [None, "", '{"half": [1,'])
def test_missing_and_broken_results_are_named(tmp_path, content):
    path = tmp_path / "05.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(HrnetppError, match="run the notebook that writes it") as caught:
        read_json(path, dict)
    assert str(path) in str(caught.value)
