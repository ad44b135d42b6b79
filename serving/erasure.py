"""`DELETE /v1/users/{id}`: a person taken out of everything that this dataset keeps.

In order: the activity store first, which from then on takes no event that happened until now, wherever it comes from; then the bus
with its dead letters, the logs, profile, feature tables, precomputed lists, bundles of all versions, rejects of imports; then what
answers are made of, online features and cache. Readers that had rows in hand may have written some since: a second look after they
have passed the moment of the erasure takes these. Every step may be done again; an erasure that could not finish says so.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from redis.exceptions import RedisError

from experiments.exposure import EXPOSURE_SCHEMA
from features.activity_store import ActivityStore
from features.bus import EVENTS, FEATURES_GROUP, GROUPS
from features.catalogue import Catalogue
from features.control_store import ControlStore
from features.daily_log import DailyLog
from features.errors import FeaturesError
from features.file_erasure import erase_from_parquet, erase_from_rejects, writing_alone
from features.online_keys import delete_online_users
from features.person import Person
from features.redis_bus import RedisStreamBus
from features.served import feature_log, slate_log
from serving.cache import activity_key, list_key, session_unit, user_unit
from serving.config import ServingConfig
from serving.redis_cluster import blocking_client
from training.bundle_erasure import erase_user
from training.errors import TrainingError
from training.registry import Registry

_log = logging.getLogger("shortlist.serving")

READERS_S = 5.0
"""How long the second look waits for readers of the bus."""
ANSWERS_S = 2.0
"""What gateways hold of answers that they gave reaches the bus within this time."""


@dataclass
class ErasureReport:
    """What an erasure deleted, by place, and the places that it could not finish, with the reason."""

    deleted: dict[str, int] = field(default_factory=dict)
    unfinished: dict[str, str] = field(default_factory=dict)

    @property
    def total(self) -> int:
        """Rows, keys and files' rows in all."""
        return sum(self.deleted.values())

    def to_json(self) -> dict[str, Any]:
        """The body of the answer."""
        return {"deleted": self.deleted, "unfinished": self.unfinished}


class Eraser:
    """Erases people of one dataset.

    Args:
        config: of the stack.
        control: the control store.
        registry: whose versions' bundles know users.
        readers_s, answers_s: how long the second look waits.
    """

    def __init__(
        self,
        config: ServingConfig,
        control: ControlStore,
        registry: Registry,
        *,
        readers_s: float = READERS_S,
        answers_s: float = ANSWERS_S,
    ) -> None:
        self._config, self._control, self._registry = config, control, registry
        self._readers_s, self._answers_s = readers_s, answers_s
        self._store = ActivityStore.of(config.paths)

    def erase(self, user_id: str) -> ErasureReport:
        """Erase one user with the sessions that were theirs.

        Raises:
            StoreError: the activity store refuses: nothing was erased.
        """
        began = time.monotonic()
        paths, report = self._config.paths, ErasureReport()
        person = Person(user_id, frozenset(self._store.sessions(user_id)))
        event_ids = self._store.read(["event_id"], user_ids=[user_id])["event_id"].to_pylist()
        report.deleted["activity"] = self._store.erase(user_id, sorted(person.session_ids))
        self._step(report, "profile", lambda: self._profile(user_id))
        self._file_step(report, "feature_tables", lambda: erase_from_parquet(paths.feature_tables, person))
        self._file_step(report, "precomputed", lambda: erase_from_parquet(self._config.precomputed, person))
        self._file_step(report, "rejects", lambda: erase_from_rejects(paths.rejects, person))
        self._file_step(report, "bundles", lambda: self._bundles(user_id))
        self._moving_parts(report, person, event_ids)
        self._wait_for_readers(began)
        self._moving_parts(report, person, event_ids)
        return report

    def _moving_parts(self, report: ErasureReport, person: Person, event_ids: list[str]) -> None:
        self._step(report, "bus", lambda: self._bus(person, event_ids))
        self._step(report, "logs", lambda: sum(log.erase(person) for log in self._logs()))
        self._step(report, "online_features", lambda: self._online(person))
        self._step(report, "cache", lambda: self._cache(person))

    def _step(self, report: ErasureReport, place: str, work: Callable[[], int]) -> None:
        try:
            report.deleted[place] = report.deleted.get(place, 0) + work()
            report.unfinished.pop(place, None)
        except (FeaturesError, TrainingError, RedisError, OSError) as error:
            _log.error("erasure: %s not finished: %s", place, error)
            report.unfinished[place] = str(error)

    def _file_step(self, report: ErasureReport, place: str, work: Callable[[], int]) -> None:
        """A step that writes files anew without somebody: of two at once, the later one would bring the other's person back."""

        def alone() -> int:
            with writing_alone(self._config.paths.root):
                return work()

        self._step(report, place, alone)

    def _profile(self, user_id: str) -> int:
        deleted = int(Catalogue(self._control, self._config.dataset).delete_user(user_id))
        self._control.forget_deleted()
        return deleted

    def _bundles(self, user_id: str) -> int:
        deleted = 0
        for version in self._registry.versions():
            deleted += erase_user(self._registry.download(version.version), user_id)
        return deleted

    def _bus(self, person: Person, event_ids: list[str]) -> int:
        bus = RedisStreamBus(self._config.bus_url, self._config.dataset, site=self._config.site)
        try:
            return sum(bus.erase(stream, person.has_sent, event_ids if stream == EVENTS else ()) for stream in GROUPS)
        finally:
            bus.close()

    def _logs(self) -> list[DailyLog]:
        paths = self._config.paths
        exposures = DailyLog(paths.exposures, EXPOSURE_SCHEMA, id_column="exposure_id", time_column="at")
        return [exposures, slate_log(paths.root), feature_log(paths.root)]

    def _online(self, person: Person) -> int:
        return delete_online_users(self._config.features_url, self._config.paths.feast_project, [person.user_id])

    def _cache(self, person: Person) -> int:
        units = [user_unit(person.user_id), *(session_unit(one) for one in person.session_ids)]
        versions = {version.version for version in self._registry.versions()}
        versions |= {folder.name.removeprefix("v") for folder in self._config.precomputed.glob("v*")}
        keys = [activity_key(self._config, unit) for unit in units]
        keys += [list_key(self._config, version, unit) for version in versions for unit in units]
        with blocking_client(self._config.cache_url, socket_connect_timeout=2.0, socket_timeout=30.0) as client:
            return sum(int(client.unlink(key)) for key in keys)  # one by one: a Cluster keeps them on several nodes

    def _wait_for_readers(self, began: float) -> None:
        """Until the feature worker has passed what was on the bus, and gateways have sent what they held; not for ever."""
        bus = RedisStreamBus(self._config.bus_url, self._config.dataset, site=self._config.site)
        try:
            newest = bus.tail(EVENTS, 1)
            deadline = time.monotonic() + self._readers_s
            while newest and not bus.has_finished(EVENTS, FEATURES_GROUP, newest[0].id) and time.monotonic() < deadline:
                time.sleep(0.05)
        except FeaturesError as error:
            _log.warning("erasure: the bus cannot be asked how far its readers are: %s", error)
        finally:
            bus.close()
        time.sleep(max(0.0, began + self._answers_s - time.monotonic()))
