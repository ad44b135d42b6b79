"""Leave-one-out: who is asked, what is held out, what nobody reads."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from training.dataset import from_frame
from training.errors import ProtocolError
from training.splits import leave_one_out


def frame(histories: dict[str, list[str]]) -> pd.DataFrame:
    rows = [(user, item, place) for user, items in histories.items() for place, item in enumerate(items)]
    return pd.DataFrame(rows, columns=["user_id", "item_id", "position"])


def test_strict_refit_and_validation_hold_out_the_right_rows() -> None:
    data = from_frame(frame({"a": ["p", "q", "r", "s"], "b": ["q", "p"], "c": ["p"]}))

    def fitted(fold) -> list[tuple[str, str]]:
        return list(zip(data.user_ids[fold.fit.user_idx], data.item_ids[fold.fit.item_idx], strict=True))

    validation = leave_one_out(data)
    assert fitted(validation) == [("a", "p"), ("a", "q"), ("b", "q")]
    assert data.item_ids[validation.targets(0)].tolist() == ["r"]
    assert validation.not_evaluated == {"fewer than 3 distinct items": 2}
    strict, refit = leave_one_out(data, "test"), leave_one_out(data, "test", refit=True)
    assert fitted(strict) == fitted(validation)
    assert fitted(refit) == [("a", "p"), ("a", "q"), ("a", "r"), ("b", "q")]
    assert data.item_ids[strict.queries.history(0)].tolist() == ["p", "q", "r"]
    assert data.item_ids[strict.target_idx].tolist() == ["s", "p"]
    assert strict.not_evaluated == {"fewer than 2 distinct items": 1}


def test_targets_are_first_occurrences() -> None:
    data = from_frame(frame({"a": ["p", "q", "q", "r", "p"], "b": ["p", "q", "r"]}))
    fold = leave_one_out(data, "test")
    assert data.item_ids[fold.targets(0)].tolist() == ["r"]
    assert data.item_ids[fold.queries.history(0)].tolist() == ["p", "q", "q"]


def test_refit_on_validation_is_refused() -> None:
    data = from_frame(frame({"a": ["p", "q", "r"]}))
    with pytest.raises(ProtocolError, match="stage test"):
        leave_one_out(data, refit=True)
    with pytest.raises(ProtocolError, match="3 distinct"):
        leave_one_out(from_frame(frame({"a": ["p", "q"]})))


@pytest.mark.parametrize(("name", "users"), [("beauty", 22363), ("lastfm", 1090), ("ml-1m", 6040)])
def test_published_counts(shared, name: str, users: int) -> None:
    raw = pd.read_parquet(shared / "data" / name / "interactions.parquet")
    data = from_frame(raw)
    fold = leave_one_out(data, "test")
    assert len(fold.queries) == users
    last = raw.sort_values("position").groupby("user_id").item_id.last()
    expected = last.loc[data.user_ids[fold.queries.user_idx]].to_numpy()
    np.testing.assert_array_equal(data.item_ids[fold.target_idx], expected)
