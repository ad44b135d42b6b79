"""Every setting as a row, read from the models of `shortlist.settings`: what `shortlist settings` and docs/settings.md show."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel, SecretStr
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from shortlist.settings import ENV_PREFIX, Settings

SECRET = "token"
"""The section that comes from the environment alone."""
_BOUNDS = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
_HEAD = """# Settings

Generated from `shortlist/settings.py` by `shortlist settings --page`: change the text there.

Each can stand in `shortlist.toml` of the working folder (`SHORTLIST_CONFIG` names another file), in the environment, or behind
`--set` of any command. `--set` beats the environment, which beats the file. `serve.port` is, in that order:

```sh
shortlist up --set serve.port=9000
SHORTLIST_SERVE__PORT=9000 shortlist up
printf '[serve]\\nport = 9000\\n' > shortlist.toml && shortlist up
```

An unknown key or a wrong value is refused by its name. `shortlist settings` shows the values that hold here and where each
comes from; a stack that runs keeps those with which it was started.

Secrets come from the environment alone: `[token]` in the file is refused.
"""


@dataclass(frozen=True)
class Row:
    """One setting. `default` is text; `key` has `NAME` where the user gives the name."""

    key: str
    allowed: str
    default: str
    meaning: str

    @property
    def environment(self) -> str:
        """Its variable."""
        return ENV_PREFIX + self.key.upper().replace(".", "__")


def rows() -> list[Row]:
    """All settings, in the order of the models."""
    return list(_rows(Settings, ""))


def page() -> str:
    """The Markdown of docs/settings.md."""
    parts, section = [_HEAD], None
    for row in rows():
        name = row.key.partition(".")[0]
        if name != section:
            section = name
            model = Settings.model_fields[name].annotation
            about = (model.__doc__ or "").strip() if isinstance(model, type) and issubclass(model, BaseModel) else ""
            parts.append(f"\n## {name}\n" + (f"\n{about}\n" if about else ""))
            parts.append("\n| setting, variable | allowed | default | meaning |\n|---|---|---|---|\n")
        shown = f"`{row.environment}`" if name == SECRET else f"`{row.key}` `{row.environment}`"
        cells = (shown, row.allowed, row.default, row.meaning)
        parts.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n")
    return "".join(parts)


def shown_value(value: Any) -> str | int | float | bool | None:
    """A value as it may be shown: no secret, and of a URL neither user, password nor parameters."""
    if isinstance(value, SecretStr):
        return "(hidden)"
    if value is None or isinstance(value, bool | int | float):
        return value
    text = ", ".join(value) if isinstance(value, tuple) else str(value)
    if "://" not in text:
        return text
    return re.sub(r"\?.*", "?***", re.sub(r"://.*@", "://***@", text))


def _rows(model: type[BaseModel], before: str) -> Iterator[Row]:
    for name, field in model.model_fields.items():
        key = before + name
        inner, named = _model_within(field.annotation)
        if inner is None or named or before.count("."):  # a section itself is the page's heading
            yield Row(key, _allowed(field), _default(field), " ".join((field.description or "").split()))
        if inner is not None:
            yield from _rows(inner, f"{key}.NAME." if named else f"{key}.")


def _model_within(annotation: Any) -> tuple[type[BaseModel] | None, bool]:
    """The model whose fields a setting has, and whether under names that the user gives."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation, False
    named = get_origin(annotation) is dict
    found = [one for one in get_args(annotation) if isinstance(one, type) and issubclass(one, BaseModel)]
    return (found[0] if found else None), named


def _allowed(field: FieldInfo) -> str:
    kinds = [one for one in get_args(field.annotation) if one is not type(None)] or [field.annotation]
    if get_origin(field.annotation) is Literal:
        return ", ".join(f"`{one}`" for one in get_args(field.annotation))
    if _model_within(field.annotation)[0] is not None:
        return "table"
    if get_origin(field.annotation) is tuple or get_origin(kinds[0]) is tuple:
        return "list of texts"
    names = {bool: "true, false", int: "integer", float: "number", SecretStr: "secret"}
    bounds = [
        f"{words} {getattr(bound, attribute):,}"
        for bound in field.metadata
        for attribute, words in _BOUNDS.items()
        if hasattr(bound, attribute)
    ]
    return ", ".join([names.get(kinds[0], "text"), *bounds])


def _default(field: FieldInfo) -> str:
    default = field.default
    if default is PydanticUndefined or default is None or default == ():
        return "none"
    return f"`{str(default).lower()}`" if isinstance(default, bool) else f"`{default}`"
