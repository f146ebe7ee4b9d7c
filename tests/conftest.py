"""Fixtures shared by all tests."""

import os
from pathlib import Path

# Spinning OpenMP threads slow tiny networks down by an order of magnitude; read when torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import pytest  # noqa: E402


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of real photographs and annotations; tests that need it are skipped where it is absent."""
    folder = Path(
        os.environ.get("HRNETPP_TEST_DATA", Path(__file__).resolve().parents[1].parent / "shared" / "data")
    )
    if not folder.is_dir():
        pytest.skip(f"real test data not found at {folder}; set HRNETPP_TEST_DATA to its folder")
    return folder
