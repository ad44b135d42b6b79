"""`/v1/items`: the catalogue's items. Availability takes effect in all answers within a second."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, Any

from fastapi import APIRouter, Body
from fastapi.responses import Response

from features.attributes import CANONICAL_ITEM_TYPES
from features.catalogue import Catalogue
from serving.api.answer_schemas import BatchReceipt, Item, errors
from serving.api.attribute_values import Types, as_table, check_attributes, checked_batch, checked_row, without_id
from serving.api.context import Admin, ApiContext, Context, Reader
from serving.api.route import Route
from serving.errors import RequestError
from serving.item_changes import ITEM_SUBJECT

router = APIRouter(prefix="/v1/items", tags=["catalogue"], route_class=Route)
Entity = dict[str, Any]
Attributes = Annotated[
    Entity,
    Body(
        description="Attributes of the dataset's schema by name; `available: false` takes the item out of all answers.",
        examples=[{"title": "Alien", "categories": ["Horror", "Sci-Fi"], "regions": ["DE"], "year": 1979, "available": True}],
    ),
]


@router.get("/{item_id:id}", response_model=Item, responses=errors(404))
def get_item(item_id: str, context: Context, actor: Reader) -> Entity:
    """One item with its attributes."""
    return _found(context.catalogue.item(item_id), item_id)


@router.put("/{item_id:id}", response_model=Item, responses=errors(422))
def put_item(item_id: str, item: Attributes, context: Context, actor: Admin) -> Entity:
    """Create an item, or replace all of its attributes. The body may repeat the path's `item_id`."""
    types = _types(context)
    row = checked_row({**without_id(item, "item_id", item_id), "item_id": item_id}, "item_id", types)
    with _changing(context, actor, [item_id]) as catalogue:
        catalogue.upsert_items(as_table([row], "item_id", types))
        return _found(catalogue.item(item_id), item_id)


@router.post("", response_model=BatchReceipt, response_model_exclude_unset=True, responses=errors(422))
def post_items(
    items: Annotated[
        list[Any],
        Body(
            embed=True,
            description="Up to 1,000 items: `item_id` and attributes.",
            examples=[[{"item_id": "348", "title": "Alien"}, {"item_id": "589", "title": "Terminator 2", "available": False}]],
        ),
    ],
    context: Context,
    actor: Admin,
) -> dict[str, Any]:
    """Create or replace up to 1,000 items: the valid ones. `rejected` says what is wrong with the others, 422 if all are."""
    types = _types(context)
    batch = checked_batch(items, "item_id", "items", types)
    with _changing(context, actor, [row["item_id"] for row in batch.rows]) as catalogue:
        catalogue.upsert_items(as_table(batch.rows, "item_id", types))
    return batch.receipt


@router.patch("/{item_id:id}", response_model=Item, responses=errors(404, 422))
def patch_item(
    item_id: str,
    changes: Annotated[Entity, Body(description="Attributes to change; null removes one.", examples=[{"available": False}])],
    context: Context,
    actor: Admin,
) -> Entity:
    """Change some attributes; null removes one. The body may repeat the path's `item_id`."""
    changes = without_id(changes, "item_id", item_id)
    check_attributes(changes, _types(context))
    with _changing(context, actor, [item_id]) as catalogue:
        return _found(catalogue.patch_item(item_id, changes), item_id)


@router.delete("/{item_id:id}", status_code=204, responses=errors(404))
def delete_item(item_id: str, context: Context, actor: Admin) -> Response:
    """Take an item out of the catalogue and of all answers."""
    with _changing(context, actor, [item_id]) as catalogue:
        _found(catalogue.item(item_id), item_id)
        catalogue.delete_item(item_id)
    return Response(status_code=204)


@contextmanager
def _changing(context: ApiContext, actor: str, item_ids: Sequence[str]) -> Iterator[Catalogue]:
    """The catalogue in a transaction that ends with the audit entries of these items: gateways follow the log alone, and it must
    say what the catalogue says, in the same order."""
    audit = context.control.audit
    with audit.begin() as connection:
        catalogue = context.catalogue.inside(connection)
        before = catalogue.some_items(item_ids)
        yield catalogue
        after = catalogue.some_items(item_ids)
        for item_id in dict.fromkeys(item_ids):
            audit.write(connection, actor, "item", f"{ITEM_SUBJECT}{item_id}", before.get(item_id), after.get(item_id))
    context.changed()


def _types(context: ApiContext) -> Types:
    known = {attribute.name: attribute.type for attribute in context.catalogue.schema().item_attributes}
    return {**known, "available": CANONICAL_ITEM_TYPES["available"]}


def _found(item: Entity | None, item_id: str) -> Entity:
    if item is None:
        raise RequestError(f"there is no item {item_id[:80]!r}", code="not_found", status=404, field="item_id")
    return item
