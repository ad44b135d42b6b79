"""What travels between gateway, retriever and ranker replicas. Plain values: every side can be of another release's process."""

from __future__ import annotations

from dataclasses import dataclass

from serving.schemas import NO_SELECTION, Selection


@dataclass(frozen=True, slots=True)
class ComputeRequest:
    """One list to compute.

    Args:
        user_id: the user, None for sessions.
        k: items wanted at least, as far as the catalogue goes.
        activity: the user's value of `serving.recent_activity`, empty where there is none.
        selection: which items may be returned.
        recent_items: a caller's own history, oldest first, newer than all that is known.
        exclude: items to leave out.
        exclude_seen: leave out items of the history.
        candidates: rank these and no others.
        log_as: unit and version under which the feature values are logged; None logs nothing.
    """

    user_id: str | None
    k: int
    activity: bytes = b""
    selection: Selection = NO_SELECTION
    recent_items: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    exclude_seen: bool = True
    candidates: tuple[str, ...] | None = None
    log_as: tuple[str, str] | None = None
