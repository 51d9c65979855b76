"""Linear maps with weights: dense layers, convolutions, products with a parameter."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from capalloc._energy.maps import ConvolutionMap, DenseMap, Product, Reshaped, as_map
from capalloc._energy.program import Energy, Program
from capalloc._energy.ranges import least_of_gates
from capalloc._energy.rules.registration import Call, rule
from capalloc._energy.symmetries.classes import positions, share, share_entries
from capalloc._energy.symmetries.convolution import Convolved
from capalloc._operators.calls import per_axis
from capalloc._operators.records import of_kind

aten = torch.ops.aten
#: Size of a constant from which on, and the inverse up to which, its square is a number.
LEAST_TO_SQUARE = 1e-150


@rule(aten.linear.default)
def linear(call: Call) -> Energy:
    """y = x W' + b: energies through the squared entries."""
    x, weight = call.signal("input"), call.weight("weight")
    assert weight is not None
    out = last_axis_product(call, x, weight)
    return add_bias(call, out, channel_axis=-1)


@rule(*of_kind("convolution"))
def convolution(call: Call) -> Energy:
    """A convolution with squared weights, transposed or not; a channel rescales at all positions alike."""
    program, x, weight = call.program, call.signal("input"), call.weight("weight")
    assert weight is not None
    groups, fn, alone = call["groups"], _convolution_map(call, len(weight.shape) - 2), len(x.shape) < len(weight.shape)
    if alone:  # one image without an axis of examples
        x = program.move(lambda e: e[None], x)
    assert x.labels is not None

    def run(x: Tensor, w: Tensor, groups: int) -> Tensor:
        found: Tensor = call.replaced("input", "weight", bias=None, groups=groups)(x, w)
        return found

    convolved = Convolved(run, program.values[weight.slot], groups, isinstance(fn, ConvolutionMap) and fn.transposed)
    sides, out_labels = convolved.around(program.channels, x.labels, x.shape)
    out = program.weigh(fn, x, weight, *sides[0], out_labels, sides[1:])
    out = add_bias(call, out, channel_axis=1)
    return program.move(lambda e: e[0], out) if alone else out


def _convolution_map(call: Call, ndim: int) -> ConvolutionMap | Callable[..., Tensor]:
    if isinstance(call["padding"], str):  # "same" may pad one side more than the other
        return call.replaced("input", "weight", bias=None)
    transposed = bool(call.args.get("transposed", "output_padding" in call.args))
    names = ("stride", "padding", "dilation", *(["output_padding"] if transposed else []))
    stride, padding, dilation, *more = (tuple(per_axis(call[name], ndim)) for name in names)
    return ConvolutionMap(stride, padding, dilation, call["groups"], transposed, *more)


def last_axis_product(call: Call, x: Energy, weight: Energy) -> Energy:
    """x (..., inputs) times weight (outputs, inputs): each entry of the last axis is a channel.

    Where positions differ in the channels they read, each class of positions writes channels of its own. Between
    the factors of a weight that is itself a product there is a channel too.
    """
    program = call.program
    low_rank = _made_by(program, weight, torch.matmul)
    if low_rank is not None and all(len(factor.shape) == 2 for factor in low_rank):
        return last_axis_product(call, last_axis_product(call, x, low_rank[1]), low_rank[0])
    outer, inner = _factors(program, weight)
    if inner is not None and outer.shape in ((weight.shape[0], 1), (1, weight.shape[1])):
        before = outer.shape[0] == 1 and weight.shape[0] != 1
        along = program.move(Reshaped((-1,)), outer)
        if before:
            return last_axis_product(call, scale(call, x, along), inner)
        return scale(call, last_axis_product(call, x, inner), along)
    assert x.labels is not None
    labels = x.labels.expand(*x.labels.shape[:-1], x.shape[-1]) if x.labels.ndim else x.labels.expand(x.shape[-1:])
    found = positions(program.channels, labels, weight.shape[0])
    written = share(program.channels, found.read[:, None], program.values[weight.slot][None])[:, 0]
    sides = tuple((r.reshape(1, -1), w.reshape(-1, 1)) for r, w in zip(found.read, written, strict=True))
    out_labels = written[0] if len(written) == 1 else written[found.place]
    return program.weigh(DenseMap(), x, weight, *sides[0], out_labels, sides[1:])


def add_bias(call: Call, out: Energy, channel_axis: int) -> Energy:
    """Add the paths that start at the constant input with the argument "bias", one per channel."""
    bias = call.weight("bias")
    if bias is None:
        return out
    shape = [1] * len(out.shape)
    shape[channel_axis] = -1
    return call.program.add(out, call.program.begin(call.program.move(Reshaped(tuple(shape)), bias)))


def scale(call: Call, x: Energy, weight: Energy, held: Tensor | None = None) -> Energy:
    """x * w, entry by entry; each channel that reads a weight rescales by the same factor.

    With what is `held`, squared factors that broadcast to the weight's shape, it is x * w * held.
    """
    assert x.labels is not None
    program = call.program
    outer, inner = _factors(program, weight)
    if inner is not None:
        return scale(call, scale(call, x, inner, held), outer)
    shape = np.broadcast_shapes(x.shape, weight.shape)
    aligned = (1,) * (len(shape) - len(weight.shape)) + weight.shape
    if weight.shape != aligned:
        weight = program.move(Reshaped(aligned), weight)
    labels = x.labels.reshape((1,) * (len(shape) - x.labels.ndim) + tuple(x.labels.shape))
    labels = labels.expand([n if n > 1 else -1 for n in aligned])
    sides, out_labels = share_entries(program.channels, labels, program.values[weight.slot] > 0)
    fn = Product()
    if held is not None:
        program.see_uneven(x, held)
        fn = Product(held.to(program.dtype), least_of_gates(held) if program.reach else 0)
    return program.weigh(fn, x, weight, *sides[0], out_labels, sides[1:])


def _factors(program: Program, weight: Energy) -> tuple[Energy, Energy | None]:
    """The two parameters whose entrywise product a weight is; (weight, None) for any other weight."""
    pair = _made_by(program, weight, torch.mul)
    if pair is None:
        return weight, None
    outer, inner = pair if pair[1].shape == weight.shape else pair[::-1]
    return (outer, inner) if inner.shape == weight.shape else (weight, None)


def _made_by(program: Program, weight: Energy, product: Callable[..., Tensor]) -> tuple[Energy, Energy] | None:
    made = next((step for step in reversed(program.steps) if step.out == weight.slot), None)
    if made is None or not program.free[weight.slot] or made.map != as_map(product):
        return None
    left, right = (Energy(slot, tuple(program.values[slot].shape)) for slot in made.args)
    return left, right


def times_constant(call: Call, energy: Energy, constant: Tensor | float) -> Energy:
    """Energy times the square of a constant, in two steps: a square may leave the range of numbers."""
    size = constant.double().abs() if isinstance(constant, Tensor) else abs(float(constant))
    if isinstance(size, Tensor) or size == 0 or LEAST_TO_SQUARE < size < 1 / LEAST_TO_SQUARE:
        return call.program.gate(energy, size * size)
    return call.program.gate(call.program.gate(energy, size), size)
