"""Exponents of the least numbers that a walk multiplies: whether a zero of float32 is one, or a product that was lost.

A product of positive numbers becomes 0 in float32 where its exponent falls below that of the least number. A walk
in which no product of two nonzero entries can fall so low has the zeros of float64. One in which some may, as at the
border of deep networks, is asked for its zeros (`lost_products`), and one with numbers that are lost, or not known,
is repeated in float64.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from capalloc._energy.program_steps import Step

#: Exponent from which on a product is kept whatever the order of its factors: float32 ends at -126 (denormal numbers,
#: which some kernels take for 0, not counted), and scales of powers of 2 may come before or after.
SAFE = -116


@dataclass
class Range:
    """Least exponents of the nonzero entries of a program's slots, and whether a product of them may be lost.

    Every map is a sum of products of one entry of a signal (times the scale that brings signals to one exponent)
    and of one of each weight, and of what it holds itself.
    """

    is_signal: Sequence[bool]  # by slot: the program's own list, which grows with it
    least: list[float] = field(default_factory=list)  # by slot
    may_lose: bool = False
    is_unknown: bool = False  # whether a number may be lost by itself, or is not known

    def of_leaf(self, value: Tensor) -> float:
        """Give the least exponent of a tensor in a precision that holds it, and note whether float32 may lose it."""
        return self._number(least_exponent(value))

    def of_squares(self, value: Tensor, mantissa: Tensor, shift: int) -> float:
        """Do the same for its squares, given as mantissa * 2**shift."""
        kept = mantissa.numel() and float(mantissa.amin()) >= 2.0**SAFE  # then no square was lost
        return self._number(least_exponent(mantissa) + shift if kept else 2 * least_exponent(value.abs()))

    def of_step(self, step: Step, result: Tensor) -> float:
        """Give the least exponent of a step's result before it is scaled, and note whether a product may be lost."""
        return self._through(step, [*self._signals(step), *self._weights(step)], result)

    def of_pulls(
        self, step: Step, least: dict[int, float], slots: Sequence[int], pulled: list[Tensor], leaves: Collection[int]
    ) -> None:
        """Bring the least exponents of adjoints from a step's result to its arguments, and note the same.

        At `leaves`, which go nowhere, a bound serves where their own entries lose nothing by it.
        """
        for slot, cotangent in zip(slots, pulled, strict=True):
            own = min(exponent(f) for a, f in zip(step.args, step.factors, strict=True) if a == slot)
            others = [] if self.is_signal[slot] else self._signals(step)
            others += self._weights(step, but=slot)
            enough = SAFE - self.least[slot] if slot in leaves else math.inf
            found = self._through(step, [least[step.out], exponent(step.scale), own, *others], cotangent, enough)
            least[slot] = min(least.get(slot, math.inf), found)

    def of_channels(self, energy: Tensor, *exponents: float) -> None:
        """Note whether the energy of a channel may be 0 because products of entries with these exponents were lost."""
        self.may_lose |= sum(exponents) < SAFE and not bool(energy.all())

    def _through(self, step: Step, exponents: Sequence[float], result: Tensor, enough: float = math.inf) -> float:
        held = 0 if step.moves else getattr(step.map, "least", None)
        if held is None:  # a map that does not tell what it multiplies by
            self.is_unknown, held = True, 0
        bound = self._product(*exponents, self._number(held))
        if step.moves or bound >= enough or getattr(step.map, "by_entry", False):
            return bound
        return least_exponent(result)

    def _signals(self, step: Step) -> list[float]:
        pairs = zip(step.args, step.factors, strict=True)
        found = [self.least[slot] + exponent(f) for slot, f in pairs if self.is_signal[slot] or step.moves]
        return [min(found)] if found else []

    def _weights(self, step: Step, but: int | None = None) -> list[float]:
        if step.moves:
            return []
        return [self.least[slot] for slot in step.args if not self.is_signal[slot] and slot != but]

    def _number(self, found: float) -> float:
        self.is_unknown |= found < SAFE
        return found

    def _product(self, *exponents: float) -> float:
        found = sum(exponents)
        self.may_lose |= found < SAFE
        return found


def least_of_gates(squared: Tensor | float) -> float | None:
    """Give the least exponent of squared gates; None where squares in float32 have zeros that may be lost squares."""
    if not isinstance(squared, Tensor):
        return exponent(squared or math.inf)
    if squared.dtype in {torch.bool, torch.float64} or bool((squared != 0).all()):
        return least_exponent(squared)
    return None


def least_exponent(values: Tensor) -> float:
    """Give the exponent of the entry nearest to 0 that is not 0; infinity where there is none."""
    if values.dtype == torch.bool or not values.numel():
        return 0
    least = float(values.amin())
    if least == 0.0:
        least = float(torch.threshold(values, 0.0, math.inf).amin())
    return exponent(least)


def exponent(value: float) -> float:
    """Give log2 of a positive number, rounded down; infinity for infinity."""
    return math.frexp(value)[1] - 1 if math.isfinite(value) else math.inf
