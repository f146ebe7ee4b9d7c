"""Fixtures of the tests of training."""

import contextlib
import itertools
import os
import signal
import sys

import cv2
import numpy as np
import pytest

from hrnetpp_lib.data.persons import PersonTable
from hrnetpp_lib.pose.keypoints import COCO17


@pytest.fixture
def one_person(tmp_path) -> PersonTable:
    """One person with four labelled keypoints, in the picture dots.png of the test's own folder."""
    image = np.random.default_rng(0).integers(0, 255, (200, 180, 3), np.uint8)
    cv2.imwrite(str(tmp_path / "dots.png"), image)
    keypoints = np.zeros((1, 17, 3), np.float32)
    keypoints[0, [5, 6, 9, 16]] = [(90, 70, 2), (60, 72, 2), (120, 110, 1), (70, 160, 2)]
    return PersonTable(
        *("dots", COCO17, tmp_path, np.array([b"dots.png"]), np.array([7]), np.array([[200, 180]], np.int32)),
        *(np.zeros(1, np.int32), np.array([1]), np.array([[40.0, 50.0, 100.0, 130.0]])),
        *(np.ones(1), np.array([13000.0]), keypoints, {}),
    )


@pytest.fixture
def sigterm_inside():
    """A context in which this process gets SIGTERM once, at the nth call made inside given files."""

    @contextlib.contextmanager
    def send(*parts: str, nth: int = 20):
        calls, sent = itertools.count(1), []
        before = signal.signal(signal.SIGTERM, lambda *_: None)  # one that comes late ends no test run

        def watch(frame, event: str, _: object) -> None:
            inside = event.endswith("call") and any(part in frame.f_code.co_filename for part in parts)
            if inside and next(calls) == nth:
                sys.setprofile(None)
                sent.append(True)
                os.kill(os.getpid(), signal.SIGTERM)

        sys.setprofile(watch)
        try:
            yield
        finally:
            sys.setprofile(None)
            signal.signal(signal.SIGTERM, before)
        assert sent, f"never inside {parts}"

    return send
