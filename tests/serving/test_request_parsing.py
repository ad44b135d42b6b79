"""Requests out of query strings and bodies: both say the same, wrong values name their field, cursors keep what was shown."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.errors import RequestError
from serving.page_cursor import MAX_SHOWN, decode_cursor, encode_cursor
from serving.request_parsing import parse_body, parse_browse, parse_get


def test_query_strings_and_bodies_say_the_same_of_what_was_met() -> None:
    pairs = [
        (b"", {}),
        (b"exclude_seen=false", {"exclude_seen": False}),
        (b"exclude_seen=1", {"exclude_seen": True}),
        (b"exclude_seen=purchase", {"exclude_seen": "purchase"}),
        (b"exclude_seen=purchase,like", {"exclude_seen": ["like", "purchase"]}),
        (b"exclude_seen=purchase&exclude_seen=like", {"exclude_seen": {"actions": ["like", "purchase"]}}),
        (b"exclude_seen=view&exclude_seen_max_age_days=7", {"exclude_seen": {"actions": ["view"], "max_age_days": 7}}),
        (b"exclude_seen_max_age_days=7.5", {"exclude_seen": {"max_age_days": 7.5}}),
    ]
    for query, body in pairs:
        assert parse_get("u", query).seen == parse_body(body).seen, query
    for wrong in (b"exclude_seen=", b"exclude_seen=true,view", b"exclude_seen_max_age_days=x", b"exclude_seen=View"):
        with pytest.raises(RequestError) as refused:
            parse_get("u", wrong)
        assert refused.value.field == "exclude_seen"


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ([], None),
        ({"user": 1}, "user"),
        ({"top_k": "5"}, "top_k"),
        ({"top_k": True}, "top_k"),
        ({"top_k": 0}, "top_k"),
        ({"context": []}, "context"),
        ({"exclude_seen": 1}, "exclude_seen"),
        ({"exclude_seen": "stolen"}, "exclude_seen"),
        ({"exclude_seen": []}, "exclude_seen"),
        ({"exclude_seen": {"actions": ["purchase", 1]}}, "exclude_seen"),
        ({"exclude_seen": {"actions": {}}}, "exclude_seen"),
        ({"exclude_seen": {"max_age_days": 0}}, "exclude_seen"),
        ({"exclude_seen": {"max_age_days": "9"}}, "exclude_seen"),
        ({"exclude_seen": {"max_age_days": float("nan")}}, "exclude_seen"),
        ({"exclude_seen": {"days": 9}}, "exclude_seen"),
        ({"recent_items": "a"}, "recent_items"),
        ({"recent_items": [True]}, "recent_items"),
        ({"recent_items": ["a"] * 201}, "recent_items"),
        ({"candidates": ["a"] * 1001}, "candidates"),
        ({"filter": ["a"]}, "filter"),
        ({"category": [1]}, "category"),
        ({"category": ["a", "b" * 513]}, "category"),
        ({"language": "b" * 513}, "language"),
        ({"fields": [f"f{n}" for n in range(33)]}, "fields"),
        ({"boost": [{"filter": "year >", "weight": 1}]}, "boost"),
        ({"diversity": 2}, "diversity"),
        ({"diversity": True}, "diversity"),
        ({"diversity": 10**400}, "diversity"),
        ({"fields": ["title", "score"]}, "fields"),
        ({"fields": "source"}, "fields"),
        ({"user_id": ""}, "user_id"),
        ({"user_id": "a\0b"}, "user_id"),
        ({"session_id": "\0"}, "session_id"),
        ({"user_id": 1.5}, "user_id"),
    ],
)
def test_bad_bodies_name_the_field(body: object, field: str | None) -> None:
    with pytest.raises(RequestError) as caught:
        parse_body(body)
    assert caught.value.field == field


def test_query_and_body_mean_the_same() -> None:
    query = b"top_k=7&region=de%2Cfr&category=A%2C+B&fields=title,year&exclude_seen=no"
    body = {
        "user_id": "u",
        "top_k": 7,
        "region": ["de", "fr"],
        "category": "A, B",
        "fields": ["title", "year"],
        "exclude_seen": False,
    }
    assert parse_get("u", query) == parse_body(body)
    with pytest.raises(RequestError):
        parse_get("u", b"top_k=1&top_k=2")


@pytest.mark.parametrize(
    ("query", "field", "given"),
    [
        ("top_k=1_0", "top_k", "'1_0'"),
        ("top_k=%20%205", "top_k", "'  5'"),
        ("top_k=%D9%A3", "top_k", "'٣'"),
        ("top_k=%2B5", "top_k", "'+5'"),
        ("diversity=0_1", "diversity", "'0_1'"),
        ("diversity=%200.3", "diversity", "' 0.3'"),
        ("exclude_seen=false&exclude_seen_max_age_days=abc", "exclude_seen", "at most 36500 days"),
        ("exclude_seen_max_age_days=1_0", "exclude_seen", "at most 36500 days"),
        ("exclude_seen=", "exclude_seen", "got ''"),
        ("exclude_seen=view,", "exclude_seen", "got ''"),
    ],
)
def test_a_value_that_is_none_is_refused_as_it_was_given(query: str, field: str, given: str) -> None:
    with pytest.raises(RequestError) as caught:
        parse_get("u", query.encode())
    assert caught.value.field == field
    assert given in str(caught.value)


def test_spaces_around_words_do_not_count() -> None:
    request = parse_get("u", b"region=DE,%20FR%20&language=%20de,,&fields=title,%20year")
    assert (request.selection.region, request.selection.language, request.fields) == (("DE", "FR"), ("de",), ("title", "year"))
    assert parse_get("u", b"diversity=.5&exclude_seen=no&exclude_seen_max_age_days=7").diversity == 0.5


@pytest.mark.parametrize("name", ["score", "source", "reason", "contributions"])
def test_fields_cannot_take_the_place_of_what_the_answer_says_itself(name: str) -> None:
    for parse in (lambda query: parse_get("u", query), parse_browse):
        with pytest.raises(RequestError, match=name) as caught:
            parse(f"fields=title,{name}".encode())
        assert caught.value.field == "fields"
        parse(b"fields=item_id,scores")


@pytest.mark.parametrize("cursor", ["x", "AAAA", "é", "A" * 7000, "AQAAAAAAAAAA", "AQAAAAA=A"])
def test_a_damaged_cursor_is_refused(cursor: str) -> None:
    with pytest.raises(RequestError) as caught:
        decode_cursor(cursor)
    assert caught.value.field == "cursor"


@given(st.lists(st.integers(0, 2**32 - 1), max_size=MAX_SHOWN + 1))
def test_a_cursor_keeps_what_was_shown_up_to_its_bound(hashes: list[int]) -> None:
    cursor = encode_cursor(np.array(hashes, np.uint32))
    assert (cursor is None) == (len(hashes) > MAX_SHOWN)
    if cursor is not None:
        assert decode_cursor(cursor).tolist() == hashes
        assert len(cursor) < 5400
