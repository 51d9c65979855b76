"""The Jacobian dw/dtheta of a torch model that is linear in its inputs, f(x) = w(theta)'x.

Index convention: w is (outputs, *inputs) for one example; J is (*inputs, outputs, params).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import xarray as xr
from torch import Tensor, nn
from torch.func import jacfwd, jacrev

from capalloc._model.places import axis_names
from capalloc._model.problem import Problem, prepare
from capalloc._model.replaced_params import call_with
from capalloc._model.selected_params import ParamSelection
from capalloc._runtime.arguments import checked
from capalloc._runtime.surroundings import undisturbed

#: Relative departure from linearity that counts as rounding in float64.
LINEARITY = 1e-8


@checked
@undisturbed()
def model_jacobian(
    model: nn.Module, input_shape: Sequence[int], params: ParamSelection = None, *, lags: bool = False
) -> xr.DataArray:
    """Compute dw/dtheta of any model without activations, for `linear_capacity`, in float64 on a private copy.

    Args:
        model: linear in its inputs, in evaluation mode, and without an intercept.
        input_shape: of one example, without the leading examples axis.
        params: names of the parameters that count, patterns such as "head.*", or a predicate on names; by default those
            that require gradients (all where none does), "all" for all.
        lags: the one input axis is time, the last value the most recent: number it "lag" n .. 1.

    Returns:
        (*inputs, outputs, params), the last with names such as "layers.0.weight[2, 1]".

    Raises:
        ValueError: the model is not linear in its inputs or has an intercept, or lags of several axes are asked for.

    """
    if lags and len(input_shape) != 1:
        raise ValueError(f"lags need inputs with one axis, got shape {tuple(input_shape)}")
    dtype = next((p.dtype for p in model.parameters()), torch.float64) if isinstance(model, nn.Module) else None
    probe = torch.zeros(1, *input_shape, dtype=dtype or torch.float64)
    problem = prepare(model, probe, params=params, dtype=torch.float64)
    _check_linear(problem)
    own = {name: p.detach() for name, p in problem.params.items()}

    def w(values: dict[str, Tensor]) -> Tensor:
        return linear_map(problem, values)

    jacobian = jacfwd(w)(own)
    parts = [part.reshape(*part.shape[: 1 + len(input_shape)], own[name].numel()) for name, part in jacobian.items()]
    flat = torch.cat(parts, -1)
    axes = ("lag",) if lags else axis_names(len(input_shape))
    coords: dict[str, object] = {"params": [name for key, p in own.items() for name in _names(key, p.shape)]}
    if lags:
        coords["lag"] = np.arange(input_shape[0], 0, -1)
    return xr.DataArray(flat.numpy(), dims=("outputs", *axes, "params"), coords=coords).transpose(
        *axes, "outputs", "params"
    )


def linear_map(problem: Problem, values: dict[str, Tensor]) -> Tensor:
    """Return w(theta), (outputs, *inputs), a differentiable function of the parameters."""

    def f(x: Tensor) -> Tensor:
        returned = call_with(problem.model, values, (x[None],))
        return problem.select(returned).reshape(-1)

    weights: Tensor = jacrev(f)(problem.probe[0])
    return weights


def _names(key: str, shape: torch.Size) -> list[str]:
    if not shape:
        return [key]
    return [f"{key}[{', '.join(map(str, index))}]" for index in np.ndindex(*shape)]


def _check_linear(problem: Problem) -> None:
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, 1, *problem.input_shape, dtype=problem.dtype, generator=generator)
    with torch.no_grad():
        zero, fx, fy, mixed = (problem(point) for point in (torch.zeros_like(x), x, y, 2 * x - 3 * y))
    at_zero, at_x = (_parameter_gradients(problem, point) for point in (torch.zeros_like(x), x))
    # outputs may be small by cancellation: the terms that cancel set the rounding
    terms = sum(float((g * p).abs().sum()) for g, p in zip(at_x, problem.params.values(), strict=True))
    rounding = LINEARITY * (float(fx.abs().max() + fy.abs().max()) + terms)
    if float(zero.abs().max()) > rounding or any(bool(g.any()) for g in at_zero):
        raise ValueError(
            "model has an intercept: f(0) is not zero, or some parameter moves it; build it with bias=False, "
            "leave biases out by params=, or use capalloc.measure, which gives the constant input a slot"
        )
    if float((mixed - 2 * fx + 3 * fy).abs().max()) > rounding:
        raise ValueError(
            "model is not linear in its inputs: f(2 x - 3 y) is not 2 f(x) - 3 f(y); for networks with activations "
            "use capalloc.measure"
        )


def _parameter_gradients(problem: Problem, point: Tensor) -> list[Tensor]:
    values = {name: p.detach().clone().requires_grad_() for name, p in problem.params.items()}
    with torch.enable_grad():
        total = problem.select(call_with(problem.model, values, (point,))).sum()
        grads = torch.autograd.grad(total, list(values.values()), materialize_grads=True)
    return list(grads)
