"""An affine call as a linear map of its input, for autograd: its transpose is the call's own rule, and back again.

Torch's second derivative of a convolution makes the gradient of the weight too, asked for or not, and takes several
cotangents one by one. Here each of the two sweeps is one product, for all vectors at once.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from capalloc._derivatives.affine import AffineRule


class AffineSweep(torch.autograd.Function):
    """h -> weight (.) h + bias, with a weight that needs no gradient."""

    @staticmethod
    def forward(rule: AffineRule, h: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return rule.output(h, weight, bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.rule, _, ctx.weight, _ = inputs

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> Any:
        """Apply the transpose."""
        return None, BackwardSweep.apply(ctx.rule, cotangents[0], ctx.weight), None, None

    @staticmethod
    def vmap(info: Any, in_dims: Any, rule: AffineRule, h: Tensor, weight: Tensor, bias: Tensor | None) -> Any:
        """Take several inputs as more examples."""
        several = h.movedim(in_dims[1], 0)
        out: Tensor = AffineSweep.apply(rule, several.flatten(0, 1), weight, bias)
        return out.unflatten(0, several.shape[:2]), 0


class BackwardSweep(torch.autograd.Function):
    """Cotangents of the output -> cotangents of h."""

    @staticmethod
    def forward(rule: AffineRule, d: Tensor, weight: Tensor) -> Tensor:
        return rule.to_input(weight[None], d[None])[0, 0]

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.rule, _, ctx.weight = inputs

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> Any:
        """Apply the map itself."""
        return None, AffineSweep.apply(ctx.rule, cotangents[0], ctx.weight, None), None

    @staticmethod
    def vmap(info: Any, in_dims: Any, rule: AffineRule, d: Tensor, weight: Tensor) -> Any:
        """Take several cotangents as more examples."""
        several = d.movedim(in_dims[1], 0)
        back: Tensor = BackwardSweep.apply(rule, several.flatten(0, 1), weight)
        return back.unflatten(0, several.shape[:2]), 0
