"""The retriever protocol: every candidate model is one file in this folder that implements it.

To add a model: write `training/models/<name>.py` with a pydantic `Config` and a class deriving from `Retriever`, add one line to
`training/models/registry.py`, and one test class deriving from `training.testing.RetrieverContract`.

Legend: `B` queries, `N` items, `k` wanted candidates.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict

from training.candidates import Retrieved
from training.interactions import BoolArray, FloatArray, Interactions
from training.queries import QueryBatch
from training.rejections import Rejections

Made = TypeVar("Made")


class ModelConfig(BaseModel):
    """Base of all model configurations: frozen, unknown keys refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


@dataclass(frozen=True)
class TrainingData:
    """What a model may learn from.

    Args:
        interactions: positive activity of the fold.
        item_attributes: attribute name -> (N,) array aligned with `interactions.item_ids`; object arrays hold text or lists.
        user_attributes: attribute name -> (U,) array aligned with `interactions.user_ids`.
        rejected: what users do not want to see again: for lists, not to learn from. None where nobody has rejected anything.
    """

    interactions: Interactions
    item_attributes: Mapping[str, npt.NDArray[np.generic]] = field(default_factory=dict)
    user_attributes: Mapping[str, npt.NDArray[np.generic]] = field(default_factory=dict)
    rejected: Rejections | None = None
    _derived: dict[Hashable, Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    def derived(self, key: Hashable, make: Callable[[], Made]) -> Made:
        """What several models make of the same data: made at the first call with `key`, which names it and its parameters."""
        if key not in self._derived:
            self._derived[key] = make()
        found: Made = self._derived[key]
        return found


ReportEpoch = Callable[[int, "Retriever"], bool]
"""Called after each epoch with its number and the model; returning True stops the training."""


class Retriever(ABC):
    """A model that proposes items for a history.

    Class attributes:
        name: the source's name in study files, candidate sets and answers.
        Config: its pydantic configuration.
        epochs_parameter: of a model with epochs: its parameter that says how many. A search measures after epochs and sets it to
            the best one for all later fits, so a fit of e epochs must be the one that a longer fit was after e epochs.
        members_parameter: of a model that averages fits of different seeds: its parameter that says how many.
        slow: fits take minutes, and use several cores: searches try quick models first, and give slow ones the time that remains.

    Attributes:
        training_loss: of a model with epochs: mean loss of the last one, for its curve; None where there is none.
    """

    name: ClassVar[str]
    Config: ClassVar[type[ModelConfig]]
    epochs_parameter: ClassVar[str | None] = None
    members_parameter: ClassVar[str | None] = None
    slow: ClassVar[bool] = False
    training_loss: float | None = None

    def __init__(self, config: ModelConfig | None = None) -> None:
        self.config = config if config is not None else self.Config()

    @abstractmethod
    def fit(self, data: TrainingData, *, seed: int = 0, on_epoch: ReportEpoch | None = None) -> Self:
        """Learn from `data`; equal seeds give equal models.

        Args:
            data: the fold's activity and attributes.
            seed: of every random choice.
            on_epoch: for models with epochs: called as `on_epoch(epoch, self)` after each, from 1 on, with the model in a state in
                which it can score and be saved; returning True stops the training. Models without epochs ignore it.
        """

    @classmethod
    def training_bytes(cls, config: ModelConfig, interactions: Interactions) -> int:
        """Memory that `fit` needs beside the data, estimated from above: searches run as many trials at once as fit together.

        The default suits models whose state grows with the interactions; models with dense matrices override it.
        """
        return 200 * len(interactions) + 2_000 * (interactions.num_users + interactions.num_items)

    @abstractmethod
    def score(self, queries: QueryBatch) -> FloatArray:
        """Score every item for every query: (B, N) float32, higher is better, finite.

        An item that the model knows nothing of gets the lowest score that the model gives. A query without a history gets the
        model's answer for an unknown user (popularity-like or constant).
        """

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write the fitted state below `folder` (which exists). No pickle: safetensors, Parquet, JSON or the library's text."""

    @classmethod
    @abstractmethod
    def load(cls, folder: Path, config: ModelConfig) -> Self:
        """Read what `save` wrote; scores are equal to those before."""

    def retrieve(self, queries: QueryBatch, k: int, allowed: BoolArray | None = None, *, exclude_history: bool = True) -> Retrieved:
        """The `k` best items of each query less what the query leaves out, history included unless told otherwise.

        Models that need not score the whole catalogue override this.

        Args:
            queries: B queries.
            k: candidates wanted; rows are padded where fewer exist.
            allowed: (N,) bool of items that may be returned, or (B, N) per query; None allows all.
            exclude_history: leave out the items of the query's history.
        """
        scores, out = self.score(queries), queries.excluded(exclude_history)
        scores[out.row, out.item_idx] = -np.inf
        if allowed is not None:
            scores = np.where(allowed, scores, -np.inf).astype(np.float32)
        return top_k(scores, k)


def top_k(scores: FloatArray, k: int) -> Retrieved:
    """The k best of each row, best first, equal scores by lower item number; entries of -inf become padding.

    Shapes: scores (B, N) float32 -> item_idx (B, k) int32, score (B, k) float32.
    """
    num_items = scores.shape[1]
    width = min(k, num_items)
    if width < num_items:
        part = np.argpartition(-scores, width - 1, axis=1)[:, :width]
        part.sort(axis=1)
    else:
        part = np.broadcast_to(np.arange(num_items), scores.shape)
    part_scores = np.take_along_axis(scores, part, axis=1)
    order = np.argsort(-part_scores, axis=1, kind="stable")
    item_idx = np.take_along_axis(part, order, axis=1).astype(np.int32)
    score = np.take_along_axis(part_scores, order, axis=1).astype(np.float32)
    item_idx[np.isneginf(score)] = -1
    if width < k:
        pad = ((0, 0), (0, k - width))
        item_idx = np.pad(item_idx, pad, constant_values=-1)
        score = np.pad(score, pad, constant_values=-np.inf)
    return Retrieved(item_idx, score)
