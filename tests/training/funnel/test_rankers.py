"""What every ranker promises, on planted lists: a signal that the blend lacks is found, noise leaves the blend as it is."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from training.arrays import save_arrays
from training.blend_search import candidate_ndcg
from training.errors import BundleError, StudyError
from training.funnel_config import RankerConfig
from training.interactions import BoolArray
from training.rankers.base import Ranker, RankingBatch, draw_candidates, hold_out, standardised
from training.rankers.lambdamart import LambdaMart, LambdaMartConfig
from training.rankers.listwise import Listwise, ListwiseConfig
from training.rankers.listwise_network import CLIP, ListwiseNetwork, parameter_shapes
from training.rankers.listwise_training import Network
from training.rankers.registry import RANKER_CLASSES, RANKER_KINDS, ranker_class, ranker_settings

SMALL: dict[str, Ranker] = {
    "lambdamart": LambdaMart(LambdaMartConfig(max_trees=60, min_data_in_leaf=20, num_leaves=8)),
    "listwise": Listwise(ListwiseConfig(max_epochs=8, hidden=(16,), cross_layers=1, batch_queries=32)),
}


def fresh(kind: str) -> Ranker:
    return ranker_class(kind)(SMALL[kind].config)


def planted(
    rng: np.random.Generator, queries: int = 300, width: int = 40, *, signal: float = 1.0
) -> tuple[RankingBatch, BoolArray]:
    """Lists whose target depends on the blend and, by `signal`, on feature `hidden`; `noise` is noise, `holes` is half unknown."""
    features = rng.normal(size=(queries, width, 4)).astype(np.float32)
    valid = np.arange(width) < rng.integers(20, width + 1, queries)[:, None]
    base = standardised(features[:, :, 0], valid)
    taste = base + signal * features[:, :, 1] + 0.5 * rng.gumbel(size=(queries, width))
    labels = np.zeros((queries, width), dtype=bool)
    labels[np.arange(queries), np.where(valid, taste, -np.inf).argmax(axis=1)] = True
    features[:, :, 3][rng.random((queries, width)) < 0.5] = np.nan
    features[~valid] = np.nan
    return RankingBatch(("blend_z", "hidden", "noise", "holes"), features, valid, base), labels


def ndcg(scores: np.ndarray, batch: RankingBatch, labels: BoolArray) -> float:
    return float(candidate_ndcg(scores, labels, batch.valid, labels.sum(axis=1)).mean())


@pytest.mark.parametrize("kind", RANKER_KINDS)
def test_a_hidden_signal_is_found(kind: str, rng: np.random.Generator) -> None:
    train, labels = planted(rng)
    other, other_labels = planted(rng)
    ranker = fresh(kind).fit(train, labels, seed=1)
    assert ndcg(ranker.score(other), other, other_labels) > ndcg(other.base, other, other_labels) + 0.1
    assert next(iter(ranker.importance())) in {"hidden", "blend_z"}
    assert sum(ranker.importance().values()) == pytest.approx(1.0, abs=1e-4)


def test_one_line_of_the_registry_makes_a_ranker_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """Study files may ask for it, as `training/rankers/base.py` says; what is in no line is refused with those that are."""
    monkeypatch.setitem(RANKER_CLASSES, "own", "training.rankers.listwise:Listwise")
    assert RankerConfig(kind="own").kind == "own"
    assert ranker_class("own") is Listwise
    with pytest.raises(ValidationError, match="unknown ranker 'other'; known: blend, lambdamart, listwise, own"):
        RankerConfig(kind="other")


@pytest.mark.parametrize("kind", RANKER_KINDS)
def test_without_a_signal_the_blend_stays(kind: str, rng: np.random.Generator) -> None:
    train, labels = planted(rng, signal=0.0)
    other, other_labels = planted(rng, signal=0.0)
    ranker = fresh(kind).fit(train, labels, seed=1)
    assert ndcg(ranker.score(other), other, other_labels) > ndcg(other.base, other, other_labels) - 0.04


@pytest.mark.parametrize("kind", RANKER_KINDS)
def test_saved_and_loaded_scores_are_equal(kind: str, rng: np.random.Generator, tmp_path: Path) -> None:
    batch, labels = planted(rng, 100)
    ranker = fresh(kind).fit(batch, labels, seed=1, rounds=3)
    ranker.save(tmp_path)
    loaded = ranker_class(kind).load(tmp_path, ranker.config, batch.names)
    np.testing.assert_array_equal(loaded.score(batch), ranker.score(batch))
    assert loaded.importance() == pytest.approx(ranker.importance())


@pytest.mark.parametrize("kind", RANKER_KINDS)
def test_equal_seeds_give_equal_rankers(kind: str, rng: np.random.Generator) -> None:
    batch, labels = planted(rng, 100)
    scores = [fresh(kind).fit(batch, labels, seed=seed).score(batch) for seed in (5, 5)]
    np.testing.assert_array_equal(scores[0], scores[1])


@pytest.mark.parametrize("kind", RANKER_KINDS)
def test_one_query_scores_as_in_the_batch(kind: str, rng: np.random.Generator) -> None:
    batch, labels = planted(rng, 60)
    ranker = fresh(kind).fit(batch, labels, seed=1, rounds=2)
    alone = np.concatenate([ranker.score(batch.rows(np.array([b]))) for b in range(60)])
    np.testing.assert_allclose(alone[batch.valid], ranker.score(batch)[batch.valid], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", RANKER_KINDS)
def test_unknown_features_leave_finite_scores(kind: str, rng: np.random.Generator) -> None:
    batch, labels = planted(rng, 60)
    ranker = fresh(kind).fit(batch, labels, seed=1, rounds=2)
    empty = replace(batch, features=np.full_like(batch.features, np.nan))
    assert np.isfinite(ranker.score(empty)[batch.valid]).all()
    none = batch.rows(np.arange(0))
    assert ranker.score(none).shape == (0, batch.base.shape[1])


@pytest.mark.parametrize("kind", RANKER_KINDS)
def test_rounds_are_obeyed(kind: str, rng: np.random.Generator) -> None:
    batch, labels = planted(rng, 60)
    assert fresh(kind).fit(batch, labels, seed=1, rounds=4).rounds == 4


@pytest.mark.parametrize("kind", RANKER_KINDS)
def test_rounds_are_counted_on_whole_groups(kind: str, rng: np.random.Generator) -> None:
    """What is learned of a group by heart says nothing of the others: where groups are held out it stops early."""
    parts = [planted(rng, 100, signal=sign * 3.0) for sign in (1, -1, 1, -1, 1, -1)]
    groups = np.repeat(np.arange(len(parts)), 100)
    batch = RankingBatch(
        parts[0][0].names,
        np.concatenate([one.features for one, _ in parts]),
        np.concatenate([one.valid for one, _ in parts]),
        np.concatenate([one.base for one, _ in parts]),
    )
    batch.features[:, :, 0], batch.features[:, :, 2] = 0.0, groups[:, None]  # nothing to learn but what differs between groups
    labels = np.concatenate([part for _, part in parts])
    by_heart = fresh(kind).fit(batch, labels, seed=1)
    rounds = fresh(kind).best_rounds(batch, labels, seed=1, groups=groups)
    assert 1 <= rounds < by_heart.rounds
    mixed_up = fresh(kind).best_rounds(batch, labels, seed=1, groups=rng.permutation(groups))
    assert mixed_up > rounds
    assert fresh(kind).best_rounds(batch, labels, seed=1, groups=np.zeros_like(groups)) == by_heart.rounds


def test_the_listwise_network_starts_as_the_blend(rng: np.random.Generator) -> None:
    batch, labels = planted(rng, 40)
    ranker = fresh("listwise").fit(batch, labels, seed=1, rounds=1)
    for part in ("head.weight", "head.bias"):
        ranker.network.weights[part][:] = 0  # type: ignore[attr-defined]
    order = np.argsort(-np.where(batch.valid, ranker.score(batch), -np.inf), axis=1, kind="stable")
    np.testing.assert_array_equal(order, np.argsort(-np.where(batch.valid, batch.base, -np.inf), axis=1, kind="stable"))


def test_the_listwise_network_scores_in_numpy_as_in_training(rng: np.random.Generator) -> None:
    config = ListwiseConfig(hidden=(16, 8), cross_layers=2)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        trained = Network(9, config).eval()
        with torch.no_grad():
            for tensor in trained.state_dict().values():
                tensor.add_(0.3 * torch.randn(tensor.shape))
    state = {name: tensor.numpy() for name, tensor in trained.state_dict().items()}
    assert {name: array.shape for name, array in state.items()} == parameter_shapes(9, config.hidden, config.cross_layers)
    network = ListwiseNetwork(state, 9, config.hidden, config.cross_layers)
    features, base = rng.normal(size=(50, 9)).astype(np.float32) * 3, rng.normal(size=50).astype(np.float32)
    features[0, 0], features[1, 1], features[2, 2] = np.nan, np.inf, -np.inf
    with torch.no_grad():
        expected = trained(torch.from_numpy(features), torch.from_numpy(base)).numpy()
    np.testing.assert_allclose(network.logits(features, base), expected, rtol=1e-4, atol=1e-4)
    x = network.standardised(features)
    point = torch.from_numpy((x / state["scale"] + state["mean"]).astype(np.float32)).requires_grad_()
    torch.autograd.backward(trained(point, torch.zeros(50)).sum())
    assert point.grad is not None
    inside = np.abs(x) < CLIP - 1e-3
    found = network.gradient(x) * state["scale"]
    assert inside.mean() > 0.5
    np.testing.assert_allclose(found[inside], point.grad.numpy()[inside], rtol=1e-3, atol=1e-3)


def test_a_listwise_ranker_is_read_and_scores_without_torch(rng: np.random.Generator, tmp_path: Path) -> None:
    batch, labels = planted(rng, 40)
    ranker = fresh("listwise").fit(batch, labels, seed=1, rounds=1)
    ranker.save(tmp_path)
    save_arrays(tmp_path / "batch.safetensors", {"features": batch.features, "valid": batch.valid, "base": batch.base})
    program = f"""
import sys
from pathlib import Path
from training.arrays import map_arrays
from training.rankers.base import RankingBatch
from training.rankers.registry import ranker_class, ranker_settings
folder = Path({str(tmp_path)!r})
batch = RankingBatch({batch.names!r}, **map_arrays(folder / "batch.safetensors"))
settings = ranker_settings("listwise", {ranker.config.model_dump()!r})
ranker = ranker_class("listwise").load(folder, settings, batch.names)
print(float(ranker.score(batch)[batch.valid].sum()), float(abs(ranker.contributions(batch)).sum()), "torch" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    score, parts, imported = done.stdout.split()
    assert float(score) == pytest.approx(float(ranker.score(batch)[batch.valid].sum()), rel=1e-4, abs=1e-3)
    assert float(parts) == pytest.approx(float(np.abs(ranker.contributions(batch)).sum()), rel=1e-4, abs=1e-3)
    assert imported == "False"


def test_a_model_of_other_features_is_refused(rng: np.random.Generator, tmp_path: Path) -> None:
    batch, labels = planted(rng, 60)
    for kind in RANKER_KINDS:
        (folder := tmp_path / kind).mkdir()
        ranker = fresh(kind).fit(batch, labels, seed=1, rounds=2)
        ranker.save(folder)
        with pytest.raises(BundleError):
            ranker_class(kind).load(folder, ranker.config, (*batch.names, "more"))
        with pytest.raises(BundleError, match="cannot be read"):
            ranker_class(kind).load(tmp_path, ranker.config, batch.names)


def test_trees_that_are_not_finite_are_refused(rng: np.random.Generator, tmp_path: Path) -> None:
    batch, labels = planted(rng, 60)
    ranker = fresh("lambdamart").fit(batch, labels, seed=1, rounds=2)
    ranker.save(tmp_path)
    path = tmp_path / "lambdamart.txt"
    lines = path.read_text().splitlines()
    at = next(n for n, line in enumerate(lines) if line.startswith("leaf_value="))
    for poison, message in (("nan", "NaN or infinite"), ("inf", "NaN or infinite"), ("x", "cannot be read")):
        lines[at] = "leaf_value=" + " ".join([poison] * len(lines[at].split()))
        path.write_text("\n".join(lines))
        with pytest.raises(BundleError, match=message):
            LambdaMart.load(tmp_path, ranker.config, batch.names)


def test_settings_name_what_is_wrong() -> None:
    with pytest.raises(StudyError, match="unknown ranker 'xgboost'; known: blend, lambdamart, listwise"):
        ranker_settings("xgboost", {})
    with pytest.raises(StudyError, match="parameter 'leaves'"):
        ranker_settings("lambdamart", {"leaves": 3})
    with pytest.raises(StudyError, match="parameter 'dropout'"):
        ranker_settings("listwise", {"dropout": 2})


def test_drawn_candidates_keep_targets_and_the_best_of_the_blend(rng: np.random.Generator) -> None:
    batch, labels = planted(rng, 50)
    columns, there = draw_candidates(batch, labels, 12, rng)
    assert columns.shape == (50, 12)
    assert np.take_along_axis(labels, columns, axis=1).any(axis=1).all()
    best = np.argsort(-np.where(batch.valid, batch.base, -np.inf), axis=1)[:, :6]
    for b in range(50):
        assert len(set(columns[b].tolist())) == 12
        assert set(best[b].tolist()) <= set(columns[b].tolist())
    assert there.all(), "no padding where there are candidates enough"


def test_standardised_has_mean_zero_and_spread_one(rng: np.random.Generator) -> None:
    valid = rng.random((20, 30)) < 0.7
    z = standardised(rng.normal(5, 3, (20, 30)).astype(np.float32), valid)
    assert (z[~valid] == 0).all()
    for b in range(20):
        assert z[b][valid[b]].mean() == pytest.approx(0, abs=1e-5)
        assert z[b][valid[b]].std() == pytest.approx(1, abs=1e-4)
    assert (standardised(np.full((1, 5), 2.0, dtype=np.float32), np.ones((1, 5), dtype=bool)) == 0).all()


def test_hold_out_splits_all_rows() -> None:
    learn, held = hold_out(50, 0.2, seed=3)
    assert sorted([*learn.tolist(), *held.tolist()]) == list(range(50))
    assert len(held) == 10
    assert [len(part) for part in hold_out(1, 0.2, seed=0)] == [1, 0]


def test_a_split_on_missing_values_alone_survives_saving(rng: np.random.Generator, tmp_path: Path) -> None:
    """LightGBM writes its threshold as infinity."""
    batch, _ = planted(rng, 60)
    features = np.zeros_like(batch.features)
    missing = rng.random(features.shape[:2]) < 0.5
    features[:, :, 1] = np.where(missing, np.nan, rng.normal(size=features.shape[:2]))
    batch = replace(batch, features=features)
    ranker = fresh("lambdamart").fit(batch, (missing & batch.valid).astype(np.float32), seed=1, rounds=3)
    ranker.save(tmp_path)
    assert "inf" in next(line for line in (tmp_path / "lambdamart.txt").read_text().splitlines() if line.startswith("threshold="))
    again = LambdaMart.load(tmp_path, ranker.config, batch.names)
    np.testing.assert_array_equal(again.score(batch), ranker.score(batch))
