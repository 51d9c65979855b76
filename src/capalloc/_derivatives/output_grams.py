"""Gram matrices of the output Jacobian: the empirical neural tangent kernel and the Gauss-Newton matrix.

Index convention: J has rows (examples, outputs) and columns parameters.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

import torch
from torch import Tensor

from capalloc._derivatives.autograd import exact_derivatives
from capalloc._derivatives.gram_work import GramWork
from capalloc._derivatives.verify import choose_parts
from capalloc._linalg.symmetric import mirror
from capalloc._model.checks import check_batch_size, check_examples
from capalloc._model.problem import ModelLike, OutputSelection, prepare
from capalloc._model.selected_params import ParamSelection
from capalloc._runtime.arguments import checked
from capalloc._runtime.memory import budget_of

GramSide = Literal["outputs", "params", "diagonal"]
#: Gram matrices are computed in these.
DTYPES = (torch.float32, torch.float64)


@checked
def output_gram(
    model: ModelLike,
    inputs: Tensor | Iterable[Any],
    outputs: OutputSelection = None,
    *,
    params: ParamSelection = None,
    side: GramSide = "outputs",
    batch_size: int | str = "auto",
    dtype: torch.dtype | None = None,
    accumulate: torch.dtype | None = None,
    max_bytes: float | None = None,
) -> Tensor:
    """Gram matrix of the output Jacobian $J = d f_o(x_n) / d theta$, exactly, without J where its factors are smaller.

    `side="outputs"`: J J', the empirical neural tangent kernel; `side="params"`: J' J, the unnormalised Fisher or
    Gauss-Newton matrix of the squared loss, a sum over examples and outputs; `side="diagonal"`: its diagonal alone,
    whose sum is the trace of both. At a call that is affine in $theta$, $g_o = delta_o (x) h$ with the sensitivity
    $delta_o$ of output o and the input h (docs/theory.md, section 2), so a dense
    layer adds (delta delta') o (h h') to J J'. Parameters in calls without a rule, and models that `torch.func`
    cannot enter, are differentiated by plain autograd; uses of a shared parameter add.

    The model is copied, in evaluation mode, and each example is run alone; a model that draws random numbers draws
    the same ones in every call. Rounding is that of products in `dtype`: relative to the largest entry about 1e-6 in
    float32 and 1e-15 in float64.

    Args:
        model: any differentiable `torch.nn.Module`, an exported program, or the path of one saved as .pt2; examples
            must not interact.
        inputs: a tensor with a leading examples axis, or an iterable of such batches; labels in (x, y) batches are
            ignored.
        outputs: which outputs, as in `measure`.
        params: names of the parameters that count, patterns such as "head.*", or a predicate on names; by default those
            that require gradients (all where none does), "all" for all.
        side: "outputs" for J J', "params" for J' J, "diagonal" for the diagonal of J' J.
        batch_size: examples run at a time; "auto" chooses by a memory forecast.
        dtype: of the derivatives and their products, float32 or float64; the model's own by default.
        accumulate: of the sums and of the result; `dtype` by default. float64 over a float32 `dtype` adds up products
            of blocks exactly enough that only the rounding of J itself remains.
        max_bytes: memory that the work may fill; by default 70 % of what is free on the model's device.

    Returns:
        J J' as (examples, outputs, examples, outputs), outputs flattened, or J' J as (params, params), or its diagonal
        as (params,), parameters in the order of `model.named_parameters()`; on the model's device.

    Raises:
        ValueError: bad settings, examples that interact, random draws that do not repeat, or a J that is not finite.
        TypeError: inputs or outputs that cannot be used.
        MemoryError: the result or one example would not fit.

    Reference: A. Jacot, F. Gabriel, C. Hongler, Neural tangent kernel, NeurIPS 2018.

    """
    _check_settings(side, batch_size, dtype, accumulate)
    with exact_derivatives():
        work = prepare_gram(model, inputs, outputs, params, dtype, accumulate, max_bytes)
        if side == "diagonal":
            diagonal = work.param_diagonal(batch_size)
            check_gram(diagonal)
            return diagonal
        gram = work.output_gram(batch_size) if side == "outputs" else work.param_gram(batch_size)
    check_gram(gram.diagonal())
    return mirror(gram).reshape((len(work.x), work.num_outputs) * 2) if side == "outputs" else mirror(gram)


def prepare_gram(
    model: ModelLike,
    inputs: Tensor | Iterable[Any],
    outputs: OutputSelection,
    params: ParamSelection,
    dtype: torch.dtype | None,
    accumulate: torch.dtype | None,
    max_bytes: float | None,
) -> GramWork:
    """Model and examples, checked together, and a way to the model's parts that agrees with plain autograd."""
    problem = prepare(model, inputs, outputs, params, dtype, by_input=True)
    if problem.dtype not in DTYPES:
        raise ValueError(f"dtype must be torch.float32 or torch.float64, and the model is {problem.dtype}; pass it")
    x = torch.cat(list(problem.batches(1024)))
    num_outputs, draws = check_examples(problem, x[:2])
    source = choose_parts(problem, x[: 1 if draws else 2])
    return GramWork(problem, source, x, num_outputs, accumulate or problem.dtype, budget_of(x.device, max_bytes))


def check_gram(diagonal: Tensor) -> None:
    """Refuse the diagonal of the Gram matrix of a J that is not finite: a sum of its squares is not."""
    if not torch.isfinite(diagonal).all():
        raise ValueError(
            "the derivative of outputs with respect to parameters holds NaN or inf; "
            "look for square roots, logarithms or divisions at zero in the model"
        )


def _check_settings(
    side: str, batch_size: int | str, dtype: torch.dtype | None, accumulate: torch.dtype | None
) -> None:
    if side not in ("outputs", "params", "diagonal"):
        raise ValueError(
            f'side must be "outputs" for J J\', "params" for J\' J or "diagonal" for the latter\'s, got {side!r}'
        )
    check_batch_size(batch_size)
    for name, value in (("dtype", dtype), ("accumulate", accumulate)):
        if value is not None and value not in DTYPES:
            raise ValueError(f"{name} must be torch.float32 or torch.float64, got {value!r}")
