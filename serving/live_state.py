"""What a gateway replica routes by: champion, loaded versions with their items, experiments; rebuilt from the control store.

Nothing of this lives in memory alone: a new replica builds it before it is ready, and every announcement and regular look builds
it again. Loading runs in a thread; the event loop sees one immutable `Snapshot` at a time.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from experiments.assignment import AssignmentPlan, Targeting
from experiments.errors import ExperimentError, SpecError
from experiments.spec import ExperimentSpec
from features.activity_store import ActivityStore
from features.catalogue import Catalogue
from features.control_store import ControlStore
from features.errors import FeaturesError
from serving.cached_list import CachedList
from serving.config import ServingConfig
from serving.context_conditions import compile_condition
from serving.control import ExperimentRecord, ServingControl, ShadowTarget
from serving.errors import FilterError, RequestError
from serving.item_changes import AvailabilityFollower, ItemChanges, as_of_now
from serving.item_table import ItemTable
from serving.process import give_back_memory
from serving.request_values import body_seen, item_filter
from serving.rule_store import RuleStore
from serving.rules import RuleBook
from training.bundle import FEATURES_FOLDER, MANIFEST_FILE, POPULARITY_FILL, BundleManifest
from training.interactions import FloatArray
from training.ranking_features import stored_vectors

_log = logging.getLogger("shortlist.serving")

VARIANT_PARAMS: dict[str, Callable[[Any], object]] = {"exclude_seen": body_seen, "filter": item_filter}
"""Parameters of a request that a variant may set, and what refuses a wrong one."""


@dataclass(frozen=True)
class LiveVersion:
    """A version that the gateway can answer with.

    Args:
        sources: names by the source number of its lists.
        trained_at: when its bundle was made.
        vectors: (N, D) item vectors for diversity, None where the bundle has none.
    """

    version: str
    items: ItemTable
    sources: tuple[str, ...]
    trained_at: datetime
    vectors: FloatArray | None = None

    def holds(self, answer: CachedList) -> bool:
        """Whether a list names only items and sources that the version has; another is as good as unreadable."""
        return answer.fits(self.items.num_trained, len(self.sources))

    def is_whole(self, answer: CachedList, lag_s: float) -> bool:
        """Whether a list holds all that there is: it did when it was computed, and no item has become available again since.

        Args:
            answer: the list.
            lag_s: how much later than the gateway a replica may know of availability.
        """
        return answer.complete and answer.computed_at_us > self.items.relisted_us + lag_s * 1e6


@dataclass(frozen=True)
class Snapshot:
    """One consistent view of the control store.

    Args:
        champion: None before the first model.
        versions: by version number.
        plan: splits units among running experiments.
        pins: experiment -> variant -> version.
        items: what popular items are taken from: the champion's, or the catalogue where there is no model.
        items_at: as of when.
        rules: of the dataset, without those that do not fit the items.
        shadow: scored and never shown.
    """

    champion: LiveVersion | None
    versions: Mapping[str, LiveVersion]
    plan: AssignmentPlan
    pins: Mapping[str, Mapping[str, str]]
    items: ItemTable
    items_at: datetime
    rules: RuleBook = field(default_factory=RuleBook)
    shadow: ShadowTarget | None = None

    def tables(self) -> list[ItemTable]:
        """All distinct item tables."""
        tables = {id(live.items): live.items for live in self.versions.values()}
        tables[id(self.items)] = self.items
        return list(tables.values())


class SnapshotLoader:
    """Builds snapshots of one dataset. Used by one thread at a time; `availability` may be followed in another meanwhile.

    Args:
        config: of the stack.
    """

    def __init__(self, config: ServingConfig) -> None:
        self._config = config
        self._store = ControlStore(config.control_url).create()
        self._control = ServingControl(self._store, config.dataset)
        self._changes = ItemChanges(self._control.audit)
        self.availability = AvailabilityFollower(self._control.audit)
        self._rules = RuleStore(self._store, config.dataset)

    def load(self, before: Snapshot | None = None) -> Snapshot:
        """The present state. Versions that `before` holds are taken from it.

        A version whose bundle cannot be read, and an experiment that cannot be applied, are left out; everything else holds.

        Raises:
            FeaturesError: the control store cannot be read.
        """
        state = self._control.state()
        old = before.versions if before is not None else {}
        versions = {}
        for version, folder in state.versions.items():
            live = old.get(version) or self._open(version, Path(folder))
            if live is not None:
                versions[version] = live
        champion_version = state.champion if state.champion in versions else None
        tables = [live.items for live in versions.values()]
        items_at = datetime.now(UTC)
        if champion_version is None:
            known = before if before is not None and before.champion is None else None
            tables.append(self._catalogue_items() if known is None else known.items)
            items_at = items_at if known is None else known.items_at
        # Read before changes of items are taken: they are given once, and would be lost with a snapshot that fails after them.
        (plan, pins), book = self._experiments(versions.keys()), self._rules.book()
        tables = self._changes.apply(tables)
        versions = {
            version: replace(live, items=items)
            for (version, live), items in zip(versions.items(), tables[: len(versions)], strict=True)
        }
        champion = versions[champion_version] if champion_version is not None else None
        items, items_at = (champion.items, champion.trained_at) if champion is not None else (tables[-1], items_at)
        rules = book.fitting(tables)
        self.availability.again(tables, self._changes.seen)
        return Snapshot(champion, versions, plan, pins, items, items_at, rules, state.shadow)

    def catch_up(self, snapshot: Snapshot) -> None:
        """Take into a snapshot that now answers what came while the one before it still did, and was the one that was followed."""
        self.availability.again(snapshot.tables(), self._changes.seen)

    def _open(self, version: str, folder: Path) -> LiveVersion | None:
        try:
            manifest = BundleManifest.model_validate_json((folder / MANIFEST_FILE).read_text())
            items = ItemTable.from_bundle(folder)
            vectors = stored_vectors(folder / FEATURES_FOLDER)
            items = as_of_now(items, self._store, self._config.dataset, manifest.known_until)
        except FeaturesError:
            raise  # the control store's trouble, not the version's
        except Exception as error:  # whatever is wrong with a bundle, the other versions must go on
            _log.error("version %s cannot be read from %s: %s: %s", version, folder, type(error).__name__, error)
            return None
        give_back_memory()
        sources = (*manifest.sources, POPULARITY_FILL)
        return LiveVersion(version, items, sources, manifest.created_at, vectors)

    def _catalogue_items(self) -> ItemTable:
        catalogue = Catalogue(self._store, self._config.dataset)
        events = ActivityStore.of(self._config.paths).read(columns=["item_id"])
        return as_of_now(ItemTable.from_activity(catalogue.items(), events), self._store, self._config.dataset, None)

    def _experiments(self, versions: Set[str]) -> tuple[AssignmentPlan, Mapping[str, Mapping[str, str]]]:
        """Those that run and whose versions are all here: who gets the champion for want of a variant's version is not exposed."""
        running = [
            record for record in self._control.experiments() if record.status == "running" and set(record.pins.values()) <= versions
        ]
        try:
            return _plan(running), _pins(running)
        except ExperimentError:
            # Checked when an experiment starts; should it happen all the same, its units get the champion. Of two that do not go
            # together the first that was started stays.
            kept: list[ExperimentRecord] = []
            for record in sorted(running, key=lambda one: one.started_at or _EVER):
                try:
                    _plan([*kept, record])
                    kept.append(record)
                except ExperimentError as error:
                    _log.error("experiment %s is not applied: %s", record.spec.name, error)
            return _plan(kept), _pins(kept)


def compile_targeting(expression: str) -> Targeting:
    """A targeting expression (the filter language over a request's context) as a predicate.

    Raises:
        SpecError: the expression is wrong.
    """
    try:
        return compile_condition(expression).holds
    except FilterError as error:
        raise SpecError(f"targeting: {error}", "targeting") from None


def check_variants(spec: ExperimentSpec) -> None:
    """Refuse what serving could not carry out: unknown parameters of variants, a wrong targeting expression.

    Raises:
        SpecError: names the variant and the parameters that there are.
    """
    if spec.targeting is not None:
        compile_targeting(spec.targeting)
    for variant in spec.variants:
        unknown = set(variant.params or {}) - VARIANT_PARAMS.keys()
        if unknown:
            raise SpecError(
                f"variant {variant.name!r}: unknown parameter {sorted(unknown)[0]!r}; known: {', '.join(sorted(VARIANT_PARAMS))}",
                "variants",
            )
        for name, value in (variant.params or {}).items():
            try:
                VARIANT_PARAMS[name](value)
            except RequestError as error:
                raise SpecError(f"variant {variant.name!r}: {error}", "variants") from None


_EVER = datetime.fromtimestamp(0, UTC)


def _plan(running: Sequence[ExperimentRecord]) -> AssignmentPlan:
    return AssignmentPlan([record.spec for record in running], compile_targeting)


def _pins(running: Sequence[ExperimentRecord]) -> dict[str, Mapping[str, str]]:
    return {record.spec.name: record.pins for record in running}
