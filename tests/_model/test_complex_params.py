"""Complex parameters and buffers: capacity of the same network written with pairs of real numbers."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

import capalloc
from capalloc._model.complex_params import cast
from capalloc.app.callbacks.kept_model import KeptModel
from reference import capacity_table, constraints
from zoo import gaussian


class Holds(nn.Module):
    """Numbers by name, as complex parameters or, as they were `written`, as pairs of real ones."""

    written = False

    def __init__(self, **shapes: tuple[int, ...]) -> None:
        super().__init__()
        drawn = torch.Generator().manual_seed(1)
        for name, shape in shapes.items():
            pairs = torch.randn(*shape, 2, generator=drawn) / 2
            setattr(self, name, nn.Parameter(pairs if self.written else torch.view_as_complex(pairs)))

    def read(self, name: str) -> Tensor:
        held: Tensor = getattr(self, name)
        return held if held.is_complex() else torch.view_as_complex(held)


class Spectral(Holds):
    """A Fourier layer: the lowest modes have weights of their own between channels."""

    def __init__(self) -> None:
        super().__init__(modes=(2, 2, 2))
        self.lift, self.out = nn.Linear(1, 2), nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.lift(x[..., None]).mT
        kept = torch.einsum("bik,iok->bok", torch.fft.rfft(h)[..., :2], self.read("modes"))
        return self.out(torch.relu(torch.fft.irfft(kept, n=x.shape[1]) + h)[..., :3].square().mean(2))


class Recurrence(Holds):
    """A diagonal linear recurrence, two of whose names stand for one parameter."""

    def __init__(self) -> None:
        super().__init__(enter=(3, 1), decay=(3,), leave=(2, 3))
        self.again = self.decay

    def forward(self, x: Tensor) -> Tensor:
        h = x.new_zeros(len(x), 3).to(x.dtype.to_complex())
        for k in range(x.shape[1]):
            h = self.read("decay" if k % 2 else "again") * h + x[:, k : k + 1].to(h.dtype) @ self.read("enter").T
        return torch.relu((h @ self.read("leave").T).real)


KINDS = pytest.mark.parametrize("kind", [Spectral, Recurrence])


def pair(kind: type[Holds]) -> tuple[nn.Module, nn.Module]:
    """A model with complex parameters, and the same with pairs of real ones."""
    made = []
    for written in (False, True):
        torch.manual_seed(0)
        made.append(type(kind.__name__, (kind,), {"written": written})().eval())
    return made[0], made[1]


@KINDS
def test_capacity_is_that_of_pairs_of_real_numbers(kind: type[Holds]) -> None:
    (model, written), x = pair(kind), gaussian(30, 4).float()
    found, expected = (capalloc.measure(one, x) for one in (model, written))
    table = capacity_table(constraints(written, x))
    assert found.attrs["parameter_sizes"] == {name: p.numel() for name, p in written.named_parameters()}
    assert found.total == pytest.approx(table.sum(), rel=1e-6)
    np.testing.assert_allclose(found.capacity, table.sum(0)[:-1], rtol=1e-5)
    np.testing.assert_array_equal(found.by_parameter, expected.by_parameter)
    np.testing.assert_allclose(capalloc.propagate(model, x).capacity, found.capacity, rtol=1e-9)
    grams = (capalloc.output_gram(one, x[:4], side="params", dtype=torch.float64) for one in (model, written))
    torch.testing.assert_close(*grams)


@KINDS
def test_the_users_model_stays_as_it_is(kind: type[Holds]) -> None:
    model, x = pair(kind)[0], gaussian(8, 4).float()
    before, were = model(x), {name: p.dtype for name, p in model.named_parameters()}
    capalloc.propagate(model, x)
    torch.testing.assert_close(model(x), before, rtol=0, atol=0)
    assert {name: p.dtype for name, p in model.named_parameters()} == were


@KINDS
def test_paths_take_weights_of_complex_numbers_as_constants_and_count_them(kind: type[Holds]) -> None:
    (model, written), x = pair(kind), gaussian(6, 4).float()
    weights = sum(2 * p.numel() for p in model.parameters() if p.is_complex())
    program = torch.export.export(model, (x,))
    for one in (model, written, program):
        found = capalloc.propagate(one, x, solver="markov")
        assert found.attrs["unseen_params"] == weights
        assert any("weights of complex numbers" in note for note in found.attrs["notes"])
    measured = capalloc.measure(model, x).total
    assert capalloc.propagate(written, x, solver="segments").total == pytest.approx(measured, abs=0.5)
    assert capalloc.measure(program, x).total == pytest.approx(measured)


@KINDS
def test_scores_of_both_parts_prune_a_number(kind: type[Holds]) -> None:
    model, x = pair(kind)[0], gaussian(6, 4).float()
    capalloc.audit(model, x, seconds=1)
    importance = capalloc.prune_scores(model, x).importance(model)
    assert all(scores.shape == getattr(module, leaf).shape for (module, leaf), scores in importance.items())


def test_notes_count_the_real_numbers() -> None:
    model, x = pair(Recurrence)[0], gaussian(8, 4).float()
    model.enter.requires_grad_(False)
    found = capalloc.propagate(model, x)
    assert "6 of 24 parameters are frozen" in found.attrs["notes"][0]
    assert found.attrs["made"]["model"].endswith("24 parameters")


class Turned(nn.Module):
    """A dense layer, its numbers turned by fixed phases, kept as a complex `buffer` or as they are."""

    def __init__(self, *, buffer: bool) -> None:
        super().__init__()
        self.enter, self.leave = nn.Linear(4, 6), nn.Linear(6, 2)
        phases = torch.polar(torch.ones(3), torch.tensor([0.3, 1.2, 2.0]))
        if buffer:
            self.register_buffer("phases", phases)
        else:
            self.phases = phases

    def forward(self, x: Tensor) -> Tensor:
        h = torch.view_as_complex(self.enter(x).reshape(-1, 3, 2)) * self.phases
        return self.leave(torch.relu(torch.view_as_real(h).flatten(1)))


def test_complex_buffers_keep_their_imaginary_parts() -> None:
    found = []
    for buffer in (False, True):
        torch.manual_seed(0)
        found.append(capalloc.measure(Turned(buffer=buffer), gaussian(60, 4).float()))
    assert found[1].total == pytest.approx(38)
    np.testing.assert_allclose(found[1].capacity, found[0].capacity, rtol=1e-6)


def test_a_complex_parameter_may_stand_in_a_list_and_behind_a_parametrisation() -> None:
    class Listed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weights = nn.ParameterList([torch.view_as_complex(gaussian(3, 2, 2).float())])
            self.dense = nn.Linear(2, 3, dtype=torch.complex64)
            parametrize.register_parametrization(self.dense, "weight", nn.Identity())

        def forward(self, x: Tensor) -> Tensor:
            h = self.dense(x.to(x.dtype.to_complex()))
            return torch.relu((h @ self.weights[0]).abs())

    x = gaussian(30, 2).float()
    torch.manual_seed(0)
    model = Listed()
    found = capalloc.measure(model, x)
    total = np.linalg.matrix_rank(brute(model, x), tol=1e-9)
    assert found.total == pytest.approx(total)


def brute(model: nn.Module, x: Tensor) -> np.ndarray:
    """Gradients of the outputs and of their slopes with respect to both parts of each parameter, by plain autograd."""
    model = copy.deepcopy(model)._apply(lambda t: t.to(torch.complex128 if t.is_complex() else torch.float64))
    rows = []
    for one in x.double():
        at = one[None].clone().requires_grad_()
        for out in model(at)[0]:
            (slope,) = torch.autograd.grad(out, at, create_graph=True)
            for value in [*slope.flatten(), out - (slope * at).sum()]:
                grads = torch.autograd.grad(value, list(model.parameters()), retain_graph=True, materialize_grads=True)
                parts = [torch.view_as_real(g) if g.is_complex() else g for g in grads]
                rows.append(torch.cat([part.flatten() for part in parts]))
    return torch.stack(rows).numpy()


def test_a_kept_copy_follows_training() -> None:
    model, x = pair(Recurrence)[0], gaussian(6, 4).float()
    kept = KeptModel()
    kept(model, x)
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(1j)
    again, expected = (capalloc.propagate(one, x, solver="block") for one in (kept(model, x), model))
    np.testing.assert_allclose(again.capacity, expected.capacity, rtol=1e-4)


class Registered(nn.Module):
    """A class that asks its subclasses for a name, and whose methods make others of the class."""

    def __init_subclass__(cls, name: str, **options: object) -> None:
        super().__init_subclass__(**options)

    def __init__(self, tensor: Tensor) -> None:
        super().__init__()
        if isinstance(tensor, nn.Parameter):
            self.tensor = tensor
        else:
            self.register_buffer("tensor", tensor)

    def __getitem__(self, index: slice) -> Registered:
        return type(self)(self.tensor[index])


class OnAGrid(nn.Module):
    """A factor for each wave number, held by a module of a class of its own, and places that the first run keeps."""

    def __init__(self) -> None:
        super().__init__()
        self.factors = Registered(nn.Parameter(torch.randn(4, 3, dtype=torch.complex64)))
        self.last, self.places = nn.Linear(4, 2), None

    def forward(self, x: Tensor) -> Tensor:
        if self.places is None:
            self.places = [torch.linspace(0, 1, 4, dtype=x.dtype)]
        waves = torch.fft.rfft(x + self.places[0]) * self.factors[:2].tensor.sum(0)
        return self.last(torch.fft.irfft(waves))


def test_a_class_that_lists_its_subclasses_may_hold_complex_parameters() -> None:
    torch.manual_seed(0)
    model, x = OnAGrid(), gaussian(12, 4).float()
    found = capalloc.measure(model, x)
    assert found.total == pytest.approx(np.linalg.matrix_rank(brute(model, x), tol=1e-9))


def test_what_a_run_keeps_is_cast_with_the_model() -> None:
    """Products may run in float32 what ran in float64 before: places of another precision would spread theirs."""
    model, x = OnAGrid().double(), gaussian(2, 4)
    model(x)
    shared = model.config = {"sizes": [1, 2]}
    narrow = cast(model, torch.float32)
    assert narrow(x.float()).dtype is narrow.places[0].dtype is torch.float32
    assert narrow.config is shared


def test_what_a_module_keeps_may_hold_itself_where_nothing_in_it_is_cast() -> None:
    model, x = OnAGrid(), gaussian(12, 4).float()
    model.config = {"sizes": [1, 2]}
    model.config["whole"] = model.config
    assert capalloc.measure(model, x).total > 0
    model.config["grid"] = x
    with pytest.raises(ValueError, match=r"'config' of a OnAGrid\['whole'\] is a container that holds"):
        capalloc.measure(model, x)
