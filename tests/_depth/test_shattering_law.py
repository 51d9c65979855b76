"""Section 6: the closed-form law of shattering, its reference numbers, limits and asymptotics; the feature moments."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from capalloc._decoupling.activations import NAMED_ACTIVATIONS, resolve
from capalloc._decoupling.closed_forms import CLOSED_FORMS
from capalloc._decoupling.gaussian_gates import feature_moment
from capalloc._decoupling.kinks import find_kinks
from capalloc._decoupling.quadrature import GAUSSIAN_REACH, moment
from capalloc._depth.shattering_law import FAMILIES, crossing, family_rates, gradient_correlation
from capalloc.gates import gaussian_decoupling
from closed_forms import CLOSED
from zoo import gaussian

#: The ends, next to them, the middle.
CORRELATIONS = np.array([-1, -0.999, -0.6, 0, 0.3, 0.95, 1 - 1e-6, 1])
#: docs/theory.md, section 6: orthogonal examples.
REFERENCE = {
    "residual": {1: 0.750, 2: 0.582, 4: 0.375, 8: 0.187, 16: 0.068, 64: 0.004},
    "normalised": {1: 0.750, 2: 0.638, 4: 0.524, 8: 0.423, 16: 0.340, 64: 0.225},
    "scaled": {1: 0.750, 2: 0.704, 4: 0.673, 8: 0.655, 16: 0.644, 64: 0.636},
}
rates_of = st.lists(st.floats(0, 50) | st.just(math.inf), min_size=1, max_size=6)


def last(rates, *args, **kwargs):
    """The gradient correlation at the end of the network."""
    return gradient_correlation(rates, *args, **kwargs)["gradient"].to_numpy()[-1]


def slope_of(values, at, low, high):
    """d log values / d log at between two depths."""
    return math.log(values[high - 1] / values[low - 1]) / math.log(at[high - 1] / at[low - 1])


# -- the kernel map -----------------------------------------------------------------------------------------


def test_every_feature_moment_is_tested():
    assert set(CLOSED) == set(CLOSED_FORMS)


@pytest.mark.proves("6", "the arc-cosine map", oracle="quadrature")
@pytest.mark.parametrize("kind", CLOSED, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("variance", [0.3, 1.0, 6.0])
def test_feature_moments_meet_quadrature(kind, variance):
    activation = resolve(CLOSED[kind])
    scale = math.sqrt(variance)
    kinks = find_kinks(activation, GAUSSIAN_REACH * scale)
    numeric = moment(activation, torch.from_numpy(CORRELATIONS), scale, kinks)
    exact = feature_moment(activation, CORRELATIONS, variance, kinks)
    np.testing.assert_allclose(exact, numeric, atol=1e-8 * max(1, np.abs(exact).max()))  # the quadrature asks for 1e-9


@pytest.mark.proves("6", "the arc-cosine map", oracle="Monte Carlo")
@pytest.mark.parametrize("name", NAMED_ACTIVATIONS)
def test_feature_moments_meet_monte_carlo(name):
    activation, samples = resolve(name), 100_000
    x, y = gaussian(2, samples, seed=5)
    for rho, variance in [(-0.6, 1.0), (0.4, 4.0)]:
        scale = math.sqrt(variance)
        products = activation(scale * x) * activation(scale * (rho * x + math.sqrt(1 - rho**2) * y))
        error = float(products.std()) / math.sqrt(samples)
        found = feature_moment(activation, np.array([rho]), variance, find_kinks(activation, GAUSSIAN_REACH * scale))
        assert abs(found[0] - float(products.mean())) < 4.5 * error


# -- the law ------------------------------------------------------------------------------------------------


@pytest.mark.proves("6", "correlation of gradients", oracle="the figures of the section")
@pytest.mark.parametrize("family", REFERENCE)
def test_reference_numbers_of_section_6(family):
    for depth, expected in REFERENCE[family].items():
        assert last(family_rates(family, depth)) == pytest.approx(expected, abs=5e-4)  # given to three digits


@pytest.mark.proves("6", "prod_l (1 - d_l lambda_l / (1 + lambda_l)), the arc-cosine map", oracle="two blocks by hand")
def test_the_law_by_hand():
    """Two ReLU blocks, the arc-cosine map and a stream that carries covariance s and variance q."""
    k = lambda rho: (math.sqrt(1 - rho**2) + rho * (math.pi - math.acos(rho))) / math.pi  # noqa: E731
    start, first, second = 0.3, 0.7, 2.0
    s, q = start + first * k(start), 1 + first
    d = [math.acos(start) / math.pi, math.acos(s / q) / math.pi]
    law = gradient_correlation([first, second], start)
    np.testing.assert_allclose(law["correlation"], [start, s / q], atol=1e-14)
    np.testing.assert_allclose(law["decoupling"], d, atol=1e-14)
    np.testing.assert_allclose(law["crossing"], [first / (1 + first), 2 / 3], atol=1e-14)
    np.testing.assert_allclose(law["index"], np.cumsum([d[0] * first / 1.7, d[1] * 2 / 3]), atol=1e-14)
    kept = [1 - d[0] * first / (1 + first), 1 - d[1] * second / (1 + second)]
    np.testing.assert_allclose(law["gradient"], np.cumprod(kept), atol=1e-14)
    assert law["depth"].to_numpy().tolist() == [1, 2]


@pytest.mark.proves("6", "2^-L, (3/4)^L and L^(-1/2)", oracle="the laws of Balduzzi et al.")
def test_balduzzi_laws_at_a_decoupling_of_one_half():
    depth = np.arange(1, 33)
    for family, base in [("plain", 1 / 2), ("residual", 3 / 4)]:
        law = gradient_correlation(family_rates(family, 32), decoupling=0.5)
        np.testing.assert_allclose(law["gradient"], base**depth, rtol=1e-12)
        assert "correlation" not in law
    gradient = gradient_correlation(family_rates("normalised", 4096), decoupling=0.5)["gradient"].to_numpy()
    # prod (1 - 1/(2 (l + 1))) ~ L^-1/2 with corrections of 1/L: under 1e-3 from 512 on.
    assert slope_of(gradient, np.arange(1, 4097), 512, 4096) == pytest.approx(-0.5, abs=1e-3)


@pytest.mark.proves("6", "how ReLU shatters", oracle="slopes and constants at depth 2000")
def test_relu_shatters_as_the_third_power_of_the_mean_number_of_gates():
    """d_l P_l -> 3 P_l / T with T the sum of P: rho -> 1 spares the stream the exponential of d = 1/2."""
    for rate in (math.inf, 1.0):
        law = gradient_correlation(np.full(2000, rate))
        crossed = law["crossing"].to_numpy().cumsum()
        # Corrections are of order log(T) / T, with T = 2000 and 1000 here.
        assert slope_of(law["gradient"].to_numpy(), crossed, 1000, 2000) == pytest.approx(-3, abs=0.06)
        assert float(law["decoupling"][-1]) * crossed[-1] == pytest.approx(3, rel=0.02)
        assert float(1 - law["correlation"][-1]) * crossed[-1] ** 2 == pytest.approx(4.5 * math.pi**2, rel=0.04)


def test_scaled_branches_have_a_limit_that_does_not_degenerate():
    by_depth = [last(family_rates("scaled", depth)) for depth in (64, 128, 256, 512)]
    steps = -np.diff(by_depth)
    np.testing.assert_allclose(steps[:-1] / steps[1:], 2, atol=0.1)  # the limit is met at rate O(1 / L)
    assert by_depth[-1] - steps[-1] > 0.63


@pytest.mark.proves("6", "tanh shatters exponentially", oracle="(1 - d)^L")
def test_tanh_shatters_exponentially_and_relu_does_not():
    """Variance 1 is the chaotic side of tanh: odd, so independent inputs stay so, and d with them."""
    law = gradient_correlation(family_rates("plain", 32), [0.0, 0.9], "tanh")
    d = gaussian_decoupling("tanh", 0.0)
    np.testing.assert_allclose(law["gradient"][:, 0], (1 - d) ** np.arange(1, 33), rtol=1e-9)
    assert (np.diff(law["correlation"][:, 1]) < 0).all()
    assert (np.diff(gradient_correlation(family_rates("plain", 32), 0.9)["correlation"]) > 0).all()


def test_signed_gates_keep_their_sign():
    """|z| turns every gate over at rho = -1: the product is signed, the decoupling is not."""
    law = gradient_correlation([1.0, math.inf], -1.0, "abs")
    np.testing.assert_allclose(law["gradient"], [0, 0], atol=1e-7)  # 1 - (1 - -1) / 2
    assert float(law["decoupling"][0]) == pytest.approx(0, abs=1e-12)
    assert last([math.inf], -1.0, "abs") == pytest.approx(-1)
    assert last([math.inf], -0.5, "abs") == pytest.approx(-1 / 3)  # (2 / pi) arcsin(-1/2)


@pytest.mark.proves("6", "mu = lambda E[phi^2] / (v E[phi'^2])", oracle="erf in closed form")
def test_branch_variance_and_path_energy_part_for_curved_activations():
    """mu = lambda B(1) / (v A(1)): for erf both in closed form."""
    v, rate = 2.0, 0.8
    own, square = 4 / math.pi / math.sqrt(1 + 4 * v), 2 / math.pi * math.asin(2 * v / (1 + 2 * v))
    mu = rate * square / (v * own)
    k = math.asin(0.4 * 2 * v / (1 + 2 * v)) / math.asin(2 * v / (1 + 2 * v))
    law = gradient_correlation([rate, rate], 0.4, "erf", variance=v)
    assert float(law["correlation"][1]) == pytest.approx((0.4 + mu * k) / (1 + mu), abs=1e-12)
    assert float(law["decoupling"][0]) == pytest.approx(float(gaussian_decoupling("erf", 0.4, v)), abs=1e-12)


def test_variance_by_block_matters_for_curved_activations_only():
    rates = [1.0, 1.0, 1.0]
    assert last(rates, 0.5, variance=[0.1, 1, 9]) == last(rates, 0.5)
    for variances in ([0.1, 0.1, 0.1], [0.1, 1.0, 9.0]):
        assert abs(last(rates, 0.5, "tanh", variance=variances) - last(rates, 0.5, "tanh")) > 0.01
    assert last(rates, 0.5, "tanh", variance=[4, 4, 4]) == last(rates, 0.5, "tanh", variance=4)


@settings(max_examples=40, deadline=None)
@given(rates=rates_of, rho=st.floats(-1, 1), more=st.floats(0.01, 10), at=st.integers(0, 5))
def test_relu_is_in_0_1_and_falls_with_depth(rates, rho, more, at):
    law = gradient_correlation(rates, rho)
    gradient = law["gradient"].to_numpy()
    assert ((gradient >= 0) & (gradient <= 1)).all()
    assert (np.diff(gradient) <= 0).all()
    assert (np.diff(law["correlation"]) >= -1e-12).all()  # k(rho) >= rho
    # A higher rate at the last block: the stream that it reads is the same, more paths cross its gates.
    assert last([*rates[:-1], rates[-1] + more], rho) <= gradient[-1] + 1e-12
    # At any block, where the decoupling is kept.
    raised = list(rates)
    raised[at % len(rates)] += more
    assert last(raised, decoupling=0.3) <= last(rates, decoupling=0.3) + 1e-12


@settings(max_examples=25, deadline=None)
@given(rates=rates_of, activation=st.sampled_from(["relu", "abs", "erf", "sin", "tanh", "gelu"]))
def test_equal_inputs_have_equal_gradients(rates, activation):
    law = gradient_correlation(rates, [1.0, 0.2], activation)
    np.testing.assert_allclose(law["gradient"][:, 0], 1, atol=1e-6)  # kernels with a corner at 1 turn 1e-16 into 1e-8
    assert (law["gradient"][:, 1] <= 1).all()
    assert (law["gradient"][:, 1] >= -1).all()


@settings(max_examples=25, deadline=None)
@given(depth=st.integers(1, 6), rho=st.floats(-1, 1), activation=st.sampled_from(["relu", "abs", "erf"]))
def test_limits_of_the_rate(depth, rho, activation):
    none = gradient_correlation(np.zeros(depth), rho, activation)
    np.testing.assert_array_equal(none["gradient"], 1)
    np.testing.assert_array_equal(none["index"], 0)
    np.testing.assert_allclose(none["correlation"], rho)
    plain, large = (gradient_correlation(np.full(depth, rate), rho, activation) for rate in (math.inf, 1e14))
    # sqrt(1e-14) where gates or kernels have a corner, times the depth.
    np.testing.assert_allclose(large["gradient"], plain["gradient"], atol=1e-5)
    np.testing.assert_array_equal(plain["crossing"], 1)


def test_depth_is_that_of_a_network_truncated_there():
    rates = [0.3, math.inf, 2.0, 1.0]
    whole = gradient_correlation(rates, 0.2)
    for depth in range(1, 5):
        assert last(rates[:depth], 0.2) == whole["gradient"].sel(depth=depth)


def test_pairs_and_linear_networks():
    rho = np.array([-0.5, 0.0, 0.9])
    law = gradient_correlation([1.0, 2.0], rho)
    assert law["gradient"].dims == ("depth", "pair")
    for k, one in enumerate(rho):
        np.testing.assert_array_equal(law["gradient"][:, k], gradient_correlation([1.0, 2.0], one)["gradient"])
    linear = gradient_correlation([1.0, math.inf], rho, "linear")
    np.testing.assert_array_equal(linear["gradient"], 1)
    np.testing.assert_allclose(linear["correlation"][1], rho)
    np.testing.assert_allclose(crossing(np.array([0, 1, 3, math.inf])), [0, 0.5, 0.75, 1])


def test_an_activation_without_a_closed_form_is_integrated():
    steep = lambda z: 3 * torch.relu(z)  # noqa: E731
    np.testing.assert_allclose(last([1.0, 0.5], 0.3, steep), last([1.0, 0.5], 0.3), atol=1e-8)


def test_families():
    assert set(FAMILIES) == {"plain", "residual", "normalised", "scaled"}
    np.testing.assert_array_equal(family_rates("plain", 2), [math.inf, math.inf])
    np.testing.assert_array_equal(family_rates("residual", 2), [1, 1])
    np.testing.assert_array_equal(family_rates("normalised", 4), [1, 1 / 2, 1 / 3, 1 / 4])
    np.testing.assert_array_equal(family_rates("scaled", 4), [1 / 4] * 4)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "match"),
    [
        (([],), {}, ValueError, r"rates must have one axis, \(depth,\), and one block at least, got shape \(0,\)"),
        (([[1.0]],), {}, ValueError, r"rates must have one axis.*got shape \(1, 1\)"),
        (([1.0, -0.5],), {}, ValueError, "rates must be 0 or more, inf for plain layers, got values down to -0.5"),
        (([math.nan],), {}, ValueError, "rates must be 0 or more"),
        (([1.0], 1.5), {}, ValueError, r"correlation must lie in \[-1, 1\], got values from 1.5 to 1.5"),
        (([1.0], math.nan), {}, ValueError, r"correlation must lie in \[-1, 1\]"),
        (([1.0], [[0.5]]), {}, ValueError, r"correlation must be a number or have one axis.*got shape \(1, 1\)"),
        (([1.0],), {"decoupling": 1.5}, ValueError, r"decoupling must lie in \[0, 1\], got values from 1.5 to 1.5"),
        (([1.0],), {"decoupling": [0.5, 0.5]}, ValueError, "decoupling must be a number or have one value for each"),
        (
            ([1.0],),
            {"variance": [1, 1]},
            ValueError,
            "variance must be a number or have one value for each of 1 blocks",
        ),
        (([1.0],), {"variance": -1}, ValueError, "variance must be positive and finite"),
        (([1.0], 0.0, "rleu"), {}, ValueError, "'rleu' is not known by name"),
        (([1.0], 0.0, torch.sign), {}, ValueError, "slope of zero almost everywhere"),
        (([1.0], 0.0, 3), {}, TypeError, "activation must be a name"),
        (([1.0], 0.0, lambda z: None), {}, ValueError, "activation must act elementwise: it gave NoneType"),
    ],
)
def test_refusals(arguments, options, error, match):
    with pytest.raises(error, match=match):
        gradient_correlation(*arguments, **options)


def test_refused_families():
    with pytest.raises(ValueError, match=r"family must be one of \('plain', .*\), got 'dense'"):
        family_rates("dense", 3)
    with pytest.raises(ValueError, match="depth must be at least 1 block, got 0"):
        family_rates("plain", 0)
