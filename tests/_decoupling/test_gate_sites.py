"""Where gates are: the axis of the examples in each, whatever the graph does to it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from capalloc._decoupling.sites import Gated
from capalloc._model.problem import prepare
from zoo import gaussian


class Turned(nn.Module):
    """The examples axis moves, as in attention modules that put time first, and merges with another."""

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.scale * x.transpose(0, 1))  # (time, examples, features)
        top = y.amax(0)
        merged = torch.tanh(x.reshape(-1, x.shape[2])).reshape(x.shape).sum(1)
        return top + merged

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1).double())


def test_gates_follow_the_examples_axis():
    x = gaussian(6, 3, 5)  # batches of 3 examples of 3 times: lengths cannot tell the axes apart
    gated = Gated.of(prepare(Turned().double(), x), batch_size=3)
    gates: dict[str, list[Tensor]] = {}
    for seen in gated():
        gates.setdefault(seen.site.operator, []).append(seen.gates)
    read_all = {name: torch.cat(parts) for name, parts in gates.items()}
    np.testing.assert_array_equal(read_all["relu"], (x > 0).flatten(1))
    np.testing.assert_allclose(read_all["tanh"], 1 - x.tanh().square().flatten(1))
    relu = x.relu()
    won = relu == relu.amax(1, keepdim=True)
    np.testing.assert_array_equal(read_all["amax"], won.transpose(1, 2).flatten(1))  # entries of one maximum together


class ByBatchSize(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.linear(x)
        return y.relu() if len(x) > 2 else (y + y.abs()) / 2


def test_a_model_that_changes_with_the_batch_size_is_refused():
    with pytest.raises(ValueError, match="other operators at another batch size"):
        Gated.of(prepare(ByBatchSize(), torch.randn(5, 3, generator=torch.Generator().manual_seed(0))), 5)
