"""Graphs against the model they stand for: what has no derivative there carries nothing (docs/theory.md, section 4)."""

from __future__ import annotations

import signal
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import capalloc
from capalloc._graph.capture import capture, export_once
from capalloc._graph.interpret import evaluate
from capalloc._measure.forecast import NODES_OF_MODULE, num_nodes
from capalloc._model.problem import prepare
from zoo import gaussian, seeded_module


class Frozen(nn.Module):
    """A first layer that learns nothing, told in one of two ways."""

    def __init__(self, told_by: str) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 5), nn.Linear(4, 2), nn.Linear(5, 2)
        self.told_by = told_by

    def forward(self, x: Tensor) -> Tensor:
        if self.told_by == "detach":
            return self.c(torch.relu(self.a(x)).detach()) + self.b(x)
        with getattr(torch, self.told_by)():
            features = torch.relu(self.a(x))
        return self.c(features.clone()) + self.b(x)


@pytest.mark.parametrize("how", ["no_grad", "inference_mode"])
def test_parts_without_gradient_end_paths_as_detached_ones_do(how: str):
    x = gaussian(12, 4).float()
    found, detached = (
        capalloc.propagate(seeded_module(Frozen, told).float(), x, solver="markov") for told in (how, "detach")
    )
    np.testing.assert_allclose(found.capacity, detached.capacity, rtol=1e-12)
    assert float(found.by_parameter.sel(parameter=["a.weight", "a.bias"]).sum()) == 0
    assert found.attrs["unused_params"] == 25
    measured = capalloc.measure(seeded_module(Frozen, how).float(), x)
    assert float(measured.by_parameter.sel(parameter=["a.weight", "a.bias"]).sum()) == pytest.approx(0, abs=1e-9)


class Clamped(nn.Module):
    """Writes to its weights where no gradient sees it, as a constraint of the weights does."""

    def __init__(self, write: Callable[[nn.Module], object]) -> None:
        super().__init__()
        self.a, self.b, self.write = nn.Linear(4, 5), nn.Linear(5, 2), write

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            self.write(self.a)
        return self.b(torch.relu(self.a(x)))


WRITES: dict[str, Callable[[nn.Module], object]] = {
    "clamp": lambda a: a.weight.clamp_(-0.3, 0.3),
    "one row": lambda a: a.weight[0].clamp_(min=0.1),
    "lengths": lambda a: a.weight.div_(a.weight.norm(dim=1, keepdim=True)),
    "copy": lambda a: a.weight.copy_(a.weight.clamp(-0.3, 0.3)),
}


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
def test_parameters_that_forward_writes_to_are_in_use(write: Callable[[nn.Module], object]):
    model, x = seeded_module(Clamped, write), gaussian(60, 4)
    found, measured = capalloc.propagate(model, x, solver="markov"), capalloc.measure(model, x)
    assert found.attrs["unused_params"] == 0
    assert found.total == pytest.approx(measured.total)


def test_a_program_with_parts_without_gradient_stays_as_it_was():
    program = torch.export.export(seeded_module(Frozen, "no_grad"), (gaussian(3, 4),))
    before = [str(part.graph) for part in program.graph_module.modules()]
    allocation = capalloc.propagate(program, gaussian(3, 4), solver="markov")
    assert allocation.attrs["unused_params"] == 25
    assert [str(part.graph) for part in program.graph_module.modules()] == before


NORMS: dict[str, tuple[Callable[[], nn.Module], bool]] = {  # and whether it takes every channel's constant away
    "instance": (lambda: nn.InstanceNorm2d(4, affine=True), True),
    "running": (lambda: nn.InstanceNorm2d(4, track_running_stats=True), False),
    "group of one": (lambda: nn.GroupNorm(4, 4), True),
    "group of two": (lambda: nn.GroupNorm(2, 4), False),
    "positions": (lambda: nn.LayerNorm((3, 3)), True),
    "all": (lambda: nn.LayerNorm((4, 3, 3)), False),
}


@pytest.mark.parametrize("name", NORMS)
def test_biases_that_a_norm_takes_away_have_no_capacity(name: str):
    """As autograd says: no derivative of the outputs, and none of the mixed derivative either."""
    build, lost = NORMS[name]
    net = nn.Sequential(nn.Conv2d(2, 4, 3), build(), nn.ReLU(), nn.Flatten(), nn.Linear(36, 2)).double().eval()
    x = gaussian(3, 2, 5, 5)
    allocation = capalloc.propagate(net, x, solver="markov")
    held = float(allocation.by_parameter.sel(parameter="0.bias"))
    assert held == 0 if lost else held > 1
    (slope,) = torch.autograd.grad(net(x).square().sum(), [net[0].bias])
    assert bool((slope.abs() < 1e-12).all()) == lost
    problem = prepare(net, x)
    graph = capture(problem, 3)
    np.testing.assert_allclose(evaluate(graph, x)[graph.output], net(x).detach(), atol=1e-12)


def test_a_bias_that_is_read_before_the_norm_too_stays():
    class Skip(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv1d(2, 3, 2), nn.InstanceNorm1d(3)

        def forward(self, x: Tensor) -> Tensor:
            z = self.conv(x)
            return (F.relu(self.norm(z)) + z).flatten(1)

    allocation = capalloc.propagate(seeded_module(Skip), gaussian(3, 2, 5), solver="markov")
    assert float(allocation.by_parameter.sel(parameter="conv.bias")) > 0


class Assigned(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 3), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = x.new_zeros(len(x), 4)
        h[:, :3] = torch.relu(self.a(x))
        h[:, 3] = x[:, 0]
        return self.b(h)


def test_slices_that_are_written_have_derivatives():
    model, x = seeded_module(Assigned), gaussian(20, 4)
    assert capalloc.propagate(model, x, solver="markov").total == pytest.approx(22)
    assert capalloc.shattering(model, x).data.sizes


class Everyday(nn.Module):
    """What models do in evaluation mode: dropout that drops nothing, casts, masks of positions, slices."""

    def __init__(self, p: float, training: bool) -> None:
        super().__init__()
        self.a, self.b, self.p, self.training_too = nn.Linear(4, 6), nn.Linear(6, 2), p, training

    def forward(self, x: Tensor) -> Tensor:
        h = F.dropout(torch.relu(self.a(x)), self.p, training=self.training_too).to(torch.float64)
        allowed = (torch.arange(6) > 1) & (torch.arange(6) < 5)
        return self.b(torch.where(allowed, h, 0.0).type_as(x))


def test_what_has_a_rule_is_traced_once(monkeypatch):
    def again(*_: object) -> None:
        raise AssertionError("taken apart")

    model, x = seeded_module(Everyday, 0.5, training=False), gaussian(5, 4)
    drops = seeded_module(Everyday, 0.5, training=True)
    expected = capalloc.propagate(seeded_module(Everyday, 0.0, training=True), x, solver="markov")
    assert float(capalloc.propagate(drops, x, solver="markov").total) <= expected.total  # by the mask it draws
    monkeypatch.setattr(torch.export.ExportedProgram, "run_decompositions", again)
    np.testing.assert_allclose(capalloc.propagate(model, x, solver="markov").capacity, expected.capacity, rtol=1e-12)
    with pytest.raises(ValueError, match="taken apart"):
        capalloc.propagate(drops, x, solver="markov")


class Writes(nn.Module):
    """Writes in place: to a tensor of its own, and to one that is read again."""

    def __init__(self, again: bool) -> None:
        super().__init__()
        self.a, self.b, self.again = nn.Linear(4, 4), nn.Linear(4, 2), again

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x)
        first = h[:, :2] if self.again else h  # a view, which sees what is written
        out = F.relu_(h)
        out += self.a(out)
        return self.b(out) + (first if self.again else 0.0)


@pytest.mark.parametrize("again", [False, True])
def test_writes_that_nobody_sees_are_read_without_taking_the_graph_apart(again, monkeypatch):
    model, x = seeded_module(Writes, again), gaussian(5, 4)
    parted = []
    whole = torch.export.ExportedProgram.run_decompositions
    monkeypatch.setattr(
        torch.export.ExportedProgram, "run_decompositions", lambda *args: parted.append(1) or whole(*args)
    )
    problem = prepare(model, x, None, None, traced=True)
    graph = capture(problem, len(x))
    np.testing.assert_allclose(evaluate(graph, x)[graph.output], model(x).detach(), rtol=1e-12)
    assert bool(parted) is again


class Mapped(nn.Module):
    """A network of one example, which `torch.func.vmap` maps over all of them."""

    def __init__(self, mapped: bool) -> None:
        super().__init__()
        self.a, self.b, self.mapped = nn.Linear(4, 5), nn.Linear(5, 2), mapped

    def forward(self, x: Tensor) -> Tensor:
        def one(z: Tensor) -> Tensor:
            return self.b(torch.relu(self.a(z)))

        return torch.func.vmap(one)(x) if self.mapped else one(x)


def test_what_vmap_maps_is_captured_as_what_it_computes():
    found, plain = (
        capalloc.propagate(seeded_module(Mapped, mapped), gaussian(12, 4), solver="markov") for mapped in (True, False)
    )
    assert found.total == pytest.approx(plain.total)
    np.testing.assert_allclose(found.capacity, plain.capacity, rtol=1e-9)


def test_operators_are_counted_by_modules_where_a_graph_is_of_one_number_of_examples():
    class Fixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.head, self.shift = nn.Linear(4, 2), nn.Parameter(torch.ones(1, 4))

        def forward(self, x):
            return self.head(x + self.shift.expand(len(x), -1))

    of_one, of_any = (export_once(prepare(seeded_module(make), gaussian(8, 4), None, None)) for make in (Fixed, head))
    assert of_one.program is None
    assert num_nodes(of_one) == NODES_OF_MODULE * len(list(of_one.model.modules()))
    assert num_nodes(of_any) == len(of_any.program.graph.nodes)


def head() -> nn.Module:
    return nn.Linear(4, 2)


@pytest.mark.parametrize("layer", [nn.GRU, nn.LSTM, nn.RNN])
@pytest.mark.parametrize("batch_first", [False, True])
def test_a_recurrence_is_exported_for_any_number_of_examples(layer, batch_first):
    class Last(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.head = layer(2, 3, batch_first=batch_first), nn.Linear(3, 2)

        def forward(self, x):
            found, _ = self.layer(x if batch_first else x.transpose(0, 1))
            return self.head(found[:, -1] if batch_first else found[-1])

    model, x = seeded_module(Last), gaussian(8, 5, 2)
    problem = export_once(prepare(model, x, None, None))
    assert problem.program is not None
    for number in (2, 5, 8):
        torch.testing.assert_close(problem.program.module()(x[:number]), model(x[:number]))


class Step(torch.autograd.Function):
    """1 where x > 0, with the gradient of a smooth step."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return (x > 0).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0] / (1 + (3 * ctx.saved_tensors[0]) ** 2)


class Reverse(torch.autograd.Function):
    """The identity, with the gradient reversed."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return -grads[0]


class Tanh(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x.tanh())
        return x.tanh()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0] * (1 - ctx.saved_tensors[0] ** 2)


class Spiking(nn.Module):
    def __init__(self, step: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.last, self.step = nn.Linear(3, 4), nn.Linear(4, 2), step

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.step(self.first(x)))


def smooth(x: Tensor) -> Tensor:
    return torch.atan(3 * x) / 3


def test_a_surrogate_gradient_is_seen_and_its_other_spelling_is_answered() -> None:
    network, x = seeded_module(Spiking, Step.apply), gaussian(12, 3)
    for of in (partial(capalloc.propagate, solver="markov"), capalloc.receptive_field, capalloc.diagnose):
        with pytest.raises(
            ValueError, match=r"custom autograd functions \(Step\) have one of their own, as surrogates"
        ):
            of(network, x)
    assert not any(p.grad is not None for p in network.parameters())
    network.step = lambda x: smooth(x) + ((x > 0).to(x.dtype) - smooth(x)).detach()
    assert capalloc.propagate(network, x, solver="markov").attrs["unused_params"] == 0


def test_a_custom_function_with_the_gradient_of_its_forward_is_that_function() -> None:
    network, x = seeded_module(Spiking, Tanh.apply), gaussian(12, 3)
    plain = seeded_module(Spiking, torch.tanh)
    np.testing.assert_allclose(*(capalloc.propagate(m, x, solver="markov").capacity for m in (network, plain)))


def test_a_reversed_gradient_is_seen_behind_units_that_are_closed_on_an_example() -> None:
    network = seeded_module(Spiking, lambda h: Reverse.apply(torch.relu(h)))
    x = gaussian(200, 3)
    closed = x[(network.first(x) < 0).all(1)]
    assert len(closed) > 1
    with pytest.raises(ValueError, match=r"custom autograd functions \(Reverse\)"):
        capalloc.propagate(network, closed, solver="markov")


class Density(nn.Module):
    """A likelihood: torch checks the arguments of distributions by their values."""

    def __init__(self) -> None:
        super().__init__()
        self.mean, self.log_scale = nn.Linear(2, 1), nn.Linear(2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.distributions.Normal(self.mean(x[:, :2]), self.log_scale(x[:, :2]).exp()).log_prob(x[:, 2:])


def test_checks_of_distributions_are_no_branches_of_the_model() -> None:
    checked = torch.distributions.Distribution._validate_args  # torch's own compiler turns it off for good
    found = capalloc.propagate(seeded_module(Density), gaussian(12, 3), solver="markov")
    assert found.total > 0
    assert "strict" not in str(found.attrs["notes"])
    assert torch.distributions.Distribution._validate_args is checked


def test_an_interrupt_waits_for_the_end_of_an_export():
    """What Python raises inside of some calls of torch's tracer ends the process."""

    class Interrupted(nn.Linear):
        ended = False

        def forward(self, x: Tensor) -> Tensor:
            if torch.compiler.is_exporting():
                signal.raise_signal(signal.SIGINT)
                Interrupted.ended = True
            return super().forward(x)

    given = signal.signal(signal.SIGINT, signal.default_int_handler)  # a run in the background ignores interrupts
    try:
        with pytest.raises(KeyboardInterrupt):
            capalloc.propagate(Interrupted(3, 2).double(), gaussian(9, 3), solver="markov")
        assert Interrupted.ended
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, given)
