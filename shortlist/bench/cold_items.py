"""Cold items: a study's funnel and plain text-kNN on items taken out of training, ranked among cold items and among all."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np
import scipy.sparse as sp

from training.candidates import RankedLists, Retrieved
from training.content_columns import content_columns
from training.evaluate import Evaluation, Recommend, evaluate, paired_bootstrap, retriever_recommend
from training.fold import drawn
from training.models.base import TrainingData, top_k
from training.pipeline import Pipeline
from training.queries import QueryBatch
from training.splits import Fold, cold_items
from training.study import Study
from training.study_data import Place, StudyData
from training.text_vectors import token_weights
from training.train import Notify, fit_study

METRICS = ("ndcg@10", "recall@10", "hr@10")


def measure_cold_items(study: Study, place: Place, found: StudyData, notify: Notify) -> dict[str, Any]:
    """The funnel with the study's fixed values, fitted and chosen on the validation's cold items, on the test's; strict.

    Args:
        study: names the sources; of the cold-items protocol.
        place: the dataset.
        found: its data, cut for the protocol.
        notify: told what is being done.

    Returns:
        `validation` (which the study was chosen on, ranked as it says), `cold` and `all` (the test, by what is ranked among) ->
        `users`, and per recommender its metrics, their intervals, and the ratio and paired difference to text-kNN.
    """
    configs = {source.source: dict(source.fixed) for source in study.sources}
    fitted = fit_study(study, configs, place, found, notify)
    pipeline, chosen = fitted.pipeline, {"funnel": fitted.evaluation, **fitted.singles}
    asked = drawn(found.fold, len(fitted.evaluation.per_user), study.seed)  # those that the funnel was measured on
    plain = evaluate(text_knn(found.data, asked), asked)
    result: dict[str, Any] = {"ranker": pipeline.config.ranker.kind}
    result["validation"] = {"users": len(asked.queries), "text-kNN": _figures(plain, plain)} | {
        name: _figures(evaluation, plain) for name, evaluation in chosen.items()
    }
    notify(f"validation: {result['validation']['funnel']['ratio']:.3f} times text-kNN")
    for among in ("cold", "all"):
        test = cold_items(found.data.interactions, "test", among="cold" if among == "cold" else "all")
        notify(f"asking for {len(test.queries):,} users, among {among}")
        recommenders: dict[str, Recommend] = {"text-kNN": text_knn(found.data, test), "funnel": _funnel(pipeline, test)}
        recommenders |= {source.name: retriever_recommend(source.retriever, test) for source in pipeline.sources}
        evaluations = {name: evaluate(recommend, test) for name, recommend in recommenders.items()}
        result[among] = {"users": len(test.queries)} | {
            name: _figures(evaluation, evaluations["text-kNN"]) for name, evaluation in evaluations.items()
        }
        notify(f"test, among {among}: {result[among]['funnel']['ratio']:.3f} times text-kNN")
    return result


def text_knn(data: TrainingData, fold: Fold) -> Recommend:
    """Plain text-kNN, exact: the sum over the history of TF-IDF cosines of texts, nothing reduced or learned."""
    columns = content_columns(data.item_attributes, data.interactions.num_items)
    words = token_weights(columns.documents, columns.tags[:, :0])

    def recommend(queries: QueryBatch, k: int) -> Retrieved | RankedLists:
        ones = np.ones(len(queries.item_idx), dtype=np.float32)
        history = sp.csr_matrix((ones, (queries.row, queries.item_idx)), shape=(len(queries), words.shape[0]))
        scores = np.asarray((history @ words @ words.T).todense(), dtype=np.float32)
        if fold.exclude_history:
            scores[queries.row, queries.item_idx] = -np.inf
        if fold.allowed is not None:
            scores[:, ~fold.allowed] = -np.inf
        return top_k(scores, k)

    return recommend


def cold_items_markdown(result: dict[str, Any]) -> str:
    """One table: recommenders on validation, and on the test by what is ranked among, with intervals and the ratio to text-kNN."""
    lines = [f"| on / among | recommender | {' | '.join(METRICS)} | ndcg@10 / text-kNN |", f"|---|---|{'---|' * len(METRICS)}---|"]
    for part, among in (("validation", "validation"), ("cold", "test / cold"), ("all", "test / all")):
        for name, found in result[part].items():
            if name == "users":
                continue
            cells = [f"{found[m]['mean']:.4f} ({found[m]['ci95'][0]:.4f} to {found[m]['ci95'][1]:.4f})" for m in METRICS]
            lines.append(f"| {among} | {name} | {' | '.join(cells)} | {found['ratio']:.3f} |")
    return "\n".join(lines)


def _funnel(pipeline: Pipeline, fold: Fold) -> Recommend:
    return lambda queries, k: pipeline.recommend(queries, k, fold.allowed, exclude_history=fold.exclude_history)


def _figures(evaluation: Evaluation, plain: Evaluation) -> dict[str, Any]:
    figures: dict[str, Any] = {
        name: {"mean": round(evaluation.metrics[name], 6), "ci95": [round(end, 6) for end in evaluation.ci95[name]]}
        for name in METRICS
    }
    figures["ratio"] = round(evaluation.metrics["ndcg@10"] / max(plain.metrics["ndcg@10"], 1e-12), 4)
    figures["against_text_knn"] = asdict(paired_bootstrap(evaluation, plain, "ndcg@10"))
    return figures
