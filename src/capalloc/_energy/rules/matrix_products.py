"""Products of two tensors: by a parameter, by a constant or a frozen gate, or with both factors carrying in turn."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from capalloc._energy.maps import Function
from capalloc._energy.program import Energy
from capalloc._energy.program_steps import PartialMixture
from capalloc._energy.ranges import least_of_gates
from capalloc._energy.rules.dense_and_convolution import last_axis_product, scale, times_constant
from capalloc._energy.rules.registration import Call, rule
from capalloc._energy.symmetries.labels import NOTHING, Channels, connected
from capalloc._operators.calls import slope

aten = torch.ops.aten


@rule(aten.mul.Tensor)
def multiply(call: Call) -> Energy:
    """A product with a parameter weighs, with a constant or a gate it is fixed; two signals carry in turn."""
    a, b = call.energy("self"), call.energy("other")
    if a is not None and b is not None:
        if a.is_signal and b.is_signal:
            first, second = times_constant(call, a, call["other"]), times_constant(call, b, call["self"])
            return call.program.add(first, second)
        if not a.is_signal and not b.is_signal:
            return call.program.step(torch.mul, [a, b], None)
        return scale(call, a, b) if a.is_signal else scale(call, b, a)
    energy, constant = (a, call["other"]) if a is not None else (b, call["self"])
    assert energy is not None
    return times_constant(call, energy, constant)


@rule(aten.div.Tensor)
def divide(call: Call) -> Energy:
    """Division by a constant or a frozen denominator; one that carries has the slope of c / z."""
    above = call.energy("self")
    terms = []
    if call.energy("other") is not None:
        gates = slope(call.replaced("other"), call["other"].expand(call.result.shape))
        terms.append(call.program.gate(call.signal("other"), gates.double().square()))
    if above is not None:
        other = call["other"]
        terms.append(
            times_constant(call, above, 1 / (other.to(call.program.dtype) if isinstance(other, Tensor) else other))
        )
    return call.program.add(*terms)


@rule(aten.matmul.default, aten.mm.default, aten.bmm.default)
def matmul(call: Call) -> Energy:
    """x @ y with a weight, a constant or a frozen gate on either side."""
    return _product(call, "self", "other" if "other" in call.args else "mat2")


@rule(aten.addmm.default)
def addmm(call: Call) -> Energy:
    """beta * c + alpha * x @ y."""
    return _product_and_sum(call, "mat1", "mat2")


@rule(aten.baddbmm.default)
def baddbmm(call: Call) -> Energy:
    """beta * c + alpha * x @ y, batch by batch."""
    return _product_and_sum(call, "batch1", "batch2")


def _product_and_sum(call: Call, left: str, right: str) -> Energy:
    out = _times(call, _product(call, left, right), "alpha")
    if not call["beta"] or (call.energy("self") is None and not bool(call["self"].any())):
        return out
    if not out.is_signal:  # of a constant
        out = call.program.begin(out)
    return call.program.add(out, _times(call, call.signal("self"), "beta"))


def _times(call: Call, energy: Energy, name: str) -> Energy:
    return energy if call[name] == 1 else times_constant(call, energy, call[name])


def _product(call: Call, left: str, right: str) -> Energy:
    a, b = call.energy(left), call.energy(right)
    if a is not None and b is not None:
        if a.is_signal and b.is_signal:
            first = contract(call, a, call[right], from_left=False)
            return call.program.add(first, contract(call, b, call[left], from_left=True))
        if not a.is_signal and not b.is_signal:
            return call.program.step(torch.matmul, [a, b], None)
        return _weighed(call, a, b) if a.is_signal else _mirrored(call, b, a)
    if a is not None:
        return contract(call, a, call[right], from_left=False)
    assert b is not None
    return contract(call, b, call[left], from_left=True)


def contract(call: Call, energy: Energy, constant: Tensor, from_left: bool) -> Energy:
    """Energies of constant @ x or x @ constant: through squared entries; what an output mixes rescales together."""
    wide = constant.double().square()
    squared, held = wide.to(call.program.dtype), least_of_gates(wide)
    run = Function((lambda e: squared @ e) if from_left else (lambda e: e @ squared), held)
    if not energy.is_signal:
        return call.program.step(run, [energy], None)
    assert energy.labels is not None
    labels = energy.labels.expand(energy.shape) if energy.labels.ndim < len(energy.shape) else energy.labels
    shape, flat = energy.shape, constant.ndim == 1
    if flat:
        constant = constant[None] if from_left else constant[:, None]
    _keep_apart(call, labels, constant, from_left)
    pattern, axis = constant != 0, -2 if from_left else -1
    ties = not flat and not pattern.all() and call.program.channels.uniform(labels, shape, (axis,)) is None
    if len(shape) == 1:
        labels = mixed(call.program.channels, labels, shape, pattern.mT if from_left else pattern)
    else:
        labels = _mixed_on(call.program.channels, labels, shape, pattern, from_left)
    if flat:
        labels = labels.squeeze(-2 if from_left and len(shape) > 1 else -1)
    out = call.program.step(run, [energy], labels)
    if ties:
        joint = (pattern.mT if from_left else pattern).reshape(-1, *pattern.shape[-2:]).any(0)
        call.program.partial.append(PartialMixture(out.slot, joint, axis))
    return out


def _keep_apart(call: Call, labels: Tensor, constant: Tensor, from_left: bool) -> None:
    """Channels along a batch axis of the constant, such as attention heads, go through maps of their own."""
    sums = constant.sum(-1 if from_left else -2)
    if not torch.allclose(sums, sums.new_ones(())):  # what is alike at all positions does not stay so
        call.program.uneven.append(labels)
    batch = [n if labels.ndim > 2 else 1 for n in constant.shape[:-2]][1:]
    if math.prod(batch) > 1:
        index = torch.arange(math.prod(batch)).reshape(1, *batch, 1, 1)
        call.program.apart.append((labels, index))


def _mixed_on(channels: Channels, labels: Tensor, shape: tuple[int, ...], pattern: Tensor, from_left: bool) -> Tensor:
    if not from_left:
        return mixed(channels, labels, shape, pattern)
    return mixed(channels, labels.mT, (*shape[:-2], shape[-1], shape[-2]), pattern.mT).mT


def mixed(channels: Channels, labels: Tensor, shape: tuple[int, ...], pattern: Tensor) -> Tensor:
    """Labels of x @ c, from those of x (..., k) and where c (..., k, m) is not 0; what c mixes is tied.

    The last axis has length 1 in the result if one label serves all of it.
    """
    same = channels.uniform(labels, shape, (-1,))
    if same is not None:
        return same
    joint = pattern.reshape(-1, *pattern.shape[-2:]).any(0)
    channels.exact = channels.exact and bool((pattern == joint).all())
    read, written = connected(joint)
    labels = labels.expand(*labels.shape[:-1], shape[-1])
    groups = int(max(read.max(), written.max())) + 1
    one = labels.new_full((*labels.shape[:-1], groups), NOTHING)
    one = one.scatter_reduce(-1, read.expand(labels.shape), labels, "amax")
    channels.tie(labels, one[..., read])
    return one[..., written]


def _weighed(call: Call, x: Energy, weight: Energy) -> Energy:
    """x (..., n, inputs) @ weight (..., inputs, outputs)."""
    program = call.program
    if len(weight.shape) == 1:
        column = _weighed(call, x, program.move(lambda w: w[:, None], weight))
        return program.move(lambda e: e.squeeze(-1), column)
    if len(x.shape) == 1:
        row = _weighed(call, program.move(lambda e: e[None], x), weight)
        return program.move(lambda e: e.squeeze(-2), row)
    if len(weight.shape) == 2:
        return last_axis_product(call, x, program.move(torch.t, weight))
    assert x.labels is not None
    batch = weight.shape[:-2]
    aligned = (1,) * (len(x.shape) - len(weight.shape)) + batch
    shared = [k for k, n in enumerate(aligned[-(len(x.shape) - 2) :]) if n == 1] if len(x.shape) > 2 else []
    read = program.channels.merge(x.labels, x.shape, (*shared, -2), forced=True).mT
    read = read.reshape(read.shape[-len(weight.shape) :])
    written = program.channels.fresh((*batch, 1, weight.shape[-1]))
    return program.weigh(torch.matmul, x, weight, read, written, written)


def _mirrored(call: Call, x: Energy, weight: Energy) -> Energy:
    """weight @ x, by transposes."""
    program = call.program
    turn = lambda e: e.mT if e.ndim > 1 else e  # noqa: E731
    if len(x.shape) == 1:
        return _weighed(call, x, program.move(turn, weight))
    if len(weight.shape) == 1:
        return _weighed(call, program.move(turn, x), weight)
    return program.move(turn, _weighed(call, program.move(turn, x), program.move(turn, weight)))
