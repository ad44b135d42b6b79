"""What every command shares: the console, `--json`, the settings of this call and the errors that end it with one line.

Commands return nothing: they call `finish(result, renderable)` once. With `--json` the result is the last line of stdout and
all else goes to stderr; without, the renderable is shown.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from datetime import date, datetime
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console, RenderableType

from shortlist.settings import Settings, load_settings

log = Console(stderr=True)
"""Progress, notes and warnings."""


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
