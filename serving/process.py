"""How the interpreter of a serving process is set: what would stop it for a moment, and time and memory that nothing needs."""

from __future__ import annotations

import ctypes
import gc
import sys
from pathlib import Path

import pyarrow as pa

from training.bundle import RANKER_FOLDER
from training.rankers.lambdamart import MODEL_FILE, load_lightgbm

SWITCH_S = 0.0005
"""After so long a thread gives the interpreter's lock to one that waits for it. Python's own 5 ms are what every answer would wait,
and wait again, while routing state or availability is read in another thread."""
FIRST_GENERATION = 10_000
"""New containers that start a collection."""


def shorten_pauses() -> None:
    """To be called once everything is imported and before state is loaded.

    What is there by then (Ray's and numpy's modules and classes, some hundred thousand objects) is left out of all later
    collections. State that comes and goes, such as a version's items, must not be there yet: what of it is in a cycle would stay.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(FIRST_GENERATION, 10, 10)
    sys.setswitchinterval(SWITCH_S)


def import_trees(bundle: Path) -> None:
    """Where a bundle's ranker is trees: import LightGBM, which explains them, without LightGBM's wrappers for scikit-learn.

    The first explained answer would import it else, and would be late. The wrappers alone import scikit-learn here, at 1.5 s of a
    slow host's processor and 44 MB for each process. Only for processes that do nothing but serve: who trains may want them.
    """
    if "sklearn" in sys.modules or not (bundle / RANKER_FOLDER / MODEL_FILE).exists():
        return
    sys.modules["sklearn"] = None  # type: ignore[assignment]  # Python's own mark of a module that cannot be imported
    try:
        load_lightgbm()
    finally:
        del sys.modules["sklearn"]


def give_back_memory() -> None:
    """Hand to the system what reading a version has left free in the allocators: some hundred MB at a million items."""
    pa.default_memory_pool().release_unused()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's alone
    if trim is not None:
        trim(0)
