"""Settings: `shortlist.toml`, then `SHORTLIST_*` environment, then `--set a.b=v`; validated, unknown keys refused.

Nested keys take a double underscore in the environment: `SHORTLIST_SERVE__PORT=9000` is `serve.port`. Secrets (tokens, passwords
in URLs) come from the environment alone; a `shortlist.toml` that holds one is refused.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, ValidationInfo, field_validator
from sqlalchemy.engine import make_url
from sqlalchemy.exc import SQLAlchemyError

from features.paths import DatasetPaths
from serving.placements import Placement

TOML_NAME = "shortlist.toml"
ENV_PREFIX = "SHORTLIST_"
REDIS_SCHEMES = ("redis", "rediss", "unix")
_ENV_NOT_SETTINGS = {"SHORTLIST_TEST_SHARED", "SHORTLIST_TEST_POSTGRES", "SHORTLIST_CHROMIUM", "SHORTLIST_DEBUG"}


class SettingsError(Exception):
    """The settings are wrong; the message names the key, where it came from and what is allowed."""


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)  # they are what docs/settings.md says


class ServeSettings(_Section):
    """The HTTP side."""

    dataset: str | None = None
    """Dataset that the stack serves; `up` needs it unless the home holds exactly one."""
    host: str = "127.0.0.1"
    """Address that the gateway binds. Anything but loopback requires tokens for all scopes."""
    port: int = Field(default=8000, ge=0, le=65535)
    """Port of the gateway; 0 takes a free one."""
    fuse: Literal["auto", "fused", "separate"] = "auto"
    """Retriever and ranker in one replica, as separate deployments, or fused on a single node and separate otherwise."""
    gateway_replicas: int = Field(default=2, ge=1, le=64)
    """Processes that answer HTTP. With two, requests go on while a killed one is replaced, which takes seconds; each
    costs 180 MB and 1 % of a core when idle."""
    version_replicas: int = Field(default=1, ge=1, le=64)
    """Replicas of each model version that takes traffic."""
    standby: bool = True
    """Keep processes ready for the next version: it is promoted in less than half the time, for 180 MB when idle."""
    deadline_ms: int = Field(default=500, ge=10, le=10_000)
    """Time that a computed answer may take before the next rung of the fallback ladder answers."""
    cache_ttl_s: int = Field(default=86_400, ge=1)
    """How long a cached list lives."""
    precompute_k: int = Field(default=200, ge=10, le=1000)
    """Length of precomputed lists: top_k plus what filters and new activity may take away."""
    feature_log_rate: float = Field(default=0.05, ge=0, le=1)
    """Share of users and sessions whose slates and feature values are logged, for skew reports and training sets."""
    poll_s: float = Field(default=2.0, gt=0, le=60)
    """Seconds between looks at the registry's aliases."""
    canary_check_s: float = Field(default=60, ge=1)
    """Seconds between looks at the figures of running canaries, which stop those that do harm."""
    placements: dict[str, Placement] = Field(default_factory=dict)
    """Named places in the application, `[serve.placements.NAME]`: filter, rules, top_k, diversity, exploration."""


class RedisSettings(_Section):
    """Redis by URL; without one an embedded redis-server is started."""

    bus_url: str | None = None
    """Event bus: `redis://`, `rediss://` or `unix://`. It must persist what it acknowledged and must not evict."""
    features_url: str | None = None
    """Online features: `redis://`, `rediss://` or `unix://`. It must not evict."""
    cache_url: str | None = None
    """Cached lists, which may be evicted. Beside the same schemes, `redis+cluster://[user:password@]host:port`, any node of it, is
    a Redis Cluster."""
    cache_max_mb: int = Field(default=512, ge=16)
    """Memory limit of the embedded cache process (least recently used entries go)."""

    @field_validator("bus_url", "features_url", "cache_url")
    @classmethod
    def _is_redis(cls, url: str | None, about: ValidationInfo) -> str | None:
        schemes = (*REDIS_SCHEMES, "redis+cluster") if about.field_name == "cache_url" else REDIS_SCHEMES
        if url is not None and url.partition("://")[0] not in schemes:
            raise ValueError(f"must begin with {', '.join(f'{scheme}://' for scheme in schemes[:-1])} or {schemes[-1]}://")
        return url


class MlflowSettings(_Section):
    """Tracking and model registry."""

    tracking_uri: str | None = None
    """URL of a tracking server; without one an embedded one on sqlite is started."""
    port: int = Field(default=5000, ge=0, le=65535)
    """Port of the embedded server; 0 takes a free one."""
    webhook_url: str | None = None
    """URL under which a named tracking server reaches this gateway, for its webhooks; the embedded one needs none."""


class RaySettings(_Section):
    """Where models are tuned and served."""

    address: str | None = None
    """Address of a running cluster; without one a local one is started that belongs to this stack."""


class FeatureSettings(_Section):
    """Online features."""

    user_ttl_days: int = Field(default=180, ge=1, le=36_500)
    """Users without an event for so long leave the online store; the next event brings them back with their whole history."""


class WorkerSettings(_Section):
    """The event worker."""

    metrics_port: int = Field(default=0, ge=0, le=65535)
    """Port of its Prometheus metrics on loopback; 0 takes a free one, which `shortlist status` names."""


class ControlSettings(_Section):
    """The control store: catalogue, rules, experiments, audit."""

    url: str | None = None
    """SQLAlchemy URL; without one it is sqlite, `control.db` in the home."""

    @field_validator("url")
    @classmethod
    def _is_sql(cls, url: str | None) -> str | None:
        if url is not None:
            try:
                make_url(url).get_dialect()
            except SQLAlchemyError as error:
                raise ValueError(f"is no URL of a database that SQLAlchemy knows here ({type(error).__name__})") from None
        return url


class StoreSettings(_Section):
    """Activity stores."""

    url: str | None = None
    """URL of fsspec below which each dataset's events lie, such as `s3://bucket/shortlist`; without one they lie below the
    home. What it needs beside fsspec (s3fs, gcsfs, adlfs) must be installed; one machine writes."""


class EventSettings(_Section):
    """Activity."""

    extra_actions: tuple[Annotated[str, Field(min_length=1, max_length=256)], ...] = ()
    """Actions beside the built-in ones that are kept without a flag: experiments may count them. What models learn from stays the
    built-in list."""

    @field_validator("extra_actions", mode="before")
    @classmethod
    def _split(cls, given: object) -> object:
        return [part.strip() for part in given.split(",") if part.strip()] if isinstance(given, str) else given


class TokenSettings(_Section):
    """Bearer tokens, from the environment alone. The admin token is generated at first start where none is given."""

    read: SecretStr | None = None
    """For answers. On loopback they are open as long as none is set."""
    write: SecretStr | None = None
    """For events, and all that `read` is for. On loopback events are open as long as none is set."""
    admin: SecretStr | None = None
    """For models, experiments, rules, changes of the catalogue, and all that the others are for; generated at first start where
    none is given."""
    webhook: SecretStr | None = None
    """Secret that MLflow signs its webhook deliveries with; generated at first start where none is given."""


class Settings(_Section):
    """All settings of one stack."""

    home: Path = Path(".shortlist")
    """Folder of all durable state."""
    serve: ServeSettings = ServeSettings()
    redis: RedisSettings = RedisSettings()
    mlflow: MlflowSettings = MlflowSettings()
    ray: RaySettings = RaySettings()
    features: FeatureSettings = FeatureSettings()
    worker: WorkerSettings = WorkerSettings()
    control: ControlSettings = ControlSettings()
    store: StoreSettings = StoreSettings()
    events: EventSettings = EventSettings()
    token: TokenSettings = TokenSettings()

    @property
    def control_url(self) -> str:
        """SQLAlchemy URL of the control store."""
        return self.control.url or f"sqlite:///{(self.home / 'control.db').absolute()}"

    def paths(self, dataset: str) -> DatasetPaths:
        """Where a dataset's state lies."""
        return DatasetPaths(self.home.absolute(), dataset, self.store.url)


def load_settings(
    overrides: tuple[str, ...] = (), *, environ: dict[str, str] | None = None, folder: Path | None = None
) -> Settings:
    """Read the settings of this process.

    Args:
        overrides: `a.b=value` strings of `--set`, strongest.
        environ: the environment; defaults to the process's own.
        folder: where `shortlist.toml` is looked for; defaults to the working folder. `SHORTLIST_CONFIG` names another file.

    Raises:
        SettingsError: an unknown key, a wrong value, an unreadable file, or a secret in the file.
    """
    try:
        return Settings.model_validate(_merged(overrides, dict(os.environ) if environ is None else environ, folder)[0])
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            raise SettingsError(f"unknown setting {where!r}; {_known_keys(first['loc'][:-1])}") from None
        got = "" if where.endswith("url") else f" (got {first['input']!r})"  # a URL may hold a password
        raise SettingsError(f"setting {where!r}: {first['msg']}{got}") from None


def setting_origins(
    overrides: tuple[str, ...] = (), *, environ: dict[str, str] | None = None, folder: Path | None = None
) -> dict[str, str]:
    """Where each setting comes from that is not its default: the file, the variable or `--set`, by the setting's key.

    Args:
        overrides: as for `load_settings`, like the other two.

    Raises:
        SettingsError: as `load_settings`, but for values, which it does not look at.
    """
    return _merged(overrides, dict(os.environ) if environ is None else environ, folder)[1]


def _merged(overrides: tuple[str, ...], env: dict[str, str], folder: Path | None) -> tuple[dict[str, Any], dict[str, str]]:
    merged: dict[str, Any] = {}
    origins: dict[str, str] = {}
    toml = Path(env["SHORTLIST_CONFIG"]) if "SHORTLIST_CONFIG" in env else (folder or Path.cwd()) / TOML_NAME
    if toml.exists():
        try:
            merged = tomllib.loads(toml.read_text())
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise SettingsError(f"{toml} cannot be read: {error}") from error
        if "token" in merged:
            raise SettingsError(f"{toml} holds [token]: secrets come from the environment alone (SHORTLIST_TOKEN__ADMIN=...)")
        origins = dict.fromkeys(_leaves(merged), str(toml))
    elif "SHORTLIST_CONFIG" in env:
        raise SettingsError(f"SHORTLIST_CONFIG names {toml}, which does not exist")
    for key, value in env.items():
        if key.startswith(ENV_PREFIX) and key not in _ENV_NOT_SETTINGS | {"SHORTLIST_CONFIG"}:
            path = key[len(ENV_PREFIX) :].lower().split("__")
            _put(merged, path, value)
            origins[".".join(path)] = key
    for override in overrides:
        name, separator, value = override.partition("=")
        if not separator:
            raise SettingsError(f"--set {override!r} must look like section.key=value")
        _put(merged, name.strip().split("."), value)
        origins[name.strip()] = "--set"
    return merged, origins


def _leaves(tree: dict[str, Any], before: str = "") -> Iterator[str]:
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{before}{name}.")
        else:
            yield f"{before}{name}"


def _put(tree: dict[str, Any], path: list[str], value: str) -> None:
    for part in path[:-1]:
        branch = tree.setdefault(part, {})
        if not isinstance(branch, dict):
            raise SettingsError(f"setting {part!r} is a value, not a section")
        tree = branch
    tree[path[-1]] = value


def _known_keys(section: tuple[int | str, ...]) -> str:
    model: Any = Settings
    for part in section:
        found = model.model_fields.get(str(part))
        if found is None or not hasattr(found.annotation, "model_fields"):
            break
        model = found.annotation
    return "known here: " + ", ".join(sorted(model.model_fields))
