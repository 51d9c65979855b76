"""The Markov solver: batches of programs -> capacity, in two sweeps (docs/theory.md, section 4)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from capalloc._energy import paths, sweep
from capalloc._energy.lost_products import loses
from capalloc._energy.program import Program
from capalloc._energy.symmetries import linear_spaces as spaces
from capalloc._energy.usage import Cotangents, FirstAdjoint, Usage, accumulate, add_usage, shares

Batch = tuple[Program, Tensor]  # a program and the seed of its outputs: 0 for the examples that only pad it


class FloatRangeError(ArithmeticError):
    """Path energies leave the range of float32: they are to be computed in float64."""


@dataclass(frozen=True)
class MarkovCapacity:
    """Capacity at the inputs and, where asked for, at every layer."""

    names: tuple[str, ...]
    by_input: Tensor  # (parameters, *inputs), or (1, *inputs) without the table
    bias: Tensor  # the same rows, at the constant input
    by_parameter: Tensor
    layers: Mapping[str, Tensor] = field(default_factory=dict)
    symmetries: int = 0
    exact_symmetries: bool = True
    bent: bool = False  # whether an activation may break symmetries, or have more
    more: bool = False  # whether linear segments have more of them
    alive: Tensor = field(default_factory=lambda: torch.zeros(0))  # parameters that a path uses, by tensor
    by_example: tuple[float, ...] = ()  # path energy at the outputs


def solve(
    batches: Callable[[bool], Iterable[Batch]], *, single: bool, layers: bool, table: bool, linear: bool = False
) -> MarkovCapacity:
    """Walk all batches twice: first for the path energy of every parameter, then for the capacity it carries.

    Args:
        batches: gives the same batches each time it is called, with the energies of every layer if told to.
        single: there is one batch, which is then walked once and kept.
        layers: keep the capacity held at every layer.
        table: keep the rows of the parameter tensors apart.
        linear: take away what linear segments lose too, from the map in proportion (no table).

    Raises:
        FloatRangeError: float32 may have lost path energies to rounding.

    """
    usage, (program, seed, flow) = path_usage(batches(layers))
    counted = shares(program, usage)
    names = tuple(program.params)
    loss = counted.loss(table)
    rows = {name: k if table else 0 for k, name in enumerate(names)}
    slots = program.layers if layers else {}
    marked = tuple(slot for layer in slots.values() for slot in layer)
    exact = usage.potentials.exact and all(
        mixture.tied_by(live) for mixture, live in zip(program.partial, usage.live, strict=True)
    )
    found = spaces.find(program, usage) if linear or (exact and not usage.bent) else None
    affine = any(edge.again for edge in program.edges)  # weights in a row that the constant's own paths see again
    shape = program.values[program.input].shape[1:]
    if not single:
        program.forget()
    held: Cotangents = {}
    varying: set[int] = set()
    once = [(program, seed)]
    for program, seed in batches(layers) if not single else once:
        if not single:
            flow = sweep.law(program, seed * usage.output_weight(program))
        for slot, capacity in sweep.capacity(program, flow, usage, loss, rows, marked).items():
            _hold(held, varying, slot, _over_examples(capacity, len(seed)))
        program.forget()
    result = MarkovCapacity(
        names=names,
        by_input=held.get(program.input, loss.new_zeros(len(loss), *shape)),
        bias=held.get(program.constant, loss.new_zeros(len(loss))),
        by_parameter=counted.alive - counted.lost,
        layers={name: total.sum(0) for name, layer in slots.items() if (total := _sum(held, layer)) is not None},
        symmetries=round(float(counted.lost.sum())),
        exact_symmetries=exact,
        bent=usage.bent,
        more=(found is not None and (found.total > 0 or found.unknown)) or affine,
        alive=counted.alive,
        by_example=tuple(usage.by_example),
    )
    return _without(found, result) if linear and found else result


def _without(lost: spaces.Spaces, result: MarkovCapacity) -> MarkovCapacity:
    by_parameter = result.by_parameter - torch.tensor([lost.lost[name] for name in result.names])
    before = float(result.by_parameter.sum())
    share = float(by_parameter.sum()) / before if before else 1.0
    return replace(
        result,
        by_input=result.by_input * share,
        bias=result.bias * share,
        by_parameter=by_parameter,
        symmetries=result.symmetries + lost.total,
        exact_symmetries=False,
    )


def law(batches: Iterable[Batch]) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Give the law of one unit of capacity placed at the outputs: at the inputs, the constant, the layers kept."""
    held: Cotangents = {}
    varying: set[int] = set()
    usage: Usage | None = None
    for program, seed in batches:
        usage = usage or Usage()
        slots = {program.input, program.constant, *(slot for layer in program.layers.values() for slot in layer)}
        seeds = {program.output: seed * usage.output_weight(program)}
        adjoint = paths.adjoint(program, seeds, slots & program.needed)
        for slot, g in adjoint.items():
            _hold(held, varying, slot, _over_examples((program.values[slot] * g)[None], len(seed))[0])
        if program.input not in held:  # paths from the constant alone
            held[program.input] = torch.zeros_like(program.values[program.input][0], device="cpu")
        program.forget()
    inputs = held[program.input]
    constant = held.get(program.constant, inputs.new_zeros(()))
    whole = inputs.sum() + constant
    marked = {name: total / whole for name, layer in program.layers.items() if (total := _sum(held, layer)) is not None}
    return inputs / whole, constant / whole, marked


def path_usage(batches: Iterable[Batch]) -> tuple[Usage, tuple[Program, Tensor, FirstAdjoint]]:
    """Sum what paths use over all batches; keep the last batch.

    Raises:
        FloatRangeError: float32 may have lost path energies to rounding.

    """
    usage: Usage | None = None
    last = None
    for program, seed in batches:
        if last:
            last[0].forget()
        usage = usage or Usage()
        weighed = seed * usage.output_weight(program)
        usage.by_example += (program.values[program.output] * weighed).reshape(len(weighed), -1).sum(1).tolist()
        flow = sweep.law(program, weighed, [mixture.slot for mixture in program.partial])
        last = (program, seed, flow)
        add_usage(usage, program, flow)
        if program.reach and program.reach.may_lose and not usage.may_lose:
            usage.may_lose = loses(program, weighed, flow)
    assert usage is not None
    assert last is not None
    if usage.is_lost():
        raise FloatRangeError("path energies leave the range of float32; compute them in float64")
    return usage, last


def _sum(held: Cotangents, slots: Sequence[int]) -> Tensor | None:
    """Sum over a layer's slots; None where no path passes it."""
    found = [held[slot] for slot in slots if slot in held]
    return sum(found[1:], found[0]) if found else None


def _hold(held: Cotangents, varying: set[int], slot: int, cotangent: Tensor) -> None:
    """Add what a layer holds; one of as many entries as a batch shows, such as what a mask takes, has no map."""
    if slot in held and held[slot].shape != cotangent.shape:
        varying.add(slot)
        del held[slot]
    if slot not in varying:
        accumulate(held, [slot], [cotangent])


def _over_examples(capacity: Tensor, examples: int) -> Tensor:
    """Sum over the examples axis; an axis that a reshape merged with others stays."""
    has_examples = capacity.ndim > 1 and capacity.shape[1] == examples
    return (capacity.sum(1) if has_examples else capacity).cpu()
