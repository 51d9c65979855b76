"""Rules of affine calls against autograd, and the ways to rows of constraints against each other."""

from __future__ import annotations

import contextlib

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import vjp, vmap

from capalloc._derivatives import choose_jacobian, exact_derivatives
from capalloc._derivatives.autograd import LoopRows
from capalloc._derivatives.recognise import RECOGNISERS, recognise
from capalloc._derivatives.rows import FactoredRows, GradientRows, push_forward, push_reverse
from capalloc._derivatives.tape import tap_model
from capalloc._derivatives.verify import row_errors, wrong_names
from capalloc._model.input_metric import input_metric
from capalloc._model.problem import prepare
from measured import MODELS, build, data


def parameter(*shape: int) -> nn.Parameter:
    return nn.Parameter(data(*shape, seed=7))


#: A function, its arguments, and the places of weight and bias among them.
CALLS = {
    "linear": (F.linear, (data(2, 5, 3), parameter(4, 3), parameter(4)), 1, 2),
    "matmul": (torch.matmul, (data(2, 5, 3), parameter(3, 4)), 1, None),
    "conv1d": (torch.conv1d, (data(2, 4, 7), parameter(6, 2, 3), parameter(6), 2, 2, 2, 2), 1, 2),
    "conv2d": (torch.conv2d, (data(2, 3, 5, 6), parameter(4, 3, 2, 3), parameter(4), (1, 2), (0, 1)), 1, 2),
    "conv2d, same": (torch.conv2d, (data(2, 3, 5, 6), parameter(4, 3, 2, 4), None, 1, "same"), 1, None),
    "conv3d": (torch.conv3d, (data(2, 2, 3, 4, 3), parameter(3, 2, 2, 2, 2)), 1, None),
    "batch_norm": (
        F.batch_norm,
        (data(2, 3, 4), data(3, seed=1), data(3, seed=2).square() + 0.1, parameter(3), parameter(3)),
        3,
        4,
    ),
    "layer_norm": (F.layer_norm, (data(2, 5, 4, 3), (4, 3), parameter(4, 3), parameter(4, 3)), 2, 3),
    "group_norm": (F.group_norm, (data(2, 4, 3), 2, parameter(4), parameter(4)), 2, 3),
    "instance_norm": (F.instance_norm, (data(2, 4, 3), None, None, parameter(4), parameter(4)), 3, 4),
    "mul": (torch.mul, (data(2, 3, 4, 5), parameter(3, 1, 5)), 1, None),
    "mul, wider weight": (torch.mul, (parameter(3, 5), data(2, 3, 1)), 0, None),
    "expand": (Tensor.expand, (parameter(1, 1, 4), 2, 3, -1), None, 0),
    "add": (torch.add, (parameter(4, 1), data(2, 4, 5)), None, 0),
}


def test_every_rule_is_tested():
    assert {RECOGNISERS[function] for function, *_ in CALLS.values()} == set(RECOGNISERS.values())


@pytest.mark.parametrize("name", CALLS)
def test_rules_agree_with_autograd(name):
    """Output, gradients of weight and bias for all pairs, and both products, k = 2 vectors and a = 3 cotangents."""
    function, arguments, weight_at, bias_at = CALLS[name]
    call = recognise(function, arguments, {})
    out = function(*arguments)
    torch.testing.assert_close(call.output(), out, rtol=1e-12, atol=1e-12)
    d, h = data(3, *out.shape, seed=3), data(2, 3, *call.input.shape, seed=4)
    left = call.rule.left(d)
    if weight_at is not None:
        weight = call.weight.detach()

        def to_weight(h: Tensor, d: Tensor) -> Tensor:
            return vjp(lambda w: call.rule.output(h, w, None), weight)[1](d)[0]

        pairs = vmap(vmap(to_weight, (0, None)), (None, 0))(h[0], d)
        gradient = call.rule.weight_gradient(left, call.rule.right(h[0]))
        torch.testing.assert_close(gradient, pairs, rtol=1e-10, atol=1e-10)
        summed = vmap(lambda one: vmap(to_weight)(one, d).sum(0))(h)
        torch.testing.assert_close(call.rule.to_weight(h, d), summed, rtol=1e-10, atol=1e-10)
        w = data(2, *weight.shape, seed=5)
        back = vmap(
            lambda w: vmap(lambda d: vjp(lambda h: call.rule.output(h, w, None), call.input.detach())[1](d)[0])(d)
        )(w)
        torch.testing.assert_close(call.rule.to_input(w, d), back, rtol=1e-10, atol=1e-10)
        at = [*arguments]
        at[weight_at] = weight
        of_function = vmap(vjp(lambda w: function(*at[:weight_at], w, *at[weight_at + 1 :]), weight)[1])(d)[0]
        first = call.rule.weight_gradient(left, call.rule.right(call.input.detach()[None]))[:, 0]
        torch.testing.assert_close(first, of_function, rtol=1e-10, atol=1e-10)
    if bias_at is not None:
        bias = arguments[bias_at].detach()
        of_bias = vmap(vjp(lambda b: function(*arguments[:bias_at], b, *arguments[bias_at + 1 :]), bias)[1])(d)[0]
        torch.testing.assert_close(call.rule.bias_gradient(left), of_bias.flatten(1), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("function", "arguments"),
    [
        (F.linear, (data(3), parameter(3))),
        (torch.matmul, (data(3), parameter(3, 2))),
        (torch.conv1d, (data(2, 5), parameter(3, 2, 2))),
        (F.batch_norm, (data(4, 3), None, None, parameter(3), None, True)),
        (F.instance_norm, (data(4, 3, 5), data(3), data(3), parameter(3))),
        (torch.mul, (parameter(3), parameter(3))),
        (torch.add, (data(3), 1.0)),
        (torch.sin, (data(3),)),
    ],
)
def test_calls_that_no_rule_covers_are_not_recognised(function, arguments):
    assert recognise(function, arguments, {}) is None
    assert recognise(function, arguments, {"out": data(3)}) is None


def replay():
    return contextlib.nullcontext()


@pytest.mark.parametrize("push", [push_forward, push_reverse])
@pytest.mark.parametrize("name", ["conv2d", "batchnorm1d", "tanh", "twice", "attention"])
def test_all_ways_give_the_same_rows(name, push):
    """Piecewise linear models never take the second way of `FactoredRows`, the others always do."""
    make, shape = MODELS[name]
    x = data(3, *shape)
    problem = prepare(build(make), x, dtype=torch.float64)
    (directions,) = input_metric(None, problem, True).chunks(100)
    otherwise = []
    with exact_derivatives():
        gradients = GradientRows(problem, push)
        second = lambda *at: otherwise.append(at) or gradients(*at)  # noqa: E731
        factored = FactoredRows(tap_model(problem), push, second)
        expected = LoopRows(problem)(x, directions, replay)
        for rows in (gradients, factored):
            found = rows(x, directions, replay)
            for key, part in expected.items():
                torch.testing.assert_close(found[key].reshape(part.shape), part, rtol=1e-9, atol=1e-9)
        chosen = choose_jacobian(problem, x, replay).jacobian
    assert bool(otherwise) == (name in ("tanh", "attention"))
    assert isinstance(chosen, GradientRows if otherwise else FactoredRows)


def test_rows_that_go_wrong_for_several_examples_are_found_out():
    x = data(3, 3)
    problem = prepare(build(MODELS["tanh"][0]), x, dtype=torch.float64)
    loop = LoopRows(problem)

    def rows(x, directions, replay):
        return {name: part * len(x) for name, part in loop(x, directions, replay).items()}

    with exact_derivatives():
        assert row_errors(rows, loop, x[:1], replay) == ""
        assert row_errors(rows, loop, x, replay).startswith("gives wrong derivatives for 0.bias, 0.weight")
        assert choose_jacobian(problem, x, replay).name == "forward"


class Recurrent(nn.Module):
    """A recurrent module read at its last step, on whole sequences or on packed ones."""

    def __init__(self, kind: type[nn.RNNBase], packed: bool = False, **options: object) -> None:
        super().__init__()
        self.recurrent, self.packed = kind(2, 3, batch_first=True, **options), packed

    def forward(self, x: Tensor) -> Tensor:
        if not self.packed:
            return self.recurrent(x)[0][:, -1]
        sequences = nn.utils.rnn.pack_padded_sequence(x, torch.full((len(x),), x.shape[1]), batch_first=True)
        return nn.utils.rnn.pad_packed_sequence(self.recurrent(sequences)[0], batch_first=True)[0][:, -1]


RECURRENT_MODULES = {
    "LSTM": (nn.LSTM, {}),
    "LSTM, two layers, both ways, projected": (nn.LSTM, {"num_layers": 2, "bidirectional": True, "proj_size": 2}),
    "GRU, no biases": (nn.GRU, {"bias": False}),
    "RNN, tanh": (nn.RNN, {"bidirectional": True}),
    "RNN, relu": (nn.RNN, {"nonlinearity": "relu", "num_layers": 2}),
}


@pytest.mark.parametrize("name", RECURRENT_MODULES)
def test_recurrent_modules_are_differentiated_in_batches(name):
    """`vmap` does not enter torch's own operators; their steps, which it enters, have plain autograd's rows."""
    kind, options = RECURRENT_MODULES[name]
    torch.manual_seed(0)
    x = data(2, 3, 2)
    problem = prepare(Recurrent(kind, **options).double(), x)
    with exact_derivatives():
        assert choose_jacobian(problem, x, replay).name == "forward"


def test_packed_sequences_stay_as_they_are():
    torch.manual_seed(0)
    x = data(2, 3, 2)
    problem = prepare(Recurrent(nn.GRU, packed=True).double(), x)
    with exact_derivatives():
        assert choose_jacobian(problem, x, replay).name == "loop"


def test_what_should_be_zero_has_the_rounding_of_the_largest():
    """A bias that the next norm takes away: 3e-14 for zero beside 118, as a trained MLP-Mixer has."""
    expected = {"weight": torch.tensor([118.0, 1.0]).double(), "bias": torch.tensor([2.8e-14, -1e-14]).double()}
    rounded = {"weight": expected["weight"] * (1 + 1e-15), "bias": -expected["bias"]}
    assert wrong_names(rounded, expected) == set()
    assert wrong_names(rounded | {"bias": torch.tensor([1e-8, 0.0]).double()}, expected) == {"bias"}
    assert wrong_names(rounded | {"weight": expected["weight"] + 1e-5}, expected) == {"weight"}
