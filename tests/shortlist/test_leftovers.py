"""A stack that was killed does not stand in the way of the next one, and a home has one supervisor at a time."""

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
from shortlist.stack.control import start_stack, stop_stack
from shortlist.stack.errors import StackError
from shortlist.stack.leftovers import MARK, HomeTakenError, sole_supervisor
from shortlist.stack.ports import free_port, port_is_free, wait_until
from shortlist.stack.process import Child
from shortlist.stack.state import StackState, load_state
from shortlist.stack.supervisor import Supervisor

_HOLDER = "import socket, time; s = socket.create_server(('127.0.0.1', int(__import__('sys').argv[1]))); time.sleep(120)"
"""Binds a port without sharing it, as MLflow's worker does."""
_PARENT = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {_HOLDER!r}, sys.argv[1]])"


def holder(port: int, home: Path) -> subprocess.Popen[bytes]:
    """A process of the stack of `home` in a session of its own, which holds `port`."""
    environment = {**os.environ, MARK: str(home)}
    process = subprocess.Popen([sys.executable, "-c", _HOLDER, str(port)], env=environment, start_new_session=True)
    wait_until(lambda: not port_is_free(port), seconds=20, what="the holder")
    return process


def note_killed(home: Path) -> None:
    """Leave the state file of a stack whose supervisor was killed."""
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    StackState("ready", "shop", gone.pid, 1.0).save(home)


def test_a_child_that_was_killed_is_started_anew_though_its_own_child_lived_on(tmp_path: Path) -> None:
    port = free_port()
    child = Child("mlflow", "test", [sys.executable, "-c", _PARENT, str(port)], tmp_path / "log")
    supervisor = Supervisor(load_settings((f"home={tmp_path}", "serve.dataset=shop"), environ={}, folder=tmp_path))
    supervisor._children.append(child)
    child.start()
    watch = threading.Thread(target=supervisor._watch)
    try:
        wait_until(lambda: not port_is_free(port), seconds=20, what="the child")
        assert child.process is not None
        killed, orphan = child.process, psutil.Process(child.process.pid).children()[0]
        watch.start()
        killed.kill()
        wait_until(lambda: child.process is not killed, seconds=20, what="the next child")
        wait_until(lambda: not orphan.is_running() or orphan.status() == "zombie", seconds=5, what="the orphan's end")
        wait_until(lambda: not port_is_free(port), seconds=20, what="the next child's port")
        assert "Address already in use" not in child.log_tail(20)
    finally:
        supervisor.stop_requested.set()
        watch.join(10)
        child.stop(2)


def test_a_new_supervisor_ends_what_a_killed_one_left_and_nothing_of_other_homes(tmp_path: Path) -> None:
    mine, other = holder(free_port(), tmp_path), holder(free_port(), tmp_path / "other")
    temporary = Path(f"/tmp/sl-test{os.getpid()}")
    temporary.mkdir()
    try:
        StackState("ready", "shop", 1, 1.0, temporary_dir=str(temporary)).save(tmp_path)
        # The new one gets no further than Redis: what is looked at is what it does before.
        overrides = (f"home={tmp_path}", "serve.dataset=shop", f"redis.bus_url=redis://127.0.0.1:{free_port()}/0")
        command = [sys.executable, "-m", "shortlist.stack.supervisor", *overrides]
        assert subprocess.run(command, cwd=tmp_path, capture_output=True, timeout=60).returncode == 1
        assert mine.wait(5) == -signal.SIGTERM
        assert other.poll() is None
        assert not temporary.exists()
    finally:
        for process in (mine, other):
            process.kill()
            process.wait()


def test_down_ends_what_a_killed_stack_left(tmp_path: Path) -> None:
    left = holder(free_port(), tmp_path)
    try:
        note_killed(tmp_path)
        assert stop_stack(tmp_path)
        left.wait(5)
        assert not stop_stack(tmp_path)
    finally:
        left.kill()
        left.wait()


def test_a_second_supervisor_of_a_home_is_refused_and_says_nothing_in_the_first_ones_state(tmp_path: Path) -> None:
    (tmp_path / "datasets" / "shop").mkdir(parents=True)
    given = (f"home={tmp_path}",)
    note_killed(tmp_path)
    before = load_state(tmp_path)
    with sole_supervisor(tmp_path):
        with pytest.raises(HomeTakenError), sole_supervisor(tmp_path):
            pass
        with pytest.raises(StackError, match=r"another stack of .* starts or runs"):
            start_stack(load_settings(given, environ={}, folder=tmp_path), "shop", given, lambda phase: None)
    assert load_state(tmp_path) == before


def test_the_failure_of_an_earlier_start_is_not_told_of_the_next(tmp_path: Path) -> None:
    (tmp_path / "datasets" / "shop").mkdir(parents=True)
    for name in ("cache_url", "bus_url"):
        given = (f"home={tmp_path}", f"redis.{name}=redis://127.0.0.1:{free_port()}/0")
        with pytest.raises(StackError, match=f"redis.{name} names a Redis that does not answer"):
            start_stack(load_settings(given, environ={}, folder=tmp_path), "shop", given, lambda phase: None)
