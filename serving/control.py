"""ServingControl: what is being served, and experiments, in the control store.

Owns the tables `serving_state` and `experiments`. Every change is one transaction that also appends to the audit log
(`serving.audit`). Announcing a change so that nobody waits for the next look is `serving.announce`'s.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal

from sqlalchemy import BigInteger, Column, Connection, String, Table, Text, delete, insert, select, update

from experiments.assignment import check_exclusive
from experiments.errors import SpecError
from experiments.spec import ExperimentSpec, parse_spec
from features.control_store import METADATA, ControlStore
from serving.audit import AuditLog, now_us
from serving.errors import ControlStateError

_log = logging.getLogger("shortlist.serving")

SERVING_STATE = Table(
    "serving_state",
    METADATA,
    Column("dataset", String(63), primary_key=True),
    Column("document", Text, nullable=False),
    Column("updated_at_us", BigInteger, nullable=False),
)
EXPERIMENTS = Table(
    "experiments",
    METADATA,
    Column("dataset", String(63), primary_key=True),
    Column("name", String(63), primary_key=True),
    Column("status", String(16), nullable=False),
    Column("spec", Text, nullable=False),
    Column("pins", Text, nullable=False),
    Column("started_at_us", BigInteger),
    Column("stopped_at_us", BigInteger),
)

Status = Literal["draft", "starting", "running", "paused", "stopped"]
"""`starting`: versions are pinned and being loaded; nobody is assigned before all of them are."""
ROUTING = "routing"
"""Audit subject of `ServingState`."""


@dataclass(frozen=True)
class ShadowTarget:
    """The version that is scored and never shown, and the share of computed answers that it is asked for too."""

    version: str
    sample: float = 1.0


@dataclass(frozen=True)
class ServingState:
    """What gateways route to.

    Args:
        champion: version that takes all traffic outside experiments; None before the first model.
        versions: loaded version -> its bundle's folder.
        shadow: loaded as shadow.
    """

    champion: str | None = None
    versions: Mapping[str, str] = field(default_factory=dict)
    shadow: ShadowTarget | None = None

    @classmethod
    def from_json(cls, text: str) -> ServingState:
        """Out of the table's document."""
        raw = json.loads(text)
        shadow = raw.get("shadow")
        return cls(raw["champion"], raw["versions"], None if shadow is None else ShadowTarget(**shadow))


@dataclass(frozen=True)
class ExperimentRecord:
    """An experiment as it stands. `pins`: variant -> version, fixed at the start."""

    spec: ExperimentSpec
    status: Status
    pins: Mapping[str, str] = field(default_factory=dict)
    started_at: datetime | None = None
    stopped_at: datetime | None = None


class ServingControl:
    """The serving tables of one dataset.

    Args:
        store: the control store; its tables must exist (`ControlStore.create`).
        dataset: the dataset's name.
    """

    def __init__(self, store: ControlStore, dataset: str) -> None:
        self.store = store
        self.dataset = dataset
        self.audit = AuditLog(store, dataset)

    # Routing

    def state(self) -> ServingState:
        """What gateways should route to now."""
        with self.store.begin() as connection:
            return self._state(connection)

    def set_state(self, state: ServingState, *, actor: str, action: str) -> bool:
        """Replace the routing state; returns whether it differs from the one before."""
        with self.audit.begin() as connection:
            before = self._state(connection)
            if before == state:
                return False
            here = SERVING_STATE.c.dataset == self.dataset
            connection.execute(delete(SERVING_STATE).where(here))
            document = json.dumps(asdict(state))
            connection.execute(insert(SERVING_STATE).values(dataset=self.dataset, document=document, updated_at_us=now_us()))
            self.audit.write(connection, actor, action, ROUTING, asdict(before), asdict(state))
            return True

    # Experiments

    def experiments(self) -> list[ExperimentRecord]:
        """All experiments that this release can read, by name; one that it cannot costs the others nothing."""
        query = select(EXPERIMENTS).where(EXPERIMENTS.c.dataset == self.dataset).order_by(EXPERIMENTS.c.name)
        with self.store.begin() as connection:
            return _readable(connection.execute(query).mappings().all())

    def pinned_versions(self) -> set[str]:
        """Versions that experiments which are not over assign."""
        return {
            version
            for one in self.experiments()
            if one.status in {"starting", "running", "paused"}
            for version in one.pins.values()
        }

    def experiment(self, name: str) -> ExperimentRecord | None:
        """One experiment."""
        with self.store.begin() as connection:
            return self._experiment(connection, name)

    def put_experiment(self, spec: ExperimentSpec, *, actor: str) -> ExperimentRecord:
        """Create an experiment, or change it as far as its status allows.

        Raises:
            ControlStateError: it has been stopped.
            FrozenSpecError: it has started, and more than `traffic` and `ramp` differ, or `traffic` falls.
        """
        with self.audit.begin() as connection:
            present = self._experiment(connection, spec.name)
            if present is None:
                return self._write(connection, ExperimentRecord(spec, "draft"), None, actor, "experiment.create")
            if present.status == "stopped":
                raise ControlStateError(f"experiment {spec.name!r} has been stopped: use a new name and salt")
            if present.status != "draft":
                present.spec.check_change(spec)
            changed = ExperimentRecord(spec, present.status, present.pins, present.started_at)
            return self._write(connection, changed, present, actor, "experiment.change")

    def start_experiment(self, name: str, pins: Mapping[str, str], *, actor: str) -> ExperimentRecord:
        """Pin a draft's variants to versions and let them be loaded, or resume a paused one with the pins that it has.

        Without pins (variants with parameters) it runs at once.

        Raises:
            ControlStateError: no such experiment, or it is running or stopped.
            OverlapError: with it and those that have started, two could choose the model of one answer.
        """
        with self.audit.begin() as connection:
            present = self._existing(connection, name)
            if present.status in {"paused", "draft"}:
                check_exclusive([*self._started(connection), present.spec])
            if present.status == "paused":
                resumed = ExperimentRecord(present.spec, "running", present.pins, present.started_at)
                return self._write(connection, resumed, present, actor, "experiment.resume")
            if present.status != "draft":
                raise ControlStateError(f"experiment {name!r} is {present.status}: only a draft or paused one can be started")
            status: Status = "starting" if pins else "running"
            started = ExperimentRecord(present.spec, status, dict(pins), datetime.now(UTC))
            return self._write(connection, started, present, actor, "experiment.start")

    def run_experiment(self, name: str, *, actor: str) -> ExperimentRecord:
        """A starting experiment, all of whose versions are loaded, begins to assign.

        Raises:
            ControlStateError: no such experiment, or it is not starting.
        """
        with self.audit.begin() as connection:
            present = self._existing(connection, name)
            if present.status == "running":
                return present
            if present.status != "starting":
                raise ControlStateError(f"experiment {name!r} is {present.status}, not starting")
            running = ExperimentRecord(present.spec, "running", present.pins, datetime.now(UTC))
            return self._write(connection, running, present, actor, "experiment.run")

    def end_experiment(self, name: str, status: Literal["paused", "stopped"], *, actor: str) -> ExperimentRecord:
        """Pause or stop an experiment; its units go back to the champion.

        Raises:
            ControlStateError: no such experiment, or it is not running (one that is a draft, starting or paused can be stopped).
        """
        with self.audit.begin() as connection:
            present = self._existing(connection, name)
            if present.status != "running" and not (status == "stopped" and present.status in {"draft", "starting", "paused"}):
                raise ControlStateError(f"experiment {name!r} is {present.status} and cannot be {status}")
            stopped_at = datetime.now(UTC) if status == "stopped" else None
            ended = ExperimentRecord(present.spec, status, present.pins, present.started_at, stopped_at)
            return self._write(connection, ended, present, actor, f"experiment.{status}")

    def _state(self, connection: Connection) -> ServingState:
        text = connection.execute(select(SERVING_STATE.c.document).where(SERVING_STATE.c.dataset == self.dataset)).scalar()
        return ServingState.from_json(text) if text else ServingState()

    def _experiment(self, connection: Connection, name: str) -> ExperimentRecord | None:
        query = select(EXPERIMENTS).where(EXPERIMENTS.c.dataset == self.dataset, EXPERIMENTS.c.name == name)
        row = connection.execute(query).mappings().first()
        return None if row is None else _experiment(row)

    def _started(self, connection: Connection) -> list[ExperimentSpec]:
        started = EXPERIMENTS.c.status.in_(("starting", "running"))
        query = select(EXPERIMENTS).where(EXPERIMENTS.c.dataset == self.dataset, started).order_by(EXPERIMENTS.c.name)
        return [record.spec for record in _readable(connection.execute(query).mappings().all())]

    def _existing(self, connection: Connection, name: str) -> ExperimentRecord:
        found = self._experiment(connection, name)
        if found is None:
            raise ControlStateError(f"there is no experiment {name!r}")
        return found

    def _write(
        self, connection: Connection, record: ExperimentRecord, before: ExperimentRecord | None, actor: str, action: str
    ) -> ExperimentRecord:
        values = {
            "status": record.status,
            "spec": record.spec.model_dump_json(),
            "pins": json.dumps(dict(record.pins)),
            "started_at_us": _to_us(record.started_at),
            "stopped_at_us": _to_us(record.stopped_at),
        }
        name = record.spec.name
        if before is None:
            connection.execute(insert(EXPERIMENTS).values(dataset=self.dataset, name=name, **values))
        else:
            here = (EXPERIMENTS.c.dataset == self.dataset) & (EXPERIMENTS.c.name == name)
            connection.execute(update(EXPERIMENTS).where(here).values(**values))
        old = None if before is None else experiment_json(before)
        self.audit.write(connection, actor, action, f"experiment:{name}", old, experiment_json(record))
        return record


def experiment_json(record: ExperimentRecord) -> dict[str, Any]:
    """An experiment as the API and the audit log show it."""
    return {
        "name": record.spec.name,
        "status": record.status,
        "pins": dict(record.pins),
        "started_at": record.started_at.isoformat() if record.started_at else None,
        "stopped_at": record.stopped_at.isoformat() if record.stopped_at else None,
        "spec": record.spec.model_dump(mode="json"),
    }


def _readable(rows: Sequence[Mapping[Any, Any]]) -> list[ExperimentRecord]:
    found = []
    for row in rows:
        try:
            found.append(_experiment(row))
        except (SpecError, ValueError) as error:
            _log.error("experiment %s is left out, it cannot be read: %s", row["name"], error)
    return found


def _experiment(row: Mapping[Any, Any]) -> ExperimentRecord:
    return ExperimentRecord(
        spec=parse_spec(json.loads(row["spec"])),
        status=row["status"],
        pins=json.loads(row["pins"]),
        started_at=_to_time(row["started_at_us"]),
        stopped_at=_to_time(row["stopped_at_us"]),
    )


def _to_us(moment: datetime | None) -> int | None:
    return None if moment is None else round(moment.timestamp() * 1e6)


def _to_time(at_us: int | None) -> datetime | None:
    return None if at_us is None else datetime.fromtimestamp(at_us / 1e6, UTC)
