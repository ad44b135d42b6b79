"""The process of a trial, in real ones: it is nice to others, and the system ends it where it was not in time."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from training.trial_process import NICENESS, TOO_LONG, failure_reason

PROGRAM = """
import os, re, time
from training.trial_process import trial_process
with trial_process(time.time() + float("{seconds}")) as is_in_time:
    if {in_time}:
        is_in_time()
        time.sleep(1.5)
    elif {hangs}:
        re.match(r"(a+)+$", "a" * 60 + "b")  # years, in one call that lets no other thread run
time.sleep({afterwards})
print(os.nice(0))
"""


def ended(seconds: float, *, in_time: bool = False, hangs: bool = False, afterwards: float = 0.0) -> tuple[int, str]:
    program = PROGRAM.format(seconds=seconds, in_time=in_time, hangs=hangs, afterwards=afterwards)
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    process = subprocess.run(
        [sys.executable, "-c", program], env=environment, stdout=subprocess.PIPE, text=True, timeout=120, check=False
    )
    return process.returncode, process.stdout.strip()


def test_the_system_ends_a_trial_that_hears_nothing() -> None:
    assert ended(0.5, hangs=True) == (-signal.SIGALRM, "")


def test_a_trial_that_is_in_time_goes_on_and_so_does_the_process_after_it() -> None:
    niceness = str(max(NICENESS, os.nice(0)))
    assert ended(0.5, in_time=True) == (0, niceness)
    assert ended(0.5, afterwards=1.5) == (0, niceness)
    assert ended(float("inf")) == (0, niceness)


def test_a_death_is_the_time_limits_only_where_that_end_held_and_has_passed(tmp_path: Path) -> None:
    told = tmp_path / "error.txt"
    told.write_text("ray.exceptions.ActorDiedError: The actor died unexpectedly")
    assert failure_reason(str(told), time.time() - 1.0) == TOO_LONG
    assert failure_reason(str(told), time.time() + 60.0) == failure_reason(str(told), float("inf")) != TOO_LONG
    assert failure_reason(None, 0.0) == "no reason was kept"
