"""`up`, `down`, `status` and `doctor`: the local stack."""

from __future__ import annotations

from typing import Annotated

import psutil
import typer
from rich.table import Table

from shortlist.commands import console
from shortlist.stack.control import choose_dataset, start_stack, stop_stack
from shortlist.stack.doctor import examine
from shortlist.stack.foreground import serve_in_foreground
from shortlist.stack.secrets import secret_file
from shortlist.stack.state import StackState, load_state, why_not_running


def register(app: typer.Typer) -> None:
    """Add the commands to the program."""
    app.command()(up)
    app.command()(down)
    app.command()(status)
    app.command()(doctor)


def up(
    dataset: Annotated[str | None, typer.Option(help="Dataset to serve; may be left out when the home holds one.")] = None,
    foreground: Annotated[
        bool,
        typer.Option("--foreground", help="Stay until told to stop, and stop the stack then: for systemd or containers."),
    ] = False,
) -> None:
    """Start the local stack in the background and return when it serves.

    Redis, MLflow and Ray are started unless the settings name running ones (redis.bus_url, mlflow.tracking_uri, ray.address ...).
    A stack that runs already is left as it is. Stop it with: shortlist down
    """
    settings = console.settings()
    chosen = choose_dataset(settings, dataset)

    def start() -> StackState:
        with console.phases() as notify:
            state = start_stack(settings, chosen, console.options.overrides, notify)
        console.finish(describe(state), _table(state))
        return state

    if foreground:
        serve_in_foreground(settings.home.absolute(), start)
    else:
        start()


def down() -> None:
    """Stop the stack of this home and every process that it started."""
    settings = console.settings()
    with console.log.status("stopping"):
        stopped = stop_stack(settings.home)
    console.finish({"stopped": stopped}, "stopped" if stopped else f"no stack of {settings.home} is running")


def status() -> None:
    """Say what runs: addresses, model versions' graph, and each process with its memory and purpose."""
    settings = console.settings()
    state = load_state(settings.home.absolute())
    if state is None or not state.alive():
        raise console.CommandError(why_not_running(settings.home.absolute()))
    console.finish(describe(state), _table(state))


def doctor() -> None:
    """Look for what would stop a stack here (ports, Redis, Ray, memory, disk) and name the fix of each."""
    findings = examine(console.settings())
    table = Table("check", "outcome", "found", "what to do")
    colours = {"ok": "green", "warning": "yellow", "problem": "red"}
    for finding in findings:
        table.add_row(finding.check, f"[{colours[finding.outcome]}]{finding.outcome}", finding.detail, finding.fix)
    problems = [finding for finding in findings if finding.outcome == "problem"]
    console.finish({"ok": not problems, "findings": [vars(finding) for finding in findings]}, table)
    if problems:
        raise console.CommandError(f"{problems[0].check}: {problems[0].detail}; {problems[0].fix}")


def describe(state: StackState) -> dict[str, object]:
    """A stack as the JSON of `up` and `status`. The admin token is named by the file that keeps it, never printed here."""
    return {
        "phase": state.phase,
        "dataset": state.dataset,
        "url": state.base_url,
        "docs": f"{state.base_url}/docs",
        "mlflow": state.mlflow_uri,
        "ray_address": state.ray_address,
        "redis": {"bus": state.bus_url, "features": state.features_url, "cache": state.cache_url},
        "graph": state.graph,
        "metrics": {"gateway": f"{state.base_url}/metrics", "worker": state.worker_metrics_url},
        "processes": process_rows(state),
        "logs": state.log_dir,
        "admin_token_file": admin_token_file(),
    }


def admin_token_file() -> str | None:
    """The file that keeps this home's admin token; None where the environment gives the token."""
    settings = console.settings()
    return None if settings.token.admin else str(secret_file(settings.home.absolute(), "admin-token"))


def process_rows(state: StackState) -> list[dict[str, object]]:
    """Every process below the supervisor with its resident memory in MB and what it is for."""
    notes = {note.pid: note for note in state.processes}
    rows: list[dict[str, object]] = []
    try:
        supervisor = psutil.Process(state.supervisor_pid)
        family = [supervisor, *supervisor.children(recursive=True)]
    except psutil.NoSuchProcess:
        return rows
    for process in family:
        try:
            memory_mb = round(process.memory_info().rss / 2**20)
            title = " ".join(process.cmdline()) or process.name()
        except (psutil.NoSuchProcess, psutil.ZombieProcess):
            continue
        note = notes.pop(process.pid, None)
        name, why = (note.name, note.why) if note else _ray_role(title)
        restarts = note.restarts if note else 0
        rows.append({"pid": process.pid, "name": name, "memory_mb": memory_mb, "why": why, "restarts": restarts})
    gone = "has ended and is started again"
    rows += [{"pid": one.pid, "name": one.name, "memory_mb": 0, "why": gone, "restarts": one.restarts} for one in notes.values()]
    return rows


_RAY_ROLES = (
    ("gcs_server", "ray gcs", "cluster state of Ray"),
    ("raylet", "raylet", "starts Ray's workers, shares memory between them"),
    ("ServeController", "serve controller", "keeps Serve's applications as wanted"),
    ("HAProxyManager", "haproxy manager", "configures HAProxy"),
    ("haproxy", "haproxy", "takes HTTP and passes it to the gateway"),
    ("Gateway", "gateway", "answers HTTP: assignment, cache, envelope, events"),
    ("ProxyActor", "serve proxy", "Ray Serve's own proxy, asked where no replica is behind HAProxy"),
    ("Retriever", "retriever", "proposes candidates of one model version"),
    ("Ranker", "ranker", "ranks candidates of one model version"),
    (":Shadow", "shadow", "scores what the shadow version would have answered"),
    ("mlflow", "mlflow worker", "answers MLflow's API and UI"),
    ("ray::IDLE", "ray worker", "idle, ready for a task"),
    ("log_monitor", "ray log monitor", "collects workers' logs"),
    ("DashboardAgent", "ray agent", "node statistics of Ray"),
    ("RuntimeEnvAgent", "ray runtime-env agent", "prepares workers' environments"),
    ("dashboard.py", "ray dashboard head", "Ray's job and state API; its web page is off"),
    ("monitor.py", "ray autoscaler", "watches resource demand"),
)


def _ray_role(title: str) -> tuple[str, str]:
    for pattern, name, why in _RAY_ROLES:
        if pattern in title:
            return name, why
    return title.split(" ")[0].rsplit("/", 1)[-1][:24], "part of Ray or MLflow"


def _table(state: StackState) -> Table:
    table = Table(
        title=f"{state.dataset}: {state.phase}   API {state.base_url}   MLflow {state.mlflow_uri}   graph {state.graph}",
        caption=f"metrics {state.base_url}/metrics and {state.worker_metrics_url}\n"
        f"admin token: {admin_token_file() or 'SHORTLIST_TOKEN__ADMIN of the environment'}",
    )
    for column in ("pid", "process", "MB", "why"):
        table.add_column(column)
    for row in process_rows(state):
        again = f" (restarted {row['restarts']} times)" if row["restarts"] else ""
        table.add_row(str(row["pid"]), str(row["name"]), str(row["memory_mb"]), f"{row['why']}{again}")
    return table
