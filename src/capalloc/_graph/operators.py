"""How much an operator's result looks like a gate, and which operators a gate shows through."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch.fx import Node

aten = torch.ops.aten

NONE, ACTIVATION, SIGNED, BOUNDED, STATISTIC = range(5)

#: Products of two tensors: the names of their factors.
PRODUCTS: dict[Any, tuple[str, str]] = {
    aten.mul.Tensor: ("self", "other"),
    aten.div.Tensor: ("self", "other"),
    aten.matmul.default: ("self", "other"),
    aten.mm.default: ("self", "mat2"),
    aten.bmm.default: ("self", "mat2"),
    aten.addmm.default: ("mat1", "mat2"),
    aten.baddbmm.default: ("batch1", "batch2"),
}
#: Functions of one tensor, entry by entry.
ACTIVATIONS = (
    aten.relu.default,
    aten.leaky_relu.default,
    aten.abs.default,
    aten.gelu.default,
    aten.tanh.default,
    aten.silu.default,
    aten.sigmoid.default,
    aten.elu.default,
    aten.celu.default,
    aten.selu.default,
    aten.softplus.default,
    aten.mish.default,
    aten.hardtanh.default,
    aten.hardswish.default,
    aten.hardsigmoid.default,
    aten.relu6.default,
    aten.log_sigmoid.default,
    aten.erf.default,
    aten.sin.default,
    aten.cos.default,
    aten.exp.default,
    aten.log.default,
    aten.sqrt.default,
    aten.rsqrt.default,
    aten.reciprocal.default,
    aten.square.default,
    aten.clamp.default,
    aten.pow.Tensor_Scalar,
)
RANKS: dict[Any, int] = {
    **dict.fromkeys((*ACTIVATIONS, aten.clamp_min.default), ACTIVATION),
    **dict.fromkeys((aten.softmax.int, aten._softmax.default, aten._safe_softmax.default), BOUNDED),
    **dict.fromkeys((aten.sigmoid.default, aten.hardsigmoid.default), BOUNDED),
    aten.tanh.default: SIGNED,
    **dict.fromkeys((aten.rsqrt.default, aten.reciprocal.default, aten.linalg_vector_norm.default), STATISTIC),
    **dict.fromkeys((aten.var.correction, aten.std.correction), STATISTIC),
}
SUMS = frozenset({aten.add.Tensor, aten.sub.Tensor, aten.rsub.Scalar, aten.rsub.Tensor})
COPIES = frozenset({aten.neg.default, aten.clone.default, aten.alias.default, aten._to_copy.default})
PIECES = frozenset(
    {
        operator.getitem,
        aten.slice.Tensor,
        aten.select.int,
        aten.split.Tensor,
        aten.split_with_sizes.default,
        aten.unbind.int,
        aten.index.Tensor,
        aten.index_select.default,
        aten.gather.default,
    }
)
MOVES = PIECES | {
    aten.view.default,
    aten._unsafe_view.default,
    aten.reshape.default,
    aten.permute.default,
    aten.transpose.int,
    aten.t.default,
    aten.squeeze.default,
    aten.squeeze.dim,
    aten.squeeze.dims,
    aten.unsqueeze.default,
    aten.expand.default,
    aten.repeat.default,
    aten.repeat_interleave.self_int,
    aten.flip.default,
    aten.roll.default,
    aten.pad.default,
    aten.cat.default,
    aten.stack.default,
    aten.native_dropout.default,
    aten.where.self,
    aten.masked_fill.Scalar,
    aten.masked_fill.Tensor,
}
#: Operators with gates that are neither slopes of activations nor weights.
NEEDS_DATA = frozenset(
    {
        aten.softmax.int,
        aten._softmax.default,
        aten._safe_softmax.default,
        aten.log_softmax.int,
        aten._log_softmax.default,
        aten.layer_norm.default,
        aten.group_norm.default,
        aten.instance_norm.default,
        aten.rms_norm.default,
    }
)
BENDING = frozenset(op for op, rank in RANKS.items() if rank is not NONE and "softmax" not in str(op)) - {
    aten.linalg_vector_norm.default,
    aten.var.correction,
    aten.std.correction,
}
POINTWISE = BENDING | SUMS | COPIES | {aten.mul.Tensor, aten.div.Tensor}


def rank_by_operator(node: Node) -> int | None:
    """The rank an operator gives its result, None where it depends on its arguments."""
    if node.target is aten.pow.Tensor_Scalar and _is_negative(node.args[1]):
        return STATISTIC
    return RANKS.get(node.target)


def see_through(op: Any, signals: int) -> bool:
    """Whether the result is a gate if its arguments are, `signals` of them depending on the inputs."""
    return op in MOVES or op in COPIES or op in PRODUCTS or (op in SUMS and signals == 1)


def _is_negative(exponent: Any) -> bool:
    return isinstance(exponent, int | float) and exponent < 0
