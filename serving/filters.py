"""Filters: a boolean expression in CEL syntax over item attributes, compiled once to a column mask.

`"Comedy" in categories && year >= 1990 && available` becomes a handful of numpy operations over columns. The subset: comparison,
`in`, `&&`, `||`, `!`, parentheses, `startsWith`, `endsWith`, `contains`, `size`; literals are text, numbers, `true`, `false` and
lists of them. An absent `available` reads true; absent or empty `regions` and `languages` mean everywhere; any other missing
attribute compares false, whatever the operator. Integers and doubles compare. A category path `A > B > C` matches as itself and as
each part. Times compare with ISO 8601 text.

Source of the syntax: Common Expression Language specification, github.com/google/cel-spec.

Legend: `N` items, `V` words of a column's vocabulary.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from features.errors import EventError
from features.events import parse_timestamp
from serving.columns import BoolColumn, Column, ListColumn, NumberColumn, TextColumn, words_equal
from serving.errors import FilterError
from training.interactions import BoolArray

MAX_LENGTH = 4096
MAX_DEPTH = 64
EVERYWHERE = frozenset({"regions", "languages"})
"""List attributes that mean everywhere when absent or empty."""
PATHS = frozenset({"categories"})
"""List attributes whose words are paths that match by part."""

_TOKEN = re.compile(
    r"""\s*(?:
        (?P<number>-?(?:\d+\.\d*|\.\d+|\d+)(?:[eE][+-]?\d+)?)
      | (?P<text>"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')
      | (?P<name>[A-Za-z_][A-Za-z0-9_]*)
      | (?P<operator>&&|\|\||==|!=|<=|>=|[<>!()\[\],.])
    )""",
    re.VERBOSE,
)
_COMPARE: dict[str, Callable[[Any, Any], Any]] = {
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
_MIRROR = {"<": ">", "<=": ">=", ">": "<", ">=": "<=", "==": "==", "!=": "!="}
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r"}

Literal = str | float | int | bool
Mask = Callable[[Mapping[str, Column], int], BoolArray]
"""Columns and N to (N,) bool."""


@dataclass(frozen=True)
class Filter:
    """A compiled expression."""

    expression: str
    mask: Mask


@dataclass(frozen=True)
class _Token:
    kind: str
    text: str
    position: int


@dataclass(frozen=True)
class _Attribute:
    name: str
    position: int
    size: bool = False


@dataclass(frozen=True)
class _Constant:
    value: Literal | tuple[Literal, ...]
    position: int


@dataclass(frozen=True)
class _Condition:
    mask: Mask
    position: int


_Node = _Attribute | _Constant | _Condition


def compile_filter(expression: str) -> Filter:
    """Parse an expression.

    Raises:
        FilterError: the syntax is wrong or a construct is not supported; position and message point at the place.
    """
    if len(expression) > MAX_LENGTH:
        raise FilterError(f"filter has {len(expression)} characters, {MAX_LENGTH} are allowed", position=MAX_LENGTH)
    parser = _Parser(expression, _tokens(expression))
    return Filter(expression, parser.whole())


def _tokens(expression: str) -> list[_Token]:
    tokens: list[_Token] = []
    position = 0
    while True:
        found = _TOKEN.match(expression, position)
        if found is None:
            rest = expression[position:].lstrip()
            if not rest:
                return [*tokens, _Token("end", "", len(expression))]
            at = len(expression) - len(rest)
            what = "unfinished text" if rest[0] in "\"'" else f"unexpected {rest[0]!r}"
            raise FilterError(_point(expression, at, what), position=at)
        kind = str(found.lastgroup)
        tokens.append(_Token(kind, found.group(kind), found.start(kind)))
        position = found.end()


class _Parser:
    def __init__(self, expression: str, tokens: list[_Token]) -> None:
        self._expression, self._tokens, self._next, self._depth = expression, tokens, 0, 0

    def whole(self) -> Mask:
        node = self._or()
        if self._peek().kind != "end":
            raise self._error(self._peek(), f"unexpected {self._peek().text!r}")
        return self._truth(node)

    def _or(self) -> _Node:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise self._error(self._peek(), f"nested deeper than {MAX_DEPTH}")
        left = self._and()
        while self._take("||"):
            one, other = self._truth(left), self._truth(self._and())
            left = _Condition(_both(np.logical_or, one, other), left.position)
        self._depth -= 1
        return left

    def _and(self) -> _Node:
        left = self._relation()
        while self._take("&&"):
            one, other = self._truth(left), self._truth(self._relation())
            left = _Condition(_both(np.logical_and, one, other), left.position)
        return left

    def _relation(self) -> _Node:
        left = self._unary()
        token = self._peek()
        if token.text in _COMPARE and token.kind == "operator":
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
            if name.kind != "name" or not isinstance(node, _Attribute) or node.size:
                raise self._error(name, "a method of an attribute was expected")
            self._expect("(")
            if name.text == "size":
                self._expect(")")
                return _Attribute(node.name, node.position, size=True)
            argument = self._or()
            self._expect(")")
            if not isinstance(argument, _Constant) or not isinstance(argument.value, str):
                raise self._error(name, f"{name.text} takes one text")
            node = _Condition(self._text_method(name, node.name, argument.value), node.position)
        return node

    def _primary(self) -> _Node:
        token = self._advance()
        if token.kind == "number":
            is_integer = re.fullmatch(r"-?\d+", token.text) is not None
            if is_integer and len(token.text) > 19:
                raise self._error(token, f"number {token.text} is too large")
            return _Constant(int(token.text) if is_integer else float(token.text), token.position)
        if token.kind == "text":
            return _Constant(_unescape(token.text[1:-1]), token.position)
        if token.text == "(":
            node = self._or()
            self._expect(")")
            return node
        if token.text == "[":
            return self._list(token)
        if token.kind == "name":
            if token.text in {"true", "false"}:
                return _Constant(token.text == "true", token.position)
            if token.text == "size" and self._take("("):
                attribute = self._or()
                self._expect(")")
                if not isinstance(attribute, _Attribute) or attribute.size:
                    raise self._error(token, "size takes an attribute")
                return _Attribute(attribute.name, token.position, size=True)
            if token.text in {"in", "null"} or self._peek().text == "(":
                raise self._error(token, f"{token.text!r} is not supported")
            return _Attribute(token.text, token.position)
        raise self._error(token, "the expression ends too early" if token.kind == "end" else f"unexpected {token.text!r}")

    def _list(self, start: _Token) -> _Node:
        values: list[Literal] = []
        while not self._take("]"):
            if values:
                self._expect(",")
            item = self._primary()
            if not isinstance(item, _Constant) or isinstance(item.value, tuple):
                raise self._error(start, "a list holds text, numbers, true or false")
            values.append(item.value)
        return _Constant(tuple(values), start.position)

    def _truth(self, node: _Node) -> Mask:
        if isinstance(node, _Condition):
            return node.mask
        if isinstance(node, _Constant):
            if not isinstance(node.value, bool):
                raise FilterError(_point(self._expression, node.position, "a condition was expected"), position=node.position)
            value = node.value
            return lambda columns, n: np.full(n, value, dtype=bool)
        if node.size:
            raise FilterError(_point(self._expression, node.position, "size gives a number: compare it"), position=node.position)
        return self._compare_constant(node, "==", True)

    def _compare(self, token: _Token, left: _Node, right: _Node) -> _Node:
        if isinstance(left, _Constant) and isinstance(right, _Attribute):
            return _Condition(self._compare_constant(right, _MIRROR[token.text], left.value), left.position)
        if isinstance(left, _Attribute) and isinstance(right, _Constant):
            return _Condition(self._compare_constant(left, token.text, right.value), left.position)
        raise self._error(token, "compare an attribute with a text, a number, true or false")

    def _compare_constant(self, node: _Attribute, symbol: str, value: Literal | tuple[Literal, ...]) -> Mask:
        def mask(columns: Mapping[str, Column], n: int) -> BoolArray:
            column = columns.get(node.name)
            if node.size:
                return self._compare_size(node, column, symbol, value, n)
            if column is None:
                return _absent(node.name, symbol, value, n)
            if isinstance(value, tuple) or isinstance(column, ListColumn):
                raise self._type_error(node, "is a list: use in, or size" if isinstance(column, ListColumn) else "is not a list")
            if isinstance(column, BoolColumn):
                if not isinstance(value, bool) or symbol not in {"==", "!="}:
                    raise self._type_error(node, "is true or false")
                present = np.ones(n, dtype=bool) if node.name == "available" else ~column.missing
                values = np.where(column.missing, True, column.values) if node.name == "available" else column.values
                return present & _COMPARE[symbol](values, value)
            if isinstance(column, NumberColumn):
                return ~column.missing & _COMPARE[symbol](column.values, self._number(node, column, value))
            if not isinstance(value, str):
                raise self._type_error(node, "is text")
            words = np.fromiter((_COMPARE[symbol](word, value) for word in column.vocabulary), bool, len(column.vocabulary))
            return column.where(words)

        return mask

    def _compare_size(
        self, node: _Attribute, column: Column | None, symbol: str, value: Literal | tuple[Literal, ...], n: int
    ) -> BoolArray:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self._type_error(node, "has a size, which is a number")
        if column is None:
            return np.zeros(n, dtype=bool)
        if isinstance(column, ListColumn):
            return np.asarray(_COMPARE[symbol](column.sizes, value), dtype=bool)
        if isinstance(column, TextColumn):
            words = np.fromiter((_COMPARE[symbol](len(word), value) for word in column.vocabulary), bool, len(column.vocabulary))
            return column.where(words)
        raise self._type_error(node, "has no size")

    def _contained(self, token: _Token, left: _Node, right: _Node) -> _Node:
        if isinstance(left, _Constant) and isinstance(left.value, str) and isinstance(right, _Attribute) and not right.size:
            return _Condition(self._word_in(right, left.value), left.position)
        if isinstance(left, _Attribute) and not left.size and isinstance(right, _Constant) and isinstance(right.value, tuple):
            masks = [self._compare_constant(left, "==", value) for value in right.value]
            return _Condition(
                lambda columns, n: np.logical_or.reduce([np.zeros(n, dtype=bool), *(one(columns, n) for one in masks)]),
                left.position,
            )
        raise self._error(token, 'in takes "word" in attribute, or attribute in [...]')

    def _word_in(self, node: _Attribute, word: str) -> Mask:
        def mask(columns: Mapping[str, Column], n: int) -> BoolArray:
            column = columns.get(node.name)
            if column is None:
                return np.full(n, node.name in EVERYWHERE, dtype=bool)
            if isinstance(column, TextColumn):
                return column.where(words_equal(column.vocabulary, word))
            if not isinstance(column, ListColumn):
                raise self._type_error(node, "is not a list")
            found = column.where_any(words_equal(column.vocabulary, word, paths=node.name in PATHS))
            return found | (column.sizes == 0) if node.name in EVERYWHERE else found

        return mask

    def _text_method(self, method: _Token, name: str, text: str) -> Mask:
        tests: dict[str, Callable[[str], bool]] = {
            "startsWith": lambda word: word.startswith(text),
            "endsWith": lambda word: word.endswith(text),
            "contains": lambda word: text in word,
        }
        if method.text not in tests:
            raise self._error(method, f"unknown method {method.text!r}; known: startsWith, endsWith, contains, size")
        test = tests[method.text]

        def mask(columns: Mapping[str, Column], n: int) -> BoolArray:
            column = columns.get(name)
            if column is None:
                return np.zeros(n, dtype=bool)
            if isinstance(column, TextColumn | ListColumn):
                words = np.fromiter(map(test, column.vocabulary), dtype=bool, count=len(column.vocabulary))
                return column.where(words) if isinstance(column, TextColumn) else column.where_any(words)
            raise self._type_error(_Attribute(name, method.position), "is not text")

        return mask

    def _number(self, node: _Attribute, column: NumberColumn, value: Literal) -> float | int:
        if column.is_time and isinstance(value, str):
            try:
                moment = parse_timestamp(value)
            except EventError:
                moment = None
            if moment is None:
                raise self._type_error(node, f"is a time; {value!r} is not ISO 8601")
            return round(moment.timestamp() * 1e6)
        if isinstance(value, bool | str) or column.is_time:
            raise self._type_error(node, "is a time: compare it with ISO 8601 text" if column.is_time else "is a number")
        return value

    def _type_error(self, node: _Attribute, what: str) -> FilterError:
        return FilterError(_point(self._expression, node.position, f"{node.name} {what}"), position=node.position)

    def _peek(self) -> _Token:
        return self._tokens[self._next]

    def _advance(self) -> _Token:
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

    def _error(self, token: _Token, what: str) -> FilterError:
        return FilterError(_point(self._expression, token.position, what), position=token.position)


def _absent(name: str, symbol: str, value: Literal | tuple[Literal, ...], n: int) -> BoolArray:
    if name == "available" and isinstance(value, bool):
        return np.full(n, bool(_COMPARE[symbol](True, value)), dtype=bool)
    return np.zeros(n, dtype=bool)


def _both(join: Callable[[BoolArray, BoolArray], npt.NDArray[np.bool_]], one: Mask, other: Mask) -> Mask:
    return lambda columns, n: join(one(columns, n), other(columns, n))


def _unescape(text: str) -> str:
    return re.sub(r"\\(.)", lambda found: _ESCAPES.get(found.group(1), found.group(1)), text)


def _point(expression: str, position: int, what: str) -> str:
    near = expression[max(0, position - 15) : position] + "»" + expression[position : position + 15]
    return f"filter, at character {position + 1}: {what} (near {near!r})"
