"""Room for the output Jacobian of some examples: factors where they are cheaper, rows side by side elsewhere.

Index convention: e examples, o outputs, t positions; a factored parameter's block of J has columns (left, right).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from capalloc._derivatives.affine import OuterProducts
from capalloc._derivatives.gram_factors import Part
from capalloc._derivatives.tape import TappedModel
from capalloc._model.problem import Problem


@dataclass(frozen=True)
class Form:
    """How a parameter's columns are kept: as factors, with their sizes, or as rows."""

    positions: int
    left: int
    right: int

    @property
    def columns(self) -> int:
        """Entries of the parameter."""
        return self.left * self.right


def possible_forms(tapped: TappedModel) -> dict[str, Form]:
    """Parameters whose one use is a sum of outer products, with the sizes of their factors."""
    uses = [name for s in tapped.sites for name in (s.weight, s.bias) if name is not None]
    forms = {}
    for s in tapped.sites:
        if s.weight is not None and uses.count(s.weight) == 1 and isinstance(s.weight_gradient, OuterProducts):
            left = s.weight_gradient.shape[0]
            right = math.prod(s.weight_gradient.shape[1:])
            forms[s.weight] = Form(math.prod(s.shape) // left, left, right)
    return forms


@dataclass(frozen=True)
class Columns:
    """J's columns of some examples: factors of the parameters in `forms`, the others side by side in `rows`."""

    rows: Tensor  # (e, o, columns)
    places: Mapping[str, slice]  # of the parameters among the rows' columns
    factored: Mapping[str, Part]

    def fill(self, start: int, outputs: slice, parts: Mapping[str, Part]) -> None:
        """Keep the parts of some outputs of the examples from `start` on."""
        for name, part in parts.items():
            examples = slice(start, start + len(part.left))
            if name in self.places:
                self.rows[examples, outputs, self.places[name]] = part.rows
                continue
            kept = self.factored[name]
            kept.left[examples, outputs] = part.left
            if kept.right is not None and part.right is not None:
                kept.right[examples] = part.right


def empty_columns(problem: Problem, forms: Mapping[str, Form], examples: int, outputs: int) -> Columns:
    """Room for the parts of some examples."""
    like, places, factored, start = problem.probe, {}, {}, 0
    for name, p in problem.params.items():
        form = forms.get(name)
        if form is None:
            places[name] = slice(start, start + p.numel())
            start += p.numel()
        else:
            left = like.new_empty(examples, outputs, form.positions, form.left)
            factored[name] = Part(left, like.new_empty(examples, form.positions, form.right))
    return Columns(like.new_empty(examples, outputs, start), places, factored)
