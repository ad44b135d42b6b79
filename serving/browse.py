"""Lists that are nobody's own: popular items.

Legend: `n` items of an answer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from serving.answer import shown_items
from serving.live_state import Snapshot
from serving.popular_lists import POPULAR_SOURCE, popular_list
from serving.schemas import Selection
from serving.slate import Wish, arranged


class Browser:
    """Answers for one gateway replica.

    Args:
        snapshot: gives the present snapshot.
    """

    def __init__(self, snapshot: Callable[[], Snapshot]) -> None:
        self._snapshot = snapshot

    def popular(self, selection: Selection, top_k: int, fields: Sequence[str]) -> dict[str, Any]:
        """Most popular items of a selection as of the champion's training.

        Raises:
            FilterError: the filter is wrong.
        """
        snapshot = self._snapshot()
        items = snapshot.items
        ranked = popular_list(items, selection, top_k, np.zeros(0, dtype=np.int32))
        slate = arranged(ranked, items, Wish(top_k, selection))
        return {"items": shown_items(items, slate, (POPULAR_SOURCE,), fields), "last_updated": snapshot.items_at.isoformat()}
