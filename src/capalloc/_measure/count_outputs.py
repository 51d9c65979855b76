"""Effective number of parameters from the output Jacobian: what the outputs of N examples determine.

Index convention: J has rows (examples, outputs) and columns parameters; K = J J', S = J' J = N G.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
import xarray as xr
from torch import Tensor

from capalloc._derivatives import exact_derivatives
from capalloc._derivatives.gram_work import GramWork
from capalloc._derivatives.output_grams import GramSide, check_gram, prepare_gram
from capalloc._linalg.shrinkage import Shrunk, shrink
from capalloc._linalg.symmetric import mirror
from capalloc._measure.dense import CLEAR_GAP
from capalloc._model.checks import check_batch_size
from capalloc._model.examples_digest import digest_of_examples
from capalloc._model.made_from import recorded
from capalloc._model.problem import ModelLike, OutputSelection
from capalloc._model.selected_params import ParamSelection
from capalloc._runtime.arguments import checked
from capalloc.results.effective_parameters import EffectiveParameters


@checked
@recorded
def effective_parameters(
    model: ModelLike,
    inputs: Tensor | Iterable[Any],
    outputs: OutputSelection = None,
    ridge: float = 0.0,
    *,
    params: ParamSelection = None,
    batch_size: int | Literal["auto"] = "auto",
    max_bytes: float | None = None,
) -> EffectiveParameters:
    """Number of parameters that the outputs of N examples determine: $gamma = sum s / (s + ridge)$, s of $G = J'J / N$.

    $J = d f_o(x_n) / d theta$ has a row for each example and output, so that $gamma <= N m$: the constraints of the
    *outputs*, MacKay's effective number of parameters (docs/theory.md, section 2). `measure` counts constraints of the
    *function* instead: each example stands there for all inputs with its gates, and brings n + 1 rows an output.

    G is a mean over examples and a sum over outputs, as in `measure`. The ridge is thus the weight decay a of the loss
    $mean_n |y_n - f(x_n)|^2 / 2 + a |theta|^2 / 2$, and with outputs of noise variance $s^2$ and parameters of prior
    variance $t^2$ it is $s^2 / (N t^2)$: `capalloc.solvers.ridge_from_noise(s2, N, t2)`.

    All is exact and in float64, from the smaller of J J' and J' J; with J J' no matrix of parameters is held.
    Directions whose singular value is below about 1e-7 of the largest count as zero.

    Args:
        model: any differentiable `torch.nn.Module`, an exported program, or the path of one saved as .pt2; examples
            must not interact.
        inputs: a tensor with a leading examples axis, or an iterable of such batches; labels in (x, y) batches are
            ignored.
        outputs: which outputs, as in `measure`.
        ridge: non-negative, in units of G; 0 counts the rank.
        params: names of the parameters that count, patterns such as "head.*", or a predicate on names; by default those
            that require gradients (all where none does), "all" for all; the rest are held fixed.
        batch_size: examples run at a time; "auto" chooses by a memory forecast.
        max_bytes: memory that the work may fill; by default 70 % of what is free on the model's device.

    Returns:
        EffectiveParameters: the total, by parameter tensor, trace of $(G + ridge)^-1 G$ on each, and by example, the
        leverage $h_n$, with `leave_one_out` residuals. `notes` say so where the rank is unclear.

    Raises:
        ValueError: a negative ridge, bad settings, examples that interact, random draws that do not repeat, or a J that
            is not finite.
        TypeError: inputs or outputs that cannot be used.
        MemoryError: the Gram matrix or one example would not fit.

    Reference: D. MacKay, Bayesian interpolation, Neural Computation 4 (1992) 415-447.

    """
    if isinstance(ridge, (bool, str)) or not 0 <= ridge < math.inf:
        raise ValueError(f"ridge must be a finite number >= 0, got {ridge!r}")
    check_batch_size(batch_size)
    started = time.perf_counter()
    with exact_derivatives():
        work = prepare_gram(model, inputs, outputs, params, torch.float64, torch.float64, max_bytes)
        wide = len(work.x) * work.num_outputs <= work.problem.num_params
        found = count_from(work, "outputs" if wide else "params", ridge, batch_size)
    return _result(work, found, ridge, time.perf_counter() - started)


@dataclass(frozen=True)
class Determined:
    """Parameters determined, by tensor, the blocks of the hat matrix, and the eigenvalues it came from."""

    by_parameter: Tensor  # (tensors,)
    hat: Tensor  # (examples, outputs, outputs)
    shrunk: Shrunk


def count_from(work: GramWork, side: GramSide, ridge: float, batch_size: int | str) -> Determined:
    """Return the counts from J J' or from J' J; they are the same."""
    penalty, size = len(work.x) * ridge, max(len(work.x) * work.num_outputs, work.problem.num_params)
    if side == "outputs":
        columns = work.output_columns(batch_size, matrices=4)  # K, its eigenvectors, M and one tensor's share of K
        gram = mirror(work.gram_of(columns))
        check_gram(gram.diagonal())
        shrunk = shrink(gram, penalty, size)
        hat = (gram @ shrunk.inverse).unflatten(1, (len(work.x), -1)).unflatten(0, (len(work.x), -1))
        return Determined(work.shares(columns, shrunk.inverse), hat.diagonal(dim1=0, dim2=2).movedim(-1, 0), shrunk)
    gram = mirror(work.param_gram(batch_size))
    check_gram(gram.diagonal())
    shrunk = shrink(gram, penalty, size)
    used = (shrunk.inverse * gram).sum(1)
    tensors = torch.stack([part.sum() for part in used.split([p.numel() for p in work.problem.params.values()])])
    blocks = [rows @ shrunk.inverse @ rows.mT for rows in work.rows(batch_size)]
    return Determined(tensors, torch.cat(blocks), shrunk)


def _result(work: GramWork, found: Determined, ridge: float, seconds: float) -> EffectiveParameters:
    values, num_examples = found.shrunk.values, len(work.x)
    hat = ((found.hat + found.hat.mT) / 2).cpu()
    attrs = {
        "num_params": work.problem.num_params,
        "num_examples": num_examples,
        "num_outputs": work.num_outputs,
        "ridge": float(ridge),
        "rank": found.shrunk.rank,
        "data_digest": digest_of_examples(work.x),
        "seconds": seconds,
        "notes": [*work.problem.notes, *(rank_notes(found.shrunk) if ridge == 0 else [])],
    }
    data = xr.Dataset(
        {
            "by_parameter": ("parameter", found.by_parameter.clamp(min=0).cpu().numpy()),
            "leverage": (("example", "output"), hat.diagonal(dim1=1, dim2=2).clamp(0, 1).numpy()),
            "hat": (("example", "output", "other"), hat.numpy()),
            "eigenvalue": ("node", (values / num_examples).cpu().numpy()),
        },
        {"parameter": list(work.problem.params)},
        attrs,
    )
    return EffectiveParameters(data)


def rank_notes(shrunk: Shrunk) -> list[str]:
    """Say so where the eigenvalues on the two sides of the rank are close."""
    if not shrunk.rank or shrunk.dropped * CLEAR_GAP**2 <= float(shrunk.values[-1]):
        return []
    first, last, dropped = float(shrunk.values[0]), float(shrunk.values[-1]), shrunk.dropped
    return [
        f"the numerical rank is unclear: eigenvalues {last:.2g} (counted) and {dropped:.2g} (not), "
        f"largest {first:.2g}; a small ridge makes it smooth"
    ]
