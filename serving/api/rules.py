"""`/v1/rules`: business rules as data: read, replace, and see what they would do before they do it."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

from fastapi import APIRouter, Body
from pydantic import BaseModel, ConfigDict, Field, JsonValue

from serving.answer import Answer
from serving.api.answer_schemas import RulesPreviewed, RulesStored, errors
from serving.api.context import Admin, ApiContext, Context
from serving.api.route import Route
from serving.errors import FilterError, RequestError
from serving.filters import compile_filter
from serving.request_parsing import parse_body
from serving.rules import MAX_RULES, Rule, RuleBook

router = APIRouter(prefix="/v1/rules", tags=["rules"], route_class=Route)
_ALWAYS = ("item_id", "available", "regions", "languages")
"""What is read of every item: an absent one has its own meaning."""

_EXAMPLES: list[JsonValue] = [
    {
        "name": "spring",
        "kind": "pin",
        "item_ids": ["348"],
        "position": 0,
        "placements": ["home"],
        "ends_at": "2027-04-01T00:00:00Z",
    },
    {"name": "no-gore", "kind": "exclude", "items": '"Horror" in categories', "when": 'device == "kids"'},
    {"name": "variety", "kind": "cap", "attribute": "categories", "limit": 3},
]


class RuleSet(BaseModel):
    """All rules of the dataset, in the order in which they are applied."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"rules": _EXAMPLES}]})

    rules: list[Rule] = Field(max_length=MAX_RULES)


class RulePreview(BaseModel):
    """Rules to try, and the request (a body of `POST /v1/recommendations`) to try them on."""

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"examples": [{"rules": _EXAMPLES, "request": {"user_id": "42", "placement": "home"}}]}
    )

    rules: list[Rule] = Field(max_length=MAX_RULES)
    request: dict[str, Any] = Field(default_factory=dict)


@router.get("")
def get_rules(context: Context, actor: Admin) -> RuleSet:
    """All rules."""
    return RuleSet(rules=context.rules.rules())


@router.put("", response_model=RulesStored, responses=errors(422))
def put_rules(body: Annotated[RuleSet, Body()], context: Context, actor: Admin) -> dict[str, Any]:
    """Replace all rules. They hold in every answer, cached ones included, within seconds; the audit log keeps what was before."""
    warnings = _check(context, body.rules)
    changed = context.rules.replace(body.rules, actor=actor)
    if changed:
        context.changed()
    return {"rules": [rule.model_dump(mode="json") for rule in body.rules], "changed": changed, "warnings": warnings}


@router.post("/preview", response_model=RulesPreviewed, responses=errors(404, 422))
async def preview_rules(body: Annotated[RulePreview, Body()], context: Context, actor: Admin) -> dict[str, Any]:
    """A dry run: one request's list under the present rules and under the given ones, and which items move. Nothing is changed."""
    warnings = await asyncio.to_thread(_check, context, body.rules)  # it reads the control store
    request = parse_body(body.request)
    before = await context.answerer.recommend(request, dry_run=True)
    after = await context.answerer.recommend(request, RuleBook(body.rules), dry_run=True)
    places = [{item["item_id"]: place for place, item in enumerate(answer.items)} for answer in (before, after)]
    moved = [
        {"item_id": item_id, "from": places[0].get(item_id), "to": places[1].get(item_id)}
        for item_id in dict.fromkeys([*places[0], *places[1]])
        if places[0].get(item_id) != places[1].get(item_id)
    ]
    return {"before": _shown(before), "after": _shown(after), "moved": moved, "warnings": warnings}


def _check(context: ApiContext, rules: list[Rule]) -> list[str]:
    """Refuse what could not be applied.

    Returns:
        A sentence on each attribute that a rule reads and the dataset has not: it may come with an import, or be a slip of the pen.

    Raises:
        RequestError: a name is given twice, a placement does not exist, or an expression does not fit the items.
    """
    names = [rule.name for rule in rules]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise RequestError(f"rule {twice!r} is given more than once", field="rules")
    placements = context.config.placements
    for rule in rules:
        unknown = next((name for name in rule.placements if name not in placements), None)
        if unknown is not None:
            known = ", ".join(sorted(placements)) or "none; they are tables [serve.placements.NAME] of the settings"
            raise RequestError(f"rule {rule.name!r}: there is no placement {unknown!r}; there are: {known}", field="rules")
        try:
            for table in context.answerer.tables():
                if rule.items is not None:
                    table.matching(rule.items)
        except FilterError as error:
            raise RequestError(f"rule {rule.name!r}: {error}", code="invalid_filter", field="rules") from None
    there = {*_ALWAYS, *(attribute.name for attribute in context.catalogue.schema().item_attributes)}
    return [
        f"rule {rule.name!r} reads {name!r}, an attribute that the dataset has not; there are: {', '.join(sorted(there))}"
        for rule in rules
        for name in sorted(_read(rule) - there)
    ]


def _read(rule: Rule) -> set[str]:
    """Attributes of items that a rule reads."""
    read = set(compile_filter(rule.items).names) if rule.items is not None else set()
    return read | {rule.attribute} if rule.attribute is not None else read


def _shown(answer: Answer) -> dict[str, Any]:
    body = answer.to_json()
    return {name: body[name] for name in ("recommended_items", "model_version", "served_from", "degraded")}
