"""Designs: settings, readings against the library's own methods on the built module, code, addresses, the server."""

from __future__ import annotations

import http.client
import math
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import capalloc
from capalloc import architectures
from capalloc._decoupling.activations import NAMED_ACTIVATIONS
from capalloc.app.design import ACTIVATIONS, RESIDUALS, Design, build, code, find_designs, nearest, read, search, serve
from capalloc.app.design.hermite_series import HermiteSeries
from capalloc.app.design.one_channel import position
from capalloc.app.design.query import from_query, to_query
from capalloc.app.design.server import bound
from capalloc.app.design.stack import HOMOGENEOUS_ACTIVATIONS, LIMITS, SIZES
from capalloc.app.design.starts import STARTS
from capalloc.app.design.verdicts import judged
from lacking import lack

SMALL = {
    "residual": Design(depth=4, width=3, size=15),
    "plain, tanh": Design(depth=5, width=2, size=16, residual="none", activation="tanh"),
    "strided, gelu": Design(depth=5, width=3, size=17, stride=2, strided=2, activation="gelu", residual="constant"),
    "dilated, leaky relu": Design(
        depth=6, width=3, ndim=1, size=40, cycle=5, activation="leaky_relu", residual="1/L", multiplier=2.0
    ),
    "wider than its input": Design(depth=3, width=2, ndim=1, size=12, dilation=5, cycle=3, kernel=5),
    "strided, linear": Design(depth=6, width=2, ndim=1, size=30, stride=3, strided=3, activation="linear"),
    "one unit, elu": Design(depth=1, width=1, ndim=1, size=30, kernel=1, activation="elu"),
    "blocks of elu": Design(depth=4, width=2, ndim=1, size=20, activation="elu", residual="constant"),
    "silu": Design(depth=3, width=2, size=12, kernel=5, activation="silu", stride=2, multiplier=0.5),
    "channels, biases": Design(depth=3, width=2, ndim=1, size=20, in_channels=3, bias=True),
    "norms, gelu": Design(depth=5, width=2, size=12, norm="batch", residual="constant", activation="gelu"),
    "norms, biases, strided": Design(
        depth=6, width=2, ndim=1, size=31, norm="batch", bias=True, stride=2, strided=2, residual="constant"
    ),
    "causal": Design(depth=4, width=2, ndim=1, size=40, causal=True, cycle=3, stride=2, bias=True),
    "causal, depthwise": Design(depth=3, width=3, ndim=1, size=33, causal=True, depthwise=True, activation="tanh"),
    "depthwise": Design(depth=4, width=3, size=13, depthwise=True, stride=2, strided=2, growth=2.0, bias=True),
    "averages": Design(depth=5, width=2, size=16, stride=2, strided=2, reduction="average", norm="batch"),
    "averages of three, tanh": Design(
        depth=5, width=2, ndim=1, size=40, stride=3, strided=2, reduction="average", activation="tanh", growth=1.5
    ),
    "down and up": Design(depth=8, width=3, size=16, stride=2, strided=2, upsampled=2, growth=2.0, depthwise=True),
    "maxima, gelu": Design(
        depth=5, width=3, size=17, stride=2, strided=2, reduction="max", activation="gelu", bias=True
    ),
    "maxima of three, plain": Design(
        depth=5, width=2, ndim=1, size=40, stride=3, strided=2, reduction="max", residual="none", growth=2.0, cycle=2
    ),
    "maxima, up, causal": Design(
        depth=8, width=3, ndim=1, size=33, stride=2, strided=2, reduction="max", upsampled=2, depthwise=True,
        causal=True, norm="layer",
    ),
    "instance norms": Design(
        depth=5, width=2, size=24, stride=2, strided=2, norm="instance", activation="gelu", residual="constant"
    ),
    "layer norms, tanh": Design(
        depth=5, width=2, size=12, norm="layer", activation="tanh", residual="constant", bias=True, stride=2, strided=2
    ),
    "widths by stage": Design(
        depth=8, ndim=1, size=32, stride=2, strided=2, upsampled=2, stages=(2, 4, 3), residual="constant", norm="batch"
    ),
    "widths by layer": Design(
        depth=5, ndim=1, size=30, stages=(3, 3, 2, 2, 4, 4), activation="tanh", residual="constant", norm="group"
    ),
    "all of it": Design(
        depth=9, width=2, ndim=1, size=45, stride=2, strided=2, upsampled=1, growth=2.0, depthwise=True, bias=True,
        norm="batch", causal=True, reduction="average", in_channels=2, activation="gelu", cycle=2, residual="constant",
    ),
}  # fmt: skip


def even(design: Design) -> nn.Module:
    """The built network in float64, weights of the magnitude that their variance says, norms without their epsilon.

    Layer, group and instance norms have the statistics of endlessly many entries, which are those of batches.
    """
    model = (
        build(replace(design, norm="batch") if design.norm in ("layer", "group", "instance") else design)
        .double()
        .eval()
    )
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim > 1:
                gain = (
                    1.0
                    if name == "stem.weight" or "pointwise" in name
                    else 1 / HermiteSeries.of(design.activation).mean_square
                )
                weight.copy_(weight.sign() * math.sqrt(gain / weight[0].numel()))
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.eps = 0.0
    return model


def examples(design: Design, number: int = 1) -> Tensor:
    shape = (number, design.in_channels, *[design.size] * design.ndim)
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def central(output: Tensor) -> Tensor:
    """One output position, with its axes kept."""
    middle = slice(output.shape[-1] // 2, output.shape[-1] // 2 + 1)
    return output[(slice(None), slice(None), *[middle] * (output.ndim - 2))]


def last(output: Tensor) -> Tensor:
    """The last output position, with its axis kept."""
    return output[..., -1:]


def read_position(design: Design) -> Callable[[Tensor], Tensor]:
    return last if design.causal else central


# settings


@pytest.mark.parametrize("name", LIMITS)
def test_numbers_beyond_their_limits_are_refused(name: str) -> None:
    low, high = LIMITS[name]
    for value in (type(getattr(Design(), name))(low) - 1, type(getattr(Design(), name))(high) + 1):
        with pytest.raises(ValueError, match=f"{name} must lie from {low} to {high}, got"):
            Design(**{name: value})


@pytest.mark.parametrize(
    ("given_", "match"),
    [
        ({"size": 65}, "size must lie from 8 to 64, got 65"),
        ({"size": 513, "ndim": 1}, "size must lie from 8 to 512, got 513"),
        ({"kernel": 4}, "kernel must be odd"),
        ({"depth": 2, "strided": 3}, "strided must be at most the depth, 2, got 3"),
        ({"residual": "1/L^2"}, "residual must be one of"),
        ({"activation": "step"}, "activation must be one of"),
        ({"multiplier": math.nan}, "multiplier must lie from"),
        ({"norm": "power"}, "norm must be one of"),
        ({"reduction": "median"}, "reduction must be one of"),
        ({"norm": "group", "causal": True, "ndim": 1}, "causal must be False with this norm, group"),
        ({"norm": "instance", "causal": True, "ndim": 1}, "causal must be False with this norm, instance"),
        (
            {"norm": "instance", "ndim": 1, "size": 8, "stride": 3, "strided": 3, "depth": 9},
            "size must leave two positions to every instance norm",
        ),
        ({"norm": "layer", "width": 1}, "width must be at least 2 with a layer norm"),
        ({"norm": "layer", "stages": (1,)}, "stages must be at least 2 with a layer norm"),
        ({"stages": (4, 2000), "stride": 2, "strided": 2}, "stages must lie from 1 to 1024, got 2000"),
        (
            {"stages": (4, 8, 8), "depth": 4},
            "stages must be 1 widths, .*, or 5, one for the stem and each layer, got 3",
        ),
        ({"causal": True}, "causal must be False with two axes"),
        ({"strided": 1, "upsampled": 2, "stride": 2}, "upsampled must be at most strided, 1, got 2"),
        ({"depth": 3, "strided": 2, "upsampled": 1}, "strided must be at most half the depth, .*, 1, got 2"),
        ({"size": 8, "stride": 3, "strided": 3, "reduction": "average"}, "size must leave a position to every average"),
    ],
)
def test_settings_that_make_no_design_are_refused(given_: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        Design(**given_)


@pytest.mark.parametrize("given_", [{"depth": 2.0}, {"width": True}, {"activation": None}, {"multiplier": "1"}])
def test_settings_of_another_type_are_refused(given_: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match=f"{next(iter(given_))} must be an? (integer|text|number), got"):
        Design(**given_)


def test_strides_spread_from_the_stem_and_leave_no_skip_there() -> None:
    design = Design(depth=12, stride=2, strided=3)
    assert [k for k, stride in enumerate(design.strides) if stride == 2] == [0, 4, 8]
    assert [k + 1 for k, skip in enumerate(design.skips) if not skip] == [4, 8]


def test_dilations_double_through_a_cycle() -> None:
    assert Design(depth=7, dilation=3, cycle=3).dilations == (3, 6, 12, 3, 6, 12, 3)


@pytest.mark.parametrize(("law", "branch"), [("none", None), ("constant", 0.5), ("1/sqrt(L)", 0.125), ("1/L", 0.03125)])
def test_the_branch_multiplier_follows_its_law(law: str, branch: float | None) -> None:
    assert Design(depth=16, residual=law, multiplier=0.5).branch == branch


def test_widths_are_given_by_resolution_or_by_layer() -> None:
    unet = Design(depth=8, stride=2, strided=2, upsampled=2, stages=(2, 4, 3), residual="none")
    assert unet.widths == (1, 2, 2, 4, 4, 4, 4, 2, 2, 3)
    free = Design(depth=4, stages=[2, 2, 5, 5, 3], residual="constant")
    assert free.widths == (1, 2, 2, 5, 5, 3)
    assert free.skips == (True, False, True, False)


def test_maxima_start_behind_the_first_activation() -> None:
    design = Design(depth=12, stride=2, strided=3, reduction="max", size=45)
    assert [k for k, stride in enumerate(design.strides) if stride == 2] == [1, 5, 9]
    assert design.sizes == (45, 45, *[22] * 4, *[11] * 4, *[5] * 4)


# the built network


@pytest.mark.parametrize("design", SMALL.values(), ids=SMALL)
def test_the_network_has_the_parameters_counted(design: Design) -> None:
    assert sum(p.numel() for p in build(design).parameters()) == design.num_params


def standard(activation: str, **more: Any) -> Design:
    residual = "none" if activation in HOMOGENEOUS_ACTIVATIONS and not more else "constant"
    return Design(depth=4, width=48, ndim=1, size=128, residual=residual, activation=activation, **more)


@pytest.mark.parametrize(
    "design",
    [
        *map(standard, ACTIVATIONS),
        standard("relu", norm="batch"),
        standard("tanh", norm="batch", depthwise=True, stride=2, strided=2),
        standard("gelu", stride=2, strided=2, reduction="average", growth=1.5),
        standard("silu", stride=2, strided=2, upsampled=1, causal=True, in_channels=3),
        standard("relu", norm="layer"),
        standard("gelu", stride=2, strided=2, reduction="max", in_channels=8),
        standard("leaky_relu", stride=3, reduction="max", norm="layer", in_channels=8),
        standard("tanh", norm="group"),
        standard("relu", norm="instance"),
    ],
    ids=str,
)
def test_activations_read_variance_one(design: Design) -> None:
    """On average over 24 draws of the weights, away from borders: each layer of 48 units scatters by some 20 %."""
    found: list[float] = []

    def note(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        found.append(float(inputs[0].detach()[..., 8:-8].square().mean()))

    for seed in range(24):
        model = build(design, seed).eval()
        for module in model.modules():
            if type(module) is type(NAMED_ACTIVATIONS[design.activation]()):
                module.register_forward_pre_hook(note)
        model(examples(design).float())
    np.testing.assert_allclose(np.reshape(found, (24, design.depth + 1)).mean(0), 1, atol=0.2)


@pytest.mark.parametrize("activation", ["linear", "relu", "tanh"])
@pytest.mark.parametrize("rho", [0.0, 0.4])
def test_the_largest_of_two_has_closed_moments(activation: str, rho: float) -> None:
    """E max^2 = 1 of two unit Gaussians, however they correlate, and E max = sqrt((1 - rho) / pi); others by draws."""
    found = HermiteSeries.of(activation).largest(rho, 2)
    if activation == "linear":
        assert found.mean_square == pytest.approx(1, abs=1e-3)
        assert found.decoupling == pytest.approx(0.5, abs=1e-9)
        # Two maxima share rho of the variance, and a mean each.
        assert found.correlation == pytest.approx(rho + (1 - rho) / math.pi, abs=1e-3)
    generator = torch.Generator().manual_seed(0)
    common, own = (torch.randn(400_000, n, dtype=torch.float64, generator=generator) for n in (1, 4))
    z = (rho**0.5 * common + (1 - rho) ** 0.5 * own).reshape(-1, 2, 2)
    largest = NAMED_ACTIVATIONS[activation]()(z).amax(2)
    assert found.mean_square == pytest.approx(float(largest.square().mean()), rel=0.01)
    assert found.correlation == pytest.approx(float(largest.prod(1).mean() / largest.square().mean()), abs=0.01)


def test_building_leaves_the_random_state_alone() -> None:
    before = torch.random.get_rng_state()
    first, second = build(Design(depth=2), seed=3), build(Design(depth=2), seed=3)
    assert torch.equal(before, torch.random.get_rng_state())
    for mine, other in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(mine, other)


# readings


@pytest.mark.parametrize("design", SMALL.values(), ids=SMALL)
def test_the_map_is_that_of_propagate(design: Design) -> None:
    """To 1e-9 of the total: all weights of a layer are of one magnitude, gates are those of unit Gaussians."""
    reading = read(design)
    model, x = even(design), examples(design)
    found = capalloc.propagate(model, x, read_position(design), gates="gaussian", solver="markov")
    np.testing.assert_allclose(reading.capacity, found.capacity.to_numpy().sum(0), atol=1e-9 * reading.total)
    assert reading.constant == pytest.approx(found.bias, abs=1e-9 * reading.total)
    assert found.total == pytest.approx(reading.total, rel=1e-9)
    assert found.attrs["symmetries"] == reading.symmetries
    assert found.attrs["unused_params"] == reading.num_params - reading.alive


@pytest.mark.parametrize("design", SMALL.values(), ids=SMALL)
def test_the_field_is_that_of_receptive_field(design: Design) -> None:
    reading = read(design)
    at = [position(design)] * design.ndim
    found = capalloc.receptive_field(even(design), examples(design), output_position=at, gates="gaussian")
    np.testing.assert_allclose(reading.law, found.map.to_numpy().sum(0) / found.map.to_numpy().sum(), atol=1e-9)
    axis = list(found.axes.values())[-1]
    assert reading.field == (axis.start, axis.stop)
    assert reading.deviation == pytest.approx(axis.deviation, abs=1e-8)
    assert [int(region.sum()) for region in reading.regions] == [found.area_68, found.area_95]


@settings(max_examples=4, deadline=None, derandomize=True)
@given(
    st.builds(
        Design,
        depth=st.integers(4, 6),
        kernel=st.sampled_from([1, 3, 5]),
        dilation=st.integers(1, 3),
        cycle=st.integers(1, 3),
        stride=st.integers(1, 3),
        strided=st.integers(1, 3),
        width=st.integers(1, 3),
        residual=st.sampled_from(list(RESIDUALS)),
        multiplier=st.sampled_from([0.1, 1.0, 2.0]),
        activation=st.sampled_from(ACTIVATIONS),
        ndim=st.just(1),
        size=st.integers(8, 30),
    )
)
def test_any_design_reads_as_propagate_does(design: Design) -> None:
    reading = read(design)
    found = capalloc.propagate(even(design), examples(design), central, gates="gaussian", solver="markov")
    np.testing.assert_allclose(reading.capacity, found.capacity.to_numpy()[0], atol=1e-8 * max(reading.total, 1))
    assert reading.capacity.sum() == pytest.approx(reading.total, rel=1e-9)


@pytest.mark.parametrize("norm", ["layer", "group", "instance"])
def test_norms_of_many_channels_read_as_propagate_does(norm: str) -> None:
    """With the statistics of 8 examples and no gates: to 5 % of the capacity, of 32 channels and then 128."""
    design = Design(
        depth=3, width=128, ndim=1, size=32, norm=norm, residual="constant", activation="linear", in_channels=32
    )
    model, x = build(design).eval(), examples(design, 8).float()
    found, reading = capalloc.propagate(model, x, central, solver="markov"), read(design)
    assert found.total == pytest.approx(reading.total, rel=1e-6)
    assert abs(reading.capacity - found.capacity.to_numpy().sum(0)).sum() < 0.05 * reading.total


def test_capacity_adds_up_for_the_largest_designs() -> None:
    for design in (
        Design(depth=100, kernel=11, size=64, residual="constant", multiplier=2.0, activation="tanh"),
        Design(depth=100, kernel=11, ndim=1, size=512, cycle=10, residual="1/L", multiplier=0.05),
    ):
        reading = read(design)
        assert np.isfinite(reading.capacity).all()
        assert reading.capacity.sum() == pytest.approx(reading.total, rel=1e-9)


@pytest.mark.parametrize("design", [d for d in SMALL.values() if d.activation == "linear"])
def test_rates_without_gates_are_exactly_those_of_scaling(design: Design) -> None:
    found = capalloc.scaling(even(design), examples(design))
    rates = read(design).rates
    np.testing.assert_allclose(found.data["rate"], rates[np.isfinite(rates)], rtol=1e-9)


def test_rates_behind_norms_fall_with_depth() -> None:
    """lambda_k = eps^2 / (1 + k eps^2), so that T = log(1 + L eps^2), less the little that zero padding takes."""
    for eps, depth in ((1.0, 40), (0.5, 12)):
        reading = read(Design(depth=depth, ndim=1, size=512, norm="batch", residual="constant", multiplier=eps))
        assert abs(reading.T / math.log1p(depth * eps**2) - 1) < 5e-3


@pytest.mark.parametrize("activation", ["relu", "gelu", "tanh"])
def test_rates_and_phase_are_those_of_scaling(activation: str) -> None:
    """To 6 % with random weights and the gates of real examples, at width 64."""
    design = Design(depth=8, width=64, ndim=1, size=64, activation=activation, residual="1/sqrt(L)")
    found, reading = capalloc.scaling(build(design), examples(design, 8).float()), read(design)
    assert abs(reading.T / found.T - 1) < 0.06
    assert reading.phase == found.phase == "balanced"


@pytest.mark.parametrize(
    ("settings_", "phase"),
    [
        ({"residual": "none"}, "plain"),
        ({"residual": "constant"}, "strong"),
        ({"residual": "constant", "depth": 64}, "degenerate"),
        ({"residual": "1/L"}, "trivial"),
        ({}, "balanced"),
    ],
)
def test_phases_follow_the_residual_law(settings_: dict[str, Any], phase: str) -> None:
    assert read(Design(**settings_)).phase == phase


def test_total_change_of_unit_gain_branches() -> None:
    """L log(1 + 1/L), less the little that zero padding takes."""
    reading = read(Design(depth=20, ndim=1, size=512))
    assert abs(reading.T / (20 * math.log1p(1 / 20)) - 1) < 2e-3
    assert math.isnan(read(Design(residual="none")).T)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("residual", ["none", "constant"])
def test_gradients_follow_the_law_of_shattering(activation: str, residual: str) -> None:
    """To 1e-4: the series of the gates against quadrature and closed forms."""
    reading = read(Design(depth=12, ndim=1, size=64, activation=activation, residual=residual))
    law = capalloc.gates.gradient_correlation([*reading.rates, math.inf], 0.0, activation)
    np.testing.assert_allclose(reading.gradient, law["gradient"], atol=1e-4)
    assert reading.index == pytest.approx(float(law["index"][-1]), abs=1e-3)


@pytest.mark.parametrize("residual", ["none", "1/sqrt(L)"])
def test_shattering_of_the_network_is_as_read(residual: str) -> None:
    """The correlation that real gates predict to 0.06 and the index to 10 %, mean of 3 draws of 64 channels."""
    design = Design(depth=6, width=64, ndim=1, size=32, residual=residual)
    reading, x = read(design), examples(design, 6).float()
    found = [capalloc.shattering(build(design, seed), x, num_lines=1, num_probes=2) for seed in range(1, 4)]
    assert np.mean([one.correlation for one in found]) == pytest.approx(reading.correlation, abs=0.06)
    assert np.mean([one.index for one in found]) == pytest.approx(reading.index, rel=0.1)


@pytest.mark.parametrize(
    "more",
    [
        {"residual": "none"},
        {},
        {"residual": "none", "stride": 3, "strided": 2, "reduction": "average", "activation": "gelu"},
        {"residual": "constant", "norm": "batch", "depthwise": True},
        {"residual": "constant", "norm": "layer", "in_channels": 32},
        {"residual": "none", "stride": 2, "strided": 2, "reduction": "max"},
    ],
    ids=str,
)
def test_gradients_of_the_network_correlate_as_read(more: dict[str, Any]) -> None:
    """E<g, g'> / E|g|^2 of the central output over 60 draws of 64 channels, to 0.06: about two standard errors."""
    design = Design(depth=6, width=64, ndim=1, size=33, **more)
    across = own = 0.0
    for seed in range(60):
        x = torch.randn(8, design.in_channels, 33, generator=torch.Generator().manual_seed(seed)).requires_grad_()
        (gradient,) = torch.autograd.grad(central(build(design, seed).eval()(x)).sum(), x)
        products = gradient.flatten(1) @ gradient.flatten(1).T
        own += float(products.trace()) / 8
        across += float(products.sum() - products.trace()) / 56
    assert across / own == pytest.approx(read(design).correlation, abs=0.06)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_moments_are_those_of_quadrature(activation: str) -> None:
    series = HermiteSeries.of(activation)
    assert series.mean_squared_gate == pytest.approx(
        float(capalloc.gates.gaussian_gate_moment(activation, 1.0)), abs=1e-9
    )
    z = torch.randn(200_000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert series.mean_square == pytest.approx(float(NAMED_ACTIVATIONS[activation]()(z).square().mean()), rel=0.02)


def test_the_theoretical_field_of_a_wavenet_is_the_published_one() -> None:
    """Two cycles of dilations 1 .. 512 and kernel 2 see 2047 samples; kernel 3 twice as many, and 2 for the stem."""
    assert read(Design(depth=20, cycle=10, kernel=3, ndim=1, size=512)).extent == 2 * 2046 + 1 + 2


@pytest.mark.parametrize(
    ("design", "words"),
    [
        (Design(depth=30), "larger than the input"),
        (Design(depth=4, ndim=1, size=8, dilation=8), "only ever read padding"),
        (Design(activation="linear"), "decouples nothing"),
        (Design(residual="constant", depth=64), "gradients shatter"),
        (Design(residual="1/L"), "propagate nothing"),
    ],
)
def test_notes_warn(design: Design, words: str) -> None:
    assert any(words in note for note in read(design).notes)


def test_a_sound_design_has_no_notes() -> None:
    assert read(Design()).notes == ()


@pytest.mark.parametrize("design", SMALL.values(), ids=SMALL)
def test_operations_and_memory_are_those_of_the_network(design: Design) -> None:
    model, written = build(design).eval(), list[int]()
    for module in model.modules():
        if not [*module.children()] and not isinstance(module, nn.Identity):
            module.register_forward_hook(lambda _module, _inputs, output: written.append(output.numel()))
    with FlopCounterMode(display=False) as counter:
        model(examples(design).float())
    reading = read(design)
    assert reading.flops == counter.get_total_flops()
    assert reading.memory == 4 * sum(written) + (4 * idle(design) if design.activation == "linear" else 0)


def idle(design: Design) -> int:
    """Values that a linear activation hands on, which the network does not call a module of its own."""
    return sum(size**design.ndim * width for size, width in zip(design.sizes[1:], design.widths[1:], strict=True))


# code


def run(text: str) -> Callable[[], nn.Module]:
    found: dict[str, Any] = {"__name__": "designed"}
    exec(compile(text, "designed.py", "exec"), found)
    return found["Network"]


WRITTEN = {
    **SMALL,
    "plain, strided, dilated": Design(depth=5, width=2, residual="none", stride=2, strided=2, cycle=2, dilation=2),
    "mixed, curved, dilated": Design(depth=6, width=2, stride=2, strided=3, cycle=3, kernel=5, activation="tanh"),
    "mixed, relu": Design(depth=6, width=2, stride=2, strided=3, residual="1/L", ndim=1, size=31),
    "all strided": Design(depth=4, width=2, stride=2, strided=4, activation="silu"),
    "kernel 1, dilated": Design(depth=3, width=2, kernel=1, cycle=3),
    "kernel 1, causal": Design(depth=3, width=2, kernel=1, cycle=3, ndim=1, size=16, causal=True),
    "upsampled, plain": Design(depth=6, width=2, stride=2, upsampled=1, growth=1.5, residual="none"),
    "instance norms, one axis": Design(depth=3, width=2, ndim=1, size=16, norm="instance", bias=True),
    "group norms": Design(depth=3, width=2, norm="group", activation="elu", bias=True),
    "maxima, mixed": Design(depth=6, width=2, stride=2, strided=2, reduction="max", activation="silu", norm="layer"),
    "widths by layer, plain": Design(depth=3, stages=(2, 3, 4, 5), residual="none"),
    "widths by layer, strided": Design(
        depth=6, stages=(2, 2, 3, 3, 4, 4, 4), stride=2, strided=2, upsampled=1, norm="batch"
    ),
    "averages, plain": Design(depth=6, width=2, stride=3, reduction="average", residual="none", bias=True),
    **SMALL,
}


@pytest.mark.parametrize("design", WRITTEN.values(), ids=WRITTEN)
def test_the_code_is_the_network_that_is_built(design: Design) -> None:
    built = build(design)
    with torch.random.fork_rng(devices=[]):
        written = run(code(design))()
    assert [*written.state_dict()] == [*built.state_dict()]
    torch.testing.assert_close(dict(written.named_buffers()), dict(built.named_buffers()))
    written.load_state_dict(built.state_dict())
    x = examples(design, 2).float()
    torch.testing.assert_close(written(x), built(x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("design", WRITTEN.values(), ids=WRITTEN)
def test_the_code_draws_weights_of_the_same_variance(design: Design) -> None:
    wide = replace(design, width=48, stages=tuple(12 * width for width in design.stages))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        written = run(code(wide))()
    pairs = list(zip(written.parameters(), build(wide).parameters(), strict=True))
    for mine, other in pairs:
        if mine.ndim == 1:  # of norms, and biases
            torch.testing.assert_close(mine, other)
            continue
        assert float(mine.detach().std() / other.detach().std()) == pytest.approx(
            1, abs=0.5 if mine.numel() < 1000 else 0.06
        )


def test_the_code_imports_torch_alone() -> None:
    imports = [line for line in code(Design()).splitlines() if "import" in line]
    assert imports == ["import torch", "from torch import nn"]


# addresses


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    st.integers(1, 100), st.sampled_from(list(RESIDUALS)), st.integers(1, 40), st.sampled_from([1, 2]), st.booleans()
)
def test_an_address_leads_back_to_its_designs(depth: int, residual: str, steps: int, ndim: int, two: bool) -> None:
    design = Design(depth=depth, residual=residual, multiplier=round(0.05 * steps, 2), ndim=ndim)
    second = Design(size=10) if two else None
    assert from_query("?" + to_query(design, second)) == (design, second)


def test_an_address_leaves_defaults_out() -> None:
    assert to_query(Design()) == ""
    assert to_query(Design(depth=3), Design()) == "depth=3&b.depth=16"
    for design in SMALL.values():
        assert from_query(to_query(design, design)) == (design, design)


@pytest.mark.parametrize(
    ("query", "match"),
    [
        ("?deep=3", "which is no setting; there are depth, kernel"),
        ("?depth=three", "depth must be a whole number, got 'three'"),
        ("?multiplier=x", "multiplier must be a number, got 'x'"),
        ("?depth=1000000000", "depth must lie from 1 to 100"),
        ("?depth=3&depth=4", "sets 'depth' twice"),
        ("?causal=perhaps", "causal must be True or False, got 'perhaps'"),
        ("?" + "a" * 2000, "at most 2000 are read"),
        ("?stages=16;32", "stages must be whole numbers with commas between, got '16;32'"),
    ],
)
def test_bad_addresses_say_what_is_wrong(query: str, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        from_query(query)


# figures and callbacks


def test_the_map_of_a_figure_is_the_reading() -> None:
    figures = pytest.importorskip("capalloc.app.design.figures")
    reading = read(Design(size=20))
    heat, *rings, box = figures.map_figure(reading, "A")["data"]
    np.testing.assert_allclose(heat["z"], reading.capacity, rtol=1e-5, atol=1e-9)
    assert [np.sum(ring["z"]) for ring in rings] == [region.sum() for region in reading.regions]
    assert (min(box["x"]), max(box["y"])) == (reading.field[0] - 0.5, reading.field[1] - 0.5)


def test_a_map_of_one_axis_has_bands() -> None:
    figures = pytest.importorskip("capalloc.app.design.figures")
    reading = read(Design(ndim=1, size=50))
    line, *bands = figures.map_figure(reading, "B")["data"]
    np.testing.assert_allclose(line["y"], reading.capacity, rtol=1e-5)
    assert [len(band["x"]) for band in bands[:2]] == [region.sum() for region in reading.regions]


def test_logarithmic_maps_hold_the_same_numbers() -> None:
    figures = pytest.importorskip("capalloc.app.design.figures")
    reading = read(Design(size=20))
    heat = figures.map_figure(reading, "A", log=True)["data"][0]
    shown = np.array(heat["z"], float)
    seen = reading.capacity > reading.capacity.max() * figures.SHOWN_RANGE
    np.testing.assert_allclose(10 ** shown[seen], reading.capacity[seen], rtol=2e-4)
    assert np.isnan(shown[~seen]).all()
    np.testing.assert_allclose(heat["customdata"], reading.capacity, rtol=1e-5, atol=1e-9)
    ticks = heat["colorbar"]
    assert [10.0**value for value in ticks["tickvals"]] == pytest.approx([float(text) for text in ticks["ticktext"]])
    assert figures.map_figure(read(Design(ndim=1, size=50)), "B", log=True)["layout"]["yaxis"]["type"] == "log"


def test_figures_are_what_plotly_takes() -> None:
    graph_objects = pytest.importorskip("plotly.graph_objects")
    from capalloc.app.design.figures import curves, gradient_figure, map_figure, profile_figure

    for design in (Design(), Design(ndim=1, size=50)):
        kept = {"A": curves(read(design)), "B": curves(read(design))}
        maps = [map_figure(read(design), "A", log) for log in (False, True)]
        for figure in (*maps, profile_figure(kept), gradient_figure(kept)):
            graph_objects.Figure(figure)  # raises on a name or value that plotly does not know


def test_the_table_says_what_was_read() -> None:
    rows = {row.name: row for row in judged(read(Design(residual="none", depth=30)))}
    assert rows["Predicted capacity"].value == f"{read(Design(residual='none', depth=30)).total:,}"
    assert rows["Theoretical field"].value == "63 on an axis, 45 of them inside the input"
    assert rows["Total change T"].value == "no skip connections"
    assert rows["Gradient correlation"].tone == "mind"


@pytest.mark.parametrize(
    ("design", "name", "words", "tone"),
    [
        (Design(), "Total change T", "branches and skips both carry", "good"),
        (Design(residual="constant", depth=64), "Total change T", "scale branches down", "mind"),
        (Design(residual="1/L"), "Total change T", "scale branches up", "mind"),
        (Design(), "Gradient correlation", "alike enough to train", "good"),
        (Design(residual="none", depth=40, norm="batch"), "Gradient correlation", "norms may carry it", ""),
        (Design(depth=1, kernel=11, ndim=1, size=30), "Effective field", "fills its field", "good"),
        (Design(), "Effective field", "hardly leaves the middle", "mind"),
        (Design(), "Theoretical field", "sees 78% of an axis", ""),
        (Design(depth=30), "Theoretical field", "sees the whole input", "good"),
        (Design(depth=2, width=2, ndim=1, size=9, bias=True), "Predicted capacity", "7 of them for the", "good"),
        (Design(), "Parameters", "591 kB as float32", ""),
        (Design(), "Operations", "of a ResNet-18", ""),
        (Design(), "Memory of signals", "examples in 1 GB", ""),
    ],
)
def test_verdicts(design: Design, name: str, words: str, tone: str) -> None:
    (row,) = (row for row in judged(read(design)) if row.name == name)
    assert words in row.verdict
    assert row.tone == tone


def test_settings_that_do_not_go_together_leave_the_card_as_it_is() -> None:
    app = pytest.importorskip("capalloc.app.design.dash_app")
    from capalloc.app.design.controls import CONTROLS
    from capalloc.app.design.controls import settings as values_of

    names = [control.setting for control in CONTROLS]
    for changed, at, words in (
        ({"strided": 4, "depth": 2}, "strided", "strided must be at most the depth"),
        ({"size2": 8, "stride": 3, "strided": 4, "reduction": "average"}, "size2", "size must leave a position"),
        ({"causal": ["yes"]}, "causal", "causal must be False with two axes"),
        ({"stages": "16, 32, 64"}, "stages", "stages must be 1 widths, one for each resolution, or 17, one for"),
        ({"stages": "16; 32"}, "stages", "stages must be whole numbers with commas between, got '16; 32'"),
        ({"stages": "9999"}, "stages", "stages must lie from 1 to 1024, got 9999"),
        ({"width": 1, "norm": "layer"}, "width", "width must be at least 2 with a layer norm"),
    ):
        values = [changed.get(name, value) for name, value in zip(names, values_of(Design()), strict=True)]
        shown, refused, *_ = app.show("A", values, [])
        assert {name: told for name, told in zip(names, refused, strict=True) if told}.keys() == {at}
        assert refused[names.index(at)].startswith(words)
        assert shown[0].startswith("Shown is the design before")
        assert all(part is app.no_update for part in shown[1:])


def test_controls_and_designs_are_the_same() -> None:
    pytest.importorskip("dash")
    from capalloc.app.design.controls import design_of
    from capalloc.app.design.controls import settings as values_of

    for design in SMALL.values():
        assert design_of(values_of(design)) == design


def test_the_page_finds_designs_as_the_search_does(monkeypatch: pytest.MonkeyPatch) -> None:
    app = pytest.importorskip("capalloc.app.design.dash_app")
    for name, values in {"KERNELS": (3, 5), "DILATIONS": (1,), "CYCLES": (1,), "STRIDES": ((1, 1),)}.items():
        monkeypatch.setattr(find_designs, name, values)
    query = "depth=3&ndim=1&size=40&b.depth=7"
    table, error = app.find(1, 9, 5, 2000, query)
    assert error == ""
    links = [part.href for part in table._traverse() if type(part).__name__ == "Link"]
    like, second = from_query(query)
    wanted = search(9, flat=5, max_params=2000, like=like)
    assert [from_query(href) for href in links[::2]] == [(reading.design, second) for reading in wanted]
    assert [from_query(href) for href in links[1::2]] == [(like, reading.design) for reading in wanted]
    assert app.find(None, 9, 5, 2000, query) == (app.no_update, "")


@pytest.mark.parametrize(
    ("given_", "words"),
    [
        ((2, None, 1000), "field must lie from 3 to 512, got 2."),
        ((9, 10, 1000), "flat must lie from 1 to the field, 9, got 10."),
        ((None, None, 1000), "give the field, and the most parameters"),
        ((9.5, None, 1000), "field must be an integer"),
    ],
)
def test_targets_that_are_none_are_refused(given_: tuple[Any, ...], words: str) -> None:
    app = pytest.importorskip("capalloc.app.design.dash_app")
    shown, error = app.find(1, *given_, "")
    assert shown == []
    assert error.startswith(words)


def test_a_search_ends_when_its_reader_left() -> None:
    layers = []

    def between() -> None:
        layers.append(1)
        if len(layers) == 30:
            raise TimeoutError

    with pytest.raises(TimeoutError):
        search(9, like=Design(ndim=1, size=32), between=between)
    assert len(layers) == 30


def test_an_architecture_is_started_from_by_its_address() -> None:
    app = pytest.importorskip("capalloc.app.design.dash_app")
    assert from_query(app.start_from("tcn", "depth=3&b.depth=4")) == (STARTS["tcn"], Design(depth=4))
    assert app.start_from(None, "") is app.no_update


# designs near to networks


NEAR = {
    name: design
    for name, design in SMALL.items()
    if design.kernel > 1 and not design.stages and name not in ("all of it", "strided, linear", "maxima, up, causal")
}


@pytest.mark.parametrize("design", NEAR.values(), ids=NEAR)
def test_the_design_near_to_a_built_one_is_that_one(design: Design) -> None:
    """But for the law of branches, which weights alone would tell; strides of 3 count as their reduction by 2."""
    found = nearest(build(design), examples(design, 2).float())
    told = {"residual": "constant", "multiplier": 1.0} if design.branch is not None else {}
    if design.stride == 3:
        told |= {"stride": 2, "strided": 3, "growth": found.growth}
    assert found == replace(design, **told)


@pytest.mark.parametrize("name", ["lenet", "vgg11", "preact-resnet", "tcn"])
def test_starts_are_near_to_their_architectures(name: str) -> None:
    x = torch.randn(1, *architectures.info(name).shape, generator=torch.Generator().manual_seed(0))
    told = {"hidden": 8} if name == "vgg11" else {}  # its 120 million dense weights are no part of the stack
    assert nearest(architectures.make(name, **told), x) == STARTS[name]


def test_a_network_without_a_stack_is_near_to_no_design() -> None:
    with pytest.raises(ValueError, match="model must call at least two convolutions of one or two axes"):
        nearest(nn.Sequential(nn.Flatten(), nn.Linear(9, 2)), torch.zeros(1, 1, 3, 3))
    with pytest.raises(ValueError, match=r"model does not accept inputs of shape \(examples, 2, 9, 9\)"):
        nearest(build(Design(depth=2, width=2, size=9)), torch.zeros(1, 2, 9, 9))
    with pytest.raises(ValueError, match="x must hold at least one example of floating-point numbers"):
        nearest(build(Design(depth=2, width=2, size=9)), torch.zeros(1, 1, 9, 9, dtype=torch.int64))


def test_an_address_that_cannot_be_read_is_reported_and_changes_nothing() -> None:
    app = pytest.importorskip("capalloc.app.design.dash_app")
    assert app.load("", "/other")[2].startswith("there is no page /other here, but this one at /.")
    assert app.load("", "/")[2] == app.load(None, None)[2] == ""
    values, compare, message = app.load("?depth=0")
    assert message.startswith("depth must lie from 1 to 100, got 0.")
    assert compare is app.no_update
    assert all(value is app.no_update for value in values)


# the server


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    pytest.importorskip("dash")
    from capalloc.app.design.dash_app import make_server

    with bound(0) as listening:
        server = make_server(listening)
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server.port
        server.shutdown()
        server.server_close()
        thread.join()


def status(port: int, host: str, path: str = "/") -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    connection.request("GET", path, headers={"Host": host})
    found = connection.getresponse()
    found.read()
    connection.close()
    return found.status


def test_the_server_answers_to_its_own_name_alone(port: int) -> None:
    assert status(port, f"127.0.0.1:{port}") == status(port, f"localhost:{port}") == 200
    for host in (f"rebound.example:{port}", "127.0.0.1", f"127.0.0.1:{port + 1}", "localhost.evil.example"):
        assert status(port, host) == 403
        assert status(port, host, "/_dash-layout") == 403
        assert status(port, host, "/assets/design.css") == 403


def test_work_ends_when_its_reader_has_left() -> None:
    from dash.exceptions import PreventUpdate

    from capalloc.app.design.dash_app import watch

    page, reader = socket.socketpair()
    wanted, layers = watch({"werkzeug.socket": page}), []

    def between() -> None:
        layers.append(1)
        if len(layers) == 3:
            reader.close()
        wanted()

    with page, pytest.raises(PreventUpdate):
        read(Design(depth=8, width=2, size=12), between)
    assert len(layers) == 3
    with pytest.raises(TypeError) as caught:
        read(Design(depth=8, width=2, size=12), lambda wrong: None)
    assert caught.value.__notes__ == ["raised by the function given as between"]
    with pytest.raises(PreventUpdate):
        wanted()  # the server's own end is closed too
    watch({})()  # a server that does not show its connections


def test_a_reader_that_sends_more_is_still_there() -> None:
    from capalloc.app.design.dash_app import watch

    page, reader = socket.socketpair()
    with page, reader:
        wanted = watch({"werkzeug.socket": page})
        wanted()
        reader.send(b"GET / HTTP/1.1")
        wanted()
        assert page.recv(3) == b"GET"


@pytest.mark.parametrize(
    ("header", "code"), [(("Content-Length", str(2**29)), 413), (("Transfer-Encoding", "chunked"), 411)]
)
def test_a_request_is_short_and_says_so(port: int, header: tuple[str, str], code: int) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    connection.putrequest("POST", "/_dash-update-component")
    connection.putheader(*header)
    connection.endheaders()
    assert connection.getresponse().status == code
    connection.close()


def test_a_page_may_load_nothing_from_elsewhere(port: int) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    connection.request("GET", "/")
    found = connection.getresponse()
    text = found.read().decode()
    policy = found.headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'self'")
    assert "http" not in policy
    assert 'src="http' not in text
    assert 'href="http' not in text
    connection.close()


def test_the_socket_listens_on_the_loopback_interface_alone() -> None:
    with bound(0) as listening:
        assert listening.getsockname()[0] == "127.0.0.1"


def test_a_port_in_use_is_one_clear_line() -> None:
    pytest.importorskip("dash")
    with bound(0) as listening:
        taken = listening.getsockname()[1]
        with pytest.raises(OSError, match=f"port {taken} of 127.0.0.1 cannot be opened .*; give another, or 0"):
            serve(taken, open_browser=False)


@pytest.mark.parametrize("bad", [-1, 65536, True, "8050"])
def test_ports_out_of_range_are_refused(bad: Any) -> None:
    with pytest.raises(ValueError, match="port must be a whole number from 0, for a free one, to 65535, got"):
        serve(bad)


def test_without_dash_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    lack(monkeypatch, "dash", unload="capalloc.app.design")
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'capalloc\[design\]'"):
        serve(0, open_browser=False)


def test_a_module_missing_elsewhere_is_not_blamed_on_dash(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "capalloc.app.design.dash_app", None)
    with pytest.raises(ModuleNotFoundError, match=r"capalloc\.app\.design\.dash_app"):
        serve(0, open_browser=False)


def test_serving_prints_its_address_opens_a_browser_and_ends_quietly(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    werkzeug = pytest.importorskip("werkzeug.serving")
    opened: list[str] = []
    monkeypatch.setattr("webbrowser.open", opened.append)

    def interrupted(self: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(werkzeug.BaseWSGIServer, "serve_forever", interrupted)
    serve(0)
    printed = capsys.readouterr()
    assert printed.out.startswith("capalloc design: http://127.0.0.1:")
    assert printed.err == ""
    address = printed.out.split()[2]
    for thread in threading.enumerate():
        if thread is not threading.current_thread() and thread.daemon and not opened:
            thread.join(1)
    assert opened == [address]
    with socket.socket() as free:  # the port was given back
        free.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        free.bind(("127.0.0.1", int(address.rstrip("/").rpartition(":")[2])))


def test_sizes_have_limits_for_every_number_of_axes() -> None:
    assert set(SIZES) == {1, 2}
