"""Every registered rule against the squared Jacobian of its operator."""

from __future__ import annotations

import operator
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import capalloc
from capalloc._energy import sweep
from capalloc._energy.operator_matrix import OperatorError
from capalloc._energy.rules import Call, UnsupportedOperatorError, linearised, rule
from capalloc._energy.trace import trace
from capalloc._operators.records import RECORDS
from energies import Function, captured, energies
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
    aten._to_copy.default: (lambda x: x.float().double(), (2, 4)),
    aten.alias.default: (lambda x: torch.ops.aten.alias(x) * 2, (2, 4)),
    aten.detach.default: (lambda x: x * x.detach(), (2, 4)),
    aten.where.self: (lambda x: torch.where(x > 0, 2 * x, 3 * x.flip(1)), (2, 4)),
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
        "sign",
        "sgn",
        "floor",
        "ceil",
        "round",
        "trunc",
        "frac",
    ]
}
CASES |= {op: (fn, (2, 5)) for op, fn in POINTWISE.items()}

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
}
#: Cases that start paths at the constant input.
AFFINE = ("linear", "conv", "_norm", "addmm", "baddbmm", "embedding")


def test_every_rule_has_a_case():
    assert {op for op, known in RECORDS.items() if known.energy} == set(CASES)


@pytest.mark.proves("4", "path energy: squared weights, gates E[a^2]", oracle="the squared Jacobian with gates frozen")
@pytest.mark.parametrize("op", CASES, ids=str)
def test_energies_are_those_of_the_squared_jacobian(op):
    function, shape = CASES[op]
    x = gaussian(*shape).abs() + 0.05 if "log" in str(op) or "sqrt" in str(op) else gaussian(*shape)
    graph = captured(function, x)
    program = trace(graph, x, "data", set())
    frozen = FROZEN.get(op)
    linear = function if frozen is None else lambda z: frozen(x, z)
    jacobian = torch.func.jacrev(linear)(x)
    jacobian = jacobian.reshape(jacobian.shape[: jacobian.ndim - x.ndim].numel(), -1)
    offset = linear(torch.zeros_like(x)) if any(part in str(op) for part in AFFINE) else 0
    energy = program.values[program.output] * 2.0 ** program.exponents[program.output]
    expected = jacobian.square().sum(1).reshape(energy.shape) + (offset.square() if isinstance(offset, Tensor) else 0)
    tolerance = 1e-6 if "_to_copy" in str(op) else 1e-10
    np.testing.assert_allclose(energy, expected, rtol=tolerance, atol=1e-12)
    flow = sweep.law(program, torch.ones_like(energy))
    at_input = flow.at_slots[program.input] * 2.0 ** (program.exponents[program.output])
    np.testing.assert_allclose(at_input.reshape(-1), jacobian.square().sum(0), rtol=tolerance, atol=1e-12)


def seen(op) -> set[object]:
    function, shape = CASES[op]
    return {node.target for node in captured(function, gaussian(*shape)).calls()}


@pytest.mark.parametrize("op", CASES, ids=str)
def test_cases_capture_to_the_operator_they_stand_for(op):
    assert op in seen(op)


@pytest.mark.proves("4", "max pooling lets one of k through", oracle="energies of ones")
@pytest.mark.parametrize("gates", ["gaussian", "unit"])
def test_max_pooling_without_data_lets_one_of_k_through(gates):
    for function, shape in [CASES[aten.max_pool1d.default], CASES[aten.adaptive_max_pool2d.default]]:
        x = gaussian(*shape)
        program = trace(captured(function, x), x, gates, set())
        energy = program.values[program.output] * 2.0 ** program.exponents[program.output]
        np.testing.assert_allclose(energy, 1.0)


@pytest.mark.proves("4", "gates from theory", oracle="E[a^2] in closed form")
def test_gaussian_gates_are_the_mean_squared_slopes():
    x = gaussian(2, 5)
    for function, expected in [(F.relu, 0.5), (torch.abs, 1.0), (lambda z: F.leaky_relu(z, 0.2), (1 + 0.04) / 2)]:
        program = trace(captured(function, x), x, "gaussian", set())
        energy = program.values[program.output] * 2.0 ** program.exponents[program.output]
        np.testing.assert_allclose(energy, expected, rtol=1e-12)
    # E[cos^2] = (1 + exp(-2)) / 2
    program = trace(captured(torch.sin, x), x, "gaussian", set())
    energy = program.values[program.output] * 2.0 ** program.exponents[program.output]
    np.testing.assert_allclose(energy, (1 + np.exp(-2)) / 2, rtol=1e-10)


class Outer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(4, 4), Function(lambda x: torch.cumprod(x, 1)))

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)


def test_an_operator_without_a_rule_is_named_with_its_module_and_the_way_out():
    with pytest.raises(UnsupportedOperatorError, match=r"aten.cumprod.default in module 'inner.1'.*capalloc.rule"):
        capalloc.propagate(Outer(), torch.randn(2, 4, generator=torch.Generator().manual_seed(0)), solver="markov")


def test_a_registered_rule_is_used():
    def cumulative(call: Call):
        return call.program.gate(call.signal("self"), 2.0)

    rule(aten.cumprod.default)(cumulative)
    allocation = capalloc.propagate(
        Outer(), torch.randn(2, 4, generator=torch.Generator().manual_seed(0)), solver="markov"
    )
    assert allocation.total == pytest.approx(20)
    with pytest.raises(ValueError, match="has a rule already: cumulative"):
        rule(aten.cumprod.default)(cumulative)


@pytest.mark.parametrize(
    ("function", "shape", "message"),
    [
        (lambda x: F.conv1d(x, W[:, :, 0]), (3, 6), "without an axis of examples"),
        (lambda x: F.batch_norm(x, None, None, training=True), (4, 3), "statistics of the batch let examples interact"),
        (lambda x: F.linear(x, M, bias=x[0, :1]), (2, 4), "argument 'bias' depends on the inputs"),
    ],
)
def test_calls_that_a_rule_cannot_serve(function, shape, message):
    x = gaussian(*shape)
    with pytest.raises(UnsupportedOperatorError, match=message):
        trace(captured(function, x), x, "data", set())


def test_windows_of_random_sizes_need_data():
    x = gaussian(2, 3, 6, 6)
    with pytest.raises(UnsupportedOperatorError, match=r"aten.sort.* depend on the inputs, and it needs gates='data'"):
        trace(captured(lambda x: x.sort(1).values, x), x, "unit", set())
    with pytest.raises(UnsupportedOperatorError, match="fractional max pooling needs gates='data'"):
        trace(captured(lambda x: fractional(F.fractional_max_pool2d, x), x), x, "unit", set())


@pytest.mark.parametrize(
    ("size", "stride", "padding", "dilation", "ceil"),
    [(3, 1, 0, 2, False), (2, 2, 1, 3, True), (3, 2, 1, (2, 1), True), ((2, 3), (3, 1), 1, (1, 2), False)],
)
def test_without_data_windows_share_evenly_however_far_apart_their_entries_lie(size, stride, padding, dilation, ceil):
    """Each window against the inputs that can win it: one impulse at a time is the maximum wherever it is seen."""
    pool = lambda x: F.max_pool2d(x, size, stride, padding, dilation, ceil)  # noqa: E731
    x = torch.zeros(1, 1, 7, 6, dtype=torch.float64)
    impulses = torch.eye(42, dtype=torch.float64).reshape(42, 1, 7, 6)
    seen = pool(impulses).flatten(1)  # (inputs, windows)
    program = trace(captured(pool, x), x, "unit", set())
    flow = torch.stack(
        [law(program, row.reshape(pool(x).shape)) for row in torch.eye(seen.shape[1], dtype=torch.float64)]
    )
    np.testing.assert_allclose(flow, (seen / seen.sum(0)).T, atol=1e-12)


def law(program, seed):
    """Path energy from every input to the marked outputs."""
    return sweep.law(program, seed).at_slots[program.input].reshape(-1)


def test_outputs_that_a_rule_lets_no_path_to_are_an_error():
    rule(aten.cumprod.default)(lambda call: None)
    with pytest.raises(ValueError, match="outputs do not depend on inputs along any path that carries energy"):
        capalloc.propagate(Outer(), gaussian(2, 4).float(), solver="markov")


@pytest.mark.parametrize(
    ("function", "sign"), [(torch.maximum, 1), (torch.minimum, -1), (torch.max, 1), (torch.min, -1)]
)
def test_of_two_tensors_the_one_that_wins_goes_through(function, sign):
    x = gaussian(2, 6)
    energy = energies(trace(captured(lambda x: function(x[:, :3], x[:, 3:]), x), x, "data", set()))[1]
    won = sign * (x[:, :3] - x[:, 3:]) > 0
    np.testing.assert_array_equal(energy, torch.cat([won, ~won], 1))


def test_cosines_are_products_over_constant_norms():
    x, y = gaussian(2, 4), gaussian(2, 4, seed=2)
    energy = energies(trace(captured(lambda x: F.cosine_similarity(x, y), x), x, "data", set()))[1]
    norms = x.norm(dim=1, keepdim=True) * y.norm(dim=1, keepdim=True)
    np.testing.assert_allclose(energy, (y / norms).square())


def test_windows_may_be_larger_than_a_map():
    x = gaussian(1, 1, 2, 2)
    padded = energies(trace(captured(lambda x: F.avg_pool2d(F.pad(x, [1] * 4), 3, 1), x), x, "data", set()))
    own = energies(trace(captured(lambda x: F.avg_pool2d(x, 3, 1, 1), x), x, "data", set()))
    for mine, by_hand in zip(own, padded, strict=True):
        np.testing.assert_allclose(mine, by_hand)


def test_a_grid_that_samples_an_image_is_a_gate():
    x, grid = gaussian(2, 3, 4, 4), gaussian(2, 2, 2, 2, seed=2) / 3
    given = lambda x: F.grid_sample(x, grid, align_corners=False)  # noqa: E731
    made = lambda x: F.grid_sample(x, grid + 0 * x[:, :1, :2, :2].permute(0, 2, 3, 1), align_corners=False)  # noqa: E731
    expected = energies(trace(captured(given, x), x, "data", set()))
    for own, frozen in zip(energies(trace(captured(made, x), x, "data", set())), expected, strict=True):
        np.testing.assert_allclose(own, frozen)


def test_noise_made_in_the_shape_of_a_signal_starts_at_the_constant():
    x = gaussian(2, 3)
    energy = energies(trace(captured(lambda x: x + torch.ones_like(x), x), x, "data", set()))
    np.testing.assert_allclose(energy[0], 2.0)
    np.testing.assert_allclose(energy[1], 1.0)


def test_a_jacobian_without_structure_is_refused(monkeypatch):
    def refuse(*arguments):
        raise OperatorError("it is large")

    monkeypatch.setattr(linearised, "find", refuse)
    with pytest.raises(UnsupportedOperatorError, match="of its Jacobian, it is large"):
        trace(captured(lambda x: x.sort(1).values, gaussian(2, 3)), gaussian(2, 3), "data", set())
