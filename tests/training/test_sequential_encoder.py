"""The forward pass that serving runs gives the vectors of the network that was trained, and needs no torch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch

from training.models.sequential import FEW_QUERIES, Sequential
from training.models.sequential_batches import TokenBatch, lay_out
from training.models.sequential_config import SequentialConfig
from training.models.sequential_encoder import SequenceEncoder, time_buckets
from training.models.sequential_network import SequenceNetwork, Tokens
from training.models.sequential_shape import TIME_BUCKETS, NetworkShape
from training.queries import queries_from_histories
from training.testing import small_world

SHAPES = {
    "every": {"targets": "every"},
    "last": {"targets": "last"},
    "time": {"targets": "every", "time_bias": True},
    "time_last": {"targets": "last", "time_bias": True},
    "filter": {"targets": "every", "filter_share": 0.4, "filter_cutoff": 3},
    "filter_last": {"targets": "last", "filter_share": 1.0, "filter_cutoff": 10},
    "one_block": {"targets": "every", "blocks": 1, "heads": 1},
    "deep": {"targets": "last", "blocks": 3, "heads": 4, "time_bias": True, "filter_share": 0.2},
}
ITEMS = 90


def shape_of(name: str) -> NetworkShape:
    return SequentialConfig(width=32, max_len=20, **SHAPES[name]).shape(ITEMS, has_times=True)


def trained(shape: NetworkShape, seed: int = 0) -> SequenceNetwork:
    """A network none of whose weights is at its start, where many parts are without effect."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = SequenceNetwork(shape).eval()
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.add_(0.3 * torch.randn(parameter.shape))
    return network


def weights_of(network: SequenceNetwork) -> dict[str, npt.NDArray[np.float32]]:
    return {name: tensor.numpy() for name, tensor in network.state_dict().items()}


def batch_of(lengths: list[int], rng: np.random.Generator) -> TokenBatch:
    stop = np.cumsum(lengths)
    items = rng.integers(0, ITEMS, stop[-1]).astype(np.int32)
    # Gaps around each doubling, where a bucket of time ends.
    gaps = 2 ** rng.integers(0, 30, stop[-1]) - 1 + rng.integers(-1, 2, stop[-1])
    return lay_out(stop - lengths, stop, items, 1_700_000_000_000_000 + np.cumsum(gaps * 1_000_000))


@pytest.mark.parametrize("name", SHAPES)
def test_parameters_are_those_of_the_network(name: str) -> None:
    state = SequenceNetwork(shape_of(name)).state_dict()
    assert {part: tuple(tensor.shape) for part, tensor in state.items()} == shape_of(name).parameters()


@pytest.mark.parametrize("name", SHAPES)
def test_vectors_equal_those_of_the_network(name: str, rng: np.random.Generator) -> None:
    network = trained(shape_of(name))
    encoder = SequenceEncoder(network.shape, weights_of(network))
    for lengths in ([1], [20], [3, 9], [1, 2, 20, 19, 5, 1], rng.integers(1, 21, 60).tolist()):
        batch = batch_of(lengths, rng)
        with torch.inference_mode():
            expected = network(batch, every=False).numpy()
        found = encoder(batch)
        assert found.dtype == np.float32
        assert len({group.length for group in batch.groups}) >= (2 if len(lengths) == 60 else 1)
        np.testing.assert_allclose(found, expected, rtol=0, atol=2e-5)
        assert np.abs(expected).max() > 0.5


def test_each_part_has_an_effect(rng: np.random.Generator) -> None:
    """Vectors that are equal would show little if a part of the network were without effect in both."""
    shape = shape_of("deep")
    weights = weights_of(trained(shape))
    batch = batch_of([20, 20, 13], rng)
    plain = SequenceEncoder(shape, weights)(batch)
    for part in weights:
        # A bias of the key shifts all scores of a row alike, so its half of the bias is left out.
        changed = weights[part] + np.linspace(0.3, 0.6, weights[part].size, dtype=np.float32).reshape(weights[part].shape)
        assert np.abs(SequenceEncoder(shape, weights | {part: changed})(batch) - plain).max() > 1e-3, part


def test_times_fall_into_equal_buckets() -> None:
    """At and beside each doubling of seconds from a time of today on: the logarithms of two libraries, cut to whole numbers."""
    shape = SequentialConfig(width=4, max_len=200, time_bias=True).shape(3, has_times=True)
    edges = 2 ** np.arange(34, dtype=np.int64) - 1
    gaps_s = np.sort(np.concatenate([edges, edges + 1, edges[1:] - 1]))[::-1]
    times_us = 1_700_000_000_000_000 - gaps_s * 1_000_000
    count = np.array([len(gaps_s)])
    batch = lay_out(np.array([0]), count, np.zeros(count[0], dtype=np.int32), times_us)
    number = torch.arange(TIME_BUCKETS, dtype=torch.float32)[:, None]
    trained_with = Tokens(batch, shape, torch.device("cpu")).by_time(number, 0, last_only=False)[0, 0]
    served_with = time_buckets(times_us[None])[0]
    np.testing.assert_array_equal(served_with, trained_with.numpy())
    exact = [min(int(gap + 1).bit_length() - 1, TIME_BUCKETS - 1) for gap in gaps_s]
    # Nearer than 2**-24 to a doubling, float32 takes it for the doubling.
    unclear = gaps_s > 2**20
    np.testing.assert_array_equal(served_with[-1][~unclear], np.array(exact)[~unclear])


@pytest.mark.parametrize("change", ["missing", "unknown", "shape"])
def test_weights_that_do_not_fit_are_refused(change: str) -> None:
    shape = shape_of("last")
    weights = weights_of(SequenceNetwork(shape))
    if change == "missing":
        del weights["blocks.1.out.bias"]
    elif change == "unknown":
        weights["blocks.2.out.bias"] = weights["blocks.1.out.bias"]
    else:
        weights["position"] = weights["position"][:-1]
    named = {"missing": "blocks.1.out.bias", "unknown": "blocks.2.out.bias", "shape": "position"}[change]
    with pytest.raises(ValueError, match=named):
        SequenceEncoder(shape, weights)


@pytest.mark.parametrize("temperature", [0.0, 0.1])
def test_few_queries_and_many_get_the_same_vectors(temperature: float) -> None:
    data = small_world()
    config = SequentialConfig(width=16, max_len=8, epochs=2, members=2, temperature=temperature, time_bias=True)
    model = Sequential(config).fit(data)
    histories = [list(range(n % 9)) for n in range(FEW_QUERIES + 1)]
    queries = queries_from_histories(histories)
    many = model.query_vectors(queries)
    few = np.concatenate([model.query_vectors(part) for _, part in queries.blocks(FEW_QUERIES)])
    np.testing.assert_allclose(few, many, rtol=1e-4, atol=1e-6)
    assert np.abs(np.diff(many, axis=0)).max() > 1e-3


def test_a_process_that_serves_does_not_import_torch(tmp_path: Path) -> None:
    model = Sequential(SequentialConfig(width=16, max_len=8, epochs=1)).fit(small_world())
    model.save(tmp_path)
    expected = model.retrieve(queries_from_histories([[1, 2, 3]]), 5).item_idx[0].tolist()
    program = f"""
import sys
from pathlib import Path
import serving.retriever_replica
from training.models.sequential import Sequential, SequentialConfig
from training.queries import queries_from_histories
model = Sequential.load(Path({str(tmp_path)!r}), SequentialConfig(width=16, max_len=8, epochs=1))
print(model.retrieve(queries_from_histories([[1, 2, 3]]), 5).item_idx[0].tolist(), "torch" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == f"{expected} False"
