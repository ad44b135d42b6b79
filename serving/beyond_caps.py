"""What comes next where caps leave a page short: items whose values still have room, however deep in the order they stand.

A list holds the best of all items, and a cap may let through few of these. It is not made long in advance: what the page has filled
is a condition (`Selection.capped`) on the items that follow, so that each continuation begins with one that may stand there.
"""

from __future__ import annotations

from collections.abc import Callable

from serving.caps import full_values
from serving.item_table import ItemTable
from serving.schemas import Selection
from serving.slate import Ranked, Slate, Wish, arranged

Further = Callable[[Ranked, Selection], Ranked]
"""A list, and which items may follow, to the list with those behind it; the same where none do."""


def beyond_caps(slate: Slate, items: ItemTable, wish: Wish) -> Selection | None:
    """What may still stand on a page that caps have left short; None where it is full, or where caps keep nothing out."""
    if not wish.rules.caps or len(slate) >= wish.top_k:
        return None
    full = []
    for attribute, limit, counting in wish.rules.caps:
        counts = None if counting is None else items.matching(counting)
        values = full_values(items.columns.get(attribute), limit, counts, slate.rows)
        if values:
            full.append((attribute, values, counting))
    return wish.selection._replace(capped=(*wish.selection.capped, *full)) if full else None


def continued(ranked: Ranked, items: ItemTable, wish: Wish, further: Further, *, explain: bool = False) -> Slate:
    """The first `top_k` places of a list, which goes on as long as caps leave the page short and something follows.

    Raises:
        FilterError: as `arranged`.
    """
    slate = arranged(ranked, items, wish, explain=explain)
    while (beyond := beyond_caps(slate, items, wish)) is not None:
        longer = further(ranked, beyond)
        if len(longer.rows) == len(ranked.rows):
            break
        ranked, slate = longer, arranged(longer, items, wish, explain=explain)
    return slate
