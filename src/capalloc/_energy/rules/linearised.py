"""Selections and statistics by data: energies through the squared Jacobian on each example, as activations have it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from capalloc._energy.linear_map import LinearMap
from capalloc._energy.operator_matrix import OperatorError, find
from capalloc._energy.program import Energy
from capalloc._energy.rules.any_linear_operator import Affine, Operator, carried_by, linear_operator, results
from capalloc._energy.rules.registration import Call, UnsupportedOperatorError, rule
from capalloc._operators.records import SELECTIONS, named, of_kind

#: Said of curved operators without a rule, before their names.
BY_JACOBIAN = "operators without a rule of paths, which go by their squared Jacobian on each example"


@rule(*of_kind("statistic"), *named(SELECTIONS))
def linearised(call: Call) -> Energy | tuple[Energy | None, ...] | None:
    """y = J(x) x with J frozen on the examples: the entries that won, x/|x| of a norm, softmax of a soft maximum."""
    if call.gates != "data":
        raise call.unsupported("its gates depend on the inputs, and it needs gates='data'")
    operator = Operator(call, carried_by(call))
    given = [a.value.to("cpu", torch.float64) for a in operator.carried]
    made = operator(*given)
    generator = torch.Generator().manual_seed(0)
    maps: list[list[LinearMap] | None] = []
    for k, result in enumerate(made):
        if not (isinstance(result, Tensor) and result.is_floating_point()):
            maps.append(None)
            continue
        parts = [_jacobian(operator, given, j, k) for j in range(len(given))]
        try:
            maps.append([find(part, x.shape, result.shape, generator) for part, x in zip(parts, given, strict=True)])
        except OperatorError as error:
            raise call.unsupported(f"of its Jacobian, {error}") from error
    offsets = [torch.zeros_like(y) if isinstance(y, Tensor) else y for y in made]
    return results(operator, Affine(maps, offsets, [True] * len(made), []))


def without_rule(call: Call, *, may_curve: bool) -> tuple[Energy | tuple[Energy | None, ...] | None, bool]:
    """Give energies by the matrix of a linear operator, or by the Jacobian where it `may_curve`; and tell by which."""
    names: dict[str, None] = call.program.found.setdefault(BY_JACOBIAN, {})
    if str(call.op) in names:
        return linearised(call), True
    try:
        return linear_operator(call), False
    except UnsupportedOperatorError as refused:
        starts = any(not (isinstance(a.energy, Energy) and a.energy.is_signal) for a in carried_by(call))
        reals = any(isinstance(r, Tensor) and r.is_floating_point() for r in pytree.tree_leaves(call.result))
        if starts or not reals or not may_curve or call.gates != "data":
            raise
        try:
            energy = linearised(call)
        except RuntimeError:  # of what has no second derivative, or a Jacobian too large to hold
            raise refused from None
    names[str(call.op)] = None
    return energy, True


def _jacobian(operator: Operator, given: list[Tensor], j: int, k: int) -> Callable[[Tensor], Tensor]:
    """Products of d result k / d argument j with tensors: derivatives of its adjoint, which every operator has."""
    with torch.enable_grad():
        leaf = given[j].detach().requires_grad_()
        result = operator(*given[:j], leaf, *given[j + 1 :])[k]
        cotangent = torch.ones_like(result, requires_grad=True)  # some adjoints take its logarithm
        back: Any = torch.autograd.grad(result, leaf, cotangent, create_graph=True, allow_unused=True)
    if (pulled := back[0]) is None:  # of a sign
        return lambda x: torch.zeros_like(cotangent)

    def product(x: Tensor) -> Tensor:
        with torch.enable_grad():
            keep = x.requires_grad
            found = torch.autograd.grad(pulled, cotangent, x, retain_graph=True, create_graph=keep, allow_unused=True)[
                0
            ]
        return torch.zeros_like(cotangent) if found is None else found

    return product
