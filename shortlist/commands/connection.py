"""How commands reach a running server: its address and the admin token, and refusals as one line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from shortlist.commands import console
from shortlist.stack.secrets import kept_secret
from shortlist.stack.state import running_stack

if TYPE_CHECKING:
    from shortlist.client import Client

UrlOption = Annotated[
    str | None, typer.Option("--url", help="Address of the server; the running stack of this home when left out.", metavar="URL")
]


@contextmanager
def connected(url: str | None = None) -> Iterator[Client]:
    """A client with the admin token; a refusal of the server ends the command with its message.

    Raises:
        CommandError: no stack runs and no address was given, or the server refused.
    """
    from shortlist.client import ApiError, Client

    settings = console.settings()
    home = settings.home.absolute()
    stack = running_stack(home)
    address = url or (stack.base_url if stack else None)
    if address is None:
        raise console.CommandError(f"no stack is running in {settings.home}: start one (shortlist up), or name a server with --url")
    token = settings.token.admin.get_secret_value() if settings.token.admin else None
    if token is None and stack is not None and address == stack.base_url:
        token = kept_secret(home, "admin-token")
    if token is None:
        raise console.CommandError(f"{address} wants the admin token: set SHORTLIST_TOKEN__ADMIN")
    with Client(address, token=token) as client:
        try:
            yield client
        except ApiError as error:
            raise console.CommandError(error.message) from error
