"""Gram matrices of the output Jacobian against `torch.func.jacrev`, by every road to them."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import functional_call, jacrev
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from capalloc._derivatives import gram_work
from capalloc._derivatives.autograd import exact_derivatives
from capalloc._derivatives.gram_factors import Form, PlainParts, TappedParts
from capalloc._derivatives.gram_sums import add_entrywise, add_pairs, cheaper_for_outputs, cheaper_for_params
from capalloc._derivatives.output_grams import output_gram, prepare_gram
from capalloc._derivatives.verify import choose_parts
from capalloc._linalg.symmetric import add_gram, mirror
from capalloc._model.problem import prepare
from measured import MODELS, Branches, Centre, Counter, Cube, CubeNew, Cubic, Signs, build, data, snapshot

SIDES = ("outputs", "params", "diagonal")


class Tokens(nn.Module):
    """Layers over a few positions, a matrix on the right, one matrix used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.mix = nn.Linear(3, 24), nn.Linear(24, 20, bias=False)
        self.right = nn.Parameter(torch.randn(20, 6) / 5)
        self.tied = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.mix(torch.tanh(self.embed(x)))) @ self.right
        return self.tied(torch.tanh(self.tied(h))).sum(1)


class Windows(nn.Module):
    """Positions go to the examples axis and back; an examples axis of no use to per-example hooks."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.linear = nn.Conv2d(2, 3, 2), nn.Linear(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        windows = x.unfold(2, 2, 2).unfold(3, 2, 2).permute(2, 3, 0, 1, 4, 5)  # positions before examples
        h = torch.relu(self.conv(windows.flatten(0, 2)))[:, :, 0, 0].unflatten(0, windows.shape[:3])
        return torch.tanh(self.linear(h)).sum((0, 1))


def conv_net() -> nn.Module:
    """Stride, dilation, groups, padding; wide enough at few positions for products of pairs."""
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=2, dilation=2, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(inplace=True),
        nn.Conv2d(4, 8, 3, stride=2, padding=1, groups=2),
        nn.SiLU(),
        nn.Conv2d(8, 12, 2, padding="same", padding_mode="circular"),
        nn.Tanh(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(12, 3),
    )


class Scaled(nn.Module):
    """A parameter of no axes beside a layer: the Jacobian has one column of it."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.scale = nn.Linear(3, 2), nn.Parameter(torch.tensor(0.5))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * torch.tanh(self.linear(x))


HERE = {
    "scaled": (Scaled, (3,)),
    "tokens": (Tokens, (2, 3)),
    "windows": (Windows, (2, 4, 4)),
    "convolutions": (conv_net, (2, 6, 5)),
    "deep dense": (lambda: dense(12, 16, 16, 5), (12,)),
    "no bias": (lambda: dense(9, 10, 4, bias=False), (9,)),
}
CASES = {**MODELS, **HERE}


def dense(*widths: int, bias: bool = True) -> nn.Module:
    layers = [[nn.Linear(i, o, bias=bias), nn.ReLU()] for i, o in itertools.pairwise(widths)]
    return nn.Sequential(*itertools.chain(*layers))[:-1]


def jacobian(model: nn.Module, x: Tensor) -> Tensor:
    """J by brute force, (examples, outputs, params)."""
    params = {name: p.detach() for name, p in model.named_parameters()}

    def f(values: dict[str, Tensor], point: Tensor) -> Tensor:
        return functional_call(model, values, (point[None],)).reshape(-1)

    with exact_derivatives():
        rows = [jacrev(f)(params, one) for one in x]
    return torch.stack(
        [torch.cat([row[name].reshape(len(row[name]), -1) for name in params], 1) for row in rows]
    ).detach()


def expected(J: Tensor, side: str) -> Tensor:
    if side == "outputs":
        return torch.einsum("eok,fqk->eofq", J, J)
    rows = J.flatten(0, 1)
    return rows.square().sum(0) if side == "diagonal" else rows.T @ rows


def assert_close(a: Tensor, b: Tensor, rtol: float = 1e-10) -> None:
    """To `rtol` of the largest entry."""
    assert a.shape == b.shape
    assert float((a - b).abs().max()) <= rtol * float(b.abs().max())


def source_of(model: nn.Module, x: Tensor):
    with exact_derivatives():
        return choose_parts(prepare(model, x), x[:2])


# The same as plain differentiation


@pytest.mark.parametrize("name", CASES)
def test_every_model_equals_brute_force(name):
    make, shape = CASES[name]
    model, x = build(make), data(7, *shape)
    J = jacobian(model, x)
    assert isinstance(source_of(model, x), TappedParts)  # nothing here needs the slow road
    for side in SIDES:
        assert_close(output_gram(model, x, side=side), expected(J, side))
        assert_close(output_gram(model, x, side=side, batch_size=3), expected(J, side))


@pytest.mark.parametrize("factored", [True, False])
@pytest.mark.parametrize("name", HERE)
def test_factors_and_rows_give_the_same(name, factored, monkeypatch):
    make, shape = HERE[name]
    model, x = build(make), data(7, *shape)
    monkeypatch.setattr(gram_work, "cheaper_for_outputs", lambda form, examples, outputs: factored)
    monkeypatch.setattr(gram_work, "cheaper_for_params", lambda form, outputs: factored and form.positions == 1)
    J = jacobian(model, x)
    for side in SIDES:
        assert_close(output_gram(model, x, side=side), expected(J, side))


@pytest.mark.parametrize("block", [1, 6, 100])
@pytest.mark.parametrize("positions", [1, 4])
def test_products_of_factors_add_up_over_blocks_of_pairs(positions, block):
    """sum_ts (left_t left_s') o (right_t right_s'), by definition and block by block."""
    left, right = data(7, 3, positions, 5), data(7, positions, 2)
    expected = torch.einsum("eota,fqsa,etb,fsb->eofq", left, left, right, right).reshape(21, 21).tril()
    found = torch.zeros(21, 21, dtype=left.dtype)
    add_pairs(found, left, right, numbers=positions * 15 * block**2)
    assert_close(found.tril(), expected, 1e-13)
    if positions == 1:
        add_entrywise(found, left[:, :, 0], right[:, 0], rows=3 * block)
        assert_close(found.tril(), 2 * expected, 1e-13)


@pytest.mark.parametrize("side", SIDES)
def test_chunks_of_examples_and_outputs_add_up(side):
    model, x = build(conv_net), data(9, 2, 6, 5)
    whole = output_gram(model, x, side=side)
    with exact_derivatives():
        work = prepare_gram(model, x, None, None, None, None, None)
        source = replace(work.source, sensitivity_bytes=1)
        small = replace(work, source=source, gathered_bytes=2**16, gathered_share=0.0)
        found = {"outputs": small.output_gram, "params": small.param_gram, "diagonal": small.param_diagonal}[side](2)
    found = found if side == "diagonal" else mirror(found)
    assert_close(found.reshape(whole.shape), whole, 1e-13)
    labels = torch.zeros(9, dtype=torch.long)
    assert_close(output_gram(model, [(x[:4], labels[:4]), (x[4:], labels[4:])], side=side), whole, 1e-13)


@settings(max_examples=15, deadline=None)
@given(
    widths=st.lists(st.integers(1, 6), min_size=2, max_size=4),
    examples=st.integers(1, 5),
    seed=st.integers(0, 1000),
    bias=st.booleans(),
)
def test_random_dense_networks(widths, examples, seed, bias):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = dense(*widths, bias=bias).double()
    x = data(examples, widths[0], seed=seed)
    J = jacobian(model, x)
    for side in SIDES:
        gram = output_gram(model, x, side=side)
        np.testing.assert_allclose(gram, expected(J, side), atol=1e-10 * float(J.square().sum() + 1e-300))


@pytest.mark.parametrize("name", ["convolutions", "tokens", "deep dense", "attention"])
def test_both_sides_are_symmetric_positive_and_share_their_spectrum(name):
    make, shape = CASES[name]
    model, x = build(make), data(6, *shape)
    spectra = []
    for side in ("outputs", "params"):
        gram = output_gram(model, x, side=side)
        gram = gram.flatten(2).flatten(0, 1) if side == "outputs" else gram
        assert torch.equal(gram, gram.T)
        values = torch.linalg.eigvalsh(gram).flip(0)
        assert float(values[-1]) >= -1e-13 * float(values[0])
        spectra.append(values[: min(12, len(values))])
    assert_close(spectra[0], spectra[1][: len(spectra[0])], 1e-12)


def test_a_linear_model_gives_the_kernel_in_closed_form():
    """f = W x + b: J J' = (x x' + 1) (x) I, and J' J is block diagonal."""
    model, x = build(lambda: nn.Linear(5, 3)), data(4, 5)
    closed = torch.einsum("ef,oq->eofq", x @ x.T + 1, torch.eye(3, dtype=x.dtype))
    assert_close(output_gram(model, x), closed, 1e-14)
    second = output_gram(model, x, side="params")[:15, :15]
    assert_close(second, torch.kron(torch.eye(3, dtype=x.dtype), x.T @ x), 1e-14)


def test_params_and_outputs_select_columns_and_rows():
    model, x = build(HERE["deep dense"][0]), data(6, 12)
    J = jacobian(model, x)
    sizes = [p.numel() for p in model.parameters()]
    chosen = torch.cat([part for k, part in enumerate(J.split(sizes, 2)) if k in (2, 3)], 2)
    for side in SIDES:
        for params in (["2.weight", "2.bias"], lambda name: name.startswith("2.")):
            assert_close(output_gram(model, x, params=params, side=side), expected(chosen, side))
        assert_close(output_gram(model, x, lambda y: y[:, 1:3], side=side), expected(J[:, 1:3], side))


# Precision


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("name", ["convolutions", "deep dense", "tokens", "attention"])
def test_float32_and_sums_in_float64(name, side):
    """1e-5: rounding of a network's own float32 activations, some ten layers of it, relative to the largest entry."""
    make, shape = CASES[name]
    model, x = build(make), data(7, *shape)
    exact = output_gram(model, x, side=side)
    single = output_gram(model.float(), x.float(), side=side)
    assert single.dtype == torch.float32
    assert_close(single.double(), exact, 1e-5)
    summed = output_gram(model, x.float(), side=side, accumulate=torch.float64)
    assert summed.dtype == torch.float64
    assert_close(summed, exact, 1e-5)
    again = output_gram(model, x.float(), side=side, dtype=torch.float64)
    assert again.dtype == torch.float64
    assert_close(again, exact, 1e-5)  # weights and inputs were rounded to float32


def test_sums_in_float64_keep_what_float32_sums_lose():
    """Terms of one sign, all 1 + rounding: a float32 sum of n of them is off by about sqrt(n) eps, blocks by less."""
    X = 1 + data(4, 2**16).float() / 8
    exact = X.double() @ X.double().T
    errors = []
    for dtype in (torch.float32, torch.float64):
        out = torch.empty(4, 4, dtype=dtype)
        add_gram(out, X, fresh=True)
        errors.append(float((mirror(out).double() / exact - 1).abs().max()))
    assert errors[1] < 2e-7
    assert errors[1] <= errors[0]


@pytest.mark.parametrize(("n", "k", "fresh"), [(1, 3, True), (700, 5, True), (700, 5, False), (300, 0, True)])
@pytest.mark.parametrize("dtypes", [(torch.float64,) * 2, (torch.float32, torch.float64)])
def test_symmetric_products_fill_the_whole_matrix(n, k, fresh, dtypes):
    X = data(n, k).to(dtypes[0])
    before = data(n, n)
    before = (before + before.T).to(dtypes[1])
    out = torch.full_like(before, torch.nan) if fresh else before.clone()
    add_gram(out, X, fresh)
    whole = X.double() @ X.double().T + (0 if fresh else before)
    assert torch.equal(mirror(out), out.T)
    torch.testing.assert_close(out.double(), whole.double(), rtol=1e-5, atol=1e-5 if k else 0.0)


# What is never formed


class Largest(TorchDispatchMode):
    """Numbers in the largest tensor that any operation returns."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        sizes = [t.untyped_storage().nbytes() // t.itemsize for t in tree_leaves(out) if isinstance(t, Tensor)]
        self.numbers = max(self.numbers, *sizes, 0) if sizes else self.numbers
        return out


def test_dense_networks_never_form_the_jacobian():
    model, x = build(lambda: dense(60, 200, 200, 10)), data(20, 60)
    params = sum(p.numel() for p in model.parameters())
    with Largest() as largest:
        gram = output_gram(model, x)
    rows, widest = 20 * 10, 200 * 200  # the copy of a weight is the largest tensor beside the result
    assert largest.numbers <= max(rows**2, widest, rows * 410)
    assert largest.numbers < rows * params / 40
    assert_close(gram, expected(jacobian(model, x), "outputs"))


def test_the_cheaper_way_is_chosen_by_counting_products():
    assert cheaper_for_outputs(Form(1, 200, 100), 64, 10)
    assert cheaper_for_outputs(Form(4, 512, 512), 64, 10)
    assert not cheaper_for_outputs(Form(784, 8, 9), 64, 10)
    assert not cheaper_for_outputs(Form(1, 5, 1), 64, 10)  # a factor of one number gains nothing
    assert cheaper_for_params(Form(1, 10, 324), 10)
    assert not cheaper_for_params(Form(1, 10, 324), 1)
    assert not cheaper_for_params(Form(2, 10, 324), 10)


# Any model


@pytest.mark.parametrize(
    ("make", "road"),
    [
        (lambda: Cubic(None), TappedParts),
        (lambda: Cubic(CubeNew), PlainParts),
        (lambda: Cubic(Cube), PlainParts),
        (Branches, PlainParts),
    ],
)
def test_models_that_transforms_cannot_enter(make, road):
    model, x = build(make), data(8, 3)
    assert type(source_of(model, x)) is road
    J = torch.cat([by_autograd(model, x[[k]]) for k in range(len(x))])
    for side in SIDES:
        assert_close(output_gram(model, x, side=side, batch_size=3), expected(J, side))


def by_autograd(model: nn.Module, x: Tensor) -> Tensor:
    params = list(model.parameters())
    rows = [
        torch.autograd.grad(f, params, retain_graph=True, allow_unused=True, materialize_grads=True)
        for f in model(x).flatten()
    ]
    return torch.stack([torch.cat([g.flatten() for g in row]) for row in rows])[None]


def test_unused_parameters_have_zero_columns():
    model = build(lambda: nn.Linear(3, 2))
    model.register_parameter("spare", nn.Parameter(torch.ones(2).double()))
    gram = output_gram(model, data(4, 3), side="params")
    assert not gram[8:].any()
    assert gram[:8, :8].diagonal().gt(0).all()
    assert not output_gram(model, data(4, 3), params=["spare"]).any()


def test_random_draws_repeat_and_leave_the_global_state():
    model, x = build(lambda: nn.Sequential(nn.Linear(3, 4), Signs(), nn.Linear(4, 2))), data(6, 3)
    state = torch.get_rng_state()
    first = output_gram(model, x)
    assert isinstance(source_of(model, x), TappedParts)
    assert torch.equal(first, output_gram(model, x))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("fails", [False, True])
def test_model_is_untouched(fails):
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(), nn.ReLU(), nn.Linear(4, 2)).train()
    model[0].weight.requires_grad_(False)
    model[3].register_forward_hook(lambda *_: None)
    state, modes, hooks, flags = snapshot(model)
    settings_before = (torch.backends.mha.get_fastpath_enabled(), torch.backends.cudnn.allow_tf32)
    x = data(9, 3).float()
    if fails:
        x[-1, -1] = torch.nan
        with pytest.raises(ValueError, match="NaN"):
            output_gram(model, [x[:5], x[5:]])
    else:
        output_gram(model, x)
    after = snapshot(model)
    assert all(torch.equal(state[name], t) for name, t in after[0].items())
    assert after[1:] == (modes, hooks, flags)
    assert (torch.backends.mha.get_fastpath_enabled(), torch.backends.cudnn.allow_tf32) == settings_before


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_works_where_gradients_are_off(context):
    model, x = build(conv_net), data(4, 2, 6, 5)
    whole = output_gram(model, x)
    with context():
        assert torch.equal(output_gram(model, x.clone()), whole)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", CASES)
def test_gpu_gives_the_same(name):
    make, shape = CASES[name]
    model, x = build(make), data(7, *shape)
    J = jacobian(model, x)
    for side in SIDES:
        there = output_gram(model.cuda(), x.cuda(), side=side)
        assert there.is_cuda
        assert_close(there.cpu(), expected(J, side), 1e-9)  # other kernels, other orders of summation
        single = output_gram(model, x.cuda(), side=side, dtype=torch.float32)
        assert_close(single.cpu().double(), expected(J, side), 1e-5)


# What is refused


@pytest.mark.parametrize(
    ("kwargs", "match"),
    [
        ({"side": "inputs"}, "side must be .* for the latter's, got 'inputs'"),
        ({"batch_size": 0}, 'batch_size must be "auto" or an integer >= 1, got 0'),
        ({"dtype": torch.float16}, "dtype must be torch.float32 or torch.float64, got torch.float16"),
        ({"accumulate": torch.int64}, "accumulate must be torch.float32 or torch.float64, got torch.int64"),
    ],
)
def test_bad_settings_are_refused(kwargs, match):
    with pytest.raises(ValueError, match=match):
        output_gram(nn.Linear(2, 1), torch.ones(2, 2), **kwargs)


def test_lower_precision_must_be_asked_for():
    model, x = nn.Linear(2, 1).bfloat16(), torch.ones(2, 2).bfloat16()
    with pytest.raises(ValueError, match=r"dtype must be .* and the model is torch.bfloat16; pass it"):
        output_gram(model, x)
    assert output_gram(model, x, dtype=torch.float32).dtype == torch.float32


def test_interacting_examples_are_refused():
    with pytest.raises(ValueError, match="examples interact"):
        output_gram(nn.Sequential(nn.Linear(3, 4), Centre()), data(8, 3).float())


def test_draws_that_do_not_repeat_are_refused():
    with pytest.raises(ValueError, match="two passes over the same examples with the same seed"):
        output_gram(Counter(), data(8, 3).float())


@pytest.mark.parametrize("side", SIDES)
def test_derivatives_that_are_not_finite_are_refused(side):
    class Root(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return F.linear(x, self.weight).abs().sqrt()

    x = torch.ones(4, 3)
    x[1] = 0
    with pytest.raises(ValueError, match=r"derivative of outputs with respect to parameters holds NaN or inf"):
        output_gram(Root(3, 2), x, side=side)


@pytest.mark.parametrize(
    ("max_bytes", "batch_size", "side", "match"),
    [
        (700, "auto", "outputs", r"a Gram matrix of 35 rows with one example's derivatives.* the other side"),
        (1.4e5, 7, "outputs", 'a batch of 7 examples .* lower batch_size or leave it "auto"'),
        (700, "auto", "diagonal", r"the squares of one example's derivatives.*take fewer parameters"),
    ],
)
def test_what_would_not_fit_is_refused(max_bytes, batch_size, side, match):
    with pytest.raises(MemoryError, match=match):
        output_gram(
            build(lambda: nn.Sequential(nn.Conv1d(1, 40, 3), nn.Flatten(), nn.Linear(240, 5))),
            data(7, 1, 8),
            side=side,
            batch_size=batch_size,
            max_bytes=max_bytes,
        )


def test_the_rounding_of_a_diagonal_grows_little_with_the_examples() -> None:
    """Products of float32 add up some examples at a time; in one go 4096 of them lost three times as much."""
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 3)), torch.randn(4096, 8)
    found = output_gram(net, x, side="diagonal").double()
    exact = output_gram(net.double(), x.double(), side="diagonal")
    assert (found - exact).norm() < 2.5e-7 * exact.norm()
