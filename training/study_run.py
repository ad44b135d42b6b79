"""What a study leaves in its MLflow run: what was asked, on which data and code, what came out, with tables and pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from training.bootstrap import PairedComparison
from training.evaluate import Evaluation, paired_bootstrap
from training.funnel import FittedFunnel
from training.plots import metric_bars, search_curve
from training.study import Study
from training.study_data import Place, StudyData
from training.tracking import Run, experiment_id, git_commit
from training.trial_log import TrialRecord

PER_USER_FILE = "validation/per_user.parquet"
"""The shipped funnel's validation metrics, one row a user, taken before the refit."""
OUTCOME_FILE = "outcome.json"
"""The study with everything chosen; `train` takes it as it is."""
STUDY_TAG, PROTOCOL_TAG = "shortlist.study", "shortlist.protocol"


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


def log_outcome(
    run: Run, study: Study, chosen: Study, fitted: FittedFunnel, found: StudyData, records: Sequence[TrialRecord]
) -> None:
    """Log what a study ended with.

    Args:
        run: the study's.
        study: as it was asked.
        chosen: with everything chosen.
        fitted: the funnel that ships, measured on validation.
        found: the data.
        records: the trials, empty without a search.
    """
    evaluation, report = fitted.evaluation, fitted.report
    run.log_params({"protocol": study.protocol, "metric": study.metric, "seed": study.seed, "refit": study.refit})
    run.log_params({"source": {s.source: s.fixed for s in chosen.sources}})
    run.log_params({"ranker": fitted.pipeline.config.ranker.model_dump(mode="json")})
    run.log_metrics(evaluation.metrics)
    for name, single in fitted.singles.items():
        run.log_metrics({f"source.{name}.{study.metric}": single.metrics[study.metric]})
    run.log_metrics({f"recall.{name}": value for name, value in report.recall.items()})
    run.log_metrics({f"seconds.{name}": value for name, value in report.seconds.items()})
    for name, segment in evaluation.segments.items():
        run.log_metrics({f"segment.{name}.{metric}": value for metric, value in segment.metrics.items()})
    run.log_json({name: segment.to_json() for name, segment in evaluation.segments.items()}, "validation/segments.json")
    run.log_json(chosen.model_dump(mode="json"), OUTCOME_FILE)
    run.log_json(report.to_json(), "funnel_report.json")
    run.log_json({"ci95": evaluation.ci95, "not_evaluated": dict(evaluation.not_evaluated)}, "validation/intervals.json")
    run.log_table(per_user_table(evaluation, found), PER_USER_FILE)
    run.log_bytes(metric_bars(report.ndcg10, "NDCG@10 on validation, over the candidates"), "plots/funnel.png")
    if records:
        run.log_table(trial_table(records), "trials.parquet")
        run.log_bytes(search_curve(records, study.metric, study.direction), "plots/search.png")


def against_sources(evaluation: Evaluation, singles: Mapping[str, Evaluation], metric: str) -> dict[str, PairedComparison]:
    """The funnel less each of its sources alone, on the same users, by paired bootstrap."""
    return {name: paired_bootstrap(evaluation, single, metric) for name, single in singles.items()}


def per_user_table(evaluation: Evaluation, found: StudyData) -> pd.DataFrame:
    """Metrics of every user under their outside id."""
    table = evaluation.per_user.copy()
    users = found.data.interactions.user_ids[table.pop("user_idx").to_numpy()]
    table.insert(0, "user_id", users.astype(str))
    return table


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
