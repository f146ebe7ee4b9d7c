"""Which files are meant, their image ids, and their pixels in order, whatever some of them are."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hrnetpp_lib.app import pictures
from hrnetpp_lib.app.pictures import Failures, Frame, find_files, image_id, in_groups, read_frames
from hrnetpp_lib.errors import HrnetppError


def test_image_ids_by_hand():
    assert image_id(Path("val2017/000000000139.jpg")) == 139
    assert image_id(Path("9" * 18 + ".png")) == int("9" * 18)
    # The first six bytes of SHA-256 of the name: printf people.png | sha256sum
    assert image_id(Path("elsewhere/people.png")) == 0xC9FE64415C8B
    assert image_id(Path("people.jpg")) != 0xC9FE64415C8B


@given(st.text(st.characters(blacklist_characters="/\0", blacklist_categories=("Cs",)), min_size=1))
def test_image_ids_are_int64_of_any_name(name):
    assert 0 <= image_id(Path("folder") / name) < 2**63
    assert 0 <= image_id(Path("folder") / f"{name}.mp4") < 2**53 - 2**20


def test_ids_of_clips_leave_room_for_their_frames():
    # The first four bytes of SHA-256 of the name, times 2^20: printf walk.mp4 | sha256sum
    assert image_id(Path("walk.mp4")) == 0x604A3243 * 2**20 == image_id(Path("else/walk.mp4"))
    assert image_id(Path("12.mp4")) % 2**20 == 0


def test_files_folders_and_patterns_each_once_and_what_is_wrong(tmp_path):
    (tmp_path / "one" / "two").mkdir(parents=True)
    (tmp_path / "none").mkdir()
    for name in (
        "one/b.JPG",
        "one/a.webp",
        "one/c.mp4",
        "one/d.txt",
        "one/two/e.png",
        "one/two/5.png",
        "005.jpg",
    ):
        (tmp_path / name).touch()
    odd = tmp_path / "one" / "x[1].jpg"
    odd.touch()
    wrong = []
    inputs = [tmp_path / "one", odd, str(tmp_path / "one/**/*.png"), tmp_path / "005.jpg", tmp_path / "none"]
    inputs += [tmp_path / "gone.jpg", tmp_path / "*.gone", tmp_path / ("y" * 300 + "*")]
    found = find_files(inputs, wrong.append)
    names = ["a.webp", "b.JPG", "c.mp4", "x[1].jpg", "5.png", "e.png", "gone.jpg"]
    assert [path.name for path in found] == names
    messages = [str(error) for error in wrong]
    words = ["005.jpg: gets the image id 5 by its name, as", "no picture or clip lies in this folder"]
    words += ["*.gone: no file has such a name", "yyy*: no file has such a name"]
    assert len(messages) == 4 and all(w in m for w, m in zip(words, messages, strict=True))


def test_failures_are_said_once(capsys):
    for inputs, said, last in (
        (1, [], "first"),
        (2, ["first", "a b"], "2 failures in 2 inputs, named above$"),
    ):
        failures = Failures()
        failures.end()
        failures.add(HrnetppError("first"))
        failures.begin(inputs)
        failures.add(HrnetppError("a\nb"))
        with pytest.raises(HrnetppError, match=last):
            failures.end()
        assert capsys.readouterr().err.splitlines() == said and len(failures) == 2


def test_photographs_come_in_order_upright_or_as_stored(tmp_path):
    paths, wrong = [], []
    for number in range(7):
        image = np.full((4 + number, 9, 3), 30 * number, np.uint8)
        paths.append(tmp_path / f"{number}.png")
        cv2.imwrite(str(paths[-1]), image)
    paths.insert(3, tmp_path / "gone.png")
    frames = list(read_frames(paths, wrong.append))
    assert [(f.image_id, f.pixels.shape, f.pixels[0, 0, 0]) for f in frames] == [
        (number, (4 + number, 9, 3), 30 * number) for number in range(7)
    ]
    assert len(wrong) == 1 and "gone.png: there is no such file" in str(wrong[0])
    turned = cv2.imencode(".jpg", np.zeros((8, 24, 3), np.uint8))[1].tobytes()
    exif = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"
    entry = b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif
    (tmp_path / "turned.jpg").write_bytes(turned[:2] + entry + turned[2:])
    for upright, hw in ((True, (24, 8)), (False, (8, 24))):
        (frame,) = read_frames([tmp_path / "turned.jpg"], wrong.append, upright)
        assert frame.pixels.shape[:2] == hw


class Capture:
    """A clip that OpenCV opens, of frames of the given sizes."""

    def __init__(self, sizes, stated=None, rate=12.5):
        self.sizes, self.released = list(sizes), False
        self.facts = {
            cv2.CAP_PROP_FRAME_COUNT: len(self.sizes) if stated is None else stated,
            cv2.CAP_PROP_FPS: rate,
        }

    def get(self, key):
        return self.facts[key]

    def read(self):
        if not self.sizes:
            return False, None
        return True, np.full((*self.sizes.pop(0), 3), (3, 2, 1), np.uint8)

    def release(self):
        self.released = True


@pytest.mark.parametrize(
    ("capture", "frames", "wrong"),
    [
        (Capture([(4, 6)] * 3, stated=0, rate=float("nan")), 3, ""),
        (Capture([(4, 6)] * 3, stated=-(2**60), rate=1e6), 3, ""),
        (Capture([(4, 6)] * 3 + [(8, 6)] * 2), 3, "frame 3 has another size than those before"),
        (Capture([(4, 6)] * 3, stated=5), 3, "ends after 3 of 5 frames"),
        (Capture([]), 0, "has no frame that OpenCV can decode"),
    ],
)
def test_clips_that_are_not_whole(capture, frames, wrong, tmp_path, monkeypatch):
    monkeypatch.setattr(cv2, "VideoCapture", lambda path: capture)
    (tmp_path / "a.mov").touch()
    said = []
    found = list(read_frames([tmp_path / "a.mov"], said.append))
    assert [frame.number for frame in found] == list(range(frames)) and capture.released
    assert all(frame.pixels[0, 0].tolist() == [1, 2, 3] for frame in found)
    assert all(frame.of_clip == (0, 25.0) for frame in found) or wrong
    assert [wrong in str(error) for error in said] == [True] * bool(wrong)


def test_groups_are_small_where_pictures_are_large(monkeypatch):
    monkeypatch.setattr(pictures, "_MOST_BYTES_A_GROUP", 100)
    sizes = [3, 3, 3, 3, 101, 60, 60, 3]
    frames = [Frame(Path("a"), 0, np.zeros(size, np.uint8)) for size in sizes]
    groups = [[len(frame.pixels) for frame in group] for group in in_groups(frames, 3)]
    assert groups == [[3, 3, 3], [3, 101], [60, 60], [3]]
