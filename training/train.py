"""From chosen configurations to a registered version: fit the funnel, measure it on validation, refit, save, gate, register.

Both `tune`, after its search, and `train`, without one, end here. Choosing reads validation rows only; the refit that is
registered for serving may read all, and its fingerprint says so.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from features.paths import DatasetPaths
from training.bundle import DataFingerprint, fingerprint
from training.dataset import load_training_data
from training.errors import ProtocolError, RegistryError
from training.evaluate import Evaluation, evaluate
from training.funnel import FittedFunnel, fit_funnel, refit
from training.funnel_config import RankerConfig
from training.gate import GateDecision, GateRule, Validated, decide
from training.models.base import TrainingData
from training.pipeline import Pipeline
from training.plots import metric_bars, search_curve
from training.registry import CHAMPION, GATE_REASON_TAG, GATE_TAG, ModelVersion, Registry
from training.splits import PROTOCOLS, Fold
from training.study import Study
from training.tracking import Run, connect, experiment_id, git_commit
from training.trial_log import TrialRecord

PER_USER_FILE = "validation/per_user.parquet"
"""Artifact of a study's run: the shipped funnel's validation metrics, one row a user, taken before the refit."""
OUTCOME_FILE = "outcome.json"
"""Artifact of a study's run: the study with everything chosen; `train` takes it as it is."""
STUDY_TAG, PROTOCOL_TAG = "shortlist.study", "shortlist.protocol"

Notify = Callable[[str], None]
"""Told in one line what is being done."""


@dataclass(frozen=True)
class Place:
    """Where a study reads and writes.

    Args:
        paths: of the dataset.
        control_url: SQL URL of the control store.
        tracking_uri: of the MLflow server.
    """

    paths: DatasetPaths
    control_url: str
    tracking_uri: str

    @property
    def dataset(self) -> str:
        """Name of the dataset."""
        return self.paths.dataset

    def study_folder(self, study: str) -> Path:
        """Where a study on this dataset keeps its log and its outcome."""
        return self.paths.root / "studies" / study

    def registry(self) -> Registry:
        """The dataset's versions."""
        return Registry(self.tracking_uri, self.dataset, cache=self.paths.home / "bundles")


@dataclass(frozen=True)
class StudyData:
    """The activity that a study works on.

    Args:
        data: all of it.
        fold: of stage validation: what is fitted on, what is chosen on.
        fingerprint: of all of it.
        as_of: time of the latest event; None where the dataset has no times.
    """

    data: TrainingData
    fold: Fold
    fingerprint: DataFingerprint
    as_of: datetime | None


@dataclass(frozen=True)
class Outcome:
    """What a study ended with."""

    study: str
    run_id: str
    model_version: str
    metrics: dict[str, float]
    trials: int
    gate: GateDecision
    evaluation: Evaluation

    def to_json(self) -> dict[str, Any]:
        """The object that `shortlist tune --json` prints (DESIGN 4.3)."""
        return {
            "study": self.study,
            "run_id": self.run_id,
            "model_version": self.model_version,
            "metrics": {name: round(value, 6) for name, value in self.metrics.items()},
            "trials": self.trials,
            "gate": {"verdict": self.gate.verdict, "reasons": list(self.gate.reasons)},
        }


def load_study_data(place: Place, study: Study, *, as_of: datetime | None = None) -> StudyData:
    """Read the dataset's activity and cut it for the study.

    Args:
        place: which dataset, and where.
        study: gives the protocol.
        as_of: later events are not read; None reads all.

    Raises:
        NotTrainableError: there is no activity.
        ProtocolError: the protocol cannot be run on it.
    """
    data = load_training_data(place.paths, place.control_url, as_of=as_of)
    interactions = data.interactions
    latest = None
    if interactions.has_times:
        latest = datetime.fromtimestamp(int(interactions.time_us.max()) / 1e6, UTC)
    return StudyData(
        data=data,
        fold=validation_fold(study.protocol, data),
        fingerprint=fingerprint(interactions, trained_on="all", includes_test_rows=True, as_of=latest),
        as_of=latest,
    )


def validation_fold(protocol: str, data: TrainingData) -> Fold:
    """The fold that a study chooses on.

    Raises:
        ProtocolError: no such protocol, or it cannot be run on this data.
    """
    if protocol not in PROTOCOLS:
        raise ProtocolError(f"protocol {protocol!r} is not available; there are: {', '.join(sorted(PROTOCOLS))}")
    return PROTOCOLS[protocol](data.interactions, "validation")


def start_run(client: Any, study: Study, place: Place, found: StudyData) -> Run:
    """The parent run of a study."""
    run = Run.create(
        client,
        experiment_id(client, place.registry().model),
        study.name,
        tags={
            STUDY_TAG: study.name,
            PROTOCOL_TAG: study.protocol,
            "shortlist.dataset": place.dataset,
            "shortlist.study_sha256": study.digest(),
            "mlflow.note.content": study.description,
            **provenance(study, found),
        },
    )
    run.log_json(study.model_dump(mode="json"), "study.json")
    run.log_json(found.fingerprint.model_dump(mode="json"), "fingerprint.json")
    return run


def provenance(study: Study, found: StudyData) -> dict[str, str]:
    """Tags that every run of a study carries: code, data and seed."""
    return {
        "shortlist.git_commit": git_commit(),
        "shortlist.fingerprint": found.fingerprint.sha256,
        "shortlist.as_of": found.as_of.isoformat() if found.as_of else "",
        "shortlist.seed": str(study.seed),
    }


def train_study(study: Study, place: Place, *, notify: Notify = lambda _: None) -> Outcome:
    """Train a study's fixed values, and its models' defaults for what it would search, without a search.

    Raises:
        StudyError, NotTrainableError, ProtocolError, RegistryError: see there.
    """
    client = connect(place.tracking_uri)
    found = load_study_data(place, study)
    run = start_run(client, study, place, found)
    try:
        return finish_study(study, {s.source: dict(s.fixed) for s in study.sources}, place, found, run, [], notify=notify)
    except BaseException as error:
        run.fail(error)
        raise


def finish_study(
    study: Study,
    configs: Mapping[str, dict[str, Any]],
    place: Place,
    found: StudyData,
    run: Run,
    records: Sequence[TrialRecord],
    *,
    notify: Notify = lambda _: None,
) -> Outcome:
    """Fit the funnel with the chosen configurations, register it and end the run.

    Args:
        study: names what comes after the sources.
        configs: source -> configuration of its model.
        place: where to read and write.
        found: the data.
        run: the study's run.
        records: trials, for the pictures and the count.
        notify: told what is being done.
    """
    rankers = study.funnel.rankers or (RankerConfig(),)
    fitted = fit_funnel(
        study.funnel_config(dict(configs), rankers[0]),
        found.data,
        found.fold,
        dataset=place.dataset,
        seed=study.seed,
        rankers=rankers,
        progress=notify,
    )
    evaluation = fitted.evaluation  # of users that blend and ranker were not fitted on
    chosen = study.with_configs(dict(configs), fitted.pipeline.config.ranker)
    _log_outcome(run, chosen, fitted, evaluation, found, records, study)
    (folder := place.study_folder(study.name)).mkdir(parents=True, exist_ok=True)
    (folder / OUTCOME_FILE).write_text(chosen.model_dump_json(indent=2) + "\n")

    pipeline, trained = fitted.pipeline, fingerprint(found.fold.fit, trained_on="fit", includes_test_rows=False, as_of=found.as_of)
    if study.refit:
        notify("fitting the sources on all activity")
        pipeline, trained = refit(fitted.pipeline, found.data, seed=study.seed), found.fingerprint
    registry = place.registry()
    decision = judge(registry, Validated(place.dataset, study.protocol, _per_user(evaluation, found), "the candidate"))
    notify(f"registering a version of {registry.model}")
    scratch = Path(tempfile.mkdtemp(prefix="shortlist-version-"))
    try:
        pipeline.save(
            scratch / "bundle",
            seed=study.seed,
            fingerprint=trained,
            metrics=evaluation.metrics,
            ci95=evaluation.ci95,
            git_commit=git_commit(),
        )
        version = registry.register(
            scratch / "bundle",
            run_id=run.run_id,
            metrics=evaluation.metrics,
            tags={
                GATE_TAG: decision.verdict,
                GATE_REASON_TAG: decision.reason,
                STUDY_TAG: study.name,
                PROTOCOL_TAG: study.protocol,
                "shortlist.fingerprint": trained.sha256,
                "shortlist.trained_on": trained.trained_on,
            },
        )
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
        registry.close()
    run.set_tags({"shortlist.model_version": version, GATE_TAG: decision.verdict})
    run.end()
    return Outcome(study.name, run.run_id, version, dict(evaluation.metrics), len(records), decision, evaluation)


def evaluate_on(pipeline: Pipeline, fold: Fold, *, seed: int) -> Evaluation:
    """A funnel on a fold whose item numbers are the funnel's."""
    return evaluate(
        lambda queries, k: pipeline.recommend(queries, k, fold.allowed, exclude_history=fold.exclude_history), fold, seed=seed
    )


def judge(registry: Registry, candidate: Validated, rule: GateRule | None = None) -> GateDecision:
    """The gate's verdict on a candidate against the present champion."""
    aliases = registry.aliases()
    if CHAMPION not in aliases:
        return decide(candidate, None, rule)
    champion = registry.version(CHAMPION)
    try:
        validated = validated_version(registry, champion)
    except RegistryError as error:
        return GateDecision("first", (f"the champion has no validation metrics to compare with ({error})",))
    return decide(candidate, validated, rule)


def validated_version(registry: Registry, version: ModelVersion) -> Validated:
    """What the study behind a version found on validation.

    Raises:
        RegistryError: the version has no run, or the run no such file.
    """
    name = f"version {version.version}"
    if version.run_id is None:
        raise RegistryError(f"{name} of {registry.model} was registered without a run")
    table = Run(connect(registry.tracking_uri), version.run_id).read_table(PER_USER_FILE)
    if table is None:
        raise RegistryError(f"run {version.run_id} of {name} has no {PER_USER_FILE}")
    return Validated(registry.dataset, version.tags.get(PROTOCOL_TAG, "unknown"), table, name)


def _per_user(evaluation: Evaluation, found: StudyData) -> pd.DataFrame:
    table = evaluation.per_user.copy()
    users = found.data.interactions.user_ids[table.pop("user_idx").to_numpy()]
    table.insert(0, "user_id", users.astype(str))
    return table


def _log_outcome(
    run: Run,
    chosen: Study,
    fitted: FittedFunnel,
    evaluation: Evaluation,
    found: StudyData,
    records: Sequence[TrialRecord],
    study: Study,
) -> None:
    run.log_params({"protocol": study.protocol, "metric": study.metric, "seed": study.seed, "refit": study.refit})
    run.log_params({"source": {s.source: s.fixed for s in chosen.sources}})
    run.log_params({"ranker": fitted.pipeline.config.ranker.model_dump(mode="json")})
    run.log_metrics(evaluation.metrics)
    run.log_metrics({f"source.{name}.ndcg@10": value for name, value in fitted.report.ndcg10.items()})
    for segment, values in segment_means(evaluation.per_user, study.metric).items():
        run.log_metrics({f"segment.{segment}.{study.metric}": values})
    run.log_json(chosen.model_dump(mode="json"), OUTCOME_FILE)
    run.log_json(fitted.report.to_json(), "funnel_report.json")
    run.log_json({"ci95": evaluation.ci95, "not_evaluated": dict(evaluation.not_evaluated)}, "validation/intervals.json")
    run.log_table(_per_user(evaluation, found), PER_USER_FILE)
    run.log_bytes(metric_bars(fitted.report.ndcg10, "NDCG@10 on validation, over the candidates"), "plots/funnel.png")
    if records:
        run.log_table(trial_table(records), "trials.parquet")
        run.log_bytes(search_curve(records, study.metric, study.direction), "plots/search.png")


def segment_means(per_user: pd.DataFrame, metric: str) -> dict[str, float]:
    """Mean of a metric by length of history: `history_1_5` and so on; segments without users are absent."""
    edges = [0, 5, 20, 100, np.inf]
    names = ["history_0_5", "history_6_20", "history_21_100", "history_over_100"]
    segment = pd.cut(per_user["history_length"], edges, labels=names, include_lowest=True)
    means = per_user.groupby(segment, observed=True)[metric].mean()
    return {str(name): float(value) for name, value in means.items()}


def trial_table(records: Sequence[TrialRecord]) -> pd.DataFrame:
    """One row a trial with its parameters and metrics as columns, ready for a parallel-coordinates plot."""
    rows = [
        {
            "trial": r.name,
            "source": r.source,
            "status": r.status,
            "value": r.value,
            "seconds": r.seconds,
            "reason": r.reason,
            **{f"params.{r.model}.{name}": value for name, value in r.params.items()},
            **{f"metrics.{name}": value for name, value in r.metrics.items()},
        }
        for r in records
    ]
    return pd.DataFrame(rows)


def rejudge(registry: Registry, version: ModelVersion) -> GateDecision:
    """The gate's verdict on a registered version against the present champion; stored with it.

    Raises:
        RegistryError: the version has no validation metrics.
    """
    if CHAMPION in version.aliases:
        raise RegistryError(f"version {version.version} is the champion: there is nothing to judge it against")
    decision = judge(registry, validated_version(registry, version))
    registry.set_tag(version.version, GATE_TAG, decision.verdict)
    registry.set_tag(version.version, GATE_REASON_TAG, decision.reason)
    return decision
