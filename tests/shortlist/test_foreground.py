"""`up --foreground`: as long as the stack, and the stack as long as it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import psutil
import pytest

from shortlist.settings import load_settings
from shortlist.stack.control import start_stack
from shortlist.stack.errors import StackError
from shortlist.stack.foreground import serve_in_foreground
from shortlist.stack.ports import wait_until
from shortlist.stack.state import StackState, load_state, started_s


@pytest.fixture
def supervisor(tmp_path: Path):
    """A process that is noted as the supervisor of a stack that serves."""
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    StackState("ready", "shop", process.pid, started_s(psutil.Process(process.pid))).save(tmp_path)
    yield process
    process.kill()
    process.wait()


def noted(home: Path) -> StackState:
    state = load_state(home)
    assert state is not None
    return state


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_told_to_end_it_stops_the_stack_and_all_is_well(tmp_path: Path, supervisor, number: signal.Signals) -> None:
    before = signal.getsignal(signal.SIGINT)
    threading.Timer(0.5, os.kill, (os.getpid(), number)).start()
    try:
        serve_in_foreground(tmp_path, lambda: noted(tmp_path))
        assert not noted(tmp_path).alive()
    finally:
        for one in (signal.SIGTERM, signal.SIGINT):
            signal.signal(one, signal.SIG_DFL if one == signal.SIGTERM else before)


def test_a_stack_that_ends_by_itself_ends_it_with_an_error(tmp_path: Path, supervisor) -> None:
    handlers = [signal.getsignal(one) for one in (signal.SIGTERM, signal.SIGINT)]
    threading.Timer(0.5, supervisor.kill).start()
    with pytest.raises(StackError, match=r"ended by itself: see .*supervisor\.log"):
        serve_in_foreground(tmp_path, lambda: noted(tmp_path))
    assert [signal.getsignal(one) for one in (signal.SIGTERM, signal.SIGINT)] == handlers


def test_a_start_that_is_interrupted_is_taken_back(tmp_path: Path) -> None:
    settings = load_settings((f"home={tmp_path}", "serve.port=0", "mlflow.port=0"), environ={}, folder=tmp_path)

    def interrupt(phase: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        start_stack(settings, "shop", ("serve.port=0", "mlflow.port=0"), interrupt)
    begun = noted(tmp_path)
    wait_until(lambda: not begun.alive(), seconds=60, what="the end of what was begun")
    assert not [one for one in psutil.process_iter() if str(tmp_path) in " ".join(_command(one)) and one.status() != "zombie"]


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []
