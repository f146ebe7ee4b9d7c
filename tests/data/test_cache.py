"""The cache of parsed annotations: equal to the reader, built again when stale or damaged, optional."""

import json
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields

import numpy as np
import pytest

from hrnetpp_lib.data.annotations import read_ai_challenger, read_coco
from hrnetpp_lib.data.cache import read_cached
from hrnetpp_lib.data.layout import DataPaths
from hrnetpp_lib.errors import HrnetppError
from hrnetpp_lib.data.synthetic import write_dataset


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    paths = DataPaths(tmp_path_factory.mktemp("cached") / "data")
    write_dataset(paths.root, 7, 5, 3, seed=0, processes=1)
    return paths


@pytest.fixture
def coco(paths, tmp_path):
    """A COCO file of its own, its images and a cache folder."""
    path = tmp_path / "persons.json"
    path.write_bytes(paths.coco_json("train").read_bytes())
    return path, paths.coco_images("train"), tmp_path / "cache"


def assert_same(a, b):
    for field in fields(a):
        x, y = getattr(a, field.name), getattr(b, field.name)
        if isinstance(x, np.ndarray):
            assert x.dtype == y.dtype and np.array_equal(x, y), field.name
        else:
            assert x == y, field.name


def test_the_cache_gives_what_the_reader_gives_and_does_not_read_again(coco, paths, monkeypatch):
    first, second = read_cached(read_coco, *coco), read_cached(read_coco, *coco)
    assert_same(first, read_coco(*coco[:2]))
    assert_same(second, first)
    challenger = paths.ai_challenger("train")
    for _ in range(2):
        assert_same(read_cached(read_ai_challenger, *challenger, coco[2]), read_ai_challenger(*challenger))

    def read_coco_never(*_):
        raise AssertionError("read again")

    read_coco_never.__name__ = "read_coco"
    assert_same(read_cached(read_coco_never, *coco), first)
    elsewhere = coco[2].parent
    assert read_cached(read_coco_never, coco[0], elsewhere, coco[2]).image_dir == elsewhere


def test_arrays_are_mapped_and_cannot_be_changed(coco):
    read_cached(read_coco, *coco)
    keypoints = read_cached(read_coco, *coco).keypoints
    owner = keypoints
    while isinstance(owner, np.ndarray) and owner.base is not None:
        owner = owner.base
    assert type(owner).__name__ == "mmap"
    with pytest.raises(ValueError, match="read-only"):
        keypoints[0, 0, 0] = 1


@pytest.mark.parametrize("change", ["content", "time"])
def test_a_file_that_changed_is_read_again(coco, capsys, change):
    before = read_cached(read_coco, *coco)
    if change == "content":
        document = json.loads(coco[0].read_text())
        document["annotations"].pop()
        coco[0].write_text(json.dumps(document))
    else:
        os.utime(coco[0], ns=(1, 1))
    after = read_cached(read_coco, *coco)
    assert "another version of the file; persons.json is read again" in capsys.readouterr().out
    assert len(after) == len(before) - (change == "content")
    assert_same(read_cached(read_coco, *coco), after)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("damage", ["flip", "cut", "remove", "garbage", "empty"])
def test_a_damaged_cache_is_built_again_whichever_file_is_hit(coco, capsys, damage):
    whole = read_cached(read_coco, *coco)
    for name in sorted(path.name for path in (coco[2] / "persons.json").iterdir()):
        path = coco[2] / "persons.json" / name
        content = bytearray(path.read_bytes())
        if damage == "remove":
            path.unlink()
        else:
            content[-1] ^= 0x20
            damaged = {"flip": content, "cut": content[: len(content) // 2], "garbage": b"?", "empty": b""}
            path.write_bytes(damaged[damage])
        assert_same(read_cached(read_coco, *coco), whole)
        assert "is read again" in capsys.readouterr().out, name
        assert_same(read_cached(read_coco, *coco), whole)
        assert capsys.readouterr().out == ""


def test_without_a_writable_folder_there_is_no_cache(coco, capsys):
    coco[2].write_text("a file where the folder should be")
    assert_same(read_cached(read_coco, *coco), read_coco(*coco[:2]))
    assert "cannot be written" in capsys.readouterr().out


def test_many_readers_at_once(coco):
    with ThreadPoolExecutor(6) as pool:
        tables = list(pool.map(lambda _: read_cached(read_coco, *coco), range(12)))
    for table in tables:
        assert_same(table, tables[0])
    assert [path.name for path in coco[2].iterdir()] == ["persons.json"]


def test_missing_files_are_named_by_the_reader(coco):
    with pytest.raises(HrnetppError, match="nowhere"):
        read_cached(read_coco, coco[0].with_name("nowhere.json"), *coco[1:])
    with pytest.raises(HrnetppError, match="nofolder"):
        read_cached(read_coco, coco[0], coco[1] / "nofolder", coco[2])
