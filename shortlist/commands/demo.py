"""`shortlist demo`: from nothing to recommendations with an A/B test, on this machine."""

from __future__ import annotations

import signal
import threading
from typing import Annotated

import typer
from rich.table import Table

from shortlist.client import Client
from shortlist.commands import console
from shortlist.commands.console import CommandError
from shortlist.demo.checks import check_demo
from shortlist.demo.flow import DemoResult, run_demo, summary
from shortlist.stack.control import stop_stack
from shortlist.stack.state import StackState, running_stack


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    app.command()(demo)


def demo(
    check: Annotated[
        bool, typer.Option("--check", help="Check everything over HTTP, stop the stack, and exit 0 or say what failed.")
    ] = False,
) -> None:
    """Run the whole platform on MovieLens 100k: features, tuning, registry, two versions, an A/B test.

    Shows each command as you would type it, then what two model versions recommend to one user, the addresses and the admin
    token, and stays up until Ctrl-C or `shortlist down`. A second run reuses what the first one made. Where MovieLens cannot be
    had, it says so and simulates data.
    """
    settings = console.settings()
    home = settings.home.absolute()
    ran_before = running_stack(home) is not None
    finished = stopped_elsewhere = False
    try:
        result = run_demo(settings, console.options.overrides)
        if check:
            _check(result)
        else:
            console.finish(summary(result), _titles(result))
            console.log.print(_addresses(result), highlight=False, soft_wrap=True)
            stopped_elsewhere = not _stay(result.state)
        finished = True
    finally:
        if not stopped_elsewhere and (not ran_before or finished):
            with console.log.status("stopping"):
                stop_stack(home)


def _check(result: DemoResult) -> None:
    outcomes = check_demo(result)
    table = Table("claim", "", "seen", title="demo checked over HTTP")
    for outcome in outcomes:
        table.add_row(outcome.claim, "[green]holds" if outcome.holds else "[red]FAILS", outcome.detail)
    failed = [outcome for outcome in outcomes if not outcome.holds]
    console.finish({**summary(result), "ok": not failed, "checks": [vars(outcome) for outcome in outcomes]}, table)
    if failed:
        raise CommandError(f"{len(failed)} of {len(outcomes)} claims fail, first: {failed[0].claim}: {failed[0].detail}")


def _shown_user(result: DemoResult) -> str:
    return "42" if "42" in result.users else result.users[0]


def _titles(result: DemoResult) -> Table:
    """What each version recommends to one user, side by side."""
    user = _shown_user(result)
    table = Table(title=f"{result.dataset}: recommended to user {user}")
    columns = []
    with Client(result.state.base_url, token=result.admin_token) as client:
        for alias in ("champion", "challenger"):
            version = result.versions[alias]
            answer = client.recommend(user_id=user, top_k=10, fields=["title"], model_version=version)
            table.add_column(f"{alias} (version {version})")
            columns.append([item.get("title") or item["item_id"] for item in answer["recommended_items"]])
    for row in zip(*columns, strict=False):
        table.add_row(*map(str, row))
    return table


def _addresses(result: DemoResult) -> str:
    """Where everything is, a line each; never wrapped, so that lines can be copied."""
    state, user = result.state, _shown_user(result)
    sharing = "share a replica" if state.graph == "fused" else "are separate deployments"
    token = ' -H "Authorization: Bearer $SHORTLIST_TOKEN__READ"' if console.settings().token.read else ""
    return "\n".join(
        (
            "",
            "[bold]Shortlist is up[/]",
            f"  recommendations  curl{token} '{state.base_url}/v1/recommendations/{user}?top_k=5'",
            f"  API docs         {state.base_url}/docs",
            f"  MLflow           {state.mlflow_uri}  (move the alias 'champion' in its UI: serving follows)",
            f"  admin token      {result.admin_token}",
            f"  A/B test         shortlist experiment report demo  (answers so far: {dict(result.traffic.variants)})",
            f"  graph            {state.graph}: retriever and ranker of a version {sharing}",
            "  stop             Ctrl-C here, or: shortlist down",
        )
    )


def _stay(state: StackState) -> bool:
    """Wait for Ctrl-C or the end of the stack; returns whether the stack still runs."""
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    while not stop.wait(1):
        if not state.alive():
            console.log.print("Shortlist was stopped (shortlist down, or its log says why): the demo ends", soft_wrap=True)
            return False
    return True
