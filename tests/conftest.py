"""Fixtures shared by all tests."""

import os
from pathlib import Path

import pytest
import torch

torch.set_num_threads(2)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of real photographs and annotations; tests that need it are skipped where it is absent."""
    folder = Path(
        os.environ.get("HRNETPP_TEST_DATA", Path(__file__).resolve().parents[1].parent / "shared" / "data")
    )
    if not folder.is_dir():
        pytest.skip(f"real test data not found at {folder}; set HRNETPP_TEST_DATA to its folder")
    return folder
