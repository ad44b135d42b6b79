"""Lists in blocks: what they leave out, and that a block costs no mask of users times items."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import serving.batch_lists
from serving.batch_lists import BatchLists
from serving.cached_list import decode_list
from serving.config import ServingConfig
from training.pipeline import Pipeline


@pytest.fixture
def batch(make_config: Callable[..., ServingConfig], bundle: Path) -> BatchLists:
    """Lists as long as the catalogue."""
    return BatchLists(make_config().model_dump_json(), str(bundle), 1_000)


def listed(batch: BatchLists, rows: np.ndarray) -> dict[str, list[int]]:
    """Items of each user's list."""
    made = batch({"id": rows})
    lists = {user: decode_list(blob) for user, blob in zip(made["user_id"].tolist(), made["list"].tolist(), strict=True)}
    return {user: one.item_idx.tolist() for user, one in lists.items() if one is not None}


@pytest.mark.parametrize("most_entries", [5_000, 3])
def test_all_but_what_a_user_has_met_is_listed(batch: BatchLists, monkeypatch: pytest.MonkeyPatch, most_entries: int) -> None:
    """Also what lies before the entries that models are shown."""
    monkeypatch.setattr(serving.batch_lists, "MAX_HISTORY", most_entries)
    histories, num_items = batch.pipeline.histories, len(batch.pipeline.items)
    rows = np.arange(40)
    assert np.diff(histories.indptr)[rows].max() > 3
    lists = listed(batch, rows)
    assert len(lists) == 40
    for row in rows.tolist():
        met = set(histories.item_idx[histories.indptr[row] : histories.indptr[row + 1]].tolist())
        of_user = lists[str(histories.user_ids[row])]
        assert len(of_user) == len(set(of_user))
        assert set(of_user) == set(range(num_items)) - met


def test_users_of_a_block_share_one_mask_of_the_items(batch: BatchLists, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a mask each, an index cannot be used, and every item of a million is scored for every user."""
    masks = []
    retrieve = Pipeline.retrieve

    def watched(self: Pipeline, queries, allowed, *arguments, **options):  # type: ignore[no-untyped-def]
        masks.append(allowed)
        return retrieve(self, queries, allowed, *arguments, **options)

    monkeypatch.setattr(Pipeline, "retrieve", watched)
    assert len(listed(batch, np.arange(100))) == 100
    assert masks
    assert all(mask is masks[0] and mask.ndim == 1 for mask in masks)
