"""Histories as of now, filters as masks, and lists equal to those of the pipeline asked directly."""

from __future__ import annotations

import asyncio
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import serving.retriever
from features.events import ACTION_CODES
from serving.cached_list import CachedList, decode_list
from serving.item_table import ItemTable
from serving.messages import ComputeRequest
from serving.online_users import OnlineUser, OnlineUsers, parse_user
from serving.recent_activity import RecentActivity, RecentEvent
from serving.request_parsing import parse_body
from serving.retriever import RetrieverStage
from serving.schemas import ALL_SEEN, Seen, Selection
from serving.version_lists import encode_answer
from training.histories import USERS_FILE

DAY_US = 86_400_000_000
NOW_US = 1_800_000_000_000_000


@pytest.fixture(scope="module")
def stage(pipeline, bundle) -> RetrieverStage:
    return RetrieverStage(pipeline, ItemTable.from_bundle(bundle))


def compute(stage: RetrieverStage, request: ComputeRequest, activity: RecentActivity = RecentActivity()) -> CachedList:
    query, rejected = stage.query(request, activity, NOW_US)
    lists = stage.pipeline.rank(query, stage.retrieve(request, query, rejected), request.k)
    decoded = decode_list(encode_answer(lists, activity, NOW_US, request.k))
    assert decoded is not None
    return decoded


def seen(stage: RetrieverStage, user: str) -> list[int]:
    histories = stage.pipeline.histories
    row = histories.users.rows([user])[0]
    return histories.item_idx[histories.indptr[row] : histories.indptr[row + 1]].tolist()


def test_users_are_known_though_the_bundle_cannot_be_read_again(pipeline, bundle, tmp_path: Path) -> None:
    folder = tmp_path / "bundle"
    shutil.copytree(bundle, folder)
    stage = RetrieverStage(pipeline, ItemTable.from_bundle(folder), folder)
    (folder / USERS_FILE).unlink()
    expected = compute(RetrieverStage(pipeline, ItemTable.from_bundle(bundle)), ComputeRequest("u0", 20))
    assert compute(stage, ComputeRequest("u0", 20)).item_idx.tolist() == expected.item_idx.tolist()


def test_a_list_equals_the_pipelines_own(stage) -> None:
    for user in ("u0", "u17", "u49", "u123"):
        own = stage.pipeline.recommend(stage.pipeline.queries_for([user]), 20)
        got = compute(stage, ComputeRequest(user, 20))
        assert got.item_idx.tolist() == own.item_idx[0].tolist()
        np.testing.assert_allclose(got.score, own.score[0], rtol=1e-4, atol=1e-4)
        assert got.source.tolist() == own.source[0].tolist()


def test_recent_events_join_the_history_in_order_and_once(stage) -> None:
    histories = stage.pipeline.histories
    last = int(histories.time_us[histories.indptr[4] - 1])
    row = stage.items.row
    events = (
        RecentEvent("i020", last + 2 * DAY_US, True),
        RecentEvent("i019", last + DAY_US, True),
        RecentEvent("no-such-item", last + DAY_US, True),
        RecentEvent("i030", last + 3 * DAY_US, False),
    )
    user = str(histories.user_ids[3])
    repeated = RecentEvent(str(stage.items.item_ids[histories.item_idx[histories.indptr[4] - 1]]), last, True)
    query, _ = stage.query(ComputeRequest(user, 5, seen=None), RecentActivity(1, (repeated, *events, events[0])), NOW_US)
    assert query.item_idx.tolist() == [*seen(stage, user), row("i019"), row("i020")]
    assert np.all(np.diff(query.time_us) > 0)
    assert query.request_time_us[0] == NOW_US
    assert query.left_out.item_idx.tolist() == [row("i030")]


def test_the_callers_items_come_last(stage) -> None:
    query, _ = stage.query(ComputeRequest("u2", 5, recent_items=("i044", "nothing", "i001")), RecentActivity(), NOW_US)
    assert query.item_idx.tolist() == [*seen(stage, "u2"), stage.items.row("i044"), stage.items.row("i001")]
    assert query.request_time_us[0] > query.time_us[-1]


@pytest.mark.parametrize("exclude_seen", [True, False])
def test_exclusions(stage, exclude_seen: bool) -> None:
    disliked = RecentActivity(1, (RecentEvent("i013", NOW_US - 1, False),))
    request = ComputeRequest("u3", 60, exclude=("i014",), seen=ALL_SEEN if exclude_seen else None)
    got = set(compute(stage, request, disliked).item_idx.tolist())
    assert stage.items.row("i013") not in got
    assert stage.items.row("i014") not in got
    assert got.isdisjoint(seen(stage, "u3")) == exclude_seen


def test_what_was_met_before_1970_was_met() -> None:
    assert ALL_SEEN.counts(ACTION_CODES["view"], -5 * DAY_US, NOW_US)
    assert not Seen(days=1.0).counts(ACTION_CODES["view"], -5 * DAY_US, NOW_US)


def test_items_met_long_ago_may_come_again(stage) -> None:
    days_ago = (NOW_US - int(stage.pipeline.histories.time_us.max())) / DAY_US
    own = seen(stage, "u3")
    cut = compute(stage, ComputeRequest("u3", 60, seen=Seen(days=days_ago + 2.5))).item_idx.tolist()
    assert set(cut) & set(own) == set(own[:-3])  # a step a day: the last three were met within the days
    assert set(own) <= set(compute(stage, ComputeRequest("u3", 60, seen=Seen(days=1.0))).item_idx.tolist())


def test_only_what_was_met_by_the_named_actions_is_left_out(pipeline, bundle) -> None:
    histories = pipeline.histories
    codes = np.where(np.arange(len(histories.item_idx)) % 2 == 0, ACTION_CODES["purchase"], ACTION_CODES["view"]).astype(np.uint8)
    knowing = RetrieverStage(replace(pipeline, histories=replace(histories, action=codes)), ItemTable.from_bundle(bundle))
    own, start = seen(knowing, "u3"), int(histories.indptr[histories.users.rows(["u3"])[0]])
    bought = [row for place, row in enumerate(own) if (start + place) % 2 == 0]
    row, later = knowing.items.row, int(histories.time_us.max()) + DAY_US
    events = (
        RecentEvent.of("i040", later, "view"),
        RecentEvent.of("i041", later, "purchase"),
        RecentEvent.of("i042", later, "dislike"),
    )
    activity = RecentActivity(1, events)

    def missing(**asked: object) -> set[int]:
        request = ComputeRequest("u3", 60, seen=parse_body(asked).seen, recent_items=("i045",))
        return set(range(50)) - set(compute(knowing, request, activity).item_idx.tolist())

    always = {row("i042"), row("i045")}
    assert missing(exclude_seen="purchase") == {*bought, row("i041"), *always}
    assert missing(exclude_seen="view") == {*(set(own) - set(bought)), row("i040"), *always}
    assert missing(exclude_seen=["purchase", "view"]) == missing() == {*own, row("i040"), row("i041"), *always}
    days_ago = (NOW_US - int(histories.time_us.max())) / DAY_US
    assert missing(exclude_seen={"actions": ["purchase"], "max_age_days": days_ago + 2.5}) == {
        *(set(bought) & set(own[-3:])),
        row("i041"),
        *always,
    }
    # Activity since the training may be known to the online store alone.
    known = online(20, later, ("i030", "i031", "i032"), (2, 1, 0), "441")
    query, left_out = knowing.query(
        ComputeRequest("u3", 60, seen=parse_body({"exclude_seen": "purchase"}).seen), activity, NOW_US, known
    )
    names = {str(knowing.items.item_ids[row]) for row in query.left_out.item_idx}
    assert not len(left_out.rows)
    assert {"i030", "i031", "i041", "i042"} <= names
    assert names.isdisjoint({"i032", "i040"})
    # A bundle of an earlier release knows no actions: all of its entries may have been meant.
    unknowing = RetrieverStage(pipeline, ItemTable.from_bundle(bundle))
    left = compute(
        unknowing, ComputeRequest("u3", 60, seen=parse_body({"exclude_seen": "purchase"}).seen), activity
    ).item_idx.tolist()
    assert set(own).isdisjoint(left)


def test_candidates_and_filters_restrict(stage) -> None:
    got = compute(stage, ComputeRequest("u3", 20, candidates=("i002", "i012", "x"), seen=None))
    assert sorted(stage.items.item_ids[got.item_idx]) == ["i002", "i012"]
    assert got.complete
    got = compute(stage, ComputeRequest("u3", 20, selection=Selection(filter="year < 1984")))
    assert set(stage.items.item_ids[got.item_idx]) == {"i000", "i001", "i002"}


def test_delisted_items_are_no_candidates(pipeline, bundle) -> None:
    stage = RetrieverStage(pipeline, ItemTable.from_bundle(bundle))
    before = compute(stage, ComputeRequest("u5", 5)).item_idx
    stage.items.set_available(str(stage.items.item_ids[before[0]]), False)
    after = compute(stage, ComputeRequest("u5", 5)).item_idx
    assert before[0] not in after
    assert len(after) == 5


def online(
    num_events: int, last_us: int, items: tuple[str, ...] = (), ages: tuple[int, ...] = (), actions: str | None = None
) -> OnlineUser | None:
    def one(value: object) -> np.ndarray:
        column = np.empty(1, dtype=object)
        column[0] = np.array(value)
        return column

    return parse_user(
        {
            "user_events": np.array([num_events]),
            "user_last_event_us": np.array([float(last_us)]),
            "recent_items": one(items),
            "recent_ages_s": one(ages),
            "recent_actions": np.array([actions], dtype=object),
        }
    )


def test_online_items_fill_the_gap_between_training_and_now(stage) -> None:
    histories = stage.pipeline.histories
    last = int(histories.time_us.max()) + DAY_US
    known = online(10, last, ("i030", "i031"), (60, 0))
    blob = RecentActivity(1, (RecentEvent("i031", last, True), RecentEvent("i032", last + 5, True)))
    query, _ = stage.query(ComputeRequest("u2", 5), blob, NOW_US, known)
    row = stage.items.row
    assert query.item_idx.tolist() == [*seen(stage, "u2"), row("i030"), row("i031"), row("i032")]
    assert online(0, 0) is None


def test_a_slow_or_broken_store_costs_one_short_wait() -> None:
    calls = []

    def broken(users: list[str]) -> dict:
        calls.extend(users)
        raise ConnectionError("gone")

    async def ask() -> None:
        users = OnlineUsers(None, open_reader=lambda config, ranking: broken)  # type: ignore[arg-type]
        assert await users.read(["u"]) == [None]
        users.start()
        await asyncio.sleep(0.05)
        assert await users.read(["u"]) == [None]
        assert await users.read(["u"]) == [None]

    asyncio.run(ask())
    assert calls == ["u"]


@pytest.mark.parametrize("few", [256, 2])
def test_what_a_request_leaves_out_is_left_out_with_and_without_a_mask_of_its_own(
    stage, monkeypatch: pytest.MonkeyPatch, few: int
) -> None:
    monkeypatch.setattr(serving.retriever, "FEW_LEFT_OUT", few)
    exclude = ("i001", "i007", "i020", "nobody-knows")
    request = ComputeRequest("u3", 100, seen=None, exclude=exclude)
    _, left_out = stage.query(request, RecentActivity(), NOW_US)
    mask = stage.allowed(request, left_out)
    assert (mask is stage.items.trained_mask(request.selection)) == (few == 256), "requests share a batch by their mask"
    gone = {stage.items.row(item) for item in exclude} - {-1}
    assert set(compute(stage, request).item_idx.tolist()) == set(range(len(stage.items))) - gone
