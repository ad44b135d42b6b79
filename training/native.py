"""Loading native libraries in the order that lets everything run without Debian packages.

LightGBM and implicit link `libgomp.so.1` and do not ship it; PyTorch ships a copy under that very name. Loaded first, the copy
satisfies the others: the dynamic linker matches libraries by that name.
"""

from __future__ import annotations

import ctypes
import importlib.util
import sys
from functools import lru_cache
from pathlib import Path

OPENMP = "libgomp.so.1"


@lru_cache(maxsize=1)
def preload_openmp() -> str:
    """Make `libgomp.so.1` available to this process. Call before importing lightgbm or implicit.

    Returns:
        Where it came from: `system` (or already loaded), the path of PyTorch's copy, or `not needed` off Linux.

    Raises:
        ImportError: there is neither.
    """
    if not sys.platform.startswith("linux"):
        return "not needed"
    try:
        ctypes.CDLL(OPENMP, mode=ctypes.RTLD_GLOBAL)
        return "system"
    except OSError:
        pass
    spec = importlib.util.find_spec("torch")  # finds the folder without importing the package
    for folder in (spec.submodule_search_locations or []) if spec is not None else []:
        copy = Path(folder) / "lib" / OPENMP
        if copy.is_file():
            ctypes.CDLL(str(copy), mode=ctypes.RTLD_GLOBAL)
            return str(copy)
    raise ImportError(f"{OPENMP} is neither on this system nor in PyTorch's folder: install it (Debian: apt-get install libgomp1)")
