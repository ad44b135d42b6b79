import gc
import sys
from collections.abc import Iterator

import pytest

from serving.process import SWITCH_S, give_back_memory, shorten_pauses


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
