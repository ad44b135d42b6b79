"""Our metrics against RecTools' on the same lists of real data.

RecTools pins other versions of numpy, so it has an environment of its own, and lists travel as CSV:

    python tests/benchmarks/rectools_agreement.py lists FOLDER WORK       # in Shortlist's environment
    python tests/benchmarks/rectools_agreement.py compare WORK            # where RecTools is installed; exits 1 if they differ

FOLDER is a dataset in the exchange form. Lists are those of transition kNN under leave-one-out and under the
stratified protocol, which has many targets a user; figures are ours, from `training.evaluate`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pandas as pd

K = 10
PROTOCOLS = ("leave-one-out", "stratified")
TOLERANCE = 1e-9


def write_lists(folder: Path, work: Path) -> None:
    """Lists, targets, what was fitted on, and our figures."""
    import numpy as np

    from training.dataset import from_frame
    from training.evaluate import evaluate, retriever_recommend
    from training.models.base import TrainingData
    from training.models.transition_knn import TransitionKnn
    from training.splits import PROTOCOLS as FOLDS

    interactions = from_frame(pd.read_parquet(folder / "interactions.parquet"))
    work.mkdir(parents=True, exist_ok=True)
    for protocol in PROTOCOLS:
        fold = FOLDS[protocol](interactions, "test", refit=False)
        recommend = retriever_recommend(TransitionKnn().fit(TrainingData(fold.fit)), fold)
        found = evaluate(recommend, fold)
        lists = recommend(fold.queries, K + 1)
        # Equal scores would be ordered by item number here and against the model in ours.
        tied = (lists.score[:, 1:] == lists.score[:, :-1]) & (lists.item_idx[:, 1:] >= 0)
        clean = np.flatnonzero(~tied.any(axis=1))
        rows, places = np.nonzero(lists.item_idx[clean, :K] >= 0)
        reco = pd.DataFrame({"user_id": clean[rows], "item_id": lists.item_idx[clean][rows, places], "rank": places + 1})
        owner = np.repeat(np.arange(len(fold.queries)), np.diff(fold.target_indptr))
        targets = pd.DataFrame({"user_id": owner, "item_id": fold.target_idx})
        fit = pd.DataFrame({"user_id": fold.fit.user_idx, "item_id": fold.fit.item_idx}).drop_duplicates()
        reco.to_csv(work / f"{protocol}.lists.csv", index=False)
        targets[targets["user_id"].isin(clean)].to_csv(work / f"{protocol}.targets.csv", index=False)
        fit.to_csv(work / f"{protocol}.fit.csv", index=False)
        ours = found.per_user.iloc[clean].drop(columns=["user_idx", "history_length", "num_targets"])
        figures = {name: float(value) for name, value in ours.mean().items() if name.endswith(f"@{K}")}
        (work / f"{protocol}.ours.json").write_text(json.dumps({"users": len(clean), "of": len(fold.queries), **figures}))
        print(f"{protocol}: {len(clean):,} of {len(fold.queries):,} users have lists without ties")


def compare(work: Path) -> int:
    """Print both sides; how many figures differ."""
    from rectools.metrics import MAP, MRR, NDCG, HitRate, MeanInvUserFreq, Precision, Recall

    different = 0
    for protocol in PROTOCOLS:
        lists = pd.read_csv(work / f"{protocol}.lists.csv")
        targets = pd.read_csv(work / f"{protocol}.targets.csv")
        fit = pd.read_csv(work / f"{protocol}.fit.csv")
        ours = json.loads((work / f"{protocol}.ours.json").read_text())
        theirs = {
            f"hr@{K}": HitRate(K).calc(lists, targets),
            f"recall@{K}": Recall(K).calc(lists, targets),
            f"precision@{K}": Precision(K).calc(lists, targets),
            f"ndcg@{K}": NDCG(K, divide_by_achievable=True).calc(lists, targets),
            f"mrr@{K}": MRR(K).calc(lists, targets),
            f"map@{K}": MAP(K).calc(lists, targets),
            f"novelty@{K}": MeanInvUserFreq(K).calc(lists, fit),
        }
        print(f"{protocol}, {ours['users']:,} users\n{'metric':<14}{'ours':>16}{'RecTools':>16}{'difference':>14}")
        for name, value in theirs.items():
            gap = ours[name] - float(value)
            different += abs(gap) > TOLERANCE
            print(f"{name:<14}{ours[name]:>16.10f}{float(value):>16.10f}{gap:>14.1e}")
    return different


if __name__ == "__main__":
    if sys.argv[1:2] == ["lists"] and len(sys.argv) == 4:
        write_lists(Path(sys.argv[2]), Path(sys.argv[3]))
    elif sys.argv[1:2] == ["compare"] and len(sys.argv) == 3:
        sys.exit(1 if compare(Path(sys.argv[2])) else 0)
    else:
        sys.exit(__doc__)
