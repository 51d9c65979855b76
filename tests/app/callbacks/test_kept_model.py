"""The copy that logs keep: captured once, and its answers are those of the model as it is at each log."""

from __future__ import annotations

import pytest
import torch
import xarray as xr
from torch import Tensor, nn

import capalloc
from capalloc.app.callbacks.kept_model import KeptModel
from capalloc.app.callbacks.snapshot import ON_GRAPH, Snapshot
from capalloc.results.base import MADE
from zoo import gaussian, seeded_module

IMAGES = gaussian(6, 1, 6, 6).float()
LOGGED = {"method": {name: name for name in ON_GRAPH}, "on_error": "raise"}


class Scaled(nn.Module):
    """A small network with batch norm, a setting, a tensor that is no buffer, and one that is not saved."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 2))
        self.scale = 1.0
        self.shift = torch.zeros(1)
        self.register_buffer("gain", torch.ones(48), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        *first, last = self.layers
        return last(self.scale * nn.Sequential(*first)(x) * self.gain + self.shift)


class Looking(Scaled):
    """What it does depends on the number of examples: no program serves any number."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(2 * x if len(x) == 3 else x)


def changed(model: nn.Module) -> None:
    """A step of training, which moves statistics, parameters and the buffer that is not saved."""
    model.train()
    model(IMAGES).square().sum().backward()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter -= 0.1 * parameter.grad
        model.gain[::2] *= 3


def same_as_fresh(snapshot: Snapshot, model: nn.Module) -> None:
    found = snapshot(model, IMAGES, 0)
    fresh = Snapshot.of(**LOGGED)(model, IMAGES, 0)
    for name in ON_GRAPH:
        expected = fresh[name].result.data
        xr.testing.assert_allclose(found[name].result.data.drop_attrs(), expected.drop_attrs())
    expected = capalloc.propagate(model, IMAGES, solver="markov", table=False)
    xr.testing.assert_allclose(found["propagate"].result.capacity, expected.capacity)
    for name in (MADE, "notes"):
        assert found["propagate"].result.attrs[name] == expected.attrs[name]


@pytest.mark.parametrize("kind", [Scaled, Looking])
def test_logs_are_those_of_the_model_as_it_is(kind):
    model, snapshot = seeded_module(kind).float(), Snapshot.of(**LOGGED)
    same_as_fresh(snapshot, model)
    changed(model)
    same_as_fresh(snapshot, model)


def test_one_export_serves_all_logs(monkeypatch):
    exports, export = [], torch.export.export
    monkeypatch.setattr(torch.export, "export", lambda *args, **told: exports.append(args) or export(*args, **told))
    model, snapshot = seeded_module(Scaled).float(), Snapshot.of(**LOGGED)
    for _ in range(3):
        snapshot(model, IMAGES, 0)
        changed(model)
    assert len(exports) == 1


@pytest.mark.parametrize(
    "change",
    [
        lambda model: setattr(model, "scale", -2.0),
        lambda model: model.shift.add_(5.0),
        lambda model: setattr(model, "shift", torch.full((1,), 7.0)),
        lambda model: model.layers[0].requires_grad_(False),
        lambda model: model.layers[2].register_forward_hook(lambda module, given, made: 2 * made - 1),
        lambda model: model.layers.__setitem__(2, nn.Tanh()),
    ],
)
def test_what_is_no_parameter_is_captured_anew(change):
    model, kept = seeded_module(Scaled).float(), KeptModel()
    snapshot = Snapshot.of(**LOGGED)
    before = kept(model, IMAGES)
    snapshot(model, IMAGES, 0)
    assert kept(model, IMAGES).program is before.program
    change(model)
    assert kept(model, IMAGES).program is not before.program
    same_as_fresh(snapshot, model)


def test_the_kept_copy_is_not_the_model():
    model, kept = seeded_module(Scaled).float().train(), KeptModel()
    for _ in range(2):
        problem = kept(model, IMAGES)
        own = {t.data_ptr() for t in problem.model.state_dict().values()}
        assert not own & {t.data_ptr() for t in model.state_dict().values()}
        assert model.training
        assert not problem.model.training
