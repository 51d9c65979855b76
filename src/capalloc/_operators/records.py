"""One record an operator: every method asks it, and a user's `capalloc.rule` makes or extends one."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

#: What an operator can be.
OPERATOR_KINDS = {
    "activation": "one tensor, entry by entry",
    "pooling": "a maximum or minimum over a window or an axis",
    "softmax": "weights that sum to one",
    "attention": "values mixed by weights that queries and keys steer",
    "normalisation": "one tensor over a statistic",
    "selection": "entries of one tensor or another",
    "product": "two tensors, entry by entry",
    "quotient": "two tensors, entry by entry",
    "contraction": "a matrix product",
    "sum": "two tensors",
    "average": "a mean or sum over a window or an axis",
    "copy": "the same entries, up to a sign or a precision",
    "movement": "the same entries in another place",
    "piece": "some of the entries",
    "dense": "a linear layer",
    "convolution": "a convolution, transposed or not",
    "statistic": "a number for an axis: a spread, a product, a soft maximum",
    "constant": "a value that no path goes through",
    "other": "none of these",
}
#: Kinds whose operators are gates that vary with the inputs: linear segments end there.
DECOUPLING_KINDS = frozenset({"activation", "pooling", "softmax", "statistic"})
#: Kinds whose arguments methods know by name.
KINDS_BY_NAME = frozenset({"activation", "product", "quotient", "contraction", "dense", "convolution", "constant"})
#: Kinds f with f(c x) = c f(x) for c > 0.
HOMOGENEOUS_KINDS = frozenset({"pooling", "selection", "product", "quotient", "average", "copy", "movement", "piece"})


class GateRank(IntEnum):
    """Likeness of a result to a gate: of a product's factors the higher one is the gate."""

    NONE = 0
    ACTIVATION = 1
    SIGNED = 2  # in [-1, 1]
    BOUNDED = 3  # in [0, 1]
    STATISTIC = 4  # a norm, a denominator


@dataclass(frozen=True)
class OperatorRecord:
    """Facts of an operator that the methods ask for."""

    kind: str = "other"
    factors: tuple[str, str] | None = None  # names of a product's factors
    steered_by: tuple[str, ...] = ()  # arguments that only make gates
    rank: GateRank | None = None  # None where it depends on the arguments
    scales: bool = False  # whether an activation is homogeneous
    steady: Callable[[Mapping[str, Any]], bool] = lambda arguments: False  # whether its gates are those of all examples
    slope: Callable[..., Tensor] | None = None  # a(x) of an activation, of its arguments; None for autograd's
    gates: Callable[[Any], Tensor] | None = None  # the gates that an `Operation` applied
    energy: Callable[[Any], Any] | None = None  # the path-energy rule
    function: Callable[..., Any] | None = None  # what torch calls it where transforms and measure know it
    made_of: Callable[..., Any] | None = None  # what it is decomposed into

    @property
    def decouples(self) -> bool:
        return self.kind in DECOUPLING_KINDS

    @property
    def homogeneous(self) -> bool:
        return self.scales or self.kind in HOMOGENEOUS_KINDS

    @property
    def moves(self) -> bool:
        """Tell whether every entry of the result is one of an argument's, or a fill."""
        return self.kind in ("movement", "piece", "selection", "copy")

    @property
    def pointwise(self) -> bool:
        """Tell whether a result's entry depends on the same entry of the arguments alone."""
        return self.kind in ("activation", "sum", "copy", "product", "quotient")


#: Operators that let entries through by their order.
SELECTIONS = (
    "sort sort.stable topk kthvalue median.dim nanmedian.dim mode cummax cummin scatter_reduce.two "
    "quantile.scalar nanquantile.scalar fmax fmin clamp.Tensor"
)
#: Operators whose slope is zero wherever they have one.
STEP_FUNCTIONS = "sign sgn floor ceil round trunc heaviside floor_divide floor_divide.Scalar"
UNDECLARED = OperatorRecord()
RECORDS: dict[Any, OperatorRecord] = {}


def record(op: Any) -> OperatorRecord:
    """Give the record of an operator; of kind "other" where nobody declared it."""
    return RECORDS.get(op, UNDECLARED)


def extend(op: Any, **facts: Any) -> None:
    """Add facts to an operator's record, or start it with them."""
    RECORDS[op] = replace(record(op), **facts)


def of_kind(kind: str) -> list[Any]:
    """List the operators of a kind."""
    return [op for op, known in RECORDS.items() if known.kind == kind]


def named(names: str) -> list[Any]:
    """Give ATen operators by name, of the overload "default" where none is named."""
    parts = (name.partition(".") for name in names.split())
    return [getattr(getattr(torch.ops.aten, packet), overload or "default") for packet, _, overload in parts]


#: Operators that no gradient passes, unless a model gives them one of its own.
BLOCKING = {*named(f"detach {STEP_FUNCTIONS}")}


def _declare(kind: str, names: str, **facts: Any) -> None:
    """Declare ATen operators by name."""
    for op in named(names):
        extend(op, kind=kind, **facts)


def _layer_norm(x: Tensor, shape: Any, weight: Any = None, bias: Any = None, eps: float = 1e-5, _: bool = True) -> Any:
    return F.layer_norm(x, shape, weight, bias, eps)


def _batch_norm(
    x: Tensor, weight: Any, bias: Any, mean: Any, var: Any, training: bool, momentum: float, eps: float, _: bool
) -> Tensor:
    return F.batch_norm(x, mean, var, weight, bias, training, momentum, eps)


def _frozen_batch_norm(
    x: Tensor, weight: Any, bias: Any, mean: Any, var: Any, momentum: float, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    statistics = x.new_zeros(0)  # of the batch, which a frozen layer does not compute
    return F.batch_norm(x, mean, var, weight, bias, False, momentum, eps), statistics, statistics


def quick_dilation(weight: Tensor, dilation: Any) -> Any:
    """Give a dilation that does the same, for which torch takes its quicker kernel.

    On one thread it takes a matrix product for a kernel of one place, half as quick; a dilation does nothing to it.
    """
    single = weight.shape[2:].numel() == 1 and weight.dtype == torch.float32 and not weight.is_cuda
    return (2,) * (weight.ndim - 2) if single else dilation


def _conv2d(
    x: Tensor, weight: Tensor, bias: Any = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1, groups: int = 1
) -> Tensor:
    return torch.conv2d(x, weight, bias, stride, padding, quick_dilation(weight, dilation), groups)


def _embedding(weight: Tensor, indices: Tensor, padding_idx: int = -1, *_: bool, **__: bool) -> Tensor:
    return F.embedding(indices, weight, None if padding_idx < 0 else padding_idx)


extend(torch.ops.aten.embedding.default, function=_embedding)


def _slice_scatter(x: Tensor, part: Tensor, dim: int = 0, start: Any = None, end: Any = None, step: int = 1) -> Tensor:
    return x.index_copy(dim, torch.arange(x.shape[dim], device=x.device)[start:end:step], part)


extend(torch.ops.aten.slice_scatter.default, function=_slice_scatter)


def take_branch(pred: Any, true_fn: Callable[..., Any], false_fn: Callable[..., Any], operands: Any = ()) -> Any:
    """Run the branch that `torch.cond` takes, as Python's `if` does; torch compiles both, which no transform enters."""
    return (true_fn if pred else false_fn)(*operands)


extend(torch.ops.higher_order.cond, function=take_branch)
_declare("activation", "relu leaky_relu abs rrelu", rank=GateRank.ACTIVATION, scales=True)
_declare(
    "activation",
    "gelu silu elu celu selu softplus mish hardtanh hardswish relu6 log_sigmoid erf sin cos exp log sqrt square "
    "clamp clamp_min clamp_max pow.Tensor_Scalar threshold hardshrink softshrink log1p log2 log10 expm1 exp2 "
    "erfc erfinv logit tan asin acos atan sinh cosh asinh acosh atanh lgamma digamma sinc frac",
    rank=GateRank.ACTIVATION,
)
_declare("activation", "tanh", rank=GateRank.SIGNED)
_declare("activation", "sigmoid hardsigmoid", rank=GateRank.BOUNDED)
_declare("activation", "rsqrt reciprocal", rank=GateRank.STATISTIC)
_declare("statistic", "linalg_vector_norm var.correction std.correction var.dim std.dim", rank=GateRank.STATISTIC)
_declare("statistic", "logsumexp", rank=GateRank.NONE)
_declare("statistic", "prod.dim_int cumprod")  # as much of a gate as what it multiplies
_declare(
    "constant",
    "detach zeros_like ones_like full_like empty_like rand_like randn_like randint_like new_zeros new_ones new_full "
    f"new_empty bernoulli bernoulli.p {STEP_FUNCTIONS}",
)
_declare("softmax", "softmax.int _softmax _safe_softmax", rank=GateRank.BOUNDED)
_declare("softmax", "log_softmax.int _log_softmax")
_declare("attention", "scaled_dot_product_attention", steered_by=("query", "key", "attn_mask"))
_declare("attention", "grid_sampler grid_sampler_2d grid_sampler_3d", steered_by=("grid",))
_declare(
    "pooling",
    "max_pool1d max_pool2d max_pool3d max_pool1d_with_indices max_pool2d_with_indices max_pool3d_with_indices "
    "adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d fractional_max_pool2d fractional_max_pool3d "
    "amax amin max.dim min.dim",
)
_declare("pooling", SELECTIONS)
_declare(
    "average",
    "mean mean.dim sum sum.dim_IntList avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d "
    "adaptive_avg_pool3d _adaptive_avg_pool2d _adaptive_avg_pool3d",
)
_declare("normalisation", "group_norm rms_norm")
_declare("normalisation", "layer_norm", function=_layer_norm)
_declare("normalisation", "instance_norm", steady=lambda arguments: not arguments["use_input_stats"])
_declare("normalisation", "batch_norm", steady=lambda arguments: True, function=_batch_norm)
_declare(
    "normalisation", "_native_batch_norm_legit_no_training", steady=lambda arguments: True, function=_frozen_batch_norm
)
_declare("sum", "add.Tensor sub.Tensor rsub.Scalar rsub.Tensor")
_declare("product", "mul.Tensor", factors=("self", "other"))
_declare("quotient", "div.Tensor", factors=("self", "other"))
_declare("contraction", "matmul", factors=("self", "other"), function=torch.matmul)
_declare("contraction", "mm bmm", factors=("self", "mat2"))
_declare("contraction", "addmm", factors=("mat1", "mat2"))
_declare("contraction", "baddbmm", factors=("batch1", "batch2"))
_declare("dense", "linear", function=F.linear)
_declare("convolution", "conv1d", function=torch.conv1d)
_declare("convolution", "conv2d", function=_conv2d)
_declare("convolution", "conv3d", function=torch.conv3d)
_declare(
    "convolution",
    "conv1d.padding conv2d.padding conv3d.padding conv_transpose1d conv_transpose2d.input conv_transpose3d.input "
    "convolution",
)
_declare("copy", "neg clone contiguous alias _to_copy to.dtype to.dtype_layout to.device to.other type_as dropout")
_declare("movement", "view", function=torch.reshape)  # a view holds for the strides of the kernels it was recorded with
_declare(
    "movement",
    "movedim.int movedim.intlist moveaxis.int moveaxis.intlist swapaxes swapdims numpy_T ravel "
    "_unsafe_view reshape flatten.using_ints unflatten.int permute transpose.int t mT squeeze squeeze.dim squeeze.dims "
    "unsqueeze expand repeat repeat_interleave.self_int flip roll pad cat stack native_dropout",
)
_declare("selection", "where.self where.ScalarSelf where.ScalarOther masked_fill.Scalar masked_fill.Tensor")
_declare(
    "piece", "slice.Tensor select.int split.Tensor split_with_sizes chunk unbind.int index.Tensor index_select gather"
)
extend(operator.getitem, kind="piece")
