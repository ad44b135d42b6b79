"""Processes of a stack that die come back, one no later for another's sake, and `status` says so."""

from __future__ import annotations

import sys
import threading
from pathlib import Path

import psutil
import pytest

from shortlist.commands.stack import process_rows
from shortlist.stack import process
from shortlist.stack.ports import wait_until
from shortlist.stack.process import Child
from shortlist.stack.state import ProcessNote, StackState, started_s
from shortlist.stack.watch import keep_running

STAYS, ENDS = "import time; time.sleep(60)", "pass"


def test_one_that_does_not_stay_delays_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "LONGEST_PAUSE_S", 1000.0)
    hopeless = Child("hopeless", "test", [sys.executable, "-c", ENDS], tmp_path / "hopeless.log", _pause_s=500.0)
    good = Child("good", "test", [sys.executable, "-c", STAYS], tmp_path / "good.log", _pause_s=0.1)
    stop, told = threading.Event(), threading.Event()
    for child in (hopeless, good):
        child.start()
    watch = threading.Thread(target=keep_running, args=((hopeless, good), stop, told.set))
    try:
        assert hopeless.process is not None
        hopeless.process.wait(20)
        watch.start()
        assert good.process is not None
        killed = good.process
        killed.kill()
        assert told.wait(20)
        assert good.alive()
        assert (good.restarts, hopeless.restarts) == (1, 0)
        assert good.process is not killed
    finally:
        stop.set()
        watch.join(10)
        for child in (hopeless, good):
            child.stop()


def test_pauses_grow_until_it_has_stayed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    child = Child("child", "test", [sys.executable, "-c", ENDS], tmp_path / "log")
    child.start()
    assert [child.next_pause_s() for _ in range(7)] == [1, 2, 4, 8, 16, 30, 30]
    monkeypatch.setattr(process, "STAYED_S", -1.0)
    assert child.next_pause_s() == 1
    child.stop()


def test_status_names_what_has_ended_and_how_often(tmp_path: Path) -> None:
    child = Child("mlflow", "tracking", [sys.executable, "-c", STAYS], tmp_path / "log")
    child.start()
    me = psutil.Process()
    try:
        assert child.pid is not None
        wait_until(lambda: child.pid in [one.pid for one in me.children()], seconds=10, what="the child")
        notes = (ProcessNote("mlflow", child.pid, "tracking", 3), ProcessNote("worker", 2**22 + 1, "stores events", 5))
        rows = {row["name"]: row for row in process_rows(StackState("ready", "shop", me.pid, started_s(me), processes=notes))}
    finally:
        child.stop()
    assert (rows["mlflow"]["restarts"], rows["mlflow"]["why"]) == (3, "tracking")
    assert (rows["worker"]["restarts"], rows["worker"]["why"]) == (5, "has ended and is started again")
