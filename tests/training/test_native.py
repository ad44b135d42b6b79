"""LightGBM and implicit where the system has no libgomp.so.1."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import sys

import pytest

from training import native

HIDE = 'for f in $(ldconfig -p | awk "/libgomp/{print \\$NF}"); do mount --bind /dev/null "$(readlink -f "$f")"; done; exec "$@"'
USE = """
from training.native import preload_openmp
print(preload_openmp())
import implicit.cpu._als
import lightgbm
import numpy as np
x = np.random.default_rng(0).normal(size=(500, 3))
print(lightgbm.train({"verbose": -1, "num_threads": 2}, lightgbm.Dataset(x, label=x[:, 0]), 5).num_trees())
"""


def namespace() -> list[str]:
    """A command prefix under which mounts are private, or a skip."""
    if sys.platform != "linux" or shutil.which("unshare") is None or shutil.which("ldconfig") is None:
        pytest.skip("needs Linux with unshare and ldconfig")
    for prefix in (["unshare", "-m"], ["unshare", "-Urm"]):
        if subprocess.run([*prefix, "true"], capture_output=True, check=False).returncode == 0:
            return prefix
    pytest.skip("private mounts are not permitted here")


def test_lightgbm_and_implicit_run_with_the_system_library_hidden() -> None:
    command = [*namespace(), "bash", "-c", HIDE, "hide", sys.executable, "-c", USE]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    origin, trees = done.stdout.split()
    assert origin.endswith("torch/lib/libgomp.so.1")
    assert trees == "5"


def test_the_system_library_is_taken_where_there_is_one() -> None:
    code = "from training.native import preload_openmp; import sys; print(preload_openmp(), 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.split()[-1] == "False", "PyTorch is located, not imported"


def test_without_any_copy_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str, mode: int = 0) -> None:
        raise OSError(name)

    monkeypatch.setattr(ctypes, "CDLL", refuse)
    monkeypatch.setattr(native.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(native.sys, "platform", "linux")
    native.preload_openmp.cache_clear()
    with pytest.raises(ImportError, match="libgomp1"):
        native.preload_openmp()
    native.preload_openmp.cache_clear()
