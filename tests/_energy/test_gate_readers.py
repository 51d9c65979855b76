"""Every registered reader of gates: the gates it reads rebuild what the operator computed."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from capalloc._decoupling.gate_decoupling import largest_gate
from capalloc._energy.rules import read_gates
from capalloc._operators.calls import Operation, bind
from capalloc._operators.records import RECORDS, of_kind, record
from zoo import gaussian

aten = torch.ops.aten
Case = tuple[tuple[object, ...], Callable[[Tensor, Tensor], Tensor]]
X = gaussian(2, 4, 6)
IMAGE = gaussian(2, 4, 6, 7)
VOLUME = gaussian(2, 2, 4, 5, 6)


def times(shift: Callable[[Tensor], Tensor] = lambda x: x) -> Callable[[Tensor, Tensor], Tensor]:
    """Gates times the signal."""
    return lambda x, gates: gates * shift(x)


def layer_centred(x: Tensor) -> Tensor:
    return x - x.mean(-1, keepdim=True)


def group_centred(x: Tensor) -> Tensor:
    return (x.reshape(2, 2, -1) - x.reshape(2, 2, -1).mean(-1, keepdim=True)).reshape(x.shape)


def attended(value: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda _, gates: gates @ value


V = gaussian(2, 3, 5, 2, seed=8)
Q = gaussian(2, 3, 4, 2)
MASK = torch.ones(4, 5, dtype=torch.bool).tril(2)

#: operator -> its arguments, and how its gates and its signal give its result.
CASES: dict[object, Case] = {
    aten.relu.default: ((X,), times()),
    aten.scaled_dot_product_attention.default: ((Q, gaussian(2, 3, 5, 2, seed=9), V), attended(V)),
    aten.softmax.int: ((X, -1), lambda _, gates: gates),
    aten._softmax.default: ((X, -1, False), lambda _, gates: gates),
    aten._safe_softmax.default: ((X, -1), lambda _, gates: gates),
    aten.layer_norm.default: ((X, [6]), times(layer_centred)),
    aten.rms_norm.default: ((X, [6]), times()),
    aten.group_norm.default: ((X, 2), times(group_centred)),
    aten.instance_norm.default: (
        (X, None, None, None, None, True, 0.1, 1e-5, False),
        times(layer_centred),
    ),
    aten.batch_norm.default: (
        (X, None, None, None, None, True, 0.1, 1e-5, False),
        times(lambda x: x - x.mean((0, 2), keepdim=True)),
    ),
    aten._native_batch_norm_legit_no_training.default: (
        (X, None, None, torch.zeros(4).double(), torch.arange(1.0, 5).double(), 0.1, 1e-5),
        times(),
    ),
    aten.where.self: ((X > 0, X, -X), lambda _, gates: gates * X - (1 - gates) * X),
    aten.where.ScalarOther: ((X > 0, X, 2.0), lambda _, gates: gates * X + (1 - gates) * 2),
    aten.where.ScalarSelf: ((X > 0, 2.0, X), lambda _, gates: gates * 2 + (1 - gates) * X),
}

#: Pooling: gates in windows, tested below.
POOLING = {
    aten.max_pool1d.default: (X, [3], [2], [1], [1], True),
    aten.max_pool2d.default: (IMAGE, [3, 2], [], [1, 0], [1, 2], False),
    aten.max_pool3d.default: (VOLUME, [2, 2, 2], [2, 1, 2]),
    aten.max_pool1d_with_indices.default: (X, [3], [2], [1]),
    aten.max_pool2d_with_indices.default: (IMAGE, [3, 2], [], [1, 0], [1, 2], False),
    aten.max_pool3d_with_indices.default: (VOLUME, [2, 2, 2], [2, 1, 2]),
    aten.adaptive_max_pool1d.default: (X, [4]),
    aten.adaptive_max_pool2d.default: (IMAGE, [4, 3]),
    aten.adaptive_max_pool3d.default: (VOLUME, [3, 2, 4]),
}
#: Over whole axes: arguments, and the axes.
EXTREMES = {
    aten.amax.default: ((IMAGE, [1, 3]), (1, 3)),
    aten.amin.default: ((IMAGE, [], True), (0, 1, 2, 3)),
    aten.max.dim: ((IMAGE, -2), (2,)),
    aten.min.dim: ((IMAGE, 1, True), (1,)),
}


def read(op: object, arguments: tuple[object, ...]) -> tuple[Operation, Tensor]:
    named = bind(op, arguments, {})
    operation = Operation(op, named, op(*arguments))  # type: ignore[operator]
    return operation, read_gates(operation)


def first_of(result: object) -> Tensor:
    return result[0] if isinstance(result, tuple) else result  # type: ignore[return-value]


def test_every_reader_is_tested():
    readable = {op for op, known in RECORDS.items() if known.gates and known.kind != "activation"}
    assert {*readable, aten.relu.default} == {*CASES, *POOLING, *EXTREMES}


@pytest.mark.parametrize("op", CASES, ids=str)
def test_gates_rebuild_the_result(op):
    arguments, rebuild = CASES[op]
    operation, gates = read(op, arguments)
    signal = next(a for a in arguments if isinstance(a, Tensor) and a.is_floating_point())
    np.testing.assert_allclose(rebuild(signal, gates), first_of(operation.result), atol=1e-12)


@pytest.mark.parametrize(
    "options",
    [{"is_causal": True}, {"attn_mask": MASK}, {"attn_mask": gaussian(4, 5)}, {"scale": 2.0}, {"enable_gqa": True}],
    ids=str,
)
def test_attention_weights_with_options(options):
    heads = 1 if "enable_gqa" in options else 3
    key, value = gaussian(2, heads, 5, 2, seed=9), V[:, :heads]
    op = aten.scaled_dot_product_attention.default
    arguments = bind(op, (Q, key, value), options)
    operation = Operation(op, arguments, op(Q, key, value, **options))
    gates = read_gates(operation)
    np.testing.assert_allclose(gates @ value, operation.result, atol=1e-12)
    np.testing.assert_allclose(gates.sum(-1), 1)


@pytest.mark.parametrize("op", POOLING, ids=str)
def test_pooling_has_one_winner_in_each_window(op):
    operation, gates = read(op, POOLING[op])
    x, pooled = operation["self"], first_of(operation.result)
    assert gates.shape[:2] == x.shape[:2]
    assert float(gates.sum()) == pooled.numel()
    # The gates of an entry, over all windows that hold it, are the entry's gradient.
    leaf = x.clone().requires_grad_()
    first_of(op(leaf, *POOLING[op][1:])).sum().backward()
    assert float(leaf.grad.sum()) == float(gates.sum())
    assert float((leaf.grad * x).sum()) == pytest.approx(float(pooled.sum()))
    entries = {nn.functional.max_pool1d: 11}.get(op)
    assert entries is None or gates.shape[2] == entries


def test_windows_count_only_inputs_that_exist():
    # Six inputs, windows of 3 at stride 2 with padding 1: (-1 0 1) (1 2 3) (3 4 5) (5 6 7).
    _, gates = read(aten.max_pool1d.default, POOLING[aten.max_pool1d.default])
    assert gates.shape == (2, 4, 2 + 3 + 3 + 1)
    winner = F.max_pool1d(X, 3, 2, 1, ceil_mode=True, return_indices=True)[1]
    np.testing.assert_array_equal(gates[..., :2].argmax(-1), winner[..., 0])
    np.testing.assert_array_equal(gates[..., 2:5].argmax(-1) + 1, winner[..., 1])


@pytest.mark.parametrize("op", EXTREMES, ids=str)
def test_extremes_let_their_winner_through(op):
    arguments, dims = EXTREMES[op]
    operation, gates = read(op, arguments)
    result = first_of(operation.result)
    kept = [k for k in range(IMAGE.ndim) if k not in dims]
    entries = IMAGE.permute(*kept, *dims).flatten(len(kept))  # those of one result in a last axis
    np.testing.assert_array_equal(gates.shape[:-1], result.shape)
    gates = gates.reshape(entries.shape)
    np.testing.assert_allclose((gates * entries).sum(-1), result.reshape(entries.shape[:-1]))
    np.testing.assert_array_equal(gates.sum(-1), 1)


def test_activations_are_read_by_their_slope():
    ops = of_kind("activation")
    assert len(ops) > 20
    assert all(record(op).gates for op in ops)
    assert record(aten.linear.default).gates is None
    _, gates = read(aten.tanh.default, (X,))
    np.testing.assert_allclose(gates, 1 - X.tanh().square())


def test_largest_gates():
    assert largest_gate(read(aten.tanh.default, (X,))[0]) == 1
    assert largest_gate(read(aten.softmax.int, (X, -1))[0]) == 1
    assert largest_gate(read(aten.rms_norm.default, (X, [6]))[0]) is None
    # No bound on the slope of the logarithm: no share of it is saturation.
    assert largest_gate(read(aten.log.default, (X.abs(),))[0]) is None
