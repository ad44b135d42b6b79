"""Rankers by name: what `RankerConfig.kind` and bundles may ask for, the blend aside."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any

from pydantic import ValidationError

from training.errors import StudyError
from training.rankers.base import Ranker, RankerSettings

RANKER_CLASSES = {
    "lambdamart": "training.rankers.lambdamart:LambdaMart",
    "listwise": "training.rankers.listwise:Listwise",
}
"""Kind -> module and class. A text, because its library is imported with it: a replica without trees does not load LightGBM."""

RANKER_KINDS = tuple(RANKER_CLASSES)


def ranker_class(kind: str) -> type[Ranker]:
    """The ranker of that name, imported at this moment.

    Raises:
        StudyError: there is none.
    """
    if kind not in RANKER_CLASSES:
        raise StudyError(f"unknown ranker {kind!r}; known: blend, {', '.join(RANKER_CLASSES)}")
    module, _, name = RANKER_CLASSES[kind].partition(":")
    found: type[Ranker] = getattr(import_module(module), name)
    return found


def ranker_settings(kind: str, config: Mapping[str, Any]) -> RankerSettings:
    """The validated configuration of a ranker.

    Raises:
        StudyError: no such ranker, an unknown parameter, or a value out of range.
    """
    settings = ranker_class(kind).Config
    try:
        return settings.model_validate(dict(config))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        allowed = ", ".join(sorted(settings.model_fields))
        raise StudyError(f"ranker {kind!r}, parameter {where!r}: {first['msg']}; parameters: {allowed}") from None
