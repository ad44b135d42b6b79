"""The gateway as a Serve deployment, bound in `serving.graph`."""

from __future__ import annotations

import os

from serving.config import ServingConfig
from serving.gateway import GatewayApp
from serving.http import AsgiScope, Receive, Send
from serving.ingress import answer_directly
from serving.logs import log_to_file
from serving.process import shorten_pauses


class BehindServe:
    """ASGI: the application for what comes by way of Ray Serve."""

    def __init__(self, app: GatewayApp) -> None:
        self._app = app

    async def __call__(self, scope: AsgiScope, receive: Receive, send: Send) -> None:
        """ASGI entry."""
        if scope["type"] == "http":
            await self._app.http(scope, receive, send, by_serve=True)
        else:
            await self._app(scope, receive, send)


class Gateway:
    """Serve deployment of the gateway.

    Args:
        config_json: ServingConfig as JSON.
    """

    def __init__(self, config_json: str) -> None:
        config = ServingConfig.model_validate_json(config_json)
        log_to_file(config, f"gateway-{os.getpid()}")
        shorten_pauses()
        self._app = GatewayApp(config)
        answer_directly(self._app)

    def __serve_build_asgi_app__(self) -> BehindServe:
        """Ray Serve asks for the application after the constructor has loaded the routing state, and starts and stops it."""
        return BehindServe(self._app)
