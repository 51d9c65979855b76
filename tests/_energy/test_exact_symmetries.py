"""Symmetries that are called exact: the total is then the functional dimension that `measure` counts."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import capalloc
from capalloc._energy.symmetries.labels import Channels
from capalloc._operators.calls import invoke
from capalloc._operators.records import of_kind, record
from zoo import gaussian, seeded_module

#: Arguments of operators that need some.
ARGUMENTS: dict[str, list[Any]] = {
    "aten.clamp.default": [-0.5, 0.7],
    "aten.clamp_min.default": [0.3],
    "aten.clamp_max.default": [0.3],
    "aten.pow.Tensor_Scalar": [3],
    "aten.threshold.default": [0.3, 0.1],
    "aten.hardtanh.default": [-0.5, 0.5],
}
#: Centres of pre-activations where an operator is not known about 0, which then stay within one half of it.
CENTRES = dict.fromkeys(("log", "log2", "log10", "sqrt", "rsqrt", "reciprocal", "lgamma", "digamma"), 1.0)
CENTRES |= {"logit": 0.5, "acosh": 2.0} | dict.fromkeys(("asin", "acos", "atanh", "erfinv", "log1p"), 0.01)
#: Activations that are made of operators of other kinds.
MADE: dict[str, Callable[[Tensor], Tensor]] = {
    "prelu": lambda z: F.prelu(z, z.new_full((1,), 0.3)),
    "choose": lambda z: torch.where(z > 0, z, 0.1 * z),
    "choose from 0.3 on": lambda z: torch.where(z > 0.3, z, 0.1 * z),
    "choose or 1": lambda z: torch.where(z > 0, z, 1.0),
    "mask": lambda z: z * (z > 0),
    "fill": lambda z: z.masked_fill(z < 0, 0.0),
    "fill with 1": lambda z: z.masked_fill(z < 0, 1.0),
    "maximum": lambda z: torch.maximum(z, torch.tensor(0.3)),
    "clamp from a tensor on": lambda z: z.clamp(min=torch.tensor(0.3)),
    "maxout": lambda z: torch.maximum(z, -0.2 * z),
    "the larger of two units": lambda z: torch.stack([z, z.flip(-1)]).amax(0),
    "straight through": lambda z: z + (z.sign() - z).detach(),
    "shifted": lambda z: F.relu(z) + 1,
    "gated by itself": lambda z: z * torch.sigmoid(z),
    "two slopes": lambda z: F.relu(z) + 0.1 * F.relu(-z),
    "linear": lambda z: 2 * z,
    "sorted": lambda z: z.sort(-1).values,
    "softmax": lambda z: z.softmax(-1),
    "norm": lambda z: z / z.norm(dim=-1, keepdim=True),
    "layer norm": lambda z: F.relu(F.layer_norm(z, (3,))),
}


class Between(nn.Module):
    """A function of the hidden units between two layers."""

    def __init__(self, function: Callable[[Tensor], Tensor], centre: float = 0.0) -> None:
        super().__init__()
        self.function = function
        self.first, self.last = nn.Linear(2, 3), nn.Linear(3, 1)
        with torch.no_grad():
            self.first.weight *= 0.1 if centre else 2.0
            self.first.bias.copy_(self.first.bias * 0.1 + centre)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.function(self.first(x)))


def check(model: nn.Module) -> bool:
    """Compare the totals where symmetries are called exact, and tell whether they are."""
    x = gaussian(80, 2).clamp(-2, 2)  # more examples than are walked at once
    found = capalloc.propagate(model, x, solver="markov", table=False)
    assert len(found.attrs["notes"]) > 1 or found.attrs["symmetries_exact"]
    if found.attrs["symmetries_exact"]:
        assert found.total == pytest.approx(capalloc.measure(model, x).total, abs=1e-6)
    return bool(found.attrs["symmetries_exact"])


@pytest.mark.parametrize("op", of_kind("activation"), ids=str)
def test_symmetries_through_every_activation(op: Any) -> None:
    arguments = ARGUMENTS.get(str(op), [])
    names = [argument.name for argument in op._schema.arguments]
    run = lambda z: invoke(op, dict(zip(names, [z, *arguments], strict=False)))  # noqa: E731
    model = seeded_module(Between, run, CENTRES.get(op.overloadpacket.__name__, 0.0))
    homogeneous = check(model)
    assert homogeneous or not record(op).scales


@pytest.mark.parametrize("function", MADE.values(), ids=MADE)
def test_symmetries_through_what_is_made_of_other_operators(function: Callable[[Tensor], Tensor]) -> None:
    check(seeded_module(partial(Between, function)))


class Recurrence(nn.Module):
    """A linear recurrence: whatever its parameters, a linear function of five inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.keep, self.read, self.write = (nn.Parameter(gaussian(3, seed=k).double()) for k in range(3))

    def forward(self, x: Tensor) -> Tensor:
        h = torch.zeros_like(self.keep)
        for t in range(5):
            h = self.keep * h + x[:, t, None] * self.read
        return (h @ self.write)[:, None]


class Siamese(nn.Module):
    """Two linear layers in a row, twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(2, 3), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.first(x[:, :2])) + self.last(self.first(x[:, 2:4]))


class Shifts(nn.Module):
    """A scale and a shift after each of two layers, the same: the next layers can make up for both."""

    def __init__(self) -> None:
        super().__init__()
        self.layers, self.last = nn.ModuleList([nn.Linear(5, 5), nn.Linear(5, 5)]), nn.Linear(5, 2)
        self.scale, self.shift = nn.Parameter(gaussian(5)), nn.Parameter(gaussian(5))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = F.relu(layer(x)) * self.scale + self.shift
        return self.last(x)


class Bottleneck(nn.Module):
    """A residual sum with the inputs, which a smaller layer reads: more is written than it can tell apart."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.inner, self.last = nn.Linear(5, 3), nn.Linear(3, 5), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(x + self.inner(F.relu(self.first(x))))


class Slopes(nn.Sequential):
    """A learnt slope for each unit: the linear parts of all units are one linear function."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(5, 9), nn.PReLU(9), nn.Linear(9, 1))


class Recurrent(nn.Module):
    """A recurrent layer with two biases, which every step adds up."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.last = nn.RNN(1, 3, nonlinearity="relu", batch_first=True), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.layer(x[..., None])[0][:, -1])


@pytest.mark.parametrize("kind", [Recurrence, Siamese, Shifts, Bottleneck, Slopes, Recurrent])
def test_where_linear_parts_have_more_symmetries_they_are_not_called_exact(kind: type[nn.Module]) -> None:
    model, x = seeded_module(kind), gaussian(200, 5)
    found = capalloc.propagate(model, x, solver="markov")
    assert found.total > capalloc.measure(model, x).total + 0.5
    assert not found.attrs["symmetries_exact"]


#: Fixed maps of three units that loosen more than rescalings do, one way or another.
FIXED: dict[str, Callable[[Tensor], Tensor]] = {
    "differences": lambda z: z[..., 1:] - z[..., :-1],
    "differences by neg": lambda z: z[..., 1:] + z[..., :-1].neg(),
    "differences, absolute": lambda z: (z[..., 1:] - z[..., :-1]).abs(),
    "without the mean": lambda z: z - z.mean(-1, keepdim=True),
    "gates without their mean": lambda z: F.relu(z) - F.relu(z).mean(-1, keepdim=True),
    "mean": lambda z: z.mean(-1, keepdim=True),
    "weighted sum": lambda z: (z * z.new_tensor([1.0, -1.0, 1.0])).sum(-1, keepdim=True),
    "reflection": lambda z: z + z.flip(-1),
    "fixed matrix": lambda z: z @ z.new_tensor([[1.0], [2.0], [3.0]]),
    "fixed convolution": lambda z: F.conv1d(z[:, None], z.new_tensor([[[-1.0, 1.0]]]))[:, 0],
    "spectrum": lambda z: torch.fft.rfft(z).real,
    "below the maximum": lambda z: z - z.amax(-1, keepdim=True),
    "repeated gates": lambda z: F.relu(z).repeat_interleave(2, -1),
    "gates in four windows": lambda z: F.avg_pool1d(F.relu(z)[:, None], 2, 1, 1)[:, 0],
    "gates beside their linear map": lambda z: F.relu(z) + F.relu(z) @ z.new_tensor([[1.0, 2, 0]] * 3),
    "one unit picked twice": lambda z: F.relu(z)[:, [0, 0, 1, 2]],
    "one unit gathered twice": lambda z: F.relu(z).gather(1, torch.tensor([0, 0, 1, 2]).expand(len(z), -1)),
    "one constant unit": lambda z: F.relu(z).masked_fill(torch.arange(3) == 0, 2.0),
    "gates twice": lambda z: torch.cat([h := F.relu(z), h], -1),
}


class Mapped(nn.Module):
    """A fixed map between two layers, or behind the first."""

    def __init__(self, function: Callable[[Tensor], Tensor], read: bool) -> None:
        super().__init__()
        self.function = function
        self.first = nn.Linear(2, 3)
        self.last = nn.Linear(function(torch.zeros(1, 3)).shape[1], 2) if read else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.function(self.first(x)))


@pytest.mark.parametrize("read", [True, False])
@pytest.mark.parametrize("function", FIXED.values(), ids=FIXED)
def test_where_fixed_maps_take_more_away_symmetries_are_not_called_exact(
    function: Callable[[Tensor], Tensor], read: bool
) -> None:
    model, x = seeded_module(partial(Mapped, function, read)), gaussian(24, 2)
    found = capalloc.propagate(model, x, solver="markov")
    assert not found.attrs["symmetries_exact"] or found.total == pytest.approx(capalloc.measure(model, x).total)
    segments = capalloc.propagate(model, x, solver=capalloc.solvers.Segments(4))
    assert not segments.attrs["symmetries_exact"] or segments.total == pytest.approx(capalloc.measure(model, x).total)
    assert read <= (not found.attrs["symmetries_exact"])


class Average(nn.Module):
    """What usual networks do: a sum of branches that begin at different gates, pooled."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.inner, self.last = nn.Conv1d(1, 4, 2), nn.Conv1d(1, 4, 2), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last((F.relu(self.conv(x[:, None])) + F.relu(self.inner(x[:, None]))).mean(-1))


def test_averages_of_gates_are_counted_exactly() -> None:
    model, x = seeded_module(Average), 4 * gaussian(200, 5)
    found = capalloc.propagate(model, x, solver="markov")
    assert found.attrs["symmetries_exact"]
    assert found.total == pytest.approx(capalloc.measure(model, x).total)


class Either(nn.Module):
    """One of two hidden units, by the first input."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(2, 2), nn.Linear(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.first(x))
        return self.last(torch.where(x[:, :1] > 0, h[:, :1], h[:, 1:]))


@pytest.mark.parametrize("batch_size", [1, 60])
def test_what_one_example_ties_is_tied_for_all(batch_size: int) -> None:
    model, x = seeded_module(Either), gaussian(60, 2)
    found = capalloc.propagate(model, x, solver="markov", batch_size=batch_size)
    assert found.attrs["symmetries"] == 1
    assert found.total == pytest.approx(capalloc.measure(model, x).total)


def test_channels_that_differ_from_batch_to_batch_are_refused() -> None:
    first, second = Channels(), Channels()
    first.fresh((2,))
    second.fresh((3,))
    with pytest.raises(ValueError, match="depends on the examples"):
        first.with_ties_of(second)


class Liquid(nn.Module):
    """A recurrence whose shared vector is rescaled at every step."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.read = nn.Linear(5, 3), nn.Linear(3, 2)
        self.level, self.rate = (nn.Parameter(gaussian(3, seed=k).double()) for k in range(2))

    def forward(self, x: Tensor) -> Tensor:
        h = x.new_zeros(len(x), 3)
        for step in x.unbind(1):
            for _ in range(2):
                gate = torch.sigmoid(self.inner(torch.cat([step, h], 1)))
                h = (h + gate * self.level / 2) / (1 + (1 / F.softplus(self.rate) + gate) / 2)
        return self.read(h)


def test_no_tensor_holds_less_than_nothing() -> None:
    found = capalloc.propagate(seeded_module(Liquid), gaussian(24, 4, 2), solver="markov")
    assert float(found.by_parameter.min()) >= 0
    assert float(found.by_parameter.sum()) == pytest.approx(found.total)
