"""Simulated people who look at slates and act on them: the same tastes as in a dataset's activity, eyes that tire down the list.

A person examines position p (0-based) with probability (1 / (1 + p)) ** `eta`, and clicks what is examined with a probability
that rises with how well the item fits the person's taste. Both are known, so what estimators find on such traffic can be checked.

Source: the position-based click model, Joachims, Swaminathan and Schnabel 2017, "Unbiased Learning-to-Rank with Biased Feedback",
section 4.1 (examination independent of relevance) and equation 8 (eta).

Legend: `U` users, `T` categories, `K` items of a slate.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import scipy.sparse as sp

FloatArray = npt.NDArray[np.float64]

NOBODY = "-"
"""Category of items without one."""


@dataclass(frozen=True)
class ClickModel:
    """How people act on slates.

    Args:
        eta: how fast attention falls with the position; 0 looks at everything.
        best: probability of a click on a perfectly fitting item that was examined.
        worst: the same of an item that does not fit at all.
        purchase: share of clicks that end in a purchase.
        rating: share of clicks that end in a rating.
    """

    eta: float = 1.0
    best: float = 0.6
    worst: float = 0.05
    purchase: float = 0.1
    rating: float = 0.3

    def examination(self, positions: int) -> FloatArray:
        """(positions,) probability of looking at each place."""
        return np.asarray((1.0 / (1.0 + np.arange(positions))) ** self.eta)

    def attraction(self, fit: FloatArray) -> FloatArray:
        """(K,) probability of a click once examined, for fits in [0, 1]."""
        return np.asarray(self.worst + (self.best - self.worst) * fit)

    def clicks(self, fit: FloatArray, rng: np.random.Generator) -> npt.NDArray[np.bool_]:
        """(K,) bool: which items of a slate are clicked."""
        return np.asarray(rng.random(len(fit)) < self.examination(len(fit)) * self.attraction(fit))


class SimulatedUsers:
    """The people of a dataset, with the tastes that their activity shows.

    Args:
        activity: `user_id` and `item_id` of past interactions.
        categories: item_id -> its categories.
        max_users: where there are more, these are drawn.
        seed: of that draw.
    """

    def __init__(
        self, activity: pa.Table, categories: Mapping[str, Sequence[str]], *, max_users: int | None = None, seed: int = 0
    ) -> None:
        names = sorted({name for of in categories.values() for name in of} | {NOBODY})
        self._column = {name: column for column, name in enumerate(names)}
        self._categories = categories
        known = _of_some_users(activity.filter(pc.is_valid(activity["user_id"])), max_users, seed)
        users, items = (pc.dictionary_encode(known[name].combine_chunks()) for name in ("user_id", "item_id"))
        self.user_ids: list[str] = users.dictionary.to_pylist()
        self._row = {user: row for row, user in enumerate(self.user_ids)}
        cells = (np.ones(len(users)), (users.indices.to_numpy(), items.indices.to_numpy()))
        counts = sp.csr_matrix(cells, shape=(len(users.dictionary), len(items.dictionary)))
        taste = sp.csr_matrix(counts @ self._membership(items.dictionary.to_pylist()))
        peak = np.maximum(taste.max(axis=1).toarray().ravel(), 1e-9) if len(self.user_ids) else np.ones(0)
        self._taste = sp.csr_matrix(sp.diags(1.0 / peak) @ taste)
        self._average = np.asarray(self._taste.sum(axis=0)).ravel() / max(len(self.user_ids), 1)
        self._activity = np.asarray(counts.sum(axis=1)).ravel() / max(len(users), 1)

    def draw(self, rng: np.random.Generator, count: int) -> list[str]:
        """`count` users, the active ones more often."""
        return [self.user_ids[row] for row in rng.choice(len(self.user_ids), count, p=self._activity)]

    def fit(self, user_id: str | None, item_ids: Sequence[str]) -> FloatArray:
        """(K,) in [0, 1]: how well items fit a user's taste; strangers have the average taste."""
        row = self._row.get(user_id) if user_id is not None else None
        taste = self._average if row is None else self._taste[row].toarray().ravel()
        return np.asarray(np.clip(self._membership(item_ids) @ taste, 0.0, 1.0))

    def _membership(self, item_ids: Sequence[str]) -> sp.csr_matrix:
        """(K, T) shares of the items' categories, summing to 1 in each row."""
        of = [[self._column[n] for n in self._categories.get(item, ()) if n in self._column] for item in item_ids]
        of = [columns or [self._column[NOBODY]] for columns in of]
        lengths = np.array([len(columns) for columns in of], dtype=np.int64)
        values = np.repeat(1.0 / np.maximum(lengths, 1), lengths)
        columns = np.fromiter((column for row in of for column in row), dtype=np.int64, count=int(lengths.sum()))
        indptr = np.concatenate([[0], np.cumsum(lengths)])
        return sp.csr_matrix((values, columns, indptr), shape=(len(item_ids), len(self._column)))


def _of_some_users(activity: pa.Table, max_users: int | None, seed: int) -> pa.Table:
    users = pc.unique(activity["user_id"])
    if max_users is None or len(users) <= max_users:
        return activity
    drawn = users.take(pa.array(np.sort(np.random.default_rng(seed).choice(len(users), max_users, replace=False))))
    return activity.filter(pc.is_in(activity["user_id"], value_set=drawn))
