"""Fixtures of all tests."""

import os
from pathlib import Path

import pytest

DATA = Path(__file__).parent / "data"


@pytest.fixture(scope="session")
def data() -> Path:
    """The test data of the repository."""
    return DATA


@pytest.fixture(scope="session")
def shared() -> Path:
    """Reference data beside the repository, which not every machine has."""
    folder = Path(os.environ.get("QTRANSFORMERS_TEST_SHARED") or Path(__file__).parents[2] / "shared")
    if not folder.is_dir():
        pytest.skip(f"no reference data at {folder} (QTRANSFORMERS_TEST_SHARED)")
    return folder
