"""Items and users over HTTP. A change of availability is announced, and gateways apply it within a second."""

from __future__ import annotations

from typing import Annotated, Any

import pyarrow as pa
from fastapi import APIRouter, Body, Depends
from pydantic import BaseModel, ConfigDict, Field

from features.errors import FeaturesError
from serving.admin.context import AdminContext
from serving.errors import RequestError
from serving.live_state import ITEM_SUBJECT

MAX_ITEMS_PER_CALL = 1000

Attributes = Annotated[dict[str, Any], Body()]


class ItemBatch(BaseModel):
    """Body of `POST /v1/items`."""

    model_config = ConfigDict(extra="forbid")

    items: list[dict[str, Any]] = Field(
        min_length=1, max_length=MAX_ITEMS_PER_CALL, description="Items with `item_id` and attributes."
    )


def router(context: AdminContext) -> APIRouter:
    """Routes of items and users."""
    routes = APIRouter(prefix="/v1", tags=["catalogue"])
    admin = Depends(context.scope("admin"))
    reader = Depends(context.scope("read"))

    @routes.get("/items/{item_id}")
    def get_item(item_id: str, actor: str = reader) -> dict[str, Any]:
        """One item with its attributes."""
        return _found(context.catalogue.item(item_id), "item", item_id)

    @routes.put("/items/{item_id}")
    def put_item(item_id: str, attributes: Attributes, actor: str = admin) -> dict[str, Any]:
        """Create an item, or replace its attributes."""
        _put_items(context, [{**attributes, "item_id": item_id}], actor)
        return _found(context.catalogue.item(item_id), "item", item_id)

    @routes.patch("/items/{item_id}")
    def patch_item(item_id: str, changes: Attributes, actor: str = admin) -> dict[str, Any]:
        """Change some attributes of an item, such as `{"available": false}`."""
        before = context.catalogue.item(item_id)
        after = _found(_attempt(lambda: context.catalogue.patch_item(item_id, changes)), "item", item_id)
        _item_changed(context, item_id, before, after, actor)
        return after

    @routes.delete("/items/{item_id}", status_code=204)
    def delete_item(item_id: str, actor: str = admin) -> None:
        """Remove an item; it is gone from all answers within a second."""
        before = _found(context.catalogue.item(item_id), "item", item_id)
        context.catalogue.delete_item(item_id)
        _item_changed(context, item_id, before, None, actor)

    @routes.post("/items")
    def put_items(batch: ItemBatch, actor: str = admin) -> dict[str, Any]:
        """Create or replace up to 1,000 items."""
        _put_items(context, batch.items, actor)
        return {"stored": len(batch.items)}

    @routes.get("/users/{user_id}")
    def get_user(user_id: str, actor: str = admin) -> dict[str, Any]:
        """One user's profile."""
        return _found(context.catalogue.user(user_id), "user", user_id)

    @routes.put("/users/{user_id}")
    def put_user(user_id: str, attributes: Attributes, actor: str = admin) -> dict[str, Any]:
        """Create a user's profile, or replace its attributes."""
        _attempt(lambda: context.catalogue.upsert_users(_table([{**attributes, "user_id": user_id}])))
        return _found(context.catalogue.user(user_id), "user", user_id)

    @routes.patch("/users/{user_id}")
    def patch_user(user_id: str, changes: Attributes, actor: str = admin) -> dict[str, Any]:
        """Change some attributes of a user."""
        return _found(_attempt(lambda: context.catalogue.patch_user(user_id, changes)), "user", user_id)

    return routes


def _put_items(context: AdminContext, items: list[dict[str, Any]], actor: str) -> None:
    for position, item in enumerate(items):
        if not isinstance(item.get("item_id"), str) or not item["item_id"]:
            raise RequestError(f"item {position} lacks item_id", field="item_id")
    before = {item["item_id"]: context.catalogue.item(item["item_id"]) for item in items}
    _attempt(lambda: context.catalogue.upsert_items(_table(items)))
    for item_id, old in before.items():
        new = context.catalogue.item(item_id)
        context.control.record(actor=actor, action="item.put", subject=ITEM_SUBJECT + item_id, before=old, after=new)
    context.changed()


def _item_changed(context: AdminContext, item_id: str, before: Any, after: Any, actor: str) -> None:
    action = "item.delete" if after is None else "item.change"
    context.control.record(actor=actor, action=action, subject=ITEM_SUBJECT + item_id, before=before, after=after)
    context.changed()


def _table(rows: list[dict[str, Any]]) -> pa.Table:
    names = list(dict.fromkeys(name for row in rows for name in row))
    try:
        return pa.table({name: pa.array([row.get(name) for row in rows]) for name in names})
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise RequestError(f"attributes of one name must have one type: {error}") from None


def _found(entity: dict[str, Any] | None, kind: str, entity_id: str) -> dict[str, Any]:
    if entity is None:
        raise RequestError(f"there is no {kind} {entity_id!r}", code="not_found", status=404, field=f"{kind}_id")
    return entity


def _attempt(step: Any) -> Any:
    try:
        return step()
    except FeaturesError as error:
        raise RequestError(str(error)) from None
