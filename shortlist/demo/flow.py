"""The demo's steps: data, stack, features, two model versions, cached lists, an A/B test, traffic. Each reuses what exists."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import experiments
from features.catalogue import Catalogue
from features.control_store import ControlStore
from shortlist.client import Client
from shortlist.commands import console
from shortlist.commands.console import CommandError
from shortlist.live_traffic import TrafficConfig, TrafficReport, drive, people_of
from shortlist.runner import Runner
from shortlist.settings import Settings
from shortlist.stack.secrets import kept_secret
from shortlist.stack.state import StackState, running_stack

REAL, SIMULATED = "movielens-100k", "demo-simulated"
EXPERIMENT = "demo"
FIRST_STUDY, SECOND_STUDY = "first", "quickstart"
SESSIONS = 200


@dataclass(frozen=True)
class DemoResult:
    """What the demo made, for the table, the checks and the JSON."""

    dataset: str
    state: StackState
    admin_token: str
    versions: dict[str, str]
    users: list[str]
    """Known users, sorted."""
    traffic: TrafficReport
    runner: Runner


def run_demo(settings: Settings, overrides: tuple[str, ...]) -> DemoResult:
    """Bring everything up and drive traffic through it.

    Args:
        settings: of the stack to start.
        overrides: `--set` strings for every command.

    Raises:
        CommandError: a step failed; the message is the step's own.
    """
    home = settings.home.absolute()
    runner = Runner(overrides)
    dataset = _data(runner)
    runner.run("up", "--dataset", dataset)
    state = running_stack(home)
    if state is None:
        raise CommandError("the stack started and is gone again; run: shortlist doctor")
    runner.stack_pid = state.supervisor_pid
    token = settings.token.admin.get_secret_value() if settings.token.admin else kept_secret(home, "admin-token")
    with Client(state.base_url, token=token) as client:
        aliases = client.models()["aliases"]
        if {"champion", "challenger"} <= set(aliases):
            console.log.print(f"  reusing versions {aliases['champion']} (champion) and {aliases['challenger']} (challenger)")
        else:
            _features(runner, dataset)
            aliases = _versions(runner, dataset)
        _wait_served(client, aliases)
        for alias in ("champion", "challenger"):
            runner.run("precompute", "--alias", alias)
        _experiment(runner, client)
        people = people_of(settings.paths(dataset), Catalogue(ControlStore(settings.control_url).create(), dataset))
        began = time.monotonic()
        traffic = drive(state.base_url, people, TrafficConfig(sessions=SESSIONS, seed=20261123), token=token)
        console.log.print(f"  {traffic.requests} requests and {traffic.events} events in {time.monotonic() - began:.1f} s")
    return DemoResult(dataset, state, token, aliases, sorted(people.user_ids), traffic, runner)


def _data(runner: Runner) -> str:
    try:
        runner.run("data", "import", REAL, "--dataset", REAL)
        return REAL
    except CommandError as error:
        console.log.print(f"[yellow]MovieLens 100k cannot be had here ({error}); simulating a dataset of the same size instead[/]")
        runner.run("data", "simulate", "--dataset", SIMULATED, "--users", "943", "--items", "1682", "--events", "100000")
        return SIMULATED


def _features(runner: Runner, dataset: str) -> None:
    for verb in ("build", "apply", "materialize", "check"):
        runner.run("features", verb, "--dataset", dataset)


def _versions(runner: Runner, dataset: str) -> dict[str, str]:
    """Two versions: one cheap source with its defaults, and what the quickstart study finds for the whole funnel."""
    first = runner.run("train", study(FIRST_STUDY), "--dataset", dataset)
    runner.run("models", "promote", first["model_version"], "--alias", "champion", "--dataset", dataset)
    second = runner.run("tune", study(SECOND_STUDY), "--dataset", dataset)
    runner.run("models", "promote", second["model_version"], "--alias", "challenger", "--dataset", dataset)
    return {"champion": first["model_version"], "challenger": second["model_version"]}


def study(name: str) -> str:
    """Path of a study file that ships with Shortlist, as short as it can be typed from here."""
    path = Path(experiments.__file__).parent / "studies" / f"{name}.toml"
    return _typed(path)


def _typed(path: Path) -> str:
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def _wait_served(client: Client, aliases: dict[str, str], seconds: float = 90) -> None:
    """Wait until the reconciler has loaded both versions: promotion is a move of the alias, serving follows."""
    wanted = set(aliases.values())

    def live() -> set[str]:
        return {row["version"] for row in client.models()["versions"] if row.get("serving") == "live"}

    _poll(lambda: wanted <= live(), seconds, lambda: f"versions {sorted(wanted - live())} are not live; see the stack's logs")


def _experiment(runner: Runner, client: Client) -> None:
    path = Path(experiments.__file__).parent / "ab" / f"{EXPERIMENT}.toml"
    running = any(row["name"] == EXPERIMENT and row["status"] == "running" for row in client.experiments())
    if not running:
        runner.run("experiment", "start", _typed(path))


def _poll(done: Callable[[], bool], seconds: float, complaint: Callable[[], str]) -> None:
    deadline = time.monotonic() + seconds
    while not done():
        if time.monotonic() > deadline:
            raise CommandError(complaint())
        time.sleep(0.25)


def summary(result: DemoResult) -> dict[str, Any]:
    """The demo's result as JSON."""
    return {
        "dataset": result.dataset,
        "url": result.state.base_url,
        "mlflow": result.state.mlflow_uri,
        "versions": result.versions,
        "graph": result.state.graph,
        "traffic": result.traffic.to_dict(),
        "seconds": round(sum(record.seconds for record in result.runner.records), 1),
        "peak_mb": max(record.peak_mb for record in result.runner.records),
        "steps": [vars(record) for record in result.runner.records],
    }
