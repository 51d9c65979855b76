"""Balanced weights: rates of 1/L in closed form, functions against the multipliers by hand, and steps of optimisers."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

import capalloc
from capalloc import architectures
from zoo import gaussian, seeded_module


class Block(nn.Module):
    """h + F(norm(h)), with what may come after F."""

    def __init__(self, layers: int = 1, norm: bool = False, end: nn.Module | None = None) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(8) if norm else nn.Identity()
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(layers))
        self.end = end or nn.Identity()

    def branch(self, h: Tensor) -> Tensor:
        h = self.norm(h)
        for layer in self.layers:
            h = layer(h.relu())
        return self.end(h)

    def forward(self, h: Tensor) -> Tensor:
        return h + self.branch(h)


def net(depth: int, layers: int = 1, norm: bool = False, end: nn.Module | None = None) -> nn.Sequential:
    def make() -> nn.Sequential:
        blocks = (Block(layers, norm, end) for _ in range(depth))
        return nn.Sequential(nn.Linear(5, 8), *blocks, nn.Linear(8, 3))

    model = seeded_module(make)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "layers" in name:
                p.mul_(3.0)
    return model


X = gaussian(48, 5)


@pytest.mark.proves("5", "balanced multipliers give every block the rate 1/L", oracle="closed form of T")
@pytest.mark.parametrize(("layers", "norm", "depth"), [(1, False, 2), (2, False, 5), (1, True, 5), (2, True, 3)])
def test_every_rate_is_one_over_the_depth(depth, layers, norm):
    found = capalloc.scaling(capalloc.balance(net(depth, layers, norm), X), X)
    np.testing.assert_allclose(found.rate, 1 / depth, rtol=0.02)
    assert pytest.approx(depth * math.log1p(1 / depth), rel=0.02) == found.T


@pytest.mark.parametrize("layers", [1, 2])
def test_the_function_is_that_with_multipliers_in_forward(layers):
    model = net(4, layers)
    multipliers = capalloc.scaling(model, X).multiplier.to_numpy()
    h = model[0](X)
    for block, factor in zip(list(model)[1:-1], multipliers, strict=True):
        h = h + factor * block.branch(h)
    torch.testing.assert_close(capalloc.balance(model, X)(X), model[-1](h))


def step(model: nn.Module, optimiser: type[torch.optim.Optimizer]) -> list[Tensor]:
    """How far the layers of all branches move by one step of rate 0.01 on the sum of the outputs."""
    layers = [layer for block in list(model)[1:-1] for layer in block.layers]
    before = [layer.weight.detach().clone() for layer in layers]
    moving = optimiser(model.parameters(), lr=0.01)
    model(X).sum().backward()
    moving.step()
    return [layer.weight.detach() - old for layer, old in zip(layers, before, strict=True)]


def test_gradients_of_sgd_carry_the_square_of_the_multiplier():
    """w = m v: dw = -rate m^2 dL/dw, of the function with the multiplier."""
    model = net(4)
    balanced = capalloc.balance(model, X)
    multipliers = capalloc.scaling(model, X).multiplier.to_numpy()
    plain = capalloc.balance(model, X)  # a deep copy would share the classes that parametrisations make
    for block in list(plain)[1:-1]:
        parametrize.remove_parametrizations(block.layers[0], "weight")
        parametrize.remove_parametrizations(block.layers[0], "bias")
    torch.testing.assert_close(plain(X), balanced(X))
    moves, alone = step(balanced, torch.optim.SGD), step(plain, torch.optim.SGD)
    for move, whole, m in zip(moves, alone, multipliers, strict=True):
        torch.testing.assert_close(move, m**2 * whole)


def test_adam_moves_branches_of_one_layer_more_slowly_at_the_same_function():
    """w = (m / sqrt(L)) v, v stored sqrt(L) times as large: steps of +- rate m / sqrt(L)."""
    model = net(4, norm=True)
    balanced = capalloc.balance(model, X, optimiser="adam")
    torch.testing.assert_close(balanced(X), capalloc.balance(model, X)(X))
    multipliers = capalloc.scaling(model, X).multiplier.to_numpy()
    for move, m in zip(step(balanced, torch.optim.Adam), multipliers, strict=True):
        moved = move[move != 0].abs()
        torch.testing.assert_close(moved, torch.full_like(moved, 0.01 * m / 2), rtol=1e-4, atol=0)
    assert balanced[1].norm.parametrizations.weight[0].factor == pytest.approx(0.5)


def test_adam_wants_deeper_branches_by_the_root_of_the_depth_again():
    model = net(9, layers=2)
    sgd, adam = (capalloc.balance(model, X, optimiser=name) for name in ("sgd", "adam"))
    for first, second in zip(list(sgd)[1:-1], list(adam)[1:-1], strict=True):
        torch.testing.assert_close(second.layers[1].weight, first.layers[1].weight / 3)
        assert not parametrize.is_parametrized(second.layers[0])


def test_plain_layers_get_gain_1():
    model = seeded_module(lambda: nn.Sequential(*[m for _ in range(6) for m in (nn.Linear(8, 8), nn.ReLU())]))
    found = capalloc.scaling(capalloc.balance(model, gaussian(64, 8)), gaussian(64, 8))
    assert capalloc.scaling(model, gaussian(64, 8)).total_gain < 1e-3
    np.testing.assert_allclose(found.gain, 1, rtol=0.02)


def test_layers_that_pass_nothing_or_are_rescaled_stay():
    model = seeded_module(lambda: nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8), nn.ReLU(), nn.Linear(8, 3)))
    with torch.no_grad():
        model[3].weight.zero_()
    balanced = capalloc.balance(model, gaussian(16, 8))
    for name, p in model.named_parameters():
        assert torch.equal(p, balanced.get_parameter(name))


def test_the_model_is_left_alone_unless_asked():
    model = net(3)
    before = copy.deepcopy(model.state_dict())
    copied = capalloc.balance(model, X)
    assert copied is not model
    assert all(torch.equal(p, before[name]) for name, p in model.state_dict().items())
    assert capalloc.balance(model, X, in_place=True) is model
    torch.testing.assert_close(model(X), copied(X))
    copied.load_state_dict(model.state_dict())


@pytest.mark.parametrize("optimiser", ["sgd", "adam"])
def test_what_is_balanced_stays_so_under_sgd_and_its_files_load(optimiser, tmp_path):
    balanced = capalloc.balance(net(3, layers=2), X, optimiser=optimiser)
    torch.save(balanced.state_dict(), tmp_path / "state.pt")
    other = capalloc.balance(seeded_module(lambda: net(3, layers=2)), X, optimiser=optimiser)
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    torch.testing.assert_close(other(X), balanced(X))
    if optimiser == "sgd":
        torch.testing.assert_close(capalloc.balance(balanced, X)(X), balanced(X), rtol=0.03, atol=1e-3)


def test_branches_that_start_closed_stay_closed():
    model = net(3, layers=2)
    with torch.no_grad():
        model[2].layers[1].weight.zero_()
        model[2].layers[1].bias.zero_()
    balanced = capalloc.balance(model, X)
    assert not parametrize.is_parametrized(balanced[2].layers[1])
    assert parametrize.is_parametrized(balanced[1].layers[1])


@pytest.mark.parametrize("name", ["preact-resnet", "vit-tiny"])
def test_reference_architectures(name):
    small = {"preact-resnet": {"width": 4}, "vit-tiny": {"width": 12, "depth": 3}}[name]
    model = architectures.make(name, shape=(3, 16, 16), **small)
    x = torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    found = capalloc.scaling(capalloc.balance(model, x, trained=False), x, trained=False)
    number = found.data.sizes["block"]
    assert pytest.approx(number * math.log1p(1 / number), rel=0.05) == found.T


@pytest.mark.parametrize(
    ("make", "more", "message"),
    [
        (lambda: net(2), {"optimiser": "lion"}, 'optimiser must be "sgd" or "adam", got \'lion\''),
        (lambda: net(2), {"trained": True}, "model looks trained, and balance is for initial weights"),
        (lambda: net(2, end=nn.Tanh()), {}, 'no layer stands for the branch of block "1" .* multiply the branch by'),
        (lambda: "model.pt2", {}, "model must be a Module, got 'model.pt2'"),
    ],
)
def test_refused(make, more, message):
    with pytest.raises((ValueError, TypeError), match=message):
        capalloc.balance(make(), X, **more)
