"""Every registered operator in a function of one tensor, its gates frozen or not."""

from __future__ import annotations

import operator
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from capalloc._operators.records import STEP_FUNCTIONS, named
from zoo import gaussian

aten = torch.ops.aten
W = gaussian(2, 3, 3, 3, seed=2)
M = gaussian(5, 4, seed=3)
Case = tuple[Callable[..., Tensor], tuple[int, ...]]


def fractional(pool: Callable[..., Tensor], x: Tensor) -> Tensor:
    """Random windows, here the same at every call."""
    samples = torch.full((*x.shape[:2], x.ndim - 2), 0.4, dtype=x.dtype)
    return pool(x, 2, output_size=[3] * (x.ndim - 2) if x.ndim == 4 else [2, 2, 3], _random_samples=samples)


#: operator -> a function of one tensor that captures to it, and that tensor's shape.
CASES: dict[object, Case] = {
    aten.linear.default: (lambda x: F.linear(x, M, gaussian(5)), (2, 3, 4)),
    aten.matmul.default: (lambda x: x @ M.T, (2, 4)),
    aten.mm.default: (lambda x: torch.mm(x, M.T), (2, 4)),
    aten.conv1d.default: (lambda x: F.conv1d(x, W[:, :, 0], gaussian(2), stride=2, padding=1, dilation=2), (2, 3, 9)),
    aten.conv1d.padding: (lambda x: F.conv1d(x, W[:, :, 0], padding="same"), (2, 3, 9)),
    aten.conv2d.default: (lambda x: F.conv2d(x, gaussian(6, 1, 3, 3), gaussian(6), groups=3), (2, 3, 5, 5)),
    aten.conv2d.padding: (lambda x: F.conv2d(x, W, padding="same", dilation=2), (2, 3, 5, 6)),
    aten.conv3d.default: (lambda x: F.conv3d(x, W[:, :, None], padding=1), (1, 3, 2, 4, 4)),
    aten.conv3d.padding: (lambda x: F.conv3d(x, W[:, :, None], padding="valid"), (1, 3, 2, 4, 4)),
    aten.conv_transpose1d.default: (
        lambda x: F.conv_transpose1d(x, gaussian(3, 2, 3), gaussian(2), stride=2, padding=1, dilation=2),
        (2, 3, 5),
    ),
    aten.conv_transpose2d.input: (
        lambda x: F.conv_transpose2d(x, gaussian(4, 3, 3, 2), gaussian(6), stride=2, output_padding=1, groups=2),
        (2, 4, 3, 4),
    ),
    aten.conv_transpose3d.input: (lambda x: F.conv_transpose3d(x, gaussian(2, 2, 2, 1, 2), stride=2), (1, 2, 2, 3, 2)),
    aten.convolution.default: (
        lambda x: aten.convolution(x, gaussian(4, 2, 3), None, [2], [1], [1], True, [1], 2),
        (2, 4, 5),
    ),
    aten._native_batch_norm_legit_no_training.default: (
        lambda x: aten._native_batch_norm_legit_no_training(
            x, gaussian(3, seed=8), gaussian(3, seed=9), gaussian(3), gaussian(3).square() + 0.1, 0.1, 1e-5
        )[0],
        (2, 3, 4),
    ),
    aten.batch_norm.default: (
        lambda x: F.batch_norm(x, gaussian(3), gaussian(3).square() + 0.1, gaussian(3, seed=8), gaussian(3, seed=9)),
        (2, 3, 4),
    ),
    aten.mul.Tensor: (lambda x: x * gaussian(3, 1), (2, 3, 4)),
    aten.div.Tensor: (lambda x: x / gaussian(3, 1), (2, 3, 4)),
    aten.add.Tensor: (lambda x: torch.add(x[:, :2], x[:, 1:], alpha=3), (2, 3)),
    aten.sub.Tensor: (lambda x: x[:, :2] - x[:, 1:], (2, 3)),
    aten.neg.default: (lambda x: -x, (2, 3)),
    aten.clone.default: (lambda x: x.clone(), (2, 3)),
    aten.contiguous.default: (lambda x: x.mT.contiguous(), (2, 3, 4)),
    aten.permute.default: (lambda x: x.permute(0, 2, 1), (2, 3, 4)),
    aten.transpose.int: (lambda x: x.transpose(1, 2), (2, 3, 4)),
    aten.mT.default: (lambda x: x.mT, (2, 3, 4)),
    aten.view.default: (lambda x: x.view(2, 12), (2, 3, 4)),
    aten.reshape.default: (lambda x: x.mT.reshape(2, 12), (2, 3, 4)),
    aten.flatten.using_ints: (lambda x: x.flatten(1), (2, 3, 4)),
    aten.unflatten.int: (lambda x: x.unflatten(1, (2, -1)), (2, 6)),
    aten.squeeze.dims: (lambda x: x.squeeze((1, 2)), (2, 1, 1, 4)),
    aten.squeeze.dim: (lambda x: x.squeeze(1), (2, 1, 4)),
    aten.squeeze.default: (lambda x: x.squeeze(), (2, 1, 4)),
    aten.unsqueeze.default: (lambda x: x.unsqueeze(1), (2, 4)),
    aten.expand.default: (lambda x: x.expand(2, 3, 4), (2, 1, 4)),
    aten.slice.Tensor: (lambda x: x[:, 1::2], (2, 5)),
    aten.select.int: (lambda x: x[:, 1], (2, 3, 4)),
    aten.flip.default: (lambda x: x.flip(1), (2, 5)),
    aten.roll.default: (lambda x: x.roll(2, 1), (2, 5)),
    aten.pad.default: (lambda x: F.pad(x, (2, 1), mode="reflect"), (2, 3, 5)),
    aten.cat.default: (lambda x: torch.cat([x[:, 1:], x, x[:, :1]], 1), (2, 5)),
    aten.stack.default: (lambda x: torch.stack([x, x], 1), (2, 5)),
    aten.split.Tensor: (lambda x: torch.cat(x.split(2, 1)[::-1], 1), (2, 6)),
    aten.chunk.default: (lambda x: torch.cat(x.chunk(3, 1)[::-1], 1), (2, 7)),
    aten.split_with_sizes.default: (lambda x: torch.cat(x.split([1, 3], 1)[::-1], 1), (2, 4)),
    aten.unbind.int: (lambda x: torch.stack(x.unbind(1)[::-1], 1), (2, 4)),
    operator.getitem: (lambda x: x.chunk(2, 1)[1] * 2.0, (2, 4)),
    aten._to_copy.default: (lambda x: aten._to_copy(x, dtype=torch.float32).double(), (2, 4)),
    aten.to.dtype: (lambda x: x.to(torch.float32).double(), (2, 4)),
    aten.to.dtype_layout: (lambda x: aten.to.dtype_layout(x, dtype=torch.float64) * 2, (2, 4)),
    aten.to.device: (lambda x: aten.to.device(x, torch.device("cpu"), torch.float64) * 2, (2, 4)),
    aten.to.other: (lambda x: aten.to.other(x, x) * 2, (2, 4)),
    aten.type_as.default: (lambda x: aten.type_as(x, x) * 2, (2, 4)),
    aten.movedim.int: (lambda x: x.movedim(1, 2) * 2, (2, 3, 4)),
    aten.movedim.intlist: (lambda x: x.movedim((1, 2), (2, 1)) * 2, (2, 3, 4)),
    aten.moveaxis.int: (lambda x: x.moveaxis(1, 2) * 2, (2, 3, 4)),
    aten.moveaxis.intlist: (lambda x: x.moveaxis((1, 2), (2, 1)) * 2, (2, 3, 4)),
    aten.swapaxes.default: (lambda x: x.swapaxes(1, 2) * 2, (2, 3, 4)),
    aten.swapdims.default: (lambda x: x.swapdims(1, 2) * 2, (2, 3, 4)),
    aten.numpy_T.default: (lambda x: x.T * 2, (2, 4)),
    aten.ravel.default: (lambda x: x.ravel() * 2, (2, 4)),
    aten.dropout.default: (lambda x: F.dropout(x, 0.5, training=False) * 2, (2, 4)),
    aten.alias.default: (lambda x: torch.ops.aten.alias(x) * 2, (2, 4)),
    aten.detach.default: (lambda x: x * x.detach(), (2, 4)),
    aten.where.self: (lambda x: torch.where(x > 0, 2 * x, 3 * x.flip(1)), (2, 4)),
    aten.where.ScalarSelf: (lambda x: torch.where(x > 0, 0.0, 2 * x), (2, 4)),
    aten.where.ScalarOther: (lambda x: torch.where(x > 0, 2 * x, 0.0), (2, 4)),
    aten.mean.dim: (lambda x: x.mean((1, 3)), (2, 3, 4, 5)),
    aten.sum.dim_IntList: (lambda x: x.sum(1, keepdim=True), (2, 3, 4)),
    aten.avg_pool1d.default: (lambda x: F.avg_pool1d(x, 3, 2, 1), (2, 3, 8)),
    aten.avg_pool2d.default: (lambda x: F.avg_pool2d(x, 3, 2, 1, True, False), (2, 3, 6, 7)),
    aten.avg_pool3d.default: (lambda x: F.avg_pool3d(x, 2), (1, 2, 4, 4, 4)),
    aten.adaptive_avg_pool1d.default: (lambda x: F.adaptive_avg_pool1d(x, 3), (2, 3, 7)),
    aten.adaptive_avg_pool2d.default: (lambda x: F.adaptive_avg_pool2d(x, (2, 3)), (2, 3, 5, 7)),
    aten.adaptive_avg_pool3d.default: (lambda x: F.adaptive_avg_pool3d(x, 2), (1, 2, 3, 4, 5)),
    aten.max_pool1d.default: (lambda x: F.max_pool1d(x, 3, 2, 1), (2, 3, 8)),
    aten.max_pool2d.default: (lambda x: F.max_pool2d(x, 3, 2, 1, 1, True), (2, 3, 6, 7)),
    aten.max_pool3d.default: (lambda x: F.max_pool3d(x, 2), (1, 2, 4, 4, 4)),
    aten.max_pool1d_with_indices.default: (lambda x: F.max_pool1d(x, 3, 2, 1, return_indices=True)[0], (2, 3, 8)),
    aten.max_pool2d_with_indices.default: (lambda x: F.max_pool2d(x, 2, return_indices=True)[0], (2, 3, 6, 7)),
    aten.max_pool3d_with_indices.default: (lambda x: F.max_pool3d(x, 2, return_indices=True)[0], (1, 2, 4, 4, 4)),
    aten.fractional_max_pool2d.default: (lambda x: fractional(F.fractional_max_pool2d, x), (2, 3, 6, 7)),
    aten.fractional_max_pool3d.default: (lambda x: fractional(F.fractional_max_pool3d, x), (1, 2, 5, 4, 6)),
    aten.amax.default: (lambda x: x.amax((1, -1)), (2, 3, 4, 5)),
    aten.amin.default: (lambda x: F.relu(x).amin(1, keepdim=True), (2, 3, 4)),  # many tie at 0
    aten.max.dim: (lambda x: x.max(1)[0], (2, 3, 4)),
    aten.min.dim: (lambda x: x.min(-1, keepdim=True)[0], (2, 3, 4)),
    aten.adaptive_max_pool1d.default: (lambda x: F.adaptive_max_pool1d(x, 3), (2, 3, 7)),
    aten.adaptive_max_pool2d.default: (lambda x: F.adaptive_max_pool2d(x, (2, 3)), (2, 3, 5, 7)),
    aten.adaptive_max_pool3d.default: (lambda x: F.adaptive_max_pool3d(x, 2), (1, 2, 3, 4, 5)),
}
POINTWISE: dict[object, Callable[[Tensor], Tensor]] = {
    aten.relu.default: F.relu,
    aten.leaky_relu.default: lambda x: F.leaky_relu(x, 0.2),
    aten.abs.default: torch.abs,
    aten.gelu.default: F.gelu,
    aten.tanh.default: torch.tanh,
    aten.silu.default: F.silu,
    aten.sigmoid.default: torch.sigmoid,
    aten.elu.default: F.elu,
    aten.celu.default: F.celu,
    aten.selu.default: F.selu,
    aten.softplus.default: F.softplus,
    aten.mish.default: F.mish,
    aten.hardtanh.default: F.hardtanh,
    aten.hardswish.default: F.hardswish,
    aten.hardsigmoid.default: F.hardsigmoid,
    aten.relu6.default: F.relu6,
    aten.log_sigmoid.default: F.logsigmoid,
    aten.erf.default: torch.erf,
    aten.sin.default: torch.sin,
    aten.cos.default: torch.cos,
    aten.exp.default: torch.exp,
    aten.log.default: lambda x: torch.log(x),
    aten.sqrt.default: lambda x: torch.sqrt(x),
    aten.rsqrt.default: lambda x: torch.rsqrt(x),
    aten.reciprocal.default: torch.reciprocal,
    aten.square.default: torch.square,
    aten.clamp.default: lambda x: x.clamp(0.1, 1.0),
    aten.clamp_min.default: lambda x: x.clamp_min(0.1),
    aten.clamp_max.default: lambda x: x.clamp_max(0.1),
    aten.pow.Tensor_Scalar: lambda x: x**3,
    aten.rrelu.default: F.rrelu,
    aten.threshold.default: lambda x: F.threshold(x, 0.1, 20.0),
    aten.hardshrink.default: F.hardshrink,
    aten.softshrink.default: F.softshrink,
    aten.asin.default: lambda x: torch.asin(x / 4),
    aten.acos.default: lambda x: torch.acos(x / 4),
    aten.atanh.default: lambda x: torch.atanh(x / 4),
    aten.erfinv.default: lambda x: torch.erfinv(x / 4),
    aten.logit.default: lambda x: torch.logit(x / 10),
    aten.acosh.default: lambda x: torch.acosh(x.exp().exp()),
}
POINTWISE |= {
    getattr(aten, name).default: getattr(torch, name)
    for name in [
        "log1p",
        "log2",
        "log10",
        "expm1",
        "exp2",
        "erfc",
        "tan",
        "atan",
        "sinh",
        "cosh",
        "asinh",
        "lgamma",
        "digamma",
        "sinc",
        "frac",
    ]
}
CASES |= {op: (fn, (2, 5)) for op, fn in POINTWISE.items()}
#: Steps, whose slope is zero, times the signal itself.
STEPS = {op: (lambda x, op=op: op(x)) for op in named(STEP_FUNCTIONS)}
STEPS[aten.heaviside.default] = lambda x: torch.heaviside(x, x.new_ones(()))
STEPS |= {op: (lambda x, op=op: op(x, 0.4)) for op in (aten.floor_divide.default, aten.floor_divide.Scalar)}
CASES |= {op: (lambda x, step=step: x * (2 + step(x)), (2, 5)) for op, step in STEPS.items()}

#: Selections and statistics, which go by their Jacobian.
GROUPS = torch.tensor([0, 1, 0, 2, 1]).expand(2, 5)
BY_DATA: dict[object, Callable[[Tensor], Tensor]] = {
    aten.sort.default: lambda x: x.sort(1).values,
    aten.sort.stable: lambda x: torch.sort(x, stable=True, dim=1, descending=True).values,
    aten.topk.default: lambda x: x.topk(3, 1).values,
    aten.kthvalue.default: lambda x: x.kthvalue(2, 1).values,
    aten.median.dim: lambda x: x.median(1).values,
    aten.nanmedian.dim: lambda x: x.nanmedian(1).values,
    aten.mode.default: lambda x: x.mode(1).values,
    aten.cummax.default: lambda x: x.cummax(1).values,
    aten.cummin.default: lambda x: x.cummin(1).values,
    aten.scatter_reduce.two: lambda x: torch.zeros(2, 3).double().scatter_reduce(1, GROUPS, x, "amax"),
    aten.linalg_vector_norm.default: lambda x: torch.linalg.vector_norm(x, dim=1, keepdim=True),
    aten.var.correction: lambda x: x.var(1, correction=0),
    aten.var.dim: lambda x: x.var(1),
    aten.std.correction: lambda x: x.std(1, correction=0),
    aten.std.dim: lambda x: x.std(1),
    aten.quantile.scalar: lambda x: x.quantile(0.3, 1),
    aten.nanquantile.scalar: lambda x: x.nanquantile(0.3, 1),
    aten.fmax.default: lambda x: torch.fmax(x[:, :2], x[:, 3:]),
    aten.fmin.default: lambda x: torch.fmin(x[:, :2], x[:, 3:]),
    aten.clamp.Tensor: lambda x: x.clamp(min=torch.zeros(5).double()),
    aten.logsumexp.default: lambda x: x.logsumexp(1),
    aten.prod.dim_int: lambda x: x.prod(1),
    aten.cumprod.default: lambda x: x.cumprod(1),
}
CASES |= {op: (fn, (2, 5)) for op, fn in BY_DATA.items()}

CUBE = gaussian(2, 4, 5, seed=4)
GAMMA, BETA = gaussian(4, seed=5), gaussian(4, seed=6)
KEPT = torch.tensor([True, False, True, True]).expand(4, 4)


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, KEPT, scale=0.7, enable_gqa=True)


def heads(x: Tensor) -> tuple[Tensor, Tensor]:
    """Four heads of queries, two of keys and values."""
    return x.reshape(2, 4, 4, 3), x[:, :24].reshape(2, 2, 4, 3)


def standardised(x: Tensor, dims: tuple[int, ...], gamma: Tensor, beta: Tensor, z: Tensor) -> Tensor:
    variance, mean = torch.var_mean(x, dims, correction=0, keepdim=True)
    return (z - mean) / (variance + 1e-5).sqrt() * gamma + beta


CASES |= {
    aten.bmm.default: (lambda x: torch.bmm(x, CUBE), (2, 3, 4)),
    aten.addmm.default: (lambda x: torch.addmm(gaussian(5), x, M.T, beta=2, alpha=3), (2, 4)),
    aten.baddbmm.default: (lambda x: torch.baddbmm(gaussian(5), x, CUBE, beta=2, alpha=3), (2, 3, 4)),
    aten.rsub.Scalar: (lambda x: torch.rsub(x, 0, alpha=2), (2, 4)),
    aten.rsub.Tensor: (lambda x: torch.rsub(x[:, 1:], x[:, :-1], alpha=2), (2, 4)),
    aten.softmax.int: (lambda x: x.softmax(1), (2, 3, 4)),
    aten._softmax.default: (lambda x: aten._softmax(x, -1, False), (2, 3, 4)),
    aten._safe_softmax.default: (lambda x: aten._safe_softmax(x, -1), (2, 3, 4)),
    aten.log_softmax.int: (lambda x: x.log_softmax(1), (2, 3, 4)),
    aten._log_softmax.default: (lambda x: aten._log_softmax(x, -1, False), (2, 3, 4)),
    aten.scaled_dot_product_attention.default: (
        lambda x: attend(heads(x)[0], heads(x)[1], heads(x)[1].exp().log()),
        (2, 48),
    ),
    aten.layer_norm.default: (lambda x: F.layer_norm(x, (3, 4), gaussian(3, 4), gaussian(3, 4, seed=2)), (2, 2, 3, 4)),
    aten.group_norm.default: (lambda x: F.group_norm(x, 2, GAMMA, BETA), (2, 4, 3)),
    aten.instance_norm.default: (lambda x: F.instance_norm(x, weight=GAMMA, bias=BETA), (2, 4, 3)),
    aten.rms_norm.default: (lambda x: F.rms_norm(x, (4,), GAMMA, 0.1), (2, 3, 4)),
    aten.embedding.default: (lambda x: x + F.embedding(torch.tensor([1, 0, 1]), M), (2, 3, 4)),
    aten.native_dropout.default: (lambda x: aten.native_dropout(x, 0.5, False)[0], (2, 4)),
    aten.index.Tensor: (lambda x: x[:, torch.tensor([2, 0, 2])], (2, 4)),
    aten.index_select.default: (lambda x: x.index_select(1, torch.tensor([2, 0, 2])), (2, 4)),
    aten.gather.default: (lambda x: x.gather(1, torch.tensor([[2, 0], [3, 3]])), (2, 4)),
    aten._unsafe_view.default: (lambda x: aten._unsafe_view(x.transpose(0, 1).contiguous(), [8]) * 2, (2, 4)),
}
#: operator -> the function of its case with the gates frozen at x, of z.
FROZEN: dict[object, Callable[[Tensor, Tensor], Tensor]] = {
    aten.scaled_dot_product_attention.default: lambda x, z: attend(heads(x)[0], heads(x)[1], heads(z)[1]),
    aten.layer_norm.default: lambda x, z: standardised(x, (-2, -1), gaussian(3, 4), gaussian(3, 4, seed=2), z),
    aten.group_norm.default: lambda x, z: standardised(
        x.reshape(2, 2, 2, 3), (2, 3), GAMMA.reshape(2, 2, 1), BETA.reshape(2, 2, 1), z.reshape(2, 2, 2, 3)
    ).reshape(2, 4, 3),
    aten.instance_norm.default: lambda x, z: standardised(x, (2,), GAMMA[:, None], BETA[:, None], z),
    aten.rms_norm.default: lambda x, z: z * (x.square().mean(-1, keepdim=True) + 0.1).rsqrt() * GAMMA,
    aten.detach.default: lambda x, z: x * z,
    **{op: lambda x, z, step=step: z * (2 + step(x)) for op, step in STEPS.items()},
}
#: Cases that start paths at the constant input.
AFFINE = ("linear", "conv", "_norm", "addmm", "baddbmm", "embedding")
