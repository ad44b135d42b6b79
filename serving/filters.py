"""Filters: a boolean expression in CEL syntax over item attributes, compiled once to a column mask.

`"Comedy" in categories && year >= 1990 && available` becomes a handful of numpy operations over columns. The subset: comparison,
`in`, `&&`, `||`, `!`, parentheses, `startsWith`, `endsWith`, `contains`, `size`; literals are text, numbers, `true`, `false` and
lists of them. Integers and doubles compare. A category path `A > B > C` matches as itself and as each part. Times compare with
ISO 8601 text, `item_id` with ids. Integers are of 64 bits; text has CEL's escapes. What each condition means for a column is
`filter_masks`'.

Source of the syntax: Common Expression Language specification, github.com/google/cel-spec.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, reduce

import numpy as np
import numpy.typing as npt

from serving.errors import FilterError
from serving.filter_masks import COMPARE, TEXT_METHODS, Attribute, Literal, Mask, compared, has_word, one_of, text_matches
from serving.filter_syntax import Token, error_at, text_of, tokens_of
from training.interactions import BoolArray

MAX_LENGTH = 4096
MAX_DEPTH = 64
CACHED_FILTERS = 512
_INT64 = range(-(2**63), 2**63)
_LIST_HOLDS = "a list holds text, numbers, true or false"
_MIRROR = {"<": ">", "<=": ">=", ">": "<", ">=": "<=", "==": "==", "!=": "!="}


@dataclass(frozen=True)
class Filter:
    """A compiled expression and the names of the attributes that it reads."""

    expression: str
    mask: Mask
    names: frozenset[str]


@dataclass(frozen=True)
class _Constant:
    value: Literal | tuple[Literal, ...]
    position: int


@dataclass(frozen=True)
class _Condition:
    mask: Mask
    position: int


_Node = Attribute | _Constant | _Condition


@lru_cache(maxsize=CACHED_FILTERS)
def compile_filter(expression: str) -> Filter:
    """Parse an expression.

    Raises:
        FilterError: the syntax is wrong or a construct is not supported; position and message point at the place.
    """
    if len(expression) > MAX_LENGTH:
        raise FilterError(f"filter has {len(expression)} characters, {MAX_LENGTH} are allowed", position=MAX_LENGTH)
    return _Parser(expression, tokens_of(expression)).whole()


class _Parser:
    def __init__(self, expression: str, tokens: list[Token]) -> None:
        self._expression, self._tokens, self._next, self._depth = expression, tokens, 0, 0
        self._names: set[str] = set()

    def whole(self) -> Filter:
        node = self._or()
        if self._peek().kind != "end":
            raise self._error(self._peek(), f"unexpected {self._peek().text!r}")
        return Filter(self._expression, self._truth(node), frozenset(self._names))

    def _or(self) -> _Node:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise self._error(self._peek(), f"nested deeper than {MAX_DEPTH}")
        first, masks = self._and(), list[Mask]()
        while self._take("||"):
            masks = masks or [self._truth(first)]
            masks.append(self._truth(self._and()))
        self._depth -= 1
        return _Condition(_joined(np.logical_or, masks), first.position) if masks else first

    def _and(self) -> _Node:
        first, masks = self._relation(), list[Mask]()
        while self._take("&&"):
            masks = masks or [self._truth(first)]
            masks.append(self._truth(self._relation()))
        return _Condition(_joined(np.logical_and, masks), first.position) if masks else first

    def _relation(self) -> _Node:
        left = self._unary()
        token = self._peek()
        if token.text in COMPARE and token.kind == "operator":
            self._next += 1
            return self._compare(token, left, self._unary())
        if token.kind == "name" and token.text == "in":
            self._next += 1
            return self._contained(token, left, self._unary())
        return left

    def _unary(self) -> _Node:
        token = self._peek()
        if self._take("!"):
            self._depth += 1
            if self._depth > MAX_DEPTH:
                raise self._error(token, f"nested deeper than {MAX_DEPTH}")
            inner = self._truth(self._unary())
            self._depth -= 1
            return _Condition(lambda columns, n: ~inner(columns, n), token.position)
        return self._member(self._primary())

    def _member(self, node: _Node) -> _Node:
        while self._take("."):
            name = self._advance()
            if name.kind != "name" or not isinstance(node, Attribute) or node.size:
                raise self._error(name, "a method of an attribute was expected")
            self._expect("(")
            if name.text == "size":
                self._expect(")")
                return replace(node, size=True)
            argument = self._or()
            self._expect(")")
            if not isinstance(argument, _Constant) or not isinstance(argument.value, str):
                raise self._error(name, f"{name.text} takes one text")
            if name.text not in TEXT_METHODS:
                raise self._error(name, f"unknown method {name.text!r}; known: {', '.join(TEXT_METHODS)}, size")
            node = _Condition(text_matches(node, name.text, argument.value), node.position)
        return node

    def _primary(self) -> _Node:
        token = self._advance()
        if token.kind == "number":
            if re.fullmatch(r"-?\d+", token.text) is None:
                return _Constant(float(token.text), token.position)
            if int(token.text) not in _INT64:
                raise self._error(token, f"an integer of 64 bits was expected, {token.text[:24]} is beyond")
            return _Constant(int(token.text), token.position)
        if token.kind == "text":
            return _Constant(text_of(self._expression, token), token.position)
        if token.text == "(":
            node = self._or()
            self._expect(")")
            return node
        if token.text == "[":
            return self._list(token)
        if token.kind == "name":
            return self._named(token)
        raise self._error(token, "the expression ends too early" if token.kind == "end" else f"unexpected {token.text!r}")

    def _named(self, token: Token) -> _Node:
        if token.text in {"true", "false"}:
            return _Constant(token.text == "true", token.position)
        if token.text == "size" and self._take("("):
            attribute = self._or()
            self._expect(")")
            if not isinstance(attribute, Attribute) or attribute.size:
                raise self._error(token, "size takes an attribute")
            return replace(attribute, position=token.position, size=True)
        if token.text in {"in", "null"} or self._peek().text == "(":
            raise self._error(token, f"{token.text!r} is not supported")
        self._names.add(token.text)
        return Attribute(token.text, token.position, self._expression)

    def _list(self, start: Token) -> _Node:
        values: list[Literal] = []
        while not self._take("]"):
            if values:
                self._expect(",")
            if self._peek().kind == "operator" and self._peek().text == "[":
                raise self._error(self._peek(), _LIST_HOLDS)
            item = self._primary()
            if not isinstance(item, _Constant) or isinstance(item.value, tuple):
                raise self._error(start, _LIST_HOLDS)
            values.append(item.value)
        return _Constant(tuple(values), start.position)

    def _truth(self, node: _Node) -> Mask:
        if isinstance(node, _Condition):
            return node.mask
        if isinstance(node, _Constant):
            if not isinstance(node.value, bool):
                raise error_at(self._expression, node.position, "a condition was expected")
            value = node.value
            return lambda columns, n: np.full(n, value, dtype=bool)
        if node.size:
            raise error_at(self._expression, node.position, "size gives a number: compare it")
        return compared(node, "==", True)

    def _compare(self, token: Token, left: _Node, right: _Node) -> _Node:
        if isinstance(left, _Constant) and isinstance(right, Attribute):
            return _Condition(compared(right, _MIRROR[token.text], left.value), left.position)
        if isinstance(left, Attribute) and isinstance(right, _Constant):
            return _Condition(compared(left, token.text, right.value), left.position)
        raise self._error(token, "compare an attribute with a text, a number, true or false")

    def _contained(self, token: Token, left: _Node, right: _Node) -> _Node:
        if isinstance(left, _Constant) and isinstance(left.value, str) and isinstance(right, Attribute) and not right.size:
            return _Condition(has_word(right, left.value), left.position)
        if isinstance(left, Attribute) and not left.size and isinstance(right, _Constant) and isinstance(right.value, tuple):
            return _Condition(one_of(left, right.value), left.position)
        raise self._error(token, 'in takes "word" in attribute, or attribute in [...]')

    def _peek(self) -> Token:
        return self._tokens[self._next]

    def _advance(self) -> Token:
        token = self._tokens[self._next]
        self._next = min(self._next + 1, len(self._tokens) - 1)
        return token

    def _take(self, text: str) -> bool:
        token = self._peek()
        if token.kind == "operator" and token.text == text:
            self._next += 1
            return True
        return False

    def _expect(self, text: str) -> None:
        token = self._peek()
        if not self._take(text):
            raise self._error(token, f"{text!r} was expected")

    def _error(self, token: Token, what: str) -> FilterError:
        return error_at(self._expression, token.position, what)


def _joined(join: Callable[[BoolArray, BoolArray], npt.NDArray[np.bool_]], masks: Sequence[Mask]) -> Mask:
    # All operands of a chain side by side: masks within masks would make an expression's length a depth of calls.
    return lambda columns, n: reduce(join, (mask(columns, n) for mask in masks))
