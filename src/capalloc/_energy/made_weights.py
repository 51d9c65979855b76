"""Weights that a graph of parameters makes: how their energy is shared among the parameters.

The energy of entry k is W_k^2, whatever makes it; of that parameter theta_j has the share J_kj^2 / sum_j J_kj^2,
J = dW/dtheta, as one of parallel linear paths has it (docs/theory.md, section 4, "Any graph").
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from capalloc._energy.carriers import Derived
from capalloc._energy.rules import UnsupportedOperatorError
from capalloc._graph.capture import module_path

#: Entries of a Jacobian that are held; a larger one of a square map is taken entry by entry, statistics frozen.
JACOBIAN_LIMIT = 2**22
#: Of another map, which has no such way out.
RECTANGLE_LIMIT = 2**25
#: An entry that is 0 where its parameter is not, such as a rounded weight, relative to the largest one.
OFF_ZERO = 2.0**-20
#: Parameters that are drawn to see which entries of a weight are 0 whatever they are.
DRAWS_OF_HOLES = 3


def jacobians(derived: Derived, values: Mapping[Node, Any], free: Sequence[Node], weight: Tensor) -> dict[Node, Tensor]:
    """Give the derivative of a weight to each free parameter, or ones, (entries, 1), where that is too large.

    Raises UnsupportedOperatorError where the Jacobian is too large and the weight has no entry for each of theirs.
    """
    return {root: _jacobian(derived, values, root, weight) for root in free}


def shares(found: Mapping[Node, Tensor]) -> tuple[Tensor, ...]:
    """Give each parameter's share in the entries of a weight, and what none of them moves as the last."""
    squares = [jacobian.square() for jacobian in found.values()]
    total = torch.stack([square.sum(1, keepdim=True) for square in squares]).sum(0)
    moved = total > 0
    return (*(torch.where(moved, square / total, 0.0) for square in squares), (~moved).to(total.dtype))


def possible(derived: Derived, values: Mapping[Node, Any], free: Sequence[Node], weight: Tensor) -> Tensor:
    """Tell which entries of a weight are other than 0 at these parameters or at some that are drawn."""
    generator, found = torch.Generator().manual_seed(0), weight != 0
    for _ in range(0 if found.all() else DRAWS_OF_HOLES):
        drawn = {root: torch.randn(values[root].shape, generator=generator).to(values[root]) for root in free}
        try:
            found = found | (derived.function(values)(*(drawn.get(r, values[r]) for r in derived.roots)) != 0)
        except RuntimeError:  # such as a matrix that has to be positive
            return torch.ones_like(found)
    return found


def off_zero(weight: Tensor, moved: Tensor | bool) -> Tensor:
    """Give a weight with next to nothing in the place of zeros that parameters move, which use these all the same."""
    zero = (weight == 0) & moved
    return torch.where(zero, OFF_ZERO * (float(weight.abs().amax()) or 1.0), weight) if zero.any() else weight


def _jacobian(derived: Derived, values: Mapping[Node, Any], root: Node, weight: Tensor) -> Tensor:
    theta, made = values[root].detach(), derived.function(values)
    square = weight.numel() == theta.numel()
    if weight.numel() * theta.numel() > (JACOBIAN_LIMIT if square else RECTANGLE_LIMIT):
        if not square:
            call = derived.calls[-1]
            raise UnsupportedOperatorError(
                f"a weight of {weight.numel()} entries in module {module_path(call) or '(the model itself)'!r} is made "
                f"of {theta.numel()} parameters by {call.target}: their Jacobian is too large, and entries of one are "
                "not those of the other; use capalloc.measure, which needs neither"
            )
        return torch.ones(weight.numel(), 1, dtype=torch.float64, device=weight.device)
    function = lambda t: made(*(t if r is root else values[r].detach() for r in derived.roots))  # noqa: E731
    jacobian: Any = torch.autograd.functional.jacobian(function, theta)
    jacobian = jacobian.reshape(weight.numel(), theta.numel()).double()
    rounding = 1e3 * torch.finfo(theta.dtype).eps * jacobian.abs().amax(1, keepdim=True)
    return torch.where(jacobian.abs() > rounding, jacobian, 0.0)
