"""Text-kNN, exact: items whose words are like those of the history's items. No vector is reduced, only words are weighed.

score(b, j) = sum over the history of decay^age * cosine(item, j)^sharpness + PRIOR * popularity share of j,
over all entries of the history or those most like j

Rare words tell brands and lines of products apart, which reduced vectors (`content`) lose; the price is a product with the words
of all items at each call. What words weigh is `training.token_metric`'s.

Shapes: `B` queries, `N` items, `V` words and tags, `L` history entries, `C` columns asked for.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Self

import numpy as np
import scipy.sparse as sp
from pydantic import Field

from training.arrays import map_arrays, save_arrays
from training.candidates import Retrieved
from training.interactions import BoolArray, FloatArray, Interactions, LongArray
from training.models.base import ModelConfig, ReportEpoch, Retriever, TrainingData, top_k
from training.models.item_item import NEGLIGIBLE, PRIOR, as_index, popularity_share
from training.queries import QueryBatch
from training.token_metric import item_tokens

STATE_FILE = "text_knn.safetensors"
CELLS_AT_ONCE = 20_000_000
"""Cosines of history entries with items that are held at once, were all of them above 0: bounds memory."""


class TextKnnConfig(ModelConfig):
    """Parameters of text-kNN.

    Args:
        text_weight: share of the words in a cosine, the rest being the tags'.
        code_weight: share of the beginnings of codes (words with letters and digits) beside words and tags.
        freedom: how far pairs of items that users took may move the weight of a word (`training.token_metric`); 0 keeps TF-IDF.
        sharpness: a cosine counts to this power.
        strongest: for each item, so many entries of the history count, those most like it; 0 counts all.
        history_decay: an entry counts `history_decay ** age`, age 0 being the newest.
    """

    text_weight: float = Field(default=1.0, ge=0, le=1)
    code_weight: float = Field(default=0.3, ge=0, le=0.9)
    freedom: float = Field(default=0.3, ge=0, le=100)
    sharpness: float = Field(default=1.5, gt=0, le=10)
    strongest: int = Field(default=0, ge=0, le=200)
    history_decay: float = Field(default=1.0, gt=0, le=1)


class TextKnn(Retriever):
    """Text-kNN; see the module and `TextKnnConfig`."""

    name: ClassVar[str] = "text_knn"
    Config: ClassVar[type[ModelConfig]] = TextKnnConfig
    config: TextKnnConfig
    tokens: sp.csr_matrix
    """(N, V) float32, rows of length one, empty where an item has neither words nor tags."""
    popularity: FloatArray
    """(N,) float32 shares."""

    @classmethod
    def training_bytes(cls, config: ModelConfig, interactions: Interactions) -> int:
        """See `Retriever.training_bytes`: the words of the catalogue, and cosines of one block."""
        return super().training_bytes(config, interactions) + interactions.num_items * 6_000 + CELLS_AT_ONCE * 28

    def fit(self, data: TrainingData, *, seed: int = 0, on_epoch: ReportEpoch | None = None) -> Self:
        """See `Retriever.fit`. No epochs."""
        config = self.config
        tokens = item_tokens(
            data, text_weight=config.text_weight, code_weight=config.code_weight, freedom=config.freedom, seed=seed
        )
        self._set(tokens, popularity_share(data.interactions))
        return self

    def score(self, queries: QueryBatch) -> FloatArray:
        """See `Retriever.score`; a query without history gets popularity."""
        return self._scores(queries, np.arange(len(self.popularity)))

    def retrieve(self, queries: QueryBatch, k: int, allowed: BoolArray | None = None, *, exclude_history: bool = True) -> Retrieved:
        """As `Retriever.retrieve`; where one mask holds for all queries, only the allowed items are looked at."""
        if allowed is None or allowed.ndim == 2:
            return super().retrieve(queries, k, allowed, exclude_history=exclude_history)
        columns = np.flatnonzero(allowed)
        if not len(columns):
            return top_k(np.full((len(queries), 1), -np.inf, dtype=np.float32), k)
        scores = self._scores(queries, columns)
        out = queries.excluded(exclude_history)
        if len(out):
            place = np.full(len(self.popularity), -1)
            place[columns] = np.arange(len(columns))
            column = place[out.item_idx]
            scores[out.row[column >= 0], column[column >= 0]] = -np.inf
        found = top_k(scores, k)
        return Retrieved(np.where(found.item_idx >= 0, columns[found.item_idx], -1).astype(np.int32), found.score)

    def save(self, folder: Path) -> None:
        """See `Retriever.save`: one safetensors file."""
        parts = {name: getattr(self.tokens, name) for name in ("data", "indices", "indptr")}
        width = np.array([self.tokens.shape[1]], dtype=np.int64)
        save_arrays(folder / STATE_FILE, {**parts, "width": width, "popularity": self.popularity})

    @classmethod
    def load(cls, folder: Path, config: ModelConfig) -> Self:
        """See `Retriever.load`; the words stay memory-mapped."""
        arrays = map_arrays(folder / STATE_FILE)
        shape = (len(arrays["popularity"]), int(arrays["width"][0]))
        model = cls(config)
        data = arrays["data"].astype(np.float32, copy=False)
        indices, indptr = as_index(arrays["indices"], len(data)), as_index(arrays["indptr"], len(data))
        tokens = sp.csr_matrix((data, indices, indptr), shape=shape, copy=False)
        model._set(tokens, arrays["popularity"].astype(np.float32, copy=False))
        return model

    def _set(self, tokens: sp.csr_matrix, popularity: FloatArray) -> None:
        self.tokens, self.popularity = tokens, popularity
        self._across = tokens.T.tocsr()

    def _scores(self, queries: QueryBatch, columns: LongArray) -> FloatArray:
        """(B, C) float32 scores of the items `columns`, ascending."""
        whole = len(columns) == len(self.popularity)
        across = self._across if whole else self.tokens[columns].T.tocsr()
        longest = max(int(np.diff(queries.indptr).max(initial=1)), 1)
        block = max(1, CELLS_AT_ONCE // (len(columns) * longest))
        scores = np.zeros((len(queries), len(columns)), dtype=np.float32)
        for start, part in queries.blocks(block):
            scores[start : start + len(part)] = self._pooled(part, across)
        return scores + np.float32(PRIOR) * self.popularity[columns]

    def _pooled(self, queries: QueryBatch, across: sp.csr_matrix) -> FloatArray:
        weight = (self.config.history_decay ** queries.age.astype(np.float64)).astype(np.float32)
        keep = np.flatnonzero(weight >= NEGLIGIBLE)
        row, weight = queries.row[keep].astype(np.int64), weight[keep]
        similar = (self.tokens[queries.item_idx[keep]] @ across).tocsr()
        np.power(similar.data, np.float32(self.config.sharpness), out=similar.data)
        if not self.config.strongest:
            shape = (len(queries), len(keep))
            history = sp.csr_matrix((weight, (row, np.arange(len(keep)))), shape=shape)
            return np.asarray((history @ similar).todense(), dtype=np.float32)
        indptr = np.searchsorted(row, np.arange(len(queries) + 1))
        total = np.empty((len(queries), across.shape[1]), dtype=np.float32)
        width = max(1, CELLS_AT_ONCE // max(len(keep), 1))  # one long history over a large catalogue is more than a block
        for start in range(0, across.shape[1], width):
            value = similar[:, start : start + width].toarray()
            value *= weight[:, None]
            total[:, start : start + width] = _strongest(value, indptr, self.config.strongest)
        return total


def _strongest(value: FloatArray, indptr: LongArray, count: int) -> FloatArray:
    """(B, C) float32: the sum of the `count` largest values of each column among the rows of each query; no value is below 0."""
    total = np.zeros((len(indptr) - 1, value.shape[1]), dtype=np.float32)
    for b in range(len(total)):
        own = value[indptr[b] : indptr[b + 1]]
        if count == 1 and len(own):
            own.max(axis=0, out=total[b])
        else:
            strongest = own if len(own) <= count else np.partition(own, len(own) - count, axis=0)[-count:]
            strongest.sum(axis=0, out=total[b])
    return total
