"""Test-stage evaluation of a version, or of a study trained for the protocol. Refuses versions that have seen the test rows.

A version has its own item numbers, those of its training; queries are translated into them and its lists back, so that a version
can be measured on data that has grown since.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from training.bootstrap import PairedComparison
from training.candidates import RankedLists
from training.dataset import load_training_data
from training.errors import ProtocolError, RegistryError, StudyError
from training.evaluate import Evaluation, Recommend, evaluate, retriever_recommend
from training.funnel import refit as fit_again
from training.interactions import IntArray, Interactions
from training.pipeline import Pipeline
from training.queries import QueryBatch
from training.registry import Registry
from training.splits import Fold
from training.study import Study, load_study, parse_study
from training.study_data import Place, check_protocol, fold_of, item_categories, load_study_data
from training.study_run import OUTCOME_FILE, STUDY_TAG, against_sources
from training.tracking import Run, connect
from training.train import Notify, comparisons_json, fit_study
from training.trial_log import TrialLog


@dataclass(frozen=True)
class StudyEvaluation:
    """A study's funnel on the test rows.

    Args:
        evaluation: the funnel's.
        shipped: `blend`, or the kind of its ranker.
        against: source -> the funnel less that source alone, on the same users.
        singles: each source alone.
    """

    evaluation: Evaluation
    shipped: str
    against: Mapping[str, PairedComparison]
    singles: Mapping[str, Evaluation]

    def to_json(self) -> dict[str, Any]:
        """The object that `shortlist evaluate --json` prints (DESIGN 4.3), with what the funnel gains on its sources."""
        return self.evaluation.to_json() | {
            "ranker": self.shipped,
            "against_sources": comparisons_json(self.against),
            "sources": {name: {m: round(v, 6) for m, v in one.metrics.items()} for name, one in self.singles.items()},
        }


def evaluate_study(
    study: Study, place: Place, protocol: str, *, refit: bool = False, seed: int | None = None, notify: Notify = lambda _: None
) -> StudyEvaluation:
    """Train a study's best configuration for a protocol and measure it on the test rows.

    What comes after the sources is fitted on the protocol's validation rows.

    Args:
        study: a study that was run on this dataset, or one with nothing to search.
        place: where the dataset and the study's outcome are.
        protocol: whose folds are used.
        refit: fit the sources on the validation rows too before the test.
        seed: in place of the study's.
        notify: told what is being done.

    Raises:
        StudyError: the study searches and was not run on this dataset.
        ProtocolError: the protocol cannot be run on this data.
    """
    return _evaluate_chosen(_outcome_of(study, place), place, protocol, refit=refit, seed=seed, notify=notify)


def evaluate_study_of(
    version: str, place: Place, protocol: str, *, refit: bool = False, seed: int | None = None, notify: Notify = lambda _: None
) -> StudyEvaluation:
    """As `evaluate_study`, for the study behind a registered version (number or alias).

    Raises:
        RegistryError: no such version, or it was not made by a study.
    """
    registry = place.registry()
    found = registry.version(version)
    run = Run(connect(place.tracking_uri), found.run_id) if found.run_id else None
    raw = run.read_json(OUTCOME_FILE) if run else None
    if raw is None:
        raise RegistryError(f"version {found.version} of {registry.model} was not made by a study: pass --study FILE or --model")
    return _evaluate_chosen(parse_study(raw, f"of version {found.version}"), place, protocol, refit=refit, seed=seed, notify=notify)


def evaluate_registered(uri: str, place: Place, protocol: str, *, notify: Notify = lambda _: None) -> Evaluation:
    """Measure a registered version as it is.

    Args:
        uri: version number, alias, `models:/NAME/VERSION` or `models:/NAME@ALIAS`.
        place: dataset and registry.
        protocol: whose test rows are used.
        notify: told what is being done.

    Raises:
        RegistryError: no such version, or it is another dataset's.
        ProtocolError: it was trained on test rows of the protocol; the message names the study to pass.
    """
    registry = place.registry()
    version = registry.version(version_in(uri, registry))
    return evaluate_folder(registry.download(version.version), place, protocol, study=version.tags.get(STUDY_TAG), notify=notify)


def evaluate_folder(
    folder: Path, place: Place, protocol: str, *, study: str | None = None, notify: Notify = lambda _: None
) -> Evaluation:
    """Measure a bundle as it is.

    Args:
        folder: the bundle.
        place: the dataset.
        protocol: whose test rows are used.
        study: name of the study that made it, for the message.
        notify: told what is being done.

    Raises:
        BundleError: it cannot be used, or is another dataset's.
        ProtocolError: it was trained on test rows of the protocol.
    """
    notify("loading the bundle")
    pipeline = Pipeline.load(folder, expected_dataset=place.dataset)
    data = load_training_data(place.paths, place.control_url)
    fold = fold_of(protocol, data.interactions, "test")
    seen = targets_seen(pipeline, data.interactions, fold)
    if seen:
        which = f"study {study!r}" if study else "the study that made it"
        raise ProtocolError(
            f"this bundle was trained on {seen:,} of the {len(fold.target_idx):,} test rows of {protocol}, so its figures would "
            f"mean nothing: evaluate its study instead, which trains it for the protocol: --study FILE, the file of {which}"
        )
    notify(f"asking for {len(fold.queries):,} users")
    seed = pipeline.manifest.seed if pipeline.manifest else 0
    recommend = _translated(pipeline, data.interactions, fold)
    return evaluate(recommend, fold, categories=item_categories(data), seed=seed)


def version_in(uri: str, registry: Registry) -> str:
    """Version number or alias named by a model URI.

    Raises:
        RegistryError: the URI names another model.
    """
    if not uri.startswith("models:/"):
        return uri
    name, separator, alias = uri.removeprefix("models:/").partition("@")
    if not separator:
        name, _, alias = name.partition("/")
    if name != registry.model or not alias:
        raise RegistryError(
            f"{uri} is not a version of {registry.model}: use models:/{registry.model}@ALIAS or models:/{registry.model}/VERSION"
        )
    return alias


def targets_seen(pipeline: Pipeline, interactions: Interactions, fold: Fold) -> int:
    """Targets of a fold that are in the histories which a pipeline was trained on."""
    owners = np.repeat(fold.queries.user_idx, np.diff(fold.target_indptr))
    rows = pipeline.histories.users.rows(interactions.user_ids[owners].tolist())
    items = pipeline.vocabulary.rows(interactions.item_ids[fold.target_idx].tolist())
    known = (rows >= 0) & (items >= 0)
    users, inverse = np.unique(rows[known], return_inverse=True)
    if not len(users):
        return 0
    trained = pipeline.histories.queries(users)
    pairs = trained.row.astype(np.int64) * pipeline.num_items + trained.item_idx
    return int(np.isin(inverse.astype(np.int64) * pipeline.num_items + items[known], pairs).sum())


def _evaluate_chosen(
    study: Study, place: Place, protocol: str, *, refit: bool, seed: int | None, notify: Notify
) -> StudyEvaluation:
    if seed is not None:
        study = study.model_copy(update={"seed": seed})
    check_protocol(protocol)
    notify(f"reading dataset {place.dataset}")
    found = load_study_data(place, study.model_copy(update={"protocol": protocol}))
    test = fold_of(protocol, found.data.interactions, "test", refit=refit)
    configs = {source.source: dict(source.fixed) for source in study.sources}
    pipeline = fit_study(study, configs, place, found, notify).pipeline
    if refit:
        pipeline = fit_again(pipeline, replace(found.data, interactions=test.fit), seed=study.seed, progress=notify)
    notify(f"asking for {len(test.queries):,} users")
    categories = found.categories
    evaluation = evaluate(_in_place(pipeline, test), test, categories=categories, seed=study.seed)
    singles = {
        source.name: evaluate(retriever_recommend(source.retriever, test), test, categories=categories, seed=study.seed)
        for source in pipeline.sources
    }
    against = against_sources(evaluation, singles, study.metric)
    return StudyEvaluation(evaluation, pipeline.config.ranker.kind, against, singles)


def _outcome_of(study: Study, place: Place) -> Study:
    if not study.searches:
        return study
    folder = place.study_folder(study.name)
    head, outcome = TrialLog(folder).head(), folder / OUTCOME_FILE
    if head is None and outcome.exists():  # `train` keeps no log of trials: whether the file is what it was is not known
        raise StudyError(
            f"study {study.name!r} was trained on dataset {place.dataset!r}, not searched: pass what it trained, "
            f"--study {outcome}, or search with `shortlist tune FILE --dataset {place.dataset}`"
        )
    if head is None or not outcome.exists():
        raise StudyError(
            f"study {study.name!r} has no outcome on dataset {place.dataset!r}: run it first with "
            f"`shortlist tune FILE --dataset {place.dataset}`"
        )
    if head["study_sha256"] != study.digest():
        raise StudyError(f"study {study.name!r} has changed since it was run on {place.dataset!r}: run `shortlist tune` again")
    return load_study(outcome)


def _translated(pipeline: Pipeline, interactions: Interactions, fold: Fold) -> Recommend:
    """The pipeline as a recommender in the item numbers of `interactions`."""
    if np.array_equal(pipeline.item_ids, interactions.item_ids):
        return _in_place(pipeline, fold)
    inside: IntArray = pipeline.vocabulary.rows(interactions.item_ids.tolist())
    outside = np.full(pipeline.num_items + 1, -1, dtype=np.int32)  # the last entry is padding's
    outside[inside[inside >= 0]] = np.flatnonzero(inside >= 0)
    allowed = None
    if fold.allowed is not None or (outside[:-1] < 0).any():
        wanted = np.ones(interactions.num_items, dtype=bool) if fold.allowed is None else fold.allowed
        allowed = np.where(outside[:-1] >= 0, wanted[outside[:-1]], False)

    def recommend(queries: QueryBatch, k: int) -> RankedLists:
        items = inside[queries.item_idx]
        known = items >= 0
        kept = np.concatenate([[0], np.cumsum(known)])
        asked = replace(
            queries,
            indptr=kept[queries.indptr].astype(np.int64),
            item_idx=items[known],
            time_us=queries.time_us[known],
            user_idx=np.full(len(queries), -1, dtype=np.int32),
        )
        lists = pipeline.recommend(asked, k, allowed, exclude_history=fold.exclude_history)
        return replace(lists, item_idx=outside[lists.item_idx])

    return recommend


def _in_place(pipeline: Pipeline, fold: Fold) -> Recommend:
    """The pipeline as a recommender for a fold whose item numbers are its own."""
    return lambda queries, k: pipeline.recommend(queries, k, fold.allowed, exclude_history=fold.exclude_history)
