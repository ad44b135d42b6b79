"""Which column of a file means what: canonical names, their aliases, and the user's own `--map canonical=column`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from features.errors import ImportFormatError

INTERACTION_ALIASES: dict[str, Sequence[str]] = {
    "user_id": [
        "userid",
        "user",
        "uid",
        "customerid",
        "customer",
        "clientid",
        "client",
        "visitorid",
        "visitor",
        "memberid",
        "member",
        "accountid",
        "account",
        "reviewerid",
        "reviewer",
        "personid",
        "profileid",
        "buyerid",
        "msno",
    ],
    "session_id": ["sessionid", "session"],
    "item_id": [
        "itemid",
        "item",
        "iid",
        "movieid",
        "movie",
        "productid",
        "product",
        "parentasin",
        "asin",
        "articleid",
        "article",
        "trackid",
        "track",
        "songid",
        "song",
        "bookid",
        "book",
        "isbn",
        "sku",
        "artistid",
        "artist",
        "videoid",
        "video",
        "newsid",
        "contentid",
        "content",
        "businessid",
        "gameid",
        "game",
        "appid",
        "recipeid",
    ],
    "timestamp": [
        "timestamp",
        "time",
        "ts",
        "datetime",
        "date",
        "eventtime",
        "eventtimestamp",
        "eventdate",
        "createdat",
        "unixreviewtime",
        "unixtime",
        "reviewtime",
        "timestampms",
        "ratedat",
        "purchasedate",
        "orderdate",
        "tdat",
        "visitedat",
        "epoch",
    ],
    "value": [
        "value",
        "rating",
        "score",
        "stars",
        "star",
        "overall",
        "ratingvalue",
        "preference",
        "amount",
        "weight",
        "plays",
        "playcount",
        "count",
        "quantity",
    ],
    "action": [
        "action",
        "event",
        "eventtype",
        "eventname",
        "behavior",
        "behaviour",
        "behaviortype",
        "activity",
        "activitytype",
        "interactiontype",
    ],
    "position": ["position", "historyposition"],
    "split": ["split"],
    "timestamp_imputed": ["timestampimputed"],
    "event_id": ["eventid"],
    "recommendation_id": ["recommendationid"],
    "slate_position": ["slateposition"],
    "context": ["context"],
}
"""Canonical interaction column -> names that mean it, best first, without case and punctuation."""

ITEM_ALIASES: dict[str, Sequence[str]] = {
    "item_id": INTERACTION_ALIASES["item_id"],
    "title": ["title", "itemtitle", "movietitle", "producttitle", "productname", "itemname", "name"],
    "categories": ["categories", "category", "genres", "genre", "class"],
    "tags": ["tags", "tag"],
    "regions": ["regions", "region"],
    "languages": ["languages", "language"],
    "available": ["available", "isavailable", "instock"],
    "price": ["price"],
    "created_at": ["createdat"],
    "year": ["year", "releaseyear"],
}
ID_NAMES = frozenset(plain for name in ("user_id", "item_id") for plain in INTERACTION_ALIASES[name])
"""Plain names that mean a user or an item, as a header has one of them."""

FOLDER = (
    "A folder has interactions.csv (who did what; or .parquet) and beside it, where there are any, items.csv and users.csv. "
    "Items alone go to POST /v1/items"
)
"""What an import expects, for who gave it the catalogue alone."""

USER_ALIASES: dict[str, Sequence[str]] = {"user_id": INTERACTION_ALIASES["user_id"]}

# RecBole's atomic files say the type after the name: `user_id:token`.
_TYPE_SUFFIX = re.compile(r":(token|float)(_seq)?$")
_PUNCTUATION = re.compile(r"[^a-z0-9]")


def plain_name(column: str) -> str:
    """A column's name for comparison: without case, punctuation and RecBole's type suffix."""
    return _PUNCTUATION.sub("", _TYPE_SUFFIX.sub("", column).lower())


def twice(names: Iterable[str]) -> str | None:
    """The first name that has occurred before; None where none has."""
    seen: set[str] = set()
    for name in names:
        if name in seen:
            return name
        seen.add(name)
    return None


def choose_columns(
    columns: Iterable[str],
    aliases: Mapping[str, Iterable[str]],
    *,
    required: Iterable[tuple[str, ...]],
    mapping: Mapping[str, str],
    what: str,
    hint: str = "",
) -> dict[str, str]:
    """The file's column of each canonical name that it has.

    The user's mapping wins, then a column of exactly the canonical name, then aliases in their order. A column means one thing.

    Args:
        columns: the file's columns.
        aliases: canonical name -> plain names.
        required: groups of canonical names; of each group one must be found.
        mapping: canonical name -> column, from the user.
        what: how to call the file in an error.
        hint: further sentence of the error of a required column that is missing.

    Raises:
        ImportFormatError: two columns have the same name, a mapped column or canonical name does not exist, or a required column
            cannot be found.
    """
    present = list(columns)
    if (repeated := twice(present)) is not None:
        raise ImportFormatError(f"{what} has two columns {repeated!r}: rename one")
    chosen: dict[str, str] = {}
    for canonical, column in mapping.items():
        if column not in present:
            raise ImportFormatError(
                f"{what} has no column {column!r} (from --map {canonical}={column}); it has: {listed_columns(present)}"
            )
        chosen[canonical] = column
    used = set(chosen.values())
    for canonical in aliases:
        if canonical not in chosen and canonical in present and canonical not in used:
            chosen[canonical] = canonical
            used.add(canonical)
    for canonical, names in aliases.items():
        if canonical in chosen:
            continue
        for name in names:
            found = next((column for column in present if column not in used and plain_name(column) == name), None)
            if found is not None:
                chosen[canonical] = found
                used.add(found)
                break
    for group in required:
        if not any(name in chosen for name in group):
            raise ImportFormatError(
                f"{what} has no column that looks like {' or '.join(group)}; it has: {listed_columns(present)}. "
                f"Name it with --map {group[0]}=COLUMN" + (f". {hint}" if hint else "")
            )
    return chosen


def check_mapping(mapping: Mapping[str, str]) -> None:
    """Refuse a `--map` of a name that does not exist.

    Raises:
        ImportFormatError: with the names that do.
    """
    known = {*INTERACTION_ALIASES, *ITEM_ALIASES}
    for canonical in mapping:
        if canonical not in known:
            raise ImportFormatError(
                f"--map {canonical}=...: unknown canonical column {canonical!r}; known: {', '.join(sorted(known))}"
            )


def listed_columns(columns: Iterable[str]) -> str:
    """Names of columns for a message, the first dozen."""
    names = list(columns)
    shown = ", ".join(repr(name) for name in names[:12])
    return shown + (f" and {len(names) - 12} more" if len(names) > 12 else "")
