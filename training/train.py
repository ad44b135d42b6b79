"""From chosen configurations to a registered version: fit the funnel, measure it on validation, refit, save, gate, register.

Both `tune`, after its search, and `train`, without one, end here. Choosing reads validation rows only; the refit that is
registered for serving may read all, and its fingerprint says so.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from training.bootstrap import PairedComparison
from training.budget import Budget
from training.bundle import DataFingerprint, fingerprint
from training.evaluate import Evaluation
from training.funnel import FittedFunnel, fit_funnel, refit
from training.funnel_config import RankerConfig
from training.gate import GateDecision, Validated
from training.judge import judge
from training.model_version import GATE_REASON_TAG, GATE_TAG
from training.pipeline import Pipeline
from training.registry import Registry
from training.search_watch import best_trials
from training.study import Study
from training.study_data import Place, StudyData, load_study_data
from training.study_run import OUTCOME_FILE, PROTOCOL_TAG, STUDY_TAG, against_sources, log_outcome, per_user_table, start_run
from training.tracking import Run, connect, git_commit
from training.trial_log import TrialRecord
from training.weights import data_sha256

Notify = Callable[[str], None]
"""Told in one line what is being done."""


@dataclass(frozen=True)
class Outcome:
    """What a study ended with.

    Args:
        study: its name.
        run_id: its MLflow run.
        model_version: number of the registered version.
        trials: how many were run, failed ones included.
        shipped: `blend`, or the kind of the ranker that beat it.
        gate: the verdict on the version.
        evaluation: of the funnel on validation, before the refit.
        against: source -> the funnel less that source alone, in the study's metric.
    """

    study: str
    run_id: str
    model_version: str
    trials: int
    shipped: str
    gate: GateDecision
    evaluation: Evaluation
    against: Mapping[str, PairedComparison]

    def to_json(self) -> dict[str, Any]:
        """The object that `shortlist tune --json` prints (DESIGN 4.3)."""
        return {
            "study": self.study,
            "run_id": self.run_id,
            "model_version": self.model_version,
            "metrics": {name: round(value, 6) for name, value in self.evaluation.metrics.items()},
            "trials": self.trials,
            "ranker": self.shipped,
            "against_sources": comparisons_json(self.against),
            "gate": {"verdict": self.gate.verdict, "reasons": list(self.gate.reasons)},
        }


def train_study(study: Study, place: Place, *, notify: Notify = lambda _: None) -> Outcome:
    """Train a study's fixed values, and its models' defaults for what it would search, without a search.

    Raises:
        StudyError, NotTrainableError, ProtocolError, RegistryError: see there.
    """
    client = connect(place.tracking_uri)
    notify(f"reading dataset {place.dataset}")
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
    budget: Budget | None = None,
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
        budget: bounds the time of the rankers; None sets no limit.
        notify: told what is being done.
    """
    weights = place.weights(study.name)
    end_at = None if budget is None or budget.minutes is None else budget.funnel_until(best_trials(study, list(records)))
    fitted = fit_study(study, configs, place, found, notify, end_at=end_at)
    evaluation = fitted.evaluation
    chosen = study.with_configs(dict(configs), fitted.pipeline.config.ranker)
    log_outcome(run, study, chosen, fitted, found, records)
    folder = place.study_folder(study.name)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / OUTCOME_FILE).write_text(chosen.model_dump_json(indent=2) + "\n")

    pipeline, trained = (
        fitted.pipeline,
        fingerprint(found.fold.fit, trained_on="fit", includes_test_rows=False, as_of=found.fingerprint.as_of),
    )
    if study.refit:
        pipeline, trained = refit(fitted.pipeline, found.data, seed=study.seed, weights=weights, progress=notify), found.fingerprint
    registry = place.registry()
    try:
        decision = judge(registry, Validated(place.dataset, study.protocol, per_user_table(evaluation, found), "the candidate"))
        notify(f"registering a version of {registry.model}")
        version = _register(registry, pipeline, trained, evaluation, study, run, decision)
    finally:
        registry.close()
    fit = data_sha256(replace(found.data, interactions=found.fold.fit))
    # What the refit kept is in the version now.
    weights.prune({weights.path(s.model, s.config, fit, study.seed) for s in fitted.pipeline.config.sources})
    run.set_tags({"shortlist.model_version": version, GATE_TAG: decision.verdict})
    run.end()
    against = against_sources(evaluation, fitted.singles, study.metric)
    return Outcome(study.name, run.run_id, version, len(records), fitted.report.shipped, decision, evaluation, against)


def fit_study(
    study: Study,
    configs: Mapping[str, dict[str, Any]],
    place: Place,
    found: StudyData,
    notify: Notify,
    *,
    end_at: float | None = None,
) -> FittedFunnel:
    """Fit the funnel of a study; the best of its rankers ships, or the blend where none beats it.

    Sources that the study has fitted on the same rows before, its best trials among them, are not fitted again.
    """
    rankers = study.funnel.rankers or (RankerConfig(kind="blend"),)
    config = study.funnel_config(dict(configs), rankers[0])
    return fit_funnel(
        config,
        found.data,
        found.fold,
        dataset=place.dataset,
        seed=study.seed,
        rankers=rankers,
        weights=place.weights(study.name),
        end_at=end_at,
        progress=notify,
    )


def comparisons_json(comparisons: Mapping[str, PairedComparison]) -> dict[str, dict[str, Any]]:
    """Paired comparisons as plain values."""
    return {
        name: {
            "metric": c.metric,
            "difference": round(c.difference, 6),
            "ci95": [round(c.ci95[0], 6), round(c.ci95[1], 6)],
            "p": round(c.p, 6),
        }
        for name, c in comparisons.items()
    }


def _register(
    registry: Registry,
    pipeline: Pipeline,
    trained: DataFingerprint,
    evaluation: Evaluation,
    study: Study,
    run: Run,
    decision: GateDecision,
) -> str:
    scratch = Path(tempfile.mkdtemp(prefix="shortlist-version-"))
    try:
        bundle = scratch / "bundle"
        commit = git_commit()
        pipeline.save(
            bundle, seed=study.seed, fingerprint=trained, metrics=evaluation.metrics, ci95=evaluation.ci95, git_commit=commit
        )
        return registry.register(
            bundle,
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
