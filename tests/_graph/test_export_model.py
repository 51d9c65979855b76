"""A model exported once answers as the model does, also after training changes it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import capalloc
from zoo import gaussian, seeded_module

LAYERS = (nn.Conv1d(2, 3, 3), nn.BatchNorm1d(3), nn.ReLU(), nn.Dropout(0.5), nn.Flatten(), nn.Linear(12, 2))


class Turned(nn.Module):
    """A model that looks at its values: no graph is that of all examples, which do not interact."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.layer(x)) if bool(x.isfinite().all()) else self.layer(x)


class Two(nn.Module):
    """Takes two tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(3, 3)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.mix(x) + y


def test_a_program_follows_the_model_through_training() -> None:
    model, x = seeded_module(nn.Sequential, *LAYERS).train(), gaussian(5, 2, 6)
    program = capalloc.export(model, x)
    assert model.training
    for step in range(2):
        for examples in (x, x[:1]):
            told, asked = (capalloc.propagate(m, examples, solver="markov") for m in (program, model))
            np.testing.assert_allclose(told.capacity, asked.capacity, rtol=1e-12)
        measured, by_program = (capalloc.measure(m, x).total for m in (model, program))
        assert measured == pytest.approx(by_program)
        assert list(told.by_parameter.parameter) == list(asked.by_parameter.parameter)
        with torch.no_grad():
            for p in model.parameters():
                p.add_(gaussian(*p.shape, seed=step))
            model[1].running_mean.add_(1)
            model[1].running_var.mul_(2)


def test_phases_share_the_time() -> None:
    model, x = seeded_module(nn.Sequential, *LAYERS).eval(), gaussian(5, 2, 6)
    phases = capalloc.propagate(model, x, solver="markov").attrs["phases"]
    assert list(phases) == ["checks", "capture", "walk"]
    assert sum(phases.values()) == pytest.approx(1)
    block = capalloc.propagate(model, x, solver=capalloc.solvers.Block(1, num_probes=2)).attrs["phases"]
    assert list(block) == ["derivatives", "blocks", "steps", "total"]


def test_what_is_refused() -> None:
    with pytest.raises(ValueError, match="cannot capture this model for any number of examples"):
        capalloc.export(seeded_module(Turned), gaussian(5, 3))
    with pytest.raises(ValueError, match="not of several inputs or token ids"):
        capalloc.export(seeded_module(Two), (gaussian(5, 3), gaussian(5, 3)))
