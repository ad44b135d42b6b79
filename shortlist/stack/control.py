"""Starting and stopping a stack from another process: what `up`, `down`, `status` and `demo` share."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from shortlist.settings import Settings
from shortlist.stack.errors import StackError
from shortlist.stack.leftovers import HomeTakenError, end_leftovers, sole_supervisor
from shortlist.stack.ports import wait_until
from shortlist.stack.state import HOME_TAKEN, StackState, load_state


def choose_dataset(settings: Settings, dataset: str | None = None) -> str:
    """The dataset to serve: the argument, the setting, or the only one in the home.

    Raises:
        StackError: none of that name, or none or several to choose from.
    """
    folder = settings.home / "datasets"
    found = sorted(p.name for p in folder.iterdir() if p.is_dir()) if folder.is_dir() else []
    chosen = dataset or settings.serve.dataset
    if chosen is not None:
        if chosen not in found:
            there = ", ".join(found) or "none"
            raise StackError(
                f"no dataset {chosen!r} in {settings.home} (there: {there}): import it first, see shortlist data import --help"
            )
        return chosen
    if len(found) == 1:
        return found[0]
    if not found:
        raise StackError(
            f"no dataset in {settings.home}: import one first (shortlist data import movielens-100k --dataset movielens)"
        )
    raise StackError(f"{settings.home} holds {', '.join(found)}: say which to serve with --dataset NAME or serve.dataset")


def start_stack(settings: Settings, dataset: str, overrides: tuple[str, ...], on_phase: Callable[[str], None]) -> StackState:
    """Start the stack of a home and wait until it serves; a running one of the same dataset is returned as it is.

    Args:
        settings: for home and checks.
        dataset: to serve.
        overrides: `--set` strings handed to the supervisor.
        on_phase: called with each phase.

    Raises:
        StackError: it cannot start, or serves another dataset.
    """
    home = settings.home.absolute()
    running = _live_stack(home)
    if running is not None:
        if running.dataset != dataset:
            raise StackError(f"the stack of {settings.home} serves {running.dataset!r}: stop it first (shortlist down)")
        return _wait_ready(home, running.supervisor_pid, running.alive, on_phase)
    logs = home / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    arguments = [*overrides, f"serve.dataset={dataset}", f"home={home}"]
    with (logs / "supervisor.log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "shortlist.stack.supervisor", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        return _wait_ready(home, process.pid, lambda: process.poll() is None, on_phase)
    except StackError as error:
        state = load_state(home)
        if process.poll() == HOME_TAKEN:
            raise StackError(f"another stack of {settings.home} starts or runs: see shortlist status") from None
        if state is not None and state.supervisor_pid == process.pid:
            stop_stack(home)
        if str(error).endswith("ended while starting"):
            if state is not None and state.supervisor_pid == process.pid and state.phase.startswith("failed: "):
                raise StackError(state.phase.removeprefix("failed: ")) from None
            raise StackError(f"{error}; see {logs / 'supervisor.log'}, or run: shortlist doctor") from None
        raise
    except BaseException:  # Ctrl-C, or told to end: what was begun for this call ends with it
        process.terminate()
        raise


def stop_stack(home: Path, seconds: float = 60) -> bool:
    """Stop the stack of a home, and with it every process it started. Returns whether one ran.

    Raises:
        StackError: processes are left after `seconds`.
    """
    home = home.absolute()
    state = load_state(home)
    if state is None or not state.alive():
        return state is not None and _clear_killed(home)
    supervisor = psutil.Process(state.supervisor_pid)
    family = [supervisor, *supervisor.children(recursive=True)]
    os.kill(state.supervisor_pid, signal.SIGTERM)
    deadline = time.monotonic() + seconds
    _, left = psutil.wait_procs([supervisor], timeout=seconds)
    _, left = psutil.wait_procs(family, timeout=max(1.0, deadline - time.monotonic()) if left else 5)
    for process in left:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
    _, stubborn = psutil.wait_procs(left, timeout=5)
    if state.temporary_dir.startswith("/tmp/sl-"):
        shutil.rmtree(state.temporary_dir, ignore_errors=True)
    if stubborn:
        raise StackError(f"still running after {seconds:.0f} s: processes {', '.join(str(p.pid) for p in stubborn)}")
    return True


def _live_stack(home: Path) -> StackState | None:
    """The stack of a home that runs or starts; one that is just stopping is waited for.

    Raises:
        StackError: it does not stop.
    """
    state = load_state(home)
    if state is None or not state.alive():
        return None
    if state.phase.startswith(("stop", "failed")):
        wait_until(lambda: not state.alive(), seconds=60, what="the end of the stack that is stopping")
        return None
    return state


def _clear_killed(home: Path) -> bool:
    """End what a stack left whose supervisor was killed. Returns whether there was anything; another one at work is left alone."""
    try:
        with sole_supervisor(home):
            return bool(end_leftovers(home))
    except HomeTakenError:
        return False


def _wait_ready(
    home: Path, pid: int, pid_alive: Callable[[], bool], on_phase: Callable[[str], None], seconds: float = 300
) -> StackState:
    """Follow the phases of the starting supervisor `pid` until it is ready. What an earlier one wrote is not its.

    Raises:
        StackError: it failed, died, or took too long.
    """
    seen = ""

    def ready() -> bool:
        nonlocal seen
        state = load_state(home)
        if state is None or state.supervisor_pid != pid or not state.alive():
            return False
        if state.phase != seen:
            seen = state.phase
            on_phase(seen)
        if seen.startswith("failed: "):
            raise StackError(seen.removeprefix("failed: "))
        return state.ready

    wait_until(ready, seconds=seconds, what="the stack", alive=pid_alive)
    state = load_state(home)
    assert state is not None
    return state
