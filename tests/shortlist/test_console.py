import pytest

from shortlist.commands.console import BRIEF, change_text


@pytest.mark.parametrize(
    ("before", "after", "shown"),
    [
        (None, "2", "+ 2"),
        ("1", "2", "1 -> 2"),
        ("1", None, "- 1"),
        ({"version": "1", "kind": "move"}, {"version": "2", "kind": "move"}, "version 1 -> 2"),
        (None, {"a": 1, "b": {"c": [2]}}, 'a + 1\nb + {"c": [2]}'),
        ({"a": 1, "b": 2}, {"b": 3}, "a - 1\nb 2 -> 3"),
        ({"a": 1}, {"a": 1}, ""),
    ],
)
def test_a_change_shows_what_differs(before: object, after: object, shown: str) -> None:
    assert change_text(before, after) == shown


def test_long_values_are_cut() -> None:
    (line,) = change_text({"note": "x"}, {"note": "y" * 1_000}).splitlines()
    assert line.endswith("…")
    assert len(line) == len("note x -> ") + BRIEF
