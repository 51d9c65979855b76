"""Every registered rule against the squared Jacobian of its operator."""

from __future__ import annotations

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
from operator_cases import AFFINE, CASES, FROZEN, M, fractional
from ruleless import shifted
from zoo import gaussian

aten = torch.ops.aten


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
    tolerance = 1e-6 if op in (aten._to_copy.default, aten.to.dtype) else 1e-10
    np.testing.assert_allclose(energy, expected, rtol=tolerance, atol=1e-12)
    flow = sweep.law(program, torch.ones_like(energy), [program.input])
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
        self.inner = nn.Sequential(nn.Linear(4, 4), Function(lambda x: shifted(x)))

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)


def test_an_operator_without_a_rule_is_named_with_its_module_and_the_way_out():
    with pytest.raises(UnsupportedOperatorError, match=r"ruleless.shifted.default in module 'inner.1'.*capalloc.rule"):
        capalloc.propagate(Outer(), torch.randn(2, 4, generator=torch.Generator().manual_seed(0)), solver="markov")


def test_a_registered_rule_is_used():
    def doubled(call: Call):
        return call.program.gate(call.signal("x"), 2.0)

    rule(torch.ops.ruleless.shifted.default)(doubled)
    allocation = capalloc.propagate(
        Outer(), torch.randn(2, 4, generator=torch.Generator().manual_seed(0)), solver="markov"
    )
    assert allocation.total == pytest.approx(20)
    with pytest.raises(ValueError, match="has a rule already: doubled"):
        rule(torch.ops.ruleless.shifted.default)(doubled)


@pytest.mark.parametrize(
    ("function", "shape", "message"),
    [
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
    return sweep.law(program, seed, [program.input]).at_slots[program.input].reshape(-1)


def test_outputs_that_a_rule_lets_no_path_to_are_an_error():
    rule(torch.ops.ruleless.shifted.default)(lambda call: None)
    with pytest.raises(ValueError, match="outputs do not depend on inputs along any path that carries energy"):
        capalloc.propagate(Outer(), gaussian(2, 4).float(), solver="markov")


class Cut(nn.Module):
    """A network whose output is a gradient that it takes itself."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 5), nn.Linear(5, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.enable_grad():
            at = x.detach().requires_grad_()
            (slope,) = torch.autograd.grad(self.last(torch.tanh(self.first(at))).sum(), at, create_graph=True)
        return slope


@pytest.mark.parametrize("method", [capalloc.walk, capalloc.scaling, capalloc.shattering, capalloc.receptive_field])
def test_a_model_that_cuts_its_paths_is_an_error_of_every_method(method):
    with pytest.raises(ValueError, match="outputs do not depend on inputs along any path"):
        method(Cut(), gaussian(2, 4).float())


def test_outputs_may_have_no_axis_beside_the_examples():
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 1))
    x, flat = gaussian(6, 4).float(), lambda y: y[:, 0]
    for solver in ("markov", "hessian", "auto", "segments"):
        found, expected = (capalloc.propagate(model, x, out, solver=solver) for out in (flat, None))
        np.testing.assert_allclose(found.capacity, expected.capacity, rtol=1e-6)
    np.testing.assert_allclose(*(capalloc.walk(model, x, out).inputs for out in (flat, None)), rtol=1e-6)


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
