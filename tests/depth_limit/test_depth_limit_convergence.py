"""Section 5: chain -> jump -> diffusion -> Gaussian, at the rates and with the constants that expansions give."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.integrate import quad

from capalloc.depth_limit import StepLaw, WalkBlock, chain, diffusion, gaussian, jump, point
from capalloc.depth_limit.moves import Moves, arrivals, make_grid

BORDERS = ("periodic", "reflecting", "absorbing")
SKEWED = StepLaw([2, 0, 0, 1], origin=1)  # -1 or +2, of mean 0


def total_variation(a, b):
    return float(abs(np.asarray(a) - np.asarray(b)).sum()) / 2


def slope(x, y):
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])


def with_absorbed(result):
    return np.append(result.final, result.absorbed[-1])


def steps_matrix(law, shape, border):
    matrix = arrivals(Moves(law.displacements, law.moves), make_grid(shape, border)).toarray()
    matrix[-1, -1] = 1
    return matrix


# L (chain - jump) -> -T^2 R exp(T A) q_0 with A = P - I: from L log(I + s A) and s = lambda - lambda^2
LEADING = {
    "rate": lambda A: A + A @ A / 2,
    "log": lambda A: (A + A @ A) / 2,
    "steps": lambda A: A @ A / 2,
}


@pytest.mark.proves("5", "chain to jump at rate 1 / L", oracle="the expansion of the matrix logarithm")
@pytest.mark.proves("5", "length of a block", oracle="the leading terms in dense matrices")
@pytest.mark.parametrize("clock", LEADING)
@pytest.mark.parametrize("border", BORDERS)
def test_chain_becomes_jump_as_one_over_depth(border, clock):
    """Slope -1 within 0.1, and at L = 1024 the constant of the expansion within 1 %, the next term being O(1 / L)."""
    law, total, n = StepLaw([1, 2, 4, 1]), 2.0, 9
    depths = 2 ** np.arange(4, 11, 2)
    limit, distances = None, []
    for depth in depths:
        blocks = [WalkBlock(law, total / depth)] * int(depth)
        limit = with_absorbed(jump(blocks, point(n), border, clock=clock))
        distances.append(total_variation(with_absorbed(chain(blocks, point(n), border)), limit))
    assert slope(depths, distances) == pytest.approx(-1, abs=0.1)
    A = steps_matrix(law, (n,), border) - np.eye(n + 1)
    exact = with_absorbed(jump([WalkBlock(law, total)], point(n), border))
    constant = total**2 * abs(LEADING[clock](A) @ exact).sum() / 2
    assert distances[-1] * depths[-1] == pytest.approx(constant, rel=0.01)


@pytest.mark.proves("5", "length of a block", oracle="distances of chain and jump")
@pytest.mark.parametrize("border", BORDERS)
def test_the_clock_of_steps_is_nearest_for_large_times(border):
    blocks, start = [WalkBlock(StepLaw([1, 2, 4, 1]), 8 / 256)] * 256, point(40)
    walked = with_absorbed(chain(blocks, start, border))
    steps, *others = (
        total_variation(walked, with_absorbed(jump(blocks, start, border, clock=clock)))
        for clock in ("steps", "log", "rate")
    )
    assert 2 * steps < min(others)


def test_rates_in_space_converge_on_two_axes():
    """The same slope where rate and law vary from position to position."""
    random = np.random.default_rng(0)
    law = StepLaw(random.random((5, 6, 3, 3)), origin=(1, 1))
    rate, depths, distances = 2 * random.random((5, 6)), [16, 64, 256], []
    for depth in depths:
        blocks = [WalkBlock(law, rate / depth)] * depth
        pair = [with_absorbed(f(blocks, point((5, 6)), ("reflecting", "absorbing"))) for f in (chain, jump)]
        distances.append(total_variation(*pair))
    assert slope(depths, distances) == pytest.approx(-1, abs=0.1)


@pytest.mark.proves("5", "eps = L^-alpha: shatters, finite, no propagation", oracle="variances in closed form")
def test_residual_weights_scale_as_one_over_root_depth():
    """lambda = L^(-2 alpha): alpha > 1/2 propagates nothing, 1/2 has a limit, less than 1/2 spreads for ever."""

    def variance(alpha, depth):
        blocks = [WalkBlock(StepLaw.uniform(3), depth ** (-2 * alpha))] * depth
        return float(chain(blocks, point(101)).covariance[-1, 0, 0])

    for alpha in (0.75, 0.5, 0.25):
        ratio = variance(alpha, 1024) / variance(alpha, 64)
        exact = [depth ** (1 - 2 * alpha) / (1 + depth ** (-2 * alpha)) for depth in (64, 1024)]
        assert ratio == pytest.approx(exact[1] / exact[0], rel=1e-9)
        assert ratio == pytest.approx(16 ** (1 - 2 * alpha), rel=0.15)  # that of T
    assert variance(0.5, 1024) == pytest.approx(2 / 3, rel=2 / 1024)


def hermite_mass(k):
    """Integral of |He_k(x)| phi(x)."""
    polynomial = np.polynomial.hermite_e.HermiteE.basis(k)
    density = lambda x: abs(polynomial(x)) * np.exp(-(x**2) / 2) / np.sqrt(2 * np.pi)  # noqa: E731
    return quad(density, -12, 12, points=polynomial.roots(), limit=400)[0]


@pytest.mark.proves("5", "jump to diffusion at rate 1 / T or 1 / sqrt(T)", oracle="the Edgeworth expansion")
@pytest.mark.parametrize(("law", "order"), [(StepLaw.uniform(5), 4), (SKEWED, 3)], ids=["symmetric", "skewed"])
def test_jump_becomes_diffusion_as_the_variance_grows(law, order):
    """The first cumulant to differ, of order m, 4 (symmetric) or 3 (skewed): |dk| T / (T v)^(m / 2) E|He_m| / (2 m!).

    So 1 / T for symmetric laws and 1 / sqrt(T) for skewed ones. The diffusion on a grid has moves of +-1 here, third
    cumulant 0 and fourth v, which are subtracted.
    """
    times, y, p = 4.0 ** np.arange(2, 6), law.displacements[:, 0], law.probabilities
    distances = []
    for time in times:
        blocks, start = [WalkBlock(law, time)], point(512)
        distances.append(
            total_variation(jump(blocks, start, "periodic").final, diffusion(blocks, start, "periodic").final)
        )
    assert slope(times, distances) == pytest.approx(1 - order / 2, abs=0.05)
    v = float(p @ y**2)
    gap = float(p @ y**order) - (v if order == 4 else 0)
    factorial = {3: 6, 4: 24}[order]
    constant = gap * times[-1] / (times[-1] * v) ** (order / 2) * hermite_mass(order) / factorial / 2
    assert distances[-1] == pytest.approx(constant, rel=0.02)


def test_steps_of_one_are_a_diffusion_on_the_grid_already():
    """Their generator is the scheme's own."""
    blocks = [WalkBlock(StepLaw([[0, 1, 0], [2, 1, 2], [0, 1, 0]]), 0.7)] * 2
    for border in BORDERS:
        np.testing.assert_allclose(
            jump(blocks, point((5, 7)), border).law, diffusion(blocks, point((5, 7)), border).law, atol=1e-13
        )


LAWS = {
    "drift": StepLaw([1, 2, 4]),
    "tilted": StepLaw([[0, 0, 1], [1, 3, 1], [4, 1, 0]]),
    "tilted, no drift": StepLaw([[0, 0, 2], [1, 1, 1], [2, 0, 0]]),
}


@pytest.mark.proves("5", "Gaussian solution for constant coefficients", oracle="the density")
@pytest.mark.parametrize("name", LAWS)
@pytest.mark.parametrize("method", ["fft", "sparse"])
def test_diffusion_becomes_its_gaussian_at_second_order(name, method):
    law = LAWS[name]
    spacings, distances = [1, 0.5, 0.25] if method == "sparse" else [0.5, 0.25, 0.125], []
    for h in spacings:
        shape, blocks = (int(16 / h),) * law.ndim, [WalkBlock(law, 3.0)]
        walk = diffusion(blocks, point(shape), "periodic", spacing=h, method=method)
        distances.append(total_variation(walk.final, gaussian(blocks, shape, spacing=h)))
    assert slope(spacings, distances) == pytest.approx(2, abs=0.15)


@pytest.mark.proves("5", "reflecting, absorbing and periodic borders", oracle="the heat equation in sines")
def test_absorbed_mass_becomes_that_of_an_interval():
    """Heat from the middle of (0, 4), v = 2/3: survival sum_k (4 / pi k) sin(pi k / 2) exp(-v t (pi k / 4)^2 / 2)."""
    time, length, errors, spacings = 3.0, 4.0, [], [0.5, 0.25, 0.125]
    k = np.arange(1, 60, 2)
    exact = (4 / np.pi / k * np.sin(np.pi * k / 2) * np.exp(-(2 / 3) * time * (np.pi * k / length) ** 2 / 2)).sum()
    for h in spacings:
        n = round(length / h) - 1  # absorbing cells have their middle on the ends
        result = diffusion([WalkBlock(StepLaw.uniform(3), time)], point(n), spacing=h)
        errors.append(abs(1 - float(result.absorbed[-1]) - exact))
    assert slope(spacings, errors) == pytest.approx(2, abs=0.1)


@pytest.mark.proves("5", "forward equation with coefficients where the step starts", oracle="a finer grid")
def test_coefficients_in_space_converge_at_second_order():
    """On a ring, D(x) = rate(x) v in Ito's form: cells of 1, 1/2, 1/4 against 1/16, summed over bins of one pixel."""
    n = 16

    def bins(cells):
        x = (np.arange(n * cells) + 0.5) / cells
        rate = 2 + np.sin(2 * np.pi * x / n)
        start = np.exp(np.cos(2 * np.pi * (x - 5) / n))
        blocks = [WalkBlock(StepLaw([1, 1, 2]), rate)]
        final = diffusion(blocks, start / start.sum(), "periodic", spacing=1 / cells).final.to_numpy()
        return final.reshape(n, cells).sum(1)

    fine, cells = bins(16), np.array([1, 2, 4])
    distances = [total_variation(bins(k), fine) for k in cells]
    assert slope(1 / cells, distances) == pytest.approx(2, abs=0.15)
