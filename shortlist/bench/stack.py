"""The stack that a measurement runs on: the one of this home where it runs, else a small one in a temporary home."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil

from shortlist.commands.console import CommandError
from shortlist.demo.flow import study
from shortlist.runner import Runner
from shortlist.settings import Settings
from shortlist.stack.control import stop_stack
from shortlist.stack.ports import wait_until
from shortlist.stack.state import StackState, running_stack, why_not_running

DATASET = "bench"
SIZE = ("--users", "2000", "--items", "5000", "--events", "100000")


@contextmanager
def bench_stack(settings: Settings, *, here: bool, size: Sequence[str] = SIZE) -> Iterator[StackState]:
    """A running stack with a champion.

    Args:
        settings: of this home.
        here: take the stack of this home, which must run.
        size: arguments of `data simulate` for a temporary stack; its champion is what the study `first` trains.

    Raises:
        CommandError: a step failed, there is no stack here, or it would ask for tokens, which loads have not.
    """
    if settings.token.read or settings.token.write:
        raise CommandError("measurements ask without a token: unset SHORTLIST_TOKEN__READ and SHORTLIST_TOKEN__WRITE")
    if here:
        state = running_stack(settings.home.absolute())
        if state is None:
            raise CommandError(f"{why_not_running(settings.home.absolute())}, or leave --here out")
        yield state
        return
    with tempfile.TemporaryDirectory(prefix="shortlist-bench-") as folder:
        home = f"{folder}/home"
        runner = Runner((f"home={home}", "serve.port=0", "mlflow.port=0"))
        try:
            runner.run("data", "simulate", "--dataset", DATASET, *size)
            runner.run("up", "--dataset", DATASET)
            for verb in ("build", "apply", "materialize"):
                runner.run("features", verb, "--dataset", DATASET)
            trained = runner.run("train", study("first"), "--dataset", DATASET)
            runner.run("models", "promote", trained["model_version"], "--alias", "champion", "--dataset", DATASET)
            state = running_stack(Path(home))
            if state is None:
                raise CommandError("the stack started and is gone again; run: shortlist doctor")
            _wait_served(state, trained["model_version"])
            yield state
        finally:
            stop_stack(Path(home))


def known_users(state: StackState) -> list[str]:
    """Users of the dataset that a stack serves."""
    from features.activity_store import ActivityStore
    from features.paths import DatasetPaths

    users = ActivityStore.of(DatasetPaths(Path(state.log_dir).parent, state.dataset)).read(columns=["user_id"])
    return sorted(user for user in users["user_id"].unique().to_pylist() if user)


def second_version(state: StackState) -> str:
    """The champion's bundle registered once more.

    Raises:
        CommandError: there is no champion.
    """
    from training.model_version import CHAMPION
    from training.registry import Registry

    registry = Registry(state.mlflow_uri, state.dataset, cache=Path(state.log_dir).parent / "bundles")
    champion = registry.aliases().get(CHAMPION)
    if champion is None:
        raise CommandError("there is no champion to measure")
    return registry.register(registry.download(champion))


def _wait_served(state: StackState, version: str) -> None:
    def served() -> bool:
        return bool(httpx.get(f"{state.base_url}/readyz").json()["model_version"] == version)

    wait_until(served, seconds=60, what=f"version {version}")


def family(state: StackState) -> list[psutil.Process]:
    """Every process of a stack."""
    supervisor = psutil.Process(state.supervisor_pid)
    return [supervisor, *supervisor.children(recursive=True)]


def title(process: psutil.Process) -> str:
    """What a process calls itself; empty where it is gone."""
    try:
        return " ".join(process.cmdline()) or process.name()
    except psutil.Error:
        return ""
