"""The command line. One file a command group; `main` is the entry point that all of them share."""

from __future__ import annotations

from shortlist.commands.app import main

__all__ = ["main"]
