"""A registered version as a value, its tags and aliases: the words that registry, gate, serving and commands share.

Reading and changing versions is `training.registry`'s.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from training.errors import AliasNameError

CHAMPION = "champion"
"""Alias that takes default traffic."""
MAX_ALIAS_LENGTH = 200
"""Characters: MLflow takes 255, and 250 in the name of the tag that holds the alias's history."""
_ALIAS = re.compile(r"(?!(?:latest|v\d+)$)[\w-]+", re.IGNORECASE)

GATE_TAG = "shortlist.gate"
"""Verdict of the gate: `pass`, `fail` or `first` (nothing to compare with)."""
GATE_REASON_TAG = "shortlist.gate_reason"
GATE_OVERRIDE_TAG = "shortlist.gate_override"
"""Set to a reason, it lets a version with verdict `fail` be promoted and served."""
DATASET_TAG = "shortlist.dataset"
METRICS_TAG = "shortlist.metrics"
"""Validation metrics before the refit, as JSON, so that a list of versions needs no look at runs."""
SERVING_TAG = "shortlist.serving"
"""Written by serving: `live`, `loading` or `refused:<why>`."""


def check_alias_name(alias: str) -> None:
    """Refuse what MLflow would not take as the name of an alias.

    Raises:
        AliasNameError: says which names there may be.
    """
    if len(alias) > MAX_ALIAS_LENGTH or not _ALIAS.fullmatch(alias):
        raise AliasNameError(
            f"{alias[:80]!r} cannot be an alias: a name has 1 to {MAX_ALIAS_LENGTH} letters, digits, '_' and '-', and is neither "
            "latest nor v and a number"
        )


@dataclass(frozen=True)
class ModelVersion:
    """One registered version. `version` is a decimal string, compared as text; `created_at` is UTC."""

    version: str
    created_at: datetime
    run_id: str | None
    tags: Mapping[str, str]
    aliases: tuple[str, ...]

    @classmethod
    def of(cls, raw: Mapping[str, Any], aliases: Mapping[str, str]) -> ModelVersion:
        """A version as MLflow's REST API gives it.

        Args:
            raw: `model_version` of an answer.
            aliases: alias -> version, of the model.
        """
        number = str(raw["version"])
        return cls(
            version=number,
            created_at=datetime.fromtimestamp(int(raw["creation_timestamp"]) / 1000, UTC),
            run_id=raw.get("run_id") or None,
            tags={tag["key"]: tag.get("value", "") for tag in raw.get("tags", [])},
            aliases=tuple(sorted(alias for alias, v in aliases.items() if v == number)),
        )

    @property
    def gate(self) -> str | None:
        """The gate's verdict at registration, None for a version that somebody else registered."""
        return self.tags.get(GATE_TAG)

    @property
    def servable(self) -> bool:
        """False when the gate failed it and nobody overrode that."""
        return self.gate != "fail" or bool(self.tags.get(GATE_OVERRIDE_TAG))

    @property
    def metrics(self) -> dict[str, float]:
        """Validation metrics taken before the refit; empty where none were stored."""
        raw = self.tags.get(METRICS_TAG)
        return {str(name): float(value) for name, value in json.loads(raw).items()} if raw else {}
