"""What a request for recommendations may say, as values; reading it from HTTP is `request_parsing`'s."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from features.events import OTHER_ACTION_CODE
from serving.caps import Value
from serving.id_rows import Hashes
from serving.page_cursor import nothing_shown

DEFAULT_TOP_K = 10
MAX_TOP_K = 500

ServedFrom = Literal["cache", "online", "stale", "segment", "popular"]


class Selection(NamedTuple):
    """Which items an answer may hold, beyond being available. Falsy when it asks for nothing; hashable, to cache its mask.

    Several categories mean any of them. Several regions or languages are chains: items of the first come first, the others fill up
    a list that would run short. `filter` is the caller's CEL; every one of `required` holds beside it (the placement's, a variant's
    and the rules' to include), none of `barred` (the rules' to exclude), and no item has what is `capped`: attribute, its values
    that have no room (None: any value), and the expression of the items that count (None: all). Each is compiled alone, so that the
    bounds of one expression bound nothing but it; only the caller's is the caller's error where it does not fit the items.
    """

    category: tuple[str, ...] = ()
    region: tuple[str, ...] = ()
    language: tuple[str, ...] = ()
    filter: str | None = None
    required: tuple[str, ...] = ()
    barred: tuple[str, ...] = ()
    capped: tuple[tuple[str, tuple[Value, ...] | None, str | None], ...] = ()

    def __bool__(self) -> bool:
        return any(self)

    def __reduce__(self) -> tuple[type[Selection], tuple[Any, ...]]:
        # A replica of an earlier release reads four or six values: it can answer as long as no rule or placement asks for more.
        return Selection, tuple(self)[: 7 if self.capped else 6 if self.required or self.barred else 4]

    @property
    def steps(self) -> list[Selection]:
        """The selections to try one after another, each wider than the one before: along the chains, regions first."""
        if len(self.region) < 2 and len(self.language) < 2:
            return [self]
        narrow = [
            self._replace(region=self.region[: regions + 1], language=self.language[: languages + 1])
            for regions in range(max(len(self.region), 1))
            for languages in range(max(len(self.language), 1))
        ]
        return list(dict.fromkeys([*narrow, self]))


NO_SELECTION = Selection()
"""All available items."""


DAY_US = 86_400_000_000
EVER_US = -(2**63)
"""Before any time: events may be dated before 1970."""


class Seen(NamedTuple):
    """Which met items are left out: those met in the last `days` (None: ever) by one of `actions` (codes; None: by any)."""

    days: float | None = None
    actions: frozenset[int] | None = None

    def since_us(self, now_us: int) -> int:
        """The time from which on a meeting counts."""
        return EVER_US if self.days is None else now_us - round(self.days * DAY_US)

    def counts(self, action: int, time_us: int, now_us: int) -> bool:
        """Whether an item that was met so is left out. A meeting by an action that is not known counts: nothing is shown again that
        may have been meant."""
        if self.actions is not None and action != OTHER_ACTION_CODE and action not in self.actions:
            return False
        return time_us >= self.since_us(now_us)


ALL_SEEN = Seen()


@dataclass(slots=True)
class RecommendationRequest:
    """A valid request. Not to be changed: what was read from a query string is kept and used again.

    `recent_items` are oldest first; `candidates` restricts the answer to a caller's own items; `boost` is CEL and weight; `seen` is
    None where met items may be shown; `top_k` and `diversity` are None where the placement decides; `shown` are the items of
    earlier pages; `model_version` asks one version whatever aliases and experiments say.
    """

    user_id: str | None = None
    session_id: str | None = None
    top_k: int | None = None
    placement: str | None = None
    selection: Selection = NO_SELECTION
    seen: Seen | None = ALL_SEEN
    fields: tuple[str, ...] = ()
    recent_items: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    candidates: tuple[str, ...] | None = None
    boost: tuple[tuple[str, float], ...] = ()
    diversity: float | None = None
    explain: bool = False
    shown: Hashes = field(default_factory=nothing_shown, compare=False)
    context: Mapping[str, Any] = field(default_factory=dict)
    model_version: str | None = None

    @property
    def cacheable(self) -> bool:
        """Whether a list cached for the user answers this: nothing in it changes the scores."""
        return self.seen == ALL_SEEN and not self.recent_items and self.candidates is None and not self.explain
