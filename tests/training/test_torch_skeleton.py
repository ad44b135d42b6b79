import subprocess
import sys

import torch
from torch import nn

from training.torch_skeleton import skeleton


def test_modules_have_shapes_and_no_memory_and_take_what_is_assigned() -> None:
    with skeleton():
        network = nn.Sequential(nn.Embedding(10**9, 64), nn.Linear(64, 2))
    assert all(one.is_meta for one in network.parameters())
    trained = nn.Sequential(nn.Embedding(5, 64), nn.Linear(64, 2))
    with skeleton():
        network = nn.Sequential(nn.Embedding(5, 64), nn.Linear(64, 2))
    network.load_state_dict(trained.state_dict(), assign=True)
    rows = torch.arange(5)
    assert torch.equal(network(rows), trained(rows))


def test_a_skeleton_does_not_import_the_compiler() -> None:
    program = "import sys, torch; from training.torch_skeleton import skeleton\n"
    program += "with skeleton(): torch.nn.TransformerEncoderLayer(8, 2); torch.nn.Embedding(9, 8)\n"
    program += "sys.exit('sympy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_outside_of_the_block_start_values_are_drawn() -> None:
    with skeleton():
        pass
    assert float(nn.Embedding(3, 4).weight.detach().abs().sum()) > 0
