"""The fold: one training and evaluation task, and how it is made from masks of rows. Which rows is for `training.splits` to say.

Legend: `E` interactions, `B` evaluated users (one query each), `N` items, `T` targets of all users together.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from training.errors import ProtocolError
from training.interactions import BoolArray, IntArray, Interactions, LongArray
from training.queries import QueryBatch, queries_from_users

VALIDATION_CELLS = 4_000_000_000
"""Users times items that choosing looks at: about a minute of scoring and sorting for one model."""
FEWEST_USERS = 2_000

Stage = Literal["validation", "test"]
Protocol = Literal["leave-one-out", "temporal", "stratified", "given", "cold-items"]


@dataclass(frozen=True)
class Fold:
    """One training and evaluation task.

    Shapes:
        target_indptr (B + 1,) int64: targets of query b are `target_idx[target_indptr[b]:target_indptr[b + 1]]`.
        target_idx (T,) int32: distinct within a query, at least one each.
        allowed (N,) bool: items that may be recommended, None for all.

    Args:
        protocol, stage: what made it.
        fit: what models may be fitted on.
        queries: one query an evaluated user; histories hold nothing that is a target.
        exclude_history: whether recommenders leave the history out. Where False, the evaluation drops history items itself, except
            those that are the user's targets.
        refit: whether the validation targets are in `fit`.
        not_evaluated: reason -> number of users that the protocol cannot ask about.
    """

    protocol: Protocol
    stage: Stage
    fit: Interactions
    queries: QueryBatch
    target_indptr: LongArray
    target_idx: IntArray
    allowed: BoolArray | None = None
    exclude_history: bool = True
    refit: bool = False
    not_evaluated: Mapping[str, int] = field(default_factory=dict)

    def targets(self, b: int) -> IntArray:
        """Targets of query b."""
        return self.target_idx[self.target_indptr[b] : self.target_indptr[b + 1]]


def fold_of_rows(
    protocol: Protocol,
    stage: Stage,
    interactions: Interactions,
    *,
    fit: BoolArray,
    history: BoolArray,
    target: BoolArray,
    refit: bool,
    reasons: tuple[str, str, str],
    drop_seen: bool = True,
) -> Fold:
    """A fold from (E,) masks of rows. Targets are distinct items, without those of the history where `drop_seen`.

    `reasons` name the users who have no target row, those who have no history, and those whose targets are all in it.
    """
    num_items = interactions.num_items
    key = interactions.user_idx.astype(np.int64) * num_items + interactions.item_idx
    pairs = np.unique(key[target])
    wants = np.bincount(pairs // num_items, minlength=interactions.num_users) > 0
    if drop_seen:
        pairs = np.setdiff1d(pairs, key[history], assume_unique=False)
    num_targets = np.bincount(pairs // num_items, minlength=interactions.num_users)
    has_history = np.bincount(interactions.user_idx[history], minlength=interactions.num_users) > 0
    has_rows = np.bincount(interactions.user_idx, minlength=interactions.num_users) > 0
    asked = (num_targets > 0) & has_history
    not_evaluated = present(
        {
            reasons[0]: int((has_rows & ~wants).sum()),
            reasons[1]: int((wants & ~has_history).sum()),
            reasons[2]: int((wants & has_history & (num_targets == 0)).sum()),
        }
    )
    users = np.flatnonzero(asked).astype(np.int32)
    if len(users) == 0:
        found = "; ".join(f"{count:,} users: {reason}" for reason, count in not_evaluated.items())
        raise ProtocolError(f"{protocol} at stage {stage} leaves nobody to ask ({found}): use another protocol or more data")
    kept = pairs[asked[pairs // num_items]]
    return Fold(
        protocol=protocol,
        stage=stage,
        fit=interactions.select(fit),
        queries=queries_from_users(interactions.select(history), users),
        target_indptr=np.concatenate([[0], np.cumsum(num_targets[users])]).astype(np.int64),
        target_idx=(kept % num_items).astype(np.int32),
        refit=refit,
        not_evaluated=not_evaluated,
    )


def users_within(num_items: int) -> int:
    """Users to choose on at most, so that what is scored does not grow with the catalogue for ever."""
    return max(FEWEST_USERS, VALIDATION_CELLS // max(num_items, 1))


def drawn(fold: Fold, users: int, seed: int) -> Fold:
    """The fold with at most `users` of its queries, drawn by the seed."""
    if len(fold.queries) <= users:
        return fold
    rows = np.sort(np.random.default_rng(seed).choice(len(fold.queries), users, replace=False)).astype(np.int64)
    starts, lengths = fold.target_indptr[rows], np.diff(fold.target_indptr)[rows]
    indptr = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    entries = np.repeat(starts - indptr[:-1], lengths) + np.arange(int(indptr[-1]))
    return replace(fold, queries=fold.queries.take(rows), target_indptr=indptr, target_idx=fold.target_idx[entries])


def present(reasons: Mapping[str, int]) -> dict[str, int]:
    """The reasons that befell anybody."""
    return {reason: count for reason, count in reasons.items() if count}
