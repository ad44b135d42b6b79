"""`/v1/audit`: what was changed, when and by whom; and the state at any time."""

from __future__ import annotations

from dataclasses import asdict
from datetime import UTC, datetime
from typing import Annotated, Any

from fastapi import APIRouter, Query

from serving.api.answer_schemas import Audit, errors
from serving.api.context import Admin, Context
from serving.api.route import MAX_INTEGER, Route

router = APIRouter(prefix="/v1/audit", tags=["audit"], route_class=Route)


@router.get("", response_model=Audit, response_model_exclude_unset=True, responses=errors(422))
def read_audit(
    context: Context,
    actor: Admin,
    at: Annotated[datetime | None, Query(description="The state at this time (ISO 8601; UTC where no zone is given).")] = None,
    subject: Annotated[str, Query(description="Only subjects that start so: routing, alias:, experiment:, item:, import:.")] = "",
    after: Annotated[int, Query(ge=0, le=MAX_INTEGER, description="Entries after this number; the last one's reads on.")] = 0,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
) -> dict[str, Any]:
    """Entries of the log, oldest first; with `at`, what the log says was so at that time: subject to value.

    Without `subject`, items and users are left out of the state: the catalogue may be large.
    """
    if at is None:
        entries = context.control.audit.entries(after_id=after, limit=limit, subject=subject)
        return {"entries": [asdict(entry) for entry in entries], "after": entries[-1].id if entries else after}
    moment = at if at.tzinfo is not None else at.replace(tzinfo=UTC)
    state = context.control.audit.replay(moment, subject=subject, leave_out=() if subject else ("item:", "user:"))
    return {"at": moment.isoformat(), "state": state}
