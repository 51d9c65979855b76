"""The sweep of signals alone, beside the one that asks what weights carry."""

import pytest
import torch
from torch import nn

from capalloc._energy import paths, sweep
from capalloc._energy.batches import Batches
from capalloc._model.problem import prepare
from zoo import gaussian, seeded_module


class Residual(nn.Module):
    """A convolution beside a branch, with a norm and a pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.branch = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1, groups=2)
        self.norm, self.last = nn.BatchNorm2d(4), nn.Linear(16, 3)

    def forward(self, x):
        h = self.norm(self.first(x)).relu()
        return self.last(nn.functional.max_pool2d(h + self.branch(h), 3).flatten(1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_signals_hold_what_they_do_where_weights_are_asked_too(dtype: torch.dtype) -> None:
    batches = Batches.of(prepare(seeded_module(Residual), gaussian(3, 2, 6, 6)), "data", 3, dtype=dtype)
    ((program, seed),) = batches(layers=True)
    slots = {program.input, program.constant, *(slot for layer in program.layers.values() for slot in layer)}
    expected = sweep.law(program, seed, tuple(slots)).at_slots
    found = paths.adjoint(program, {program.output: seed}, slots)
    assert found.keys() == slots
    for slot, g in found.items():
        assert torch.equal(g, expected[slot])


def test_energies_that_enter_weights_are_let_go_where_nobody_asks_for_them() -> None:
    batches = Batches.of(prepare(seeded_module(Residual), gaussian(3, 2, 6, 6)), "data", 3)
    ((kept, seed),), ((slim, _),) = batches(), batches(weights=False)
    for program in (kept, slim):
        held = {k for k, v in enumerate(program.values) if program.is_signal[k] and v.numel() > 1 and any(v.stride())}
        assert (held == {program.input, program.output}) == (program is slim)
    own = paths.adjoint(kept, {kept.output: seed}, {kept.input})[kept.input]
    assert torch.equal(own, paths.adjoint(slim, {slim.output: seed}, {slim.input})[slim.input])
