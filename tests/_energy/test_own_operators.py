"""An operator of a user's own, registered with one declaration, in every use: as its equal among torch's own."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import capalloc
from zoo import gaussian, seeded_module

Operator = Callable[[Tensor], Tensor]


@torch.library.custom_op("own::logistic", mutates_args=())
def logistic(x: Tensor) -> Tensor:
    """sigmoid(x)."""
    return torch.sigmoid(x)


@torch.library.custom_op("own::largest", mutates_args=())
def largest(x: Tensor) -> Tensor:
    """The largest of two neighbours."""
    return x.reshape(*x.shape[:-1], -1, 2).amax(-1)


def setup(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def logistic_slope(x: Tensor) -> Tensor:
    return torch.sigmoid(x) * torch.sigmoid(-x)


def winners(x: Tensor) -> Tensor:
    pairs = x.reshape(*x.shape[:-1], -1, 2)
    return (pairs == pairs.amax(-1, keepdim=True)).to(x.dtype)


logistic.register_fake(torch.empty_like)
logistic.register_autograd(lambda ctx, g: g * logistic_slope(ctx.saved_tensors[0]), setup_context=setup)
largest.register_fake(lambda x: x.new_empty(*x.shape[:-1], x.shape[-1] // 2))
largest.register_autograd(
    lambda ctx, g: (g[..., None] * winners(ctx.saved_tensors[0])).flatten(-2), setup_context=setup
)


def own_logistic(slope: Any) -> Operator:
    capalloc.rule(torch.ops.own.logistic.default, slope=slope, rank="bounded")
    return torch.ops.own.logistic


def own_largest() -> Operator:
    @capalloc.rule(torch.ops.own.largest.default, kind="pooling", gates=lambda operation: winners(operation["x"]))
    def pair(call: capalloc.Call) -> Any:
        x, won = call.signal("x"), winners(call["x"])
        pairs = call.program.move(lambda e: e.reshape(won.shape), x)
        passed = call.program.gate(pairs, won)
        assert passed.labels is not None
        labels = call.program.channels.merge(passed.labels, passed.shape, (-1,), forced=True).squeeze(-1)
        return call.program.step(lambda e: e.sum(-1), [passed], labels)

    return torch.ops.own.largest


#: name -> (registers an operator and gives it, its equal among torch's own)
OPERATORS: dict[str, tuple[Callable[[], Operator], Operator]] = {
    "slope": (lambda: own_logistic(logistic_slope), torch.sigmoid),
    "slope by autograd": (lambda: own_logistic("autograd"), torch.sigmoid),
    "rule and reader": (own_largest, lambda x: torch.max_pool1d(x, 2)),
}


class Layers(nn.Module):
    def __init__(self, operator: Operator) -> None:
        super().__init__()
        self.first, self.second = nn.Conv1d(1, 3, 3, padding=1), nn.Conv1d(3, 2, 3, padding=1)
        self.operator = operator

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.operator(self.first(x)))


class Product(Layers):
    """The operator beside a tanh, which looks less like a gate than what is in [0, 1], and more than a maximum."""

    def __init__(self, operator: Operator) -> None:
        super().__init__(operator)
        self.side = nn.Conv1d(1, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        found = self.operator(self.first(x))
        return self.second(found * torch.tanh(self.side(x))[..., : found.shape[-1]])


def table(result: Any) -> np.ndarray:
    """All numbers of a result but the seconds it took."""
    return np.concatenate([v.to_numpy().ravel() for v in result.data.values() if v.dtype.kind in "fi"])


#: use -> the model, and what is read there.
USES: dict[str, tuple[type[Layers], Callable[[nn.Module, Tensor], Any]]] = {
    "propagate": (Layers, lambda model, x: capalloc.propagate(model, x, solver="markov").capacity),
    "walk": (Layers, lambda model, x: capalloc.walk(model, x).inputs),
    "decoupling": (Layers, lambda model, x: table(capalloc.decoupling(model, x))),
    "scaling": (Layers, lambda model, x: table(capalloc.scaling(model, x))),
    "shattering": (Layers, lambda model, x: table(capalloc.shattering(model, x))),
    "receptive field": (Layers, lambda model, x: capalloc.receptive_field(model, x).map),
    "gate in a product": (Product, lambda model, x: capalloc.propagate(model, x, solver="markov").by_parameter),
    "carried in a product": (
        Product,
        lambda model, x: capalloc.propagate(model, x, products={"": "right"}, solver="markov").capacity,
    ),
}


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("name", OPERATORS)
def test_one_declaration_serves_every_use(name, use):
    make, equal = OPERATORS[name]
    kind, read = USES[use]
    x = gaussian(6, 1, 8)
    own, known = (read(seeded_module(kind, operator), x) for operator in (make(), equal))
    assert np.size(own) > 1
    np.testing.assert_allclose(own, known, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("gates", ["gaussian", "unit"])
def test_slopes_serve_every_source_of_gates(gates):
    x = gaussian(2, 1, 8)
    own, known = (
        capalloc.propagate(seeded_module(Layers, operator), x, gates=gates, solver="markov").capacity
        for operator in (own_logistic(logistic_slope), torch.sigmoid)
    )
    np.testing.assert_allclose(own, known, rtol=1e-9)


def test_linear_segments_end_at_operators_of_ones_own():
    x = gaussian(2, 1, 8)
    own, known = (
        capalloc.propagate(seeded_module(Layers, operator), x, solver="segments").capacity
        for operator in (own_logistic("autograd"), torch.sigmoid)
    )
    np.testing.assert_allclose(own, known, rtol=1e-9)
    with pytest.raises(capalloc.UnsupportedOperatorError, match=r"derivative of own.largest.default along a direction"):
        capalloc.propagate(seeded_module(Layers, own_largest()), x, solver="segments")


def test_what_an_operator_without_a_reader_of_its_gates_leaves_out_is_said():
    capalloc.rule(torch.ops.own.largest.default, kind="pooling")(lambda call: call.signal("x"))
    model = seeded_module(Layers, lambda x: torch.ops.own.largest(torch.relu(x)))
    result = capalloc.decoupling(model, gaussian(4, 1, 8))
    assert result.data["kind"].to_numpy().tolist() == ["activation"]
    assert any("own.largest, whose gates are not read" in note for note in result.data.attrs["notes"])


def test_a_rule_can_be_put_in_the_place_of_another():
    own_logistic("autograd")
    with pytest.raises(ValueError, match="has a rule already: activation; pass override=True"):
        own_logistic("autograd")
    x = gaussian(2, 1, 8)
    model = seeded_module(Layers, torch.relu)
    plain = capalloc.walk(model, x, gates="data").inputs
    capalloc.rule(torch.ops.aten.relu.default, override=True)(lambda call: call.signal("self"))
    assert not np.allclose(capalloc.walk(model, x, gates="data").inputs, plain)
    np.testing.assert_allclose(
        capalloc.walk(model, x, gates="data").inputs, capalloc.walk(model, x, gates="unit").inputs
    )


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"kind": "convolution"}, ValueError, r"kind must be one of \('pooling', .*got 'convolution'"),
        ({"rank": "high"}, ValueError, r"rank must be one of \('none', 'activation', .*got 'high'"),
        ({"slope": "autograd", "kind": "pooling"}, TypeError, "leave out kind= and gates="),
    ],
)
def test_declarations_that_mean_nothing(arguments, error, message):
    with pytest.raises(error, match=message):
        capalloc.rule(torch.ops.own.logistic.default, **arguments)
