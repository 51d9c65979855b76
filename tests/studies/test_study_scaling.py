"""The scaling study: exact sums against brute force, fits on known powers, measured networks against both."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
import xarray as xr
from studies import scaling
from studies.scaling_networks import WIDTH, Family, Layer, Recurrent, Residual

from study_pages import assert_page_has_places


@pytest.fixture(scope="module", params=[pytest.param(None, id="quick", marks=pytest.mark.slow)])
def study():
    found = scaling.run(quick=True)
    yield found
    plt.close("all")


def powers(exponents: list[float], noise: float = 0.0) -> xr.DataArray:
    """3 n^(1 - 2 a), with a factor of each seed's own."""
    rng = np.random.default_rng(0)
    sizes = np.array([4, 8, 16])
    values = 3.0 * sizes ** (1 - 2 * np.array(exponents)[:, None]) * np.exp(noise * rng.normal(size=(6, 1, 1)))
    coords = {"seed": range(6), "exponent": exponents, "size": sizes}
    return xr.DataArray(values * np.exp(noise * rng.normal(size=values.shape)), coords, ("seed", "exponent", "size"))


def test_slopes_and_the_exponent_where_they_vanish():
    values = powers([0.25, 0.4, 0.7])
    np.testing.assert_allclose(scaling.slopes(values), np.tile([0.5, 0.2, -0.4], (6, 1)), atol=1e-12)
    np.testing.assert_allclose(scaling.critical(values), 0.5, atol=1e-12)
    value, error = scaling.with_error(scaling.critical(powers([0.25, 0.4, 0.7], noise=0.01)))
    assert 0 < float(error) < 0.01
    assert abs(float(value) - 0.5) < 4 * float(error)


@pytest.mark.proves("6", "scaling rules to recover by sweep", oracle="recursion over blocks")
@pytest.mark.parametrize("exponent", [0.25, 0.5, 0.75])
def test_exact_sums_by_recursion(exponent):
    """Energies of streams block by block, for branches of gain eps^2; biases are of n^-b beside eps = n^(-1/2)."""
    n, gain = 12, 12 ** (-2 * exponent)
    rates = []
    stream = 1.0
    for _ in range(n):
        rates.append((gain * stream + gain) / stream)
        stream += gain * stream + gain
    assert scaling.exact_time(Recurrent)(n, exponent) == pytest.approx(np.log1p(rates).sum(), rel=1e-12)
    assert scaling.exact_time(Residual)(n, exponent) == pytest.approx(n * np.log1p(gain), rel=1e-12)
    for kind, read in ((Residual, 0.0), (Recurrent, 1 / n)):
        inputs, biases = 1.0, 0.0
        for _ in range(n):
            inputs, biases = inputs * (1 + 1 / n) + read, biases * (1 + 1 / n) + gain
        assert scaling.exact_odds(kind)(n, exponent) == pytest.approx(biases / inputs, rel=1e-12)


@pytest.mark.parametrize("kind", [Residual, Recurrent])
def test_networks_have_the_exact_sums(kind):
    """To 15 %: gates of 64 units on 8 examples vary by up to 1/sqrt(64), over six blocks."""
    generator = torch.Generator().manual_seed(0)
    family = Family.of(kind, 6, biases=True)
    expected = scaling.exact_time(kind)(6, 0.5)
    assert family.time(6**-0.5, generator) == pytest.approx(expected, rel=0.15)
    expected = scaling.exact_odds(kind)(6, 0.3)
    assert family.odds(6**-0.5, 6**-0.3, generator) == pytest.approx(expected, rel=0.15)


def test_weights_are_drawn_anew_and_repeat():
    family = Family.of(Residual, 2, biases=True)
    draw = lambda seed: family.time(0.5, torch.Generator().manual_seed(seed))  # noqa: E731
    assert draw(0) == draw(0) != draw(1)
    family.draw(0.5, 0.25, torch.Generator().manual_seed(0))
    for name, value in family.program.state_dict.items():
        size = 0.25**2 if "bias" in name else 0.5**2 * 2 / WIDTH
        assert float(value.detach().square().mean()) == pytest.approx(size, rel=0.1)


@pytest.mark.parametrize(("activation", "gate"), [("ReLU", 0.5), ("linear", 1.0), ("tanh", 0.4644)])
def test_a_layer_gains_its_variance_times_the_mean_squared_gate(activation, gate):
    assert scaling.mean_squared_gate(activation) == pytest.approx(gate, abs=1e-4)
    found = Layer.of(activation, 128).gain(3.0 / 128, torch.Generator().manual_seed(0))
    assert found == pytest.approx(3 * gate, rel=0.1)  # squared weights: sqrt(2)/128; gates: up to 1/sqrt(128)


@pytest.mark.proves("5", "the variance of channels", oracle="the closed form of T")
def test_convolutions_keep_their_time_at_the_inverse_of_channels_alone(study):
    """To 25 % of T = 8 log(1 + (C/8)^(1 - gamma) / 8): two networks of 4 and of 16 channels for each exponent."""
    head, _, *rows = [
        [cell.strip() for cell in line.split("|")[1:-1]] for line in study.tables["channels"].splitlines()
    ]
    assert head[1:] == ["C = 4", "C = 16"]
    for measured, exact in zip(rows[::2], rows[1::2], strict=True):
        power = float(measured[0])
        for channels, found, form in zip((4, 16), measured[1:], exact[1:], strict=True):
            time = 8 * np.log1p((channels / 8) ** (1 - power) / 8)
            assert float(form) == pytest.approx(time, abs=0.006)
            assert float(found.split("±")[0]) == pytest.approx(time, rel=0.25)


@pytest.mark.proves("6", "scaling rules to recover by sweep", oracle="exponents and constants in closed form")
def test_recovered_exponents_and_constants(study):
    """At the small size, to 0.12 in exponents and 15 % in constants: 4 of their standard errors."""
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in study.tables["scaling"].splitlines()[2:]]
    assert len(rows) == 4 + 1 + 3 + 3
    for _, kept, recovered, exact, _ in rows:
        value, expected = float(recovered.split("±")[0]), float(exact)
        assert value == pytest.approx(expected, **({"rel": 0.15} if kept == "gain 1" else {"abs": 0.12}))


def test_the_page_has_a_place_for_every_table_and_picture(study):
    assert_page_has_places(study)


def test_the_picture(study):
    axes = study.pictures["scaling"].axes
    assert len(axes) == 4
    assert all(ax.get_xlabel() and ax.get_ylabel() and ax.get_title() and ax.get_legend() for ax in axes)
    assert all(ax.get_xscale() == ax.get_yscale() == "log" for ax in axes)
    np.testing.assert_allclose(axes[0].lines[0].get_ydata(), [4 * np.log1p(0.5), 12 * np.log1p(12**-0.5)])
