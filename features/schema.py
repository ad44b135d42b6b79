"""`schema.json`: what a dataset's users and items look like. Written by imports, read to build Feast fields and filters."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

AttributeType = Literal["string", "int", "float", "bool", "timestamp", "string_list"]


@dataclass(frozen=True)
class Attribute:
    """One attribute of users or items. `name` is safe for Feast and filters; `source_name` is what the file said."""

    name: str
    source_name: str
    type: AttributeType


@dataclass(frozen=True)
class DatasetSchema:
    """Attributes and traits of a dataset.

    Args:
        dataset: its name.
        user_attributes, item_attributes: in file order.
        has_times: at least one interaction came with a time; without, window features are null.
        has_values: at least one interaction came with a value.
    """

    dataset: str
    user_attributes: tuple[Attribute, ...] = ()
    item_attributes: tuple[Attribute, ...] = ()
    has_times: bool = True
    has_values: bool = False

    def save(self, path: Path) -> None:
        """Write atomically as JSON."""
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".tmp")
        temporary.write_text(self.to_json() + "\n")
        os.replace(temporary, path)

    @classmethod
    def load(cls, path: Path) -> DatasetSchema:
        """Read what `save` wrote."""
        return cls.from_json(path.read_text())

    def to_json(self) -> str:
        """The schema as JSON text."""
        return json.dumps(asdict(self), indent=2)

    @classmethod
    def from_json(cls, text: str) -> DatasetSchema:
        """Read what `to_json` wrote."""
        raw = json.loads(text)
        for side in ("user_attributes", "item_attributes"):
            raw[side] = tuple(Attribute(**attribute) for attribute in raw[side])
        return cls(**raw)
