"""Registration of rules: how path energy goes through an operator, and what makes it a gate."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, overload

import torch
from torch import Tensor

from capalloc._energy.gate_sources import GateSource, squared_gates
from capalloc._energy.program import Energy, Program
from capalloc._operators.calls import Operation, invoke
from capalloc._operators.records import KINDS_BY_NAME, OPERATOR_KINDS, GateRank, extend, record

#: Kinds that a rule of one's own may give: the others have arguments that methods know by name.
OWN_KINDS = tuple(kind for kind in OPERATOR_KINDS if kind not in KINDS_BY_NAME)
RANKS = {rank.name.lower(): rank for rank in GateRank}
EnergyRule = Callable[["Call"], Any]
GateReader = Callable[[Operation], Tensor]


class UnsupportedOperatorError(NotImplementedError):
    """The captured graph holds an operator without a rule."""


@dataclass(frozen=True)
class Traced:
    """A value of the graph and its path energy: None where no path or parameter is in it."""

    value: Any
    energy: Any = None  # Energy, or a tuple of Energy for an operator with several results


@dataclass(frozen=True)
class Call:
    """An operator call as a rule sees it: arguments by their schema name, values, energies and the result."""

    op: Callable[..., Any]
    args: dict[str, Any]  # schema name -> argument; tensors are Traced
    program: Program
    gates: GateSource
    where: str
    result: Any  # the value the operator returned

    def __getitem__(self, name: str) -> Any:
        return value_of(self.args[name])

    @property
    def operation(self) -> Operation:
        """The call without energies."""
        return Operation(self.op, {name: value_of(argument) for name, argument in self.args.items()}, self.result)

    def energy(self, name: str) -> Energy | None:
        """Give the path energy of an argument, None for a constant."""
        return _energy(self.args.get(name))

    def signal(self, name: str) -> Energy:
        """Give the path energy of an argument, started at the constant input if no path from the inputs is in it."""
        return self.as_signal(self.args[name])

    def signals(self, name: str) -> list[Energy]:
        """Do the same for an argument that is a list of tensors."""
        return [self.as_signal(item) for item in self.args[name]]

    def weight(self, name: str) -> Energy | None:
        """Give the squares of a parametric or constant argument; None if the argument is None."""
        argument = self.args.get(name)
        if argument is None or value_of(argument) is None:
            return None
        energy = _energy(argument)
        if energy is None:
            return self.program.squares(_as_tensor(value_of(argument), self.program.dtype))
        if energy.is_signal:
            raise self.unsupported(f"its argument {name!r} depends on the inputs")
        return energy

    def as_signal(self, argument: Any) -> Energy:
        """Give a traced argument as paths that start at the inputs or at the constant."""
        energy = _energy(argument)
        if energy is None:
            return self.program.fixed(_as_tensor(value_of(argument), self.program.dtype))
        return energy if energy.is_signal else self.program.begin(energy)

    def gated(self, signal: Energy, slope: Callable[[Tensor], Tensor], value: Tensor) -> Energy:
        """Multiply by $a(z)^2$: on the examples, on a unit Gaussian, or 1."""
        if self.gates == "unit":
            return signal
        return self.program.gate(signal, squared_gates(slope, value, self.gates))

    def replaced(self, *names: str, **fixed: Any) -> Callable[..., Any]:
        """Give the operator as a function of the named arguments, the others as they are or as in `fixed`."""

        def run(*values: Any) -> Any:
            return invoke(self.op, {**self.operation.args, **fixed, **dict(zip(names, values, strict=True))})

        return run

    def unsupported(self, why: str) -> UnsupportedOperatorError:
        """Make the error to raise where a rule cannot serve this call."""
        return UnsupportedOperatorError(
            f"no path-energy rule serves {self.op} in module {self.where or '(the model itself)'!r}: {why}. "
            "Register one with capalloc.rule(operator, slope=...) if it acts entry by entry, else with "
            "@capalloc.rule(operator), see docs/how-to/new-operator.md; or use capalloc.measure: it needs none."
        )


@overload
def rule(
    *ops: Any, slope: Callable[..., Tensor] | Literal["autograd"], rank: str | None = None, override: bool = False
) -> None: ...
@overload
def rule(
    *ops: Any,
    kind: str | None = None,
    gates: GateReader | None = None,
    rank: str | None = None,
    override: bool = False,
) -> Callable[[EnergyRule], EnergyRule]: ...
def rule(
    *ops: Any,
    slope: Callable[..., Tensor] | Literal["autograd"] | None = None,
    kind: str | None = None,
    gates: GateReader | None = None,
    rank: str | None = None,
    override: bool = False,
) -> Any:
    """Register what operators do to paths, for every method: an activation by its slope, any other by a function.

    `capalloc.rule(op, slope=...)` is all that an operator needs that acts on one tensor entry by entry: path energy is
    multiplied by $a(x)^2$, and `decoupling`, `shattering` and products with it read the same gate a(x) (docs/theory.md,
    sections 3 and 4). Otherwise `@capalloc.rule(op)` decorates a function that receives a `Call` and returns the
    `Energy` of the result, built with the methods of `call.program`: `move`, `gate`, `add`, `weigh`.

    Args:
        ops: operators such as `torch.ops.aten.relu.default`, or one made with `torch.library`.
        slope: derivative of an activation, a function of the operator's arguments that returns a tensor like the
            first; or "autograd".
        kind: what the operator is, which says how paths are followed through it: one of "pooling", "softmax" (gates
            that vary with the inputs, where linear segments end), "attention", "normalisation", "selection", "sum",
            "average", "copy", "movement", "piece", "dense", "convolution", "statistic", "other". By default what is
            known of it.
        gates: reads the gates that a call applied, from its values by name and its `result`: one entry for each gate,
            the examples axis where the result has it. `decoupling` and `shattering` list them.
        rank: how much the result looks like a gate where it multiplies another tensor: "none", "activation" (given a
            slope, the default), "signed" (in [-1, 1]), "bounded" (in [0, 1]), "statistic" (a norm).
        override: put the rule in the place of one that is there already.

    Returns:
        A decorator, or None for an activation.

    Raises:
        ValueError: an operator has a rule already, or a kind or rank is not known.
        TypeError: a slope together with a kind or a reader of gates, which it implies.

    """
    if slope is not None and (kind is not None or gates is not None):
        raise TypeError("slope= makes an activation, whose kind and gates are known: leave out kind= and gates=")
    if kind is not None and kind not in OWN_KINDS:
        raise ValueError(f"kind must be one of {OWN_KINDS}, got {kind!r}")
    if rank is not None and rank not in RANKS:
        raise ValueError(f"rank must be one of {tuple(RANKS)}, got {rank!r}")
    facts: dict[str, Any] = {"kind": kind, "gates": gates, "rank": RANKS.get(rank or "")}
    if slope is None:
        return partial(_register, ops, override, facts)
    for op in ops:
        as_known = record(op).rank if rank is None else RANKS[rank]
        facts = {"kind": "activation", "gates": slopes, "rank": GateRank.ACTIVATION if as_known is None else as_known}
        _register([op], override, facts, activation)
        extend(op, slope=None if slope == "autograd" else slope)
    return None


def _register(ops: Any, override: bool, facts: Mapping[str, Any], function: EnergyRule) -> EnergyRule:
    for op in ops:
        known = record(op).energy
        if known is not None and not override:
            raise ValueError(f"{op} has a rule already: {known.__name__}; pass override=True to put yours in its place")
        extend(op, energy=function, **{name: fact for name, fact in facts.items() if fact is not None})
    return function


def activation(call: Call) -> Energy:
    """Multiply by phi'(z)^2."""
    operation = call.operation
    return call.gated(call.signal(next(iter(call.args))), operation.slope, operation.signal)


def slopes(operation: Operation) -> Tensor:
    """Read the gates a = phi'(z) of an activation."""
    return operation.slope(operation.signal).to(operation.signal.dtype)


def read_gates(operation: Operation) -> Tensor:
    """Read the gates that an operation applied."""
    reader = record(operation.op).gates
    assert reader is not None
    return reader(operation)


def spread_over(call: Call, energy: Energy, value: Tensor) -> Energy:
    """Give an energy the shape of a value that it broadcasts to."""
    shape = tuple(value.shape)
    return energy if energy.shape == shape else call.program.move(lambda e: e.expand(shape), energy)


def value_of(argument: Any) -> Any:
    """Take the energies out of an argument."""
    if isinstance(argument, Traced):
        return argument.value
    if isinstance(argument, (list, tuple)):
        return type(argument)(value_of(item) for item in argument)
    return argument


def _energy(argument: Any) -> Energy | None:
    return argument.energy if isinstance(argument, Traced) else None


def _as_tensor(value: Any, dtype: torch.dtype) -> Tensor:
    return value if isinstance(value, Tensor) else torch.tensor(value, dtype=dtype)
