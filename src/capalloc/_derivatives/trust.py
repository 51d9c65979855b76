"""Trust in autograd's derivatives of a model: where they are not those of its outputs, all ways agree on wrong ones.

Two kinds are known. A custom `torch.autograd.Function` may have a backward that cannot be differentiated again, which
autograd takes for a constant. Operators that write several entries to one place credit in reverse mode those that
were overwritten; forward mode moves tangents as values move.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from capalloc._derivatives.autograd import LoopRows, differentiable
from capalloc._derivatives.rows import Replay
from capalloc._model.agree import agree
from capalloc._model.custom_functions import custom_functions
from capalloc._model.input_metric import Directions
from capalloc._model.noticing import Noticing
from capalloc._model.problem import Problem

#: Steps of two differences, relative to each parameter tensor; a kink between them shows as their disagreement.
DIFFERENCE_STEPS = (1e-4, 3e-5)
#: Relative difference between autograd and differences that is no rounding.
WRONG = 1e-4
#: Functions of torch's own calls that take functions: their derivatives are themselves not differentiated.
LOOPS_OF_TORCH = {"ScanAutogradOp": "scan", "WhileLoopAutogradOp": "while_loop", "MapAutogradOp": "map"}
#: Calls by which a model cuts gradients.
CUTS = (Tensor.detach, torch.detach, torch._C._set_grad_enabled)


def check_derivatives(problem: Problem, x: Tensor, replay: Replay, *, modes: bool = True) -> None:
    """Refuse a model whose derivatives by autograd are wrong on an example `x`, (1, *inputs).

    Without `modes` forward and reverse mode are known to agree.

    Where the model cuts gradients itself nothing is compared: forward mode and differences see through some cuts, and
    could not tell them from a mistake.

    Raises:
        ValueError: forward and reverse mode disagree, or a custom function's second derivative is not its first's.

    """
    cuts, custom = _inspected(problem, x, replay)
    if cuts or not (modes or custom):
        return
    random = torch.Generator().manual_seed(0)
    direction = torch.randn(x.shape, generator=random, dtype=x.dtype).to(x.device)
    with replay():
        weights = torch.randn(problem(x).shape[1], generator=random, dtype=x.dtype).to(x.device)
    if modes:
        _check_modes(problem, x, direction, weights, replay)
    if custom:
        _check_by_differences(problem, x, direction, weights, replay, custom)


def _check_modes(problem: Problem, x: Tensor, direction: Tensor, weights: Tensor, replay: Replay) -> None:
    """Compare the outputs' derivative along one direction of the inputs in forward and in reverse mode."""

    def outputs(x: Tensor) -> Tensor:
        return problem(x)[0] @ weights

    try:
        with replay():
            forward = torch.func.jvp(outputs, (x,), (direction,))[1]
        with replay():
            slope = torch.func.grad(outputs)(x)
    except Exception:  # transforms run the model's own code, which may raise anything; other ways need neither
        return
    reverse = (slope * direction).sum()
    size = slope.norm() * direction.norm() + (problem(x)[0] * weights).abs().sum()  # a slope of 0 is one to rounding
    finite = bool(torch.isfinite(forward) & torch.isfinite(reverse))  # what is not is refused by its own name
    if finite and not agree(forward, reverse, size):
        if _is_slope(outputs, x, direction, reverse):
            return  # an operator whose forward mode is wrong, which no way uses that does not agree with reverse mode
        raise ValueError(
            "the model's derivatives in forward and in reverse mode disagree: an operator writes several entries to "
            "one place (scatter or index_put with repeated indices, max_unpool after windows that overlap), a custom "
            "function's backward is not that of its forward, or a hook changes gradients; write each place once, or "
            "ask propagate(solver='markov')"
        )


def _is_slope(outputs: Callable[[Tensor], Tensor], x: Tensor, direction: Tensor, slope: Tensor) -> bool:
    """Tell whether differences of the outputs along a direction have this slope."""
    step = DIFFERENCE_STEPS[1]
    change = (outputs(x + step * direction) - outputs(x - step * direction)) / (2 * step)
    return bool((change - slope).abs() <= WRONG * (change.abs() + slope.abs()))


def _inspected(problem: Problem, x: Tensor, replay: Replay) -> tuple[bool, list[str]]:
    """Tell whether a forward pass cuts gradients itself, and name the custom autograd functions that it calls."""
    with (
        warnings.catch_warnings(),  # of what the model does with tensors that have gradients
        torch.enable_grad(),
        differentiable(problem),
        replay(),
        Noticing(CUTS.__contains__) as cutting,
    ):
        warnings.simplefilter("ignore")
        out = problem(x.clone().requires_grad_())
    return cutting.seen, [] if cutting.seen else [function.__name__ for function in custom_functions(out)]


def _check_by_differences(
    problem: Problem, x: Tensor, direction: Tensor, weights: Tensor, replay: Replay, custom: list[str]
) -> None:
    """Compare the mixed derivative along one direction of inputs and of parameters with differences of the gradient."""
    random = torch.Generator().manual_seed(1)
    moves = {}
    for name, p in problem.params.items():
        size = p.detach().square().mean().sqrt() if p.numel() else 0
        moves[name] = torch.randn(p.shape, generator=random, dtype=p.dtype).to(p.device) * size
    along = Directions(direction, False, torch.zeros(1, dtype=torch.long))
    mixed = LoopRows(problem).mixed(x[0], along, weights, replay)
    by_autograd = float(sum((mixed[name][0] * move).sum() for name, move in moves.items()))

    def slope(step: float) -> float:
        with torch.enable_grad(), moved(problem, moves, step), replay():
            at = x.clone().requires_grad_()
            (gradient,) = torch.autograd.grad(problem(at)[0] @ weights, at, materialize_grads=True)
        return float((gradient * direction).sum())

    coarse, fine = ((slope(step) - slope(-step)) / (2 * step) for step in DIFFERENCE_STEPS)
    off = abs(by_autograd - fine)
    if off > WRONG * (abs(fine) + abs(by_autograd)) and abs(coarse - fine) < 0.1 * off:
        of_torch = [name for name in custom if name in LOOPS_OF_TORCH]
        way_out = (
            f"write torch's {LOOPS_OF_TORCH[of_torch[0]]} as a loop of Python"
            if of_torch
            else "write its backward in differentiable operations on saved tensors, or its forward in plain torch; of "
            "a surrogate write s(x) + (f(x) - s(x)).detach(), with the function s whose gradient it is"
        )
        raise ValueError(
            f"second derivatives through the custom autograd function {', '.join(of_torch or custom)} are wrong: the "
            f"mixed derivative along a random direction is {by_autograd:.6g} by autograd and {fine:.6g} by differences "
            f"of the gradient; {way_out}"
        )


@contextmanager
def moved(problem: Problem, moves: dict[str, Tensor], step: float) -> Iterator[None]:
    """Move the private copy's parameters for a while."""
    own = {name: p.detach().clone() for name, p in problem.params.items()}
    try:
        with torch.no_grad():
            for name, p in problem.params.items():
                p.add_(moves[name], alpha=step)
        yield
    finally:
        with torch.no_grad():
            for name, p in problem.params.items():
                p.copy_(own[name])
