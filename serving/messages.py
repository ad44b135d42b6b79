"""What travels between gateway, retriever and ranker replicas. Plain values: every side can be of another release's process."""

from __future__ import annotations

from dataclasses import dataclass

from serving.schemas import ALL_SEEN, NO_SELECTION, Seen, Selection


@dataclass(frozen=True, slots=True)
class ComputeRequest:
    """One list to compute.

    Args:
        user_id: the user, None for sessions.
        k: items wanted at least, as far as the catalogue goes.
        top_k: items that will be shown: once a step of the selection's chains gives so many, no wider one is tried.
        activity: the user's value of `serving.recent_activity`, empty where there is none.
        selection: which items may be returned.
        recent_items: a caller's own history, oldest first, newer than all that is known.
        exclude: items to leave out.
        seen: which items of the history to leave out; None for none.
        candidates: rank these and no others.
        log_as: unit and version under which the feature values are logged; None logs nothing.
        explain: say where the scores come from (`serving.explained_list`).
        similar_to: items like this one, instead of a user's.
        request_id: of the request that this is for, for the replica's log.
    """

    user_id: str | None
    k: int
    top_k: int = 0
    activity: bytes = b""
    selection: Selection = NO_SELECTION
    recent_items: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    seen: Seen | None = ALL_SEEN
    candidates: tuple[str, ...] | None = None
    log_as: tuple[str, str] | None = None
    explain: bool = False
    similar_to: str | None = None
    request_id: str | None = None


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a replica has no list: as text, since the error's class may be known to the replica alone."""

    reason: str


@dataclass(frozen=True, slots=True)
class ShadowAsk:
    """An answer of the live version that the shadow is asked for too.

    Args:
        request: what was asked.
        item_ids: first items of the live list, best first.
        scores: theirs.
        milliseconds: what the live version took, with the way there and back.
    """

    request: ComputeRequest
    item_ids: tuple[str, ...]
    scores: tuple[float, ...]
    milliseconds: float
