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
_SPECIAL = re.compile(
    r"""\\(?:
        (?P<sign>[abfnrtv"'`\\?])
      | (?:[xX](?P<x>[0-9a-fA-F]{2}) | u(?P<u>[0-9a-fA-F]{4}) | U(?P<U>[0-9a-fA-F]{8}))
      | (?P<octal>[0-3][0-7]{2})
      | (?P<unknown>.)
    )
      | (?P<half>[\ud800-\udfff])""",
    re.VERBOSE,
)
"""What in a text does not stand for itself: CEL's escapes, and what no text may hold."""
_SIGNS = {"a": "\a", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v"}
_SURROGATES = range(0xD800, 0xE000)
_CHARACTERS = range(0x110000)


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


def text_of(expression: str, token: Token) -> str:
    """What a quoted text says.

    Raises:
        FilterError: an escape that CEL does not have, or one of no character (half of a surrogate pair, or beyond U+10FFFF).
    """

    def character(found: re.Match[str]) -> str:
        kind = str(found.lastgroup)
        written, at = found.group(kind), token.position + 1 + found.start()
        if kind == "sign":
            return _SIGNS.get(written, written)
        if kind == "unknown":
            raise error_at(expression, at, f"unknown escape {found.group()!r}; a backslash itself is \\\\")
        code = ord(written) if kind == "half" else int(written, 8 if kind == "octal" else 16)
        if code in _SURROGATES or code not in _CHARACTERS:
            raise error_at(expression, at, f"{found.group()!r} is no character")
        return chr(code)

    return _SPECIAL.sub(character, token.text[1:-1])


def error_at(expression: str, position: int, what: str) -> FilterError:
    """An error whose message quotes the place."""
    near = expression[max(0, position - 15) : position] + "»" + expression[position : position + 15]
    return FilterError(f"filter, at character {position + 1}: {what} (near {near!r})", position=position)
