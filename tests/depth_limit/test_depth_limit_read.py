"""Blocks read off convolutional models: laws by brute force, rates of `scaling`, the receptive field that they give."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.signal import convolve
from torch import Tensor, nn

import capalloc
from architectures import ARCHITECTURES
from capalloc import depth_limit
from capalloc.depth_limit import StepLaw, WalkBlock
from zoo import gaussian, seeded_module

Array = NDArray[np.float64]
CONVS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
SIZES = {1: (41,), 2: (19, 21), 3: (11, 12, 13)}
AXES = {1: ("column",), 2: ("row", "column"), 3: ("depth", "row", "column")}


class Abs(nn.Module):
    """Its squared gates are 1 everywhere, so that every law is exact at every position."""

    def forward(self, z: Tensor) -> Tensor:
        return z.abs()


class Residual(nn.Module):
    """A stem, then blocks h + scale second(|first(h)|)."""

    def __init__(self, axes: int, channels: int, blocks: int, scale: float = 0.7) -> None:
        super().__init__()
        conv = lambda i: CONVS[axes](i, channels, 3, padding=1, bias=False)  # noqa: E731
        self.stem, self.scale = conv(1), scale
        self.first, self.second = (nn.ModuleList(conv(channels) for _ in range(blocks)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x)
        for first, second in zip(self.first, self.second, strict=True):
            h = h + self.scale * second(first(h).abs())
        return h


def images(axes: int, number: int = 2, channels: int = 1) -> Tensor:
    return gaussian(number, channels, *SIZES[axes])


def squared(conv: nn.Module) -> Array:
    """w^2 / |w|^2 of a convolution between single channels."""
    square = conv.weight.detach()[0, 0].square()
    return (square / square.sum()).numpy()


def assert_law(law: StepLaw, expected: Array) -> None:
    """Odd kernels have their origin in the middle."""
    assert law.origin == tuple(n // 2 for n in expected.shape)
    np.testing.assert_allclose(law.probabilities, expected, atol=1e-12)


def deviations(blocks: dict[str, WalkBlock], shape: tuple[int, ...]) -> list[float]:
    """At the inputs, of a walk from the middle."""
    walked = depth_limit.chain(list(blocks.values()), depth_limit.point(shape))
    assert float(walked.absorbed[-1]) < 1e-9  # nothing has left the grid
    return walked.deviation.to_numpy()[-1].tolist()


def field_deviations(model: nn.Module, x: Tensor) -> list[float]:
    axes = capalloc.receptive_field(model, x, batch_size=len(x)).axes
    return [axes[name].deviation for name in AXES[x.ndim - 2]]


# -- plain stacks -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("axes", [1, 2, 3])
def test_a_plain_stack_of_single_channels(axes):
    kernels = [3, 5] if axes == 3 else [3, 5, 3]
    layers = [CONVS[axes](1, 1, k, padding=k // 2, bias=False) for k in kernels]
    model = seeded_module(nn.Sequential, *(m for layer in layers for m in (layer, Abs())))
    x = images(axes)
    blocks = depth_limit.read(model, x)
    assert list(blocks) == [str(2 * k) for k in range(len(kernels))]
    for layer, block in zip(layers, blocks.values(), strict=True):
        assert float(block.rate) == math.inf
        assert_law(block.law, squared(layer))
    np.testing.assert_allclose(deviations(blocks, SIZES[axes]), field_deviations(model, x), atol=1e-9)


@pytest.mark.parametrize(
    "layers",
    [
        [nn.Conv1d(1, 1, 3, padding=2, dilation=2), nn.Conv1d(1, 1, 3, padding=1)],
        [nn.Conv1d(1, 1, 3, stride=2, padding=1), nn.Conv1d(1, 1, 5, padding=2), nn.Conv1d(1, 1, 3, 3, padding=1)],
        [nn.Conv1d(1, 1, 4, stride=2, padding=1), nn.Conv1d(1, 1, 3, padding=4, dilation=4)],
        [nn.Conv1d(1, 1, 5), nn.Conv1d(1, 1, 4), nn.Conv1d(1, 1, 3)],  # valid
        [nn.Conv1d(1, 1, 3, stride=2), nn.AvgPool1d(3, 2), nn.Conv1d(1, 1, 3, padding=1)],
        [nn.AvgPool1d(2), nn.Conv1d(1, 1, 3, padding=1), nn.Conv1d(1, 1, 1), nn.Conv1d(1, 1, 3, padding=1)],
        [nn.Conv1d(1, 1, 3, padding=1), nn.ConvTranspose1d(1, 1, 3, padding=1), nn.Conv1d(1, 1, 3, padding=1)],
    ],
    ids=["dilations", "strides", "stride and dilation", "valid", "pooled", "pooled first", "transposed"],
)
def test_strides_dilations_borders_and_pooling(layers):
    """Deviations are those of the receptive field, whatever shifts of the grid are rounded away."""
    for layer in layers:
        layer.bias = None
    model = seeded_module(nn.Sequential, *(m for layer in layers for m in (layer, Abs())))
    x = gaussian(2, 1, 96)
    blocks = depth_limit.read(model, x)
    np.testing.assert_allclose(deviations(blocks, (96,)), field_deviations(model, x), atol=1e-9)


@pytest.mark.proves("6", "a stride multiplies all later steps", oracle="squared kernels spread out")
def test_a_stride_multiplies_the_steps_above_it():
    layers = [nn.Conv1d(1, 1, 3, s, padding=1, bias=False) for s in (2, 3, 1)]
    blocks = depth_limit.read(seeded_module(nn.Sequential, *layers), gaussian(1, 1, 120))
    for layer, block, below in zip(layers, blocks.values(), (1, 2, 6), strict=True):
        # Where the grid changes, the origin is the mean, rounded.
        np.testing.assert_allclose(block.law.probabilities, spread(squared(layer), below), atol=1e-12)


def spread(law: Array, factor: int) -> Array:
    wide = np.zeros(factor * (len(law) - 1) + 1)
    wide[::factor] = law
    return wide


def test_strides_by_axis():
    model = seeded_module(nn.Conv2d, 1, 1, 3, stride=(2, 1), padding=1, bias=False)
    top = seeded_module(nn.Conv2d, 1, 1, 3, padding=1, bias=False, seed=1)
    _, block = depth_limit.read(nn.Sequential(model, top), gaussian(1, 1, 24, 18)).values()
    assert block.law.probabilities.shape == (5, 3)


# -- residual networks --------------------------------------------------------------------------------------


@pytest.mark.parametrize("axes", [1, 2, 3])
def test_a_branch_is_the_convolution_of_its_squared_kernels(axes):
    model, x = seeded_module(Residual, axes, 1, 2), images(axes)
    blocks = depth_limit.read(model, x)
    assert list(blocks) == ["stem", "second.0", "second.1"]
    assert_law(blocks["stem"].law, squared(model.stem))
    for k in range(2):
        law = convolve(squared(model.first[k]), squared(model.second[k]), method="direct")
        assert_law(blocks[f"second.{k}"].law, law)
    rates = [float(blocks[f"second.{k}"].rate) for k in range(2)]
    np.testing.assert_allclose(rates, capalloc.scaling(model, x).data["rate"], rtol=1e-12)


@pytest.mark.parametrize("axes", [1, 2])
def test_residual_receptive_field_of_single_channels(axes):
    """Rates of `scaling` count the borders, where padding takes some of a branch: at most 2 % of deviation."""
    model, x = seeded_module(Residual, axes, 1, 3), images(axes)
    found = deviations(depth_limit.read(model, x), SIZES[axes])
    np.testing.assert_allclose(found, field_deviations(model, x), rtol=0.02)


def test_residual_receptive_field_of_many_channels():
    """Channels are taken as independent from block to block, which leaves 2 % at 6 blocks of 8 channels."""
    model, x = seeded_module(Residual, 2, 8, 6), images(2, number=1)
    found = deviations(depth_limit.read(model, x), SIZES[2])
    np.testing.assert_allclose(found, field_deviations(model, x), rtol=0.02)


def test_gates_of_the_examples():
    """ReLU: laws at one position are those of its gates, and 64 examples of 8 channels even them out to 3 %."""
    relu = nn.Sequential(
        nn.Conv1d(1, 8, 3, padding=1),
        nn.ReLU(),
        nn.Conv1d(8, 8, 3, padding=1),
        nn.ReLU(),
        nn.Conv1d(8, 8, 5, padding=2),
    )
    model, x = seeded_module(lambda: relu), gaussian(64, 1, 41)
    found = deviations(depth_limit.read(model, x), (41,))
    np.testing.assert_allclose(found, field_deviations(model, x), rtol=0.03)


def test_where_the_middle_is_closed_a_neighbour_stands_for_it():
    class Shut(nn.Module):
        """Nothing passes the middle."""

        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = (nn.Conv1d(1, 1, 3, padding=1, bias=False) for _ in range(2))
            self.register_buffer("mask", torch.ones(21))
            self.mask[9:12] = 0

        def forward(self, x: Tensor) -> Tensor:
            return self.second(self.first(x).abs() * self.mask)

    model = seeded_module(Shut)
    first, second = depth_limit.read(model, gaussian(2, 1, 21)).values()
    assert_law(first.law, squared(model.first))
    # From the nearest position that paths cross, 9 or 11, through the mask to 8 or 12.
    assert second.law.probabilities.shape in {(1,), (2,)}


def test_blocks_that_pass_nothing_are_left_out():
    model = seeded_module(Residual, 1, 1, 2)
    model.second[0].weight.data.zero_()
    assert list(depth_limit.read(model, images(1))) == ["stem", "second.1"]


# -- what is read -------------------------------------------------------------------------------------------


def test_class_scores_start_at_the_last_grid():
    model = seeded_module(
        nn.Sequential, nn.Conv1d(1, 2, 3, padding=1), Abs(), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(2, 3)
    )
    (block,) = depth_limit.read(model, images(1)).values()
    weights = model[0].weight.detach()[:, 0].square()
    head = model[4].weight.detach().square().sum(0)
    mixed = (head[:, None] * weights).sum(0)
    assert_law(block.law, (mixed / mixed.sum()).numpy())  # channels as the head weighs them


EXPECTED = {
    "ResNet": ["stem.0", "blocks.0.2.1", "blocks.1.2.1"],
    "pre-activation ResNet": ["stem", "blocks.0.5", "blocks.1.5"],
    "ConvNeXt": ["stem", "scales.0"],
    "squeeze-and-excite": ["stem", "conv"],
    "U-Net, transposed": ["down1.0", "join1.0"],  # down and up again is one step
}


@pytest.mark.parametrize("name", EXPECTED)
def test_architectures(name):
    architecture = ARCHITECTURES[name]
    model, x = architecture.build(), architecture.examples(3)
    blocks = depth_limit.read(model, x)
    assert list(blocks) == EXPECTED[name]
    scaled = capalloc.scaling(model, x).data["rate"].to_series()
    for block, rate in scaled.items():
        assert float(blocks[block].rate) == pytest.approx(rate, rel=1e-9)


def test_exported_programs_of_a_larger_batch():
    """Rates do not count the examples that a batch is filled up with."""
    model, x = seeded_module(Residual, 1, 4, 2), images(1, number=4)
    program = torch.export.export(model, (x,), strict=False)
    live, found = depth_limit.read(model, x[:3]), depth_limit.read(program, x[:3])
    for name, block in live.items():
        assert float(found[name].rate) == pytest.approx(float(block.rate), rel=1e-9)
        np.testing.assert_allclose(found[name].law.probabilities, block.law.probabilities, atol=1e-12)


def test_chosen_outputs():
    model = seeded_module(Residual, 1, 2, 1)
    assert list(depth_limit.read(model, images(1), lambda h: h[:, :1])) == ["stem", "second.0"]


def test_the_model_is_left_as_it_was():
    model = seeded_module(Residual, 1, 2, 1).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.random.get_rng_state()
    depth_limit.read(model, images(1))
    assert torch.equal(state, torch.random.get_rng_state())
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


def test_refusals():
    with pytest.raises(ValueError, match=r"inputs must be \(examples, channels, \*positions\) .* got 0 of them"):
        depth_limit.read(nn.Linear(4, 3).double(), gaussian(2, 4))
    flat = nn.Sequential(nn.Flatten(), nn.Linear(9, 2)).double()
    with pytest.raises(ValueError, match="no layer of the model keeps the grid of its inputs"):
        depth_limit.read(flat, gaussian(2, 1, 9))
