"""`/v1/items` and `/v1/users`: the catalogue. Availability takes effect in all answers within a second."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

import pyarrow as pa
from fastapi import APIRouter, Body
from fastapi.responses import Response

from features.attributes import ARROW_TYPES, CANONICAL_ITEM_TYPES
from features.errors import EventError
from features.events import parse_timestamp
from features.schema import AttributeType
from serving.api.context import Admin, ApiContext, Context, Reader
from serving.errors import RequestError
from serving.item_changes import ITEM_SUBJECT
from serving.request_values import checked_id

router = APIRouter(prefix="/v1", tags=["catalogue"])
MAX_ITEMS = 1000

_EXPECTED: dict[AttributeType, tuple[str, tuple[type, ...]]] = {
    "string": ("text", (str,)),
    "int": ("an integer", (int,)),
    "float": ("a number", (int, float)),
    "bool": ("true or false", (bool,)),
    "timestamp": ("ISO 8601 text", (str, datetime)),
    "string_list": ("a list of texts", (list,)),
}


@router.get("/items/{item_id:path}")
def get_item(item_id: str, context: Context, actor: Reader) -> dict[str, Any]:
    """One item with its attributes."""
    return _found(context.catalogue.item(item_id), "item", item_id)


@router.get("/users/{user_id:path}")
def get_user(user_id: str, context: Context, actor: Reader) -> dict[str, Any]:
    """One user's profile."""
    return _found(context.catalogue.user(user_id), "user", user_id)


@router.put("/items/{item_id:path}")
def put_item(item_id: str, item: Annotated[dict[str, Any], Body()], context: Context, actor: Admin) -> dict[str, Any]:
    """Create an item, or replace all of its attributes."""
    if item.get("item_id", item_id) != item_id:
        raise RequestError(f"the path says {item_id!r}, the body says {item['item_id']!r}", field="item_id")
    _upsert(context, [{**item, "item_id": item_id}], actor)
    return _found(context.catalogue.item(item_id), "item", item_id)


@router.post("/items")
def post_items(items: Annotated[list[dict[str, Any]], Body(embed=True)], context: Context, actor: Admin) -> dict[str, int]:
    """Create or replace up to 1,000 items; all or, when one is wrong, none."""
    if not 1 <= len(items) <= MAX_ITEMS:
        raise RequestError(f"items has {len(items)} entries, 1 to {MAX_ITEMS} are allowed", field="items")
    _upsert(context, items, actor)
    return {"stored": len(items)}


@router.patch("/items/{item_id:path}")
def patch_item(item_id: str, changes: Annotated[dict[str, Any], Body()], context: Context, actor: Admin) -> dict[str, Any]:
    """Change some attributes; null removes one."""
    types = _item_types(context)
    for name, value in changes.items():
        if value is not None:
            _check(name, value, types)
    before = _found(context.catalogue.item(item_id), "item", item_id)
    after = _found(context.catalogue.patch_item(item_id, changes), "item", item_id)
    _record(context, actor, {item_id: (before, after)})
    return after


@router.delete("/items/{item_id:path}", status_code=204)
def delete_item(item_id: str, context: Context, actor: Admin) -> Response:
    """Take an item out of the catalogue and of all answers."""
    before = _found(context.catalogue.item(item_id), "item", item_id)
    context.catalogue.delete_item(item_id)
    _record(context, actor, {item_id: (before, None)})
    return Response(status_code=204)


@router.put("/users/{user_id:path}")
def put_user(user_id: str, user: Annotated[dict[str, Any], Body()], context: Context, actor: Admin) -> dict[str, Any]:
    """Create a user's profile, or replace all of its attributes."""
    types = _user_types(context)
    for name, value in user.items():
        if name != "user_id" and value is not None:
            _check(name, value, types)
    columns = {name: pa.array([_stored(user.get(name), kind)], ARROW_TYPES[kind]) for name, kind in types.items() if name in user}
    context.catalogue.upsert_users(pa.table({"user_id": pa.array([checked_id(user_id, "user_id")], pa.string()), **columns}))
    return _found(context.catalogue.user(user_id), "user", user_id)


@router.patch("/users/{user_id:path}")
def patch_user(user_id: str, changes: Annotated[dict[str, Any], Body()], context: Context, actor: Admin) -> dict[str, Any]:
    """Change some attributes of a profile; null removes one."""
    types = _user_types(context)
    for name, value in changes.items():
        if value is not None:
            _check(name, value, types)
    return _found(context.catalogue.patch_user(user_id, changes), "user", user_id)


def _upsert(context: ApiContext, items: list[dict[str, Any]], actor: str) -> None:
    types = _item_types(context)
    ids = [checked_id(str(item.get("item_id", "")), "item_id") for item in items]
    for item in items:
        for name, value in item.items():
            if name != "item_id" and value is not None:
                _check(name, value, types)
    before = {item_id: context.catalogue.item(item_id) for item_id in ids}
    names = [name for name in types if any(name in item for item in items)]
    columns = {name: pa.array([_stored(item.get(name), types[name]) for item in items], ARROW_TYPES[types[name]]) for name in names}
    context.catalogue.upsert_items(pa.table({"item_id": pa.array(ids, pa.string()), **columns}))
    _record(context, actor, {item_id: (before[item_id], context.catalogue.item(item_id)) for item_id in ids})


def _item_types(context: ApiContext) -> dict[str, AttributeType]:
    known = {attribute.name: attribute.type for attribute in context.catalogue.schema().item_attributes}
    return {**known, "available": CANONICAL_ITEM_TYPES["available"]}


def _user_types(context: ApiContext) -> dict[str, AttributeType]:
    return {attribute.name: attribute.type for attribute in context.catalogue.schema().user_attributes}


def _check(name: str, value: object, types: dict[str, AttributeType]) -> None:
    kind = types.get(name)
    if kind is None:
        raise RequestError(f"this dataset has no attribute {name!r} here; it has: {', '.join(sorted(types)) or 'none'}", field=name)
    what, allowed = _EXPECTED[kind]
    fits = isinstance(value, allowed) and (kind == "bool" or not isinstance(value, bool))
    if kind == "string_list" and fits:
        fits = all(isinstance(one, str) for one in value)  # type: ignore[attr-defined]
    if kind == "timestamp" and fits:
        try:
            parse_timestamp(value)
        except EventError:
            fits = False
    if not fits:
        raise RequestError(f"{name} must be {what}, got {str(value)[:60]!r}", field=name)


def _stored(value: Any, kind: AttributeType) -> Any:
    return parse_timestamp(value) if kind == "timestamp" and value is not None else value


def _record(context: ApiContext, actor: str, changes: dict[str, tuple[dict[str, Any] | None, dict[str, Any] | None]]) -> None:
    context.control.audit.record_all(
        actor=actor, action="item", changes={f"{ITEM_SUBJECT}{item_id}": change for item_id, change in changes.items()}
    )
    context.changed()


def _found(entity: dict[str, Any] | None, side: str, entity_id: str) -> dict[str, Any]:
    if entity is None:
        raise RequestError(f"the catalogue has no {side} {entity_id!r}", code="not_found", status=404, field=f"{side}_id")
    return entity
