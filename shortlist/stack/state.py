"""What a running stack tells the other commands: `run/stack.json` below the home. The supervisor alone writes it."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path

import psutil

HOME_TAKEN = 3
"""Exit code of a supervisor that found another one at work."""

SAME_START_S = 0.1
"""Two readings of when a process was started differ by less."""


@dataclass(frozen=True)
class ProcessNote:
    """One process of the stack, for `status`."""

    name: str
    pid: int
    why: str
    restarts: int = 0


@dataclass(frozen=True)
class StackState:
    """Addresses and processes of one stack.

    `phase` is "starting: ...", "ready", "stopping", "stopped" or "failed: ...". `supervisor_started_s`, seconds from the machine's
    boot, tells a reused process id from ours.
    """

    phase: str
    dataset: str
    supervisor_pid: int
    supervisor_started_s: float
    base_url: str = ""
    mlflow_uri: str = ""
    ray_address: str = ""
    ray_token_path: str = ""
    bus_url: str = ""
    features_url: str = ""
    cache_url: str = ""
    control_url: str = ""
    worker_metrics_url: str = ""
    graph: str = ""
    other_ports: dict[str, int] = field(default_factory=dict)
    processes: tuple[ProcessNote, ...] = ()
    log_dir: str = ""
    temporary_dir: str = ""

    @property
    def ready(self) -> bool:
        """Whether it serves."""
        return self.phase == "ready"

    def alive(self) -> bool:
        """Whether the supervisor that wrote this still runs."""
        try:
            process = psutil.Process(self.supervisor_pid)
            # Where nobody reaps orphans, as in a container without an init, an ended one stays as a zombie.
            same = abs(started_s(process) - self.supervisor_started_s) < SAME_START_S
            return same and process.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False

    def save(self, home: Path) -> None:
        """Write atomically."""
        path = state_file(home)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(f".tmp{os.getpid()}")
        temporary.write_text(json.dumps(asdict(self), indent=2))
        os.replace(temporary, path)


def started_s(process: psutil.Process) -> float:
    """When a process was started, in seconds from the boot of the machine: a clock that is set changes nothing of it, while the
    time of day at which a process seems to have begun moves with the clock."""
    return float(process.create_time() - psutil.boot_time())


def state_file(home: Path) -> Path:
    """Where the state of the stack of `home` is."""
    return home / "run" / "stack.json"


def load_state(home: Path) -> StackState | None:
    """The last state written, or None where no stack was started. Ask `alive()` before trusting it."""
    try:
        raw = json.loads(state_file(home).read_text())
        raw["processes"] = tuple(ProcessNote(**note) for note in raw["processes"])
        return StackState(**raw)
    except (OSError, ValueError, KeyError, TypeError):  # none, cut short, or of another release
        return None


def running_stack(home: Path) -> StackState | None:
    """The stack of `home` if it is ready and alive."""
    state = load_state(home)
    return state if state is not None and state.ready and state.alive() else None


def why_not_running(home: Path) -> str:
    """What to tell somebody who needs the stack of `home` when `running_stack` finds none."""
    state, start = load_state(home), "start it with shortlist up"
    if state is not None and state.alive():
        return f"the stack of {home} does not serve now ({state.phase}): see shortlist status"
    if state is not None and state.phase.startswith("failed: "):
        return f"no stack of {home} is running, the last one {state.phase}; {start}"
    if state is not None and state.phase != "stopped":
        ended = f"its supervisor, process {state.supervisor_pid}, ended while it was {state.phase!r}"
        return f"no stack of {home} is running: {ended}, see {state.log_dir}/supervisor.log; {start}"
    return f"no stack of {home} is running: {start}"
