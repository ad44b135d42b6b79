"""What owners and operators ask of a Shortlist server: catalogue, rules, models, experiments, audit. All need the admin token.

Each function builds one request, as in `shortlist.client_calls`; reading an item or a profile needs the read token alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from shortlist.client_calls import Call, Id, Json, as_is, given, part


def item(item_id: Id) -> Call[Json]:
    """One item of the catalogue with its attributes. Needs the read token alone."""
    return Call("GET", _item(item_id), as_is)


def put_item(item_id: Id, attributes: Mapping[str, Any]) -> Call[Json]:
    """Create an item, or replace all of its attributes; returns it."""
    return Call("PUT", _item(item_id), as_is, body=dict(attributes))


def patch_item(item_id: Id, changes: Mapping[str, Any]) -> Call[Json]:
    """Change some attributes of an item (None removes one); returns it. `{"available": False}` takes it out of all answers."""
    return Call("PATCH", _item(item_id), as_is, body=dict(changes))


def delete_item(item_id: Id) -> Call[None]:
    """Take an item out of the catalogue and of all answers."""
    return Call("DELETE", _item(item_id), _nothing)


def put_items(items: Sequence[Mapping[str, Any]]) -> Call[Json]:
    """Create or replace up to 1,000 items: objects with `item_id` and attributes.

    Returns:
        `stored`, and `rejected` (`index`, `error`, `field`) for those that are not valid.
    """
    return Call("POST", "/v1/items", as_is, body={"items": [dict(one) for one in items]})


def user(user_id: Id) -> Call[Json]:
    """One user's profile. Needs the read token alone."""
    return Call("GET", _user(user_id), as_is)


def put_user(user_id: Id, attributes: Mapping[str, Any]) -> Call[Json]:
    """Create a user's profile, or replace all of its attributes; returns it."""
    return Call("PUT", _user(user_id), as_is, body=dict(attributes))


def patch_user(user_id: Id, changes: Mapping[str, Any]) -> Call[Json]:
    """Change some attributes of a profile (None removes one); returns it."""
    return Call("PATCH", _user(user_id), as_is, body=dict(changes))


def put_users(users: Sequence[Mapping[str, Any]]) -> Call[Json]:
    """Create or replace up to 1,000 profiles: objects with `user_id` and attributes; returns the same as `put_items`."""
    return Call("POST", "/v1/users", as_is, body={"users": [dict(one) for one in users]})


def erase_user(user_id: Id) -> Call[Json]:
    """Erase a person: profile, activity, features, lists, logs, histories in models. `deleted` says how much of each."""
    return Call("DELETE", _user(user_id), as_is)


def rules() -> Call[list[Json]]:
    """All business rules, in the order in which they are applied."""
    return Call("GET", "/v1/rules", lambda body: list(body["rules"]))


def put_rules(rules: Sequence[Mapping[str, Any]]) -> Call[Json]:
    """Replace all rules; returns them as `rules`, and how many have `changed`."""
    return Call("PUT", "/v1/rules", as_is, body={"rules": [dict(rule) for rule in rules]})


def preview_rules(rules: Sequence[Mapping[str, Any]], request: Mapping[str, Any]) -> Call[Json]:
    """What rules would do to one request (the arguments of `recommend`): lists `before` and `after`, and the `moved` items."""
    return Call("POST", "/v1/rules/preview", as_is, body={"rules": [dict(rule) for rule in rules], "request": dict(request)})


def models() -> Call[Json]:
    """Versions and aliases of the served model: wanted and actual."""
    return Call("GET", "/v1/models", as_is)


def update_model(model_id: str, model_data: Mapping[str, Any]) -> Call[Json]:
    """Change what is served.

    Args:
        model_id: the registered model, `shortlist-<dataset>`.
        model_data: `version` or `alias`, `mode` (promote, canary, shadow, rollback), `traffic` of a canary or shadow.

    Raises:
        TypeError: `model_data` is no mapping.
    """
    if not isinstance(model_data, Mapping):
        raise TypeError(f'model_data must be a mapping such as {{"version": "2", "mode": "promote"}}, got {model_data!r}')
    return Call("PUT", f"/v1/models/{part(model_id, 'model_id')}", as_is, body=dict(model_data))


def set_alias(model_id: str, alias: str, version: str) -> Call[Json]:
    """Point an alias at a version."""
    return Call("PUT", f"/v1/models/{part(model_id, 'model_id')}/aliases/{part(alias, 'alias')}", as_is, body={"version": version})


def audit(at: datetime | None = None, subject: str | None = None, after: int | None = None, limit: int | None = None) -> Call[Json]:
    """The audit log: `entries` after a number, or with `at` the `state` at that time, of subjects that start with `subject`."""
    moment = at.isoformat() if at is not None else None
    return Call("GET", "/v1/audit", as_is, params=given({"at": moment, "subject": subject, "after": after, "limit": limit}))


def rollback(model_id: str, alias: str = "champion") -> Call[Json]:
    """Move an alias back to the version before: with the champion's, that version is served again."""
    return Call("POST", f"/v1/models/{part(model_id, 'model_id')}/rollback", as_is, body={"alias": alias})


def experiments() -> Call[list[Json]]:
    """All experiments with their status."""
    return Call("GET", "/v1/experiments", lambda body: list(body["experiments"]))


def experiment(name: str) -> Call[Json]:
    """One experiment: its file, status, pinned versions and share of traffic."""
    return Call("GET", _experiment(name), as_is)


def put_experiment(name: str, spec: Mapping[str, Any]) -> Call[Json]:
    """Create an experiment, or change it as far as its status allows. `spec` has the fields of an experiment file."""
    return Call("PUT", _experiment(name), as_is, body=dict(spec))


def start_experiment(name: str) -> Call[Json]:
    """Start or resume an experiment; aliases are resolved to versions and pinned."""
    return Call("POST", f"{_experiment(name)}/start", as_is)


def ramp_experiment(name: str, traffic: float | None = None) -> Call[Json]:
    """Raise an experiment's traffic: to a share, or to the next step of its plan."""
    return Call("POST", f"{_experiment(name)}/ramp", as_is, body=given({"traffic": traffic}))


def pause_experiment(name: str) -> Call[Json]:
    """Send an experiment's units back to the champion, to be resumed later."""
    return Call("POST", f"{_experiment(name)}/pause", as_is)


def stop_experiment(name: str) -> Call[Json]:
    """End an experiment for good."""
    return Call("POST", f"{_experiment(name)}/stop", as_is)


def experiment_report(name: str) -> Call[Json]:
    """What the experiment shows so far."""
    return Call("GET", f"{_experiment(name)}/report", as_is)


def _item(item_id: Id) -> str:
    return f"/v1/items/{part(item_id, 'item_id')}"


def _user(user_id: Id) -> str:
    return f"/v1/users/{part(user_id, 'user_id')}"


def _experiment(name: str) -> str:
    return f"/v1/experiments/{part(name, 'name')}"


def _nothing(body: Any) -> None:
    return None
