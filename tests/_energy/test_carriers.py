"""What carries path energy and what is a gate: products, attention, recurrence (docs/theory.md, section 4)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import capalloc
from capalloc._energy.carriers import SQUARED, find
from capalloc._energy.program import Program
from capalloc._energy.trace import trace
from capalloc._graph.capture import capture
from capalloc._model.problem import prepare
from capalloc._operators.decompositions import table
from energies import Function, assert_is_squared_jacobian, captured, counted, energies
from zoo import gaussian, seeded_module

aten = torch.ops.aten
A, B = gaussian(4, 4, seed=11), gaussian(4, 4, seed=12)


def model_program(model: nn.Module, x: Tensor, **options: object) -> Program:
    problem = prepare(model, x)
    graph = capture(problem, len(x))
    return trace(graph, x, "data", set(problem.params), carriers=find(graph, **options))


def halves(x: Tensor) -> tuple[Tensor, Tensor]:
    return (x @ A)[:, :2], (x @ B)[:, 2:]


def pair(gate: Callable[[Tensor], Tensor], carrier: Callable[[Tensor], Tensor] = lambda v: v):
    """The product of a gate and a carrier, either way round, and itself with the gate frozen."""
    left = lambda x: gate(halves(x)[0]) * carrier(halves(x)[1])  # noqa: E731
    right = lambda x: carrier(halves(x)[1]) * gate(halves(x)[0])  # noqa: E731
    return left, right, lambda x, z: gate(halves(x)[0]) * carrier(halves(z)[1])


GATED = {
    "sigmoid before none": pair(torch.sigmoid),
    "hardsigmoid before none": pair(F.hardsigmoid),
    "softmax before none": pair(lambda v: v.softmax(-1)),
    "tanh before none": pair(torch.tanh),
    "activation before none": pair(F.silu),
    "sigmoid before tanh": pair(torch.sigmoid, torch.tanh),
    "tanh before activation": pair(torch.tanh, F.gelu),
    "statistic before sigmoid": pair(lambda v: v.square().mean(1, keepdim=True).rsqrt(), torch.sigmoid),
    "norm before activation": pair(lambda v: v.norm(dim=1, keepdim=True), F.relu),
    "one minus": pair(lambda v: 1 - v.sigmoid()),
    "scaled": pair(lambda v: 0.5 * (1 + v.tanh()), F.relu),
    "moved": pair(lambda v: v.tanh()[:, :, None].expand(-1, -1, 2).select(2, 1).float().double(), F.relu),
    "dropout": pair(lambda v: F.dropout(v.sigmoid(), 0.5, False)),
    "product of gates": pair(lambda v: v.sigmoid() * v.flip(1).sigmoid()),
    "spelled activation": pair(lambda v: v * v.sigmoid()),
    "denominator": (lambda x: halves(x)[1] / halves(x)[0].exp(),) * 2
    + (lambda x, z: halves(z)[1] / halves(x)[0].exp(),),
}


@pytest.mark.proves(
    "4",
    "the factor that ends more like a gate is one",
    oracle="the squared Jacobian with it frozen",
)
@pytest.mark.parametrize("name", GATED)
def test_the_factor_that_ends_like_a_gate_is_frozen(name):
    left, right, frozen = GATED[name]
    x = gaussian(2, 4)
    for function in (left, right):
        # One linear map, then gates: no two paths join an input to an output, so paths are entries of the Jacobian.
        program = trace(captured(function, x), x, "data", set())
        assert_is_squared_jacobian(program, lambda z: frozen(x, z), x)


ACTIVATIONS = {
    "square": lambda x: x * x,
    "cube": lambda x: x * x * x,
    "silu": lambda x: x * x.sigmoid(),
    "gelu by tanh": lambda x: 0.5 * x * (1 + torch.tanh(0.79788 * (x + 0.044715 * x**3))),
    "gelu by erf": lambda x: x * 0.5 * (1 + torch.erf(x / 2**0.5)),
    "mish": lambda x: x * torch.tanh(F.softplus(x)),
    "softsign": lambda x: x / (1 + x.abs()),
    "inverse": lambda x: 2 / x,
}


@pytest.mark.proves("4", "a product of functions of one signal is an activation", oracle="the squared Jacobian")
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_a_product_of_functions_of_one_tensor_is_an_activation(name):
    x = gaussian(2, 5)
    assert_is_squared_jacobian(trace(captured(ACTIVATIONS[name], x), x, "data", set()), ACTIVATIONS[name], x)


def test_an_activation_spelled_as_a_product_equals_the_operator_without_data_too():
    x = gaussian(2, 5)
    for gates in ("gaussian", "unit"):
        spelled, whole = (
            energies(trace(captured(f, x), x, gates, set()))[0] for f in (lambda x: x * x.sigmoid(), F.silu)
        )
        np.testing.assert_allclose(spelled, whole, rtol=1e-12)


@pytest.mark.proves("4", "where both end alike both carry in turn", oracle="the formula in squares")
def test_factors_that_end_alike_carry_in_turn():
    x = gaussian(2, 4)
    a, b = halves(x)
    program = trace(captured(lambda x: halves(x)[0] * halves(x)[1], x), x, "data", set())
    expected = A[:, :2].square().sum(0) * b.square() + B[:, 2:].square().sum(0) * a.square()
    np.testing.assert_allclose(energies(program)[0], expected, rtol=1e-12)


SUMS = {
    "h + h": (lambda h: h + h, 2.0),
    "2 h": (lambda h: 2 * h, 2.0),
    "h - h / 2": (lambda h: torch.sub(h, h, alpha=0.5), 0.5),
    "h + 3 h": (lambda h: torch.add(h, h, alpha=3), 4.0),
    "h - 3 h, the other way round": (lambda h: torch.rsub(h, h, alpha=3), 2.0),
    "h - h": (lambda h: h - h, 0.0),
}


@pytest.mark.proves("4", "a signal added to itself is one path", oracle="the signal times a number")
@pytest.mark.parametrize("name", SUMS)
def test_a_signal_added_to_itself_is_one_path(name):
    function, factor = SUMS[name]
    x = gaussian(2, 4)
    program = trace(captured(lambda x: function(x @ A), x), x, "data", set())
    expected = (factor**2 * A.square().sum(0)).expand(2, -1)
    np.testing.assert_allclose(energies(program)[0], expected, rtol=1e-12)


class Pooled(nn.Module):
    """Second moments of features, and a head: covariance pooling."""

    def __init__(self, pool: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.features, self.head, self.pool = nn.Linear(3, 4), nn.Linear(16, 2), pool

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.pool(self.features(x)).flatten(1))


GRAM = {
    "gram": (lambda h: h.mT @ h, True),
    "einsum": (lambda h: torch.einsum("bti,btj->bij", h, h), True),
    "centred": (lambda h: (lambda c: c.mT @ c)(h - h.mean(1, keepdim=True)), True),
    "activation on one side": (lambda h: h.mT @ h.tanh(), False),
    "a gate of its own": (lambda h: h.mT.softmax(-1) @ h, False),
}


@pytest.mark.parametrize("name", GRAM)
def test_a_signal_times_itself_is_noted(name):
    pool, noted = GRAM[name]
    model, x = seeded_module(Pooled, pool), gaussian(2, 5, 3)
    found = capalloc.propagate(model, x, solver="markov")
    assert any(note.startswith(SQUARED) for note in found.attrs["notes"]) == noted
    segments = capalloc.propagate(model, x, solver="segments")
    assert not any(note.startswith(SQUARED) for note in segments.attrs["notes"])


class Hyper(nn.Module):
    """Weights made of the signal that they weigh."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Linear(6, 12)

    def forward(self, x: Tensor) -> Tensor:
        return torch.bmm(self.w(x).view(-1, 2, 6), x[..., None])[..., 0]


@pytest.mark.parametrize("noted", [True, False])
def test_a_signal_times_its_linear_map_is_noted_and_two_maps_of_it_are_not(noted):
    """w_ij and w_ji do the same in x' w x, and measure counts them once; in (a x)(b x) every one counts."""
    net = seeded_module(Hyper if noted else Bilinear)
    x = gaussian(40, next(net.parameters()).shape[1])
    found, measured = capalloc.propagate(net, x, solver="markov"), capalloc.measure(net, x)
    assert any(note.startswith(SQUARED) for note in found.attrs["notes"]) == noted
    assert (found.total > 1.2 * measured.total) == noted


def test_an_entry_with_itself_has_half_its_energy():
    """What the note says: the product rule's two terms are one, so their amplitudes add and not their energies."""
    x = gaussian(2, 3, 4)
    program = trace(captured(lambda x: x @ x.mT, x), x, "data", set())
    own = np.diagonal(np.asarray(energies(program)[0]), axis1=1, axis2=2)
    jacobian = torch.func.vmap(torch.func.jacrev(lambda z: (z @ z.mT).diagonal()))(x)
    np.testing.assert_allclose(own, jacobian.square().sum((2, 3)) / 2, rtol=1e-12)


def test_a_matrix_product_of_two_signals_carries_in_turn():
    x = gaussian(2, 3, 4)
    program = trace(captured(lambda x: x @ x.mT, x), x, "data", set())
    square = x.square().sum(-1)
    np.testing.assert_allclose(energies(program)[0], square[:, None] + square[:, :, None], rtol=1e-12)


def attention(x: Tensor, z: Tensor) -> Tensor:
    weights = ((x @ A) @ (x @ B).mT / 2).softmax(-1)
    return weights @ z


@pytest.mark.proves("4", "attention: A V with A as frozen gates", oracle="the squared Jacobian with weights frozen")
@pytest.mark.parametrize("fused", [False, True])
def test_attention_weights_are_gates_and_values_carry(fused):
    x = gaussian(2, 3, 4)
    whole = (lambda x: F.scaled_dot_product_attention(x @ A, x @ B, x)) if fused else lambda x: attention(x, x)
    program = trace(captured(whole, x), x, "data", set())
    assert_is_squared_jacobian(program, lambda z: attention(x, z), x)


MATRICES = {
    "left": lambda x: gaussian(5, 3) @ x,
    "left by batch": lambda x: gaussian(2, 5, 3) @ x,
    "right by batch": lambda x: x @ gaussian(2, 4, 5),
    "row": lambda x: gaussian(3) @ x,
    "column": lambda x: x @ gaussian(4),
    "einsum": lambda x: torch.einsum("bij,jk->bki", x, gaussian(4, 5)),
    "holes": lambda x: x @ torch.block_diag(gaussian(2, 1), gaussian(2, 2)),
    "vector": lambda x: x.reshape(-1) @ gaussian(24, 2),
    "matrix by vector": lambda x: gaussian(2, 24) @ x.reshape(-1),
    "inner product": lambda x: (x.reshape(-1) @ gaussian(24))[None],
}


@pytest.mark.parametrize("name", MATRICES)
def test_products_with_a_constant_matrix(name):
    x = gaussian(2, 3, 4)
    assert_is_squared_jacobian(trace(captured(MATRICES[name], x), x, "data", set()), MATRICES[name], x)


class Weighed(nn.Module):
    """A product with a parameter of any shape, on either side, between two linear maps."""

    def __init__(self, shape: tuple[int, ...], left: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(gaussian(*shape, seed=3))
        self.left = left

    def forward(self, x: Tensor) -> Tensor:
        return self.weight @ x if self.left else x @ self.weight


@pytest.mark.parametrize(
    ("shape", "left"),
    [((4, 5), False), ((4,), False), ((2, 4, 5), False), ((5, 3), True), ((2, 5, 3), True), ((3,), True)],
)
def test_products_with_a_parameter_of_any_shape(shape, left):
    model, x = Weighed(shape, left), gaussian(2, 2, 3, 4)
    program = model_program(model, x)
    assert_is_squared_jacobian(program, model, x)
    assert capalloc.propagate(model, x, solver="markov").total == pytest.approx(model.weight.numel())


class Experts(nn.Module):
    """Two experts of two layers each, as batched products; the last is linear in a shared head."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Parameter(gaussian(2, 3, 4, seed=3))
        self.second = nn.Parameter(gaussian(2, 4, 2, seed=4))

    def forward(self, x: Tensor) -> Tensor:
        h = x[:, None, None] @ self.first
        return (torch.tanh(h) @ self.second).sum(1)[:, 0]


def test_batched_weights_have_a_symmetry_for_every_hidden_channel_of_every_expert():
    allocation = capalloc.propagate(Experts(), gaussian(3, 3), solver="markov")
    assert allocation.attrs["symmetries"] == 8
    exact = capalloc.propagate(Experts(), gaussian(3, 3), solver="hessian")
    assert exact.attrs["rank"] == 40 - 8
    np.testing.assert_allclose(allocation.capacity, exact.capacity, rtol=1e-6)


# -- the user's choice ------------------------------------------------------------------------------------------


class Bilinear(nn.Module):
    """a(x) * b(x), an elementwise product that is a module of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(4, 3, bias=False)
        self.b = nn.Linear(4, 3, bias=False)
        self.product = Product()

    def forward(self, x: Tensor) -> Tensor:
        return self.product(self.a(x), self.b(x))


class Product(nn.Module):
    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return a * b


def test_the_user_may_say_which_factor_is_the_gate():
    model, x = seeded_module(Bilinear), gaussian(2, 4)
    a, b = model.a.weight.detach(), model.b.weight.detach()
    from_a, from_b = a.square().sum(1) * (x @ b.T).square(), b.square().sum(1) * (x @ a.T).square()
    for side, expected in [("left", from_b), ("right", from_a), ("both", from_a + from_b), (None, from_a + from_b)]:
        program = model_program(model, x, **({"products": {"product": side}} if side else {}))
        np.testing.assert_allclose(energies(program)[0], expected, rtol=1e-12)
    allocation = capalloc.propagate(model, x, products={"product": "left"}, solver="markov")
    assert allocation.attrs["unseen_params"] == 12
    assert allocation.attrs["unseen_share"] == 0.5
    assert allocation.attrs["unused_params"] == 0
    assert allocation.attrs["notes"][2:] == [
        "not seen by paths: 1 parameter tensors, 50 % of parameters (queries, keys, gating branches, weights of "
        "complex numbers): a.weight"
    ]
    walked = capalloc.walk(model, x, products={"product": "left"})
    expected = (b.square()[None] * (x @ a.T).square()[:, :, None]).sum((0, 1))
    np.testing.assert_allclose(walked.inputs, expected / expected.sum(), rtol=1e-12)


def test_products_must_name_a_module_that_multiplies_and_a_side():
    model, x = seeded_module(Bilinear), gaussian(2, 4)
    with pytest.raises(ValueError, match=r"products names modules \['a'\].*those that do are \['product'\]"):
        capalloc.propagate(model, x, products={"a": "left"}, solver="markov")
    with pytest.raises(ValueError, match=r"products\['product'\] must be one of .*got 'up'"):
        capalloc.walk(model, x, products={"product": "up"})


def test_the_weights_of_fused_attention_are_always_the_gate():
    model, x = Function(lambda x: F.scaled_dot_product_attention(x @ A, x, x)), gaussian(2, 3, 4)
    graph = captured(model.function, x)
    assert find(graph, {"": "left"}).carrying == find(graph).carrying
    with pytest.raises(ValueError, match=r"products\[''\] is 'both', but scaled_dot_product_attention is one operator"):
        find(graph, {"": "both"})


def test_a_denominator_may_carry():
    x = gaussian(2, 4)
    graph = captured(lambda x: x[:, :2] / x[:, 2:].exp(), x)
    program = trace(graph, x, "data", set(), carriers=find(graph, {"": "left"}))
    np.testing.assert_allclose(energies(program)[0], (x[:, :2] / x[:, 2:].exp()).square(), rtol=1e-12)


def test_gates_without_data_are_refused_where_they_depend_on_the_inputs():
    x = gaussian(2, 4)
    for model in (
        Bilinear(),
        nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4)),
        nn.Sequential(nn.Linear(4, 4), nn.GLU()),
    ):
        with pytest.raises(
            ValueError, match=r"gates='unit' gives the slopes .* depend on the inputs; use gates='data'"
        ):
            capalloc.propagate(model.double(), x, gates="unit", solver="markov")
    frozen = nn.Sequential(nn.Conv1d(2, 2, 1), nn.InstanceNorm1d(2, track_running_stats=True)).double()
    assert capalloc.propagate(frozen, gaussian(2, 2, 3), gates="unit", solver="markov").total > 0


# -- parameters -------------------------------------------------------------------------------------------------


class Reparametrised(nn.Module):
    """Weights that reach the model as functions of their entries, one of them also as they are."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 4, bias=False)
        self.gain = nn.Parameter(torch.zeros(4))
        self.rate = nn.Parameter(gaussian(4))
        self.head = nn.Linear(4, 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.first(x) * (1 + self.gain)) * self.rate + self.rate.sigmoid())


def test_symmetries_of_a_parameter_that_is_read_in_two_ways_are_a_lower_bound():
    """Of what is added, only the sum over units is seen: two more directions change nothing."""
    model, x = seeded_module(Reparametrised), gaussian(64, 3)
    found = capalloc.propagate(model, x, solver="markov")
    assert counted(found) == 24
    assert not found.attrs["symmetries_exact"]
    assert capalloc.measure(model, x).total == pytest.approx(22)


class Chained(nn.Module):
    """A weight that is a function of a function of a parameter's entries."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.gain = nn.Linear(3, 4), nn.Parameter(gaussian(4))

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) * torch.sigmoid(1 + self.gain)


def test_a_function_of_a_function_of_a_parameter_keeps_its_paths():
    model, x = seeded_module(Chained), gaussian(2, 3)
    weights = torch.cat([model.linear.weight, model.linear.bias[:, None]], 1).square().sum(1)
    expected = (weights * torch.sigmoid(1 + model.gain).square()).expand(2, 4)
    np.testing.assert_allclose(energies(model_program(model, x))[0], expected.detach(), rtol=1e-12)
    found = capalloc.propagate(model, x, solver="markov")
    assert found.attrs["unused_params"] == 0
    assert (found.total, found.attrs["symmetries"]) == (pytest.approx(16), 4)


def test_functions_of_a_parameter_are_the_parameter():
    model, x = seeded_module(Reparametrised), gaussian(2, 3)
    h = model.first(x) * (1 + model.gain)
    slope = (1 - h.tanh().square()).square()
    inner = (model.first.weight.square().sum(1) * (1 + model.gain).square() * slope) * model.rate.square()
    expected = (inner + model.rate.sigmoid().square()) @ model.head.weight.square().T
    program = model_program(model, x)
    np.testing.assert_allclose(energies(program)[0], expected.detach(), rtol=1e-12)
    allocation = capalloc.propagate(model, x, solver="markov")
    assert allocation.attrs["unused_params"] == 0  # a gain of 1 + 0 is in use
    assert allocation.total == pytest.approx(12 + 4 + 4 + 8 - allocation.attrs["symmetries"])


class Mixture(nn.Module):
    """A learnt mixture of two layers: softmax of parameters, which is no weight."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Parameter(gaussian(2))
        self.a = nn.Linear(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        share = self.mix.softmax(0)
        return share[0] * y + share[1] * y.flip(1)


def test_a_softmax_of_parameters_is_a_gate():
    allocation = capalloc.propagate(seeded_module(Mixture), gaussian(2, 3), solver="markov")
    assert allocation.attrs["unseen_params"] == 2
    assert allocation.total == pytest.approx(16)


class Normed(nn.Module):
    """A layer whose weight is divided by a norm."""

    def __init__(self, normed: Callable[[nn.Module], nn.Module]) -> None:
        super().__init__()
        self.first = normed(nn.Linear(3, 4))
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.first(x)))


@pytest.mark.parametrize(
    "normed",
    [nn.utils.parametrizations.weight_norm, nn.utils.parametrizations.spectral_norm],
    ids=["weight", "spectral"],
)
def test_the_norm_that_a_weight_is_divided_by_is_a_constant(normed):
    model, x = seeded_module(Normed, normed).eval(), gaussian(2, 3)
    slope = (1 - torch.tanh(model.first(x)).square()).square()
    first, head = model.first, model.head
    inner = slope * (first.weight.square().sum(1) + first.bias.square())
    expected = inner @ head.weight.square().T + head.bias.square()
    np.testing.assert_allclose(energies(model_program(model, x))[0], expected.detach(), rtol=1e-10)
    allocation = capalloc.propagate(model, x, solver="markov")
    assert allocation.attrs["unseen_params"] == 0
    assert allocation.total == pytest.approx(counted(allocation))


class Packed(nn.Module):
    """Self-attention by one packed projection, with a dead unit and a parameter in no use."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(4, 12)
        self.out = nn.Linear(4, 2)
        self.idle = nn.Parameter(torch.ones(5))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).reshape(*x.shape[:2], 3, 4).unbind(2)
        return self.out(F.scaled_dot_product_attention(q, k, v))


def test_entries_of_a_packed_projection_that_steer_are_unseen():
    model = seeded_module(Packed)
    with torch.no_grad():
        model.out.weight[:, 0] = 0  # value channel 0 is dead: 5 entries of qkv move nothing
    x = gaussian(2, 3, 4)
    allocation = capalloc.propagate(model, x, solver="markov")
    assert allocation.attrs["unseen_params"] == 2 * 20 - 4  # nor do biases of keys
    assert allocation.attrs["unused_params"] == 5 + 5 + 4 == capalloc.measure(model, x).attrs["unused_params"]
    assert any("2 parameter tensors" in note for note in allocation.attrs["notes"])
    alone = capalloc.propagate(model, gaussian(2, 3, 4), params=["qkv.bias"], solver="markov")
    assert any("1 parameter tensors" in note for note in alone.attrs["notes"])


class Shown(nn.Module):
    """Attention of which a few weights are outputs too: queries and keys carry there, and steer elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.attention, self.last = nn.MultiheadAttention(4, 2, batch_first=True), nn.Linear(12, 2)

    def forward(self, x: Tensor) -> Tensor:
        out, weights = self.attention(x, x, x, average_attn_weights=False)
        return self.last(out.flatten(1)) + weights.flatten(1)[:, :2]


def test_entries_that_carry_nowhere_but_steer_are_no_unused_ones():
    model, x = seeded_module(Shown), gaussian(6, 3, 4)
    found = capalloc.propagate(model, x, solver="markov")
    assert found.attrs["unused_params"] <= capalloc.measure(model, x).attrs["unused_params"]
    assert found.attrs["unseen_params"] >= 2 * 2 * 4  # queries and keys of the other head
    scores = capalloc.prune_scores(model, x).data
    assert "not scored, wholly or in part" in " ".join(scores.attrs["notes"])


class SpatialGate(nn.Module):
    """u * p(norm(v)) for (u, v) = act(f(x)), as in gMLP: u ends like a gate where it comes from an activation."""

    def __init__(self, act: nn.Module) -> None:
        super().__init__()
        self.f, self.n, self.p, self.o, self.act = (
            nn.Linear(4, 12),
            nn.LayerNorm(6),
            nn.Linear(3, 3),
            nn.Linear(6, 2),
            act,
        )

    def forward(self, x: Tensor) -> Tensor:
        u, v = self.act(self.f(x)).chunk(2, -1)
        return self.o(u * self.p(self.n(v).mT).mT).mean(1)


@pytest.mark.parametrize(
    "act", [nn.GELU(), nn.Tanh(), nn.Sequential(nn.LayerNorm(12, elementwise_affine=False), nn.SiLU())]
)
def test_pieces_that_steer_are_unseen_behind_what_acts_entry_by_entry(act: nn.Module):
    allocation = capalloc.propagate(seeded_module(SpatialGate, act), gaussian(5, 3, 4), solver="markov")
    assert (allocation.attrs["unseen_params"], allocation.attrs["unused_params"]) == (30, 0)


class Scan(nn.Module):
    """h_t = exp(-A dt_t) h + dt_t v_t, from a state of zeros."""

    def __init__(self, start: str) -> None:
        super().__init__()
        self.v, self.dt, self.o, self.start = nn.Linear(4, 3), nn.Linear(4, 3), nn.Linear(3, 2), start
        self.A = nn.Parameter(torch.randn(3))
        self.register_buffer("state", torch.zeros(1, 3))

    def forward(self, x: Tensor) -> Tensor:
        dt = F.softplus(self.dt(x))
        decay, put = torch.exp(-self.A.exp() * dt), dt * self.v(x)
        starts = {
            "zeros": lambda: torch.zeros(len(x), 3, dtype=x.dtype),
            "like": lambda: torch.zeros_like(put[:, 0]),
            "full": lambda: x.new_full((len(x), 3), 0.0),
            "buffer": lambda: self.state.expand(len(x), -1),
        }
        h = starts[self.start]()
        for t in range(x.shape[1]):
            h = decay[:, t] * h + put[:, t]
        return self.o(h)


@pytest.mark.parametrize("start", ["zeros", "like", "full", "buffer"])
def test_a_scan_from_zeros_starts_no_path_there(start: str):
    """Whatever is multiplied by a constant 0 carries nothing: its parameters steer the later steps alone."""
    allocation = capalloc.propagate(seeded_module(Scan, start), gaussian(5, 3, 4), solver="markov")
    assert (allocation.attrs["unseen_params"], allocation.attrs["unused_params"]) == (18, 0)
    assert allocation.total == pytest.approx(20)


def test_torch_attention_and_transformer_layers():
    x = gaussian(2, 3, 4)
    for model in (
        seeded_module(nn.TransformerEncoderLayer, 4, 2, 8, batch_first=True),
        seeded_module(nn.TransformerEncoderLayer, 4, 2, 8, batch_first=True, norm_first=True, activation="gelu"),
        seeded_module(Decoder),
    ):
        allocation = capalloc.propagate(model, x, solver="markov")
        heads = [m for m in model.modules() if hasattr(m, "in_proj_bias")]  # whose biases of keys move nothing
        steering = sum(2 * m.in_proj_weight.numel() + m.in_proj_bias.numel() for m in heads)
        assert allocation.attrs["unseen_params"] == steering // 3
        assert allocation.total == pytest.approx(counted(allocation))


class Decoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerDecoderLayer(4, 2, 8, batch_first=True, activation="gelu")

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x, x)


# -- recurrence -------------------------------------------------------------------------------------------------


class Last(nn.Module):
    """The outputs of a recurrent layer at all times."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)[0]


class Looped(nn.Module):
    """A cell, step by step."""

    def __init__(self, cell: nn.Module) -> None:
        super().__init__()
        self.cell = cell

    def forward(self, x: Tensor) -> Tensor:
        state, outputs = None, []
        for t in range(x.shape[1]):
            state = self.cell(x[:, t], state)
            outputs.append(state[0] if isinstance(state, tuple) else state)
        return torch.stack(outputs, 1)


def lstm_energies(layer: nn.LSTM, x: Tensor) -> Tensor:
    """Path energies of h: c' = f c + i g and h' = o tanh(c') with the sigmoids frozen."""
    w_x, w_h, b_x, b_h = (p.detach() for p in layer.parameters())
    h = c = e_h = e_c = torch.zeros(len(x), layer.hidden_size, dtype=x.dtype)
    found = []
    for t in range(x.shape[1]):
        i, f, g, o = (x[:, t] @ w_x.T + b_x + h @ w_h.T + b_h).chunk(4, 1)
        k = slice(2 * layer.hidden_size, 3 * layer.hidden_size)
        into = w_x[k].square().sum(1) + b_x[k].square() + e_h @ w_h[k].square().T + b_h[k].square()
        e_c = f.sigmoid().square() * e_c + i.sigmoid().square() * (1 - g.tanh().square()).square() * into
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h = o.sigmoid() * c.tanh()
        e_h = o.sigmoid().square() * (1 - c.tanh().square()).square() * e_c
        found.append(e_h)
    return torch.stack(found, 1)


def gru_energies(layer: nn.GRU, x: Tensor) -> Tensor:
    """Path energies of h' = (1 - z) tanh(x_n + r h_n) + z h with the sigmoids frozen."""
    w_x, w_h, b_x, b_h = (p.detach() for p in layer.parameters())
    h = e = torch.zeros(len(x), layer.hidden_size, dtype=x.dtype)
    found = []
    for t in range(x.shape[1]):
        (x_r, x_z, x_n), (h_r, h_z, h_n) = (x[:, t] @ w_x.T + b_x).chunk(3, 1), (h @ w_h.T + b_h).chunk(3, 1)
        r, z = (x_r + h_r).sigmoid(), (x_z + h_z).sigmoid()
        n = (x_n + r * h_n).tanh()
        k = slice(2 * layer.hidden_size, None)
        into = w_x[k].square().sum(1) + b_x[k].square() + r.square() * (e @ w_h[k].square().T + b_h[k].square())
        e = (1 - z).square() * (1 - n.square()).square() * into + z.square() * e
        h = (1 - z) * n + z * h
        found.append(e)
    return torch.stack(found, 1)


RECURRENT = {"lstm": (nn.LSTM, nn.LSTMCell, lstm_energies, 4), "gru": (nn.GRU, nn.GRUCell, gru_energies, 3)}


@pytest.mark.parametrize("name", RECURRENT)
def test_recurrent_layers_unrolled(name):
    kind, cell_kind, reference, gates = RECURRENT[name]
    layer = seeded_module(kind, 2, 3, batch_first=True)
    x = gaussian(2, 4, 2)
    np.testing.assert_allclose(energies(model_program(Last(layer), x))[0], reference(layer, x), rtol=1e-10)
    cell = cell_kind(2, 3).double()
    cell.load_state_dict({key.removesuffix("_l0"): value for key, value in layer.state_dict().items()})
    whole, looped = (capalloc.propagate(m, x, solver="markov") for m in (Last(layer), Looped(cell)))
    np.testing.assert_allclose(whole.capacity, looped.capacity, rtol=1e-9)
    # All but one of the gates' blocks of rows only steer.
    assert whole.attrs["unseen_params"] == looped.attrs["unseen_params"] == (gates - 1) * 3 * (2 + 3 + 2)
    assert whole.total == pytest.approx(counted(whole))


@pytest.mark.parametrize("activation", ["tanh", "relu"])
def test_plain_recurrence(activation):
    layer = seeded_module(nn.RNN, 2, 3, batch_first=True, nonlinearity=activation)
    x = gaussian(2, 3, 2)
    cell = nn.RNNCell(2, 3, nonlinearity=activation).double()
    cell.load_state_dict({key.removesuffix("_l0"): value for key, value in layer.state_dict().items()})
    whole, looped = (capalloc.propagate(m, x, solver="markov") for m in (Last(layer), Looped(cell)))
    np.testing.assert_allclose(whole.capacity, looped.capacity, rtol=1e-9)
    assert whole.attrs["unseen_params"] == 0


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_decompositions_compute_what_the_layers_do(kind, bias):
    options = {"proj_size": 2} if kind is nn.LSTM else {}
    for batch_first in (False, True):
        layer = seeded_module(
            kind, 2, 3, num_layers=2, bias=bias, bidirectional=True, batch_first=batch_first, **options
        )
        x = gaussian(4, 5, 2)
        operator = {nn.LSTM: aten.lstm.input, nn.GRU: aten.gru.input, nn.RNN: aten.rnn_tanh.input}[kind]
        width = 2 if kind is nn.LSTM else 3
        h = gaussian(4, 4 if batch_first else 5, width, seed=2)
        state = [h, gaussian(*h.shape[:2], 3, seed=3)] if kind is nn.LSTM else h
        args = (x, state, list(layer.parameters()), bias, 2, 0.0, False, True, batch_first)
        for found, expected in zip(table()[operator](*args), operator(*args), strict=True):
            torch.testing.assert_close(found, expected)


def test_small_decompositions_compute_what_the_operators_do():
    x, y, z = gaussian(2, 4, 3), gaussian(2, 4, 3, seed=2), gaussian(2, 4, 3, seed=3)
    for operator, args in [
        (aten.lerp.Tensor, (x, y, z)),
        (aten.addcmul.default, (x, y, z)),
        (aten.prelu.default, (x, gaussian(4))),
        (aten.prelu.default, (x, gaussian(1))),
        (aten.glu.default, (x, 1)),
        (aten._weight_norm.default, (x, gaussian(1, 4, 1), 1)),
        (aten._weight_norm.default, (x, gaussian(1), -1)),
    ]:
        torch.testing.assert_close(table()[operator](*args), operator(*args))


def test_a_mixture_by_a_gate_weighs_both_sides():
    x = gaussian(2, 4)
    program = trace(captured(lambda x: torch.lerp(x, x.flip(1), (x @ A).sigmoid()), x), x, "data", set())
    gate = (x @ A).sigmoid()
    np.testing.assert_allclose(energies(program)[0], (1 - gate).square() + gate.square(), rtol=1e-12)


def test_gated_linear_units_are_a_product_with_a_sigmoid():
    x = gaussian(2, 4)
    program = trace(captured(F.glu, x), x, "data", set())
    assert_is_squared_jacobian(program, lambda z: z[:, :2] * x[:, 2:].sigmoid(), x)


@pytest.mark.proves("4", "symmetries of any graph", oracle="the rank of the Hessian")
@pytest.mark.parametrize("name", ["lstm", "gru", "packed", "weight norm"])
def test_parameters_in_use_less_symmetries_are_the_rank_of_the_hessian(name):
    model, shape = {
        "lstm": (lambda: Last(nn.LSTM(2, 2, batch_first=True)), (3, 3, 2)),
        "gru": (lambda: Last(nn.GRU(2, 2, batch_first=True)), (3, 3, 2)),
        "packed": (Packed, (4, 3, 4)),
        "weight norm": (lambda: Normed(nn.utils.parametrizations.weight_norm).eval(), (4, 3)),
    }[name]
    found, exact = (capalloc.propagate(seeded_module(model), gaussian(*shape), solver=s) for s in ("markov", "hessian"))
    assert exact.attrs["rank"] == counted(found)
    assert float(abs(found.capacity - exact.capacity).sum()) / 2 < 0.01 * found.total
