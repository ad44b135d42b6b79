"""What an import did, as commands print it."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from features.import_events import EventCounts
from features.importers.columns import listed_columns
from features.rejects import Rejects

_NEW_DATASET = "import into a new dataset (--dataset): what is stored stays as it is, also where a file is imported again"


@dataclass(frozen=True)
class ImportReport:
    """What an import did.

    Args:
        dataset: its name.
        users, items, interactions: of the file's valid distinct interactions.
        catalogue_items: distinct items that the file lists or that occur in its interactions.
        duplicates: interactions repeated in the file or stored before.
        rejected: rows left out because they are bad.
        rejected_path: CSV of them with reasons; None where there are none.
        unused_columns: of the interactions file: neither known nor mapped, and so left out.
        notes: things worth knowing, one sentence each; not part of `to_dict`.
    """

    dataset: str
    users: int
    items: int
    interactions: int
    catalogue_items: int
    duplicates: int
    rejected: int
    rejected_path: str | None
    unused_columns: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The result as commands print it; `unused_columns` only where there are any."""
        fields = asdict(self)
        fields.pop("notes")
        if not fields.pop("unused_columns"):
            return fields
        return fields | {"unused_columns": list(self.unused_columns)}


def unused_note(file: str, columns: Sequence[str]) -> Iterator[str]:
    """A sentence on the columns of an interactions file that were left out, if there are any."""
    if columns:
        yield (
            f"{file}: not used: {listed_columns(columns)}; if one says what somebody did, name it with --map CANONICAL=COLUMN; "
            "attributes of items and users belong into items.csv and users.csv beside the file"
        )


def import_notes(
    counts: EventCounts, listed: Collection[str], rejects: Rejects, outdated: Mapping[str, int], *, has_times: bool
) -> Iterator[str]:
    """Things worth knowing of an import, one sentence each.

    Args:
        counts: of its events.
        listed: items that the items file lists.
        rejects: rows left out.
        outdated: actions known now -> stored interactions that were flagged before.
        has_times: whether any interaction has a time.
    """
    bare = counts.items.difference(listed)
    if listed and bare:
        yield (
            f"{len(bare):,} items occur in the activity and are not listed with attributes (one is {min(bare)!r}): they are "
            "recommended from activity alone; list them in the items file and import again to give them a title and categories"
        )
    if counts.single_event_users:
        yield (
            f"{counts.single_event_users:,} of {counts.users:,} users have one interaction: kept for training, "
            "too short to be held out for testing"
        )
    if counts.unknown_actions:
        named = ", ".join(f"{action!r}: {count:,}" for action, count in counts.unknown_actions.most_common(3))
        yield (
            f"{counts.unknown_actions.total():,} interactions have an action that is not known ({named}): they are stored with a "
            f"flag, and nothing counts them; to have them counted, name them in events.extra_actions and {_NEW_DATASET}"
        )
    if outdated:
        named = ", ".join(f"{action!r}: {count:,}" for action, count in outdated.items())
        yield (
            f"{sum(outdated.values()):,} stored interactions have an action that was not known when they came ({named}), and keep "
            f"their flag: nothing counts them; to have them counted, {_NEW_DATASET}"
        )
    if counts.erased:
        yield (
            f"{counts.erased:,} interactions were left out: their users were erased after they happened; what those do since then "
            "is kept"
        )
    if rejects.count:
        yield f"{rejects.count:,} rows were rejected ({most_common(rejects)}); see {rejects.path}"
    if not has_times:
        yield "no interaction has a time: file order is taken as history order; window features stay empty"


def most_common(rejects: Rejects) -> str:
    """The most frequent reasons for rejects, with their numbers."""
    return ", ".join(f"{reason}: {count:,}" for reason, count in rejects.reasons.most_common(3))
