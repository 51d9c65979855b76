"""Copies run as the model does, whatever it keeps, writes to and makes; the model stays as it was."""

from __future__ import annotations

import threading
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import capalloc
from capalloc._model.problem import prepare
from zoo import gaussian, seeded_module


class Keeps(nn.Module):
    """Keeps what it computes last, as tools for attention maps do."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.kept, self.all = nn.Linear(3, 4), nn.Linear(4, 2), None, {}

    def forward(self, x: Tensor) -> Tensor:
        self.kept = torch.relu(self.a(x))
        self.all["hidden"] = [self.kept]
        return self.b(self.kept)


def test_what_a_run_leaves_on_a_module_is_not_in_the_way():
    model, x = seeded_module(Keeps), gaussian(12, 3)
    before = capalloc.measure(model, x).total
    kept = model.all["hidden"] = [model(x)]
    assert capalloc.measure(model, x).total == pytest.approx(before)
    assert model.all["hidden"] is kept
    assert kept[0].requires_grad


class Shares(nn.Module):
    """Holds a module of Python and a lock, which have no copies."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.torch, self.lock = nn.Linear(3, 2), torch, threading.RLock()

    def forward(self, x: Tensor) -> Tensor:
        with self.lock:
            return self.torch.relu(self.a(x))


def test_modules_of_python_and_locks_are_shared():
    model, x = seeded_module(Shares), gaussian(30, 3)
    plain = capalloc.measure(nn.Sequential(model.a, nn.ReLU()), x)
    assert capalloc.measure(model, x).total == pytest.approx(plain.total)


class Alone(nn.Linear):
    """A layer that claims to be a copy of its own."""

    def __deepcopy__(self, memo: dict) -> Alone:
        return self


@pytest.mark.parametrize("wrap", [lambda layer: layer, nn.Sequential])
def test_a_model_whose_copy_is_itself_is_refused_and_stays_as_it_was(wrap):
    model = wrap(Alone(3, 2)).double().train()
    with pytest.raises(ValueError, match=r"model cannot be copied.*: __deepcopy__ of a Alone in it gives that itself"):
        capalloc.measure(model, gaussian(30, 3))
    assert model.training
    assert all(p.requires_grad for p in model.parameters())


class Follows(nn.Module):
    """Puts a mean of what it computed in the place of a buffer, and divides by what was there."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 4), nn.Linear(4, 2)
        self.register_buffer("scale", torch.full((4,), 2.0))

    def forward(self, x: Tensor) -> Tensor:
        h, scale = self.a(x), self.scale
        self.scale = 0.9 * scale + 0.1 * h.detach().abs().mean(0)
        return self.b(torch.relu(h) / scale)


def test_every_run_meets_the_buffers_of_the_model():
    model, x = seeded_module(Follows), gaussian(12, 3)
    plain = nn.Sequential(model.a, nn.ReLU(), nn.Linear(4, 2).double())
    plain[2].weight.data, plain[2].bias.data = model.b.weight.data / 2, model.b.bias.data
    own = model.scale
    for method in (capalloc.measure, capalloc.propagate):
        found, expected = (method(net, x) for net in (model, plain))
        torch.testing.assert_close(torch.tensor(found.capacity.values), torch.tensor(expected.capacity.values))
    assert model.scale is own


class Replaces(nn.Module):
    """Puts another tensor in the place of a weight's."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        self.a.weight.data = self.a.weight.data / self.a.weight.data.norm(dim=1, keepdim=True)
        return self.a(x)


@pytest.mark.parametrize("method", [capalloc.measure, capalloc.output_gram, capalloc.receptive_field])
def test_parameters_that_forward_replaces_are_refused_by_name(method: Callable[..., object]):
    with pytest.raises(ValueError, match=r"another tensor in the place of parameter 'a.weight' \(.data = ...\)"):
        method(seeded_module(Replaces), gaussian(8, 3))


def test_old_weight_norm_makes_its_weight_anew():
    with pytest.warns(FutureWarning, match="weight_norm"):
        net = nn.utils.weight_norm(nn.Linear(3, 2)).double()
    x = gaussian(8, 3)
    new = nn.utils.parametrizations.weight_norm(nn.Linear(3, 2).double())
    new.load_state_dict(
        {
            "bias": net.bias,
            "parametrizations.weight.original0": net.weight_g,
            "parametrizations.weight.original1": net.weight_v,
        }
    )
    assert capalloc.measure(net, x).total == pytest.approx(capalloc.measure(new, x).total)


@pytest.mark.parametrize("first", [nn.ReLU(inplace=True), nn.Hardtanh(inplace=True)])
@pytest.mark.parametrize("solver", ["markov", "auto"])
def test_models_that_write_to_their_input_have_inputs_of_their_own(first: nn.Module, solver: str):
    apart = type(first)(inplace=False)
    a, b = nn.Linear(3, 4).double(), nn.Linear(4, 2).double()
    x = gaussian(9, 3)
    given = x.clone()
    found = capalloc.propagate(nn.Sequential(first, a, nn.ReLU(inplace=True), b), given, solver=solver)
    expected = capalloc.propagate(nn.Sequential(apart, a, nn.ReLU(), b), x, solver=solver)
    torch.testing.assert_close(torch.tensor(found.capacity.values), torch.tensor(expected.capacity.values))
    assert torch.equal(given, x)


class Makes(nn.Module):
    """Makes tensors of the precision that the model has with its user, one way or another."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.r, self.o, self.how = nn.LSTM(3, 2, batch_first=True), nn.Linear(2, 2), how
        self.plain = torch.eye(2)

    def forward(self, x: Tensor) -> Tensor:
        made = {
            "like": lambda: x.new_zeros(1, len(x), 2),
            "default": lambda: torch.zeros(1, len(x), 2),
            "named": lambda: x.new_zeros(1, len(x), 2).to(torch.float32),
            "cast": lambda: x.new_zeros(1, len(x), 2).float(),
            "plain": lambda: x.new_zeros(1, len(x), 2),
        }[self.how]()
        h = self.r(x, (made, made))[0][:, -1]
        return self.o(h @ self.plain if self.how == "plain" else h)


@pytest.mark.parametrize("how", ["default", "named", "cast", "plain"])
def test_tensors_of_the_users_precision_are_made_in_that_of_the_copy(how: str):
    x = gaussian(7, 2, 3).float()
    expected = capalloc.measure(seeded_module(Makes, "like").float(), x)
    model = seeded_module(Makes, how).float()
    found = capalloc.measure(model, x)
    assert found.total == pytest.approx(expected.total, rel=1e-9)
    assert model.plain.dtype == torch.float32
    rough = capalloc.propagate(model, x, solver=capalloc.solvers.Block(num_probes=2, max_seconds=1.0))
    assert rough.total > 0  # with products in float32, where nothing is to be widened


class Attends(nn.Module):
    """Attention with its softmax in a precision of its own, as libraries have it against overflow in half precision."""

    def __init__(self, dtype: torch.dtype | None, told: bool = False) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(3, 3) for _ in range(4))
        self.dtype, self.told = dtype, told

    def forward(self, x: Tensor) -> Tensor:
        weights = torch.softmax(self.q(x) @ self.k(x).mT, -1, dtype=self.dtype)
        if self.told:
            assert weights.dtype == self.dtype
        return self.o(weights.to(x.dtype) @ self.v(x)).mean(1)


@pytest.mark.parametrize("given", [torch.float32, torch.float64])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_forward_rounds_is_not_rounded_in_the_copy(dtype: torch.dtype, given: torch.dtype):
    x = gaussian(9, 4, 3).to(given)
    expected = capalloc.measure(seeded_module(Attends, None).to(given), x)
    found = capalloc.measure(seeded_module(Attends, dtype).to(given), x)
    torch.testing.assert_close(torch.tensor(found.capacity.values), torch.tensor(expected.capacity.values))
    assert not found.attrs["notes"]


def test_products_with_constraints_of_a_model_that_rounds_are_those_of_one_that_does_not():
    x = gaussian(9, 4, 3).float()
    blocks = capalloc.solvers.Block(num_steps=0, num_probes=4, output_probes=2)
    first, second = (
        capalloc.propagate(seeded_module(Attends, dtype).float(), x, solver=blocks) for dtype in (None, torch.float32)
    )
    torch.testing.assert_close(torch.tensor(first.capacity.values), torch.tensor(second.capacity.values))


def test_a_model_that_insists_on_its_precision_keeps_it_and_is_named():
    x = gaussian(9, 4, 3).float()
    found, expected = (
        capalloc.measure(seeded_module(Attends, torch.float32, told).float(), x, ridge=1e-6) for told in (True, False)
    )
    assert any("rounds to a lower precision" in note for note in found.attrs["notes"])
    assert not expected.attrs["notes"]
    torch.testing.assert_close(
        torch.tensor(found.capacity.values), torch.tensor(expected.capacity.values), atol=1e-4, rtol=1e-3
    )


def test_the_default_device_of_the_user_is_that_of_forward():
    class Asks(nn.Linear):
        seen: set[torch.device]

        def forward(self, x: Tensor) -> Tensor:
            self.seen.add(torch.get_default_device())
            return super().forward(x)

    Asks.seen = set()
    x = gaussian(4, 3)
    model = Asks(3, 2).double()
    torch.set_default_device("cpu:0")
    try:
        capalloc.measure(model, x)
        assert torch.get_default_device() == torch.device("cpu:0")
    finally:
        torch.set_default_device(None)
    assert Asks.seen == {torch.device("cpu:0")}
    assert not prepare(model, x).model._forward_pre_hooks


@pytest.mark.parametrize("default", [torch.float32, torch.float64])
def test_numbers_that_forward_makes_are_not_rounded_where_the_copy_is_wide(default):
    seen = []

    class Notes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            seen.append(torch.linspace(-1, 1, 6)[1].item())
            return self.a(x) * torch.linspace(-1, 1, 6)[1]

    torch.set_default_dtype(default)
    try:
        capalloc.measure(Notes().float(), gaussian(12, 3).float())
        assert torch.get_default_dtype() is default
    finally:
        torch.set_default_dtype(torch.float32)
    assert abs(seen[-1] + 0.6) < 1e-15


@pytest.mark.parametrize("wrap", [torch.compile, nn.DataParallel])
def test_parts_that_are_compiled_run_as_they_are_written(wrap: Callable[[nn.Module], nn.Module]) -> None:
    """What torch compiles has no second derivative, which constraints are."""
    torch.manual_seed(0)
    part, last, x = nn.Sequential(nn.Linear(3, 4), nn.Tanh()), nn.Linear(4, 2), torch.randn(30, 3)
    found, plain = (capalloc.measure(nn.Sequential(first, last), x) for first in (wrap(part), part))
    np.testing.assert_array_equal(found.capacity, plain.capacity)
