"""Which version is the one before, out of the moves of an alias."""

from __future__ import annotations

import pytest

from training.alias_history import AliasMove, version_before

AT = "2026-12-01T00:00:00+00:00"


def moves(told: str) -> list[AliasMove]:
    """`1 2 <1`: set to 1, set to 2, rolled back to 1."""
    return [AliasMove(one.lstrip("<"), "rollback" if one.startswith("<") else "set", AT, "t") for one in told.split()]


@pytest.mark.parametrize(
    ("told", "before"),
    [
        ("1", None),
        ("1 2 3", "2"),
        ("1 2 3 <2", "1"),
        ("1 2 3 <2 <1", None),
        ("1 2 3 <2 <1 3", "1"),
        ("1 2 1 3", "1"),
        ("1 2 1 3 <1", "2"),  # and not nothing: two moves were undone of four
        ("1 2 3 2 4 <2", "3"),
        ("1 2 1 <1", None),  # a move that a follower has noted too
        ("<1 2", "1"),  # the beginning was cut off
    ],
)
def test_a_rollback_undoes_one_move(told: str, before: str | None) -> None:
    done = moves(told)
    assert version_before(done, done[-1].version, set("1234")) == before


def test_what_is_not_possible_is_passed_over() -> None:
    assert version_before(moves("1 2 3"), "3", {"1", "3"}) == "1"
    assert version_before(moves("1 2"), "9", {"1", "2"}) == "2"  # moved elsewhere since the last note
