"""Exact solution of sparse homogeneous equations with small integer coefficients.

A form is a linear combination of unknowns, {unknown: coefficient}. Every equation that says something new removes
one unknown, written as a form of those that stay free. Relations between channels have up to four terms and most
follow from a few: forms stay short, where a dense or floating-point solution would need a tolerance for its rank.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from fractions import Fraction

Coefficient = int | Fraction
Form = dict[int, Coefficient]


class Elimination:
    """Equations form = 0 taken one after the other."""

    def __init__(self) -> None:
        self.work = 0  # terms handled, the measure of time spent
        self._removed: dict[int, Form] = {}

    def add(self, equation: Mapping[int, Coefficient]) -> bool:
        """Take one equation; whether it says anything new."""
        form = self._reduced(self._shortened(equation))
        if not form:
            return False
        units = [unknown for unknown, c in form.items() if c in (1, -1)]
        pivot = max(units or form)  # the latest unknown: later channels are made of earlier ones
        factor = form.pop(pivot)
        self._removed[pivot] = {u: -c * factor if units else -Fraction(c) / factor for u, c in form.items()}
        return True

    def forms(self) -> dict[int, Form]:
        """Every removed unknown, in order, in terms of free ones."""
        for unknown in reversed(list(self._removed)):  # those removed last hold free unknowns alone
            self._removed[unknown] = self._reduced(self._removed[unknown])
        return dict(sorted(self._removed.items()))

    def _shortened(self, equation: Mapping[int, Coefficient]) -> Form:
        """The equation, with the forms of its unknowns brought up to date for later use too."""
        for unknown in equation:
            if unknown in self._removed:
                self._removed[unknown] = self._reduced(self._removed[unknown])
        return dict(equation)

    def _reduced(self, form: Form) -> Form:
        while not self._removed.keys().isdisjoint(form):
            out: Form = {}
            for unknown, c in form.items():
                for inner, d in self._removed.get(unknown, {unknown: 1}).items():
                    self.work += 1
                    total = out.get(inner, 0) + c * d
                    if total:
                        out[inner] = total
                    else:
                        out.pop(inner, None)
            form = out
        return form


def eliminate(equations: Iterable[Mapping[int, Coefficient]], limit: int) -> dict[int, Form] | None:
    """Unknowns that the equations remove, in terms of the others; None if that takes more than `limit` terms."""
    solved = Elimination()
    for equation in equations:
        solved.add(equation)
        if solved.work > limit:
            return None
    return solved.forms()
