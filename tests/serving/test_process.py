import gc
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from serving.process import SWITCH_S, give_back_memory, shorten_pauses

AFTER_IMPORT = """
import json, sys
from pathlib import Path
from serving.process import import_trees
import_trees(Path(sys.argv[1]))
there = [name for name in ("lightgbm", "sklearn") if name in sys.modules]
import lightgbm, numpy, sklearn
scores = lightgbm.train({"verbosity": -1}, lightgbm.Dataset(numpy.eye(50), label=numpy.arange(50.0)), 2).predict(numpy.eye(50))
print(json.dumps([there, len(scores), sklearn.__name__]))
"""


@pytest.fixture
def restored() -> Iterator[None]:
    threshold, switch_s = gc.get_threshold(), sys.getswitchinterval()
    yield
    gc.unfreeze()
    gc.set_threshold(*threshold)
    sys.setswitchinterval(switch_s)


def test_what_is_there_is_left_out_of_collections_and_what_comes_later_is_not(restored: None) -> None:
    class Node:
        alive = 0

        def __init__(self) -> None:
            Node.alive += 1
            self.me = self

        def __del__(self) -> None:
            Node.alive -= 1

    Node()
    shorten_pauses()
    assert Node.alive == 0  # garbage is not kept
    assert gc.get_freeze_count() > 0
    assert sys.getswitchinterval() == pytest.approx(SWITCH_S)
    Node()
    gc.collect()
    assert Node.alive == 0


def test_memory_is_given_back_more_than_once() -> None:
    give_back_memory()
    give_back_memory()


@pytest.mark.parametrize("trees", [True, False])
def test_a_bundle_with_trees_brings_lightgbm_alone(tmp_path: Path, trees: bool) -> None:
    if trees:
        (tmp_path / "ranker").mkdir()
        (tmp_path / "ranker" / "lambdamart.txt").touch()
    said = subprocess.run([sys.executable, "-c", AFTER_IMPORT, str(tmp_path)], capture_output=True, text=True, check=True).stdout
    # scikit-learn can still be imported by whoever needs it, a model of one's own for example.
    assert json.loads(said.splitlines()[-1]) == [["lightgbm"] if trees else [], 50, "sklearn"]
