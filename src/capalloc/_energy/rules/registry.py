"""One registered rule per operator: how path energy goes through it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from capalloc._energy.gates import GateSource
from capalloc._energy.program import Energy, Program
from capalloc._graph.calls import invoke

Rule = Callable[["Call"], Any]
RULES: dict[Any, Rule] = {}
#: Operators that decouple what goes through them: activations and maxima, where linear segments end.
DECOUPLING: set[Any] = set()


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

    def energy(self, name: str) -> Energy | None:
        """The path energy of an argument, None for a constant."""
        return _energy(self.args.get(name))

    def signal(self, name: str) -> Energy:
        """The path energy of an argument, started at the constant input if no path from the inputs is in it."""
        return self.as_signal(self.args[name])

    def signals(self, name: str) -> list[Energy]:
        """The same for an argument that is a list of tensors."""
        return [self.as_signal(item) for item in self.args[name]]

    def weight(self, name: str) -> Energy | None:
        """The squares of a parametric or constant argument; None if the argument is None."""
        argument = self.args.get(name)
        if argument is None or value_of(argument) is None:
            return None
        energy = _energy(argument)
        if energy is None:
            return self.program.fixed_weight(_as_tensor(value_of(argument), self.program.dtype))
        if energy.is_signal:
            raise self.unsupported(f"its argument {name!r} depends on the inputs")
        return energy

    def as_signal(self, argument: Any) -> Energy:
        """A traced argument as paths that start at the inputs or at the constant."""
        energy = _energy(argument)
        if energy is None:
            return self.program.fixed(_as_tensor(value_of(argument), self.program.dtype))
        return energy if energy.is_signal else self.program.begin(energy)

    def replaced(self, *names: str, **fixed: Any) -> Callable[..., Any]:
        """The operator as a function of the named arguments, the others as they are or as in `fixed`."""

        def run(*values: Any) -> Any:
            arguments = (
                {name: value_of(a) for name, a in self.args.items()} | fixed | dict(zip(names, values, strict=True))
            )
            return invoke(self.op, arguments)

        return run

    def unsupported(self, why: str) -> UnsupportedOperatorError:
        """The error to raise where a rule cannot serve this call."""
        return UnsupportedOperatorError(
            f"no path-energy rule serves {self.op} in module {self.where or '(the model itself)'!r}: {why}. "
            "Register one with @capalloc.rule(operator), see docs/how-to/new-operator.md, or use capalloc.measure: it "
            "needs none."
        )


def rule(*ops: Any, decouples: bool = False) -> Callable[[Rule], Rule]:
    """Register the decorated function as the path-energy rule of ATen operators.

    The rule receives a `Call` and returns the `Energy` of the result, built with the methods of
    `call.program`: `move`, `gate`, `add`, `weigh` (docs/theory.md, section 4).

    Args:
        ops: operators such as `torch.ops.aten.relu.default`.
        decouples: whether they are gates that vary with the inputs, such as activations and maxima.

    Raises:
        ValueError: an operator has a rule already.

    """

    def register(function: Rule) -> Rule:
        for op in ops:
            if op in RULES:
                raise ValueError(f"{op} has a rule already: {RULES[op].__name__}; remove it from RULES first")
            RULES[op] = function
            if decouples:
                DECOUPLING.add(op)
        return function

    return register


def value_of(argument: Any) -> Any:
    """An argument without the energies in it."""
    if isinstance(argument, Traced):
        return argument.value
    if isinstance(argument, (list, tuple)):
        return type(argument)(value_of(item) for item in argument)
    return argument


def _energy(argument: Any) -> Energy | None:
    return argument.energy if isinstance(argument, Traced) else None


def _as_tensor(value: Any, dtype: torch.dtype) -> Tensor:
    return value if isinstance(value, Tensor) else torch.tensor(value, dtype=dtype)
