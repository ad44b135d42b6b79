"""From settings and a stack's addresses to the configuration of the serving side."""

from __future__ import annotations

import ipaddress

from pydantic import SecretStr

from serving.config import ServingConfig, hash_token
from shortlist.settings import Settings
from shortlist.stack.errors import StackError
from shortlist.stack.secrets import kept_secret, webhook_secret_file
from shortlist.stack.state import StackState


def serving_config(settings: Settings, state: StackState, port: int) -> ServingConfig:
    """The serving configuration of a stack.

    Args:
        settings: of the stack.
        state: with the addresses of Redis and MLflow filled in.
        port: that the gateway binds.

    Raises:
        StackError: another address than loopback without tokens for all scopes.
    """
    home = settings.home.absolute()
    loopback = is_loopback(settings.serve.host)
    missing = [scope for scope in ("read", "write", "admin") if getattr(settings.token, scope) is None]
    if not loopback and missing:
        names = ", ".join(f"SHORTLIST_TOKEN__{scope.upper()}" for scope in missing)
        raise StackError(f"serve.host {settings.serve.host} is not loopback, so every scope needs a token: set {names}")
    admin = settings.token.admin.get_secret_value() if settings.token.admin else kept_secret(home, "admin-token")
    return ServingConfig(
        dataset=state.dataset,
        home=home,
        mlflow_uri=state.mlflow_uri,
        control_url=settings.control_url,
        bus_url=state.bus_url,
        features_url=state.features_url,
        cache_url=state.cache_url,
        host=settings.serve.host,
        port=port,
        fuse=settings.serve.fuse,
        standby=settings.serve.standby,
        gateway_replicas=settings.serve.gateway_replicas,
        version_replicas=settings.serve.version_replicas,
        deadline_ms=settings.serve.deadline_ms,
        cache_ttl_s=settings.serve.cache_ttl_s,
        precompute_k=settings.serve.precompute_k,
        feature_log_rate=settings.serve.feature_log_rate,
        poll_s=settings.serve.poll_s,
        placements=settings.serve.placements,
        store_url=settings.store.url,
        canary_check_s=settings.serve.canary_check_s,
        extra_actions=settings.events.extra_actions,
        read_token_sha256=_hashed(settings.token.read),
        write_token_sha256=_hashed(settings.token.write),
        admin_token_sha256=hash_token(admin),
        webhook_secret_file=webhook_secret_file(
            home, settings.token.webhook.get_secret_value() if settings.token.webhook else None
        ),
        open_loopback=loopback,
    )


def base_url(settings: Settings, port: int) -> str:
    """The gateway's URL as seen from this machine."""
    host = settings.serve.host
    return f"http://{'127.0.0.1' if host in ('0.0.0.0', '::', 'localhost') else host}:{port}"


def is_loopback(host: str) -> bool:
    """Whether an address is reachable from this machine alone."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _hashed(token: SecretStr | None) -> str | None:
    return hash_token(token.get_secret_value()) if token else None
