"""Operators without a rule of their own that are linear in what carries paths: energies through their matrix."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from capalloc._energy.linear_map import LinearMap, columns, spread
from capalloc._energy.operator_matrix import OperatorError, find
from capalloc._energy.program import Energy
from capalloc._energy.ranges import least_exponent
from capalloc._energy.rules.registration import Call, Traced, spread_over, value_of
from capalloc._energy.symmetries.labels import GROUND, NOTHING, Channels
from capalloc._operators.calls import invoke
from capalloc._operators.records import record


@dataclass(frozen=True, eq=False)
class Affine:
    """y_k = sum_j maps[k][j] x_j + offsets[k] for every result k that is a real tensor, None for the others."""

    maps: list[list[LinearMap] | None]
    offsets: list[Tensor]
    homogeneous: list[bool]  # whether y_k = 0 for x = 0
    constants: list[Tensor]  # the constant arguments it was found for


@dataclass(frozen=True)
class Through:
    """The energy map: a sum over the carried arguments."""

    maps: list[LinearMap]

    @cached_property
    def least(self) -> float:
        """Exponent of the least squared entry, which is made in float64."""
        return min(2 * least_exponent(m.matrix.weights.abs()) for m in self.maps)

    def __call__(self, *args: Tensor) -> Tensor:
        first, *rest = (m.energies(e) for m, e in zip(self.maps, args, strict=True))
        return sum(rest, first)

    def pull(self, cotangent: Tensor, args: Sequence[Tensor], wanted: Sequence[int]) -> list[Tensor]:
        return [self.maps[k].adjoint(cotangent.expand(self.maps[k].out_shape)) for k in wanted]


def linear_operator(call: Call) -> Energy | tuple[Energy | None, ...] | None:
    """Squared entries of the operator's matrix; entries that one output mixes rescale together.

    Raises UnsupportedOperatorError where the operator is not linear, or its matrix is large and has no structure.
    """
    operator = Operator(call, carried_by(call))
    return results(operator, _affine(call, operator))


def carried_by(call: Call) -> list[Traced]:
    """List the arguments with paths: x once in f(x, x)."""
    return list({id(a): a for a in pytree.tree_leaves(call.args) if _carries(a)}.values())


def results(operator: Operator, affine: Affine) -> Energy | tuple[Energy | None, ...] | None:
    """Give the energies of an operator's results, by its matrices."""
    found = tuple(None if maps is None else _result(operator, affine, k) for k, maps in enumerate(affine.maps))
    return found[0] if isinstance(operator.call.result, Tensor) else found


def _result(operator: Operator, affine: Affine, k: int) -> Energy | None:
    call, carried, maps, offset = operator.call, operator.carried, affine.maps[k], affine.offsets[k]
    assert maps is not None
    if all(m.empty for m in maps):
        return None
    if record(call.op).kind == "selection":
        read = [(m, a.energy) for m, a in zip(maps, carried, strict=True)]
        chosen = [e for m, e in read if isinstance(e, Energy) and _chooses(m, e)]
        call.program.decoupled += chosen
        call.program.bent |= len(chosen) > 1  # what both have in common is linear
    if len(carried) == 1 and maps[0].moves and affine.homogeneous[k]:
        # By the matrix, not by the operator: of entries written to one place autograd credits those overwritten too.
        moved = call.program.move(maps[0].energies, spread_over(call, carried[0].energy, carried[0].value))
        return _alike(call, moved)
    terms = [
        (m, spread_over(call, call.as_signal(a), a.value)) for m, a in zip(maps, carried, strict=True) if not m.empty
    ]
    labels = _joined(call.program.channels, [_labels(call.program.channels, m, e) for m, e in terms])
    through = Through([m for m, _ in terms])
    out = _alike(call, call.program.step(through, [e for _, e in terms], labels))
    return _with_offset(call, out, offset) if bool((offset != 0).any()) else out


def _chooses(operator: LinearMap, energy: Energy) -> bool:
    """Tell whether a selection treats examples unlike, and channels unlike as well: a gate."""
    if energy.labels is None:
        return False
    free, lead = dict(operator.free), len(operator.in_shape) - energy.labels.ndim
    return 0 not in free and any(n > 1 and lead + k not in free for k, n in enumerate(energy.labels.shape))


def _alike(call: Call, out: Energy) -> Energy:
    """Tie what one unit is on all examples: a selection takes another channel on each, and weights rescale for all."""
    examples = call.program.values[call.program.input].shape[0]
    if out.labels is None or not out.shape or out.labels.ndim < len(out.shape) or out.labels.shape[0] % examples:
        return out
    apart = out.labels.reshape(examples, -1, *out.labels.shape[1:])
    if bool((apart == apart[:1]).all()):
        return out
    tied = call.program.channels.merge(apart, apart.shape, (0,), forced=True)
    return replace(out, labels=tied[0] if len(tied[0]) == 1 else tied.expand(apart.shape).reshape(out.labels.shape))


def _with_offset(call: Call, out: Energy, offset: Tensor) -> Energy:
    assert out.labels is not None
    started = torch.where(offset != 0, GROUND, NOTHING)
    if bool(((out.labels == NOTHING) & (started > NOTHING)).any()):  # what reads a constant alone is one more bias
        call.program.channels.exact = False
    call.program.channels.shift(out.labels, started)
    labels = torch.maximum(*torch.broadcast_tensors(out.labels, started))
    return call.program.step(torch.add, [out, call.program.fixed(offset)], labels)


def _joined(channels: Channels, labels: list[Tensor]) -> Tensor:
    first = labels[0]
    for other in labels[1:]:
        channels.tie(first, other)
        first = torch.maximum(first, other)
    return first


def _labels(channels: Channels, operator: LinearMap, energy: Energy) -> Tensor:
    """Labels of the outputs; those that one output mixes are tied."""
    assert energy.labels is not None
    labels = energy.labels.reshape((1,) * (len(energy.shape) - energy.labels.ndim) + tuple(energy.labels.shape))
    free = [i for i, _ in operator.free]
    for axis in free:  # the same for every example, as a rule: handle it once
        if bool((labels == labels.narrow(axis, 0, 1)).all()):
            labels = labels.narrow(axis, 0, 1)
    out_shape = [1] * len(operator.out_shape)
    for i, j in operator.free:
        out_shape[j] = labels.shape[i]
    outs = [j for _, j in operator.free]
    if all(n == 1 for k, n in enumerate(labels.shape) if k not in free) and operator.covers:
        return spread(columns(labels, free), out_shape, outs)
    shape = [n if k in free else m for k, (n, m) in enumerate(zip(labels.shape, energy.shape, strict=True))]
    read = columns(labels.expand(shape), free)[operator.matrix.cols]
    rows = operator.matrix.rows
    written = read.new_zeros(operator.matrix.shape[0], read.shape[1])
    written = written.scatter_reduce(0, rows[:, None].expand_as(read), read, "amax")
    channels.tie(read, written[rows])
    return spread(written, [out_shape[j] if j in outs else n for j, n in enumerate(operator.out_shape)], outs)


def _affine(call: Call, operator: Operator) -> Affine:
    """Find the operator's matrices, once for equal arguments: they are kept with the program."""
    leaves = pytree.tree_leaves(call.args)
    constants = [value_of(a) for a in leaves if isinstance(value_of(a), Tensor) and not _carries(a)]
    key = (call.op, repr(pytree.tree_map(_outline, call.args)))
    known = call.program.found.get(key)
    if known is None or not all(map(_equal, known.constants, constants)):
        known = call.program.found[key] = operator.affine(constants)
    return known


def _equal(a: Tensor, b: Tensor) -> bool:
    """Compare constants, which may be sparse."""
    return a is b or torch.equal(*(t if t.layout is torch.strided else t.to_dense() for t in (a, b)))


@dataclass(frozen=True)
class Operator:
    """The operator as a function of the carried arguments, constants in their precision or better."""

    call: Call
    carried: list[Traced]

    def __call__(self, *values: Tensor) -> list[Any]:
        given = {id(a): v for a, v in zip(self.carried, values, strict=True)}

        def fill(a: Any) -> Any:
            value = given.get(id(a), value_of(a))
            if not isinstance(value, Tensor):
                return value
            like = values[0].dtype.to_complex() if value.is_complex() else values[0].dtype
            return value.to(values[0].device, like if value.is_floating_point() or value.is_complex() else value.dtype)

        result = invoke(self.call.op, pytree.tree_map(fill, self.call.args))
        return [result] if isinstance(result, Tensor) else list(result)

    @property
    def zeros(self) -> list[Tensor]:
        return [torch.zeros(tuple(a.value.shape), dtype=torch.float64) for a in self.carried]

    def affine(self, constants: list[Tensor]) -> Affine:
        """Find the matrices, and check that the results are linear in all arguments together: x y is not."""
        generator = torch.Generator().manual_seed(0)
        try:
            offsets = self(*self.zeros)
        except RuntimeError as error:
            raise self.call.unsupported(f"it has none, and the operator is not known at 0: {error}") from error
        homogeneous = [isinstance(offset, Tensor) and not bool((offset != 0).any()) for offset in offsets]
        maps: list[list[LinearMap] | None] = [None] * len(offsets)
        for k, offset in enumerate(offsets):
            if isinstance(offset, Tensor) and offset.is_floating_point():
                if bool(offset.isnan().any()):
                    raise self.call.unsupported("it has none, and the operator is not known at 0: its result is NaN")
                offsets[k] = _finite(offset)
                parts = [self._part(j, k, offsets[k]) for j in range(len(self.carried))]
                try:
                    maps[k] = [
                        find(part, x.shape, offset.shape, generator) for part, x in zip(parts, self.zeros, strict=True)
                    ]
                except OperatorError as error:
                    raise self.call.unsupported(f"it has none, and {error}") from error
                xs = [torch.randn(x.shape, generator=generator, dtype=x.dtype) for x in self.zeros]
                added = torch.stack([part(x) for part, x in zip(parts, xs, strict=True)]).sum(0)
                if len(xs) > 1 and not torch.allclose(_finite(self(*xs)[k] - offsets[k]), added, rtol=1e-8, atol=1e-8):
                    raise self.call.unsupported(
                        "it has none, and the operator is not linear in what depends on the inputs"
                    )
        if all(m is None for m in maps):
            raise self.call.unsupported("its results are not real numbers")
        return Affine(maps, offsets, homogeneous, constants)

    def _part(self, j: int, k: int, offset: Tensor) -> Callable[[Tensor], Tensor]:
        """Give the part of result k that is linear in argument j."""
        zeros, shifted = self.zeros, bool((offset != 0).any())

        def part(x: Tensor) -> Tensor:
            y = _finite(self(*zeros[:j], x, *zeros[j + 1 :])[k])
            return y - offset if shifted else y

        return part


def _finite(x: Tensor) -> Tensor:
    """Take out what is not finite: a constant such as a mask of -inf starts no path."""
    return torch.nan_to_num(x, 0.0, 0.0, 0.0)


def _outline(a: Any) -> Any:
    value = value_of(a)
    if isinstance(value, Tensor):
        return ("carried" if _carries(a) else "constant", tuple(value.shape), str(value.dtype))
    return value


def _carries(a: Any) -> bool:
    return isinstance(a, Traced) and a.energy is not None
