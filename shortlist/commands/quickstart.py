"""`shortlist quickstart FILE.csv`: from a file of activity to recommendations over HTTP."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.prompt import Confirm
from rich.table import Table

from features.importers.guess import guess_columns
from shortlist.commands import console
from shortlist.commands.console import CommandError
from shortlist.commands.stack import admin_token_file
from shortlist.demo.flow import study
from shortlist.runner import Runner
from shortlist.stack.state import running_stack


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    app.command()(quickstart)


def quickstart(
    file: Annotated[Path, typer.Argument(help="CSV of activity: one row an interaction, at least a user and an item column.")],
    dataset: Annotated[
        str | None, typer.Option("--dataset", "-d", help="Name for the dataset; the file's name by default.")
    ] = None,
    minutes: Annotated[float, typer.Option(help="Time for tuning.", min=0.1)] = 5.0,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Take the guessed columns without asking.")] = False,
) -> None:
    """Import a CSV, tune for five minutes, precompute everyone's list and serve it.

    The columns are guessed and shown; on a terminal you are asked whether they are right (--yes does not ask).
    """
    if not file.is_file():
        raise CommandError(f"{file} is not a file: give the path of a CSV with a user and an item column")
    name = dataset or (re.sub(r"[^a-z0-9._-]", "-", file.stem.lower()).strip("-._") or "quickstart")
    mapping = _columns(file, yes)
    runner = Runner(console.options.overrides)
    flags = [flag for canonical, column in mapping.items() for flag in ("--map", f"{canonical}={column}")]
    imported = runner.run("data", "import", str(file), "--dataset", name, *flags)
    runner.run("up", "--dataset", name)
    state = running_stack(console.settings().home.absolute())
    if state is None:
        raise CommandError("the stack started and is gone again; run: shortlist doctor")
    for verb in ("build", "apply", "materialize"):
        runner.run("features", verb, "--dataset", name)
    tuned = runner.run("tune", study("quickstart"), "--dataset", name, "--minutes", str(minutes))
    runner.run("models", "promote", str(tuned["model_version"]), "--alias", "champion", "--dataset", name)
    runner.run("precompute", "--alias", "champion")
    result = {
        "dataset": name,
        "interactions": imported["interactions"],
        "model_version": tuned["model_version"],
        "metrics": tuned["metrics"],
        "url": state.base_url,
        "mlflow": state.mlflow_uri,
    }
    shown = Table(title=f"{name} is served", show_header=False)
    shown.add_row("try", f"curl '{state.base_url}/v1/recommendations/USER?top_k=10'")
    shown.add_row("API docs", f"{state.base_url}/docs")
    shown.add_row("MLflow", state.mlflow_uri)
    shown.add_row("admin token", admin_token_file() or "SHORTLIST_TOKEN__ADMIN of the environment")
    shown.add_row("stop", "shortlist down")
    console.finish(result, shown)


def _columns(file: Path, yes: bool) -> dict[str, str]:
    """The guessed columns, confirmed where there is somebody to ask."""
    guess = guess_columns(file)
    table = Table("column", "means", title=f"columns of {file.name}, guessed")
    for canonical, column in guess.mapping.items():
        table.add_row(column, canonical)
    console.log.print(table)
    if yes or not sys.stdin.isatty():
        return dict(guess.mapping)
    if not Confirm.ask("Is this right?", default=True, console=console.log):
        raise CommandError(f"say which columns mean what: shortlist data import {file} --dataset NAME --map user_id=COLUMN ...")
    return dict(guess.mapping)
