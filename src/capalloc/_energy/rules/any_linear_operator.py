"""Operators without a rule of their own that are linear in what carries paths: energies through their matrix."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from capalloc._energy.linear_map import LinearMap, columns, spread
from capalloc._energy.operator_matrix import OperatorError, find
from capalloc._energy.program import Energy
from capalloc._energy.rules.registration import Call, Traced
from capalloc._energy.symmetries.labels import GROUND, NOTHING, Channels
from capalloc._operators.calls import invoke

Operator = Callable[..., list[Any]]  # the carried arguments -> the results


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

    def __call__(self, *args: Tensor) -> Tensor:
        """Energies through every argument's matrix."""
        first, *rest = (m.energies(e) for m, e in zip(self.maps, args, strict=True))
        return sum(rest, first)

    def pull(self, cotangent: Tensor, args: Sequence[Tensor], wanted: Sequence[int]) -> list[Tensor]:
        """Through the transposed matrices."""
        return [self.maps[k].adjoint(cotangent.expand(self.maps[k].out_shape)) for k in wanted]


def linear_operator(call: Call) -> Energy | tuple[Energy | None, ...] | None:
    """Squared entries of the operator's matrix; entries that one output mixes rescale together.

    Raises UnsupportedOperatorError where the operator is not linear, or its matrix is large and has no structure.
    """
    carried = list({id(a): a for a in _leaves(call) if _carries(a)}.values())  # x once in f(x, x)
    affine = _affine(call, carried)
    results = tuple(None if maps is None else _result(call, carried, affine, k) for k, maps in enumerate(affine.maps))
    return results[0] if isinstance(call.result, Tensor) else results


def _result(call: Call, carried: list[Traced], affine: Affine, k: int) -> Energy | None:
    maps, offset = affine.maps[k], affine.offsets[k]
    assert maps is not None
    if all(m.empty for m in maps):
        return None
    if len(carried) == 1 and maps[0].moves and affine.homogeneous[k]:
        run = _operator(call, carried)
        return call.program.move(lambda e: run(e.contiguous())[k], _whole(call, carried[0], carried[0].energy))
    terms = [(m, _whole(call, a, call.as_signal(a))) for m, a in zip(maps, carried, strict=True) if not m.empty]
    labels = _joined(call.program.channels, [_labels(call.program.channels, m, e) for m, e in terms])
    through = Through([m for m, _ in terms])
    out = call.program.step(through, [e for _, e in terms], labels)
    return _with_offset(call, out, offset) if bool((offset != 0).any()) else out


def _with_offset(call: Call, out: Energy, offset: Tensor) -> Energy:
    assert out.labels is not None
    started = torch.where(offset != 0, GROUND, NOTHING)
    labels = _joined(call.program.channels, [out.labels, started])
    return call.program.step(torch.add, [out, call.program.fixed(offset)], labels)


def _whole(call: Call, argument: Traced, energy: Energy) -> Energy:
    shape = tuple(argument.value.shape)
    return energy if energy.shape == shape else call.program.move(lambda e: e.expand(shape), energy)


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


def _affine(call: Call, carried: list[Traced]) -> Affine:
    """The operator's matrices, found once for equal arguments: they are kept with the program."""
    constants = [_value(a) for a in _leaves(call) if isinstance(_value(a), Tensor) and not _carries(a)]
    key = (call.op, repr(pytree.tree_map(_outline, call.args, is_leaf=_is_traced)))
    known = call.program.found.get(key)
    if known is None or not all(map(torch.equal, known.constants, constants)):
        known = call.program.found[key] = _find(call, carried, constants)
    return known


def _find(call: Call, carried: list[Traced], constants: list[Tensor]) -> Affine:
    generator = torch.Generator().manual_seed(0)
    run = _operator(call, carried)
    zeros = [torch.zeros(tuple(a.value.shape), dtype=torch.float64) for a in carried]
    offsets = run(*zeros)
    homogeneous = [isinstance(offset, Tensor) and not bool((offset != 0).any()) for offset in offsets]
    maps: list[list[LinearMap] | None] = []
    for k, offset in enumerate(offsets):
        if not isinstance(offset, Tensor) or not offset.is_floating_point():
            maps.append(None)
            continue
        # A constant that is not finite, such as a mask of -inf, starts no path.
        finite = offsets[k] = torch.nan_to_num(offset, 0.0, 0.0, 0.0)
        maps.append([_one(call, _part(run, zeros, j, k, finite), x, finite, generator) for j, x in enumerate(zeros)])
        _check_additive(call, run, zeros, k, finite, generator)
    if all(m is None for m in maps):
        raise call.unsupported("its results are not real numbers")
    return Affine(maps, offsets, homogeneous, constants)


def _part(run: Operator, zeros: list[Tensor], j: int, k: int, offset: Tensor) -> Callable[[Tensor], Tensor]:
    """The part of result k that is linear in argument j."""
    shifted = bool((offset != 0).any())

    def part(x: Tensor) -> Tensor:
        y: Tensor = torch.nan_to_num(run(*zeros[:j], x, *zeros[j + 1 :])[k], 0.0, 0.0, 0.0)
        return y - offset if shifted else y

    return part


def _one(
    call: Call, part: Callable[[Tensor], Tensor], like: Tensor, offset: Tensor, generator: torch.Generator
) -> LinearMap:
    try:
        return find(part, like.shape, offset.shape, generator)
    except OperatorError as error:
        raise call.unsupported(f"it has none, and {error}") from error


def _check_additive(
    call: Call, run: Operator, zeros: list[Tensor], k: int, offset: Tensor, generator: torch.Generator
) -> None:
    """Linear in each argument is not linear in all: x y is not."""
    if len(zeros) == 1:
        return
    xs = [torch.randn(z.shape, generator=generator, dtype=z.dtype) for z in zeros]
    whole = run(*xs)[k] - offset
    parts = torch.stack([_part(run, zeros, j, k, offset)(x) for j, x in enumerate(xs)]).sum(0)
    if not torch.allclose(torch.nan_to_num(whole, 0.0, 0.0, 0.0), parts, rtol=1e-8, atol=1e-8):
        raise call.unsupported("it has none, and the operator is not linear in what depends on the inputs")


def _operator(call: Call, carried: list[Traced]) -> Operator:
    """The operator as a function of the carried arguments, constants in their precision or better."""

    def run(*values: Tensor) -> list[Any]:
        given = {id(a): v for a, v in zip(carried, values, strict=True)}

        def fill(a: Any) -> Any:
            value = given.get(id(a), _value(a))
            if not isinstance(value, Tensor):
                return value
            return value.to(values[0].device, values[0].dtype if value.is_floating_point() else value.dtype)

        result = invoke(call.op, pytree.tree_map(fill, call.args, is_leaf=_is_traced))
        return [result] if isinstance(result, Tensor) else list(result)

    return run


def _outline(a: Any) -> Any:
    value = _value(a)
    if isinstance(value, Tensor):
        return ("carried" if _carries(a) else "constant", tuple(value.shape), str(value.dtype))
    return value


def _leaves(call: Call) -> list[Any]:
    leaves: list[Any] = pytree.tree_leaves(call.args, is_leaf=_is_traced)
    return leaves


def _is_traced(a: Any) -> bool:
    return isinstance(a, Traced)


def _carries(a: Any) -> bool:
    return isinstance(a, Traced) and a.energy is not None


def _value(a: Any) -> Any:
    return a.value if isinstance(a, Traced) else a
