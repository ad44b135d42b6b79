"""A whole study: search each source, then train the funnel out of the best, register it. Continues after an interruption.

What a study leaves on disk lies below `<dataset>/studies/<name>/`: which data and run it belongs to, its trials, its outcome.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

import psutil

from training.budget import budget_of, part_of
from training.errors import StudyError
from training.fold import drawn, users_within
from training.models.registry import MODELS
from training.search import Finished, StudySearch
from training.search_watch import best_trials
from training.study import Study
from training.study_data import Place, StudyData, load_study_data
from training.study_run import provenance, start_run
from training.tracking import Run, TrialRuns, connect
from training.train import Notify, Outcome, finish_study
from training.trial import TrialTask
from training.trial_log import TrialLog, TrialRecord
from training.tune import run_search
from training.tune_progress import SearchProgress
from training.weights import data_sha256

MEMORY_SHARE = 0.9
"""Share of the free memory that the fit of one source may need."""


def tune_study(
    study: Study,
    place: Place,
    *,
    trials: int | None = None,
    minutes: float | None = None,
    resume: bool = False,
    on_progress: Callable[[SearchProgress], None] | None = None,
    notify: Notify = lambda _: None,
) -> Outcome:
    """Run a study on the Ray that this process is connected to.

    Args:
        study: what to tune.
        place: where to read and write.
        trials, minutes: caps that replace the study's own.
        resume: continue the last, interrupted call: trials that ended count, those that were running are done anew.
        on_progress: told of every change of the search.
        notify: told what is being done besides.

    Raises:
        StudyError: nothing to resume, it was another study or on other data, or no trial of any source succeeded.
        NotTrainableError, ProtocolError, RegistryError: see there.
    """
    started = time.time()
    limit = minutes if minutes is not None else study.minutes
    asked = study
    client = connect(place.tracking_uri)
    log = TrialLog(place.study_folder(study.name))
    notify(f"reading dataset {place.dataset}")
    if resume:
        found, run = _continued(study, place, log, client)
        notify(f"continuing after {len(log.records())} trials")
    else:
        found = load_study_data(place, study)
        run = start_run(client, study, place, found)
        log.begin(
            {
                "study_sha256": study.digest(),
                "fingerprint": found.fingerprint.sha256,
                "as_of": found.as_of.isoformat() if found.as_of else "",
                "run_id": run.run_id,
            }
        )
    try:
        study = fitting_sources(study, found, notify)
        budget = budget_of(started, limit, study, rows=len(found.data.interactions), fit_rows=len(found.fold.fit))
        runs = TrialRuns(client, run, provenance(asked, found), lambda reason: notify(f"MLflow is gone, trials go on: {reason}"))
        if resume:
            runs.end_abandoned({r.run_id: (r.run_status, r.reason) for r in log.records() if r.run_id})
        records = run_search(
            study,
            trial_task(study, place, found),
            StudySearch(study, study.allocation(trials), _finished(log.records())),
            log,
            runs,
            budget=budget,
            on_progress=on_progress,
        )
        configs = chosen_configs(study, records, notify, limited=limit is not None)
        study = part_of(study, list(configs))
        return finish_study(study, configs, place, found, run, records, budget=budget, notify=notify)
    except BaseException as error:
        run.fail(error)
        raise


def trial_task(study: Study, place: Place, found: StudyData) -> TrialTask:
    """What the trials of a study share."""
    return TrialTask(
        found.data,
        drawn(found.fold, users_within(found.data.interactions.num_items), study.seed),
        study.metric,
        study.seed,
        patience=study.patience_epochs,
        weights=place.weights(study.name),
        data_sha256=data_sha256(replace(found.data, interactions=found.fold.fit)),
    )


def fitting_sources(study: Study, found: StudyData, notify: Notify) -> Study:
    """The study without the optional sources whose model does not fit in memory.

    Raises:
        StudyError: none is left.
    """
    free = int(psutil.virtual_memory().available * MEMORY_SHARE)
    kept = []
    for source in study.sources:
        model = MODELS[source.model]
        wanted = model.training_bytes(model.Config.model_validate({**source.fixed, **source.default_params()}), found.fold.fit)
        if source.optional and wanted > free:
            notify(f"source {source.source} left out: it needs {wanted / 2**30:.1f} GB, and {free / 2**30:.1f} GB are free")
        else:
            kept.append(source.source)
    if not kept:
        raise StudyError("no source of this study fits in memory: add a sparse one, such as transition_knn")
    return part_of(study, kept)


def chosen_configs(study: Study, records: Sequence[TrialRecord], notify: Notify, *, limited: bool) -> dict[str, dict[str, Any]]:
    """Source -> configuration for the funnel: its best trial's, or its fixed values and defaults where it had no trial.

    Optional sources without a trial that succeeded are absent. So are, in a study with a time limit, slow ones without a trial:
    their defaults would take any time.

    Args:
        study: the study.
        records: its trials.
        notify: told what is left out, and why.
        limited: whether there was a time limit.

    Raises:
        StudyError: a source was tried and every trial of it failed (the message has the last reason), or none is left.
    """
    best = best_trials(study, list(records))
    configs = {}
    for source in study.sources:
        if source.source in best:
            configs[source.source] = best[source.source].config
            continue
        failed = [record for record in records if record.source == source.source and record.status == "failed"]
        if failed and not source.optional:
            raise StudyError(
                f"every trial of source {source.source!r} failed, the last with: {failed[-1].reason}. Narrow its space, drop "
                "it, or let it be left out with `optional = true`"
            )
        if failed:
            notify(f"source {source.source} left out: every trial of it failed, the last with: {failed[-1].reason}")
        elif limited and MODELS[source.model].slow:
            notify(f"source {source.source} left out: there was no time for a trial of it")
        else:
            notify(f"source {source.source} had no trial in the time given: its defaults are used")
            configs[source.source] = dict(source.fixed)
    if not configs:
        raise StudyError("no source of this study could be trained on this data: the reasons are above and in its MLflow run")
    return configs


def _continued(study: Study, place: Place, log: TrialLog, client: Any) -> tuple[StudyData, Run]:
    head = log.head()
    if head is None:
        raise StudyError(f"study {study.name!r} was not begun on dataset {place.dataset!r}: start it without --resume")
    if head["study_sha256"] != study.digest():
        raise StudyError(f"study {study.name!r} has changed since it was interrupted: start it without --resume")
    found = load_study_data(place, study, as_of=datetime.fromisoformat(head["as_of"]) if head["as_of"] else None)
    if found.fingerprint.sha256 != head["fingerprint"]:
        raise StudyError(
            f"dataset {place.dataset!r} has other activity up to {head['as_of'] or 'now'} than when the study began, so its trials "
            "cannot be compared: start it without --resume"
        )
    run = Run(client, head["run_id"])
    run.reopen()
    return found, run


def _finished(records: Sequence[TrialRecord]) -> list[Finished]:
    return [Finished(r.source, r.number, r.params, r.value) for r in records]
