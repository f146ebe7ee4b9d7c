"""Files are read whole and within bounds, and written whole or not at all, whatever comes between."""

import contextlib
import json
import os
import signal
import threading
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from unittest.mock import Mock

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hrnetpp_lib import files
from hrnetpp_lib.errors import HrnetppError, Preempted
from hrnetpp_lib.files import decode_json, read_bytes, read_json, whole_file, whole_folder, write_json

REMEDY = "ask for another"


@dataclass
class Card:
    size: int
    name: str | None = None


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def fill(part: Path | None) -> None:
    (part / "deep").mkdir()
    for name in ("deep/a", "b"):
        (part / name).write_text("new")


def test_project_root_is_the_checkout_or_where_one_stands(tmp_path, monkeypatch):
    assert (files.project_root() / "hrnetpp_lib" / "files.py").is_file()
    monkeypatch.setattr(files, "__file__", str(tmp_path / "site-packages" / "hrnetpp_lib" / "files.py"))
    monkeypatch.chdir(tmp_path)
    assert files.project_root() == tmp_path


def test_a_file_is_read_up_to_the_bound_or_named(tmp_path, monkeypatch):
    path = tmp_path / "file"
    path.write_bytes(b"abc")
    assert read_bytes(path, most_bytes=3) == b"abc"
    assert files.sha256(path) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    with pytest.raises(HrnetppError, match="file: has 3 bytes, more than the 2"):
        read_bytes(path, most_bytes=2)
    monkeypatch.setattr(Path, "read_bytes", Mock(side_effect=PermissionError(13, "Permission denied")))
    with pytest.raises(HrnetppError, match=rf"file: cannot be read \(Permission denied\); {REMEDY}"):
        read_json(path, dict, REMEDY)


@contextlib.contextmanager
def on_signal(number, handler, after):
    """Handle a signal, which comes after some seconds."""
    before = signal.signal(number, handler)
    timer = threading.Timer(after, os.kill, (os.getpid(), number))
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        signal.signal(number, before)


NO_FILES = ["missing", "folder", "pipe", "loop", "null\0byte", "long" * 100, "file/below", "/dev/zero"]


@pytest.mark.parametrize("name", NO_FILES, ids=lambda name: name[:10])
def test_what_is_no_regular_file_is_refused_at_once(tmp_path, name):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("{}")
    (tmp_path / "loop").symlink_to("loop")
    os.mkfifo(tmp_path / "pipe")  # nobody will ever write to it
    with on_signal(signal.SIGALRM, lambda number, frame: pytest.fail("it hangs"), after=5):
        for read in (read_bytes, partial(read_json, kind=dict)):
            with pytest.raises(HrnetppError, match=REMEDY) as caught:
                read(tmp_path / name, remedy=REMEDY)
            assert str(caught.value).startswith(f"{tmp_path / name}: ") and "\n" not in str(caught.value)


BAD_JSON = {
    "empty": (b"", "is empty"),
    "half": (b'{"size": 1,', "truncated"),
    "no json": (b"size: 3", "malformed"),
    "not utf-8": (b'{"size": 3, "name": "\xff"}', "utf-8"),
    "NaN": (b'{"size": NaN}', "malformed.*json has no NaN or infinity"),
    "infinity": (b'{"size": -Infinity}', "malformed.*json has no NaN or infinity"),
    "a number too large for any float": (b'{"size": 3, "name": 1e999}', "name"),
    "a text for a number": (b'{"size": "3"}', r"Expected `int`, got `str` - at `\$.size`"),
    "a broken number": (b'{"size": 3.5}', r"\$.size"),
    "a yes for a number": (b'{"size": true}', r"\$.size"),
    "a field missing": (b'{"name": "x"}', "size"),
    "a list": (b"[1]", "Expected `object`, got `array`"),
    "nested too deep": (b'{"other": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "recursion"),
    "a lone surrogate": (b'{"size": 3, "name": "\\ud800"}', "truncated"),
    "two values": (b'{"size": 3}{"size": 4}', "malformed"),
}


@pytest.mark.parametrize(("text", "reason"), BAD_JSON.values(), ids=BAD_JSON)
def test_json_of_another_kind_is_refused_with_its_place(tmp_path, text, reason):
    (tmp_path / "a.json").write_bytes(text)
    with pytest.raises(HrnetppError, match=reason) as caught:
        read_json(tmp_path / "a.json", Card, REMEDY)
    message = str(caught.value)
    assert message.startswith(f"{tmp_path / 'a.json'}: ") and message.endswith(f"; {REMEDY}")
    assert "\n" not in message and len(message) < 300 + len(str(tmp_path)) + 50


def test_text_in_memory_and_its_name():
    assert decode_json('{"size": 3}', Card, "answer", REMEDY) == Card(3)
    assert decode_json(b'\xef\xbb\xbf{"size": 3}', Card, "answer", REMEDY) == Card(3)  # a byte order mark
    with pytest.raises(HrnetppError, match=rf"^answer: .*; {REMEDY}$"):
        decode_json('{"size": "\udc80"}', Card, "answer", REMEDY)
    with pytest.raises(HrnetppError, match="^answer: .*unknown field `a b`"):
        decode_json('{"a\\nb": 1}', msgspec.defstruct("_", [], forbid_unknown_fields=True), "answer", REMEDY)


numbers = st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False, allow_infinity=False)
values = st.recursive(
    st.none() | st.booleans() | numbers | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
)


@given(content=values)
@settings(deadline=None)
def test_json_comes_back(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("json") / "a" / "b.json"
    for written in ({"before": 1}, content):
        write_json(path, written)
    assert json.loads(path.read_text()) == content and path.read_text().endswith("\n")
    assert names(path.parent) == ["b.json"]


def test_what_is_written_of_dataclasses_tuples_and_arrays(tmp_path):
    content = {"card": Card(3), "pair": (1, 2.5), "f": np.float32(0.5), "i": np.arange(2), "nan": np.nan}
    write_json(tmp_path / "a.json", content)
    assert (tmp_path / "a.json").read_text().startswith('{\n  "card": {\n    "size": 3')
    read = {"card": {"size": 3, "name": None}, "pair": [1, 2.5], "f": 0.5, "i": [0, 1], "nan": None}
    assert read_json(tmp_path / "a.json", dict) == read


FAILURES = [
    ({"bad": object()}, AttributeError, "object"),
    ({"name": "\udcff.jpg"}, HrnetppError, "a.json: cannot be written .*rename"),
    ({"long": "x" * 2000}, HrnetppError, r"a.json: cannot be written \(File too large\); make room"),
]


@pytest.mark.parametrize(("content", "kind", "message"), FAILURES, ids=["unknown", "no text", "full"])
def test_a_failed_write_keeps_the_old_file_and_leaves_no_other(tmp_path, full_disk, content, kind, message):
    write_json(tmp_path / "a.json", {"kept": 1})
    with pytest.raises(kind, match=message), full_disk(1000):
        write_json(tmp_path / "a.json", content)
    assert read_json(tmp_path / "a.json", dict) == {"kept": 1} and names(tmp_path) == ["a.json"]


FAULTS = [Preempted("SIGTERM"), KeyboardInterrupt(), HrnetppError("bad"), OSError(28, "No space left")]


@pytest.mark.parametrize("fault", FAULTS, ids=repr)
def test_what_is_begun_and_not_finished_leaves_nothing(tmp_path, fault):
    kind, path = HrnetppError if isinstance(fault, OSError) else type(fault), tmp_path / "a.npz"
    path.write_bytes(b"old")
    with pytest.raises(kind), whole_file(path) as part:
        part.write_bytes(b"half")
        raise fault
    with pytest.raises(HrnetppError, match="a.npz: cannot be written"), whole_file(path):
        pass  # nothing was written where something should be
    with pytest.raises(kind), whole_folder(tmp_path / "data") as part:
        fill(part)
        raise fault
    assert path.read_bytes() == b"old" and names(tmp_path) == [".data.lock", "a.npz"]


def test_content_reaches_the_disk_before_its_name_does(tmp_path, monkeypatch):
    done, fsync, replace = [], os.fsync, Path.replace
    realpath = os.path.realpath
    monkeypatch.setattr(os, "fsync", lambda fd: (done.append(realpath(f"/proc/self/fd/{fd}")), fsync(fd)))
    monkeypatch.setattr(Path, "replace", lambda self, to: (done.append("replace"), replace(self, to)))
    with whole_file(tmp_path / "a.json") as part:
        part.write_text("{}")
    assert done == [str(part), "replace", str(tmp_path)]


def test_two_writers_of_one_file_do_not_meet(tmp_path):
    with whole_file(tmp_path / "a.json") as first, whole_file(tmp_path / "a.json") as second:
        assert first != second and first.suffix == second.suffix == ".json"
        first.write_text("1")
        second.write_text("2")
    assert (tmp_path / "a.json").read_text() == "1" and names(tmp_path) == ["a.json"]


@pytest.mark.parametrize("place", ["file/a", "/proc/none/a", "n" * 300], ids=["file", "proc", "long"])
def test_places_that_cannot_be_written_to_are_named(tmp_path, place):
    (tmp_path / "file").write_text("no folder")
    path = tmp_path / place
    for context in (whole_file(path), whole_folder(path)):
        with pytest.raises(HrnetppError, match="(a|nn): cannot be written"), context as part:
            part.write_text("only the writer meets a name that is too long")
    assert names(tmp_path) == ["file"]


def test_a_folder_gets_its_name_once_it_is_full(tmp_path):
    data, umask = tmp_path / "made" / "data", os.umask(0o027)
    try:
        with whole_folder(data) as part:
            fill(part)
            assert not data.exists()
    finally:
        os.umask(umask)
    assert (data / "deep" / "a").read_text() == "new" and data.stat().st_mode & 0o777 == 0o750
    assert names(data.parent) == [".data.lock", "data"]


def test_left_overs_of_killed_programs_go_and_other_folders_stay(tmp_path):
    for name in (".data[1].1f.part", ".data1.1f.part", ".data[1]x.1f.part", "data[1].part"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "half").write_text("x")
    with whole_folder(tmp_path / "data[1]") as part:
        fill(part)
    kept = [".data1.1f.part", ".data[1].lock", ".data[1]x.1f.part", "data[1]", "data[1].part"]
    assert names(tmp_path) == kept and names(tmp_path / "data[1]") == ["b", "deep"]


def test_a_folder_that_is_there_is_left_alone_or_gets_what_it_lacks(tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    with whole_folder(data) as part:
        assert part is None
    assert names(tmp_path) == ["data"]  # no lock, which nobody might be allowed to write
    for name in ("b", "c"):
        (data / name).write_text("old")
    with whole_folder(data, lambda path: (path / "deep").exists()) as part:
        fill(part)
    found = {name: (data / name).read_text() for name in ("deep/a", "b", "c")}
    assert found == {"deep/a": "new", "b": "new", "c": "old"}
    assert names(tmp_path) == [".data.lock", "data"] and names(data) == ["b", "c", "deep"]


@pytest.fixture
def somebody_else(tmp_path):
    """Another thread that makes tmp_path/data, and goes on making it until it is told to finish."""
    entered, finish = threading.Event(), threading.Event()

    def make():
        with whole_folder(tmp_path / "data") as part:
            entered.set()
            finish.wait(20)
            fill(part)

    thread = threading.Thread(target=make)
    thread.start()
    assert entered.wait(20)
    yield finish
    finish.set()
    thread.join()


def test_who_comes_second_waits_and_finds_it_made(tmp_path, somebody_else):
    threading.Timer(0.3, somebody_else.set).start()
    start = time.monotonic()
    with whole_folder(tmp_path / "data") as part:
        assert part is None and (tmp_path / "data" / "b").read_text() == "new"
    assert time.monotonic() - start > 0.25


def test_a_signal_ends_the_waiting(tmp_path, somebody_else):
    asked_to_end = Mock(side_effect=Preempted("SIGTERM"))
    waiting = on_signal(signal.SIGTERM, asked_to_end, after=0.2)
    with waiting, pytest.raises(Preempted) as caught, whole_folder(tmp_path / "data"):
        pytest.fail("two at once")
    assert caught.value.code == 75 and str(caught.value) == "SIGTERM"
