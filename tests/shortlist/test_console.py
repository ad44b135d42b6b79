import pytest

from shortlist.commands.console import BRIEF, change_text, phases


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


def test_off_a_terminal_every_phase_is_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    with phases() as notify:
        for what in ("reading", "fitting source [b]", "fitting source [b]", "x" * 300):
            notify(what)
    shown = [line.split(" s  ")[1] for line in capsys.readouterr().err.splitlines()]
    assert shown == ["reading", "fitting source [b]", "x" * 300]
