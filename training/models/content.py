"""Content model: items like those of the history by their texts and tags. Needs no activity of an item to recommend it.

score(b, j) = mean over the history, weighted decay^age, of cosine(item, j) + PRIOR * popularity share of j

Reading attributes is `training.content_columns`', turning texts into vectors `training.text_vectors`'.

Shapes: `B` queries, `N` items, `D` width.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Self

import numpy as np
import scipy.sparse as sp
from pydantic import Field

from training.arrays import map_arrays, save_arrays
from training.content_columns import ContentColumns, content_columns
from training.interactions import FloatArray, Interactions
from training.models.base import ModelConfig, ReportEpoch, TrainingData
from training.models.item_item import PRIOR, popularity_share
from training.models.vector_retriever import VectorRetriever
from training.queries import QueryBatch
from training.text_vectors import TextModel, tag_vectors, text_vectors

STATE_FILE = "content.safetensors"


class ContentConfig(ModelConfig):
    """Parameters of the content model.

    Args:
        text: how texts become vectors: `tfidf` (TF-IDF and truncated SVD) or `minilm` (sentence embeddings; needs shortlist[text]).
        width: dimensions that texts, and tags, are reduced to.
        spread: a reduced direction counts by its singular value to this power: 1 as in the texts, 0 all alike.
        text_weight: share of the texts in a cosine, the rest being the tags'; an item that has one of them alone counts by it.
        history_decay: an entry counts `history_decay ** age`, age 0 being the newest.
    """

    text: TextModel = "tfidf"
    width: int = Field(default=256, ge=2, le=1024)
    spread: float = Field(default=0.5, ge=0, le=1)
    text_weight: float = Field(default=0.7, ge=0, le=1)
    history_decay: float = Field(default=0.9, gt=0, le=1)


class Content(VectorRetriever):
    """Content model; see the module and `ContentConfig`."""

    name: ClassVar[str] = "content"
    Config: ClassVar[type[ModelConfig]] = ContentConfig
    config: ContentConfig
    vectors: FloatArray
    """(N, D + 1) float32: unit content vectors, zero where nothing is known, and last what popularity adds."""

    @classmethod
    def training_bytes(cls, config: ModelConfig, interactions: Interactions) -> int:
        """See `Retriever.training_bytes`: the words of the catalogue and three copies of the vectors."""
        assert isinstance(config, ContentConfig)
        return super().training_bytes(config, interactions) + interactions.num_items * (4_000 + 2 * config.width * 12)

    def fit(self, data: TrainingData, *, seed: int = 0, on_epoch: ReportEpoch | None = None) -> Self:
        """See `Retriever.fit`. No epochs."""
        columns = content_columns(data.item_attributes, data.interactions.num_items)
        content = content_vectors(columns, self.config, seed)
        self._set(content, popularity_share(data.interactions))
        self.vectors_changed(data.interactions, seed)
        return self

    def query_vectors(self, queries: QueryBatch) -> FloatArray:
        """See `VectorRetriever.query_vectors`: the decayed mean of the history's content; for an empty one, popularity alone."""
        weight = (self.config.history_decay ** queries.age.astype(np.float64)).astype(np.float32)
        shape = (len(queries), len(self.vectors))
        history = sp.csr_matrix((weight, (queries.row, queries.item_idx)), shape=shape)
        total = np.bincount(queries.row, weights=weight, minlength=len(queries)).astype(np.float32)
        found = np.asarray(history @ self.vectors, dtype=np.float32) / np.maximum(total, 1e-9)[:, None]
        found[:, -1] = 1.0
        return found.astype(np.float32, copy=False)

    def save(self, folder: Path) -> None:
        """See `Retriever.save`."""
        save_arrays(folder / STATE_FILE, {"vectors": self.vectors})
        self.save_index(folder)

    @classmethod
    def load(cls, folder: Path, config: ModelConfig) -> Self:
        """See `Retriever.load`; the vectors stay memory-mapped."""
        model = cls(config)
        model.vectors = map_arrays(folder / STATE_FILE)["vectors"].astype(np.float32, copy=False)
        model._known = np.asarray((model.vectors != 0).any(axis=1))
        model.load_index(folder)
        return model

    def _set(self, content: FloatArray, popularity: FloatArray) -> None:
        self.vectors = np.column_stack([content, np.float32(PRIOR) * popularity]).astype(np.float32)
        self._known = np.asarray((self.vectors != 0).any(axis=1))


def content_vectors(columns: ContentColumns, config: ContentConfig, seed: int) -> FloatArray:
    """(N, D) float32 unit vectors of texts and tags together, zero for items that have neither."""
    texts = text_vectors(columns.documents, config.text, width=config.width, spread=config.spread, seed=seed)
    tags = tag_vectors(columns.tags, width=config.width, spread=config.spread, seed=seed)
    both = np.hstack([np.float32(np.sqrt(config.text_weight)) * texts, np.float32(np.sqrt(1.0 - config.text_weight)) * tags])
    length = np.linalg.norm(both, axis=1, keepdims=True)
    return np.asarray(both / np.where(length > 0, length, 1.0), dtype=np.float32)
