"""Section 5: chain, jump and diffusion against slow dense references, conservation laws and closed forms."""

from __future__ import annotations

import itertools
import math
from dataclasses import FrozenInstanceError

import matplotlib.pyplot as plt
import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import expm
from scipy.signal import convolve

from capalloc.depth_limit import Evolution, StepLaw, WalkBlock, chain, diffusion, gaussian, jump, point

BORDERS = ("periodic", "reflecting", "absorbing")
DESCRIPTIONS = (chain, jump, diffusion)


def rng(seed=0):
    return np.random.default_rng(seed)


# -- dense references, by loops ---------------------------------------------------------------------------------


def landing(place, shape, borders):
    """Where a walker that ends at `place`, perhaps outside, is put; None if it is lost."""
    put = []
    for z, n, border in zip(place, shape, borders, strict=True):
        if not 0 <= z < n and border == "absorbing":
            return None
        while not 0 <= z < n:
            if border == "periodic":
                z += -n if z >= n else n
                continue
            z = -1 - z if z < 0 else 2 * n - 1 - z
        put.append(z)
    return tuple(put)


def dense_moves(moves_at, shape, borders):
    """Entry (target, source) of what `moves_at(place)` -> {displacement: weight} brings; the last state is the lost."""
    cells = list(np.ndindex(*shape))
    number = {cell: k for k, cell in enumerate(cells)} | {None: len(cells)}
    matrix = np.zeros((len(cells) + 1, len(cells) + 1))
    for cell in cells:
        for y, weight in moves_at(cell).items():
            target = landing(tuple(int(a + b) for a, b in zip(cell, y, strict=True)), shape, borders)
            matrix[number[target], number[cell]] += weight
    return matrix


def law_at(block, cell):
    law = block.law.probabilities[cell] if block.law.grid else block.law.probabilities
    return {tuple(np.subtract(k, block.law.origin)): law[k] for k in np.ndindex(law.shape)}


def rate_at(block, cell):
    return float(block.rate[cell]) if block.rate.ndim else float(block.rate)


def dense_chain(block, shape, borders):
    def moves(cell):
        rate = rate_at(block, cell)
        step = 1.0 if math.isinf(rate) else rate / (1 + rate)
        table = {y: step * p for y, p in law_at(block, cell).items()}
        zero = (0,) * len(shape)
        table[zero] = table.get(zero, 0.0) + 1 - step
        return table

    matrix = dense_moves(moves, shape, borders)
    matrix[-1, -1] = 1
    return matrix


def generator(rates):
    return rates - np.diag(rates.sum(0))


def dense_jump(block, shape, borders):
    rates = lambda cell: {y: rate_at(block, cell) * p for y, p in law_at(block, cell).items()}  # noqa: E731
    return expm(generator(dense_moves(rates, shape, borders)))


def bernoulli(z):
    return 1.0 if abs(z) < 1e-12 else z / math.expm1(z)


def dense_diffusion(block, shape, borders, h=1.0):
    """For steps in a box of +-1: D is diagonally dominant, and moves go along axes and one diagonal."""

    def rates(cell):
        rate, law = rate_at(block, cell), law_at(block, cell)
        b = rate * sum(p * np.array(y) for y, p in law.items()) / h
        D = rate * sum(p * np.outer(y, y) for y, p in law.items()) / h**2
        if len(shape) == 1:
            table = {(1,): D[0, 0]}
        else:
            c = D[0, 1]
            table = {(1, 0): D[0, 0] - abs(c), (0, 1): D[1, 1] - abs(c), (1, 1) if c > 0 else (1, -1): abs(c)}
        slope, both = np.linalg.lstsq(D, b, rcond=1e-12)[0], {}
        for e, weight in table.items():
            for sign in (1, -1):
                key = tuple(sign * k for k in e)
                both[key] = weight / 2 * bernoulli(-2 * sign * float(np.dot(e, slope)))
        return both

    return expm(generator(dense_moves(rates, shape, borders)))


DENSE = {chain: dense_chain, jump: dense_jump, diffusion: dense_diffusion}


def random_block(shape, seed, rate_varies=True, law_varies=True, size=3, scale=1.5):
    random = rng(seed)
    support = (size,) * len(shape)
    weights = random.random((*shape, *support) if law_varies else support) ** 3
    rate = scale * random.random(shape if rate_varies else ())
    return WalkBlock(StepLaw(weights, origin=(size // 2,) * len(shape)), rate)


def random_start(shape, seed=9):
    weights = rng(seed).random(shape)
    return weights / weights.sum()


@pytest.mark.proves("5", "forward equation: chain, jump, diffusion", oracle="dense matrix exponentials")
@pytest.mark.parametrize("describe", DESCRIPTIONS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("border", [*BORDERS, ("reflecting", "absorbing"), ("absorbing", "periodic")])
@pytest.mark.parametrize("varies", [*itertools.product([False, True], repeat=2)])
def test_two_axes_against_dense_matrices(describe, border, varies):
    """Blocks that differ: the walk passes the last first. A step of 1 and a mirror that one bounce suffices for."""
    shape = (3, 4)
    borders = (border,) * 2 if isinstance(border, str) else border
    blocks = [random_block(shape, seed, *varies) for seed in range(3)]
    state = np.append(random_start(shape), 0)
    result = describe(blocks, random_start(shape), border)
    for depth, block in enumerate(reversed(blocks), start=1):
        state = DENSE[describe](block, shape, borders) @ state
        np.testing.assert_allclose(result.law[depth], state[:-1].reshape(shape), atol=1e-12)
        np.testing.assert_allclose(result.absorbed[depth], state[-1], atol=1e-12)


@pytest.mark.proves("5", "reflecting, absorbing and periodic borders", oracle="dense matrices")
@pytest.mark.parametrize("describe", [chain, jump], ids=lambda f: f.__name__)
@pytest.mark.parametrize("border", BORDERS)
@pytest.mark.parametrize("shape", [(3,), (2, 1, 3)])
def test_steps_wider_than_the_grid_against_dense_matrices(describe, border, shape):
    """Mirrored or turned round several times."""
    blocks = [random_block(shape, seed, size=9 if len(shape) == 1 else 5) for seed in range(2)]
    state = np.append(random_start(shape), 0)
    for block in reversed(blocks):
        state = DENSE[describe](block, shape, (border,) * len(shape)) @ state
    result = describe(blocks, random_start(shape), border)
    np.testing.assert_allclose(result.final, state[:-1].reshape(shape), atol=1e-12)


@pytest.mark.parametrize("border", BORDERS)
def test_diffusion_on_one_axis_with_cells_of_any_size(border):
    block = random_block((7,), 0)
    dense = dense_diffusion(block, (7,), (border,), h=0.4) @ np.append(random_start(7), 0)
    result = diffusion([block], random_start(7), border, spacing=0.4)
    np.testing.assert_allclose(result.final, dense[:-1], atol=1e-12)
    np.testing.assert_allclose(result.final["column"], 0.4 * np.arange(7))


# -- laws that hold whatever the coefficients -------------------------------------------------------------------


@st.composite
def walks(draw):
    shape = tuple(draw(st.lists(st.integers(1, 5), min_size=1, max_size=3)))
    seed = draw(st.integers(0, 2**31))
    varies = draw(st.booleans()), draw(st.booleans())
    size, scale = draw(st.sampled_from([1, 2, 3])), draw(st.sampled_from([0.0, 1e-9, 0.5, 30.0]))
    border = draw(st.lists(st.sampled_from(BORDERS), min_size=len(shape), max_size=len(shape)))
    return [random_block(shape, seed + k, *varies, size, scale) for k in range(2)], random_start(shape, seed), border


@pytest.mark.proves("5", "mass is conserved", oracle="random walks")
@settings(max_examples=60, deadline=None)
@given(walk=walks())
def test_mass_is_conserved_and_laws_are_not_negative(walk):
    """1e-12 for the mass: hundreds of terms of rounding size. Nothing below 0 at all."""
    for describe in DESCRIPTIONS:
        result = describe(*walk)
        assert float(result.law.min()) >= 0
        assert (np.diff(result.absorbed) >= -1e-14).all()
        if "absorbing" not in walk[2]:
            assert not result.absorbed.any()
        np.testing.assert_allclose(result.law.sum(result.space) + result.absorbed, 1, atol=1e-12)


@pytest.mark.parametrize("describe", DESCRIPTIONS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("shape", [(64,), (9, 8), (5, 4, 3)])
def test_fft_is_the_sparse_matrix(describe, shape):
    """Laws with drift and correlated axes; an even grid has a wave that its own mirror image is."""
    law = StepLaw(rng(1).random((3,) * len(shape)) ** 4)
    blocks = [WalkBlock(law, 0.7), WalkBlock(law.dilated(2), 1.3)]
    fast, slow = (describe(blocks, random_start(shape), "periodic", method=m) for m in ("fft", "sparse"))
    np.testing.assert_allclose(fast.law, slow.law, atol=1e-13)
    np.testing.assert_array_equal(describe(blocks, random_start(shape), "periodic").law, fast.law)


def test_auto_takes_the_matrix_where_coefficients_vary():
    blocks = [random_block((6,), 0), WalkBlock(StepLaw.uniform(3), 1.0)]
    for describe in DESCRIPTIONS:
        auto, sparse = (describe(blocks, point(6), "periodic", method=m) for m in ("auto", "sparse"))
        np.testing.assert_allclose(auto.law, sparse.law, atol=1e-14)


@pytest.mark.parametrize("describe", DESCRIPTIONS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("shape", [(9,), (6, 7), (4, 5, 3)])
def test_uniform_law_stays_between_mirrors(describe, shape):
    """The law of the step is even along every axis."""
    weights = rng(0).random((3,) * len(shape))
    for axis in range(len(shape)):
        weights = weights + np.flip(weights, axis)
    uniform = np.full(shape, 1 / math.prod(shape))
    result = describe([WalkBlock(StepLaw(weights), 2.0)] * 3, uniform, "reflecting")
    np.testing.assert_allclose(result.law, np.broadcast_to(uniform, (4, *shape)), atol=1e-13)
    assert describe([WalkBlock(StepLaw(np.eye(3)), 2.0)], np.full((4, 4), 1 / 16), "reflecting").final.std() > 1e-3


@pytest.mark.proves("5", "forward equation: chain, jump, diffusion", oracle="the symbol of one Fourier mode")
@pytest.mark.parametrize("describe", DESCRIPTIONS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("method", ["fft", "sparse"])
def test_the_slowest_wave_of_a_ring_turns_by_the_drift_and_fades_by_the_spread(describe, method):
    """E[exp(2 pi i x / n)] is multiplied in each block by the symbol; a symmetric law keeps its phase, the mean."""
    n, rate = 32, 0.8
    theta = 2 * np.pi / n
    for law in (StepLaw.uniform(3), StepLaw([0.1, 0.3, 0.6])):
        p = law.probabilities
        phi = p @ np.exp(1j * theta * np.arange(-1, 2))
        peclet = float(2 * law.mean[0] / law.second_moment[0, 0])
        up, down = (rate * (p[0] + p[2]) / 2 * bernoulli(-s * peclet) for s in (1, -1))
        symbol = {
            chain: 1 + rate / (1 + rate) * (phi - 1),
            jump: np.exp(rate * (phi - 1)),
            diffusion: np.exp(up * (np.exp(1j * theta) - 1) + down * (np.exp(-1j * theta) - 1)),
        }[describe]
        result = describe([WalkBlock(law, rate)] * 4, point(n), "periodic", method=method)
        waves = (result.law * np.exp(1j * theta * result.law["column"])).sum("column")
        waves = waves.to_numpy()
        np.testing.assert_allclose(waves, waves[0] * symbol ** np.arange(5), atol=1e-13)
        assert (abs(np.angle(symbol)) < 1e-14) == (law.mean[0] == pytest.approx(0))


@pytest.mark.proves("5", "reflecting, absorbing and periodic borders", oracle="sine series")
@pytest.mark.parametrize("describe", DESCRIPTIONS, ids=lambda f: f.__name__)
def test_survival_between_two_absorbing_ends(describe):
    """Steps of one to either side on n cells: sines sin(theta_k (x + 1)), theta_k = pi k / (n + 1)."""
    n, x, rate, depth = 12, 3, 0.6, 20
    theta = np.pi * np.arange(1, n + 1) / (n + 1)
    factor = {
        chain: (1 + rate * np.cos(theta)) / (1 + rate),
        jump: np.exp(-rate * (1 - np.cos(theta))),
        diffusion: np.exp(-rate * (1 - np.cos(theta))),
    }[describe]
    places = np.arange(1, n + 1)
    waves = np.sin(theta[:, None] * places)
    expected = 2 / (n + 1) * (np.sin(theta * (x + 1)) * factor**depth) @ waves
    result = describe([WalkBlock(StepLaw([1, 0, 1]), rate)] * depth, point(n, x))
    np.testing.assert_allclose(result.final, expected, atol=1e-13)
    assert float(result.absorbed[-1]) == pytest.approx(1 - expected.sum(), abs=1e-12)


def test_plain_layers_are_powers_of_convolution():
    laws = [StepLaw(rng(k).random((3, 3))) for k in range(4)]
    expected = np.ones((1, 1))
    for law in laws:
        expected = convolve(expected, law.probabilities)
    result = chain([WalkBlock(law, math.inf) for law in laws], point((13, 13)))
    np.testing.assert_allclose(result.final[2:11, 2:11], expected, atol=1e-15)
    assert result.final.sum() == pytest.approx(1, abs=1e-14)
    total = laws[0]
    for law in laws[1:]:
        total = total.convolve(law)
    np.testing.assert_allclose(chain([WalkBlock(total)], point((13, 13))).final, result.final, atol=1e-15)


def test_coefficients_in_blocks_are_exact_however_finely_depth_is_cut():
    """exp((s + t) Q) = exp(s Q) exp(t Q), for a generator that varies in space."""
    rate = 3 * rng(0).random((6, 7))
    law = StepLaw(rng(1).random((3, 3)))
    whole, part = WalkBlock(law, rate), WalkBlock(law, rate / 8)
    for describe in (jump, diffusion):
        one, eight = describe([whole], point((6, 7))), describe([part] * 8, point((6, 7)))
        np.testing.assert_allclose(one.final, eight.final, atol=1e-13)
        np.testing.assert_allclose(one.absorbed[-1], eight.absorbed[-1], atol=1e-13)


@pytest.mark.proves("5", "forward equation: chain, jump, diffusion", oracle="moments of independent steps")
def test_chain_and_jump_have_the_moments_of_independent_steps():
    """Far from borders: per block, mean s m and covariance s M - s^2 m m' (chain), t m and t M (jump)."""
    law, rates = StepLaw(rng(0).random((3, 3))), [0.2, 1.0, 0.5]
    blocks = [WalkBlock(law, rate) for rate in rates]
    s, m, M = np.array(rates) / (1 + np.array(rates)), law.mean, law.second_moment
    discrete, limit = chain(blocks, point((61, 61))), jump(blocks, point((61, 61)), clock="steps")
    np.testing.assert_allclose(discrete.mean[-1], 30 + s.sum() * m, atol=1e-12)
    np.testing.assert_allclose(discrete.covariance[-1], s.sum() * M - (s**2).sum() * np.outer(m, m), atol=1e-11)
    np.testing.assert_allclose(limit.mean[-1], 30 + s.sum() * m, atol=1e-9)
    np.testing.assert_allclose(limit.covariance[-1], s.sum() * M, atol=1e-8)  # the tail that the borders take
    np.testing.assert_allclose(discrete.deviation[-1], np.sqrt(np.diagonal(discrete.covariance[-1])), atol=1e-12)


@pytest.mark.proves("5", "Gaussian solution for constant coefficients", oracle="its covariance")
def test_an_anisotropic_diffusion_in_space_has_the_covariance_of_its_gaussian():
    """Moments of the scheme are exact without drift, here on 3 axes with a long tilted ellipsoid and moves to match."""
    law = StepLaw(np.eye(3)[:, None, :] * np.array([1.0, 0.2, 1.0])[None, :, None] + 0.02)
    blocks = [WalkBlock(law, 1.0), WalkBlock(law.dilated(2), 0.3)]
    result = diffusion(blocks, point((61, 61, 61)), "periodic", spacing=0.5)
    np.testing.assert_allclose(result.covariance[-1], (1 + 4 * 0.3) * law.second_moment, atol=1e-8)
    exact = gaussian(blocks, (61, 61, 61), spacing=0.5)
    for a, b in [("plane", "column"), ("row", "row"), ("plane", "row")]:
        moment = float((exact * (exact[a] - 15) * (exact[b] - 15)).sum())
        # a sum over cells stands for the integral: 1e-4 of a pixel squared at cells of half a pixel
        assert float(result.covariance[-1].sel(axis=a, other=b)) == pytest.approx(moment, abs=1e-4)


def test_a_gaussian_is_what_scipy_says_and_nothing_about_borders():
    blocks = [WalkBlock(StepLaw([0.1, 0.2, 0.7]), 4.0)] * 2
    law = gaussian(blocks, 201, 50, spacing=0.5)
    assert float(law.sum()) == pytest.approx(1, abs=1e-9)
    mean = float((law * law["column"]).sum())
    assert mean == pytest.approx(25 + 8 * 0.6, abs=1e-9)
    assert float((law * (law["column"] - mean) ** 2).sum()) == pytest.approx(8 * 0.8, abs=1e-9)
    half = gaussian(blocks, 201, 50, spacing=0.5, clock="steps")
    assert float((half * half["column"]).sum()) == pytest.approx(25 + 1.6 * 0.6, abs=1e-9)


def test_blocks_may_have_names():
    a, b = random_block((5,), 0), random_block((5,), 1)
    np.testing.assert_array_equal(chain({"a": a, "b": b}, point(5)).law, chain([a, b], point(5)).law)
    assert float(abs(chain([a, b], point(5)).final - chain([b, a], point(5)).final).max()) > 1e-3  # order matters


# -- the result -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def square():
    return jump([WalkBlock(StepLaw.uniform(3, 2), 0.5)] * 3, point((9, 11)))


def test_the_result_names_its_axes(square):
    assert square.law.dims == ("depth", "row", "column")
    assert square.law.shape == (4, 9, 11)
    assert square.final.dims == ("row", "column")
    assert square.covariance.dims == ("depth", "axis", "other")
    assert square.deviation.sel(axis="row")[0] == 0
    assert jump([], point((2, 2, 2))).space == ("plane", "row", "column")


def test_repr_says_it_all(square):
    text = repr(square)
    heading, certainty, fact, *_ = text.splitlines()
    assert heading == (
        "<capalloc.Evolution, 3 blocks on row 9 x column 11: description jump, borders absorbing, clock rate>"
    )
    assert certainty.split(maxsplit=2)[2].startswith("exact for the walk")
    assert fact.split() == ["absorbed", f"{float(square.absorbed[-1]):.4g}", "at", "the", "borders"]
    assert f"\n  row     4     {float(square.deviation[-1, 0]):.4g}\n  column  5 " in text
    mixed = chain([], point((2, 2)), ("periodic", "absorbing"))
    assert "borders periodic, absorbing" in repr(mixed)


def test_it_becomes_a_dataset_and_comes_back(square):
    data = square.to_xarray()
    assert data.attrs == {"description": "jump", "borders": "absorbing", "clock": "rate"}
    again = Evolution(data)
    xr.testing.assert_identical(again.law, square.law)
    assert repr(again) == repr(square)


def test_it_is_frozen(square):
    with pytest.raises(FrozenInstanceError):
        square.law = None


def test_pictures_of_one_two_and_three_axes(square):
    line = chain([WalkBlock(StepLaw.uniform(3))], point(9)).plot(title="after one layer")
    assert (line.get_xlabel(), line.get_ylabel(), line.get_title()) == ("column", "probability", "after one layer")
    np.testing.assert_allclose(line.lines[0].get_ydata()[3:6], 1 / 3)
    plt.close(line.figure)
    _, ax = plt.subplots()
    assert square.plot(ax, depth=0) is ax
    assert ax.images[0].get_array().max() == 1
    assert ax.images[0].colorbar.ax.get_ylabel() == "probability"
    plt.close(ax.figure)
    box = chain([], point((2, 3, 4))).plot()
    assert box.get_title().strip() == "(summed over plane)"
    plt.close(box.figure)


def test_moments_of_what_is_gone_are_nan():
    gone = chain([WalkBlock(StepLaw([1.0], origin=0).convolve(StepLaw([0, 0, 1.0])))], point(1))
    assert float(gone.absorbed[-1]) == 1
    assert math.isnan(gone.mean[-1, 0])
    assert math.isnan(gone.deviation[-1, 0])


# -- refusals ---------------------------------------------------------------------------------------------------

LAW = StepLaw.uniform(3)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: chain([], np.ones(4)), "start must sum to 1, got 4; divide it by its sum"),
        (lambda: chain([], [1.5, -0.5]), "start must be a law: finite entries of at least 0"),
        (lambda: chain([], [math.nan]), "start must be a law: finite entries of at least 0"),
        (lambda: chain([], 1.0), r"start must have one to three axes and some position, got shape \(\)"),
        (lambda: chain([], np.ones((1,) * 4)), "start must have one to three axes"),
        (lambda: chain([], point(4), "open"), "border must be one of .*, got 'open'"),
        (lambda: chain([], point(4), ("periodic", "periodic")), "border must be one of .*, or one for each of 1 axes"),
        (lambda: chain([], point(4), method="dense"), "method must be one of .*, got 'dense'"),
        (
            lambda: chain([WalkBlock(LAW)], point(4), method="fft"),
            "method 'fft' needs periodic borders and blocks that",
        ),
        (lambda: jump([random_block((4,), 0)], point(4), "periodic", method="fft"), "and a block on grid"),
        (lambda: chain([WalkBlock(LAW)], point((4, 4))), r"block 0 is for 1 axes, the start's grid is \(4, 4\)"),
        (lambda: chain([random_block((5,), 0)], point(4)), r"block 0 is for 1 axes and grid \(5,\), the start's grid"),
        (
            lambda: jump([WalkBlock(LAW)], point(4)),
            "of rate inf, lasts for ever on the clock 'rate': use chain, or clock=",
        ),
        (lambda: diffusion([WalkBlock(LAW)], point(4), clock="log"), "lasts for ever on the clock 'log'"),
        (lambda: jump([WalkBlock(LAW, 1.0)], point(4), clock="sun"), "clock must be one of .*, got 'sun'"),
        (lambda: diffusion([], point(4), spacing=0.0), "spacing must be a finite number of pixels above 0, got 0"),
        (lambda: gaussian([random_block((4,), 0)], 4), "gaussian needs blocks that are the same everywhere"),
        (
            lambda: gaussian([WalkBlock(StepLaw(np.eye(3)), 1.0)], (4, 4)),
            "without density: its covariance .* is singular",
        ),
    ],
)
def test_refused_values(make, match):
    with pytest.raises(ValueError, match=match):
        make()


def test_a_block_is_a_block():
    with pytest.raises(TypeError, match="blocks must be a sequence of WalkBlocks or a mapping, got"):
        chain([LAW], point(4))


def test_the_result_checks_what_it_is_given(square):
    with pytest.raises(ValueError, match=r"law has axes \('row', 'column'\); it needs \(depth, \*\)"):
        Evolution(square.data.isel(depth=-1))
    with pytest.raises(ValueError, match="law must be at least -1e-10, but holds -"):
        Evolution(square.data.assign(law=square.law - 1e-6))
    with pytest.raises(ValueError, match="law and absorbed must sum to 1 at every depth"):
        Evolution(square.data.assign(absorbed=square.absorbed + 0.1))
