"""Rules of all kinds over very many random lists, against what a reader of the rules would do by hand.

`SHORTLIST_TEST_LISTS` is the number of lists: 2,000 by default, 100,000 and more for a thorough run.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from serving.asked import resolved
from serving.item_table import ItemTable
from serving.rules import Rule, RuleBook
from serving.schemas import RecommendationRequest
from serving.slate import Ranked, Slate, arranged

LISTS = int(os.environ.get("SHORTLIST_TEST_LISTS", "2000"))
LISTS_PER_RULE_SET = 25
N = 80
_RNG = np.random.default_rng(11)
BRAND = [None if number == 7 else f"b{number}" for number in _RNG.integers(0, 8, N).tolist()]
TAGS = [sorted({f"t{number}" for number in _RNG.integers(0, 6, _RNG.integers(0, 4)).tolist()}) for _ in range(N)]
AVAILABLE = (_RNG.random(N) < 0.9).tolist()
ITEMS = ItemTable.from_arrow(
    pa.table(
        {
            "item_id": [f"i{n:02d}" for n in range(N)],
            "brand": BRAND,
            "tags": TAGS,
            "number": list(range(N)),
            "available": AVAILABLE,
        }
    ),
    np.arange(N, dtype=np.int32),
)
Matches = Callable[[int], bool]


@dataclass
class Drawn:
    """A set of rules with what each means, said in Python."""

    rules: list[Rule]
    includes: list[Matches]
    excludes: list[Matches]
    boosts: list[tuple[Matches, float]]
    bury: Matches | None
    pins: list[tuple[int, int]]
    caps: list[tuple[str, int, Matches | None]]


def condition(rng: np.random.Generator, keep: float = 0.5) -> tuple[str, Matches]:
    """An expression and its meaning."""
    kind = rng.integers(4)
    if kind == 0:
        bound = int(N * keep)
        return f"number < {bound}", lambda row: row < bound
    if kind == 1:
        brand = f"b{rng.integers(7)}"
        return f'brand != "{brand}"', lambda row: BRAND[row] is not None and BRAND[row] != brand
    if kind == 2:
        tag = f"t{rng.integers(6)}"
        return f'!("{tag}" in tags)', lambda row: tag not in TAGS[row]
    parts = sorted(rng.choice(N, int(N * keep), replace=False).tolist())
    return f"number in {parts}", lambda row: row in parts


def draw(rng: np.random.Generator) -> Drawn:
    found = Drawn([], [], [], [], None, [], [])

    def add(kind: str, **fields: Any) -> None:
        found.rules.append(Rule(name=f"r{len(found.rules)}", kind=kind, **fields))  # type: ignore[arg-type]

    for _ in range(rng.integers(0, 2)):
        text, means = condition(rng, 0.9)
        add("include", items=text)
        found.includes.append(means)
    for _ in range(rng.integers(0, 2)):
        text, means = condition(rng, 0.1)
        add("exclude", items=text)
        found.excludes.append(means)
    for _ in range(rng.integers(0, 3)):
        text, means = condition(rng)
        weight = float(rng.integers(1, 9)) / 4
        add("boost", items=text, weight=weight)
        found.boosts.append((means, weight))
    if rng.random() < 0.5:
        text, found.bury = condition(rng)
        add("bury", items=text)
    pinned, places = rng.choice(N, 4, replace=False).tolist(), sorted(rng.choice(15, 4, replace=False).tolist())
    for place, row in list(zip(places, pinned, strict=True))[: rng.integers(0, 5)]:
        add("pin", item_ids=[f"i{row:02d}"], position=place)
        found.pins.append((place, row))
    for attribute in ("brand", "tags"):
        if rng.random() < 0.6:
            text, counting = condition(rng) if rng.random() < 0.3 else (None, None)
            limit = int(rng.integers(0, 4))
            add("cap", attribute=attribute, limit=limit, items=text)
            found.caps.append((attribute, limit, counting))
    rng.shuffle(found.rules)  # type: ignore[arg-type]
    return found


def values(row: int, caps: list[tuple[str, int, Matches | None]]) -> list[tuple[int, str]]:
    """What caps count an item as."""
    found = []
    for number, (attribute, _, counting) in enumerate(caps):
        if counting is None or counting(row):
            words = TAGS[row] if attribute == "tags" else [BRAND[row]]
            found += [(number, word) for word in words if word is not None]
    return found


def by_hand(rows: list[int], scores: list[int], drawn: Drawn, excluded: set[int], top_k: int) -> list[int]:
    """The answer: who may be shown, in order of score with boosts, buried ones last, within caps, pins at their places."""

    def may(row: int) -> bool:
        chosen = all(means(row) for means in drawn.includes) and not any(means(row) for means in drawn.excludes)
        return AVAILABLE[row] and chosen and row not in excluded

    def capped_at_none(row: int) -> bool:
        return any(cap[1] == 0 and values(row, [cap]) for cap in drawn.caps)

    listed = [(row, score) for row, score in zip(rows, scores, strict=True) if may(row) and not capped_at_none(row)]
    spread = max((score for _, score in listed), default=0) - min((score for _, score in listed), default=0)
    total = {row: score + sum(weight * spread for means, weight in drawn.boosts if means(row)) for row, score in listed}
    order = sorted(total, key=lambda row: (drawn.bury is not None and drawn.bury(row), -total[row]))
    pins = [(place, row) for place, row in drawn.pins if may(row) and place < top_k]
    counts = Counter(pair for _, row in pins for pair in values(row, drawn.caps))
    others = []
    for row in order:
        if row in {row for _, row in pins}:
            continue
        pairs = values(row, drawn.caps)
        if all(counts[pair] < drawn.caps[pair[0]][1] for pair in pairs):
            others.append(row)
            counts.update(pairs)
    seats = {min(place, len(others) + number): row for number, (place, row) in enumerate(pins)}
    answer, rest = [], iter(others)
    for seat in range(len(others) + len(pins)):
        answer.append(seats[seat] if seat in seats else next(rest))
    return answer[:top_k]


def check_invariants(found: Slate, drawn: Drawn, excluded: set[int], top_k: int) -> None:
    answer = found.rows.tolist()
    assert len(answer) == len(set(answer)) <= top_k
    assert set(answer).isdisjoint(found.rest.tolist())
    assert all(AVAILABLE[row] and row not in excluded for row in answer)
    assert all(means(row) for means in drawn.includes for row in answer)
    assert not any(means(row) for means in drawn.excludes for row in answer)
    pinned = {row for place, row in drawn.pins if place < top_k}
    shown = [(place, row) for place, row in drawn.pins if row in answer]
    if all(place < len(answer) for place, _ in shown):  # in a shorter answer pins come last
        assert all(answer[place] == row for place, row in shown)
    counts = Counter(pair for row in answer for pair in values(row, drawn.caps))
    of_pins = Counter(pair for row in pinned for pair in values(row, drawn.caps))
    assert all(count <= max(drawn.caps[pair[0]][1], of_pins[pair]) for pair, count in counts.items())


def test_rules_over_very_many_lists() -> None:
    rng = np.random.default_rng(20261125)
    lists = full = 0
    while lists < LISTS:
        drawn = draw(rng)
        book = RuleBook(drawn.rules)
        orders = np.argsort(rng.random((LISTS_PER_RULE_SET, N)), axis=1)
        lengths, sizes = rng.integers(0, N + 1, LISTS_PER_RULE_SET), rng.integers(1, 30, LISTS_PER_RULE_SET)
        for order, length, top_k in zip(orders, lengths.tolist(), sizes.tolist(), strict=True):
            rows = order[:length].astype(np.int32)
            # Whole numbers: boosts stay exact, so equal scores are equal both times.
            scores = np.sort(rng.integers(-200, 200, length))[::-1].astype(np.float32)
            excluded = set(order[-3:].tolist()) if top_k % 3 == 0 else set()
            request = RecommendationRequest(user_id="u", top_k=top_k, exclude=tuple(f"i{row:02d}" for row in excluded))
            wish = resolved(request, {}, book, (), 0.0).wish(ITEMS, None)
            found = arranged(Ranked(rows, scores, np.zeros(length, np.uint8)), ITEMS, wish)
            check_invariants(found, drawn, excluded, top_k)
            assert found.rows.tolist() == by_hand(rows.tolist(), scores.astype(int).tolist(), drawn, excluded, top_k), drawn.rules
            lists += 1
            full += len(found.rows) == top_k
    assert full > LISTS / 3, "most lists must be long enough for the rules to matter"
