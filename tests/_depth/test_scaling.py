"""Rates of residual blocks and gains of layers: closed forms, brute force, multipliers put into the real model."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
import xarray as xr
from torch import Tensor, nn

import capalloc
from architectures import ARCHITECTURES
from capalloc._depth.balance_depth import SHARED
from capalloc._depth.starting_point import SEEN, TOLD
from capalloc._runtime.files import write_dataset
from capalloc.results import Scaling
from capalloc.results.scaling import DEGENERATE, FAR_TOTAL, TRIVIAL
from capalloc.results.shattering import SHATTERED
from zoo import dense, gaussian, reference_weights, seeded_module


class Stack(nn.Module):
    """h + layer_k(act(norm_k(h))), one layer a block."""

    def __init__(self, layers: list[nn.Module], norms: list[nn.Module] | None = None, act: nn.Module | None = None):
        super().__init__()
        self.layers, self.act = nn.ModuleList(layers), act or nn.ReLU()
        self.norms = nn.ModuleList(norms or [nn.Identity()] * len(layers))

    def forward(self, h: Tensor) -> Tensor:
        for layer, norm in zip(self.layers, self.norms, strict=True):
            h = h + layer(self.act(norm(h)))
        return h


def linear(weight: Tensor) -> nn.Linear:
    layer = nn.Linear(*weight.shape[::-1], bias=False, dtype=weight.dtype)
    layer.weight.data = weight.clone()
    return layer


def signs(width: int, seed: int) -> Tensor:
    """Entries of one size and random sign: every row's squares sum to 1, and every column's."""
    return gaussian(width, width, seed=seed).sign() / math.sqrt(width)


def signed(rates: list[float], width: int = 8) -> Stack:
    """Blocks of exactly these rates: |z| has squared gates of 1 everywhere."""

    class Abs(nn.Module):
        def forward(self, z: Tensor) -> Tensor:
            return z.abs()

    return Stack([linear(math.sqrt(rate) * signs(width, seed)) for seed, rate in enumerate(rates)], act=Abs())


def he(width: int, depth: int, rate: float = 1.0, seed: int = 0) -> Stack:
    scale = math.sqrt(2 * rate / width)
    return Stack([linear(scale * gaussian(width, width, seed=100 * seed + k)) for k in range(depth)])


def rows(found: Scaling, name: str) -> np.ndarray:
    return found.data[name].to_numpy()


# -- residual blocks, closed forms --------------------------------------------------------------------------


@pytest.mark.proves("5", "T = sum of log(1 + lambda_l), e^-T takes no branch", oracle="closed forms")
@pytest.mark.parametrize("rates", [[0.5], [1.0, 0.25, 3.0], [1e-6, 1e6], [0.1] * 6])
def test_rates_of_branches_whose_rows_have_one_norm(rates):
    """Path energies are equal on all units, so that nothing is random: 1e-12 is rounding."""
    found = capalloc.scaling(signed(rates), gaussian(4, 8))
    np.testing.assert_allclose(rows(found, "rate"), rates, rtol=1e-12)
    np.testing.assert_allclose(found.T, np.log1p(rates).sum(), rtol=1e-12)
    assert found.skip_share == pytest.approx(1 / np.prod(1 + np.array(rates)), rel=1e-12)
    # Gates stay 1 whatever the multipliers, so they are sqrt(1 / (depth lambda)), to the square root of 1 %.
    np.testing.assert_allclose(rows(found, "multiplier"), 1 / np.sqrt(len(rates) * np.array(rates)), rtol=5e-3)


@pytest.mark.parametrize("rate", [1.0, 1 / 16])
def test_he_branches_have_their_rate(rate):
    """The gates of 64 units on 8 examples vary by 1/sqrt(64 x 8) to 1/sqrt(64), from independent examples to alike."""
    found = capalloc.scaling(he(64, 16, rate), gaussian(8, 64))
    np.testing.assert_allclose(rows(found, "rate"), rate, rtol=0.4)  # 3 times 1/sqrt(64)
    np.testing.assert_allclose(found.T, 16 * math.log1p(rate), rtol=0.1)


def energies_by_hand(model: Stack, x: Tensor) -> list[tuple[float, float]]:
    """Skip and branch, summed over units and examples, by block."""
    e, h, parts = torch.ones_like(x), x, []
    for layer in model.layers:
        branch = ((h > 0) * e) @ layer.weight.detach().square().T
        parts.append((float(e.sum()), float(branch.sum())))
        h, e = model.act(h) @ layer.weight.T.detach() + h, e + branch
    return parts


@pytest.mark.proves("5", "lambda_l is branch energy / skip energy", oracle="squared weights and gates by hand")
def test_rates_of_random_networks_by_hand():
    model, x = he(5, 4, 0.7), gaussian(6, 5)
    parts = np.array(energies_by_hand(model, x))
    for size in (1, 4, 6, "auto"):
        found = capalloc.scaling(model, x, batch_size=size)
        np.testing.assert_allclose(rows(found, "rate"), parts[:, 1] / parts[:, 0], rtol=1e-12)


def test_a_projection_for_skip_counts_with_its_weights():
    class Projected(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.skip, self.branch = linear(3 * signs(8, 1)), linear(6 * signs(8, 2))

        def forward(self, x: Tensor) -> Tensor:
            return self.skip(x) + self.branch(x.abs())

    assert capalloc.scaling(Projected(), gaussian(3, 8)).data["rate"].item() == pytest.approx(4, rel=1e-12)


@pytest.mark.parametrize(
    ("forward", "rate"),
    [
        (lambda x, f: x + 0.5 * f, 0.25),
        (lambda x, f: torch.add(x, f, alpha=0.5), 0.25),
        (lambda x, f: x - 0.5 * f, 0.25),
        (lambda x, f: torch.rsub(f, x, alpha=2), 4),
        (lambda x, f: 0.5 * x + f, 4),
    ],
)
def test_scalars_in_sums_are_squared(forward, rate):
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = linear(signs(8, 1))

        def forward(self, x: Tensor) -> Tensor:
            return forward(x, self.layer(x.abs()))

    found = capalloc.scaling(Scaled(), gaussian(3, 8))
    assert found.data["rate"].item() == pytest.approx(rate, rel=1e-12)
    assert found.data["multiplier"].item() == pytest.approx(rate**-0.5, rel=5e-3)


def test_a_recurrent_network_that_is_unrolled():
    """h + (W |h| + U x_t): energies e_t = e_(t-1) (1 + w) + u, from e_0 = u, on every unit."""

    class Unrolled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w, self.u = linear(math.sqrt(0.3) * signs(8, 1)), linear(signs(8, 2))

        def forward(self, x: Tensor) -> Tensor:
            h = self.u(x[:, 0])
            for t in range(1, x.shape[1]):
                h = h + (self.w(h.abs()) + self.u(x[:, t]))
            return h

    found, e, expected = capalloc.scaling(Unrolled(), gaussian(2, 5, 8)), 1.0, []
    for _ in range(4):
        expected.append((0.3 * e + 1) / e)
        e = 1.3 * e + 1
    np.testing.assert_allclose(rows(found, "rate"), expected, rtol=1e-12)
    assert set(rows(found, "last_layer")) == {""}
    assert found.view().notes == [SHARED.format(4)]


# -- phases -------------------------------------------------------------------------------------------------


def of_share(share: float, correlation: float = math.nan) -> Scaling:
    """Two blocks that leave this share of path energy to the skips, and gradients of this correlation."""
    rate = share**-0.5 - 1
    return Scaling(dataset(rate=[rate, rate]).assign_attrs(correlation=correlation))


def dataset(**columns: list[object]) -> xr.Dataset:
    given: dict[str, list[object]] = {
        "rate": [],
        "multiplier": [1.0] * len(columns.get("rate", [])),
        "identity": [0] * len(columns.get("rate", [])),
        "last_layer": [f"layer{k}" for k in range(len(columns.get("rate", [])))],
        "gain": [],
        "gradient_gain": columns.get("gain", []),
        "mean_squared_gate": [0.5] * len(columns.get("gain", [])),
        "rescaled": [0] * len(columns.get("gain", [])),
    } | columns
    blocks = ("rate", "multiplier", "identity", "last_layer")
    coords = {
        "block": [f"b{k}" for k in range(len(given["rate"]))],
        "layer": [f"l{k}" for k in range(len(given["gain"]))],
    }
    return xr.Dataset({n: ("block" if n in blocks else "layer", np.array(v)) for n, v in given.items()}, coords)


@pytest.mark.parametrize(
    ("share", "phase"),
    [
        (TRIVIAL + 1e-9, "trivial"),
        (TRIVIAL - 1e-9, "balanced"),
        (math.exp(-1), "balanced"),
        (DEGENERATE + 1e-9, "balanced"),
        (DEGENERATE - 1e-9, "strong"),
    ],
)
def test_phases_at_their_boundaries(share, phase):
    found = of_share(share)
    assert found.skip_share == pytest.approx(share, rel=1e-12)
    assert found.phase == phase
    assert f": {phase}" in repr(found)


@pytest.mark.parametrize(
    ("correlation", "phase"), [(SHATTERED - 1e-9, "degenerate"), (SHATTERED, "strong"), (math.nan, "strong")]
)
def test_a_network_shatters_only_if_its_gradients_are_unlike(correlation, phase):
    found = of_share(DEGENERATE / 2, correlation)
    assert found.phase == phase
    assert any("multiply its last layer" in line for line in found.advice) == (phase == "degenerate")
    assert any("capalloc.diagnose" in line for line in found.advice) == math.isnan(correlation)
    assert Scaling(found.data.assign_attrs(normed=True)).phase == "strong"
    assert of_share(2 * DEGENERATE, correlation).phase == "balanced"


def test_phases_of_networks():
    x = gaussian(4, 8)
    for rate, phase, words in (
        (1.0, "degenerate", "gradients shatter"),
        (1e-4, "trivial", "branches propagate nothing"),
    ):
        found = capalloc.scaling(signed([rate] * 16), x)
        found = Scaling(found.data.assign_attrs(correlation=1e-3))
        assert found.phase == phase
        assert words in found.advice[0]
        assert f"T = {found.T:.3g} over 16 residual blocks" in found.advice[0]
        assert found.advice[1].endswith(f"multiply its last layer (layers.0) by {(16 * rate) ** -0.5:.2g}")
        assert found.advice[-1] == "and 11 more blocks, in the table"
    balanced = capalloc.scaling(signed([1 / 16] * 16), x)
    assert (balanced.phase, balanced.advice) == ("balanced", [])


def test_one_block_far_off_is_advised_on_alone():
    found = capalloc.scaling(signed([0.2, 0.2, 4.0, 0.2, 0.2]), gaussian(2, 8))
    assert found.phase == "balanced"
    assert found.advice == ['block "layers.2": branch 4 times the skip; multiply its last layer (layers.2) by 0.22']


class Closed(nn.Module):
    """Eight blocks h + branch(h), with branches in one of the ways in which networks start closed on purpose."""

    def __init__(self, way: str) -> None:
        super().__init__()
        conv = lambda: nn.Conv2d(4, 4, 3, padding=1, bias=False)  # noqa: E731
        self.stem = nn.Conv2d(1, 4, 3, padding=1)
        self.branches = nn.ModuleList(
            nn.Sequential(conv(), nn.BatchNorm2d(4), nn.ReLU(), conv(), nn.BatchNorm2d(4)) for _ in range(8)
        )
        self.way, shape = way, () if way in ("ReZero", "tanh gate") else (4, 1, 1)
        start = {"layer scale": 1e-6, "layer scale 0.1": 0.1, "ReZero": 0.0, "tanh gate": 0.0}.get(way, 1.0)
        self.scales = nn.ParameterList(torch.full(shape, start) for _ in range(8))
        for branch in self.branches:
            if way == "zero gamma":
                nn.init.zeros_(branch[4].weight)
            elif way == "Fixup, zero convolution":
                nn.init.zeros_(branch[3].weight)

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x)
        for branch, scale in zip(self.branches, self.scales, strict=True):
            h = h + (torch.tanh(scale) if self.way == "tanh gate" else scale) * branch(h)
        return h.mean((2, 3))


WAYS = ("zero gamma", "layer scale", "layer scale 0.1", "ReZero", "tanh gate", "Fixup, zero convolution")


@pytest.mark.parametrize("way", WAYS)
def test_networks_that_start_at_the_identity_on_purpose(way):
    found = capalloc.scaling(seeded_module(Closed, way).eval(), gaussian(4, 1, 6, 6))
    assert found.phase == "identity"
    assert rows(found, "identity").tolist() == [1] * 8
    assert np.isnan(rows(found, "multiplier")).all()
    assert found.advice == [
        "8 of 8 branches start at the identity on purpose (zero or small last scale), to be opened by training; "
        "they get no multiplier"
    ]
    assert "closed" in repr(found)


def test_open_branches_do_not_start_at_the_identity():
    """Nor does a branch of small matrices: nothing says that they are small on purpose."""
    model, x = seeded_module(Closed, "open").eval(), gaussian(4, 1, 6, 6)
    assert rows(capalloc.scaling(model, x), "identity").tolist() == [0] * 8
    small = capalloc.scaling(signed([1e-12] * 4), gaussian(2, 8))
    assert (small.phase, rows(small, "identity").tolist()) == ("trivial", [0] * 4)
    # The norm of a ResNet's branch whose scale is 0.1, and whose rate is not small: not closed.
    few = seeded_module(Closed, "layer scale 0.1").eval()
    with torch.no_grad():
        for branch in few.branches:
            branch[4].weight.mul_(100)
    assert rows(capalloc.scaling(few, x), "identity").tolist() == [0] * 8


def test_one_branch_that_starts_at_zero_among_others():
    model = signed([0.5, 0.0, 0.5])
    found = capalloc.scaling(model, gaussian(2, 8))
    np.testing.assert_allclose(rows(found, "rate"), [0.5, 0, 0.5], atol=1e-12)
    assert rows(found, "identity").tolist() == [0, 1, 0]
    assert np.isnan(rows(found, "multiplier")).tolist() == [False, True, False]
    assert (found.phase, found.advice) == ("balanced", [])


def test_a_strong_block_is_no_fault_where_gradients_are_alike():
    data = capalloc.scaling(signed([0.2, 0.2, 4.0, 0.2, 0.2]), gaussian(2, 8)).data
    assert Scaling(data.assign_attrs(correlation=0.2)).advice == []
    assert len(Scaling(data.assign_attrs(correlation=1e-3)).advice) == 1
    weak = capalloc.scaling(signed([0.2, 0.2, 0.01, 0.2, 0.2]), gaussian(2, 8)).data
    assert "branch 0.01 times the skip" in Scaling(weak.assign_attrs(correlation=0.2)).advice[0]


def test_a_branch_whose_gates_are_all_closed():
    """Its weights are not zero, so that it does not start closed on purpose."""

    class Shut(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = linear(signs(8, 1))

        def forward(self, x: Tensor) -> Tensor:
            return x + self.layer((-x.abs()).relu())

    found = capalloc.scaling(Shut(), gaussian(2, 8))
    assert rows(found, "identity").tolist() == [0]
    assert (
        found.advice[1] == 'block "layer": its branch passes nothing (gates that are all closed); nothing to multiply'
    )


# -- initial or trained -------------------------------------------------------------------------------------


def trained_a_little(model: nn.Module, x: Tensor) -> nn.Module:
    """One step of gradient descent."""
    model = copy.deepcopy(model).train()
    model(x).square().sum().backward()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.sub_(1e-3 * parameter.grad if parameter.grad is not None else 0.0)
    return model.eval()


NORMED = {
    "batch norm": (lambda: Closed("open"), (1, 6, 6)),
    "batch norm first": (lambda: ARCHITECTURES["pre-activation ResNet"].module(), (1, 6, 6)),
    "layer norm": (lambda: ARCHITECTURES["MLP-Mixer"].module(), (1, 8, 8)),
    "group norm": (lambda: nn.Sequential(nn.Conv2d(1, 4, 3), nn.GroupNorm(2, 4), nn.ReLU(), nn.Flatten()), (1, 6, 6)),
}


@pytest.mark.parametrize("name", NORMED)
def test_norms_show_whether_weights_are_trained(name):
    """Statistics alone tell nothing: those of a network at initial weights may have been taken from data."""
    build, shape = NORMED[name]
    model, x = seeded_module(build), gaussian(8, *shape)
    model.train()(x)
    assert not capalloc.scaling(model.eval(), x).trained
    trained = capalloc.scaling(trained_a_little(model, x), x)
    assert (trained.trained, trained.advice) == (True, [])
    assert trained.phase == ("plain" if name == "group norm" else "trained")
    assert trained.data.attrs["notes"] == [SEEN]
    assert trained.view().notes == [SEEN]
    told = capalloc.scaling(trained_a_little(model, x), x, trained=False)
    assert (told.trained, "notes" in told.data.attrs) == (False, False)
    np.testing.assert_array_equal(rows(told, "rate"), rows(trained, "rate"))
    assert capalloc.scaling(model, x, trained=True).data.attrs["notes"] == [TOLD]


def test_layers_of_trained_networks_get_no_advice():
    model, x = plain(8, 3, 0.1), gaussian(4, 8)
    assert capalloc.scaling(model, x).advice
    found = capalloc.scaling(model, x, trained=True)
    assert (found.phase, found.advice) == ("plain", [])


def test_files_without_the_newer_words_are_read():
    found = Scaling(dataset(rate=[0.0, 2.0]))
    assert (found.trained, found.phase, math.isnan(found.correlation)) == (False, "balanced", True)
    assert "gates that are all closed" in found.advice[0]


def test_skips_without_energy_have_infinite_rates():
    class Cut(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.kept = linear(signs(8, 1)), nn.Parameter(torch.zeros((), dtype=torch.float64))

        def forward(self, x: Tensor) -> Tensor:
            return self.kept * x + self.layer(x.abs())

    found = capalloc.scaling(Cut(), gaussian(2, 8))
    assert found.data["rate"].item() == math.inf
    assert (found.phase, found.skip_share, found.T) == ("strong", 0.0, math.inf)
    assert math.isnan(found.data["multiplier"].item())
    assert found.advice[1] == 'block "layer": its skip passes nothing; nothing to balance the branch with'


IDLE = {
    "a product": lambda used, other: used + 0 * other,
    "a sum": lambda used, other: torch.add(used, other, alpha=0),
    "a difference": lambda used, other: torch.sub(used, other, alpha=0),
    "the difference turned round": lambda used, other: torch.rsub(other, used, alpha=0),
}


@pytest.mark.parametrize("idle", IDLE.values(), ids=IDLE)
def test_what_is_multiplied_by_zero_is_no_branch_and_no_skip(idle):
    """A layer times 0 is a constant: the network is that without it, bit by bit, blocks and gains alike."""

    class Idle(nn.Module):
        def __init__(self, idle: Callable[[Tensor, Tensor], Tensor]) -> None:
            super().__init__()
            self.idle, self.used = idle, linear(signs(8, 1))
            self.other = nn.Sequential(linear(signs(8, 2)), nn.ReLU(), linear(signs(8, 3)))

        def forward(self, x: Tensor) -> Tensor:
            return self.idle(self.used(x), self.other(x))

    x = gaussian(4, 8)
    with_it, without = (capalloc.scaling(Idle(way), x) for way in (idle, lambda used, _: used))
    assert with_it.data.sizes["block"] == 0
    assert with_it.phase == "plain"
    assert with_it.data.equals(without.data)


# -- multipliers --------------------------------------------------------------------------------------------


def pre_norm(width: int, depth: int, hidden: int = 24) -> nn.Module:
    """h + second(relu(first(norm(h)))), with biases: a branch hardly knows the size of its stream."""

    class PreNorm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Linear(width, width)
            self.blocks = nn.ModuleList(
                nn.Sequential(nn.LayerNorm(width), nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, width))
                for _ in range(depth)
            )
            self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 3))

        def forward(self, x: Tensor) -> Tensor:
            h = self.stem(x)
            for block in self.blocks:
                h = h + block(h)
            return self.head(h)

    model = PreNorm()
    for k, block in enumerate(model.blocks):
        block[3].weight.data *= 1 + k
    return model


MODELS = {
    "homogeneous": (lambda: he(16, 6, 3.0), (16,)),
    "pre-norm": (lambda: pre_norm(16, 5), (16,)),
    "post-activation ResNet": (lambda: ARCHITECTURES["ResNet"].build(), (1, 8, 8)),
    "MLP-Mixer": (lambda: ARCHITECTURES["MLP-Mixer"].build(), (1, 8, 8)),
    "ViT": (lambda: ARCHITECTURES["ViT"].build(), (1, 8, 8)),
    "BERT, norms after the sums": (lambda: ARCHITECTURES["BERT"].build(), (6, 8)),
}


def folded(model: nn.Module, found: Scaling) -> nn.Module:
    """A copy whose last layers are multiplied, weight and bias."""
    model = copy.deepcopy(model)
    for name, factor in zip(rows(found, "last_layer"), rows(found, "multiplier"), strict=True):
        for parameter in model.get_submodule(str(name)).parameters():
            parameter.data *= float(factor)
    return model


@pytest.mark.proves("5", "balanced multipliers", oracle="the network with its layers multiplied")
@pytest.mark.parametrize("name", MODELS)
def test_multipliers_in_the_last_layers_give_every_block_the_balanced_rate(name):
    build, shape = MODELS[name]
    model, x = seeded_module(build).eval(), gaussian(8, *shape)
    found = capalloc.scaling(model, x)
    number = found.data.sizes["block"]
    again = capalloc.scaling(folded(model, found), x, trained=False)
    # 1 % where the search stops, as far as a log is a ratio.
    np.testing.assert_allclose(rows(again, "rate"), 1 / number, rtol=0.011)
    np.testing.assert_allclose(rows(again, "multiplier"), 1, rtol=1e-12)  # nothing is left to do
    np.testing.assert_allclose(again.T, number * math.log1p(1 / number), rtol=0.011)
    assert again.phase == "balanced"


def test_norms_make_multipliers_depend_on_each_other():
    """Without norms a multiplier is 1/sqrt(depth lambda); with them a smaller stream makes every later rate larger."""
    found = capalloc.scaling(seeded_module(lambda: pre_norm(16, 5)), gaussian(8, 16))
    alone = 1 / np.sqrt(5 * rows(found, "rate"))
    assert abs(np.log(rows(found, "multiplier") / alone)).max() > 0.2


def test_one_branch_added_to_two_streams_has_one_multiplier():
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = linear(signs(8, 1))

        def forward(self, x: Tensor) -> Tensor:
            branch = self.layer(x.abs())
            return torch.cat([(x + branch).abs(), (2 * x + branch).abs()], 1)

    found = capalloc.scaling(Twice(), gaussian(2, 8))
    np.testing.assert_allclose(rows(found, "rate"), [1, 1 / 4], rtol=1e-12)
    np.testing.assert_allclose(rows(found, "multiplier"), 1, rtol=5e-3)  # rates of 1 and 1/4, 1/2 in the mean of logs
    assert found.view().notes == []


def test_a_long_skip_round_other_blocks():
    """The branch of the outer block is the last inner sum: multiplying it leaves the inner rates."""

    class Nested(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = linear(signs(8, 1)), linear(signs(8, 2))

        def forward(self, x: Tensor) -> Tensor:
            k = self.a(x.abs())
            return x + (k + self.b(k.abs()))

    found = capalloc.scaling(Nested(), gaussian(2, 8))
    np.testing.assert_allclose(rows(found, "rate"), [1, 2], rtol=1e-12)
    np.testing.assert_allclose(rows(found, "multiplier"), [0.5**0.5, (0.5 / 1.5) ** 0.5], rtol=5e-3)


# -- plain layers -------------------------------------------------------------------------------------------


def plain(width: int, depth: int, variance: float, act: type[nn.Module] = nn.ReLU, seed: int = 0) -> nn.Sequential:
    """Weights of variance / fan-in; no biases."""
    scale = math.sqrt(variance / width)
    return dense([scale * gaussian(width, width, seed=100 * seed + k) for k in range(depth)], act)


@pytest.mark.proves("5", "plain layers: fan-in * variance * E[a^2]", oracle="squared weights and gates by hand")
def test_gains_by_hand():
    """Path energies of a small dense network, multiplied out, upwards and downwards."""
    weights, x = reference_weights(), gaussian(5, 3)
    found = capalloc.scaling(dense(weights), x)
    squares, gates, h = [w.square() for w in weights], [], x
    for w in weights[:-1]:
        gates.append((h @ w.T > 0).double())
        h = (h @ w.T).relu()
    up, entries = [torch.ones_like(x)], []
    for k, square in enumerate(squares):
        entries.append(up[-1] @ square.T)
        up.append(entries[-1] * gates[k] if k < 2 else entries[-1])
    down = [torch.ones(5, 2, dtype=torch.float64)]  # at the outputs, then at every activation and the inputs
    for k in (2, 1, 0):
        down.insert(0, (down[0] * gates[k] if k < 2 else down[0]) @ squares[k])
    means = [float(e.mean()) for e in up]
    np.testing.assert_allclose(rows(found, "gain"), np.array(means[1:]) / means[:-1], rtol=1e-12)
    gradients = [float(g.mean()) for g in down]
    np.testing.assert_allclose(rows(found, "gradient_gain"), np.array(gradients[:-1]) / gradients[1:], rtol=1e-12)
    expected = [float((e * g).sum() / e.sum()) for e, g in zip(entries, [*gates, torch.ones(())], strict=False)]
    np.testing.assert_allclose(rows(found, "mean_squared_gate"), expected, rtol=1e-12)
    assert found.total_gain == pytest.approx(means[-1] / means[0], rel=1e-12)
    assert list(rows(found, "layer")) == ["0", "2", "4"]


@pytest.mark.proves("5", "Xavier and He variance", oracle="random layers at a gain of 1")
@pytest.mark.parametrize(
    ("act", "variance", "gate"), [(nn.ReLU, 2, 0.5), (nn.Identity, 1, 1), (nn.LeakyReLU, 2 / 1.0001, 0.50005)]
)
def test_the_variance_rules_keep_path_energy(act, variance, gate):
    """To 3 times 1/sqrt(128), what gates of 128 units vary by where all examples have the same ones."""
    found = capalloc.scaling(plain(128, 5, variance, act), gaussian(16, 128))
    gates = rows(found, "mean_squared_gate")
    np.testing.assert_allclose(rows(found, "gain")[:-1], 1, rtol=0.25)
    np.testing.assert_allclose(rows(found, "gradient_gain")[:-1], 1, rtol=0.25)
    np.testing.assert_allclose(gates[:-1], gate, rtol=0.25)
    if act is not nn.Identity:
        np.testing.assert_allclose(rows(found, "gain"), variance * gates, rtol=0.05)  # squared weights: sqrt(2)/128
    if act is not nn.Identity:  # no gates: one stretch from inputs to outputs
        assert gates[-1] == 1
        assert rows(found, "gain")[-1] == pytest.approx(variance, rel=0.05)


def test_the_gain_is_the_variance_times_the_gates():
    for variance in (0.5, 3.0):
        found = capalloc.scaling(plain(64, 3, variance), gaussian(8, 64))
        reference = capalloc.scaling(plain(64, 3, 1.0), gaussian(8, 64))
        np.testing.assert_allclose(rows(found, "gain"), variance * rows(reference, "gain"), rtol=1e-9)


@pytest.mark.proves("5", "Xavier and He variance", oracle="a gain of 1/6 in closed form")
def test_default_initialisation_loses_five_sixths():
    """PyTorch draws weights of variance 1 / (3 fan-in): with ReLU gates of 1/2 the gain is 1/6."""
    layers = [m for _ in range(6) for m in (nn.Linear(128, 128), nn.ReLU())]
    found = capalloc.scaling(seeded_module(nn.Sequential, *layers), gaussian(16, 128))
    np.testing.assert_allclose(rows(found, "gain"), 1 / 6, rtol=0.25)
    assert found.advice[0].startswith("energy falls to")
    assert "activations and gradients change by a factor of 0.0049" in found.advice[0]  # 6^-3: energy falls to 6^-6
    gain = rows(found, "gain")[0]
    assert found.advice[1] == (
        f'layer "0": energy falls to {gain:.2g}, where He\'s variance 2 / fan-in keeps it; '
        f"multiply its weights by {gain**-0.5:.2g}"
    )
    assert found.advice[-1] == "and 1 more layer, in the table"


@pytest.mark.parametrize("act", [nn.Identity, nn.Tanh])
def test_xavier_is_named_for_gates_of_one(act):
    model = plain(64, 3, 4.0, act)
    found = capalloc.scaling(model, 1e-3 * gaussian(8, 64))  # where tanh is linear
    assert all("Xavier's variance 1 / fan-in" in line for line in found.advice)
    assert found.advice


def test_another_activation_has_its_own_rule():
    """tanh(z), z of variance 1: E[a^2] = 0.464, so 2.15 / fan-in."""
    found = capalloc.scaling(plain(256, 2, 1.0, nn.Tanh), gaussian(64, 256))
    assert rows(found, "mean_squared_gate")[0] == pytest.approx(0.4645, rel=0.02)
    drastic = capalloc.scaling(plain(256, 2, 9.0, nn.Tanh), gaussian(64, 256))
    assert "where a variance of" in drastic.advice[0]


@pytest.mark.parametrize("norm", [nn.BatchNorm1d, nn.LayerNorm])
def test_norms_set_the_scale_so_no_gain_is_advised_on(norm):
    layers = [m for _ in range(3) for m in (nn.Linear(32, 32), norm(32), nn.ReLU())]
    found = capalloc.scaling(seeded_module(nn.Sequential, *layers).eval(), 5 * gaussian(8, 32))
    assert rows(found, "rescaled").tolist() == [1, 1, 1]
    assert found.advice == []
    assert found.total_gain == 1


def test_averages_add_coherent_paths_so_no_gain_is_advised_on():
    model = seeded_module(
        nn.Sequential, nn.Conv2d(1, 8, 3), nn.AdaptiveAvgPool2d(1), nn.ReLU(), nn.Flatten(), nn.Linear(8, 3)
    )
    found = capalloc.scaling(model, gaussian(4, 1, 9, 9))
    assert rows(found, "rescaled").tolist() == [1, 0]
    assert not any('"0"' in line for line in found.advice)


def test_gains_are_of_stretches_without_blocks():
    """Residual networks get no advice on layers; their plain stretches are listed."""
    found = capalloc.scaling(ARCHITECTURES["WaveNet"].build(), gaussian(4, 1, 16))
    assert found.phase != "plain"
    assert not any(line.startswith("layer") for line in found.advice)
    assert "head.1" in rows(found, "layer")


def test_dead_layers_have_no_gain():
    model = plain(8, 3, 2.0)
    model[2].weight.data.zero_()
    found = capalloc.scaling(model, gaussian(4, 8))
    np.testing.assert_array_equal(rows(found, "gain")[1:], [0, np.nan])
    assert found.total_gain == 0
    assert 'layer "2": passes nothing (weights of zero, or gates that are all closed)' in found.advice
    assert found.change_in_all == "no energy gets from inputs to outputs"


def test_a_layer_that_passes_nothing_is_named_before_those_that_pass_little():
    model = plain(8, 9, 1e-3)
    model[14].weight.data.zero_()
    first, *others = capalloc.scaling(model, gaussian(4, 8)).advice
    assert first == 'layer "14": passes nothing (weights of zero, or gates that are all closed)'
    assert others[0].startswith('layer "0": energy falls to')


# -- what the answer does not depend on ---------------------------------------------------------------------


@pytest.mark.parametrize("name", ["ViT", "GRU", "Swin"])  # Swin's windows stand along the axis of examples
def test_batches_of_any_size_give_the_same(name):
    architecture = ARCHITECTURES[name]
    model, x = architecture.build(), architecture.examples(3)
    whole = capalloc.scaling(model, x)
    for size in (1, 2):  # the last of size 2 is filled up
        found = capalloc.scaling(model, x, batch_size=size)
        for variable in ("rate", "multiplier", "gain", "gradient_gain", "mean_squared_gate"):
            np.testing.assert_allclose(rows(found, variable), rows(whole, variable), rtol=1e-9, err_msg=variable)
    assert whole.data.attrs["num_examples"] == 3


def test_float32_models_and_deep_ones():
    """Energies leave no range: 27^-240 is below the least number."""
    found = capalloc.scaling(plain(16, 240, 2 / 27), gaussian(4, 16))
    np.testing.assert_allclose(rows(found, "gain"), 2 / 27 * rows(found, "mean_squared_gate"), rtol=0.5)
    assert (rows(found, "gain") > 0).all()
    assert found.total_gain == 0.0
    wide = capalloc.scaling(he(16, 4, 0.5), gaussian(4, 16))
    narrow = capalloc.scaling(he(16, 4, 0.5).float(), gaussian(4, 16).float())
    np.testing.assert_allclose(rows(narrow, "rate"), rows(wide, "rate"), rtol=1e-5)
    low = capalloc.scaling(he(16, 4, 0.5), gaussian(4, 16), dtype=torch.float32)
    np.testing.assert_allclose(rows(low, "rate"), rows(wide, "rate"), rtol=1e-5)


@pytest.mark.parametrize("dynamic", [False, True])
def test_exported_programs(dynamic, tmp_path):
    name = "pre-activation ResNet"
    model, x = ARCHITECTURES[name].build(), ARCHITECTURES[name].examples(3)
    shapes = {"x": {0: torch.export.Dim("batch", max=64)}} if dynamic else None
    program = torch.export.export(model, (x[:2],), dynamic_shapes=shapes, strict=False)
    torch.export.save(program, tmp_path / "model.pt2")
    live = capalloc.scaling(model, x)
    for form in (program, tmp_path / "model.pt2"):
        found = capalloc.scaling(form, x)
        np.testing.assert_allclose(rows(found, "rate"), rows(live, "rate"), rtol=1e-9)
        np.testing.assert_allclose(rows(found, "multiplier"), rows(live, "multiplier"), rtol=1e-9)
        assert list(rows(found, "block")) == list(rows(live, "block"))


def test_inputs_in_batches_with_labels():
    model, x = he(8, 3), gaussian(6, 8)
    loader = [(x[:4], torch.zeros(4)), (x[4:], torch.zeros(2))]
    np.testing.assert_allclose(rows(capalloc.scaling(model, loader), "rate"), rows(capalloc.scaling(model, x), "rate"))


def test_chosen_outputs_leave_out_what_they_do_not_read():
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = signed([0.5]), signed([0.5])

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            h = self.first(x)
            return {"early": h, "late": self.second(h)}

    model, x = Two(), gaussian(2, 8)
    assert capalloc.scaling(model, x, lambda y: y["early"]).data.sizes["block"] == 1
    assert capalloc.scaling(model, x, lambda y: y["late"]).data.sizes["block"] == 2


def test_the_model_is_left_as_it_was():
    model, x = seeded_module(lambda: pre_norm(8, 2)).train(), gaussian(4, 8)
    model(x).sum().backward()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    gradients = {name: p.grad.clone() for name, p in model.named_parameters()}
    state = torch.random.get_rng_state()
    capalloc.scaling(model, x)
    assert torch.equal(state, torch.random.get_rng_state())
    assert model.training
    assert all(m.training and not m._forward_hooks for m in model.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(p.requires_grad and torch.equal(p.grad, gradients[name]) for name, p in model.named_parameters())


# -- the result ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def residual() -> Scaling:
    return capalloc.scaling(signed([2.0, 0.5]), gaussian(2, 8))


def test_it_says_it_all(residual):
    text = repr(residual)
    assert text.startswith("<capalloc.Scaling, 2 residual blocks, 0 layers: balanced, T = 1.5>")
    assert "layers.0  2     0.5         layers.0" in text
    assert repr(Scaling(dataset(gain=[1.0]))).startswith("<capalloc.Scaling, 0 residual blocks, 1 layer: plain>")
    frame = residual.to_pandas()
    assert list(frame.columns) == ["rate", "multiplier", "identity", "last_layer"]
    assert list(frame.index) == ["layers.0", "layers.1"]


def test_html_escapes_names():
    data = dataset(rate=[50.0]).assign_coords(block=["<b>&"])
    text = Scaling(data)._repr_html_()
    assert "&lt;b&gt;&amp;" in text
    assert "<b>" not in text


def test_files(residual, tmp_path):
    for k, found in enumerate((residual, capalloc.scaling(plain(8, 2, 2.0), gaussian(2, 8)))):
        path = tmp_path / f"{k}.nc"
        found.save(path)
        loaded = Scaling.load(path)
        xr.testing.assert_identical(loaded.data, found.data)
        assert repr(loaded) == repr(found)
    damaged = tmp_path / "damaged.nc"
    damaged.write_bytes(path.read_bytes()[:300])
    with pytest.raises(ValueError, match="is damaged"):
        Scaling.load(damaged)
    other = residual.data.drop_vars("rate")
    write_dataset(other, path, Scaling.FORMAT, Scaling.VERSION)
    with pytest.raises(ValueError, match=r"is damaged: the dataset lacks \['rate'\]"):
        Scaling.load(path)
    write_dataset(residual.data, path, Scaling.FORMAT, Scaling.VERSION + 1)
    with pytest.raises(ValueError, match="was written by a newer capalloc"):
        Scaling.load(path)
    with pytest.raises(FileNotFoundError, match="there is no file"):
        Scaling.load(tmp_path / "none.nc")


def test_plots(residual):
    ax = residual.plot()
    np.testing.assert_allclose(ax.lines[0].get_ydata(), [2, 0.5])
    np.testing.assert_allclose(ax.lines[1].get_ydata(), 0.5)
    assert ax.get_title() == "Strength of blocks: balanced, T = 1.5"
    _, given = plt.subplots()
    found = Scaling(dataset(gain=[0.5, 2.0], gradient_gain=[0.4, 3.0]))
    assert found.plot(given) is given
    np.testing.assert_allclose([line.get_ydata() for line in given.lines[:2]], [[0.5, 2], [0.4, 3]])
    assert given.get_yscale() == ax.get_yscale() == "log"
    plt.close("all")


def test_total_gain_is_advised_on_beyond_a_thousand():
    for gains, advised in (([30.0, 30.0], False), ([40.0, 30.0], True), ([0.03, 0.03], True)):
        found = Scaling(dataset(gain=gains))
        assert found.total_gain == pytest.approx(math.prod(gains))
        assert any("activations and gradients" in line for line in found.advice) is advised
        assert (not 1 / FAR_TOTAL < found.total_gain < FAR_TOTAL) is advised
    ignored = Scaling(dataset(gain=[40.0, 30.0, math.nan], rescaled=[0, 1, 0]))
    assert ignored.total_gain == pytest.approx(40)
    assert len(ignored.advice) == 1


def test_many_small_losses_are_one_large_one():
    """0.83^400 is 4e-33, and no layer alone is far from 1."""
    found = Scaling(dataset(gain=[0.83] * 400))
    assert found.advice == [
        "energy falls to 4.3e-33 from inputs to outputs: activations and gradients change by a factor of 6.5e-17",
        f"no layer alone is far from gain 1; multiply the weights of each by {0.83**-0.5:.3g}",
    ]
    assert found.view().settled == ""
    outside = Scaling(dataset(rate=[0.5, 0.5], gain=[0.01, 0.01]))
    assert outside.advice[0].startswith("energy falls to 0.0001 from inputs to outputs, along the layers outside resid")


def test_where_nothing_asks_for_a_change_it_says_what_was_looked_at():
    settled = (
        "none of 2 layers changes the energy of paths by more than a factor of 1.25, nor all of them together by 1,000"
    )
    assert Scaling(dataset(gain=[1.1, 0.9])).view().settled == settled
    assert Scaling(dataset(rate=[0.5, 0.5])).view().settled == "no rate of the 2 residual blocks asks for a change"
    assert Scaling(dataset(rate=[0.5])).view().settled == "no rate of the 1 residual block asks for a change"
    assert Scaling(dataset(gain=[1.1]).assign_attrs(trained=True)).view().settled == ""


def test_refusals():
    with pytest.raises(ValueError, match=r"lacks \['gain', 'rate'\]; capalloc.scaling\(\) makes one that has them"):
        Scaling(dataset(rate=[1.0]).drop_vars(["rate", "gain"]))
    with pytest.raises(ValueError, match=r"rate must not be negative, but holds -0\.5"):
        Scaling(dataset(rate=[1.0, -0.5]))
    with pytest.raises(ValueError, match="products names modules"):
        capalloc.scaling(he(4, 1), gaussian(2, 4), products={"layers.0": "left"})
