"""Runs `shortlist` commands one after the other, shows each as it is typed, and keeps their time and memory."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from typing import Any

import psutil
from rich.markup import escape

from shortlist.commands import console
from shortlist.commands.console import CommandError
from shortlist.stack.process import END_WITH_PARENT

SAMPLE_PERIOD_S = 2.0


@dataclass(frozen=True)
class StepRecord:
    """What one step cost. `peak_mb` is the resident memory of this program, its commands and the stack, shared pages once (PSS)."""

    command: str
    seconds: float
    peak_mb: int


@dataclass
class Runner:
    """Runs commands with common `--set` overrides and records their cost.

    Args:
        overrides: `section.key=value` strings given to every command.
        stack_pid: supervisor's process, once it runs: its family counts into memory.
    """

    overrides: tuple[str, ...]
    stack_pid: int | None = None
    records: list[StepRecord] = field(default_factory=list)

    def run(self, *words: str) -> dict[str, Any]:
        """Run `shortlist WORDS --json` and return its result.

        Raises:
            CommandError: the command failed; its own line says why.
        """
        shown = shlex.join(("shortlist", *words))
        console.log.print(f"[bold cyan]$ {escape(shown)}[/]", highlight=False, soft_wrap=True)
        flags = [flag for override in self.overrides for flag in ("--set", override)]
        began = time.monotonic()
        with MemoryPeak(self.stack_pid) as memory:
            done = subprocess.run(
                [sys.executable, "-m", "shortlist", *words, "--json", *flags],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE if not sys.stderr.isatty() else None,
                text=True,
                check=False,
                env={**os.environ, "PYTHONUNBUFFERED": "1"},
                preexec_fn=END_WITH_PARENT,  # a killed pipeline leaves no tuning behind
            )
        seconds = time.monotonic() - began
        self.records.append(StepRecord(shown, seconds, memory.peak_mb))
        if done.returncode != 0:
            raise CommandError(f"{shown!r} failed: {_reason(done)}")
        console.log.print(f"  [dim]{seconds:.1f} s, {memory.peak_mb:,} MB in all[/]")
        lines = done.stdout.strip().splitlines()
        result = json.loads(lines[-1]) if lines else {}
        return dict(result)


def _reason(ended: subprocess.CompletedProcess[str]) -> str:
    """Why a command failed: its own line, else the last one that it wrote, else how it ended."""
    wrote: str | None = ended.stderr
    if wrote is None:
        return "see above"  # it wrote to the terminal itself
    said = wrote.strip().splitlines()
    reason = next((line.removeprefix("error: ") for line in reversed(said) if line.startswith("error: ")), None)
    return reason or (said[-1] if said else f"it ended with exit code {ended.returncode} and said nothing")


class MemoryPeak:
    """Samples the memory of this process's family, and of the stack's, while a block runs."""

    def __init__(self, stack_pid: int | None) -> None:
        self.peak_mb = 0
        self._stack_pid = stack_pid
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> MemoryPeak:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _sample(self) -> None:
        while True:
            self.peak_mb = max(self.peak_mb, family_memory_mb(os.getpid(), self._stack_pid))
            if self._stop.wait(SAMPLE_PERIOD_S):
                return


def family_memory_mb(*roots: int | None) -> int:
    """Proportional set size of these processes and all below them, each counted once, in MB."""
    seen: dict[int, psutil.Process] = {}
    for root in roots:
        if root is None:
            continue
        try:
            process = psutil.Process(root)
            for member in [process, *process.children(recursive=True)]:
                seen[member.pid] = member
        except psutil.NoSuchProcess:
            continue
    total = 0
    for member in seen.values():
        try:
            info = member.memory_full_info()
            total += getattr(info, "pss", info.rss)
        except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
            continue
    return total // 2**20
