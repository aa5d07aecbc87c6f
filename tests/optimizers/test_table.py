"""The table of state is what optimizers hold, to the byte."""

import subprocess
import sys

import pytest
import torch
from torch import nn

from rlmodules.optimizers.building import make_optimizer
from rlmodules.optimizers.config import OPTIMIZERS, OptimizerConfig
from rlmodules.optimizers.masters import in_pieces
from rlmodules.optimizers.table import CODES, SMALLEST_8BIT, state_bytes, step_bytes

SHAPES = [(64, 65), (64, 64), (63, 65), (7,), (4100,), (2, 3, 5), (SMALLEST_8BIT,)]


def tensors(value):
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        for part in value.values():
            yield from tensors(part)


def held(optimizer):
    """Bytes of all tensors of its state, those that are shared once."""
    found = {t.data_ptr(): t.numel() * t.element_size() for t in tensors(optimizer.state_dict())}
    return sum(found.values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.filterwarnings("ignore:algo.optimizer.name=adamw_offload saves nothing")
def test_an_optimizer_holds_what_the_table_says(name, dtype):
    weights = [nn.Parameter(torch.randn(shape).to(dtype)) for shape in SHAPES]
    taken = {id(weights[0])}
    groups = [{"params": weights, "lr": 1e-3, "weight_decay": 0.0}]
    optimizer = make_optimizer(OptimizerConfig(name), groups, taken)
    for p in weights:
        p.grad = torch.randn_like(p)
    optimizer.step()
    kind = str(dtype).removeprefix("torch.")
    told = [state_bytes(name, p.numel(), kind, matrix=id(p) in taken) for p in weights]
    codes = CODES if name == "adamw8bit" else 0
    assert held(optimizer) == sum(map(sum, told)) + codes
    elsewhere = [of.host for of in told]
    assert all(elsewhere) if name == "adamw_offload" else not any(elsewhere)


def test_bytes_a_parameter_as_the_documentation_has_them():
    million = lambda *args, **more: round(sum(state_bytes(*args, **more)) / 1e6, 2)  # noqa: E731
    n = 10**6
    assert million("adamw", n) == 8.0 and million("adamw", n, "bfloat16") == 12.0
    assert million("adamw8bit", n) == 2.03 and million("adamw8bit", n, "bfloat16") == 6.03
    assert million("muon", n, matrix=True) == 4.0 and million("muon", n) == 8.0
    assert state_bytes("adamw_offload", n) == (0, 12 * n + 4)
    assert step_bytes("adamw", n) == (0, 0) and step_bytes("adamw", n, "bfloat16") == (4 * n, 0)
    assert step_bytes("adamw_offload", 10**9) == (0, 2**28)


def test_pieces_of_a_step_hold_all_in_turn_and_few_at_a_time():
    weights = [torch.empty(n) for n in (3, 3, 4, 11, 1, 1)]
    pieces = [[len(p) for p in piece] for piece in in_pieces(weights, most=7)]
    assert pieces == [[3, 3], [4], [11], [1, 1]]


def test_the_table_needs_no_torch():
    code = "import rlmodules.optimizers.table, rlmodules.optimizers.config, sys;"
    code += "print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
