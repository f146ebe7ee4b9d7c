"""Fixtures shared by all tests."""

import os
import zipfile
from pathlib import Path

# Spinning OpenMP threads slow tiny networks down by an order of magnitude; read when torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import pytest
import scipy.io  # noqa: E402


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of real photographs and annotations; tests that need it are skipped where it is absent."""
    folder = Path(
        os.environ.get("HRNETPP_TEST_DATA", Path(__file__).resolve().parents[1].parent / "shared" / "data")
    )
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
