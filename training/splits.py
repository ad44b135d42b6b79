"""Protocols: what a model may learn from, what it is asked, and what counts as right. Owns every decision about held-out rows.

Each protocol gives a `Fold` for stage "validation" (what studies choose on; no test row is read) or stage "test". The validation
targets lie within the test fold's training part. At stage test a strict fold trains on exactly what choosing trained on, a refit
fold on the validation targets too; histories hold all that came before the test targets in both.

Legend: `E` interactions, `U` users, `B` evaluated users (one query each), `N` items, `T` targets of all users together.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Literal

import numpy as np

from training.errors import ProtocolError
from training.fold import Fold, Stage, fold_of_rows, present
from training.interactions import BoolArray, IntArray, Interactions, LongArray
from training.queries import queries_from_users

__all__ = ["PROTOCOLS", "Fold", "Stage", "cold_items", "given", "leave_one_out", "stratified", "temporal"]

US_PER_SECOND = 1_000_000


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
        not_evaluated=present({f"fewer than {needed} distinct items": int((num_new > 0).sum()) - len(users)}),
    )


def temporal(interactions: Interactions, stage: Stage = "validation", *, refit: bool = False, share: float = 0.1) -> Fold:
    """One cut in time for everybody: the newest `share` of the interactions is to be predicted from what came before.

    Nothing after the cut is in a history or in a fit. The query's time is the cut. Targets are the new items of each user after the
    cut, those before the test cut at stage validation. The cut is a whole second: below that, imported times hold the history
    position, not time. Rows whose time was imputed are in no part.

    Raises:
        ProtocolError: the data has no times, or nobody has activity on both sides of the cut.
    """
    _check_refit(stage, refit)
    if not interactions.has_times:
        raise ProtocolError("the temporal protocol needs times, and this dataset has none: use leave-one-out or stratified")
    known, times = interactions.time_known, interactions.time_us
    test_cut = _cut(times[known], share)
    validation_cut = _cut(times[known & (times < test_cut)], share)
    cut = test_cut if stage == "test" else validation_cut
    fit_cut = test_cut if refit else validation_cut
    after = known & (times >= cut)
    fold = fold_of_rows(
        "temporal",
        stage,
        interactions,
        fit=known & (times < fit_cut),
        history=known & (times < cut),
        target=after if stage == "test" else after & (times < test_cut),
        refit=refit,
        reasons=("no activity after the cut", "no activity before the cut", "only items seen before the cut"),
    )
    request_time_us = np.full(len(fold.queries), cut, dtype=np.int64)
    return replace(fold, queries=replace(fold.queries, request_time_us=request_time_us))


def stratified(
    interactions: Interactions, stage: Stage = "validation", *, refit: bool = False, seed: int = 0, share: float = 0.75
) -> Fold:
    """A random `share` of each user's items trains, the rest is to be predicted; order and time play no part.

    round(share * n) of a user's n distinct items train, so that a user with two has no target. The validation targets are drawn in
    the same way within the training part.

    Raises:
        ProtocolError: nobody has items enough.
    """
    _check_refit(stage, refit)
    rng = np.random.default_rng(seed)
    training = _random_share(interactions, np.ones(len(interactions), dtype=bool), share, rng)
    inner = _random_share(interactions, training, share, rng)
    return fold_of_rows(
        "stratified",
        stage,
        interactions,
        fit=training if refit else inner,
        history=training if stage == "test" else inner,
        target=~training if stage == "test" else training & ~inner,
        refit=refit,
        reasons=("too few items to hold one out", "no item to train on", "only items seen in training"),
    )


def given(
    interactions: Interactions, stage: Stage = "validation", *, refit: bool = False, seed: int = 0, share: float = 0.75
) -> Fold:
    """The file's own `split`: "test" rows are to be predicted, "validation" (or "valid", "val", "dev") rows are for choosing.

    Rows without a split, or with "train", train. Where the file has no validation rows, they are drawn from the training rows as in
    `stratified`. The history is masked by the evaluation, but for the user's own targets: an item may be in both parts.

    Raises:
        ProtocolError: no row is marked "test", a mark is unknown, or nobody has rows on both sides.
    """
    _check_refit(stage, refit)
    marks = {None: 0, "": 0, "train": 0, "training": 0, "valid": 1, "validation": 1, "val": 1, "dev": 1, "test": 2}
    distinct = set(interactions.split.tolist())
    unknown = sorted(str(mark) for mark in distinct if _mark(mark) not in marks)
    if unknown:
        raise ProtocolError(f"split {unknown[0]!r} is not known: the column may say train, validation or test")
    code_of = {mark: marks[_mark(mark)] for mark in distinct}
    part = np.array([code_of[mark] for mark in interactions.split.tolist()], dtype=np.int8)
    if not (part == 2).any():
        raise ProtocolError("the given protocol needs rows whose split says 'test', and there are none: use another protocol")
    if not (part == 1).any():
        inner = _random_share(interactions, part == 0, share, np.random.default_rng(seed))
        part = np.where((part == 0) & ~inner, 1, part)
    fold = fold_of_rows(
        "given",
        stage,
        interactions,
        fit=part <= int(refit),
        history=part == 0 if stage == "validation" else part <= 1,
        target=part == (2 if stage == "test" else 1),
        refit=refit,
        drop_seen=False,
        reasons=("no row held out", "no row to train on", ""),
    )
    return replace(fold, exclude_history=False)


def cold_items(
    interactions: Interactions,
    stage: Stage = "validation",
    *,
    refit: bool = False,
    seed: int = 0,
    share: float = 0.05,
    among: Literal["cold", "all"] = "all",
) -> Fold:
    """A random `share` of the items is taken out of training altogether; users who took them are asked for them.

    Histories hold all of a user's other rows, later ones included: the question is what can be said of an item that nobody has
    taken, not of the future. The validation items are as many again, drawn from the rest.

    Args:
        interactions: all activity.
        stage: which set of cold items is asked for; at stage validation the test items can be neither learnt nor recommended.
        refit: train on the validation items.
        seed: of the draw.
        share: of the items with activity.
        among: rank among the stage's cold items, or among all.

    Raises:
        ProtocolError: too few items.
    """
    _check_refit(stage, refit)
    active = np.flatnonzero(np.bincount(interactions.item_idx, minlength=interactions.num_items))
    count = max(1, round(share * len(active)))
    if len(active) < 2 * count + 1:
        raise ProtocolError(f"cold-items needs 3 items with activity or more, and this dataset has {len(active)}")
    drawn = np.random.default_rng(seed).permutation(active)
    test_items, validation_items = np.zeros((2, interactions.num_items), dtype=bool)
    test_items[drawn[:count]] = True
    validation_items[drawn[count : 2 * count]] = True
    cold = test_items if stage == "test" else validation_items
    out_of_history = test_items if stage == "test" else test_items | validation_items
    out_of_fit = test_items if refit else test_items | validation_items
    fold = fold_of_rows(
        "cold-items",
        stage,
        interactions,
        fit=~out_of_fit[interactions.item_idx],
        history=~out_of_history[interactions.item_idx],
        target=cold[interactions.item_idx],
        refit=refit,
        reasons=("no cold item taken", "nothing but cold items taken", ""),
    )
    return replace(fold, allowed=cold if among == "cold" else None if stage == "test" else ~test_items)


def _cut(times_us: LongArray, share: float) -> int:
    """The whole second that leaves about `share` of the times at or after it."""
    if len(times_us) == 0:
        raise ProtocolError("temporal: nothing lies before the test cut to choose on: use leave-one-out or stratified")
    place = min(int(len(times_us) * (1.0 - share)), len(times_us) - 1)
    return int(np.partition(times_us, place)[place]) // US_PER_SECOND * US_PER_SECOND


def _random_share(interactions: Interactions, among: BoolArray, share: float, rng: np.random.Generator) -> BoolArray:
    """(E,) bool: rows of a random `share` of each user's distinct items in `among`; all rows of an item go together."""
    num_items = interactions.num_items
    rows = np.flatnonzero(among)
    key = interactions.user_idx[rows].astype(np.int64) * num_items + interactions.item_idx[rows]
    pairs, pair_of_row = np.unique(key, return_inverse=True)
    user = pairs // num_items
    order = np.lexsort((rng.random(len(pairs)), user))
    starts = np.searchsorted(user, np.arange(interactions.num_users + 1))
    kept_of_user = np.rint(share * np.diff(starts))
    chosen = np.zeros(len(pairs), dtype=bool)
    chosen[order] = np.arange(len(pairs)) - starts[user] < kept_of_user[user]
    result = np.zeros(len(interactions), dtype=bool)
    result[rows] = chosen[pair_of_row]
    return result


def _mark(mark: object) -> str | None:
    return None if mark is None else str(mark).strip().lower()


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


PROTOCOLS: dict[str, Callable[..., Fold]] = {
    "leave-one-out": leave_one_out,
    "temporal": temporal,
    "stratified": stratified,
    "given": given,
    "cold-items": cold_items,
}
"""Name in settings and reports -> `function(interactions, stage, refit=...)`."""
