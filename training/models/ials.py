"""iALS: implicit-feedback matrix factorization; only item factors are kept, and every query is folded in from its history.

Fitting is the `implicit` library's, scoring is ours: for each history the exact least-squares solution, in batches, so that users
unseen in training and activity of a second ago are like any other.

Source: Hu, Koren and Volinsky 2008, "Collaborative Filtering for Implicit Feedback Datasets", equation 4.

Shapes: `B` queries, `N` items, `D` factors, `L` padded history length.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import ClassVar, Self

import numpy as np
from pydantic import Field
from threadpoolctl import ThreadpoolController, threadpool_limits

from training.arrays import map_arrays, save_arrays
from training.interactions import BoolArray, FloatArray, LongArray
from training.models.base import ModelConfig, ReportEpoch, TrainingData
from training.models.item_item import PRIOR, popularity_share
from training.models.vector_retriever import VectorRetriever
from training.native import preload_openmp
from training.queries import QueryBatch

SOLVE_CELLS = 16_000_000
"""Floats of one batch of systems and gathered factors: 64 MB each."""


class IalsConfig(ModelConfig):
    """Parameters of iALS.

    Args:
        factors: D.
        iterations: alternations over users and items; each is an epoch.
        l2: regularization of every factor vector.
        alpha: confidence of an item taken n times is 1 + alpha (1 + ln n), of one never taken 1.
        history_decay: at scoring, an entry counts `history_decay ** age` of an interaction, age 0 being the newest: at 0 it would
            be like an item never taken.
    """

    factors: int = Field(default=64, ge=1, le=1024)
    iterations: int = Field(default=12, ge=1, le=200)
    l2: float = Field(default=5.0, gt=0)
    alpha: float = Field(default=5.0, gt=0)
    history_decay: float = Field(default=0.95, gt=0, le=1)


class Ials(VectorRetriever):
    """iALS; see the module and `IalsConfig`."""

    name: ClassVar[str] = "ials"
    Config: ClassVar[type[ModelConfig]] = IalsConfig
    epochs_parameter: ClassVar[str | None] = "iterations"
    config: IalsConfig
    vectors: FloatArray
    """(N, D + 1) float32: the factors and, last, what popularity adds."""
    gram: FloatArray
    gram_inverse: FloatArray

    def fit(self, data: TrainingData, *, seed: int = 0, on_epoch: ReportEpoch | None = None) -> Self:
        """See `Retriever.fit`."""
        preload_openmp()
        from implicit.cpu.als import AlternatingLeastSquares

        interactions, config = data.interactions, self.config
        popularity = popularity_share(interactions)
        confidence = interactions.to_csr()
        confidence.data = 1.0 + np.float32(config.alpha) * (1.0 + np.log(confidence.data))

        def after_epoch(epoch: int, _seconds: float, *_loss: float) -> None:
            self.set_factors(library.item_factors, popularity)
            if on_epoch is not None and on_epoch(epoch + 1, self):
                raise _StopTraining

        # BLAS threads beside the library's own would fight for the cores. The starting factors come from the seed.
        with threadpool_limits(1, "blas"), contextlib.suppress(_StopTraining):
            library = AlternatingLeastSquares(
                factors=config.factors, regularization=config.l2, iterations=config.iterations, random_state=seed
            )
            library.fit(confidence, show_progress=False, callback=after_epoch)
        self.vectors_changed(interactions, seed)
        return self

    @property
    def item_factors(self) -> FloatArray:
        """(N, D) float32, 0 for items without activity."""
        return self.vectors[:, :-1]

    def query_vectors(self, queries: QueryBatch) -> FloatArray:
        """See `VectorRetriever.query_vectors`; a query without history gets popularity."""
        return np.concatenate([self.fold_in(queries), np.ones((len(queries), 1), dtype=np.float32)], axis=1)

    def known(self) -> BoolArray:
        """See `VectorRetriever.known`: items with activity."""
        return self.vectors[:, -1] > 0

    def fold_in(self, queries: QueryBatch) -> FloatArray:
        """(B, D) float32 user factors: solves (Y'Y + Y'(C - I)Y + l2 I) x = Y'C p for each history, p being 1.

        Histories shorter than D are solved in the space of their entries (Woodbury), longer ones in the space of the factors.
        """
        factors, config = self.item_factors, self.config
        width = factors.shape[1]
        users = np.zeros((len(queries), width), dtype=np.float32)
        share = (config.history_decay ** queries.age.astype(np.float64)).astype(np.float32)
        # Many small systems: threads of BLAS would only wait for one another.
        with _blas().limit(limits=1, user_api="blas"):
            for rows, entries, valid in _batches_of_like_length(queries, width):
                gathered = factors[queries.item_idx[entries]]
                counted = np.where(valid, share[entries], 0.0).astype(np.float32)
                if counted.shape[1] < width:
                    users[rows] = _solve_by_entries(gathered, counted, config.alpha, self.gram_inverse)
                else:
                    users[rows] = _solve_by_factors(gathered, counted, config.alpha, self.gram)
        return users

    def save(self, folder: Path) -> None:
        """See `Retriever.save`: one safetensors file, and the index."""
        save_arrays(folder / "ials.safetensors", {"vectors": self.vectors, "gram": self.gram, "gram_inverse": self.gram_inverse})
        self.save_index(folder)

    @classmethod
    def load(cls, folder: Path, config: ModelConfig) -> Self:
        """See `Retriever.load`; the vectors stay memory-mapped."""
        arrays = map_arrays(folder / "ials.safetensors")
        model = cls(config)
        model.vectors = arrays["vectors"].astype(np.float32, copy=False)
        model.gram, model.gram_inverse = np.array(arrays["gram"], np.float32), np.array(arrays["gram_inverse"], np.float32)
        model.load_index(folder)
        return model

    def set_factors(self, factors: FloatArray, popularity: FloatArray) -> None:
        """Install the fitted state: (N, D) factors and the (N,) popularity share in [0, 1].

        Items without activity have no evidence, so their factors become zero.
        """
        learned = np.where(popularity[:, None] > 0, factors, 0.0)
        self.vectors = np.concatenate([learned, np.float32(PRIOR) * popularity[:, None]], axis=1).astype(np.float32)
        doubles = learned.astype(np.float64)
        gram = doubles.T @ doubles + self.config.l2 * np.eye(doubles.shape[1])
        self.gram, self.gram_inverse = gram.astype(np.float32), np.linalg.inv(gram).astype(np.float32)


class _StopTraining(Exception):
    """Raised in the library's callback to end the fit; caught by `Ials.fit`."""


@lru_cache(maxsize=1)
def _blas() -> ThreadpoolController:
    """Found once: looking through the loaded libraries takes milliseconds."""
    return ThreadpoolController()


def _solve_by_factors(gathered: FloatArray, share: FloatArray, alpha: float, base: FloatArray) -> FloatArray:
    """(b, D): (base + sum of alpha share y y') x = sum of (1 + alpha) share y; gathered y (b, L, D), share (b, L), base (D, D)."""
    left = base + np.matmul(gathered.transpose(0, 2, 1) * (alpha * share)[:, None, :], gathered)
    right = np.matmul(((1.0 + alpha) * share)[:, None, :], gathered)
    return np.asarray(np.linalg.solve(left, right.transpose(0, 2, 1))[:, :, 0], dtype=np.float32)


def _solve_by_entries(gathered: FloatArray, share: FloatArray, alpha: float, inverse: FloatArray) -> FloatArray:
    """The same solution by L x L systems: x = Z'S (I + S Y Z' S)^-1 r, Z = Y base^-1, S = sqrt(alpha share), S r the right side."""
    root = np.sqrt(alpha * share)
    spread = np.matmul(gathered, inverse)
    left = np.matmul(spread, gathered.transpose(0, 2, 1)) * root[:, :, None] * root[:, None, :]
    left += np.eye(left.shape[1], dtype=np.float32)
    right = np.float32((1.0 + alpha) / alpha) * root
    found = np.linalg.solve(left, right[:, :, None])[:, :, 0] * root
    return np.asarray(np.matmul(found[:, None, :], spread)[:, 0, :], dtype=np.float32)


def _batches_of_like_length(queries: QueryBatch, width: int) -> Iterator[tuple[LongArray, LongArray, BoolArray]]:
    """Batches of queries of like history length: (b,) query numbers, (b, L) entry numbers, (b, L) bool of real entries."""
    lengths = np.diff(queries.indptr)
    order = np.argsort(lengths, kind="stable")
    order = order[lengths[order] > 0]
    start = 0
    while start < len(order):
        # As many rows as fit the budget at the length of the last of them, which is the longest.
        longest = int(lengths[order[min(start + 255, len(order) - 1)]])
        size = max(1, min(256, SOLVE_CELLS // (width * max(longest, width))))
        rows = order[start : start + size]
        start += len(rows)
        place = np.arange(int(lengths[rows[-1]]))
        valid = place < lengths[rows][:, None]
        yield rows, np.where(valid, queries.indptr[rows][:, None] + place, 0), valid
