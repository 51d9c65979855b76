"""The constraint operator against the dense rows of the same constraints."""

from __future__ import annotations

import contextlib

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from capalloc._derivatives import choose_jacobian, exact_derivatives
from capalloc._derivatives.products import PRODUCT_WAYS, ConstraintOperator, ForwardProducts, split
from capalloc._derivatives.still_gates import gates_stay
from capalloc._derivatives.tape import Tape
from capalloc._derivatives.verify import Trial, choose_operator, disagreement
from capalloc._model.input_metric import input_metric
from capalloc._model.problem import prepare, seeded
from measured import Token, build, data


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attend = nn.MultiheadAttention(4, 2, batch_first=True)
        self.norm = nn.LayerNorm(4)
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        return self.head(F.gelu(x + self.attend(h, h, h, need_weights=False)[0])[:, -1])


class Cube(torch.autograd.Function):
    """An activation with no forward mode and no batching rule."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx, g: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return 3 * x**2 * g


class Custom(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(Cube.apply(self.first(x)))


class Noisy(nn.Module):
    """Draws random numbers whenever it runs."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        return self.second(torch.tanh(h) * (1 + torch.randn_like(h)))


def conv_net() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(3, 2, 2), nn.Flatten(), nn.Linear(2, 3)
    )


def norm_net() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 4, 2, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, 4, 2, groups=2),
        nn.GroupNorm(2, 4),
        nn.SiLU(),
        nn.InstanceNorm2d(4, affine=True),
        nn.Flatten(),
        nn.Linear(16, 2),
    )


MODELS = {
    "conv": (conv_net, (1, 4, 4)),
    "norms": (norm_net, (1, 4, 4)),
    "tanh": (lambda: nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)), (3,)),
    "no bias": (
        lambda: nn.Sequential(nn.Linear(3, 4, bias=False), nn.ReLU(), nn.Linear(4, 1, bias=False)),
        (3,),
    ),
    "layer norm": (lambda: nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.ELU(), nn.Linear(4, 2)), (3,)),
    "attention": (Attention, (3, 4)),
}
WAYS = ["forward", "reverse"]


class Applied(nn.Module):
    def __init__(self, function) -> None:
        super().__init__()
        self.function = function

    def forward(self, h: Tensor) -> Tensor:
        return self.function(h)


def replay():
    return contextlib.nullcontext()


def operands(model: nn.Module, shape: tuple[int, ...], metric=None, intercept=True, params=None, examples: int = 3):
    """The problem, its slots, its examples, the units of all outputs, and the dense rows (o, e, s, params)."""
    x = data(examples, *shape)
    problem = prepare(model, x, None, params, dtype=torch.float64)
    space = input_metric(metric, problem, intercept)
    outputs = problem(x).shape[1]
    units = torch.eye(outputs, dtype=torch.float64)[:, None].expand(outputs, examples, outputs)
    with exact_derivatives():
        jacobian = choose_jacobian(problem, x[:2], replay).jacobian
        (directions,) = space.chunks(10**6)
        parts = jacobian(x, directions, replay)
    rows = torch.cat([part.flatten(3) for part in parts.values()], 3).transpose(0, 1)
    return problem, space, x, units, rows


def assert_equals_rows(way, problem, space, x, units, rows) -> None:
    products = ConstraintOperator(problem, space, way).at(x, units, replay)
    w, r = data(2, problem.num_params, seed=5), data(2, *rows.shape[:3], seed=6)
    with exact_derivatives():
        forward, back = products.apply(w), products.adjoint(r)
    torch.testing.assert_close(forward, torch.einsum("oesp,kp->koes", rows, w), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(back, torch.einsum("oesp,koes->kp", rows, r), rtol=1e-10, atol=1e-10)
    inner, outer = (forward * r).flatten(1).sum(1), (w * back).sum(1)
    torch.testing.assert_close(inner, outer, rtol=1e-10, atol=1e-10)


@pytest.mark.proves("2", "rows D_v g_o and (1 - D_x) g_o", oracle="dense rows by another derivative")
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", MODELS)
def test_products_equal_the_dense_rows(name, way) -> None:
    make, shape = MODELS[name]
    assert_equals_rows(way, *operands(build(make), shape))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", ["variances", "covariance"])
@pytest.mark.parametrize("intercept", [True, False])
def test_products_in_a_metric(kind, intercept, way) -> None:
    root = data(3, 3, seed=9)
    metric = root @ root.T if kind == "covariance" else data(3, seed=9).square()
    assert_equals_rows(way, *operands(build(MODELS["tanh"][0]), (3,), metric, intercept))


@pytest.mark.parametrize("way", WAYS)
def test_products_of_selected_parameters(way) -> None:
    assert_equals_rows(way, *operands(build(conv_net), (1, 4, 4), params=["3.weight", "0.bias"]))


@pytest.mark.parametrize("way", WAYS)
def test_combinations_of_outputs(way) -> None:
    problem, space, x, _, rows = operands(build(conv_net), (1, 4, 4))
    mix = data(2, len(x), 3, seed=3)
    mixed = torch.einsum("qeo,oesp->qesp", mix, rows)
    assert_equals_rows(way, problem, space, x, mix, mixed)


def frozen_net() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 4, 2, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(inplace=True),
        nn.Conv2d(4, 4, 2, stride=2, padding=1, groups=2),
        nn.LeakyReLU(),
        nn.Flatten(),
        nn.BatchNorm1d(16),
        nn.Linear(16, 2),
    )


@pytest.mark.parametrize("make", [conv_net, frozen_net, MODELS["no bias"][0], Token])
@pytest.mark.parametrize("params", [None, lambda name: name != "0.weight"])
def test_piecewise_products_equal_the_dense_rows(make, params) -> None:
    shape = (3,) if make is MODELS["no bias"][0] else (1, 4, 4)
    assert_equals_rows("piecewise", *operands(build(make), shape, params=params))


class Asking(nn.Module):
    """Takes another way where a value says so."""

    def forward(self, h: Tensor) -> Tensor:
        return F.relu(h) if float(h.sum()) > 1e9 else 2 * h


def asking_net() -> nn.Module:
    """Calls that vmap cannot enter side by side."""
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 4), Asking(), nn.Tanh(), nn.Linear(4, 2))


class Gated(nn.Module):
    """The rows of an image, one after the other."""

    def __init__(self) -> None:
        super().__init__()
        self.cells, self.head = nn.LSTM(4, 3, batch_first=True), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.cells(x[:, 0])[0][:, -1])


OF_EACH = [
    ("piecewise", conv_net),
    ("piecewise", frozen_net),
    ("forward", norm_net),
    ("forward", Gated),
    ("forward", asking_net),
    ("reverse", norm_net),
]


@pytest.mark.parametrize(("way", "make"), OF_EACH)
def test_products_of_each_example_are_those_of_all_others_left_out(way, make) -> None:
    problem, space, x, units, _ = operands(build(make), (1, 4, 4))
    with torch.no_grad():
        products = ConstraintOperator(problem, space, way).at(x, units, replay)
        r = data(2, len(units), len(x), space.num_slots, seed=6)
        alone = r[:, :, None] * torch.eye(len(x), dtype=r.dtype)[:, :, None]  # (k, o, e, e, s)
        expected = torch.stack([products.adjoint(part) for part in alone.unbind(2)], 1)
        torch.testing.assert_close(products.each(r), expected, rtol=1e-12, atol=1e-12)


def test_products_of_each_example_run_the_model_once() -> None:
    """A recurrence has as many calls for many examples as for one."""
    problem, space, x, units, _ = operands(build(Gated), (1, 4, 4))
    runs: list[int] = []
    problem.model.head.register_forward_hook(lambda *_: runs.append(1))
    with torch.no_grad():
        ConstraintOperator(problem, space, "forward").at(x, units, replay).each(
            data(2, len(units), len(x), space.num_slots, seed=6)
        )
    assert len(x) > 1 == len(runs)


def test_gates_that_move_are_found_out() -> None:
    x = data(2, 3)
    problem = prepare(build(MODELS["tanh"][0]), x, dtype=torch.float64)
    space = input_metric(None, problem, True)
    with torch.no_grad():
        assert "wrong derivatives" in disagreement(
            Trial(ConstraintOperator(problem, space, "piecewise"), x[:1], replay)
        )
        assert choose_operator(problem, space, x, replay).name == "forward"


@pytest.mark.parametrize("name", MODELS)
def test_products_in_single_precision_go_the_way_of_double(name) -> None:
    make, shape = MODELS[name]
    problem = prepare(build(make), data(2, *shape), dtype=torch.float64)
    space = input_metric(None, problem, True)
    with exact_derivatives(), torch.no_grad():
        wide = choose_operator(problem, space, problem.probe, replay)
        narrow = choose_operator(problem, space, problem.probe, replay, torch.float32)
    assert (narrow.name, narrow.problem.dtype, wide.problem.dtype) == (wide.name, torch.float32, torch.float64)


@pytest.mark.parametrize("bias", [True, False])
def test_what_single_precision_does_not_make_clear_is_decided_in_double(bias, monkeypatch) -> None:
    """The first layer's constraints are small beside the last bias's, which are 1, or all are."""
    net = build(lambda: nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2, bias=bias)))
    problem, tried = prepare(net, data(2, 3), dtype=torch.float64), []
    space, x = input_metric(None, problem, True), problem.probe
    monkeypatch.setattr("capalloc._derivatives.verify.disagreement", lambda trial: tried.append(trial.x.dtype) or "")
    with exact_derivatives(), torch.no_grad():
        assert choose_operator(problem, space, x, replay, torch.float32).name == "forward"
        assert not tried
        for p in [*problem.params.values()][2 if bias else 0 : 3]:
            p *= 1e-6
        found = choose_operator(problem, space, x, replay, torch.float32)
    assert tried == [torch.float64]
    assert found.problem.dtype == torch.float32


def test_a_model_of_our_own_goes_to_the_precision_of_products_if_that_loses_nothing() -> None:
    net, x = build(lambda: nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))), data(1, 3)
    for exact in (True, False):
        problem = prepare(net.float() if exact else net.double(), x.float() if exact else x, dtype=torch.float64)
        space = input_metric(None, problem, True)
        with exact_derivatives(), torch.no_grad():
            if not exact:
                next(iter(problem.params.values())).fill_(0.1)
            found = choose_operator(problem, space, problem.probe, replay, torch.float32, own=True)
        assert (found.problem.model is problem.model) == exact
        assert found.problem.dtype == torch.float32
        assert next(iter(problem.params.values())).dtype == (torch.float32 if exact else torch.float64)


def test_a_model_of_our_own_is_in_double_again_where_that_decides() -> None:
    problem = prepare(build(lambda: nn.Linear(3, 2)).float(), data(1, 3).float(), dtype=torch.float64)
    given = [p.clone() for p in problem.params.values()]
    for name in PRODUCT_WAYS:
        with exact_derivatives(), torch.no_grad(), pytest.MonkeyPatch.context() as patch:
            seen: list[torch.dtype] = []
            patch.setattr("capalloc._derivatives.verify.is_clear", lambda trial: False)
            patch.setattr(
                "capalloc._derivatives.verify.disagreement",
                lambda trial, name=name, seen=seen: (
                    seen.extend(p.dtype for p in trial.operator.problem.params.values())
                    or ("" if trial.operator.name == name else "is another")
                ),
            )
            space = input_metric(None, problem, True)
            found = choose_operator(problem, space, problem.probe, replay, torch.float32, own=True)
            found.recast(torch.float64, own=True)
        assert set(seen) == {torch.float64}
        assert found.name == name
        torch.testing.assert_close([*problem.params.values()], given, rtol=0, atol=0)


class Overwriting(nn.Module):
    """Writes to what entered a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        out = self.second(h)
        return self.third(out - h.neg_())


class Keeping(Overwriting):
    """The same function with a copy."""

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        return self.third(self.second(h) + h)


def test_what_enters_a_layer_is_copied_where_the_model_overwrites_it() -> None:
    x, units = data(2, 3), data(2, 2, 2, seed=5)
    r, w = data(2, 2, 2, 4, seed=6), data(2, 46, seed=7)
    found = []
    for model in (Overwriting, Keeping):
        problem = prepare(build(model), x, dtype=torch.float64)
        products = ConstraintOperator(problem, input_metric(None, problem, True), "piecewise").at(x, units, replay)
        with torch.no_grad():
            found.append((products.adjoint(r), products.apply(w)))
    torch.testing.assert_close(found[0], found[1])


#: Linear algebra of 2 x 2 matrices, (e, 2, 2).
DECOMPOSED = {
    "det": lambda A: torch.linalg.det(A)[:, None],
    "slogdet": lambda A: torch.linalg.slogdet(A)[1][:, None],
    "logdet": lambda A: (A @ A.mT + torch.eye(2).to(A)).logdet()[:, None],
    "inverse": lambda A: A.inverse().flatten(1),
    "solve": lambda A: torch.linalg.solve(A, A[:, :, :1] ** 2).flatten(1),
    "householder": lambda A: torch.linalg.householder_product(A, A[:, 0]).flatten(1),
    "cholesky": lambda A: torch.linalg.cholesky(A @ A.mT + torch.eye(2).to(A)).flatten(1),
}


class Decomposed(nn.Module):
    def __init__(self, function) -> None:
        super().__init__()
        self.first, self.function = nn.Linear(3, 4), function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.first(x).reshape(-1, 2, 2))


@pytest.mark.parametrize("name", DECOMPOSED)
def test_products_through_linear_algebra_are_those_of_autograd(name) -> None:
    """torch's forward mode over forward mode is wrong there, and so is reverse mode over it."""
    problem, space, x, units, rows = operands(build(lambda: Decomposed(DECOMPOSED[name])), (3,))
    w, r = data(2, problem.num_params, seed=5), data(2, len(units), len(x), space.num_slots, seed=6)
    with exact_derivatives(), torch.no_grad():
        products = choose_operator(problem, space, x, replay).at(x, units, replay)
        torch.testing.assert_close(products.apply(w), torch.einsum("oesp,kp->koes", rows, w))
        torch.testing.assert_close(products.adjoint(r), torch.einsum("oesp,koes->kp", rows, r))


def own_gate(h: Tensor) -> Tensor:
    return h * h


def half_cut(h: Tensor) -> Tensor:
    return h + h.detach()


@pytest.mark.parametrize(
    ("make", "shape", "stays"),
    [
        (conv_net, (1, 4, 4), True),
        (frozen_net, (1, 4, 4), True),
        (norm_net, (1, 4, 4), False),
        (MODELS["tanh"][0], (3,), False),
        (MODELS["layer norm"][0], (3,), False),
        (lambda: nn.Sequential(nn.Linear(3, 4), Asking(), nn.Linear(4, 2)), (3,), False),
        (lambda: nn.Sequential(nn.Linear(3, 4), Applied(own_gate), nn.Linear(4, 2)), (3,), False),
        (lambda: nn.Sequential(nn.Linear(3, 4), Applied(half_cut), nn.Linear(4, 2)), (3,), False),
    ],
)
def test_gates_stay_where_all_calls_are_linear_piece_by_piece(make, shape, stays) -> None:
    problem = prepare(build(make), data(2, *shape), dtype=torch.float64)
    assert gates_stay(problem, problem.probe, replay) == stays


@pytest.mark.parametrize("name", MODELS)
def test_forward_mode_stands_for_autograd_in_a_trial(name) -> None:
    make, shape = MODELS[name]
    problem = prepare(build(make), data(2, *shape), dtype=torch.float64)
    trial = Trial(ConstraintOperator(problem, input_metric(None, problem, True), "forward"), problem.probe, replay)
    with exact_derivatives():
        assert trial.is_as_forward
        back, w, rows = trial.found
        for name, part in split(problem, back).items():  # a mistake in any tensor shows
            wrong = torch.cat(
                [1.001 * p.flatten() if n == name else p.flatten() for n, p in split(problem, back).items()]
            )
            other = Trial(trial.operator, trial.x, replay)
            other.__dict__["found"] = wrong, w, rows
            assert other.is_as_forward == bool(part.norm() < 1e-12)


def test_a_parameter_without_a_rule_is_named() -> None:
    x = data(2, 3)
    problem = prepare(build(lambda: nn.Sequential(nn.Linear(3, 4), nn.PReLU())), x, dtype=torch.float64)
    space = input_metric(None, problem, True)
    with (
        torch.no_grad(),
        pytest.raises(NotImplementedError, match=r"1\.weight enters prelu, for which there is no rule"),
    ):
        ConstraintOperator(problem, space, "piecewise").at(x, torch.zeros(1, 2, 4), replay)


def test_calls_without_an_axis_of_examples_are_left_to_other_products() -> None:
    class Turned(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x[None].expand(4, *x.shape)).sum(0)

    x = data(2, 3)
    problem = prepare(build(lambda: Turned(3, 2)), x, dtype=torch.float64)
    space = input_metric(None, problem, True)
    with torch.no_grad(), pytest.raises(NotImplementedError, match="no leading axis of examples"):
        ConstraintOperator(problem, space, "piecewise").at(x, torch.zeros(1, 2, 2), replay)
    assert choose_operator(problem, space, x, replay).name == "forward"


def test_gram_products_are_symmetric_and_positive() -> None:
    problem, space, x, units, _ = operands(build(conv_net), (1, 4, 4))
    products = ConstraintOperator(problem, space, "forward").at(x, units, replay)
    w = torch.eye(problem.num_params, dtype=torch.float64)
    with torch.no_grad():
        G = products.adjoint(products.apply(w))
    torch.testing.assert_close(G, G.T, rtol=1e-10, atol=1e-10)
    assert torch.linalg.eigvalsh(G)[0] > -1e-10 * G.trace()


def test_a_model_without_forward_mode_gets_reverse_mode() -> None:
    x = data(2, 3)
    problem = prepare(build(Custom), x, dtype=torch.float64)
    space = input_metric(None, problem, True)
    assert "forward mode" not in disagreement(Trial(ConstraintOperator(problem, space, "reverse"), x[:1], replay))
    assert disagreement(Trial(ConstraintOperator(problem, space, "forward"), x[:1], replay)).startswith("fails")
    with torch.no_grad():
        assert choose_operator(problem, space, x, replay).name == "reverse"
    assert_equals_rows("reverse", *operands(build(Custom), (3,)))


def test_random_draws_repeat_in_both_products() -> None:
    x = data(3, 3)
    problem = prepare(build(Noisy), x, dtype=torch.float64)
    space = input_metric(None, problem, True)
    units = torch.eye(2, dtype=torch.float64)[:, None].expand(2, 3, 2)
    w, r = data(2, problem.num_params, seed=5), data(2, 2, 3, 4, seed=6)
    for way in WAYS:
        products = ConstraintOperator(problem, space, way).at(x, units, lambda: seeded(3, x.device))
        with torch.no_grad():
            forward, back = products.apply(w), products.adjoint(r)
        torch.testing.assert_close((forward * r).flatten(1).sum(1), (w * back).sum(1), rtol=1e-10, atol=1e-10)


def test_single_precision_is_near_double() -> None:
    problem, space, x, units, rows = operands(build(conv_net), (1, 4, 4))
    operator = ConstraintOperator(problem, space, "forward").recast(torch.float32)
    w = data(1, problem.num_params, seed=5)
    with torch.no_grad():
        got = operator.at(x.float(), units.float(), replay).apply(w.float())
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.double(), torch.einsum("oesp,kp->koes", rows, w), rtol=1e-4, atol=1e-4)
    assert next(iter(problem.params.values())).dtype == torch.float64  # the original stays as it was


class Wrong(ForwardProducts):
    """Its C w is not what its C' r is the adjoint of."""

    def apply(self, w):
        return 2 * super().apply(w)


class WrongBack(ForwardProducts):
    def adjoint(self, r):
        return super().adjoint(r).abs()


def test_wrong_products_are_found_out(monkeypatch) -> None:
    x = data(2, 3)
    problem = prepare(build(MODELS["tanh"][0]), x, dtype=torch.float64)
    space = input_metric(None, problem, True)
    for products, said in ((Wrong, "not adjoint"), (WrongBack, "wrong derivatives for")):
        monkeypatch.setitem(PRODUCT_WAYS, "forward", products)
        with torch.no_grad():
            assert said in disagreement(Trial(ConstraintOperator(problem, space, "forward"), x[:1], replay))


def test_no_operator_is_an_error() -> None:
    class Once(Cube):
        """An activation that cannot be differentiated twice."""

        backward = staticmethod(torch.autograd.function.once_differentiable(Cube.backward))

    class Model(Custom):
        def forward(self, x: Tensor) -> Tensor:
            return self.second(Once.apply(self.first(x)))

    x = data(2, 3)
    problem = prepare(build(Model), x, dtype=torch.float64)
    space = input_metric(None, problem, True)
    with pytest.raises(TypeError, match=r"no products with its constraints \(piecewise mode .*; forward mode fails"):
        choose_operator(problem, space, x, replay)


NORMS = [F.batch_norm, F.layer_norm, F.group_norm, F.instance_norm]


@pytest.mark.parametrize("function", [*NORMS, F.silu, F.hardsigmoid, F.prelu], ids=lambda f: f.__name__)
def test_functions_written_out_are_the_functions(function) -> None:
    x, weight, bias = data(2, 4, 3), data(4, seed=1), data(4, seed=2)
    arguments = {
        F.batch_norm: (x, data(4, seed=3), data(4, seed=4).square() + 0.1, weight, bias),
        F.layer_norm: (x, (4, 3), data(4, 3, seed=3), data(4, 3, seed=4)),
        F.group_norm: (x, 2, weight, bias),
        F.instance_norm: (x, None, None, weight, bias),
        F.silu: (x,),
        F.hardsigmoid: (4 * x,),
        F.prelu: (x, weight),
    }[function]
    with Tape():
        got = function(*arguments)
    torch.testing.assert_close(got, function(*arguments), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("function", [F.batch_norm, F.instance_norm])
def test_norms_with_statistics_elsewhere_run_as_they_are(function) -> None:
    x = data(3, 4, 3)
    if function is F.batch_norm:
        arguments, kwargs = (x, None, None), {"training": True}
    else:
        arguments, kwargs = (x, data(4, seed=3), data(4, seed=4).square() + 0.1), {"use_input_stats": False}
    with Tape():
        got = function(*arguments, **kwargs)
    torch.testing.assert_close(got, function(*arguments, **kwargs))
