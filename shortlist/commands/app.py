"""The `shortlist` program: collects the command groups and turns errors into exit codes.

Exit codes: 0 done; 1 failed, one line on stderr says why and what to do; 2 wrong usage.
"""

from __future__ import annotations

import atexit
import importlib
import os
import sys

import typer

from experiments.errors import ExperimentError
from features.errors import FeaturesError
from serving.errors import ServingError
from shortlist.commands import console
from shortlist.settings import SettingsError
from shortlist.stack.errors import StackError
from training.errors import TrainingError

EPILOG = (
    "Every command also takes --json (one JSON object as the last line of stdout, logs on stderr) and --set section.key=value "
    "(repeatable; overrides shortlist.toml and SHORTLIST_* variables). SHORTLIST_DEBUG=1 shows tracebacks."
)

GROUPS: tuple[str, ...] = ("data", "features", "models", "experiment", "events", "pipeline", "bench")
"""Modules in this folder with a Typer `app`, one command group each."""

COMMANDS: tuple[str, ...] = ("demo", "quickstart", "stack", "settings", "tune", "precompute")
"""Modules in this folder with a function `register(app)` that adds top-level commands."""

_INTERRUPTED = 130
"""What Typer makes of `KeyboardInterrupt`."""

_FAILURES: tuple[type[Exception], ...] = (
    FeaturesError,
    TrainingError,
    ExperimentError,
    ServingError,
    SettingsError,
    StackError,
    console.CommandError,
)


def build() -> typer.Typer:
    """The whole command tree."""
    app = typer.Typer(
        name="shortlist",
        help="Recommendations from activity: features, tuning, registry, serving and A/B tests. Start with: shortlist demo",
        epilog=EPILOG,
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
    )
    app.callback()(_no_shared_callback)
    for name in COMMANDS:
        importlib.import_module(f"shortlist.commands.{name}").register(app)
    for name in GROUPS:
        group = importlib.import_module(f"shortlist.commands.{name}")
        app.add_typer(group.app, name=name, epilog=EPILOG)
    return app


def main(argv: list[str] | None = None) -> None:
    """Run one command line and exit with its code."""
    # Registered first, so run last: DuckDB's binding reports objects that Feast's back end keeps alive until the very end.
    atexit.register(_silence_stderr)
    sys.exit(run(sys.argv[1:] if argv is None else argv))


def _silence_stderr() -> None:
    sys.stderr.flush()
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)


def run(argv: list[str]) -> int:
    """Run one command line and return its exit code."""
    try:
        typer.main.get_command(build())(_take_shared_options(argv), prog_name="shortlist")
    except SystemExit as stop:  # how Typer ends: 0 done, 1 aborted, 2 wrong usage, 130 after Ctrl-C
        if stop.code == _INTERRUPTED:
            return _fail("stopped")
        return stop.code if isinstance(stop.code, int) else 1
    except KeyboardInterrupt:  # while the program is loaded
        return _fail("stopped")
    except _FAILURES as error:
        return _fail(str(error))
    except Exception as error:
        return _fail(f"{type(error).__name__}: {error} (unexpected; SHORTLIST_DEBUG=1 shows where)")
    return 0


def _no_shared_callback() -> None:
    """Makes the program a group even while it has one command."""


def _fail(message: str) -> int:
    if os.environ.get("SHORTLIST_DEBUG") == "1":
        console.log.print_exception()
    sys.stderr.write(f"error: {message}\n")
    return 1


def _take_shared_options(argv: list[str]) -> list[str]:
    rest, overrides, json_output = [], [], False
    words = iter(argv)
    for word in words:
        if word == "--":
            rest += [word, *words]
        elif word == "--json":
            json_output = True
        elif word == "--set":
            value = next(words, None)
            if value is None:
                sys.stderr.write("error: --set needs section.key=value\n")
                raise SystemExit(2)
            overrides.append(value)
        elif word.startswith("--set="):
            overrides.append(word.removeprefix("--set="))
        else:
            rest.append(word)
    console.options.json_output = json_output
    console.options.overrides = tuple(overrides)
    return rest
