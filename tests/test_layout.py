"""The repository's shape: every file is in its folder's README, Feast parses one file, no file does work when imported."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("feature_repo", "features", "training", "serving", "experiments", "shortlist")


def python_files(package: str) -> list[Path]:
    """Modules of a package that a reader looks for."""
    return [path for path in sorted((ROOT / package).rglob("*.py")) if path.name not in ("__init__.py", "__main__.py")]


@pytest.mark.parametrize("package", PACKAGES)
def test_every_file_has_its_line_in_a_readme(package: str) -> None:
    readmes = {path.parent: path.read_text() for path in (ROOT / package).rglob("README.md")}
    missing = []
    for path in python_files(package):
        texts = [text for folder, text in readmes.items() if path.is_relative_to(folder)]
        if not any(f"{path.name}`" in text for text in texts):
            missing.append(str(path.relative_to(ROOT)))
    assert missing == []


def test_feast_ignores_all_but_one_file() -> None:
    ignored = set((ROOT / "feature_repo" / ".feastignore").read_text().split())
    assert {path.name for path in python_files("feature_repo")} - ignored == {"definitions.py"}


def test_no_file_is_named_utils() -> None:
    assert [path for package in PACKAGES for path in python_files(package) if path.stem in ("utils", "helpers", "common")] == []


def test_importing_the_client_loads_nothing_heavy() -> None:
    code = "import sys; from shortlist import Client; print([m for m in ('ray', 'mlflow', 'torch', 'feast') if m in sys.modules])"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    assert said.strip() == "[]"


def test_importing_the_gateway_does_not_load_ray() -> None:
    code = "import sys; import serving.gateway, shortlist.stack.ray_cluster; print('ray' in sys.modules)"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    assert said.strip() == "False"  # Ray reads where its token is when it is imported


def test_gateways_replicas_and_commands_start_without_the_libraries_of_training() -> None:
    """Seconds of a new version's way to its first answer, and a hundred MB a process each."""
    heavy = ("feast", "lightgbm", "mlflow", "sklearn", "torch")
    for module in ("serving.gateway", "serving.retriever_replica", "shortlist.commands.precompute", "training.pipeline"):
        code = f"import sys; import {module}; print([m for m in {heavy} if m in sys.modules])"
        said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout
        assert said.strip() == "[]", module
