"""Protocols: nothing leaks, nobody vanishes, and the published rules hold."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, settings
from hypothesis import given as given_that
from hypothesis import strategies as st

from training.dataset import from_frame
from training.errors import ProtocolError
from training.interactions import Interactions
from training.splits import PROTOCOLS, Fold, cold_items, given, leave_one_out, stratified, temporal

events = st.lists(
    st.tuples(st.integers(0, 5), st.integers(0, 8), st.integers(0, 400), st.sampled_from(["train", "test", "validation", None])),
    min_size=8,
    max_size=60,
)


def world(rows: list[tuple[int, int, int, str | None]]) -> Interactions:
    frame = pd.DataFrame(rows, columns=["user_id", "item_id", "seconds", "split"])
    frame["timestamp"] = pd.to_datetime(frame.pop("seconds") * 60 + 1_700_000_000, unit="s", utc=True)
    return from_frame(frame)


def pairs(data: Interactions) -> set[tuple[int, int]]:
    return set(zip(data.user_idx.tolist(), data.item_idx.tolist(), strict=True))


def targets(fold: Fold) -> set[tuple[int, int]]:
    owners = np.repeat(fold.queries.user_idx, np.diff(fold.target_indptr))
    return set(zip(owners.tolist(), fold.target_idx.tolist(), strict=True))


def histories(fold: Fold) -> set[tuple[int, int]]:
    return set(zip(fold.queries.user_idx[fold.queries.row].tolist(), fold.queries.item_idx.tolist(), strict=True))


def folds(protocol: str, data: Interactions) -> tuple[Fold, Fold, Fold]:
    make = PROTOCOLS[protocol]
    try:
        return make(data, "validation"), make(data, "test"), make(data, "test", refit=True)
    except ProtocolError:
        assume(False)
        raise


@pytest.mark.parametrize("protocol", sorted(PROTOCOLS))
@given_that(rows=events)
@settings(max_examples=60, deadline=None)
def test_nothing_leaks_and_nobody_vanishes(protocol: str, rows) -> None:
    data = world(rows)
    validation, strict, refit = folds(protocol, data)
    for fold in (validation, strict, refit):
        assert (np.diff(fold.target_indptr) > 0).all()
        assert (np.diff(fold.queries.indptr) > 0).all()
        assert len(set(fold.queries.user_idx.tolist())) == len(fold.queries)
        asked = len(fold.queries) + sum(fold.not_evaluated.values())
        assert asked == len(np.unique(data.user_idx))
        if protocol != "given":
            assert not targets(fold) & histories(fold)
            assert not targets(fold) & pairs(fold.fit)
        assert pairs(fold.fit) | histories(fold) | targets(fold) <= pairs(data)
    # Choosing reads no test target, not even through what it trains on.
    if protocol != "given":
        assert not targets(strict) & (pairs(validation.fit) | histories(validation) | targets(validation))
    # Strict trains on what choosing trained on; refit adds to it.
    assert pairs(strict.fit) == pairs(validation.fit)
    assert pairs(strict.fit) <= pairs(refit.fit)
    assert targets(strict) == targets(refit)


@given_that(rows=events, share=st.floats(0.1, 0.9))
@settings(max_examples=60, deadline=None)
def test_stratified_parts_make_the_whole(rows, share: float) -> None:
    data = world(rows)
    try:
        fold = stratified(data, "test", refit=True, seed=3, share=share)
    except ProtocolError:
        return
    training = pairs(fold.fit)
    assert training | targets(fold) | {pair for pair in pairs(data) if pair[0] not in fold.queries.user_idx} == pairs(data)
    for user in fold.queries.user_idx.tolist():
        own = sum(pair[0] == user for pair in pairs(data))
        assert sum(pair[0] == user for pair in training) == round(share * own)


@given_that(rows=events)
@settings(max_examples=60, deadline=None)
def test_temporal_has_one_cut_for_all(rows) -> None:
    data = world(rows)
    try:
        validation, test = temporal(data), temporal(data, "test", refit=True)
    except ProtocolError:
        return
    cut = int(test.queries.request_time_us[0])
    assert (test.queries.request_time_us == cut).all()
    assert test.fit.time_us.max() < cut
    assert test.queries.time_us.max() < cut
    first_target = min(int(data.time_us[(data.user_idx == user) & (data.item_idx == item)].min()) for user, item in targets(test))
    assert first_target >= cut
    assert validation.fit.time_us.max() < validation.queries.request_time_us[0] < cut


def test_temporal_leaves_imputed_times_out() -> None:
    frame = pd.DataFrame({"user_id": ["a", "b"] * 20, "item_id": [f"i{n}" for n in range(40)]})
    frame["timestamp"] = pd.to_datetime(np.arange(40) * 3600, unit="s", utc=True)
    frame.loc[[5, 38], "timestamp"] = pd.NaT
    data = from_frame(frame)
    fold = temporal(data, "test", refit=True)
    unknown = {(int(u), int(i)) for u, i in zip(data.user_idx[~data.time_known], data.item_idx[~data.time_known], strict=True)}
    assert len(unknown) == 2
    assert not unknown & (pairs(fold.fit) | histories(fold) | targets(fold))


def test_temporal_is_refused_without_times() -> None:
    with pytest.raises(ProtocolError, match="has none: use leave-one-out"):
        temporal(from_frame(pd.DataFrame({"user_id": list("aab"), "item_id": list("xyx")})))


def test_a_seed_decides_the_draw() -> None:
    rng = np.random.default_rng(5)
    data = world([(int(u), int(i), int(t), None) for u, i, t in rng.integers(0, [6, 9, 400], (120, 3))])
    for make in (stratified, cold_items):
        assert targets(make(data, "test", seed=1)) == targets(make(data, "test", seed=1))
        assert targets(make(data, "test", seed=1)) != targets(make(data, "test", seed=2))


def test_cold_items_are_nowhere_in_training() -> None:
    rng = np.random.default_rng(6)
    data = world([(int(u), int(i), int(t), None) for u, i, t in rng.integers(0, [30, 60, 400], (500, 3))])
    cold, everything, validation = cold_items(data, "test", among="cold"), cold_items(data, "test"), cold_items(data)
    assert cold.allowed is not None
    assert cold.allowed.sum() == 3
    assert not cold.allowed[np.unique(cold.fit.item_idx)].any()
    assert everything.allowed is None
    assert cold.allowed[everything.target_idx].all()
    assert validation.allowed is not None
    assert not validation.allowed[cold.target_idx].any()
    with pytest.raises(ProtocolError, match="3 items"):
        cold_items(from_frame(pd.DataFrame({"user_id": ["a"], "item_id": ["x"]})))


def test_given_reads_the_column() -> None:
    rows = [("a", "p", "train"), ("a", "q", "valid"), ("a", "r", "test"), ("b", "p", None), ("b", "q", "test"), ("c", "p", "train")]
    data = from_frame(pd.DataFrame(rows, columns=["user_id", "item_id", "split"]))
    strict, refit = given(data, "test"), given(data, "test", refit=True)
    assert len(strict.fit) == 3
    assert len(refit.fit) == 4
    assert len(strict.queries) == 2
    assert strict.not_evaluated == {"no row held out": 1}
    assert targets(given(data)) == {(0, 1)}
    with pytest.raises(ProtocolError, match="'test', and there are none"):
        given(from_frame(pd.DataFrame({"user_id": ["a"], "item_id": ["x"]})))
    with pytest.raises(ProtocolError, match="'fold7' is not known"):
        given(from_frame(pd.DataFrame({"user_id": ["a"], "item_id": ["x"], "split": ["fold7"]})))


def test_coat_is_ranked_as_published(shared) -> None:
    raw = pd.read_parquet(shared / "data" / "coat" / "interactions.parquet")
    fold = given(from_frame(raw), "test", refit=True)
    assert len(fold.queries) == 290
    assert len(fold.fit) == 6_960
    assert len(fold.target_idx) == 4_640
    both = raw[raw.split == "train"].merge(raw[raw.split == "test"], on=["user_id", "item_id"])
    assert len(targets(fold) & histories(fold)) == len(both) == 366


def test_users_of_two_train_with_their_first_item_and_are_tested_on_their_last() -> None:
    frame = pd.DataFrame({"user_id": list("aaabb"), "item_id": list("xyzxy"), "position": [0, 1, 2, 0, 1]})
    data = from_frame(frame)
    assert pairs(leave_one_out(data).fit) == {(0, 0), (1, 0)}
    assert targets(leave_one_out(data, "test")) == {(0, 2), (1, 1)}
