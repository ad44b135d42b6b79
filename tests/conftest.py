"""Fixtures that every test may use."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest


@pytest.fixture
def rng() -> np.random.Generator:
    """The only source of randomness in tests."""
    return np.random.default_rng(20261123)


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder of real datasets and public test vectors; tests that need it skip where it is not."""
    folder = os.environ.get("SHORTLIST_TEST_SHARED")
    if not folder or not Path(folder).is_dir():
        pytest.skip("SHORTLIST_TEST_SHARED does not name the folder of real datasets and test vectors")
    return Path(folder)
