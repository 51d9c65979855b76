"""Gram matrices of the output Jacobian from its parts, lower triangles only.

J J' = sum over parameters of sum_ts (left_t left_s') o (right_t right_s'), by whichever of three ways costs least:
rows of J, their entrywise product (one position), or positions of pairs of examples. J' J = sum over examples of
(sum_o left left') (x) (right right'), blocks of parameters two by two.

Index convention: e, f examples, o, q outputs, t, s positions; rows of J are (e, o), flattened.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from capalloc._derivatives.gram_factors import Columns, Form
from capalloc._linalg.symmetric import MOST_ROWS, add_gram, add_product, blocks_of

#: Numbers in a block of products of pairs of examples.
PAIR_NUMBERS = 2**21
#: A factored product must be this much cheaper than rows: it runs in smaller pieces.
FACTORED_GAIN = 1.5


def cheaper_for_outputs(form: Form, examples: int, outputs: int) -> bool:
    """Tell if J J' takes fewer products from the factors than from rows, per pair of examples.

    Rows: o^2 left right, and t left right o / e to form them. One position: right + o^2 left. More of them:
    t^2 right for the inputs, t^2 o left to mix with sensitivities, t o^2 left to close.
    """
    t, left, right = form.positions, form.left, form.right
    rows = outputs**2 * left * right + 2 * t * left * right * outputs / examples
    if t == 1:
        return right + outputs**2 * (left + 1) < rows
    return FACTORED_GAIN * (t**2 * (right + outputs * left) + t * outputs**2 * left) < rows


def cheaper_for_params(form: Form, outputs: int) -> bool:
    """Tell if J' J takes fewer products with the outputs summed first: 1 + o / right^2 + 4 / right against o."""
    return form.positions == 1 and FACTORED_GAIN * (1 + outputs / form.right**2 + 4 / form.right) < outputs


def add_output_gram(out: Tensor, columns: Columns) -> None:
    """Lower triangle of out = J J', (e o, e o), from the columns of all examples."""
    add_gram(out, columns.rows.flatten(0, 1), fresh=True)
    for part in columns.factored.values():
        assert part.right is not None
        if part.left.shape[2] == 1:
            add_entrywise(out, part.left[:, :, 0], part.right[:, 0])
        else:
            add_pairs(out, part.left, part.right)


def add_entrywise(out: Tensor, left: Tensor, right: Tensor, rows: int = MOST_ROWS) -> None:
    """Lower triangle of out += (left left') o (right right'), for left (e, o, a), right (e, b), some rows at once."""
    outputs = left.shape[1]
    for start, stop in blocks_of(len(left), max(1, rows // outputs)):
        products = left[start:stop].flatten(0, 1) @ left[:stop].flatten(0, 1).T
        products = products.reshape(stop - start, outputs, stop, outputs)
        products *= (right[start:stop] @ right[:stop].T)[:, None, :, None]
        out[start * outputs : stop * outputs, : stop * outputs] += products.flatten(2).flatten(0, 1)


def add_pairs(out: Tensor, left: Tensor, right: Tensor, numbers: int = PAIR_NUMBERS) -> None:
    """Lower triangle of out += sum_ts (left_t left_s') o (right_t right_s'), for (e, o, t, a) and (e, t, b)."""
    examples, outputs, positions, width = left.shape
    size = max(1, int((numbers / (positions * max(positions, outputs * width))) ** 0.5))
    for start, stop in blocks_of(examples, size):
        for first, last in blocks_of(stop, size):
            inputs = torch.einsum("etb,fsb->efts", right[start:stop], right[first:last])
            mixed = torch.einsum("efts,fqsa->efqta", inputs, left[first:last])
            block = torch.einsum("eota,efqta->eofq", left[start:stop], mixed).flatten(2).flatten(0, 1)
            out[start * outputs : stop * outputs, first * outputs : last * outputs] += block


@dataclass(frozen=True)
class ColumnPanel:
    """Neighbouring columns of J: those of one factored parameter, or rows of several, (e, o, columns)."""

    start: int
    left: Tensor  # (e, o, left)
    right: Tensor | None = None  # (e, right)

    @property
    def width(self) -> int:
        """Number of columns."""
        return self.left.shape[2] * (1 if self.right is None else self.right.shape[1])

    @property
    def columns(self) -> slice:
        """Their place in J."""
        return slice(self.start, self.start + self.width)


def panels(columns: Columns, names: Iterable[str]) -> list[ColumnPanel]:
    """Columns in the order of the parameters, neighbouring rows together."""
    found: list[ColumnPanel] = []
    start = 0
    for are_rows, group in itertools.groupby(names, columns.places.__contains__):
        if are_rows:
            places = [columns.places[name] for name in group]
            found.append(ColumnPanel(start, columns.rows[:, :, places[0].start : places[-1].stop]))
            start += found[-1].width
            continue
        for part in (columns.factored[name] for name in group):
            assert part.right is not None
            found.append(ColumnPanel(start, part.left[:, :, 0], part.right[:, 0]))
            start += found[-1].width
    return found


def add_param_gram(out: Tensor, ordered: list[ColumnPanel], fresh: bool) -> None:
    """Lower triangle of out += J' J, (p, p), from panels of some examples; of out = J' J where it is `fresh`."""
    for index, below in enumerate(ordered):
        if below.right is None:
            X = below.left.flatten(0, 1)
            add_gram(out[below.columns, below.columns], X.T, fresh)
        else:
            add_factored(out[below.columns, below.columns], below, below, fresh)
        for beside in ordered[:index]:
            block = out[below.columns, beside.columns]
            if below.right is not None:
                add_factored(block, below, beside, fresh)
            elif beside.right is not None:
                add_factored(block.T, beside, below, fresh)
            else:
                add_product(block, below.left.flatten(0, 1).T, beside.left.flatten(0, 1), fresh)


def add_factored(out: Tensor, a: ColumnPanel, b: ColumnPanel, fresh: bool) -> None:
    """Add the products of a's columns, which are factored, and b's to `out`; below the diagonal if a is b.

    The outputs are summed first: mixed_ik = sum_o left_i left_k, one number an example. Where it is zero for all
    examples, as between the outputs of a last layer, there is nothing to add.
    """
    assert a.right is not None
    mixed = torch.einsum("eoi,eok->iek", a.left, b.left)
    width = a.right.shape[1]
    inner = 1 if b.right is None else b.right.shape[1]
    for i, weights in enumerate(mixed):
        stop = i + 1 if a is b else weights.shape[1]
        rows = out[i * width : (i + 1) * width]
        for first, last, zero in runs((weights[:, :stop] == 0).all(0).tolist()):
            block = rows[:, first * inner : last * inner]
            if not zero:
                columns = weights[:, first:last]
                if b.right is not None:
                    columns = (columns[:, :, None] * b.right[:, None]).flatten(1)
                add_product(block, a.right.T, columns, fresh)
            elif fresh:
                block.zero_()


def runs(flags: list[bool]) -> Iterator[tuple[int, int, bool]]:
    """Stretches of equal flags: (start, stop, flag)."""
    start = 0
    for flag, group in itertools.groupby(flags):
        length = len(list(group))
        yield start, start + length, flag
        start += length
