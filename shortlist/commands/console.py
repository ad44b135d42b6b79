"""What every command shares: the console, `--json`, the settings of this call and the errors that end it with one line.

Commands return nothing: they call `finish(result, renderable)` once. With `--json` the result is the last line of stdout and
all else goes to stderr; without, the renderable is shown.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date, datetime
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console, RenderableType
from rich.markup import escape

from shortlist.settings import Settings, load_settings

log = Console(stderr=True)
"""Progress, notes and warnings."""

BRIEF = 40
"""Characters of a value that a table of changes shows."""


class CommandError(Exception):
    """A command cannot go on. The message is one line: why, and what to do."""


@dataclass
class CallOptions:
    """Options that are the same for every command, taken out of the command line by `main`."""

    json_output: bool = False
    overrides: tuple[str, ...] = ()


options = CallOptions()


def settings() -> Settings:
    """The settings of this call, `--set` included."""
    return load_settings(options.overrides)


@contextmanager
def phases() -> Iterator[Callable[[str], None]]:
    """Shows what is being done: a spinner on a terminal, else a line each with the seconds since the start."""
    if log.is_terminal:
        with log.status("starting") as spinner:
            yield lambda what: spinner.update(escape(what))
    else:
        yield lines()


def lines() -> Callable[[str], None]:
    """Prints what it is told as lines with the seconds since now, equal ones once: progress where nobody sees a bar."""
    began, last = time.monotonic(), [""]

    def line(what: str) -> None:
        if what != last[0]:
            log.print(f"{time.monotonic() - began:7.1f} s  {what}", markup=False, highlight=False, soft_wrap=True)
        last[0] = what

    return line


def finish(result: dict[str, Any], shown: RenderableType | None = None) -> None:
    """End a command: print `result` as one JSON line with `--json`, else show `shown` (or the result's fields)."""
    if options.json_output:
        sys.stdout.write(json.dumps(result, default=_plain) + "\n")
        sys.stdout.flush()
        return
    out = Console()
    if shown is not None:
        out.print(shown, soft_wrap=isinstance(shown, str))  # a broken line is no row of a Markdown table
    else:
        for key, value in result.items():
            out.print(f"[bold]{key}[/bold]: {value}")


def change_text(before: object, after: object) -> str:
    """What differs, a line for each field: `+` where it is new, `-` where it is gone, else `before -> after`."""
    if not (isinstance(before, dict) or isinstance(after, dict)):
        return _step(before, after)
    old, new = before if isinstance(before, dict) else {}, after if isinstance(after, dict) else {}
    return "\n".join(
        f"{name} {_step(old.get(name), new.get(name))}" for name in dict.fromkeys([*old, *new]) if old.get(name) != new.get(name)
    )


def _step(before: object, after: object) -> str:
    shown = [value if isinstance(value, str) else json.dumps(value) for value in (before, after) if value is not None]
    brief = [text if len(text) <= BRIEF else text[: BRIEF - 1] + "…" for text in shown]
    return " -> ".join(brief) if len(brief) == 2 else f"{'-' if after is None else '+'} {''.join(brief)}"


def _plain(value: object) -> object:
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, datetime | date):
        return value.isoformat()
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{type(value).__name__} is not JSON")
