"""How a request gets from a replica's HTTP server to the gateway: past Ray Serve's work on each request, or through it.

For every request Ray Serve draws ids, starts a task that waits for the client to hang up and another that answers, and counts what
is under way: more than half of what its HTTP path takes. A cached answer has no use for any of it. Ray lets a process put ASGI
middlewares around its HTTP server (`RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH`, set in `serving.environment`); the one below hands
requests to the application that this process has registered. Ray's own paths (`/-/healthz` and its like), and with them start,
health, draining and replacement of a replica, stay Ray's. Without the hook every request takes Ray's way, slower and with the same
answers.

Imports no Ray: the proxy's process reads this module, too.
"""

from __future__ import annotations

from starlette.middleware import Middleware
from starlette.types import ASGIApp, Receive, Scope, Send

CALLBACK = f"{__name__}.middlewares"
"""What Ray calls in each process that opens an HTTP server, after the deployment's constructor."""
_RAYS_OWN = "/-/"
_registered: list[ASGIApp] = []


def answer_directly(application: ASGIApp) -> None:
    """Make this the application of the process: requests go to it past Ray Serve. Of two, the later one is asked."""
    _registered[:] = [application]


def middlewares() -> list[Middleware]:
    """For Ray: what goes around this process's HTTP server; nothing where no application is registered."""
    return [Middleware(_PastServe, application=application) for application in _registered]


class _PastServe:
    """ASGI: the application's requests to the application, all else to Ray Serve."""

    def __init__(self, serve: ASGIApp, application: ASGIApp) -> None:
        self._serve, self._application = serve, application

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        own = scope["type"] == "http" and not scope["path"].startswith(_RAYS_OWN)
        await (self._application if own else self._serve)(scope, receive, send)
