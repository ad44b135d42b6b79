"""ServingConfig: everything the serving processes need to know, handed to every replica as JSON.

Owns no defaults of the product's settings: `shortlist.settings` is where users set them; the stack fills this in.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from features.paths import DatasetPaths
from serving.placements import Placement

Scope = Literal["read", "write", "admin"]


class ServingConfig(BaseModel):
    """Configuration of one dataset's serving side. Holds hashes of tokens, never tokens."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    dataset: str
    """Dataset that is served."""
    home: Path
    """SHORTLIST_HOME, absolute: replicas run in other folders."""
    mlflow_uri: str
    """Tracking server whose aliases are followed."""
    control_url: str
    """SQLAlchemy URL of the control store."""
    bus_url: str
    """Redis of the event bus."""
    features_url: str
    """Redis of Feast's online store."""
    cache_url: str
    """Redis of cached lists and freshness marks; `redis+cluster://host:port` for a Redis Cluster."""
    site: str = "local"
    """Prefix of keys, until there are several sites."""
    host: str = "127.0.0.1"
    """Address the gateway binds."""
    port: int = Field(default=8000, ge=1, le=65535)
    """Port the gateway binds."""
    fuse: Literal["auto", "fused", "separate"] = "auto"
    """Retriever and ranker in one replica, as two deployments, or fused while the cluster has one node."""
    gateway_replicas: int = Field(default=1, ge=1, le=64)
    version_replicas: int = Field(default=1, ge=1, le=64)
    standby: bool = True
    """Keep processes ready for the next version."""
    deadline_ms: int = Field(default=500, ge=10, le=10_000)
    """Time a computed answer may take before the next rung of the fallback ladder answers."""
    cache_timeout_ms: int = Field(default=200, ge=1, le=5_000)
    """Time the cache Redis may take; a slower one is treated as absent for a moment."""
    cache_ttl_s: int = Field(default=86_400, ge=1)
    """How long a cached list lives."""
    load_timeout_s: float = Field(default=120, gt=0)
    """Time a version may take from deployment to ready before it is refused."""
    precompute_k: int = Field(default=200, ge=10, le=1000)
    """Length of precomputed lists, which is also the least that a computed and cached list holds."""
    feature_log_rate: float = Field(default=0.05, ge=0, le=1)
    """Share of users and sessions whose slates and feature values are logged."""
    poll_s: float = Field(default=2.0, gt=0, le=60)
    """Seconds between looks at the registry's aliases."""
    canary_check_s: float = Field(default=60, ge=1)
    """Seconds between looks at the figures of running canaries."""
    reread_s: float = Field(default=5.0, gt=0, le=60)
    """Seconds between re-reads of the control store when no announcement came."""
    placements: dict[str, Placement] = Field(default_factory=dict)
    """Named places with their own defaults."""
    store_url: str | None = None
    """URL below which activity stores lie; None is below the home."""
    extra_actions: tuple[str, ...] = ()
    """Actions that events may have beside those known without configuration."""
    read_token_sha256: str | None = None
    write_token_sha256: str | None = None
    admin_token_sha256: str | None = None
    """SHA-256 of the bearer tokens in hex; None: no token of that scope exists."""
    webhook_secret_file: Path | None = None
    """File with the secret that MLflow signs deliveries with; None refuses them, and aliases are polled."""
    open_loopback: bool = True
    """Read and write calls need no token where none of their scope is given. Only for a gateway that binds a loopback address."""

    def opens(self, scope: Scope) -> bool:
        """Whether calls of a scope need no token."""
        tokens = {"read": self.read_token_sha256, "write": self.write_token_sha256}
        return self.open_loopback and scope in tokens and tokens[scope] is None

    @property
    def paths(self) -> DatasetPaths:
        """Where the dataset's files are."""
        return DatasetPaths(self.home, self.dataset, self.store_url)

    @property
    def replica_lag_s(self) -> float:
        """How much later than a gateway a version's replica may know of availability: it looks every `reread_s`."""
        return 2 * self.reread_s

    @property
    def key_prefix(self) -> str:
        """First part of every key in the cache Redis."""
        return f"sl:{self.site}:{self.dataset}"

    @property
    def precomputed(self) -> Path:
        """Folder of precomputed lists, one folder a version."""
        return self.paths.root / "precomputed"


def hash_token(token: str) -> str:
    """SHA-256 of a bearer token in hex, the only form in which serving keeps it."""
    return hashlib.sha256(token.encode()).hexdigest()
