"""Section 6: theoretical fields against published sizes, the recursion and gradients; effective ones, closed forms."""

from __future__ import annotations

import math
import re
from dataclasses import FrozenInstanceError

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

import capalloc
from zoo import dense, gaussian, reference_weights, seeded_module


def strip(length: int, width: int = 48, channels: int = 1) -> torch.Tensor:
    """One image that is long in one direction only: fields of different axes do not depend on each other."""
    return gaussian(1, channels, length, width).float()


class Inside(nn.Module):
    """A network within a network."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x)


def conv(kernel: int, stride: int = 1, padding: int | str | None = None) -> nn.Module:
    return nn.Conv2d(1, 1, kernel, stride, kernel // 2 if padding is None else padding)


def alexnet_v2() -> nn.Module:
    """To pool5: 11/4 VALID, pool 3/2, 5, pool 3/2, 3, 3, 3, pool 3/2."""
    pool = lambda: nn.MaxPool2d(3, 2)  # noqa: E731
    return nn.Sequential(conv(11, 4, 0), pool(), conv(5), pool(), conv(3), nn.ReLU(), conv(3), conv(3), pool())


def vgg_16() -> nn.Module:
    layers: list[nn.Module] = []
    for number in (2, 2, 3, 3, 3):
        layers += [conv(3) for _ in range(number)] + [nn.MaxPool2d(2)]
    return nn.Sequential(*layers)


def mobilenet_v1() -> nn.Module:
    layers: list[nn.Module] = [conv(3, 2)]
    for stride in (1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1):
        layers += [conv(3, stride), nn.BatchNorm2d(1), nn.ReLU6(), conv(1)]
    return nn.Sequential(*layers)


class Bottleneck(nn.Module):
    """1x1, 3x3 with the stride, 1x1, and a shortcut that subsamples."""

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.branch = nn.Sequential(conv(1), nn.BatchNorm2d(1), nn.ReLU(), conv(3, stride), nn.ReLU(), conv(1))
        self.stride = stride

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.branch(x) + F.max_pool2d(x, 1, self.stride))


def resnet_v1(*blocks: int) -> nn.Module:
    """TF-slim's: the last unit of each block but the last has the stride, on its 3x3."""
    layers: list[nn.Module] = [conv(7, 2), nn.MaxPool2d(3, 2, 1)]
    for k, number in enumerate(blocks):
        layers += [Bottleneck(2 if unit == number - 1 and k < 3 else 1) for unit in range(number)]
    return nn.Sequential(*layers)


PUBLISHED = {  # A. Araujo, W. Norris, J. Sim, Distill 2019, table of models
    "AlexNet-v2": (alexnet_v2, 195, 131),
    "VGG-16": (vgg_16, 212, 64),
    "MobileNet-v1": (mobilenet_v1, 315, 64),
    "ResNet-v1-50": (lambda: resnet_v1(3, 4, 6, 3), 483, 64),
    "ResNet-v1-101": (lambda: resnet_v1(3, 4, 23, 3), 1027, 64),
    "ResNet-v1-152": (lambda: resnet_v1(3, 8, 36, 3), 1507, 64),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_sizes(name):
    build, size, width = PUBLISHED[name]
    field = capalloc.receptive_field(build(), strip(size + 160, width), gates="unit")
    row = field.axes["row"]
    assert row.size == size
    assert row.stride == 32
    assert not row.cut
    assert field.axes["column"].cut
    assert field.notes == (
        "column: cut by the border: a position further from it, in a larger input if need be, may see more",
    )


def test_resnet_50_of_transformers():
    transformers = pytest.importorskip("transformers")
    config = transformers.ResNetConfig(embedding_size=4, hidden_sizes=[4, 4, 4, 4])
    model = transformers.ResNetModel(config)
    outputs = lambda returned: returned.last_hidden_state  # noqa: E731
    field = capalloc.receptive_field(model, strip(480, 64, channels=3), outputs, gates="unit")
    assert (field.axes["row"].size, field.axes["row"].stride) == (427, 32)
    assert field.axes["channel"].size == 3


@pytest.mark.proves("6", "theoretical field grows like L, dilation and stride", oracle="the recursion of kernel sizes")
@settings(max_examples=8, deadline=None)
@given(
    layers=st.lists(st.tuples(st.integers(1, 4), st.integers(1, 3), st.integers(1, 2)), min_size=1, max_size=4),
)
def test_stacks_follow_the_recursion(layers):
    """r = 1 + sum_l d_l (k_l - 1) prod_(m < l) s_m, the stride is prod_l s_l."""
    stride, size = 1, 1
    for kernel, step, dilation in layers:
        size += dilation * (kernel - 1) * stride
        stride *= step
    length = size + 4 * stride
    model = nn.Sequential(*(nn.Conv1d(1, 1, k, s, dilation=d) for k, s, d in layers))
    field = capalloc.receptive_field(model, gaussian(1, 1, length).float(), output_position=2, gates="unit")
    extent = field.axes["column"]
    assert (extent.size, extent.stride, extent.cut) == (size, stride, False)
    assert (extent.start, extent.stop) == (2 * stride, 2 * stride + size)
    assert extent.centre == 2 * stride + (size - 1) / 2


class Mixed(nn.Module):
    """Branches, dilation, transposition, pooling and a permutation: no chain of convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 2, 3, padding=1)
        self.wide = nn.Conv2d(2, 2, 3, padding=2, dilation=2)
        self.pool = nn.AvgPool2d(2)
        self.mix = nn.Conv2d(2, 2, (1, 3), padding=(0, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = torch.tanh(self.stem(x))
        h = h + self.wide(h)
        return self.mix(self.pool(h).transpose(2, 3))


@pytest.mark.proves("6", "theoretical field grows like L, dilation and stride", oracle="autograd with positive weights")
@pytest.mark.parametrize("position", [(0, 0), (3, 2), (5, 4)])
def test_support_is_where_a_gradient_of_positive_weights_is_not_zero(position):
    model, x = seeded_module(Mixed), gaussian(1, 2, 10, 12)
    field = capalloc.receptive_field(model, x, output_position=position)
    for p in model.parameters():
        p.data = p.data.abs()
    x = (0.01 * x).requires_grad_()
    model(x)[0, :, position[0], position[1]].sum().backward()
    np.testing.assert_array_equal(field.support, (x.grad[0] != 0).numpy())
    assert field.moving == ("row", "column")


def test_layers_follow_the_recursion():
    """size + (kernel - 1) * stride so far, the stride multiplied; a norm and an activation see what is before them."""
    model = nn.Sequential(
        conv(5), nn.BatchNorm2d(1), nn.ReLU(), conv(3, 2), nn.MaxPool2d(2), conv(3), nn.Flatten(), nn.Linear(576, 2)
    )
    found = capalloc.receptive_field(seeded_module(Inside, model).eval(), strip(192).double(), layers=True)
    rows = found.layers.xs("row", level="axis")
    expected = {"net.0": (5, 1), "net.3": (7, 2), "net.4": (9, 4), "net.5": (17, 4)}
    assert {name: (row["size"], row["stride"]) for name, row in rows.iterrows()} == expected
    assert not rows["cut"].any()
    assert "theoretical fields, at the layers that change them" in repr(found)
    for name, (size, _) in expected.items():
        assert capalloc.receptive_field(model.double(), strip(192).double(), layer=name[4:]).sizes["row"] == size
    plain = capalloc.receptive_field(model, strip(192).double())
    assert plain.layers is None
    with pytest.raises(ValueError, match="this field holds no layers; receptive_field"):
        plain.to_pandas("layers")


def test_layers_without_positions_have_no_field_of_their_own():
    found = capalloc.receptive_field(dense(reference_weights()), gaussian(2, 3), layers=True)
    assert len(found.layers) == 0
    assert "theoretical fields, at the layers that change them" in repr(found)


def test_a_layer_is_one_of_the_models(tmp_path):
    class Skips(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = conv(3), conv(3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.one(x)

    model, x = Skips(), strip(16)
    with pytest.raises(ValueError, match="the model has no layer 'three'; it has one, two"):
        capalloc.receptive_field(model, x, layer="three")
    with pytest.raises(ValueError, match="the model does not call its layer 'two'"):
        capalloc.receptive_field(model, x, layer="two")
    with pytest.raises(TypeError, match=r"layer needs the model as a torch\.nn\.Module, got str"):
        capalloc.receptive_field(str(tmp_path / "model.pt2"), x, layer="one")
    assert capalloc.receptive_field(model, x, layer="one").sizes["row"] == 3
    assert not any(module._forward_hooks for module in model.modules())


def test_three_dimensions():
    model = nn.Sequential(nn.Conv3d(1, 2, (3, 1, 5), stride=(1, 2, 1)), nn.ReLU(), nn.Conv3d(2, 1, 3))
    field = capalloc.receptive_field(model, gaussian(2, 1, 9, 13, 12).float(), output_position=(2, 1, 3))
    assert field.sizes == {"channel": 1, "depth": 5, "row": 5, "column": 7}
    assert [field.axes[name].stride for name in ("depth", "row", "column")] == [1, 2, 1]
    assert field.axes["channel"].stride == 0


class Steps(nn.Module):
    """A recurrence over steps; the last state's scores, or those of every step."""

    def __init__(self, last: bool) -> None:
        super().__init__()
        self.cells, self.head, self.last = nn.GRU(3, 5, batch_first=True), nn.Linear(5, 2), last

    def forward(self, x):
        h = self.cells(x)[0]
        return self.head(h[:, -1] if self.last else h)


def test_regions_of_a_sequence_of_vectors_are_counted_in_steps():
    """(steps, features), as the first layer reads them: not in features, which are channels of every step."""
    x = torch.randn(4, 9, 3)
    field = capalloc.receptive_field(Steps(last=True), x)
    assert field.moving == ("row",)
    by_step = np.sort(field.map.sum("column").to_numpy())[::-1].cumsum()
    assert field.area_95 == int((by_step < 0.95).sum()) + 1
    assert re.search(r"95 % of energy +\d places? of step\n", str(field))
    each = capalloc.receptive_field(Steps(last=False), x)
    assert each.shown_position == "(4, :)"
    assert each.axes["row"].stop == 5
    assert capalloc.receptive_field(Steps(last=False), x, output_position=2).axes["row"].stop == 3


def test_tokens_one_entry_for_every_axis():
    """(examples, tokens, features): each token sees itself and the one before."""

    class Shifted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(3, 4)

        def forward(self, x):
            return self.linear(x + F.pad(x, (0, 0, 1, 0))[:, :-1])

    field = capalloc.receptive_field(Shifted(), gaussian(2, 7, 3).float(), output_position=(4, None))
    token, feature = field.axes.values()
    assert (token.size, token.start, token.stride, token.cut) == (2, 3, 1, False)
    assert (feature.size, feature.stride) == (3, 0)
    assert field.output_position == (4, None)


def test_a_class_score_sees_the_whole_input_and_none_of_it_is_cut():
    model = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.Flatten(), nn.Linear(50, 4))
    field = capalloc.receptive_field(model, gaussian(3, 1, 5, 5).float())
    assert field.sizes == {"channel": 1, "row": 5, "column": 5}
    assert math.isnan(field.axes["row"].stride)
    assert field.notes == ()
    assert field.moving == ("row", "column")


def test_depth_and_scale_do_not_lose_the_support():
    layers = [nn.Conv1d(1, 1, 3, padding=1, bias=False) for _ in range(150)]
    for layer in layers:
        layer.weight.data.fill_(1e-30)
    model = nn.Sequential(*layers)
    assert capalloc.receptive_field(model, gaussian(1, 1, 320).float(), gates="unit").axes["column"].size == 301


def test_a_zero_weight_counts_and_a_hole_in_a_fixed_filter_does_not():
    class Holes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv1d(1, 1, 3, bias=False)
            self.register_buffer("filter", torch.tensor([[[1.0, 0.0, 1.0, 0.0]]]))

        def forward(self, x):
            return F.conv1d(self.conv(x), self.filter)

    model = Holes()
    model.conv.weight.data = torch.tensor([[[1.0, 1.0, 0.0]]])
    field = capalloc.receptive_field(model, gaussian(1, 1, 12).float(), output_position=3)
    assert field.axes["column"].size == 5  # 3 + 3 - 1: the filter's last tap is a hole
    assert field.map[0, 3 + 4] == 0  # the effective field knows the weights


@pytest.mark.parametrize(("position", "cut"), [(0, True), (1, True), (2, False), (5, False), (7, False), (8, True)])
def test_what_the_border_cuts(position, cut):
    """Two convolutions of 3 with padding 1 on 10 places: fields of 5, whole from position 2 to 7."""
    model = nn.Sequential(nn.Conv1d(1, 1, 3, padding=1), nn.Conv1d(1, 1, 3, padding=1))
    field = capalloc.receptive_field(model, gaussian(1, 1, 10).float(), output_position=position)
    assert field.axes["column"].cut is cut
    assert field.axes["column"].size == (5 if not cut else {0: 3, 1: 4, 8: 4}[position])


def test_a_field_that_just_fits_is_not_cut():
    model = nn.Conv1d(1, 1, 3)
    assert not capalloc.receptive_field(model, gaussian(1, 1, 4).float(), output_position=0).axes["column"].cut
    assert not capalloc.receptive_field(model, gaussian(1, 1, 3).float()).axes["column"].cut


def test_a_field_wider_than_the_input_is_cut_and_has_no_stride():
    model = nn.Sequential(*(nn.Conv1d(1, 1, 7, padding=3) for _ in range(3)))
    extent = capalloc.receptive_field(model, gaussian(1, 1, 7).float()).axes["column"]
    assert extent.cut
    assert extent.size == 7
    assert math.isnan(extent.stride)


# -- the effective field ------------------------------------------------------------------------------------


def uniform(kernels: list[int], strides: list[int]) -> nn.Module:
    layers = [nn.Conv1d(1, 1, k, s, bias=False) for k, s in zip(kernels, strides, strict=True)]
    for layer in layers:
        layer.weight.data.fill_(1.0)
    return nn.Sequential(*layers).double()


@pytest.mark.proves("6", "receptive field: sqrt(sum of step variances)", oracle="variances of uniform kernels")
@pytest.mark.parametrize(
    ("kernels", "strides"), [([3] * 12, [1] * 12), ([3, 5, 2], [1, 1, 1]), ([3, 3, 3], [2, 3, 1]), ([7, 3], [2, 2])]
)
def test_deviation_of_a_uniform_stack(kernels, strides):
    """The walk's steps are independent: variances add, each times the squared strides below it."""
    variance, scale, size = 0.0, 1, 1
    for kernel, stride in zip(kernels, strides, strict=True):
        variance += scale**2 * (kernel**2 - 1) / 12
        size += scale * (kernel - 1)
        scale *= stride
    field = capalloc.receptive_field(uniform(kernels, strides), gaussian(1, 1, size + 6 * scale), gates="unit")
    assert field.axes["column"].deviation == pytest.approx(math.sqrt(variance), abs=1e-9)
    assert float(field.map.sum()) == pytest.approx(1)


def test_areas_of_a_uniform_kernel_and_of_a_square():
    field = capalloc.receptive_field(uniform([10], [1]), gaussian(1, 1, 20))
    assert (field.area_68, field.area_95) == (7, 10)
    model = nn.Conv2d(1, 1, 10, bias=False).double()
    model.weight.data.fill_(1.0)
    field = capalloc.receptive_field(model, gaussian(2, 1, 14, 14))
    assert (field.area_68, field.area_95) == (68, 95)


def test_energy_is_the_walk_that_ends_at_an_input():
    model, x = seeded_module(Mixed), gaussian(5, 2, 10, 12)
    field = capalloc.receptive_field(model, x, output_position=(2, 3), batch_size=2)
    law = capalloc.walk(model, x, outputs=lambda y: y[:, :, 2, 3])
    np.testing.assert_allclose(field.map, law.inputs / law.inputs.sum(), atol=1e-12)


def test_capacity_is_that_of_a_network_with_this_output_alone():
    model, x = seeded_module(Mixed), gaussian(5, 2, 10, 12)
    field = capalloc.receptive_field(model, x, output_position=(2, 3), of="capacity")
    alone = capalloc.propagate(model, x, outputs=lambda y: y[:, :, 2, 3], solver="markov")
    np.testing.assert_allclose(field.map, alone.capacity, atol=1e-9)
    assert float(field.map.sum()) == pytest.approx(alone.total - alone.bias)


def test_theoretical_field_does_not_depend_on_gates_or_data():
    model = nn.Sequential(nn.Conv1d(1, 2, 3), nn.ReLU(), nn.MaxPool1d(2), nn.Conv1d(2, 1, 3))
    fields = [
        capalloc.receptive_field(model, gaussian(3, 1, 20, seed=k).float(), gates=gates)
        for k, gates in enumerate(("data", "gaussian", "unit"))
    ]
    assert len({field.axes["column"].size for field in fields}) == 1
    assert fields[0].axes["column"].size == 8


# -- the result ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def square():
    model = seeded_module(nn.Sequential, nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Conv2d(2, 1, 3, stride=2))
    return capalloc.receptive_field(model, gaussian(4, 1, 20, 20), output_position=(3, 0))


def test_repr_says_it_all(square):
    text = repr(square)
    assert "output position (:, 3, 0)" in text
    assert "theoretical extent  5 × 5 (row × column)" in text
    assert "field of paths      25 of 400 inputs (exact)" in text
    assert "field of influence  25 of 400 inputs (exact), extent 5 × 5" in text
    assert re.search(r"row +5 +6 +10 +8 +2 +no +[\d.]+\n", text)
    assert re.search(r"95 % of energy +\d+ places of row × column\n", text)


def test_table_has_a_row_for_every_axis(square):
    table = square.to_pandas()
    assert list(table.index) == ["channel", "row", "column"]
    assert list(table.columns) == ["size", "start", "stop", "centre", "stride", "cut", "deviation"]
    assert table.loc["row", "centre"] == 8


def test_it_is_frozen(square):
    with pytest.raises(FrozenInstanceError):
        square.of = "capacity"


def test_plot_draws_the_box_and_two_rings(square):
    figure, ax = plt.subplots()
    assert square.plot(ax, title="field") is ax
    box = ax.patches[0]
    assert (box.get_x(), box.get_y(), box.get_width(), box.get_height()) == (-0.5, 5.5, 5, 5)
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["theoretical", "68%", "95%"]
    assert ax.images[0].colorbar.ax.get_ylabel() == "path energy"
    plt.close(figure)


def test_plot_of_one_axis():
    ax = capalloc.receptive_field(uniform([5, 5], [1, 1]), gaussian(1, 1, 20)).plot()
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["theoretical", "68%", "95%"]
    assert ax.get_xlabel() == "position"
    plt.close(ax.figure)


def test_the_only_channel_of_the_output_is_no_place():
    """A position of (the only channel, 19) moves along the positions alone, whose border cuts it."""
    layers = lambda: nn.Sequential(nn.Conv1d(2, 3, 5, padding=2), nn.ReLU(), nn.Conv1d(3, 1, 5, padding=2))  # noqa: E731
    field = capalloc.receptive_field(seeded_module(layers), gaussian(1, 2, 20), output_position=(0, 19))
    assert field.moving == ("column",)
    assert field.notes == (
        "column: cut by the border: a position further from it, in a larger input if need be, may see more",
    )
    assert "position: cut by the border" in repr(field)
    assert "channel: cut" not in repr(field)


def test_the_model_is_left_as_it_was():
    model = seeded_module(Mixed).train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    state = torch.random.get_rng_state()
    capalloc.receptive_field(model, gaussian(2, 2, 10, 12))
    assert torch.equal(state, torch.random.get_rng_state())
    assert model.training
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_bad_arguments_say_what_to_do():
    model, x = nn.Conv2d(1, 1, 3), gaussian(1, 1, 8, 8).float()
    with pytest.raises(ValueError, match="gates must be one of"):
        capalloc.receptive_field(model, x, gates="open")
    with pytest.raises(ValueError, match="of must be 'energy' or 'capacity'"):
        capalloc.receptive_field(model, x, of="gradient")
    with pytest.raises(ValueError, match="batch_size must be a positive integer"):
        capalloc.receptive_field(model, x, batch_size=0)
    with pytest.raises(ValueError, match=r"output_position 6 is outside axis 3 of the outputs \(.* x 6\), of length 6"):
        capalloc.receptive_field(model, x, output_position=(2, 6))
    with pytest.raises(ValueError, match="give 2, after the channel axis, or 3 with None"):
        capalloc.receptive_field(model, x, output_position=2)


def test_negative_positions_count_from_the_end():
    model, x = nn.Conv1d(1, 1, 3), gaussian(1, 1, 8).float()
    assert capalloc.receptive_field(model, x, output_position=-1).output_position == (None, 5)


def test_a_position_that_nothing_reaches_is_an_error():
    class Padded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv1d(1, 1, 3)

        def forward(self, x):
            return F.pad(self.conv(x), (4, 0))

    with pytest.raises(ValueError, match="no path leads from the inputs to output position"):
        capalloc.receptive_field(Padded(), gaussian(1, 1, 8).float(), output_position=1)


class Squeezed(nn.Module):
    """Squeeze-and-excite: every position steers every channel."""

    def forward(self, x):
        return x * torch.sigmoid(x.mean((2, 3), keepdim=True))


class SpatialGate(nn.Module):
    def __init__(self):
        super().__init__()
        self.value, self.gate = nn.Conv2d(2, 2, 1), nn.Conv2d(2, 2, 5, padding=2)

    def forward(self, x):
        return self.value(x) * torch.sigmoid(self.gate(x))


@pytest.mark.parametrize(
    ("middle", "places"),
    [
        (Squeezed(), 121),
        (SpatialGate(), 81),
        (nn.GroupNorm(1, 2), 121),
        (nn.InstanceNorm2d(2), 121),
        (nn.BatchNorm2d(2), 25),
        (nn.ReLU(), 25),
    ],
)
def test_what_sees_more_than_paths_is_counted_in_a_note(middle, places):
    """Against moving one input at a time: the outputs at the central position of 7 x 7 that change."""
    net = nn.Sequential(nn.Conv2d(1, 2, 3), middle, nn.Conv2d(2, 1, 3)).double().eval()
    x = gaussian(1, 1, 11, 11)
    with torch.no_grad():
        moved = x + 2 * torch.eye(121, dtype=x.dtype).reshape(121, 1, 11, 11)
        change = (net(moved) - net(x))[:, 0, 3, 3].abs()
    assert int((change > 1e-13).sum()) == places or isinstance(middle, nn.ReLU)  # which may be closed
    field = capalloc.receptive_field(net, x)
    assert int(field.support.sum()) == 25
    if places == 25:
        assert field.notes == ()
    else:
        assert f"{places - 25} more of 121 can change the output" in field.notes[0]
    assert int(field.influence.sum()) == places


def test_windows_with_gaps_have_a_field():
    net = nn.Sequential(nn.Conv2d(1, 1, 2), nn.MaxPool2d(3, 1, dilation=2))
    field = capalloc.receptive_field(net, gaussian(2, 1, 15, 15).float())
    assert field.sizes == {"channel": 1, "row": 6, "column": 6}


@pytest.mark.parametrize("of", ["energy", "capacity"])
@pytest.mark.parametrize("closed", [1, 3])
def test_gates_that_are_closed_on_the_examples_leave_the_field_as_it_is(of, closed):
    layers = (nn.Conv2d(1, 2, 3, padding=1), nn.ReLU(), nn.Conv2d(2, 1, 3, padding=1), nn.ReLU())
    model = seeded_module(lambda: nn.Sequential(*layers))
    with torch.no_grad():
        model[closed - 1].bias.fill_(-10.0)
    x = gaussian(2, 1, 15, 15)
    found, opened = (capalloc.receptive_field(model, x, of=of, gates=gates) for gates in ("data", "unit"))
    assert found.gates == "unit"
    assert found.notes[0].startswith("on these examples no path energy reaches the position, whose gates are closed")
    assert found.sizes == opened.sizes == {"channel": 1, "row": 5, "column": 5}
    np.testing.assert_array_equal(found.map, opened.map)


def test_a_position_that_nothing_reaches_is_refused():
    model = seeded_module(lambda: nn.Sequential(nn.Conv1d(1, 1, 3), nn.ReLU()))
    with torch.no_grad():
        model[0].weight.zero_()
    cut = r"no path energy reaches output position .*weights of zero cut its paths \(0.weight, 1 in all\)"
    with pytest.raises(ValueError, match=cut):
        capalloc.receptive_field(model, gaussian(2, 1, 9))
