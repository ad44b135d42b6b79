"""The large simulated dataset and the bundle that speed is measured on: made once below a folder, then kept.

The funnel has the parts that `auto.toml` ships on a large catalogue (popularity, transition kNN, the sequential transformer with
its index, a LambdaMART ranker over more than thirty features) with settings that train in minutes: speed does not depend on what
the weights are, but on how many there are.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from features.catalogue import Catalogue
from features.control_store import ControlStore
from features.paths import DatasetPaths
from features.simulate import simulate
from features.simulated_world import SimulationConfig
from training.blend_search import label_candidates
from training.bundle import MANIFEST_FILE, fingerprint
from training.dataset import load_training_data
from training.feature_joins import fit_ranking_features, with_user_features
from training.first_stage import assemble, fit_sources, retrieve_by_blocks
from training.funnel_config import FunnelConfig, RankerConfig, SourceConfig
from training.models.base import TrainingData
from training.pipeline import FUNNEL_FILE, Pipeline
from training.rankers.registry import ranker_class, ranker_settings
from training.ranking_stage import RankingStage
from training.splits import leave_one_out

DATASET = "bench"
SIMULATED_FILE = "simulated"
"""There once the data is whole."""
EVENTS_PER_ITEM, ITEMS_PER_USER = 5, 5
RANKER_USERS = 1_000
TREES = 100
CONFIG = FunnelConfig(
    sources=(
        SourceConfig(model="popularity", quota=100),
        SourceConfig(model="transition_knn", quota=300, config={"neighbours": 100}),
        SourceConfig(
            model="sequential",
            quota=300,
            config={"width": 64, "max_len": 50, "batch_size": 1024, "epochs": 1, "learning_rate": 0.003, "sampled_items": 1024},
        ),
    ),
    ranker=RankerConfig(kind="lambdamart", config={"max_trees": TREES, "num_leaves": 31}),
    k_candidates=500,
)

Notify = Callable[[str], None]
"""Told in a few words what is being done."""


@dataclass(frozen=True)
class World:
    """A dataset and a bundle trained on it.

    Args:
        home: a SHORTLIST_HOME of its own.
        control_url: of the catalogue.
        bundle: folder of the bundle.
    """

    home: Path
    control_url: str
    bundle: Path

    @property
    def paths(self) -> DatasetPaths:
        """Where the dataset is."""
        return DatasetPaths(self.home, DATASET)


def large_world(home: Path, items: int, notify: Notify = lambda _: None) -> World:
    """The world of so many items below `home`; what of it is not there yet, or was trained with other settings, is made."""
    world = World(home, f"sqlite:///{home / 'control.db'}", home / "bundle")
    if _is_trained(world.bundle):
        return world
    home.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(world.bundle, ignore_errors=True)
    simulated = home / SIMULATED_FILE
    if not simulated.exists():
        _simulate(world, items, notify)
        simulated.touch()
    notify("reading the activity")
    data = load_training_data(world.paths, world.control_url)
    trained_on = fingerprint(data.interactions, trained_on="fit", includes_test_rows=False)
    pipeline = _train(data, notify)
    notify("building the index and saving")
    pipeline.save(world.bundle, seed=0, fingerprint=trained_on)
    return world


def _is_trained(bundle: Path) -> bool:
    """Whether the bundle is whole (its manifest is written last) and has the present configuration."""
    if not (bundle / MANIFEST_FILE).is_file():
        return False
    state = json.loads((bundle / FUNNEL_FILE).read_text())
    return bool(state["config"] == CONFIG.model_dump(mode="json"))


def _simulate(world: World, items: int, notify: Notify) -> None:
    for left in (world.home / "datasets", world.home / "control.db"):
        shutil.rmtree(left) if left.is_dir() else left.unlink(missing_ok=True)
    store = ControlStore(world.control_url).create()
    events = items * EVENTS_PER_ITEM
    notify(f"simulating {items:,} items and {events:,} events")
    simulate(
        SimulationConfig(users=max(items // ITEMS_PER_USER, 100), items=items, events=events),
        world.paths,
        Catalogue(store, DATASET),
    )
    store.close()


def _train(data: TrainingData, notify: Notify) -> Pipeline:
    fold = leave_one_out(data.interactions, "validation")
    sources = fit_sources(CONFIG.sources, replace(data, interactions=fold.fit), seed=0, progress=notify)
    draft = assemble(CONFIG, sources, None, data, fold.fit, DATASET)
    notify("training the ranker")
    rows = np.sort(np.random.default_rng(0).permutation(len(fold.queries))[:RANKER_USERS])
    targets = fold.target_idx[fold.target_indptr[rows]]
    asked = replace(fold, queries=fold.queries.take(rows), target_indptr=np.arange(len(rows) + 1), target_idx=targets)
    candidates = retrieve_by_blocks(draft, asked)
    labels = label_candidates(candidates, asked.target_indptr, asked.target_idx)
    found = np.flatnonzero(labels.any(axis=1))
    features = fit_ranking_features(fold.fit, draft.items, candidates.sources, seed=0)
    batch = features.batch(with_user_features(features, asked.queries.take(found)), candidates.take(found), draft.blend)
    settings = ranker_settings(CONFIG.ranker.kind, CONFIG.ranker.config)
    ranker = ranker_class(CONFIG.ranker.kind)(settings).fit(batch, labels[found], seed=0, rounds=TREES)
    return replace(draft, stage=RankingStage(features, ranker))
