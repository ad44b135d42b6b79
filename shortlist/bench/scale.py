"""`shortlist bench scale`: one version of a large catalogue in one process: index, filters, the computed path, memory, cold start.

CPU time of one thread throughout, medians over queries: other work on the machine changes it little. Brute force over all items
that pass is the oracle of recall.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from threadpoolctl import threadpool_limits

from serving.batch_lists import BatchLists
from serving.config import ServingConfig
from serving.item_table import ItemTable
from serving.messages import ComputeRequest
from serving.ranker import RankerStage
from serving.recent_activity import RecentActivity
from serving.retriever import RetrieverStage
from serving.schemas import NO_SELECTION, Selection
from shortlist.bench.answer_parts import QUERIES, in_a_loop, path_figures, some_users
from shortlist.bench.world import DATASET, World
from training.candidates import Retrieved
from training.exact_index import ExactIndex, ItemIndex
from training.index import recall
from training.interactions import BoolArray, FloatArray
from training.models.vector_retriever import VectorRetriever
from training.pipeline import Pipeline
from training.queries import QueryBatch

SHARES = (1.0, 0.5, 0.1, 0.01, 0.0001)
RECALL_AT = 20
BATCH_USERS = 256

FILTER = "price < 20.0 && year >= 2024"

Notify = Callable[[str], None]


def bench_scale(world: World, notify: Notify = lambda _: None) -> dict[str, Any]:
    """Measure in this process and in fresh ones."""
    notify("cold start and memory in fresh processes")
    first = _fresh_process(world)
    second = _fresh_process(world)
    with threadpool_limits(1):
        notify("loading the version")
        pipeline, items = Pipeline.load(world.bundle), ItemTable.from_bundle(world.bundle)
        queries = pipeline.histories.queries(some_users(pipeline))
        notify("index against brute force")
        index = {
            source.name: index_figures(source.retriever, queries, source.quota)
            for source in pipeline.sources
            if isinstance(source.retriever, VectorRetriever)
        }
        notify("filters and the computed path")
        filters = {
            expression: _filter_figures(items, Selection(filter=expression)) for expression in (FILTER, '"Art" in categories')
        }
        path = {
            name: path_figures(pipeline, items, one) for name, one in (("none", NO_SELECTION), (FILTER, Selection(filter=FILTER)))
        }
        notify("lists in blocks, as precompute makes them")
        batch = _batch_figures(world)
    return {
        "items": pipeline.num_items,
        "features": len(pipeline.stage.features.names) if pipeline.stage is not None else 0,
        "bundle_mb": round(sum(file.stat().st_size for file in world.bundle.rglob("*") if file.is_file()) / 1e6),
        "cold_start": [first, second],
        "index": index,
        "filters": filters,
        "computed": path,
        "precompute": batch,
    }


def index_figures(model: VectorRetriever, queries: QueryBatch, k: int) -> list[dict[str, Any]]:
    """Recall and time of a model's index for filters of several widths, one far from the queries among them."""
    vectors, known = model.item_vectors(), np.flatnonzero(model.known())
    asked = model.query_vectors(queries)
    exact, index = ExactIndex(vectors, known), model.index
    rng = np.random.default_rng(1)
    masks: list[tuple[str, BoolArray | None]] = [
        (f"{share:.2%}", rng.random(len(vectors)) < share) for share in SHARES if share < 1
    ]
    along = vectors @ asked.mean(axis=0)
    masks += [("25.00% away from the queries", along < np.quantile(along, 0.25))]
    return [_searched(index or exact, exact, asked, k, name, mask) for name, mask in [("100%", None), *masks]]


def _searched(index: ItemIndex, exact: ExactIndex, asked: FloatArray, k: int, name: str, mask: BoolArray | None) -> dict[str, Any]:
    truth = exact.search(asked, RECALL_AT, mask)
    found, search_ms = in_a_loop(len(asked), lambda b: index.search(asked[b : b + 1], k, mask))
    _, exact_ms = in_a_loop(10, lambda b: exact.search(asked[b : b + 1], k, mask))
    lists = Retrieved(np.concatenate([one.item_idx for one in found]), np.concatenate([one.score for one in found]))
    passing = len(exact.rows) if mask is None else int(mask[exact.rows].sum())
    return {
        "passing": name,
        "items": passing,
        "recall@20": round(recall(lists, truth), 4),
        "complete": bool(((lists.item_idx >= 0).sum(axis=1) == min(k, passing)).all()),
        "ms": round(search_ms, 3),
        "exact_ms": round(exact_ms, 3),
    }


def _filter_figures(items: ItemTable, selection: Selection) -> dict[str, Any]:
    started = time.process_time()
    mask = items.mask(selection)
    first_ms = (time.process_time() - started) * 1e3
    _, again_ms = in_a_loop(QUERIES, lambda _: items.mask(selection))
    return {"passing": round(float(mask.mean()), 4), "first_ms": round(first_ms, 3), "again_ms": round(again_ms, 4)}


def _batch_figures(world: World) -> dict[str, Any]:
    nowhere = "redis://127.0.0.1:1/0"
    config = ServingConfig(
        dataset=DATASET,
        home=world.home,
        mlflow_uri="http://127.0.0.1:1",
        control_url=world.control_url,
        bus_url=nowhere,
        features_url=nowhere,
        cache_url=nowhere,
    )
    lists = BatchLists(config.model_dump_json(), str(world.bundle), config.precompute_k)
    rows = np.flatnonzero(np.diff(lists.pipeline.histories.indptr))[:BATCH_USERS]
    lists({"id": rows[:8]})
    started = time.process_time()
    made = lists({"id": rows})["list"]
    seconds = time.process_time() - started
    return {
        "users_per_cpu_s": round(len(made) / seconds, 1),
        "bytes_per_user": round(float(np.mean([len(one) for one in made])), 1),
    }


def _fresh_process(world: World) -> dict[str, Any]:
    """Seconds until a new process has answered, and its memory: its own, and with the files that it maps."""
    command = [sys.executable, "-m", "shortlist.bench.scale", str(world.bundle)]
    started = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return {**json.loads(done.stdout.splitlines()[-1]), "seconds": round(time.monotonic() - started, 2)}


def _answer_once(bundle: Path) -> dict[str, Any]:
    """What a replica does until it is ready: load, and answer one user."""
    pipeline, items = Pipeline.load(bundle), ItemTable.from_bundle(bundle)
    stage, ranker = RetrieverStage(pipeline, items), RankerStage(pipeline)
    user = str(pipeline.histories.user_ids[int(some_users(pipeline)[0])])
    request = ComputeRequest(user_id=user, k=40)
    query, rejected = stage.query(request, RecentActivity(), time.time_ns() // 1000)
    ranker.rank(query, stage.retrieve(request, query, rejected), 40)
    process = psutil.Process()
    own = next(int(line.split()[1]) for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon"))
    return {
        "own_mb": round(own / 1024),
        "resident_mb": round(process.memory_info().rss / 2**20),
        "cpu_s": round(time.process_time(), 2),
    }


def scale_markdown(result: dict[str, Any], machine: str) -> str:
    """The tables of `docs/benchmarks.md`."""
    lines = [
        machine,
        "",
        f"{result['items']:,} items, {result['features']} features, bundle {result['bundle_mb']:,} MB; one thread",
        "",
    ]
    for name, rows in result["index"].items():
        lines += _table(f"index of {name}, items that pass", rows, ("items", "recall@20", "complete", "ms", "exact_ms"), "passing")
    filters = [{"filter": f"`{name}`", **figures} for name, figures in result["filters"].items()]
    lines += _table("filter", filters, ("passing", "first_ms", "again_ms"), "filter")
    computed = [{"filter": f"`{name}`", **one["parts_ms"], **one} for name, one in result["computed"].items()]
    columns = (*result["computed"]["none"]["parts_ms"], "sum_of_parts_ms", "whole_ms", "ratio", "candidates")
    lines += _table("computed answer, ms", computed, columns, "filter")
    starts = [{"process": name, **one} for name, one in zip(("first", "second"), result["cold_start"], strict=True)]
    lines += _table("fresh process to its first answer", starts, ("seconds", "cpu_s", "own_mb", "resident_mb"), "process")
    lines += _table("precompute, one core", [{"": "", **result["precompute"]}], ("users_per_cpu_s", "bytes_per_user"), "")
    return "\n".join(lines)


def _table(title: str, rows: Iterable[dict[str, Any]], columns: tuple[str, ...], key: str) -> list[str]:
    lines = [f"| {title} | {' | '.join(columns)} |", f"|---|{'---|' * len(columns)}"]
    return [*lines, *(f"| {row[key]} | {' | '.join(str(row[column]) for column in columns)} |" for row in rows), ""]


if __name__ == "__main__":
    sys.stdout.write(json.dumps(_answer_once(Path(sys.argv[1]))) + "\n")
