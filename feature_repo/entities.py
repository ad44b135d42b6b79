"""The two entities that features are about."""

from __future__ import annotations

from feast import Entity, ValueType

OWNER = "shortlist"
"""Owner of every object of this repository."""


def user_entity() -> Entity:
    """A person, by the outside id."""
    return Entity(
        name="user", join_keys=["user_id"], value_type=ValueType.STRING, description="A user, by the outside id.", owner=OWNER
    )


def item_entity() -> Entity:
    """A catalogue item, by the outside id."""
    return Entity(
        name="item", join_keys=["item_id"], value_type=ValueType.STRING, description="An item, by the outside id.", owner=OWNER
    )
