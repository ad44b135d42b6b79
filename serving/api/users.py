"""`/v1/users`: profiles. Erasing a person is `serving.api.erasure`'s.

Profiles are not in the audit log: it is kept for good, and an erased person must not be found in it.
"""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Body

from serving.api.answer_schemas import BatchReceipt, User, errors
from serving.api.attribute_values import Types, as_table, check_attributes, checked_batch, checked_row, without_id
from serving.api.context import Admin, ApiContext, Context, Reader
from serving.api.route import Route
from serving.errors import RequestError

router = APIRouter(prefix="/v1/users", tags=["catalogue"], route_class=Route)
Entity = dict[str, Any]


@router.get("/{user_id:id}", response_model=User, responses=errors(404))
def get_user(user_id: str, context: Context, actor: Reader) -> Entity:
    """One user's profile."""
    return _found(context.catalogue.user(user_id), user_id)


@router.put("/{user_id:id}", response_model=User, responses=errors(422))
def put_user(
    user_id: str,
    user: Annotated[Entity, Body(description="Attributes of the dataset's schema by name.", examples=[{"age": 33}])],
    context: Context,
    actor: Admin,
) -> Entity:
    """Create a user's profile, or replace all of its attributes. The body may repeat the path's `user_id`."""
    types = _types(context)
    row = checked_row({**without_id(user, "user_id", user_id), "user_id": user_id}, "user_id", types)
    context.catalogue.upsert_users(as_table([row], "user_id", types))
    return _found(context.catalogue.user(user_id), user_id)


@router.post("", response_model=BatchReceipt, response_model_exclude_unset=True, responses=errors(422))
def post_users(
    users: Annotated[
        list[Any],
        Body(
            embed=True,
            description="Up to 1,000 users: `user_id` and attributes.",
            examples=[[{"user_id": "42", "age": 33}, {"user_id": "43"}]],
        ),
    ],
    context: Context,
    actor: Admin,
) -> dict[str, Any]:
    """Create or replace up to 1,000 profiles: the valid ones. `rejected` says what is wrong with the others, 422 if all are."""
    types = _types(context)
    batch = checked_batch(users, "user_id", "users", types)
    context.catalogue.upsert_users(as_table(batch.rows, "user_id", types))
    return batch.receipt


@router.patch("/{user_id:id}", response_model=User, responses=errors(404, 422))
def patch_user(
    user_id: str,
    changes: Annotated[Entity, Body(description="Attributes to change; null removes one.", examples=[{"age": None}])],
    context: Context,
    actor: Admin,
) -> Entity:
    """Change some attributes of a profile; null removes one. The body may repeat the path's `user_id`."""
    changes = without_id(changes, "user_id", user_id)
    check_attributes(changes, _types(context))
    return _found(context.catalogue.patch_user(user_id, changes), user_id)


def _types(context: ApiContext) -> Types:
    return {attribute.name: attribute.type for attribute in context.catalogue.schema().user_attributes}


def _found(user: Entity | None, user_id: str) -> Entity:
    if user is None:
        raise RequestError(f"there is no user {user_id[:80]!r}", code="not_found", status=404, field="user_id")
    return user
