"""A second worker of a dataset stands by, and takes over when the first is killed."""

from __future__ import annotations

import logging
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from shortlist.stack.sole_worker import sole_worker

HOLD = """
import sys, threading, time
from pathlib import Path
from shortlist.stack.sole_worker import sole_worker
with sole_worker(Path(sys.argv[1]), threading.Event()) as alone:
    print(alone, flush=True)
    time.sleep(600)
"""


def test_a_second_worker_takes_over_when_the_first_is_killed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path, entered = tmp_path / "state" / "worker.lock", threading.Event()
    first = subprocess.Popen([sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE, text=True)
    try:
        assert first.stdout is not None
        assert first.stdout.readline() == "True\n"

        told = threading.Event()
        told.set()
        with caplog.at_level(logging.WARNING), sole_worker(path, told) as alone:
            assert not alone, "told to stop while another works"
        assert f"process {first.pid}" in caplog.text

        def second() -> None:
            with sole_worker(path, threading.Event()) as alone:
                assert alone
                entered.set()

        thread = threading.Thread(target=second)
        thread.start()
        assert not entered.is_set()
        first.send_signal(signal.SIGKILL)
        assert entered.wait(60)
        thread.join()
    finally:
        first.kill()
        first.wait()
