"""Tokens of filter expressions, and errors that point at a place in them. What tokens mean is `filters`'.

Source of the syntax: Common Expression Language specification, github.com/google/cel-spec.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from serving.errors import FilterError

_TOKEN = re.compile(
    r"""\s*(?:
        (?P<number>-?(?:\d+\.\d*|\.\d+|\d+)(?:[eE][+-]?\d+)?)
      | (?P<text>"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')
      | (?P<name>[A-Za-z_][A-Za-z0-9_]*)
      | (?P<operator>&&|\|\||==|!=|<=|>=|[<>!()\[\],.])
    )""",
    re.VERBOSE,
)
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r"}


@dataclass(frozen=True)
class Token:
    """A number, text, name, operator, or the end. `position` counts characters from 0."""

    kind: str
    text: str
    position: int


def tokens_of(expression: str) -> list[Token]:
    """All tokens, the last one being the end.

    Raises:
        FilterError: a character that starts no token, or text that does not end.
    """
    tokens: list[Token] = []
    position = 0
    while True:
        found = _TOKEN.match(expression, position)
        if found is None:
            rest = expression[position:].lstrip()
            if not rest:
                return [*tokens, Token("end", "", len(expression))]
            at = len(expression) - len(rest)
            raise error_at(expression, at, "unfinished text" if rest[0] in "\"'" else f"unexpected {rest[0]!r}")
        kind = str(found.lastgroup)
        tokens.append(Token(kind, found.group(kind), found.start(kind)))
        position = found.end()


def text_of(token: Token) -> str:
    """What a quoted text says."""
    return re.sub(r"\\(.)", lambda found: _ESCAPES.get(found.group(1), found.group(1)), token.text[1:-1])


def error_at(expression: str, position: int, what: str) -> FilterError:
    """An error whose message quotes the place."""
    near = expression[max(0, position - 15) : position] + "»" + expression[position : position + 15]
    return FilterError(f"filter, at character {position + 1}: {what} (near {near!r})", position=position)
