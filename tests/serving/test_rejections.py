"""What a user has rejected is in no list of a version, whether anybody still remembers the event or not."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest

from features.event_codec import to_microseconds
from serving.batch_lists import BatchLists
from serving.cached_list import CachedList, decode_list
from serving.item_table import ItemTable
from serving.messages import ComputeRequest
from serving.recent_activity import RecentActivity
from serving.retriever import RetrieverStage
from serving.schemas import ALL_SEEN, Seen
from training.bundle import fingerprint, open_bundle, seal_bundle
from training.bundle_erasure import erase_user
from training.interactions import Interactions
from training.pipeline import Pipeline
from training.rejections import Rejections

USER = "u7"
K = 20


@pytest.fixture
def save(pipeline: Pipeline, world: Interactions, tmp_path: Path) -> Callable[..., Path]:
    """Saves the planted world's bundle with other histories."""

    def saved(**changes: object) -> Path:
        histories = replace(pipeline.histories, **changes)  # type: ignore[arg-type]
        folder = tmp_path / "own"
        known = fingerprint(world, trained_on="all", includes_test_rows=True)
        replace(pipeline, histories=histories).save(folder, seed=0, fingerprint=known)
        return folder

    return saved


def row_of(pipeline: Pipeline, user: str) -> int:
    return int(pipeline.histories.users.rows([user])[0])


def rejecting(pipeline: Pipeline, items: list[int]) -> Rejections:
    rows = np.full(len(items), row_of(pipeline, USER), dtype=np.int32)
    return Rejections.of(rows, np.array(items, dtype=np.int32), len(pipeline.histories.user_ids), pipeline.num_items)


def first_items(pipeline: Pipeline, user: str) -> list[int]:
    return pipeline.recommend(pipeline.queries_for([user]), 3).item_idx[0].tolist()


def precomputed(batch: BatchLists, user: str) -> CachedList:
    made = batch({"id": np.array([row_of(batch.pipeline, user)])})
    found = decode_list(made["list"][0])
    assert found is not None
    return found


def test_precomputed_lists_leave_out_what_was_rejected(pipeline: Pipeline, save, make_config) -> None:
    rejected = first_items(pipeline, USER)
    batch = BatchLists(make_config().model_dump_json(), str(save(rejected=rejecting(pipeline, rejected))), K)
    assert not set(rejected) & set(precomputed(batch, USER).item_idx.tolist())
    same = "u57"  # the same walk, and nothing rejected
    assert precomputed(batch, same).item_idx[:3].tolist() == rejected


def test_a_session_of_a_user_leaves_it_out_too(pipeline: Pipeline, save) -> None:
    rejected = first_items(pipeline, USER)
    own = Pipeline.load(save(rejected=rejecting(pipeline, rejected)))
    recent = own.item_ids[own.histories.item_idx[:1]].tolist()
    found = own.recommend(own.queries_for(["u57", USER], recent_items=[recent, recent]), K)
    assert set(rejected) & set(found.item_idx[0].tolist())
    assert not set(rejected) & set(found.item_idx[1].tolist())


@pytest.mark.parametrize("seen", [None, ALL_SEEN, Seen(days=1.0), Seen(actions=frozenset({1}))])
def test_computed_lists_leave_it_out_when_the_event_is_forgotten(pipeline: Pipeline, save, seen) -> None:
    rejected = first_items(pipeline, USER)
    folder = save(rejected=rejecting(pipeline, rejected))
    stage = RetrieverStage(Pipeline.load(folder), ItemTable.from_bundle(folder), folder)
    request = ComputeRequest(USER, K, seen=seen)
    query, left_out = stage.query(request, RecentActivity(), time.time_ns() // 1000)
    found = stage.pipeline.rank(query, stage.retrieve(request, query, left_out), K)
    assert not set(rejected) & set(found.item_idx[0].tolist())


def test_an_erased_user_has_rejected_nothing(pipeline: Pipeline, save) -> None:
    folder = save(rejected=rejecting(pipeline, [3, 1, 3]))
    row = row_of(pipeline, USER)
    before = Pipeline.load(folder).histories.rejected
    assert before is not None
    assert before.of_user(row).tolist() == [1, 3]
    assert before.of_user(row + 1).tolist() == before.of_user(-1).tolist() == []
    assert erase_user(folder, USER)
    after = Pipeline.load(folder).histories.rejected
    assert after is not None
    assert len(after.item_idx) == 0
    assert set(after.indptr.tolist()) == {0}


def test_a_history_that_ends_in_the_future_keeps_no_list_fresh(pipeline: Pipeline, save, make_config) -> None:
    """One row of an import with a wrong year: nobody's later events would have made a precomputed list stale."""
    times = np.array(pipeline.histories.time_us)
    times[pipeline.histories.indptr[row_of(pipeline, "u3") + 1] - 1] += 100 * 365 * 86_400_000_000
    folder = save(time_us=times)
    batch = BatchLists(make_config().model_dump_json(), str(folder), K)
    for user in ("u3", USER):
        assert precomputed(batch, user).activity_at_us <= time.time_ns() // 1000
    manifest = open_bundle(folder)
    read_at = manifest.created_at - timedelta(hours=1)  # the training took an hour
    seal_bundle(folder, manifest.model_copy(update={"fingerprint": manifest.fingerprint.model_copy(update={"as_of": read_at})}))
    batch = BatchLists(make_config().model_dump_json(), str(folder), K)
    assert precomputed(batch, USER).activity_at_us == to_microseconds(read_at)


def test_a_bundle_knows_nothing_that_came_after_it_was_made(save) -> None:
    """Else no later change of the catalogue would be applied where one event is dated in the future."""
    manifest = Pipeline.load(save()).manifest
    assert manifest is not None
    assert manifest.known_until == manifest.created_at
    for days in (-3, 3):
        as_of = manifest.created_at + timedelta(days=days)
        known = manifest.model_copy(update={"fingerprint": manifest.fingerprint.model_copy(update={"as_of": as_of})})
        assert known.known_until == min(as_of, manifest.created_at)
