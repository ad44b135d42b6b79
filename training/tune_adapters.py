"""Our search, early stopping and progress in the forms that Ray Tune asks: a searcher, a scheduler and a callback.

With `training.tune` the only module that knows `ray.tune`.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import psutil
import ray
from pydantic import ValidationError
from ray import tune
from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from training.budget import Budget
from training.members import with_members
from training.models.registry import MODELS
from training.search import Proposal, StudySearch
from training.search_watch import SearchWatch, best_trials
from training.study import Study
from training.trial import TrialTask
from training.trial_log import TrialRecord
from training.trial_process import failure_reason

MEMORY_SHARE = 0.9
"""Share of the memory that Ray counts on which one trial may ask for."""
PROCESS_BYTES = 600 * 2**20
"""A trial's process with the libraries, its share of the data and an evaluation's block of scores (300 to 700 MB on ml-100k)."""
MEMORY_STEP = 512 * 2**20


class _NotKept:
    """Tune writes its searcher and callbacks to disk and copies them. Ours hold connections and a screen, and their state is the
    log's: what is written is empty, and a copy is the thing itself."""

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self


class AskTell(_NotKept, Searcher):
    """`StudySearch` in the form that Tune asks."""

    def __init__(
        self,
        search: StudySearch,
        sources: Sequence[str],
        study: Study,
        task: TrialTask,
        mode: str,
        budget: Budget,
        watch: SearchWatch,
        cores: int,
    ) -> None:
        super().__init__(metric="objective", mode=mode)
        self._search, self._sources, self._study, self._task = search, sources, study, task
        self._budget, self._watch, self._cores = budget, watch, cores
        self._proposals: dict[str, Proposal] = {}
        self._grown: set[str] = set()

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        best, now = best_trials(self._study, self._watch.records), time.time()
        while True:
            proposal = self._more_members(best, now) or self._search.ask(self._sources)
            if proposal is None:
                return str(Searcher.FINISHED)
            slow, quick_until = MODELS[proposal.model].slow, self._budget.quick_until(self._study)
            end_at = self._budget.slow_trial_end(proposal.source, self._study, best, now) if slow else quick_until
            if end_at is not None and (slow or now < quick_until):
                break
            self._search.give_up(proposal.source)
        self._proposals[trial_id] = proposal
        return {
            "name": proposal.name,
            "source": proposal.source,
            "model": proposal.model,
            "number": proposal.number,
            "params": dict(proposal.params),
            "config": dict(proposal.config),
            "memory_bytes": _memory_bytes(proposal, self._task),
            "cores": self._cores,
            "end_at": end_at,
            "over_at": self._budget.over_at(proposal.source, self._study, best, now, end_at),
            # What refits of quick models take is kept already.
            "refit_share": self._budget.refit_share if slow else 0.0,
            "may_stop": proposal.source not in self._grown,
        }

    def _more_members(self, best: Mapping[str, TrialRecord], now: float) -> Proposal | None:
        for source in [name for name in self._sources if name not in self._grown]:
            over = self._search.unspent([source]) == 0
            config = with_members(source, self._study, self._watch.records, best, self._budget, now, over=over)
            if config is not None:
                self._grown.add(source)
                return self._search.again(source, best[source].params, config)
        return None

    def on_trial_complete(self, trial_id: str, result: Mapping[str, Any] | None = None, error: bool = False) -> None:
        proposal = self._proposals.pop(trial_id, None)
        if proposal is not None:
            value = None if error or result is None else result.get("objective")
            self._search.tell(proposal.source, proposal.number, value)

    def save(self, checkpoint_path: str) -> None:
        """Tune's own state is not used (see the module), but it insists on a file."""
        Path(checkpoint_path).write_text("")

    def restore(self, checkpoint_path: str) -> None:
        raise NotImplementedError("a study continues from its trial log, not from Tune's state")


class PerSourceAsha(FIFOScheduler):
    """ASHA among the trials of each source by itself: learning curves of different models are not comparable.

    Trials that report no `epoch` run to their end, and so does the one that has more members of the best.
    """

    def __init__(self, mode: str, grace_epochs: int) -> None:
        super().__init__()
        self._mode, self._grace = mode, grace_epochs
        self._of: dict[str, AsyncHyperBandScheduler] = {}

    def _asha(self, trial: Any) -> AsyncHyperBandScheduler:
        source = trial.config["source"]
        if source not in self._of:
            self._of[source] = AsyncHyperBandScheduler(
                time_attr="epoch",
                metric="objective",
                mode=self._mode,
                grace_period=self._grace,
                reduction_factor=3,
                max_t=10_000,
                stop_last_trials=False,
            )
        return self._of[source]

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        self._asha(trial).on_trial_add(tune_controller, trial)

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        if "final" in result or not trial.config["may_stop"]:
            return str(TrialScheduler.CONTINUE)
        return str(self._asha(trial).on_trial_result(tune_controller, trial, result))

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        self._asha(trial).on_trial_complete(tune_controller, trial, result)


class WatchCallback(_NotKept, tune.Callback):
    """Tells a `SearchWatch` what Tune tells."""

    def __init__(self, watch: SearchWatch) -> None:
        self._watch = watch

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._watch.started(trial.trial_id, trial.config)

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any) -> None:
        self._watch.reported(trial.trial_id, {k: float(v) for k, v in result.items() if k in _ours(result)})

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._watch.ended(trial.trial_id, trial.config)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        # A slow one that has reported was in time (`training.tune`): whatever it died of, it was not its end.
        in_time = MODELS[trial.config["model"]].slow and "epoch" in trial.run_metadata.last_result
        over_at = float("inf") if in_time else trial.config["over_at"]
        self._watch.failed(trial.trial_id, trial.config, failure_reason(trial.error_file, over_at))


_TUNE_FIELDS = frozenset(
    {
        "timestamp",
        "checkpoint_dir_name",
        "done",
        "training_iteration",
        "trial_id",
        "date",
        "time_this_iter_s",
        "time_total_s",
        "pid",
    }
    | {"hostname", "node_ip", "config", "time_since_restore", "iterations_since_restore", "experiment_tag"}
)


def _ours(result: Mapping[str, Any]) -> set[str]:
    return {name for name, value in result.items() if name not in _TUNE_FIELDS and isinstance(value, int | float)}


def _memory_bytes(proposal: Proposal, task: TrialTask) -> int:
    """Memory that a trial asks Ray for. Ray counts it and bounds nothing.

    A trial that could never fit asks for nearly all there is and runs alone: whether it fits is for the model to say.
    """
    model = MODELS[proposal.model]
    try:
        wanted = PROCESS_BYTES + model.training_bytes(model.Config.model_validate(proposal.config), task.fold.fit)
    except ValidationError:
        wanted = PROCESS_BYTES  # a configuration that the model refuses: the trial says so
    most = int(ray.cluster_resources().get("memory", psutil.virtual_memory().available) * MEMORY_SHARE)
    # In steps, because trials with equal needs share a process.
    return min(-(-wanted // MEMORY_STEP) * MEMORY_STEP, most)
