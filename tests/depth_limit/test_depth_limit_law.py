"""Section 5: laws of a step, blocks, and what they refuse."""

from __future__ import annotations

import math
from dataclasses import FrozenInstanceError

import numpy as np
import pytest
import torch
from torch import nn

import capalloc
from capalloc.depth_limit import StepLaw, WalkBlock, chain, point
from capalloc.depth_limit.block import durations
from zoo import gaussian

RNG = np.random.default_rng


def test_moments_are_those_of_the_displacements():
    law = StepLaw([0.2, 0.3, 0.1, 0.4], origin=1)
    y = np.array([-1, 0, 1, 2])
    mean = float(law.probabilities @ y)
    assert law.mean == pytest.approx([mean])
    assert law.second_moment == pytest.approx(np.array([[law.probabilities @ y**2]]))
    assert law.covariance == pytest.approx(np.array([[law.probabilities @ (y - mean) ** 2]]))


@pytest.mark.proves("6", "receptive field: sqrt(sum of step variances)", oracle="(k^2 - 1) / 12")
@pytest.mark.parametrize(("size", "ndim", "dilation"), [(3, 1, 1), (5, 2, 3), (4, 1, 2), (2, 3, 1)])
def test_a_uniform_kernel_has_variance_of_section_6(size, ndim, dilation):
    law = StepLaw.uniform(size, ndim, dilation)
    np.testing.assert_allclose(law.covariance, dilation**2 * (size**2 - 1) / 12 * np.eye(ndim), atol=1e-12)
    middle = dilation * (size - 1) / 2
    np.testing.assert_allclose(law.mean, (middle - middle // 1) * np.ones(ndim), atol=1e-12)


def test_a_sum_of_steps_adds_means_and_covariances():
    a, b = StepLaw(RNG(0).random((3, 4))), StepLaw(RNG(1).random((2, 3)), origin=(1, 0))
    both = a.convolve(b)
    np.testing.assert_allclose(both.mean, a.mean + b.mean, atol=1e-13)
    np.testing.assert_allclose(both.covariance, a.covariance + b.covariance, atol=1e-13)
    assert both.probabilities.sum() == pytest.approx(1, abs=1e-14)


def test_dilation_multiplies_displacements_position_by_position():
    weights = RNG(0).random((5, 3))
    law = StepLaw(weights, origin=0)
    far = law.dilated(4)
    assert far.grid == (5,)
    np.testing.assert_allclose(far.mean, 4 * law.mean)
    np.testing.assert_allclose(far.second_moment, 16 * law.second_moment)


def test_a_law_per_position_is_a_law_for_each():
    weights = RNG(0).random((2, 3, 3, 5))
    law = StepLaw(weights, origin=(1, 2))
    assert law.grid == (2, 3)
    for place in np.ndindex(2, 3):
        alone = StepLaw(weights[place], origin=(1, 2))
        np.testing.assert_allclose(law.mean[place], alone.mean)
        np.testing.assert_allclose(law.covariance[place], alone.covariance)


@pytest.mark.parametrize(("kernel", "dilation"), [(3, 1), (3, 3), (4, 1), (4, 2), (5, 2)])
def test_the_direction_of_a_step_is_that_in_which_a_convolution_reads(kernel, dilation):
    """Squared gradients of the central output are where a plain layer's walk goes."""
    conv = nn.Conv1d(1, 1, kernel, padding="same", dilation=dilation, bias=False).double()
    x = gaussian(1, 1, 31).requires_grad_()
    conv(x)[0, 0, 15].backward()
    energy = x.grad[0, 0].square().numpy()
    walk = chain([WalkBlock(StepLaw.of_kernel(conv.weight, dilation))], point(31))
    np.testing.assert_allclose(walk.final, energy / energy.sum(), atol=1e-14)


def test_channels_of_a_kernel_add_up():
    weight = RNG(0).normal(size=(4, 2, 3, 3))
    law = StepLaw.of_kernel(weight)
    np.testing.assert_allclose(law.probabilities, (weight**2).sum((0, 1)) / (weight**2).sum())
    np.testing.assert_array_equal(law.probabilities, StepLaw.of_kernel(torch.tensor(weight)).probabilities)


class Stack(nn.Module):
    """h + conv(|h|) on a ring, after one plain layer."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        conv = lambda: nn.Conv1d(1, 1, 3, padding=1, padding_mode="circular", bias=False)  # noqa: E731
        self.plain = conv()
        self.branches = nn.ModuleList(conv() for _ in range(depth))

    def forward(self, x):
        h = self.plain(x)
        for branch in self.branches:
            h = h + branch(h.abs())
        return h


@pytest.mark.proves(
    "5", "the walk stays with probability 1 / (1 + eps^2)", oracle="the walk through a captured network"
)
def test_the_chain_is_the_walk_of_a_network():
    """On a ring with equal input energies, lambda = |w|^2: the Markov rule of the energy network is this chain."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Stack(5).double()
    x = torch.ones(1, 1, 21, dtype=torch.float64)
    walk = capalloc.walk(model, x, outputs=lambda y: y[:, :, 8], gates="unit")
    rates = [float(branch.weight.detach().square().sum()) for branch in model.branches]
    blocks = [WalkBlock(StepLaw.of_kernel(model.plain.weight))]
    blocks += [WalkBlock(StepLaw.of_kernel(c.weight), rate) for c, rate in zip(model.branches, rates, strict=True)]
    np.testing.assert_allclose(chain(blocks, point(21, 8), "periodic").final, walk.inputs[0], atol=1e-12)


def test_clocks_keep_what_they_say():
    rate = np.array([0.0, 1e-12, 0.3, 5.0, math.inf])
    block = WalkBlock(StepLaw.uniform(3), rate)
    np.testing.assert_allclose(block.step_probability, [0, 1e-12, 0.3 / 1.3, 5 / 6, 1], rtol=1e-11)
    np.testing.assert_array_equal(durations(block, "steps"), block.step_probability)
    finite = WalkBlock(StepLaw.uniform(3), rate[:-1])
    np.testing.assert_array_equal(durations(finite, "rate"), rate[:-1])
    np.testing.assert_allclose(np.exp(-durations(finite, "log")), 1 - finite.step_probability)


def test_values_are_frozen_and_copied():
    weights = np.ones(3)
    law, rate = StepLaw(weights), np.ones(4)
    block = WalkBlock(law, rate)
    weights[0], rate[0] = 7, 7
    assert law.probabilities[0] == pytest.approx(1 / 3)
    assert block.rate[0] == 1
    with pytest.raises(FrozenInstanceError):
        block.law = law
    with pytest.raises(ValueError, match="read-only"):
        law.probabilities[0] = 1


def test_they_say_what_they_are():
    law = StepLaw.uniform(3, ndim=2)
    assert repr(law) == "StepLaw(3 x 3 displacements, mean [0. 0.], standard deviation [0.816 0.816])"
    assert repr(StepLaw(np.ones((7, 3)), origin=1)) == "StepLaw(3 displacements, one law for each of 7 positions)"
    assert repr(WalkBlock(law)).endswith("rate inf)")
    assert repr(WalkBlock(StepLaw.uniform(1), [0.5, 2])).endswith("rate 0.5 .. 2)")


def test_a_point_is_central_by_default():
    assert point(5).tolist() == [0, 0, 1, 0, 0]
    assert point((2, 3))[1, 1] == 1
    assert point((2, 3), (0, 2))[0, 2] == 1


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: StepLaw([0.5, -0.1]), "finite and at least 0"),
        (lambda: StepLaw([0.5, math.nan]), "finite and at least 0"),
        (lambda: StepLaw([0.0, 0.0]), r"1 law\(s\) of a step have no weight"),
        (lambda: StepLaw(np.ones((2, 2)) * [[0], [1]], origin=0), r"1 law\(s\) of a step have no weight"),
        (lambda: StepLaw([1.0, 1.0], origin=2), r"origin \(2,\) lies outside the support, of shape \(2,\)"),
        (lambda: StepLaw(np.ones((2, 2, 2)), origin=0), "do not fit an origin of 1 axes"),
        (lambda: StepLaw(np.ones((1, 1, 1, 1))), "do not fit an origin of 4 axes"),
        (lambda: StepLaw(1.0), "do not fit an origin of 0 axes"),
        (lambda: StepLaw(np.ones((0, 3)), origin=0), "do not fit an origin of 1 axes"),
        (lambda: StepLaw.uniform(0), "kernel_size must be at least 1 on each of 1 axes, got 0"),
        (lambda: StepLaw.uniform((3, 3), ndim=1), "kernel_size must be at least 1 on each of 1 axes"),
        (lambda: StepLaw.uniform(3, dilation=0), "dilation must be at least 1 on each of 1 axes, got 0"),
        (lambda: StepLaw.of_kernel(np.ones((3, 3))), r"weight must be \(outputs, inputs, \*kernel\)"),
        (lambda: StepLaw.uniform(3).convolve(StepLaw.uniform(3, 2)), "must be the same everywhere and on as many axes"),
        (lambda: WalkBlock(StepLaw.uniform(3), -1.0), "rate must be at least 0, got -1"),
        (lambda: WalkBlock(StepLaw.uniform(3), [0.0, math.nan]), "rate must be at least 0, got nan"),
        (lambda: WalkBlock(StepLaw.uniform(3), np.ones((2, 2))), "rate of shape .* does not fit a law of 1 axes"),
        (lambda: WalkBlock(StepLaw(np.ones((4, 3)), origin=1), np.ones(5)), "does not fit a law of 1 axes on grid"),
        (lambda: point(()), "shape must have one axis at least, got none"),
        (lambda: point(5, 5), r"position \(5,\) lies outside a grid of shape \(5,\)"),
        (lambda: point((5, 5), 2), r"position \(2,\) lies outside a grid of shape \(5, 5\)"),
    ],
)
def test_refusals(make, match):
    with pytest.raises(ValueError, match=match):
        make()
