"""From a ranked list to what is shown: which entries may be, preferences, boosts, diversity, caps, pins. For cached and computed
lists alike, on columns; entries are looked at one by one nowhere.

Order of things: entries that may not be shown go; the request's preferred regions and languages come first; boosts and buries
change scores; the best are made to differ (`diversity`), buried ones staying behind; caps take what is too much; pins take their
places.

Legend: `N` items, `n` entries of the list, `k` places.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from serving.caps import CappedValues, capped_values, within_caps
from serving.diversity import diversified, pool_size, similarity_features
from serving.item_table import ItemTable
from serving.rules import NO_RULES, RulePlan
from serving.schemas import NO_SELECTION, Selection
from training.interactions import BoolArray, FloatArray, IntArray, LongArray

PINNED, EXPLORED = -1, -2
"""Source numbers of items that are shown because of a pin and are in no list, and of those that chance has chosen."""


@dataclass(slots=True)
class Ranked:
    """A ranked list as it comes from a version, best first.

    Shapes: rows (n,) int32; scores (n,) float32; sources (n,) uint8, numbers into the version's names. `fill` is the number of the
    source that only fills lists: its scores say nothing of how good the others are.
    """

    rows: IntArray
    scores: FloatArray
    sources: npt.NDArray[np.integer]
    fill: int = -1


@dataclass(slots=True)
class Wish:
    """What a request wants of its list.

    Args:
        top_k: places.
        selection: which items may be shown.
        exclude: rows that may not.
        candidates: rows beside which nothing may be shown; the list is made of them already. None for all.
        boosts: CEL and weight, of the request itself.
        diversity: 0 to 1.
        rules: that hold for the request.
        vectors: (N', D) item vectors for diversity.
    """

    top_k: int
    selection: Selection = NO_SELECTION
    exclude: IntArray | None = None
    candidates: IntArray | None = None
    boosts: tuple[tuple[str, float], ...] = ()
    diversity: float = 0.0
    rules: RulePlan = NO_RULES
    vectors: FloatArray | None = None

    @property
    def plain(self) -> bool:
        """Whether the order of the list is the order of the answer."""
        chained = len(self.selection.region) > 1 or len(self.selection.language) > 1
        return not (self.rules or self.boosts or self.diversity or chained)


@dataclass(slots=True)
class Slate:
    """What is shown, and what comes next.

    Shapes: rows (k,) int32, scores (k,) float32, sources (k,) int (`PINNED` for pins from outside the list), rest (m,) int32
    further rows in order. `changes` says for explanations what moved an item: name of a rule or `boost` -> (row -> what it added
    to the score). `pinned`: row -> rule. `preferred`: how many shown ones are of the first region and language.
    """

    rows: IntArray
    scores: FloatArray
    sources: npt.NDArray[np.integer]
    rest: IntArray
    preferred: int
    changes: Mapping[str, Mapping[int, float]] = field(default_factory=dict)
    pinned: Mapping[int, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.rows)


def arranged(ranked: Ranked, items: ItemTable, wish: Wish, *, explain: bool = False) -> Slate:
    """The first `top_k` places of a list.

    Raises:
        FilterError: the request's filter or boosts do not fit the items.
    """
    keep = items.passing(wish.selection, ranked.rows)
    if wish.exclude is not None and len(wish.exclude):
        keep &= ~np.isin(ranked.rows, wish.exclude)
    kept = keep.nonzero()[0]
    if wish.plain:
        shown, rows = kept[: wish.top_k], ranked.rows.take(kept)
        return Slate(rows[: wish.top_k], ranked.scores.take(shown), ranked.sources.take(shown), rows[wish.top_k :], len(shown))
    rows, scores, sources = ranked.rows[kept], ranked.scores[kept], ranked.sources[kept]
    scores, changes = _rescored(rows, scores, sources != ranked.fill, items, wish)
    told = _by_row(changes, rows) if explain else {}
    place = items.preference(wish.selection, rows)
    order: LongArray = np.argsort(-scores, kind="stable") if place is None else np.lexsort((-scores, place))
    rows, scores, sources, place = rows[order], scores[order], sources[order], None if place is None else place[order]
    if wish.diversity > 0:
        order = _different(rows, scores, place, items, wish)
        rows, scores, sources, place = rows[order], scores[order], sources[order], None if place is None else place[order]
    if place is None and not (wish.rules.pins or wish.rules.caps):
        k = wish.top_k
        return Slate(rows[:k], scores[:k], sources[:k], rows[k:], min(k, len(rows)), told)
    pins = _pins(items, wish, rows)
    rows, scores, sources, lifted = _with_pins(pins, rows, scores, sources, wish.top_k)
    keep = _keep_within_caps(rows, lifted, items, wish.rules)
    dropped = rows[~keep]
    rows, scores, sources, lifted = rows[keep], scores[keep], sources[keep], lifted[keep]
    order = _seated(lifted, [position for _, position, _ in pins], wish.top_k)
    shown, after = order[: wish.top_k], order[wish.top_k :]
    preferred = len(shown) if place is None else int((items.preference(wish.selection, rows[shown]) == 0).sum())  # type: ignore[union-attr]
    return Slate(
        rows=rows[shown],
        scores=scores[shown],
        sources=sources[shown],
        rest=np.concatenate([rows[after], dropped]).astype(np.int32),
        preferred=preferred,
        changes=told,
        pinned={row: name for name, _, row in pins},
    )


def behind(first: Ranked, second: Ranked, *, source: int | None = None) -> Ranked:
    """The first list, then what the second has beside it, its scores brought below those of the first.

    `source`: number of the source that those get; their own if None.
    """
    new = ~np.isin(second.rows, first.rows)
    scores, sources = second.scores[new], second.sources[new]
    if len(first.scores) and len(scores):
        highest = max(float(scores.max()), 1e-9)
        low = float(first.scores.min())
        scores = scores / highest * low * 0.999 if low > 0 else scores - highest + low - 1e-6
    return Ranked(
        np.concatenate([first.rows, second.rows[new]]).astype(np.int32),
        np.concatenate([first.scores, scores]).astype(np.float32),
        np.concatenate([first.sources, sources if source is None else np.full(len(sources), source)]).astype(np.uint8),
        first.fill,
    )


def capped_without(slate_rows: IntArray, others: IntArray, items: ItemTable, rules: RulePlan, reserve: int) -> BoolArray:
    """Which of `others` may take a place beside `slate_rows` so that caps hold, even where `reserve` more are taken."""
    rows = np.concatenate([slate_rows, others])
    fixed = np.arange(len(rows)) < len(slate_rows)
    values = _capped_values(rows, items, rules)
    room = values.limit - reserve - np.bincount(values.value[fixed[values.owner]], minlength=len(values.limit))
    full = np.zeros(len(rows), dtype=bool)
    full[values.owner[room[values.value] <= 0]] = True
    return ~full[len(slate_rows) :]


def _rescored(
    rows: IntArray, scores: FloatArray, ranks: BoolArray, items: ItemTable, wish: Wish
) -> tuple[FloatArray, dict[str, FloatArray]]:
    """Scores with boosts and buries, and what each of them added."""
    changes: dict[str, FloatArray] = {}
    boosts = [*wish.rules.boosts, *(("boost", expression, weight) for expression, weight in wish.boosts)]
    if not len(rows) or not (boosts or wish.rules.buries):
        return scores, changes
    real = scores[ranks] if ranks.any() else scores
    spread = max(float(real.max() - real.min()), 1e-6)
    total = scores.astype(np.float64)
    for name, expression, weight in boosts:
        added = items.matching(expression)[rows] * (weight * spread)
        changes[name] = changes[name] + added if name in changes else added
        total += added
    for name, expression in wish.rules.buries:
        buried = items.matching(expression)[rows]
        added = np.where(buried, -(float(total.max() - total.min()) + spread), 0.0)
        changes[name] = added
        total = total + added
    return total.astype(np.float32), changes


def _different(rows: IntArray, scores: FloatArray, place: IntArray | None, items: ItemTable, wish: Wish) -> LongArray:
    """The order after diversification, within the items of the first preference only: the others stay behind them, and so do
    buried ones, which are unlike what is before them as often as not."""
    alike = np.ones(len(rows), dtype=bool)
    if place is not None:
        alike = place == place[:1]
    if wish.rules.buries:
        buried = np.logical_or.reduce([items.matching(expression)[rows] for _, expression in wish.rules.buries])
        alike = alike & (buried == buried[:1])
    n = int(alike.sum())
    pool = pool_size(n, wish.top_k)
    features = similarity_features(rows[:pool], items.columns.get("categories") or items.columns.get("tags"), wish.vectors)
    return np.concatenate([diversified(scores[:n], features, wish.top_k, wish.diversity), np.arange(n, len(rows))]).astype(np.int64)


def _pins(items: ItemTable, wish: Wish, rows: IntArray) -> list[tuple[str, int, int]]:
    """Rule, position and row of each pin that may be shown, by position; an item is pinned once. Caps hold for no pin."""
    selection = wish.selection._replace(capped=())
    pins: list[tuple[str, int, int]] = []
    taken: set[int] = set()
    for name, position, item_ids in sorted(wish.rules.pins, key=lambda pin: pin[1]):
        pinned = items.rows(item_ids)
        allowed = items.passing(selection, pinned)
        if wish.exclude is not None and len(wish.exclude):
            allowed &= ~np.isin(pinned, wish.exclude)
        if wish.candidates is not None:
            allowed &= np.isin(pinned, wish.candidates)
        for offset, row in enumerate(pinned[allowed].tolist()):
            if row not in taken and position + offset < wish.top_k:
                taken.add(row)
                pins.append((name, position + offset, row))
    return pins


def _with_pins(
    pins: Sequence[tuple[str, int, int]], rows: IntArray, scores: FloatArray, sources: npt.NDArray[np.integer], top_k: int
) -> tuple[IntArray, FloatArray, npt.NDArray[np.integer], BoolArray]:
    """Pinned items put before the others, and which they are."""
    lifted = np.zeros(len(rows) + len(pins), dtype=bool)
    lifted[: len(pins)] = True
    if not pins:
        return rows, scores, sources, lifted
    pinned = np.array([row for _, _, row in pins], dtype=np.int32)
    same = np.concatenate([pinned[:, None] == rows, np.ones((len(pinned), 1), dtype=bool)], axis=1)
    found = same.argmax(axis=1)  # the place after the last stands for pins that the list does not hold
    pin_scores = np.append(scores, scores.min(initial=np.inf) if len(scores) else 0.0)[found].astype(np.float32)
    pin_sources = np.append(sources.astype(np.int64), PINNED)[found]
    others = ~np.isin(rows, pinned)
    rows = np.concatenate([pinned, rows[others]])
    scores = np.concatenate([pin_scores, scores[others]])
    return rows, scores, np.concatenate([pin_sources, sources[others].astype(np.int64)]), lifted[: len(rows)]


def _capped_values(rows: IntArray, items: ItemTable, rules: RulePlan) -> CappedValues:
    capped = [
        (items.columns.get(attribute), limit, None if counting is None else items.matching(counting))
        for attribute, limit, counting in rules.caps
    ]
    return capped_values(capped, rows)


def _keep_within_caps(rows: IntArray, lifted: BoolArray, items: ItemTable, rules: RulePlan) -> BoolArray:
    if not rules.caps:
        return np.ones(len(rows), dtype=bool)
    return within_caps(_capped_values(rows, items, rules), len(rows), lifted)


def _seated(lifted: BoolArray, positions: Sequence[int], top_k: int) -> LongArray:
    """The order in which pins (which come first) have their positions, the others the places between; no place stays empty."""
    others = np.flatnonzero(~lifted)
    if not positions:
        return others
    total = len(lifted)
    seats = np.full(total, -1, dtype=np.int64)
    last = -1
    for pin, position in enumerate(positions):
        last = min(max(position, last + 1), total - len(positions) + pin)
        seats[last] = pin
    seats[seats < 0] = others
    return seats


def _by_row(changes: Mapping[str, FloatArray], rows: IntArray) -> dict[str, dict[int, float]]:
    return {name: {int(rows[place]): float(added[place]) for place in np.flatnonzero(added)} for name, added in changes.items()}
