"""Feast as our packages import it: quickly, and with all that it can do. Each in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def _run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


CHECKED = "print('typeguard._functions' in feast.FeatureView.__init__.__code__.co_names, 'torch' in sys.modules)"
"""Whether typeguard has compiled its checks into Feast, and whether torch was imported."""


def test_feast_comes_without_checks_and_without_torch() -> None:
    assert _run(f"import sys; import features.store; import feast; {CHECKED}") == "False False"
    assert _run(f"import sys; import feature_repo.entities; import feast; {CHECKED}") == "False False"


def test_feast_that_was_there_before_stays_as_it_is() -> None:
    assert _run(f"import sys; import feast; import features.store; {CHECKED}") == "True True"


def test_torch_is_there_for_whoever_asks_feast_for_tensors() -> None:
    code = "import features.store; from feast.torch_wrapper import get_torch; print(get_torch().tensor([1, 2]).sum().item())"
    assert _run(code) == "3"


def test_others_keep_their_checks(tmp_path: Path) -> None:
    script = tmp_path / "checked.py"  # typeguard reads the source of what it checks
    script.write_text(
        "import features.store\n"
        "from typeguard import TypeCheckError, typechecked\n"
        "@typechecked\n"
        "def double(number: int) -> int:\n"
        "    return 2 * number\n"
        "try:\n"
        "    double('a')\n"
        "except TypeCheckError:\n"
        "    print('checked')\n"
    )
    assert subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=True).stdout.strip() == "checked"
