"""Modules that a model holds under several names, against the same model with one name for each."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import capalloc
from capalloc._model.replaced_params import call_with
from zoo import gaussian, seeded_module


class Plain(nn.Module):
    """One inner layer, used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.inner, self.last = nn.Linear(4, 3), nn.Linear(3, 3), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(self.inner(torch.tanh(self.inner(self.first(x))))))


class Aliased(Plain):
    """The same, with other names for its layers."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([self.first, self.inner, self.inner, self.last])


class InARow(Plain):
    """The same, run as a row in which the inner layer stands twice."""

    def __init__(self) -> None:
        super().__init__()
        self.row = nn.Sequential(self.first, self.inner, nn.Tanh(), self.inner, nn.Tanh(), self.last)

    def forward(self, x: Tensor) -> Tensor:
        return self.row(x)


@pytest.mark.parametrize("kind", [Aliased, InARow])
@pytest.mark.parametrize(
    "method",
    [capalloc.measure, capalloc.propagate, lambda m, x: capalloc.propagate(m, x, solver="markov")],
    ids=["measure", "propagate", "markov"],
)
def test_modules_with_several_names_count_once(kind: type[Plain], method: Callable[..., capalloc.Allocation]) -> None:
    x = gaussian(40, 4)
    found, expected = (method(seeded_module(k), x) for k in (kind, Plain))
    assert found.total == pytest.approx(expected.total)
    assert found.attrs["unused_params"] == expected.attrs["unused_params"] == 0
    np.testing.assert_allclose(found.capacity, expected.capacity, rtol=1e-6)
    np.testing.assert_allclose(found.by_parameter, expected.by_parameter, atol=1e-8)


def test_a_call_leaves_the_parameters_as_they_were() -> None:
    model, x = seeded_module(InARow), gaussian(5, 4)
    own = dict(model.named_parameters())
    changed = call_with(model, {name: 2 * p for name, p in own.items()}, (x,))
    assert all(p is own[name] for name, p in model.named_parameters())
    with torch.no_grad():
        for p in own.values():
            p.mul_(2)
    torch.testing.assert_close(changed, model(x))
