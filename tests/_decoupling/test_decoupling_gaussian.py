"""Section 3: gate moments of Gaussian pre-activations, closed forms = quadrature = Monte Carlo."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from capalloc._decoupling.activations import NAMED_ACTIVATIONS, Sine, resolve
from capalloc._decoupling.closed_forms import CLOSED_FORMS
from capalloc._decoupling.gaussian_gates import gaussian_decoupling, gaussian_gate_moment
from capalloc._decoupling.kinks import find_kinks
from capalloc._operators.calls import slope
from closed_forms import CLOSED
from zoo import gaussian

#: The ends, next to the ends, the middle and next to it.
CORRELATIONS = np.array([-1, -1 + 1e-9, -0.999, -0.6, -1e-9, 0, 0.3, 0.95, 1 - 1e-6, 1])


def test_every_closed_form_is_tested():
    assert set(CLOSED) == set(CLOSED_FORMS)


@pytest.mark.proves("3", "closed forms of Gaussian gates", oracle="Gauss-Hermite quadrature")
@pytest.mark.parametrize("kind", CLOSED, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("variance", [0.3, 1.0, 6.0])
def test_quadrature_meets_the_closed_form(kind, variance):
    activation = CLOSED[kind]
    for function in (gaussian_gate_moment, gaussian_decoupling):
        exact = function(activation, CORRELATIONS, variance)
        numeric = function(activation, CORRELATIONS, variance, method="quadrature")
        np.testing.assert_allclose(numeric, exact, atol=1e-8 * max(1, np.abs(exact).max()))


@pytest.mark.proves("3", "closed forms of Gaussian gates", oracle="Monte Carlo")
@pytest.mark.parametrize("name", NAMED_ACTIVATIONS)
def test_moments_meet_monte_carlo(name):
    activation, samples = resolve(name), 200_000
    x, y = gaussian(2, samples, seed=5)
    for rho, variance in [(-0.6, 1.0), (0.4, 4.0), (0.95, 0.5)]:
        z = math.sqrt(variance) * x
        other = math.sqrt(variance) * (rho * x + math.sqrt(1 - rho**2) * y)
        products = slope(activation, z) * slope(activation, other)
        error = float(products.std()) / math.sqrt(samples)
        assert abs(gaussian_gate_moment(name, rho, variance) - float(products.mean())) < 4.5 * error + 1e-12


@pytest.mark.proves("3", "closed forms of Gaussian gates", oracle="the formulas written out")
def test_values_of_section_3():
    rho = np.linspace(-1, 1, 9)
    np.testing.assert_allclose(gaussian_decoupling("relu", rho), np.arccos(rho) / np.pi, atol=1e-15)
    np.testing.assert_array_equal(gaussian_decoupling("linear", rho), 0)
    for hard_signs in ("abs", "sign"):
        np.testing.assert_allclose(gaussian_decoupling(hard_signs, rho), 1 - 2 / np.pi * np.abs(np.arcsin(rho)))
    assert gaussian_decoupling("abs", 0.0) == 1
    by_omega = [float(gaussian_decoupling(Sine(omega), 0.9)) for omega in (0.01, 1, 3, 10)]
    assert by_omega == sorted(by_omega)
    assert by_omega[0] < 1e-4
    assert by_omega[-1] > 0.999
    # Only omega^2 v matters.
    np.testing.assert_allclose(gaussian_decoupling(Sine(3), rho), gaussian_decoupling("sin", rho, 9.0))


@pytest.mark.proves("3", "d from 0 to 1", oracle="random activations, correlations and scales")
@settings(max_examples=25, deadline=None)
@given(
    name=st.sampled_from(["tanh", "gelu", "hardtanh", "elu", "softplus"]),
    rho=st.floats(-1, 1),
    factor=st.floats(0.1, 10),
)
def test_decoupling_is_between_0_and_1_and_has_no_scale(name, rho, factor):
    activation = resolve(name)
    d = float(gaussian_decoupling(activation, rho))
    assert 0 <= d <= 1
    assert float(gaussian_decoupling(lambda z: factor * activation(z), rho)) == pytest.approx(d, abs=1e-8)
    assert float(gaussian_decoupling(activation, 1.0)) == pytest.approx(0, abs=1e-12)


def test_shapes_broadcast_and_tensors_come_back_as_tensors():
    rho, variance = np.linspace(-1, 1, 3), np.array([[0.5], [2.0]])
    d = gaussian_decoupling("tanh", rho, variance)
    assert d.shape == (2, 3)
    assert d.dtype == np.float64
    for row, v in zip(d, (0.5, 2.0), strict=True):
        np.testing.assert_array_equal(row, gaussian_decoupling("tanh", rho, v))
    same = gaussian_decoupling("tanh", torch.tensor(rho, dtype=torch.float32), torch.tensor([[0.5], [2.0]]))
    assert isinstance(same, torch.Tensor)
    assert same.dtype == torch.float64
    np.testing.assert_allclose(same, d)
    assert gaussian_decoupling("relu", 0.0).shape == ()
    assert gaussian_gate_moment("erf", np.eye(3)).shape == (3, 3)


@pytest.mark.parametrize(
    ("activation", "expected"),
    [
        (nn.ReLU(), [0]),
        (nn.ELU(), [0]),  # the slope is continuous, its derivative is not
        (nn.Hardtanh(-1.5, 0.5), [-1.5, 0.5]),
        (nn.Hardswish(), [-3, 3]),
        (nn.Softsign(), [0]),
        (nn.Softshrink(0.7), [-0.7, 0.7]),
        (nn.Tanh(), []),
        (Sine(20), []),
        (nn.GELU(), []),
        (lambda z: (z - math.pi / 4).abs() + z.square(), [math.pi / 4]),
        (lambda z: 0 * z, []),
        (torch.ones_like, []),  # no path from z
    ],
)
def test_kinks_are_found(activation, expected):
    np.testing.assert_allclose(find_kinks(activation, 9.0), expected, atol=1e-9)


def test_kinks_without_a_second_derivative_and_by_hand():
    class Once(torch.autograd.Function):
        @staticmethod
        def forward(ctx, z):
            ctx.save_for_backward(z)
            return z.clamp(min=0.5)

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx, gradient):
            (z,) = ctx.saved_tensors
            return gradient * (z > 0.5)

    shifted = lambda z: torch.relu(z - 0.5)  # noqa: E731
    rho = [-0.6, 0.3, 0.999]
    expected = gaussian_decoupling(shifted, rho, kinks=[0.5])
    np.testing.assert_allclose(gaussian_decoupling(Once.apply, rho), expected, atol=1e-8)
    np.testing.assert_allclose(gaussian_decoupling(shifted, rho), expected, atol=1e-8)


def test_a_missed_kink_is_told():
    with pytest.warns(RuntimeWarning, match="name the activation's kinks with kinks="):
        gaussian_decoupling(lambda z: torch.relu(z - 0.123), 0.5, kinks=[])


def test_modules_are_left_as_they_are():
    prelu = nn.PReLU().train()
    gaussian_decoupling(prelu, 0.5, method="quadrature")
    assert prelu.weight.dtype == torch.float32
    assert prelu.weight.requires_grad
    assert prelu.training


def test_a_correlation_without_axes_is_one():
    found = gaussian_decoupling("relu", torch.tensor(0.5))
    assert float(found) == pytest.approx(float(gaussian_decoupling("relu", 0.5)))
    assert found.shape == ()


def test_the_sine_names_its_frequency():
    assert repr(Sine(2.5)) == "Sine(omega=2.5)"


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        (("relu", 1.5), ValueError, r"correlation must lie in \[-1, 1\]"),
        (("relu", float("nan")), ValueError, r"correlation must lie in \[-1, 1\]"),
        (("relu", 0.5, 0.0), ValueError, "variance must be positive"),
        (("relu", 0.5, float("inf")), ValueError, "variance must be positive"),
        (("rleu", 0.5), ValueError, "'rleu' is not known by name"),
        ((3, 0.5), TypeError, "activation must be a name"),
        ((nn.PReLU(4), 0.5), ValueError, "PReLU with 4 slopes"),
        ((lambda z: z.sum(), 0.5), ValueError, "must act elementwise"),
        ((lambda z: 1, 0.5), ValueError, "must act elementwise: it gave int"),
        ((lambda z: z.log(), 0.5), ValueError, "NaN or inf"),
        ((torch.sign, 0.5), ValueError, "slope of zero almost everywhere"),
    ],
)
def test_refusals(arguments, error, match):
    with pytest.raises(error, match=match):
        gaussian_decoupling(*arguments)


def test_refused_settings():
    with pytest.raises(ValueError, match="method must be one of"):
        gaussian_decoupling("relu", 0.5, method="exact")
    with pytest.raises(ValueError, match="kinks must be finite"):
        gaussian_decoupling("relu", 0.5, method="quadrature", kinks=[math.inf])
