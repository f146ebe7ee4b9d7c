"""Fixtures shared by all tests."""

import contextlib
import ctypes
import os
import resource
import signal
import sys
import zipfile
from pathlib import Path

# Threads slow networks this small down, spinning ones by an order of magnitude; read when torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import cv2  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402
import scipy.io  # noqa: E402
from hypothesis import settings  # noqa: E402

settings.register_profile("ours", deadline=None)  # a busy machine is no error
settings.load_profile("ours")


@pytest.fixture(scope="session", autouse=True)
def users_cache(tmp_path_factory):
    """Graphs of networks are kept for the tests of one run, not in the user's own folder."""
    folder = str(tmp_path_factory.mktemp("cache"))
    with pytest.MonkeyPatch.context() as patch:
        for name in ("XDG_CACHE_HOME", "LOCALAPPDATA"):
            patch.setenv(name, folder)
        yield


@pytest.fixture
def full_disk():
    """A context in which no file grows beyond some bytes: writing ends in an OSError of the system's own.

    Only around the write itself: what pytest prints may go to a longer file.
    """

    @contextlib.contextmanager
    def full(most_bytes):
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, limits[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
            signal.signal(signal.SIGXFSZ, handler)

    return full


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of real photographs and annotations; tests that need it are skipped where it is absent."""
    beside = Path(__file__).resolve().parents[1].parent / "shared" / "data"
    folder = Path(os.environ.get("HRNETPP_TEST_DATA", beside))
    if not folder.is_dir():
        pytest.skip(f"real test data not found at {folder}; set HRNETPP_TEST_DATA to its folder")
    return folder


@pytest.fixture(scope="session")
def lspe_source(real_data, tmp_path_factory) -> Path:
    """The public form of Leeds Sports Pose Extended with a few of its photographs: joints.mat and images/."""
    joints = scipy.io.loadmat(real_data / "lspet" / "joints.mat")["joints"]
    source = tmp_path_factory.mktemp("lspe")
    (source / "images").mkdir()
    chosen = [*range(1, 31), *range(5001, 5011), *range(9001, 9006)]
    scipy.io.savemat(source / "joints.mat", {"joints": joints[:, :, : max(chosen)]})
    for archive in sorted((real_data / "lspet").glob("*.zip")):
        with zipfile.ZipFile(archive) as images:
            for name in images.namelist():
                if int(name[2:7]) in chosen:
                    (source / "images" / name).write_bytes(images.read(name))
    return source


@pytest.fixture
def write_source(tmp_path):
    """Writes that public form, with pictures of 60 x 80 px and more: all, those of some numbers, or none."""

    def write(joints, numbers=None, name="joints", **options):
        scipy.io.savemat(tmp_path / "joints.mat", {name: joints}, **options)
        (tmp_path / "images").mkdir(exist_ok=True)
        for number in range(1, joints.shape[2] + 1) if numbers is None else numbers:
            image = np.full((60 + number // 5000, 80, 3), 90, np.uint8)
            cv2.imwrite(str(tmp_path / f"images/im{number:05d}.jpg"), image)
        return tmp_path / "joints.mat", tmp_path / "images"

    return write


class _SignalStack(ctypes.Structure):
    _fields_ = (("start", ctypes.c_void_p), ("flags", ctypes.c_int), ("bytes", ctypes.c_size_t))


@pytest.fixture(autouse=True)
def signals_on_the_usual_stack():
    """On CPUs with AMX, signals that came on faulthandler's stack ended the tests by SIGSEGV."""
    if sys.platform == "linux":
        off = _SignalStack(None, 2, 0)  # SS_DISABLE
        ctypes.CDLL(None).sigaltstack(ctypes.byref(off), None)
