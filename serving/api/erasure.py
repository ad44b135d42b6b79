"""`DELETE /v1/users/{user_id}`: erase a person. The audit log says that it happened, and not whom it was about."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter

from features.activity_store import ActivityStore
from serving.api.answer_schemas import Erasure, errors
from serving.api.context import Admin, Context
from serving.api.route import Route
from serving.erasure import Eraser
from serving.errors import RequestError
from serving.request_values import checked_id

router = APIRouter(prefix="/v1", tags=["catalogue"], route_class=Route)


@router.delete("/users/{user_id:id}", response_model=Erasure, responses=errors(422, 503))
def delete_user(user_id: str, context: Context, actor: Admin) -> dict[str, Any]:
    """Erase a person: profile, activity, features, lists, logs, histories in models. Doing it again is harmless."""
    user_id = checked_id(user_id, "user_id")
    report = Eraser(context.config, context.store, context.registry).erase(user_id)
    # Auditors who know an id can ask for its keyed hash; the log itself names nobody.
    stand_in = ActivityStore.of(context.config.paths).erased_as(user_id)
    context.control.audit.record(
        actor=actor, action="user.erase", subject=f"erased:{stand_in}", before=None, after=report.to_json()
    )
    context.changed()
    if report.unfinished:
        place, reason = next(iter(report.unfinished.items()))
        raise RequestError(
            f"erased, but not from {', '.join(report.unfinished)} ({place}: {reason}); call again when that is mended",
            code="erasure_unfinished",
            status=503,
            headers={"Retry-After": "10"},
        )
    return report.to_json()
