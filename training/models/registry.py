"""The candidate models by name: what study files, bundles and the funnel may ask for."""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError

from training.errors import StudyError
from training.models.base import Retriever
from training.models.calendar import Calendar
from training.models.content import Content
from training.models.content_ease import ContentEase
from training.models.ease import Ease
from training.models.ials import Ials
from training.models.popularity import Popularity
from training.models.sequential import Sequential
from training.models.text_knn import TextKnn
from training.models.transition_knn import TransitionKnn
from training.models.two_tower import TwoTowerHybrid

MODELS: dict[str, type[Retriever]] = {
    model.name: model
    for model in (Popularity, TransitionKnn, Ease, Ials, Content, TextKnn, ContentEase, TwoTowerHybrid, Sequential, Calendar)
}


def build_model(name: str, config: dict[str, Any] | None = None) -> Retriever:
    """An unfitted model by name, its configuration validated.

    Raises:
        StudyError: no such model, an unknown parameter, or a value out of range.
    """
    if name not in MODELS:
        raise StudyError(f"unknown model {name!r}; known: {', '.join(sorted(MODELS))}")
    model = MODELS[name]
    try:
        return model(model.Config(**(config or {})))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        allowed = ", ".join(sorted(model.Config.model_fields))
        raise StudyError(f"model {name!r}, parameter {where!r}: {first['msg']}; parameters: {allowed}") from None
