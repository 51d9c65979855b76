"""The shattering study: its networks against autograd, its estimates against known answers, measured = predicted."""

from __future__ import annotations

import math
import re

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from studies import shattering
from studies.shattering_estimates import extrapolate, mean_cosine, moments, pairs_of, ratio_of_means
from studies.shattering_measured import Design, Line, autocorrelation, measured, nearby
from studies.shattering_networks import Net, Stack, factors, products
from studies.study import DOCS
from torch import nn

from capalloc._depth.shattering_law import FAMILIES, family_rates
from study_pages import assert_page_has_places
from zoo import gaussian

NETS = [Net("scaled", 4), Net("plain", 3), Net("residual", 3), Net("normalised", 2), Net("plain", 1)]


@pytest.fixture(scope="module")
def study():
    found = shattering.run(quick=True)
    yield found
    plt.close("all")


# -- networks -----------------------------------------------------------------------------------------------


def autograd_gradient(net, weights, x, readout):
    """Of readout . h after blocks h + sqrt(lambda) W relu(h), W of variance 2 / units; plain: W relu(h)."""
    h = x.clone().requires_grad_()
    stream = h
    for rate, weight in zip(family_rates(net.family, net.depth), weights, strict=False):
        branch = math.sqrt(2) * weight @ torch.relu(stream)
        stream = branch if math.isinf(rate) else stream + math.sqrt(rate) * branch
    (found,) = torch.autograd.grad(readout @ stream, h)
    return found


@pytest.mark.proves("6", "correlation of gradients", oracle="autograd")
def test_gradients_are_those_of_the_networks_of_section_6():
    networks, units, points = 2, 5, 3
    weights = [gaussian(networks, units, units, seed=k) / math.sqrt(units) for k in range(4)]
    inputs, readout = gaussian(networks, units, points, seed=8), gaussian(networks, units, seed=9)
    found = Stack(weights, factors(NETS, nn.ReLU()), nn.ReLU()).gradients(inputs, readout)
    for b in range(networks):
        for k, net in enumerate(NETS):
            for p in range(points):
                expected = autograd_gradient(net, [w[b] for w in weights], inputs[b, :, p], readout[b])
                cosine = torch.cosine_similarity(found[b, :, k, p], expected, dim=0)
                assert float(cosine) == pytest.approx(1, abs=1e-12)  # one factor a net


def test_tanh_gradients_meet_finite_differences():
    weights = [gaussian(1, 6, 6, seed=k) / math.sqrt(6) for k in range(2)]
    nets, x, readout = [Net("residual", 2)], gaussian(1, 6, 1, seed=3), gaussian(1, 6, seed=4)
    square, own = 0.3942944, 0.4644029  # E tanh(z)^2 and E tanh'(z)^2, by quadrature with numpy
    share = square / own / (1 + square / own)  # mu / (1 + mu) at lambda = 1

    def output(h):
        for weight in weights:
            h = math.sqrt(1 - share) * h + math.sqrt(share / square) * weight[0] @ torch.tanh(h)
        return readout[0] @ h

    (expected,) = torch.autograd.functional.jacobian(output, (x[0, :, 0],))
    found = Stack(weights, factors(nets, nn.Tanh()), nn.Tanh()).gradients(x, readout)[0, :, 0, 0]
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=0)


def test_products_come_in_the_order_of_the_nets_and_do_not_depend_on_the_batch():
    mixing = torch.eye(2)
    draw = lambda nets, **limit: products(  # noqa: E731
        nets, 16, 40, mixing, nn.ReLU(), torch.Generator().manual_seed(3), **limit
    )
    nets = [Net("plain", 1), Net("plain", 4), Net("scaled", 2)]
    there, back = draw(nets), draw(nets[::-1])
    assert there.shape == (40, 3, 2, 2)
    torch.testing.assert_close(there, back.flip(1))
    torch.testing.assert_close(there, there.mT)
    few = draw(nets, weights_at_once=16**2 * 4 * 7)  # seven networks
    assert few.shape == there.shape
    # Other draws, of one law.
    spread = (there.std(0) + few.std(0)) / 40**0.5
    assert ((few.mean(0) - there.mean(0)).abs() < 4 * spread).all()


# -- estimates ----------------------------------------------------------------------------------------------


def test_pairs_of_one_correlation():
    mixing = nearby(3, 0.9)
    np.testing.assert_allclose((mixing**2).sum(0), 1)
    first, second = pairs_of(mixing, 0.9)
    assert list(zip(first, second, strict=True)) == [(0, 3), (1, 4), (2, 5)]
    assert len(pairs_of(mixing, 0.0)[0]) == 6 * 5 // 2 - 3


def test_ratio_and_cosine_on_vectors_of_random_length():
    """Lengths that both vectors share leave each estimator what it is; cosines are 0.6 with a spread."""
    rng = np.random.default_rng(0)
    cosine = 0.6 + 0.1 * rng.normal(size=4000)
    length = rng.lognormal(0, 0.3, size=4000)
    found = np.stack([np.ones_like(cosine), cosine, cosine, np.ones_like(cosine)], -1).reshape(-1, 2, 2)
    found = found * length[:, None, None]
    pair = (np.array([0]), np.array([1]))
    for value, error in (ratio_of_means(*moments(found, pair)), mean_cosine(found, pair)):
        assert abs(value - 0.6) < 4 * error
        assert error == pytest.approx(0.1 / 4000**0.5, rel=0.15)


def test_the_error_is_the_spread_of_the_estimate():
    """Of the ratio of means over 400 repetitions, where numerator and denominator are random."""
    rng = np.random.default_rng(1)
    square = rng.lognormal(0, 0.5, size=(400, 200))
    cross = square * (0.3 + 0.2 * rng.normal(size=square.shape))
    each = [ratio_of_means(c, s) for c, s in zip(cross, square, strict=True)]
    spread = np.std([value for value, _ in each])
    assert np.mean([error for _, error in each]) == pytest.approx(spread, rel=0.15)  # 1 / sqrt(2 x 400), 4 times


def test_extrapolation_finds_the_polynomial_and_its_doubt():
    widths = np.array([32, 64, 128, 256, 512])
    exact = 0.3 + 2 / widths - 5 / widths**2
    errors = np.linspace(0.01, 0.002, 5)
    fit = extrapolate(widths, exact, errors)
    np.testing.assert_allclose(fit.coefficients, [0.3, 2, -5], rtol=1e-8)
    np.testing.assert_allclose(fit(1 / widths), exact)
    assert (fit.freedom, round(fit.chi_square, 9)) == (2, 0)
    rng = np.random.default_rng(0)
    draws = [extrapolate(widths, exact + errors * rng.normal(size=5), errors) for _ in range(400)]
    assert np.std([draw.intercept for draw in draws]) == pytest.approx(fit.error, rel=0.15)
    assert np.mean([draw.chi_square for draw in draws]) == pytest.approx(2, abs=0.4)  # 4 times 2 / sqrt(400)
    assert len(extrapolate(widths[:3], exact[:3], errors[:3]).coefficients) == 2
    assert extrapolate(widths[:1], exact[:1], errors[:1]).intercept == exact[0]


# -- measured against predicted -------------------------------------------------------------------------------


@pytest.mark.proves("6", "correlation of gradients", oracle="gradients of random networks")
def test_measured_meets_predicted():
    """At a width whose bias, of order depth / width, is below the error, and in the limit of infinite width."""
    design = Design(tuple(FAMILIES), (1, 3), {32: 400, 64: 200, 128: 100}, near=0.8, seed=5)
    data = measured(design, "relu", nn.ReLU())
    assert data["measured"].dims == ("pair", "family", "depth", "width")
    assert (abs(data["z"]) < 4).all()
    widest = data.isel(width=-1)
    assert (abs(widest["measured"] - widest["predicted"]) < 4 * widest["error"]).all()
    assert (widest["error"] < 0.02).all()  # so that the line above says something
    one = data.sel(depth=1)  # one block of rate 1 is one network, whatever the family
    alike = one["measured"].sel(family=["residual", "normalised", "scaled"])
    np.testing.assert_allclose(alike.std("family"), 0, atol=1e-6)  # networks are in float32


@pytest.mark.proves("6", "correlation of gradients", oracle="gradients of random networks of width 1024")
def test_the_measured_figures_of_section_6():
    """Two networks of 28 pairs of inputs: to 0.035, five times the spread of a mean, as the figures have their own."""
    text = (DOCS / "theory.md").read_text(encoding="utf-8").split("(checked: correlation of gradients)")[1]
    figures = [float(number) for number in re.findall(r"\.\d{3}", text)[:36]]
    given = np.array(figures).reshape(3, 2, 6)  # family, predicted and measured, depth
    nets = [Net(family, depth) for family in ("residual", "normalised", "scaled") for depth in (1, 2, 4, 8, 16, 64)]
    found = products(nets, 1024, 2, torch.eye(8), nn.ReLU(), torch.Generator().manual_seed(0))
    value, _ = ratio_of_means(*moments(found.numpy(), pairs_of(torch.eye(8).numpy(), 0.0)))
    for row in (0, 1):
        np.testing.assert_allclose(value.reshape(3, 6), given[:, row], atol=0.035)


def test_the_study_meets_the_law(study):
    rows = study.tables["agreement"].splitlines()[2:]
    assert len(rows) == 3
    for row in rows:
        assert float(row.split("|")[4]) < 4  # largest z


@pytest.mark.proves("6", "finite width: excess over the law", oracle="gradients of random networks")
def test_narrow_deep_networks_shatter_less():
    """Finite width raises the correlation of a plain network: streams of few units become collinear sooner."""
    data = measured(Design(("plain",), (8,), {16: 400}, near=0.9, seed=0), "relu", nn.ReLU())
    at = data.isel(width=0).squeeze()
    assert (at["measured"] - at["predicted"] > 4 * at["error"]).all()


def test_networks_too_narrow_for_the_fit_are_refused():
    with pytest.raises(ValueError, match="at least 2 units for each block, 16, got 12"):
        Design(("plain",), (2, 8), {8: 10, 12: 10}, near=0.9, seed=0)


def test_autocorrelation_along_a_line():
    line = Line(points=9, reach=2.0, depth=3, width=64, networks=60, seed=1)
    np.testing.assert_allclose((line.mixing**2).sum(0), 1)
    found = autocorrelation(line, ("plain", "scaled"))
    np.testing.assert_allclose(found["lag"], [0, 0.5, 1, 1.5, 2])
    np.testing.assert_allclose(found["measured"][0], 1)
    np.testing.assert_allclose(found["predicted"][0], 1, atol=1e-6)
    rest = found.isel(lag=slice(1, None))
    assert (abs(rest["measured"] - rest["predicted"]) < 4 * rest["error"]).all()
    assert (found["predicted"].diff("lag") < 0).all()


# -- the page -----------------------------------------------------------------------------------------------


def test_the_page_has_a_place_for_every_table_and_picture(study):
    assert_page_has_places(study)


def test_the_picture(study):
    axes = study.pictures["shattering"].axes
    assert len(axes) == 4
    assert all(ax.get_xlabel() and ax.get_ylabel() and ax.get_legend() for ax in axes)
    # Predicted lines are those of the law: the first of the first panel is the plain family's.
    np.testing.assert_allclose(axes[0].lines[0].get_ydata(), [0.5, 0.3016, 0.1416, 0.0500], atol=1e-4)
