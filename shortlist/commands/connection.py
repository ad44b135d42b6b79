"""How commands reach a running server: its dataset, its address and its tokens, and refusals as one line."""

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

DatasetOption = Annotated[
    str | None, typer.Option("--dataset", "-d", help="Dataset; the one that is served, or the only one, when left out.")
]


def _http_url(url: str | None) -> str | None:
    if url is not None and not url.startswith(("http://", "https://")):
        raise typer.BadParameter(f"{url!r} must start with http:// or https://")
    return url


UrlOption = Annotated[
    str | None,
    typer.Option(
        "--url", help="Address of the server; the running stack of this home when left out.", metavar="URL", callback=_http_url
    ),
]


def chosen_dataset(given: str | None = None) -> str:
    """The dataset that a command means: the one given, serve.dataset, the running stack's, or the only one of this home.

    Raises:
        CommandError: none of them, or several to choose from.
    """
    settings = console.settings()
    stack = running_stack(settings.home.absolute())
    name = given or settings.serve.dataset or (stack.dataset if stack else None)
    if name is None:
        folder = settings.home / "datasets"
        found = sorted(one.name for one in folder.iterdir() if one.is_dir()) if folder.is_dir() else []
        if len(found) != 1:
            there = ", ".join(found) or "none"
            raise console.CommandError(f"which dataset? Pass --dataset NAME, or set serve.dataset ({settings.home} holds: {there})")
        (name,) = found
    return name


def traffic_token(url: str | None = None) -> str | None:
    """A token for answers and events: the environment's write or admin token, else the running stack's; None where there is none.

    Args:
        url: of another server than the running stack of this home; that one's own token is not for it.
    """
    settings = console.settings()
    given = settings.token.write or settings.token.admin
    if given is not None:
        return given.get_secret_value()
    home = settings.home.absolute()
    stack = running_stack(home)
    return kept_secret(home, "admin-token") if stack is not None and url in (None, stack.base_url) else None


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
