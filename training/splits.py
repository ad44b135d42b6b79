"""Protocols: what a model may learn from, what it is asked, and what counts as right. Owns every decision about held-out rows.

Each protocol gives a `Fold` for stage "validation" (what studies choose on; no test row is read) or stage "test".

Legend: `E` interactions, `B` evaluated users (one query each), `N` items, `T` targets of all users together.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from training.errors import ProtocolError
from training.interactions import BoolArray, IntArray, Interactions, LongArray
from training.queries import QueryBatch, queries_from_users

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
        refit: whether rows on which a study has chosen are in `fit`.
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


def leave_one_out(interactions: Interactions, stage: Stage = "validation", *, refit: bool = False) -> Fold:
    """The last new item of every user is the test target, the one before the validation target.

    Histories hold all that came before the target. Models are fitted on what came before the validation target, at stage test with
    `refit` on what came before the test target. Only an item's first occurrence can be a target (a recommender that leaves out seen
    items cannot propose it again), and what comes after a user's test target is in no fold. Where no item repeats, as in the
    published datasets, test = seq[-1], validation = seq[-2], fit = seq[:-2].

    A user with fewer than 2 distinct items cannot be asked about at stage test, with fewer than 3 at stage validation: counted in
    `not_evaluated`. The last row of such users too stays out of every fit, so that choosing never reads anybody's last item; a user
    with two has no validation target and trains with the first.

    Raises:
        ProtocolError: no user has items enough, or refit is asked for at stage validation.
    """
    _check_refit(stage, refit)
    new_from_end = _new_items_from_end(interactions)
    num_new = np.bincount(interactions.user_idx, weights=new_from_end >= 0, minlength=interactions.num_users).astype(np.int64)
    wanted = 0 if stage == "test" else 1
    users = np.flatnonzero(num_new >= wanted + 2).astype(np.int32)
    needed = wanted + 2
    if len(users) == 0:
        raise ProtocolError(f"leave-one-out at stage {stage} needs a user with {needed} distinct items or more; there is none")
    # Rows from a target on belong to that target's stage: `reached` is the number of targets at or after each row.
    test_row = _row_of_target(interactions, new_from_end, 0)
    validation_row = np.where(num_new >= 3, _row_of_target(interactions, new_from_end, 1), test_row)
    rows = np.arange(len(interactions))
    cut = test_row if stage == "test" else validation_row
    fit_cut = test_row if refit else validation_row
    history = interactions.select(rows < cut[interactions.user_idx])
    targets = interactions.item_idx[cut[users]]
    return Fold(
        protocol="leave-one-out",
        stage=stage,
        fit=interactions.select(rows < fit_cut[interactions.user_idx]),
        queries=queries_from_users(history, users),
        target_indptr=np.arange(len(users) + 1, dtype=np.int64),
        target_idx=targets.astype(np.int32),
        refit=refit,
        not_evaluated=_counts({f"fewer than {needed} distinct items": int((num_new > 0).sum()) - len(users)}),
    )


def _new_items_from_end(interactions: Interactions) -> IntArray:
    """(E,) int32: for the first occurrence of an item in a user's history, how many newer first occurrences follow; else -1."""
    key = interactions.user_idx.astype(np.int64) * interactions.num_items + interactions.item_idx
    first = np.zeros(len(interactions), dtype=bool)
    first[np.unique(key, return_index=True)[1]] = True
    so_far = np.cumsum(first)
    until_user_end = np.concatenate([[0], so_far])[interactions.indptr[interactions.user_idx + 1]]
    return np.where(first, until_user_end - so_far, -1).astype(np.int32)


def _row_of_target(interactions: Interactions, new_from_end: IntArray, which: int) -> LongArray:
    """(U,) int64: row of each user's `which`-th new item from the end; where there is none, the user's first row."""
    rows = interactions.indptr[:-1].copy()
    found = np.flatnonzero(new_from_end == which)
    rows[interactions.user_idx[found]] = found
    return rows


def _check_refit(stage: Stage, refit: bool) -> None:
    if refit and stage == "validation":
        raise ProtocolError("refit trains on the validation rows: it is possible at stage test only")


def _counts(reasons: Mapping[str, int]) -> dict[str, int]:
    return {reason: count for reason, count in reasons.items() if count}


PROTOCOLS: dict[str, Callable[..., Fold]] = {"leave-one-out": leave_one_out}
