"""Section 6: the inputs that can change an output position, against gradients of the module itself over many draws."""

from __future__ import annotations

import copy
import random

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import capalloc
from capalloc._depth import bound_influence
from capalloc._energy.influence import Influence
from zoo import gaussian


def reached(model: nn.Module, x: torch.Tensor, position: tuple[int | None, ...]) -> torch.Tensor:
    """Inputs with a gradient for one of many Gaussian weights and inputs, by autograd of the module in float64."""
    model, generator = copy.deepcopy(model).double().eval(), torch.Generator().manual_seed(3)
    seen = torch.zeros(x.shape[1:], dtype=torch.bool)
    for _ in range(30):
        for p in model.parameters():
            p.data.normal_(generator=generator).div_(max(1, p[0].numel() if p.ndim > 1 else 1) ** 0.5)
        z = torch.randn(1, *x.shape[1:], generator=generator, dtype=torch.float64, requires_grad=True)
        chosen = model(z)[(0, *(slice(None) if k is None else k for k in position))]
        weights = torch.randn(chosen.shape, generator=generator, dtype=torch.float64)
        (slope,) = torch.autograd.grad((chosen * weights).sum(), z, materialize_grads=True)
        seen |= slope[0] != 0
    return seen


class Along(nn.Module):
    """A function of the input as a module, with some modules of its own."""

    def __init__(self, function, *parts):
        super().__init__()
        self.function, self.parts = function, nn.ModuleList(parts)

    def forward(self, x):
        return self.function(x, *self.parts)


def squeezed(x, f, g):
    return x * torch.sigmoid(g(F.relu(f(x.mean((2, 3))))))[:, :, None, None]


def hard(x, f):
    return x * F.hardsigmoid(f(F.adaptive_avg_pool2d(x, 1)))


def gated(x, value, gate):
    return value(x) * torch.sigmoid(gate(x))


def opened(x, value, gate):
    """A gate that is closed for half of the places: another kind of where."""
    return torch.where(gate(x) > 0, value(x), 0.0)


def attended(x, qkv, causal, window=None):
    q, k, v = qkv(x).chunk(3, -1)
    if window is None:
        return F.scaled_dot_product_attention(q, k, v, is_causal=causal)
    i = torch.arange(x.shape[1])
    far = (i[:, None] - i).abs() > window
    return torch.softmax((q @ k.mT).masked_fill(far, -torch.inf), -1) @ v


IMAGES, TOKENS = (1, 9, 9), (7, 4)
MIDDLES = {
    "squeeze-excite": Along(squeezed, nn.Linear(4, 2), nn.Linear(2, 4)),
    "hard squeeze-excite": Along(hard, nn.Conv2d(4, 4, 1)),
    "spatial gate": Along(gated, nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 5, padding=2)),
    "GroupNorm": nn.GroupNorm(2, 4),
    "InstanceNorm": nn.InstanceNorm2d(4),
    "a norm of channels": Along(lambda x, norm: norm(x.mT).mT, nn.LayerNorm(7)),
    "BatchNorm": nn.BatchNorm2d(4),
    "maxima with gaps": nn.MaxPool2d(2, 1, dilation=2),
    "adaptive maxima": nn.AdaptiveMaxPool2d(5),
    "a maximum beside a mean": Along(lambda x: x * torch.sigmoid(x.amax(1, keepdim=True) + x.mean(1, keepdim=True))),
    "upsampling": Along(lambda x: F.interpolate(F.max_pool2d(x, 2), 7, mode="bilinear") * torch.sigmoid(x)),
    "one row": Along(lambda x: x * torch.tanh(x.flip(3)).cumsum(3)),
    "PReLU": nn.PReLU(4),
    "SiLU": Along(lambda x: x * torch.sigmoid(x)),
    "a quantile": Along(lambda x: x * x.quantile(0.3, 3, keepdim=True)),
    "local response": nn.LocalResponseNorm(3),
    "a norm of one row": Along(lambda x: F.normalize(x, dim=3)),
}


def images(name: str) -> tuple[nn.Module, torch.Tensor, tuple[int | None, ...]]:
    torch.manual_seed(1)
    net = nn.Sequential(nn.Conv2d(1, 4, 3), copy.deepcopy(MIDDLES[name]), nn.Conv2d(4, 2, 3, padding=1))
    return net.double().eval(), gaussian(2, *IMAGES), (None, 2, 1)


@pytest.mark.proves("6", "influence", oracle="autograd over many weights and inputs")
@pytest.mark.parametrize("name", MIDDLES)
def test_influence_is_where_gradients_reach(name):
    net, x, position = images(name)
    field = capalloc.receptive_field(net, x, output_position=position)
    expected = reached(net, x, position)
    torch.testing.assert_close(torch.from_numpy(field.influence.values), expected)
    assert field.influence_status == "exact"
    assert not bool((field.support & ~field.influence).any())


@pytest.mark.parametrize("name", ["BatchNorm", "maxima with gaps", "adaptive maxima", "PReLU", "SiLU"])
def test_without_gates_of_other_places_both_fields_are_one(name):
    net, x, position = images(name)
    field = capalloc.receptive_field(net, x, output_position=position, check=True)
    assert (field.support == field.influence).all()
    assert (field.paths_status, field.influence_status) == ("exact", "exact")
    number = int(field.support.sum())
    assert f"reach {number} of the {number} inputs in the field of influence, and none beyond it" in field.notes[-1]


@pytest.mark.proves("6", "influence", oracle="autograd over many weights and inputs")
@pytest.mark.parametrize(
    ("mix", "expected"),
    [
        (Along(lambda x, qkv: attended(x, qkv, False), nn.Linear(4, 12)), range(7)),
        (Along(lambda x, qkv: attended(x, qkv, True), nn.Linear(4, 12)), range(4)),
        (Along(lambda x, qkv: attended(x, qkv, False, 1), nn.Linear(4, 12)), range(2, 5)),
        (nn.LayerNorm(4), [3]),
        (nn.LayerNorm((7, 4)), range(7)),
    ],
)
def test_tokens_that_can_change_a_token(mix, expected):
    net = nn.Sequential(copy.deepcopy(mix), nn.Linear(4, 3)).double().eval()
    x = gaussian(2, *TOKENS)
    field = capalloc.receptive_field(net, x, output_position=(3, None))
    assert field.influence.values.any(1).nonzero()[0].tolist() == list(expected)
    torch.testing.assert_close(torch.from_numpy(field.influence.values), reached(net, x, (3, None)))
    assert field.influence_sizes == {"row": len(expected), "column": 4}


def test_what_the_examples_choose_is_said():
    """A gate that chooses by sign opens on some example, and its gradient is zero: the bound holds it."""
    net, x, position = images("spatial gate")
    net[1].function = opened
    field = capalloc.receptive_field(net, x, output_position=position, check=True)
    assert field.paths_status == "upper bound"
    assert field.influence_status == "upper bound"
    assert field.influence.sum() > field.support.sum()
    assert bool(torch.from_numpy(field.influence.values)[reached(net, x, position)].all())


def test_an_order_has_paths_on_the_examples_alone():
    net = nn.Sequential(nn.Conv2d(1, 2, 2), Along(lambda x: x.sort(3)[0]), nn.Conv2d(2, 1, 1)).double().eval()
    x = gaussian(1, 1, 6, 6)
    field = capalloc.receptive_field(net, x, output_position=(2, 2))
    assert (field.paths_status, field.influence_status) == ("depends on data", "exact")
    torch.testing.assert_close(torch.from_numpy(field.influence.values), reached(net, x, (None, 2, 2)))
    assert 2 <= int(field.support.sum()) <= 8  # one window of 2 x 2 in either channel
    assert int(field.influence.sum()) == 12


def test_rounding_of_a_fourier_transform_reaches_nothing():
    """There and back is the identity, which the bound does not know."""
    there_and_back = Along(lambda x: x * torch.fft.irfft2(torch.fft.rfft2(x), s=x.shape[-2:]).tanh())
    net = nn.Sequential(nn.Conv2d(1, 2, 2), there_and_back, nn.Conv2d(2, 1, 1)).double().eval()
    field = capalloc.receptive_field(net, gaussian(1, 1, 7, 7), output_position=(2, 2), check=True)
    assert (int(field.support.sum()), field.influence_status) == (4, "whole input")
    assert "reach 4 of the 49 inputs" in field.notes[-1]


class Best(nn.Module):
    """Rows in the order that their sums ask for."""

    def forward(self, x):
        order = x.sum((1, 3)).argsort(-1)
        return x.gather(2, order[:, None, :, None].expand(x.shape))


def test_an_order_that_the_examples_decide():
    net = nn.Sequential(nn.Conv2d(1, 2, 3), Best(), nn.Conv2d(2, 1, 1)).eval()
    field = capalloc.receptive_field(net, gaussian(1, 1, 6, 6).float())
    assert (field.paths_status, field.influence_status) == ("depends on data", "depends on data")
    assert field.influence.all()


def largest(x):
    """Tokens times the place of the largest entry of each column."""
    return x * F.one_hot(x.argmax(1), 5).to(x.dtype).mT[:, :, :1]


def with_room(x):
    """Tokens that find room at the expert they choose, which takes two of them in turn."""
    chosen = F.one_hot(x[..., :2].argmax(-1), 2).to(x.dtype)
    return x * ((chosen.cumsum(1) <= 2) * chosen).sum(-1, keepdim=True)


CHOOSING = {
    "argmax": largest,
    "argsort": lambda x: x * x.argsort(1).to(x.dtype),
    "capacity of experts": with_room,
    "any": lambda x: x * (x > 1).any(2, keepdim=True),
    "all": lambda x: torch.where((x < 1).all(1, keepdim=True), x, 2 * x),
    "a count": lambda x: x * x.clamp(min=1).sub(1).count_nonzero(2).unsqueeze(2),
    "buckets": lambda x: x * torch.bucketize(x.flip(1), torch.linspace(-1, 1, 4)),
    "a search": lambda x: x * torch.searchsorted(x.detach().sort(2)[0], torch.zeros(*x.shape[:2], 1)),
}


@pytest.mark.parametrize("function", CHOOSING.values(), ids=CHOOSING)
def test_what_is_read_without_a_derivative_can_change_the_output(function):
    """Against what does change when one input is drawn anew, of many draws."""
    net, generator = nn.Sequential(Along(function), nn.Linear(3, 2)).double(), torch.Generator().manual_seed(5)
    field = capalloc.receptive_field(net, gaussian(2, 5, 3), output_position=(2, None))
    for _ in range(60):
        x = torch.randn(1, 5, 3, generator=generator, dtype=torch.float64)
        others = x.repeat(15, 1, 1).reshape(15, 15)
        others[range(15), range(15)] = torch.randn(15, generator=generator, dtype=torch.float64)
        with torch.no_grad():
            changed = (net(others.reshape(15, 5, 3)) != net(x))[:, 2].any(1)
        assert bool(torch.from_numpy(field.influence.values).reshape(-1)[changed].all())


def test_an_operator_without_a_kind_is_taken_to_read_everything():
    """The determinant of a corner, of which no more is known."""

    def cornered(x):
        return x * torch.linalg.det(x[:, :, :2, :2])[:, :, None, None].tanh()

    net = nn.Sequential(nn.Conv2d(1, 1, 2), Along(cornered), nn.Conv2d(1, 1, 2)).double().eval()
    x = gaussian(1, 1, 8, 8)
    field = capalloc.receptive_field(net, x, output_position=(5, 5))
    expected = reached(net, x, (None, 5, 5))
    torch.testing.assert_close(torch.from_numpy(field.influence.values), expected)
    assert "takes aten.linalg_det.default to read all that the arguments hold" in field.notes[1]


def test_a_masked_weight_keeps_its_holes():
    """The masked convolution of a PixelCNN: a parameter times a mask is a filter with holes."""

    def masked(x, c):
        return F.conv2d(x, c.weight * torch.ones(3, 3).triu().double(), padding=1)

    net = nn.Sequential(Along(masked, nn.Conv2d(1, 2, 3)), nn.ReLU(), Along(masked, nn.Conv2d(2, 1, 3))).double().eval()
    x = gaussian(1, 1, 9, 9)
    field = capalloc.receptive_field(net, x, check=True)
    torch.testing.assert_close(torch.from_numpy(field.support.values), reached(net, x, (None, 4, 4)))
    assert (field.support == field.influence).all()


@pytest.mark.parametrize("seed", range(6))
def test_random_stacks(seed):
    pick = random.Random(seed).sample(sorted(set(MIDDLES) - {"a norm of channels", "upsampling"}), 3)
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Conv2d(1, 4, 2), *(copy.deepcopy(MIDDLES[name]) for name in pick), nn.Conv2d(4, 2, 2))
    net, x = net.double().eval(), gaussian(1, *IMAGES)
    field = capalloc.receptive_field(net, x, check=True)
    torch.testing.assert_close(torch.from_numpy(field.influence.values), reached(net, x, field.output_position))


def test_a_gradient_beyond_the_bound_is_an_error(monkeypatch):
    net, x, position = images("GroupNorm")
    monkeypatch.setattr(bound_influence, "influence", lambda *_: Influence(torch.zeros(IMAGES, dtype=torch.bool)))
    with pytest.raises(ValueError, match="inputs beyond the field of influence have a gradient: the kind declared"):
        capalloc.receptive_field(net, x, output_position=position)


def test_the_random_state_and_the_model_are_left_alone():
    net, x, position = images("GroupNorm")
    before, state = copy.deepcopy(net.state_dict()), torch.get_rng_state()
    capalloc.receptive_field(net, x, output_position=position, check=True)
    assert torch.equal(torch.get_rng_state(), state)
    for name, value in net.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)


class Masked(nn.Module):
    """Sees three places of six, drawn at random, as masked autoencoders do."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.last = nn.LayerNorm(3), nn.Linear(3, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.norm(x.gather(-1, torch.rand(x.shape).argsort(-1)[..., :3])))


@pytest.mark.parametrize("check", [True, False])
def test_what_a_model_draws_is_the_same_throughout(check: bool):
    torch.manual_seed(0)
    field = capalloc.receptive_field(Masked().eval(), gaussian(2, 6).float(), check=check)
    assert (field.influence.values == (field.map.values > 0)).all()  # those that either example draws


class Dispatched(nn.Module):
    """Examples go to the expert that they choose, by the numbers of those that do."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.experts = nn.Linear(3, 2), nn.ModuleList([nn.Linear(4, 2), nn.Linear(4, 2)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weights, chosen = self.gate(x[:, 1:4]).softmax(1).max(1)
        out = x.new_zeros(len(x), 2)
        for k, expert in enumerate(self.experts):
            (rows,) = torch.where(chosen == k)
            out = out.index_add(0, rows, expert(x[rows, 2:6]) * weights[rows, None])
        return out


def test_experts_and_what_chooses_them_are_seen():
    torch.manual_seed(0)
    field = capalloc.receptive_field(Dispatched().eval(), gaussian(12, 8).float())
    assert field.influence.values.tolist() == [1 <= k < 6 for k in range(8)]  # the gate's three, the experts' four
    assert field.influence_status == "exact"


class Selected(nn.Module):
    """The units that are positive, of each example as many as it has."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(3, 5), nn.Linear(2, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.first(x)
        rows = [torch.stack([e[torch.nonzero(e > 0).flatten()].sum(), e[0]]) for e in h]
        return self.last(torch.stack(rows))


def test_sizes_that_the_data_decide_have_paths():
    torch.manual_seed(0)
    model, x = Selected().eval(), gaussian(12, 3).float()
    found = capalloc.propagate(model, x, solver="markov")
    assert float(found.capacity.sum()) + found.bias == pytest.approx(found.total, rel=1e-5)
    assert not found.attrs["symmetries_exact"]
    assert capalloc.receptive_field(model, x).influence.values.all()
