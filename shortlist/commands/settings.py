"""`shortlist settings`: the values that hold for this call, and where each comes from."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from shortlist.commands import console
from shortlist.settings import Settings, setting_origins
from shortlist.settings_page import page, rows, shown_value


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    app.command("settings")(settings_)


def settings_(
    as_page: Annotated[bool, typer.Option("--page", help="Print the Markdown page of all settings instead.")] = False,
) -> None:
    """Show every setting: its value here, and whether it is the default, of the file, of the environment or of --set.

    Secrets, and user and password in URLs, are not shown. What each means: docs/settings.md, or --page.
    """
    if as_page:
        sys.stdout.write(page())
        return
    found = effective(console.settings(), setting_origins(console.options.overrides))
    table = Table("setting", "value", "from")
    for one in found:
        value = "" if one["value"] is None else str(one["value"])
        table.add_row(one["setting"], escape(value), escape(one["from"]))
    console.finish({"settings": found}, table)


def effective(settings: Settings, origins: dict[str, str]) -> list[dict[str, Any]]:
    """Each setting with its value and its origin.

    Args:
        settings: of the call.
        origins: what `setting_origins` says of the same call.
    """
    found: list[dict[str, Any]] = []
    for row in rows():
        if ".NAME" in row.key:
            continue
        value: Any = settings
        for part in row.key.split("."):
            value = getattr(value, part)
        if isinstance(value, dict):
            value = tuple(value)  # names of the placements
        below = [origin for key, origin in origins.items() if key == row.key or key.startswith(f"{row.key}.")]
        found.append({"setting": row.key, "value": shown_value(value), "from": ", ".join(dict.fromkeys(below)) or "default"})
    return found
