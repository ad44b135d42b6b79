"""Where an alias pointed over time. MLflow keeps no history, so it is kept as a tag of the registered model.

Any machine that can reach the registry can roll back, and a move made in the MLflow UI is added by whoever notices it first. Owns
the tag's form and the rule of what "the version before" is; reading and writing the registry is `training.registry`'s.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from training.errors import RegistryError

HISTORY_TAG_PREFIX = "shortlist.history."
HISTORY_LIMIT = 40
"""Alias moves kept: MLflow's SQL schema holds 5,000 characters in a registered model's tag, one move takes up to 110."""


@dataclass(frozen=True)
class AliasMove:
    """One move of an alias. `kind` is `set` or `rollback`; `at` is UTC in ISO 8601."""

    version: str
    kind: str
    at: str
    by: str


def read_history(model: Mapping[str, Any], alias: str) -> list[AliasMove]:
    """Moves of an alias, oldest first, out of a registered model as MLflow's REST API gives it.

    Raises:
        RegistryError: the tag is damaged.
    """
    for tag in model.get("tags", []):
        if tag["key"] == HISTORY_TAG_PREFIX + alias:
            try:
                return [AliasMove(**move) for move in json.loads(tag["value"])]
            except (ValueError, TypeError) as error:
                raise RegistryError(f"tag {tag['key']} of {model.get('name')} is damaged ({error}): delete it in MLflow") from error
    return []


def history_value(moves: Sequence[AliasMove]) -> str:
    """The tag's value for a history, oldest moves cut off."""
    return json.dumps([asdict(move) for move in moves[-HISTORY_LIMIT:]], separators=(",", ":"))


def version_before(moves: Sequence[AliasMove], present: str, possible: Collection[str]) -> str | None:
    """The version that a rollback from `present` takes: the last one that the alias was set to before, and that is `possible`.

    A rollback undoes a move, so rolling back twice goes back two versions.
    """
    stack: list[str] = []
    for move in moves:
        # Below the top, which a rollback leaves: it goes no further back than it has to.
        place = next((place for place in reversed(range(len(stack) - 1)) if stack[place] == move.version), None)
        if move.kind == "rollback" and place is not None:
            del stack[place + 1 :]
        elif not stack or stack[-1] != move.version:
            stack.append(move.version)
    # The alias may have gone elsewhere since the last note: then the last note is the version before.
    earlier = stack[:-1] if stack and stack[-1] == present else stack
    return next((version for version in reversed(earlier) if version in possible and version != present), None)
