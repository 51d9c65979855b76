"""Gram matrices of the output Jacobian, the work cut to the memory there is.

Index convention: J has rows (examples, outputs) and columns parameters.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from capalloc._derivatives.gram_factors import (
    Columns,
    Form,
    PlainParts,
    TappedParts,
    empty_columns,
    possible_forms,
)
from capalloc._derivatives.gram_sums import (
    add_output_gram,
    add_param_gram,
    cheaper_for_outputs,
    cheaper_for_params,
    panels,
)
from capalloc._model.problem import Problem, seeded
from capalloc._runtime.memory import Budget

#: Bytes of working memory that a batch aims at: fewer take a tenth to a fifth more time, as every batch and output
#: has a backward pass of its own.
GRAM_BATCH_BYTES = 2**26
#: Parts of J that are gathered before their products are added to J' J: this many bytes, or ...
GATHERED_BYTES = 2**25
#: ... this share of the result, if that is more: every addition passes over the whole result.
GATHERED_SHARE = 1 / 8
#: What to do where memory is short.
FEWER = "fewer parameters with params= or outputs with outputs="
#: Tensors as large as all activations that one run and its backward passes hold.
ACTIVATION_COPIES = 3


@dataclass(frozen=True)
class GramWork:
    """The source of J's parts, the examples, and the dtype in which products are added up."""

    problem: Problem
    source: TappedParts | PlainParts
    x: Tensor
    num_outputs: int
    dtype: torch.dtype
    budget: Budget
    gathered_bytes: float = GATHERED_BYTES
    gathered_share: float = GATHERED_SHARE

    def output_gram(self, batch_size: int | str) -> Tensor:
        """J J', lower triangle."""
        return self.gram_of(self.output_columns(batch_size))

    def output_columns(self, batch_size: int | str, matrices: int = 1) -> Columns:
        """J's columns of all examples, in the forms that J J' takes fewest products from, with room for `matrices`."""
        forms = {
            name: form
            for name, form in self.forms().items()
            if cheaper_for_outputs(form, len(self.x), self.num_outputs)
        }
        size = len(self.x) * self.num_outputs
        batch_size = self.plan(size, forms, len(self.x), batch_size, matrices)
        (columns,) = self.gathered(forms, batch_size, len(self.x))
        return columns

    def gram_of(self, columns: Columns) -> Tensor:
        """J J', lower triangle, from the columns of all examples."""
        size = len(self.x) * self.num_outputs
        gram = torch.empty(size, size, dtype=self.dtype, device=self.x.device)
        add_output_gram(gram, columns)
        return gram

    def shares(self, columns: Columns, weights: Tensor) -> Tensor:
        """trace(K_t weights) of every parameter tensor t, for J J' = sum_t K_t and symmetric weights."""
        found = []
        for name in self.problem.params:
            if name in columns.places:
                rows = columns.rows[:, :, columns.places[name]].flatten(0, 1)
                found.append((rows * (weights @ rows)).sum())
            else:
                alone = Columns(columns.rows[:, :, :0], {}, {name: columns.factored[name]})
                lower = self.gram_of(alone) * weights
                found.append(2 * lower.tril(-1).sum() + lower.diagonal().sum())
        return torch.stack(found)

    def param_gram(self, batch_size: int | str) -> Tensor:
        """J' J, lower triangle."""
        forms, examples, batch_size = self.param_cut(batch_size)
        size = self.problem.num_params
        gram = torch.empty(size, size, dtype=self.dtype, device=self.x.device)
        for index, columns in enumerate(self.gathered(forms, batch_size, examples)):
            add_param_gram(gram, panels(columns, self.problem.params), fresh=index == 0)
        return gram

    def param_diagonal(self, batch_size: int | str) -> Tensor:
        """The diagonal of J' J, (params,): no more of J at once than the rows of a few outputs."""
        factored = {name: form for name, form in self.forms().items() if form.positions == 1}
        each = self.x.itemsize * (self.needed() + self.kept(factored))
        stored = self.dtype.itemsize * self.problem.num_params
        what = "the squares of one example's derivatives"
        size = self.fitting(stored, each, len(self.x), batch_size, what, f"take {FEWER}")
        found = {
            name: torch.zeros(p.numel(), dtype=self.dtype, device=p.device) for name, p in self.problem.params.items()
        }
        for index, x in enumerate(self.x.split(size)):
            with seeded(index * size, x.device):
                for _, parts in self.source(x, factored):
                    for name, part in parts.items():
                        found[name] += part.sum_of_squares(self.dtype)
        return torch.cat([*found.values()])

    def param_cut(self, batch_size: int | str) -> tuple[dict[str, Form], int, int]:
        """Forms that J' J takes fewest products from, examples kept at once, in whole batches, and those of a batch."""
        forms = {name: form for name, form in self.forms().items() if cheaper_for_params(form, self.num_outputs)}
        size = self.problem.num_params
        aim = max(self.gathered_bytes, self.gathered_share * size**2 * self.dtype.itemsize)
        examples = max(1, min(len(self.x), int(aim / (self.x.itemsize * self.kept(forms)))))
        batch_size = self.plan(size, forms, examples, batch_size)
        return forms, examples // batch_size * batch_size, batch_size

    def rows(self, batch_size: int | str) -> Iterator[Tensor]:
        """J itself, the rows of a batch at a time, (e, o, params); random draws are those of `param_gram`."""
        batch_size = self.param_cut(batch_size)[-1]
        for columns in self.gathered({}, batch_size, batch_size):
            yield columns.rows

    def forms(self) -> dict[str, Form]:
        """Parameters that can be kept as factors."""
        return possible_forms(self.source.tapped) if isinstance(self.source, TappedParts) else {}

    def kept(self, forms: Mapping[str, Form]) -> int:
        """Numbers kept of one example."""
        factors = sum(f.positions * (self.num_outputs * f.left + f.right) for f in forms.values())
        return factors + self.num_outputs * (self.problem.num_params - sum(f.columns for f in forms.values()))

    def needed(self) -> int:
        """Numbers that one example needs on its way to J's columns."""
        if isinstance(self.source, PlainParts):
            return 2 * self.num_outputs * self.problem.num_params
        tapped = self.source.tapped
        leaves = sum(math.prod(s.shape) for s in tapped.calls) + sum(t.numel() for t in tapped.values())
        return ACTIVATION_COPIES * tapped.elements + 2 * leaves

    def plan(
        self, size: int, forms: Mapping[str, Form], examples: int, batch_size: int | str, matrices: int = 1
    ) -> int:
        """Examples at a time, or `MemoryError`: for a result of `size` and parts of `examples` kept at once."""
        stored = matrices * self.dtype.itemsize * size**2 + self.x.itemsize * examples * self.kept(forms)
        each = self.x.itemsize * self.needed()
        what = f"a Gram matrix of {size} rows with one example's derivatives"
        advice = f"take fewer examples or the other side, or {FEWER}"
        return self.fitting(stored, each, examples, batch_size, what, advice)

    def fitting(self, stored: float, each: float, examples: int, batch_size: int | str, what: str, advice: str) -> int:
        """Examples at a time, of `each` bytes beside those `stored`, or `MemoryError` where not one fits."""
        self.budget.set_aside(stored + each, what, advice)
        return Budget(self.budget.num_bytes - stored).batch_size(each, examples, batch_size, GRAM_BATCH_BYTES)

    def gathered(self, forms: Mapping[str, Form], batch_size: int, examples: int) -> Iterator[Columns]:
        """J's columns of all examples, `examples` at a time, from runs over `batch_size` of them."""
        for index, chunk in enumerate(self.x.split(examples)):
            columns = empty_columns(self.problem, forms, len(chunk), self.num_outputs)
            for number, x in enumerate(chunk.split(batch_size)):
                start = number * batch_size
                with seeded(index * examples + start, x.device):
                    for outputs, parts in self.source(x, forms):
                        columns.fill(start, outputs, parts)
            yield columns
