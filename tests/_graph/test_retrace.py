"""Models that `torch.export` refuses, against the same models written so that it takes them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils import checkpoint as checkpoints
from torch.utils.checkpoint import checkpoint

import capalloc
from capalloc._graph import capture, retrace
from capalloc._model.problem import prepare
from capalloc._operators.decompositions import PACKED, aten
from zoo import gaussian, seeded_module


class Branching(nn.Module):
    def __init__(self, where: str | None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.norm, self.b, self.where = nn.Linear(4, 5), nn.LayerNorm(5), nn.Linear(5, 2), where
        self.register_buffer("large", torch.tensor(3.0))
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(self.a(x))
        tests = {"buffer": lambda: self.large > 2, "parameter": lambda: self.a.weight.sum() < 1e3, None: lambda: True}
        tests |= {"made": lambda: torch.ones(3, 3).triu().sum() > 5}
        tests |= {"inputs": lambda: x.sum() > 0, "shapes": lambda: len(x[:, 0].nonzero())}
        if tests[self.where]():
            h = torch.relu(h)
        return self.b(h)


class ByData(nn.Module):
    """Cuts a gradient by `.data`, before units that are closed on the examples."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 3), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.relu(self.a(x).data + x[:, :3] - 1.0))


def test_what_forward_takes_out_of_the_graph_is_no_number_of_the_example() -> None:
    model, x = seeded_module(ByData), 0.1 * gaussian(5, 4)
    field = capalloc.receptive_field(model, x)
    assert field.support.values.tolist() == [True, True, True, False]
    assert bool(field.influence.all())


@pytest.mark.parametrize("where", ["buffer", "parameter", "made"])
def test_branches_on_what_does_not_depend_on_the_inputs_are_taken_as_they_are(where: str) -> None:
    x = gaussian(7, 4)
    found = capalloc.propagate(Branching(where), x, solver="markov")
    plain = capalloc.propagate(Branching(None), x, solver="markov")
    np.testing.assert_allclose(found.capacity, plain.capacity)
    np.testing.assert_allclose(found.by_parameter.sum(), plain.by_parameter.sum())
    assert retrace.RETRACED in found.attrs["notes"]
    assert retrace.RETRACED not in plain.attrs["notes"]


@pytest.mark.parametrize("where", ["inputs", "shapes"])
def test_branches_and_shapes_of_the_inputs_are_refused(where: str) -> None:
    with pytest.raises(ValueError, match="makes a branch or a shape of the inputs"):
        retrace.retrace(Branching(where), gaussian(2, 4))


class Clamps(nn.Module):
    """Keeps a parameter positive by writing to its data, as SyncNet does."""

    def __init__(self, writes: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.writes = nn.Linear(4, 5), nn.Linear(5, 2), writes
        self.decay = nn.Parameter(torch.tensor([0.5, 1.0, 2.0, 0.0 if not writes else -1.0]))
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        if self.writes:
            self.decay.data.clamp_(min=0)
        return self.b(torch.relu(self.a(x * self.decay)))


def test_what_forward_writes_to_its_parameters_was_written_when_it_ran() -> None:
    x, model = gaussian(7, 4), Clamps(True)
    found, plain = (capalloc.propagate(m, x, solver="markov") for m in (model, Clamps(False)))
    np.testing.assert_allclose(found.capacity, plain.capacity)
    assert float(model.decay[3]) == -1


def test_the_last_way_to_a_graph_is_that_of_reading_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    x, export = gaussian(7, 4), torch.export.export
    plain = capalloc.propagate(Branching(None), x, solver="markov")

    def reads(*args: Any, strict: bool = False, **options: Any) -> torch.export.ExportedProgram:
        if not strict:
            raise RuntimeError("no model runs")
        return export(*args, strict=strict, **options)

    monkeypatch.setattr(torch.export, "export", reads)
    found = capalloc.propagate(Branching(None), x, solver="markov")
    np.testing.assert_allclose(found.capacity, plain.capacity)
    assert capture.STRICT in found.attrs["notes"]
    assert capture.STRICT not in plain.attrs["notes"]
    with pytest.raises(ValueError, match="no model runs"):  # the first way's reason, as export reads no such write
        capalloc.propagate(Clamps(True), x, solver="markov")


def test_a_graph_that_writes_to_what_it_has_no_values_of_is_none() -> None:
    with pytest.raises(ValueError, match="writes to what it has no values of"):
        capture._exported(prepare(Clamps(True), gaussian(7, 4)), 3, strict=True)


class Conditional(nn.Module):
    def __init__(self, cond: Callable[..., Tensor] | None, data: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.cond, self.data = nn.Linear(4, 5), nn.Linear(5, 2), cond, data
        self.register_buffer("flag", torch.tensor(True))
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x)
        if self.cond is None:
            return self.b(torch.relu(h))
        pred = x.sum() < 1e9 if self.data else self.flag
        return self.b(self.cond(pred, torch.relu, torch.tanh, (h,)))


def looked_up(*args: Any) -> Tensor:
    return torch.cond(*args)


@pytest.mark.parametrize("data", [False, True])
def test_the_branch_that_cond_takes_is_measured(data: bool) -> None:
    x, own = gaussian(30, 4), torch.cond
    expected = capalloc.measure(Conditional(None), x)
    found = capalloc.measure(Conditional(looked_up, data), x)
    np.testing.assert_allclose(found.capacity, expected.capacity, rtol=1e-6)
    assert torch.cond is own


class Checkpointed(Conditional):
    """A layer that is computed anew in the backward pass."""

    def forward(self, x: Tensor) -> Tensor:
        return self.b(checkpoint(lambda h: torch.relu(self.a(h)), x, use_reentrant=True))


@pytest.mark.parametrize("method", [capalloc.measure, partial(capalloc.propagate, solver="markov")])
def test_reentrant_checkpoints_are_seen_through(method: Callable[..., capalloc.Allocation]) -> None:
    x, own = gaussian(30, 4), checkpoints.CheckpointFunction
    np.testing.assert_allclose(method(Checkpointed(None), x).capacity, method(Conditional(None), x).capacity, rtol=1e-9)
    assert checkpoints.CheckpointFunction is own


def test_paths_go_through_the_branch_that_cond_takes() -> None:
    x = gaussian(30, 4)
    found, plain = (capalloc.propagate(Conditional(cond), x, solver="markov") for cond in (looked_up, None))
    np.testing.assert_allclose(found.capacity, plain.capacity, rtol=1e-6)
    with pytest.raises(NotImplementedError, match="a call of torch's cond with functions of its own"):
        capalloc.propagate(Conditional(torch.cond), x, solver="markov")


def test_programs_with_branches_are_measured() -> None:
    x = gaussian(30, 4)
    program = torch.export.export(Conditional(torch.cond), (x[:3],), dynamic_shapes=({0: torch.export.Dim.AUTO},))
    assert capalloc.measure(program, x).total == pytest.approx(capalloc.measure(Conditional(None), x).total)


def test_a_causal_mask_that_is_looked_for_is_the_one_that_is_declared() -> None:
    class Encoder(nn.Module):
        def __init__(self, declared: bool | None) -> None:
            super().__init__()
            torch.manual_seed(0)
            layer = nn.TransformerEncoderLayer(4, 2, 4, batch_first=True)
            self.encoder, self.declared = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False), declared

        def forward(self, x: Tensor) -> Tensor:
            mask = nn.Transformer.generate_square_subsequent_mask(3)
            return self.encoder(x, mask=mask, is_causal=self.declared)[:, -1]

    x = gaussian(5, 3, 4).float()
    found, declared = (capalloc.propagate(Encoder(d), x, solver="markov") for d in (None, True))
    np.testing.assert_allclose(found.capacity, declared.capacity, rtol=1e-5)


def test_the_model_and_the_random_state_stay_as_they_were() -> None:
    model, state = Branching("buffer").train(), torch.get_rng_state()
    capalloc.propagate(model, gaussian(7, 4), solver="markov")
    assert model.training
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert torch.equal(torch.get_rng_state(), state)


class Force(nn.Module):
    """The gradient of an energy along the inputs, by a transform of torch or written out."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.first, self.last, self.way = nn.Linear(4, 5), nn.Linear(5, 1, bias=False), way

    def energy(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(self.first(x))).sum()

    def forward(self, x: Tensor) -> Tensor:
        if self.way == "vjp":
            _, pull = torch.func.vjp(self.energy, x)
            return pull(torch.ones(()).to(x))[0]
        if self.way == "autograd":
            with torch.enable_grad():
                x = x if x.requires_grad else x.clone().requires_grad_()
                return torch.autograd.grad(self.energy(x), x, create_graph=True)[0]
        if self.way == "written out":
            return (self.last.weight * (1 - torch.tanh(self.first(x)) ** 2)) @ self.first.weight
        return getattr(torch.func, self.way)(self.energy)(x)


@pytest.mark.parametrize("way", ["grad", "vjp", "autograd"])
def test_derivatives_that_forward_takes_are_in_the_graph(way: str) -> None:
    networks = [seeded_module(lambda way=way: Force(way)) for way in (way, "written out")]
    x = gaussian(40, 4)
    found, expected = (capalloc.propagate(network, x, solver="markov") for network in networks)
    np.testing.assert_allclose(found.capacity, expected.capacity, rtol=1e-6)
    assert found.total == pytest.approx(capalloc.measure(networks[0], x).total)


class Packed(nn.Module):
    """A recurrent layer on the first two moments of three, packed or cut off; or as long as inputs are not 0."""

    def __init__(self, kind: type[nn.RNNBase], options: dict[str, object], of: str) -> None:
        super().__init__()
        self.layer, self.of = kind(2, 3, batch_first=True, **options), of

    def forward(self, x: Tensor) -> Tensor:
        if self.of == "cut":
            return F.pad(self.layer(x[:, :2])[0], (0, 0, 0, 1)).flatten(1)
        lengths = torch.full((len(x),), 2) if self.of == "packed" else (x != 0).any(2).sum(1)
        rows = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True)
        return nn.utils.rnn.pad_packed_sequence(self.layer(rows)[0], batch_first=True, total_length=3)[0].flatten(1)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (nn.LSTM, {"num_layers": 2, "bidirectional": True, "proj_size": 2}),
        (nn.GRU, {"bias": False}),
        (nn.RNN, {"bidirectional": True}),
        (nn.RNN, {"nonlinearity": "relu"}),
    ],
)
def test_packed_sequences_are_the_moments_that_they_hold(kind: type[nn.RNNBase], options: dict[str, object]) -> None:
    packed, cut = (seeded_module(Packed, kind, options, of) for of in ("packed", "cut"))
    x = gaussian(4, 3, 2)
    found, expected = (capalloc.propagate(model, x, solver="markov") for model in (packed, cut))
    np.testing.assert_allclose(found.capacity, expected.capacity, rtol=1e-6)


def test_lengths_that_the_inputs_make_are_refused() -> None:
    with pytest.raises(ValueError, match=r"torch.export cannot capture this model"):
        capalloc.propagate(seeded_module(Packed, nn.GRU, {}, "own"), gaussian(4, 3, 2), solver="markov")


def test_sequences_of_several_lengths_are_packed_and_unpacked_as_by_torch() -> None:
    """The steps in their place have the outputs of torch's operators, with sequences that end one after another."""
    rnn, lengths = nn.utils.rnn, torch.tensor([4, 2, 2, 1])
    layer = seeded_module(nn.LSTM, 2, 3, num_layers=2, bidirectional=True)
    x, initial = gaussian(4, 4, 2), tuple(gaussian(4, 4, 3, seed=k) for k in (1, 2))
    expected = rnn.pack_padded_sequence(x, lengths, batch_first=True)
    data, sizes = PACKED[aten._pack_padded_sequence.default](x, lengths, True)
    torch.testing.assert_close((data, sizes), (expected.data, expected.batch_sizes))
    outputs, (h, c) = layer(expected, initial)
    found = PACKED[aten.lstm.data](data, sizes, initial, layer._flat_weights, True, 2, 0.0, False, True)
    torch.testing.assert_close(found, (outputs.data, h, c))
    torch.testing.assert_close(
        PACKED[aten._pad_packed_sequence.default](found[0], sizes, True, 7.0, 5),
        rnn.pad_packed_sequence(outputs, batch_first=True, padding_value=7.0, total_length=5),
    )
