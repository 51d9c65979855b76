"""Section 6: the effective field in closed form = the library's walk = gradients of random networks."""

from __future__ import annotations

import math
import shutil
from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from studies import receptive_field
from studies.receptive_field_estimates import (
    deviation,
    each_alike,
    excess_kurtosis,
    gaussian,
    jackknife,
    noise_floor,
    pooled,
    slope,
    total_variation,
)
from studies.receptive_field_measure import Case, measure_fields, slopes, to_pandas
from studies.receptive_field_networks import centre, draws, gradient, network, profile, walked
from studies.receptive_field_stacks import Stack, offsets
from studies.study import DOCS

import capalloc

generator = lambda seed=0: torch.Generator().manual_seed(seed)  # noqa: E731


# -- the prediction ----------------------------------------------------------------------------------------

# reach: wide enough for the whole theoretical field, so that no path leaves the image
STACKS = {
    "plain": Stack(3, 6, "linear", "signs", 3),
    "plain, kernel 7, ReLU": Stack(7, 3, "relu", "signs", 2),
    "dilated": Stack(3, 4, "linear", "signs", 3, dilations=(1, 2, 4)),
    "strided": Stack(5, 4, "linear", "signs", 3, strides=(2, 3)),
    "strided and dilated": Stack(3, 4, "relu", "signs", 3, dilations=(2, 1), strides=(1, 2)),
    "residual": Stack(3, 5, "linear", "signs", 3, branch=0.7),
    "residual, dilated": Stack(5, 3, "linear", "signs", 3, dilations=(1, 2), branch=5**-0.5),
    "uniform": Stack(3, 5, "tanh", "uniform", 2),
    "binomial": Stack(5, 3, "linear", "binomial", 2),
}


def whole(stack: Stack) -> torch.Tensor:
    """An image with room for the theoretical field, the output on its centre."""
    unit = math.prod(stack.strides)
    reach = -(-(stack.size // 2 + 2) // unit) * unit
    return torch.randn(1, 1, 2 * reach + 1, 2 * reach + 1, generator=generator(1), dtype=torch.float64)


@pytest.mark.parametrize("stack", STACKS.values(), ids=STACKS)
def test_closed_form_is_the_walk(stack):
    """Weights of one magnitude: every path of a network carries the same energy. 1e-10: sums of positive float64."""
    image = whole(stack)
    found = walked(network(stack, generator(), torch.float64), image, gates="unit")
    np.testing.assert_allclose(found, stack.law(image.shape[2] // 2), atol=1e-10)
    assert deviation(found) == pytest.approx(stack.deviation, abs=1e-10)


@pytest.mark.parametrize("name", ["plain", "strided and dilated", "residual, dilated"])
def test_receptive_field_gives_size_and_deviation(name):
    stack = STACKS[name]
    field = capalloc.receptive_field(network(stack, generator(), torch.float64), whole(stack), gates="unit")
    for axis in ("row", "column"):
        assert field.axes[axis].size == stack.size
        assert field.axes[axis].deviation == pytest.approx(stack.deviation, abs=1e-10)


@pytest.mark.parametrize("name", ["plain", "dilated", "strided"])
def test_walk_of_any_kernels_adds_their_variances(name):
    """One channel: steps of the walk have laws w_l^2 / |w_l|^2, and sqrt(sum_l variance_l scale_l^2) follows."""
    stack = replace(STACKS[name], weights="random", channels=1)
    model, image = network(stack, generator(3), torch.float64), whole(stack)
    convs = [layer for layer in model if isinstance(layer, torch.nn.Conv2d)]
    variance = 0.0
    for conv, scale in zip(convs, stack.scales, strict=True):
        step = conv.weight.detach()[0, 0].square().sum(1)
        step = (step / step.sum()).numpy()
        variance += scale**2 * float(deviation(step)) ** 2
    field = capalloc.receptive_field(model, image, gates="unit")
    assert field.axes["row"].deviation == pytest.approx(math.sqrt(variance), abs=1e-10)


@settings(max_examples=40, deadline=None)
@given(
    kernel=st.sampled_from([1, 3, 5]),
    depth=st.integers(2, 5),
    dilations=st.lists(st.integers(1, 3), min_size=1, max_size=3),
    strides=st.lists(st.integers(1, 3), max_size=2),
    branch=st.none() | st.floats(0.1, 2),
)
def test_law_has_the_deviation_and_the_support_of_its_stack(kernel, depth, dilations, strides, branch):
    stack = Stack(kernel, depth, dilations=tuple(dilations), strides=() if branch else tuple(strides), branch=branch)
    law = stack.law(stack.size)
    assert law.sum() == pytest.approx(1)
    assert deviation(law) == pytest.approx(stack.deviation, abs=1e-9)
    seen = np.flatnonzero(law)
    assert seen[-1] - seen[0] + 1 == stack.size


@pytest.mark.proves("6", "plain stack: sqrt(L) and Gaussian", oracle="cumulants in closed form")
@pytest.mark.parametrize("kernel", [3, 5, 7])
def test_plain_stacks_spread_as_the_root_and_tend_to_the_gaussian(kernel):
    """Cumulants add: variance L (k^2 - 1) / 12, excess kurtosis -6/5 (k^2 + 1) / (k^2 - 1) / L."""
    depths = np.array([5.0, 10, 20, 40, 80])
    stacks = [Stack(kernel, int(depth)) for depth in depths]
    laws = [stack.law(stack.size // 2) for stack in stacks]
    spread = np.array([deviation(law) for law in laws])
    assert slope(depths, spread, spread)[0] == pytest.approx(0.5, abs=1e-9)
    np.testing.assert_allclose(spread, np.sqrt(depths * (kernel**2 - 1) / 12))
    expected = -1.2 * (kernel**2 + 1) / (kernel**2 - 1) / depths
    np.testing.assert_allclose([excess_kurtosis(law) for law in laws], expected, atol=1e-9)
    distance = np.array([total_variation(law, gaussian(law)) for law in laws])
    # The next term of the Edgeworth expansion is smaller by 1/L: from L = 20 it changes the slope by less than 0.05.
    assert slope(depths[2:], distance[2:], distance[2:])[0] == pytest.approx(-1, abs=0.05)


@pytest.mark.proves("6", "1 / sqrt(L) residual: bounded whatever the depth", oracle="closed forms")
def test_residual_scalings():
    """lambda = 1: L/2 steps; 1/L: L / (L + 1), to one step's variance at rate 1/L; 1/L^2: to nothing."""
    step = (3**2 - 1) / 12
    variance = lambda depth, eps: Stack(3, depth, branch=eps).deviation ** 2  # noqa: E731
    depths = np.array([10, 40, 160, 640])
    assert [variance(depth, 1.0) for depth in depths] == pytest.approx(list(depths / 2 * step))
    gap = np.array([step - variance(depth, depth**-0.5) for depth in depths])
    np.testing.assert_allclose(gap, step / (depths + 1))
    vanishing = [variance(depth, 1 / depth) for depth in depths]
    np.testing.assert_allclose(vanishing, step * depths / (depths**2 + 1))


# -- gradients ---------------------------------------------------------------------------------------------


@pytest.mark.proves("6", "coherent weights", oracle="autograd, repeated boxes")
def test_uniform_linear_gradient_is_the_walk_and_its_square_is_not():
    """Coherent paths: the gradient is the repeated box, its square decays faster. 1e-6: float32 convolutions."""
    stack = Stack(3, 8, "linear", "uniform", channels=2)
    ((model, image),) = draws(stack, 1, generator())
    found = gradient(model, image)
    np.testing.assert_allclose(profile(found), stack.law(), atol=1e-6)
    squared = stack.law() ** 2
    np.testing.assert_allclose(pooled(profile(found**2)[None]), squared / squared.sum(), atol=1e-6)
    # of a Gaussian, the square has 1/sqrt(2) of the deviation; the excess kurtosis is 0.2 here
    assert deviation(squared / squared.sum()) / stack.deviation == pytest.approx(2**-0.5, rel=0.03)


@pytest.mark.proves("6", "coherent weights", oracle="autograd, variances in closed form")
def test_binomial_linear_gradient_follows_the_weights_and_the_walk_their_squares():
    """Row 1, 2, 1: variance 1/2 of a step of the gradient, 1/3 of the walk's."""
    stack = Stack(3, 6, "linear", "binomial", channels=1)
    ((model, image),) = draws(stack, 1, generator())
    assert deviation(profile(gradient(model, image))) == pytest.approx(math.sqrt(6 / 2), abs=1e-5)
    assert stack.deviation == pytest.approx(math.sqrt(6 / 3))


CASES = {
    "linear": Case("plain", Stack(3, 4, "linear"), 200, walks=3),
    "linear, deep": Case("plain", Stack(3, 12, "linear"), 100, walks=3),
    "ReLU": Case("plain", Stack(3, 4, "relu"), 200, walks=3),
    "ReLU, deep": Case("plain", Stack(3, 12, "relu"), 120, walks=3),
    "tanh": Case("plain", Stack(3, 4, "tanh"), 200, walks=3),
    "tanh, deep": Case("plain", Stack(3, 12, "tanh"), 120, walks=3),
    "kernel 5": Case("plain", Stack(5, 4, "relu"), 120, walks=3),
    "uniform ReLU": Case("plain", Stack(3, 8, "relu", "uniform", channels=1), 120, "gradient", walks=1),
    "dilated": Case("dilated", Stack(3, 4, dilations=(1, 2)), 120, walks=3),
    "strided": Case("strided", Stack(3, 4, strides=(2, 2)), 120, walks=3),
    "residual": Case("residual", Stack(3, 8, branch=8**-0.5), 200, walks=3),
}


@pytest.fixture(scope="module", params=[pytest.param(None, id="all", marks=pytest.mark.slow)])
def fields():
    return dict(zip(CASES, measure_fields(CASES.values()), strict=True))


@pytest.mark.proves("6", "mean of the squared gradient is the law of the walk", oracle="autograd on random networks")
@pytest.mark.parametrize("name", CASES)
def test_gradients_spread_as_predicted(fields, name):
    field = fields[name]
    value, error = field.measured
    predicted = field.case.stack.deviation
    assert abs(value - predicted) < 4 * error
    assert error < 0.06 * predicted  # or the line above would say nothing
    assert field.variation[0] < 2.5 * field.variation[1]


@pytest.mark.parametrize("name", CASES)
def test_walks_of_the_same_networks_spread_as_predicted(fields, name):
    """With random magnitudes and gates a network's walk is its own; 5 % is four times its spread over a few."""
    assert fields[name].walk[0] == pytest.approx(fields[name].case.stack.deviation, rel=0.05)


def test_slopes_in_depth(fields):
    found = slopes(to_pandas(fields[name] for name in ("ReLU", "ReLU, deep", "linear", "linear, deep")))
    assert list(found["predicted"]) == pytest.approx([0.5, 0.5])
    assert (abs(found["measured"] - 0.5) < 4 * found["error"]).all()
    assert (found["error"] < 0.05).all()


def test_draws_repeat_and_leave_the_global_generator_alone():
    state = torch.random.get_rng_state()
    first, again = (measure_fields([Case("plain", Stack(3, 2), 4, walks=1)], seed=5)[0] for _ in range(2))
    np.testing.assert_array_equal(first.law, again.law)
    assert first.measured == again.measured
    assert math.isnan(first.walk[1])  # of one network
    assert torch.equal(state, torch.random.get_rng_state())


def test_random_weights_keep_the_variance_of_pre_activations():
    """16 channels on 25^2 pixels of 20 networks: the variance at layer 3 is 1 to a few percent; borders are cut."""
    for activation in ("linear", "relu", "tanh"):
        stack = Stack(3, 4, activation)
        image = torch.randn(20, 1, 25, 25, generator=generator(1), dtype=torch.float64)
        rng = generator(2)
        seen = [network(stack, rng, torch.float64)[:5](one[None])[..., 4:-4, 4:-4].detach() for one in image]
        # log-normal over networks, so the mean over 20 of them is known to about 0.1
        assert float(torch.cat(seen).square().mean()) == pytest.approx(1, abs=0.3)


# -- estimates ---------------------------------------------------------------------------------------------


def counts(draws_: int, number: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Multinomial rows of a law, and the law."""
    law = Stack(3, 6).law(6)
    return np.random.default_rng(seed).multinomial(number, law, size=draws_).astype(float), law


def test_jackknife_error_is_that_of_the_deviation():
    """Var(s^2) = (mu_4 - sigma^4) / n of independent places, so sd(s) = sqrt(mu_4 - sigma^4) / (2 sigma sqrt(n))."""
    rows, law = counts(400, 50, 0)
    value, error = jackknife(deviation, rows)
    places = offsets(law)
    sigma, fourth = deviation(law), law @ places**4
    expected = math.sqrt(fourth - sigma**4) / (2 * sigma * math.sqrt(400 * 50))
    assert error == pytest.approx(expected, rel=0.15)  # an error from 400 draws is known to 1/sqrt(800) or so
    assert abs(value - sigma) < 4 * expected


def test_noise_floor_is_the_distance_that_noise_alone_makes():
    found = []
    for seed in range(40):
        rows, law = counts(100, 20, seed)
        found.append((total_variation(pooled(rows), law), noise_floor(rows, np.random.default_rng(seed))))
    distance, floor = np.mean(found, 0)
    assert floor == pytest.approx(distance, rel=0.1)
    assert math.isnan(noise_floor(rows[:1], np.random.default_rng(0)))


def test_draws_that_carry_nothing_are_left_out():
    rows = np.array([[0.0, 3, 0], [0, 0, 0], [1, 1, 2]])
    np.testing.assert_allclose(each_alike(rows), [[0, 1, 0], [0.25, 0.25, 0.5]])
    np.testing.assert_allclose(pooled(rows), np.array([1, 4, 2]) / 7)


def test_slope_is_weighted_least_squares():
    x, y = np.array([5.0, 10, 20, 40]), np.array([1.9, 2.5, 3.8, 5.0])
    errors = np.array([0.1, 0.05, 0.2, 0.3])
    (expected, _), cov = np.polyfit(np.log(x), np.log(y), 1, w=y / errors, cov="unscaled")
    assert slope(x, y, errors) == pytest.approx((expected, math.sqrt(cov[0, 0])))


# -- the study ---------------------------------------------------------------------------------------------


def test_study_writes_its_page(tmp_path):
    (tmp_path / "pictures").mkdir()
    page = tmp_path / "receptive-field.md"
    shutil.copy(DOCS / page.name, page)
    before = plt.get_fignums()
    study = receptive_field.run(quick=True)
    assert [len(figure.axes) for figure in study.pictures.values()] == [4]
    study.write(tmp_path)
    text = page.read_text(encoding="utf-8")
    for name, rows in study.tables.items():
        assert f"<!-- {name} -->\n\n{rows}\n\n<!-- end {name} -->" in text
    assert (tmp_path / "pictures" / "effective-field.png").read_bytes()[:4] == b"\x89PNG"
    assert plt.get_fignums() == before


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"kernel": 0}, "kernel must be at least 1, got 0"),
        ({"depth": 0}, "depth must be at least 1, got 0"),
        ({"channels": 0}, "channels must be at least 1, got 0"),
        ({"kernel": 4}, "kernel must be odd, to have a central entry, got 4"),
        ({"activation": "gelu"}, r"activation must be one of \('linear', 'relu', 'tanh'\), got 'gelu'"),
        ({"weights": "zero"}, "weights must be one of .*, got 'zero'"),
        ({"dilations": (0,)}, r"dilations and strides must be at least 1, got \(0,\)"),
        ({"strides": (1, 1, 2)}, "strides are for the first layers of 2, got 3"),
        ({"branch": 1.0, "activation": "tanh"}, "branch is for blocks without strides and of unit gain"),
        ({"branch": 1.0, "strides": (2,)}, r"got 'relu' and strides \(2,\)"),
    ],
)
def test_refusals(options, match):
    with pytest.raises(ValueError, match=match):
        Stack(**{"kernel": 3, "depth": 2, **options})


def test_centre_is_the_middle_position():
    assert float(centre(torch.arange(25.0).reshape(1, 1, 5, 5))) == 12
