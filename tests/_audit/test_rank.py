"""Columns of a ranking against closed forms and brute force, and orders that follow from them."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune

import capalloc
from capalloc._audit import zero_cost
from capalloc._audit.functional_dimension import dimension_seconds, functional_dimension
from capalloc._audit.rank_models import Candidate
from capalloc._model.problem import prepare
from capalloc.results import Ranking
from capalloc.results.ranking import EVIDENCE
from zoo import dense, gaussian, seeded_module

LABELS = torch.tensor([0, 1, 2, 1, 0, 2, 1, 0])


def plain(*layers: nn.Module) -> nn.Sequential:
    return nn.Sequential(*layers)


def net(widths: tuple[int, ...], act: type[nn.Module] = nn.ReLU) -> nn.Module:
    """A dense network with repeatable weights in float64."""

    def make() -> nn.Sequential:
        layers = [[nn.Linear(below, above), act()] for below, above in itertools.pairwise(widths)]
        return plain(*itertools.chain(*layers[:-1], layers[-1][:1]))

    return seeded_module(make)


def dimension(model: nn.Module, x: Tensor) -> int:
    problem = prepare(model, x, None, None)
    return functional_dimension(problem, x, torch.ones(()), torch.Generator().manual_seed(0))


def test_what_there_is_no_time_for_is_left_out_with_a_note():
    models, x = {"narrow": net((4, 5, 3)), "wide": net((4, 9, 3))}, gaussian(8, 4)
    ample, scarce = (capalloc.rank(models, x, seconds=seconds) for seconds in (1e6, 1e-6))
    assert ample.data.equals(capalloc.rank(models, x).data)
    assert ample.measured.all()
    assert not scarce.measured.any()
    notes = " ".join(scarce.data.attrs["notes"])
    assert "wide: the functional dimension left out: about" in notes
    assert "of seconds=1e-06 for all" in notes
    assert "seconds=1e-06 was not held" in notes
    assert scarce.data["synflow"].equals(ample.data["synflow"])
    with pytest.raises(ValueError, match=r"seconds must be a positive number, got 0"):
        capalloc.rank(models, x, seconds=0)


# -- the functional dimension -------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "h", "o"), [(5, 3, 4), (6, 2, 2), (3, 5, 4)])
def test_two_linear_layers_make_a_matrix_of_bounded_rank(n, h, o):
    """Matrices of rank r = min(n, h, o) have r (n + o - r) dimensions."""
    weights = [gaussian(h, n), gaussian(o, h, seed=2)]
    r = min(n, h, o)
    assert dimension(dense(weights, nn.Identity), gaussian(8, n)) == r * (n + o - r)


@pytest.mark.parametrize("act", [nn.ReLU, nn.Tanh, nn.GELU])
@pytest.mark.parametrize("widths", [(4, 5, 3), (4, 3, 3, 2)])
def test_it_is_the_measured_total(widths, act):
    model, x = net(widths, act), gaussian(48, widths[0])
    assert dimension(model, x) == pytest.approx(capalloc.measure(model, x).total, abs=1e-6)


def test_rescalings_of_hidden_units_change_nothing():
    model, x = net((4, 6, 3)), gaussian(32, 4)
    before = dimension(model, x)
    assert before == sum(p.numel() for p in model.parameters()) - 6
    with torch.no_grad():
        model[0].weight.mul_(50), model[0].bias.mul_(50), model[2].weight.div_(50)
    assert dimension(model, x) == before


def test_what_no_example_opens_does_not_count():
    model, x = net((4, 6, 3)), gaussian(32, 4)
    before = dimension(model, x)
    with torch.no_grad():
        model[0].bias[:2] = -1e3
    assert dimension(model, x) == before - 2 * (5 + 3 - 1)
    with torch.no_grad():
        model[0].bias.fill_(-1e3)
    assert dimension(model, x) == 3


# -- known scores -------------------------------------------------------------------------------------------


def test_operations_of_a_dense_network_and_of_a_convolution():
    assert zero_cost.flops(prepare(net((4, 6, 3)), gaussian(2, 4))) == 2 * (4 * 6 + 6 * 3)
    conv = nn.Conv2d(2, 3, 3, padding=1).double()
    assert zero_cost.flops(prepare(conv, gaussian(2, 2, 5, 5))) == 2 * 25 * 3 * 2 * 9


def test_operations_of_fused_layers_are_those_of_their_products():
    """Of 7 steps of an LSTM, and of attention with its two products of all pairs of 7 tokens."""
    recurrent = capalloc.rank([nn.LSTM(4, 6, batch_first=True)], gaussian(2, 7, 4).float(), 0).to_pandas()
    assert recurrent["flops"].to_list() == [7 * 2 * 4 * 6 * (4 + 6)]
    encoder = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)
    attention = capalloc.rank([encoder], gaussian(2, 7, 4).float()).to_pandas()
    assert attention["flops"].to_list() == [2 * 7 * 4 * (3 * 4 + 4 + 8 + 8) + 2 * 2 * 7 * 7 * 4]


def test_synflow_counts_paths_once_for_each_layer_and_leaves_norms_out():
    """R = 1' |W2| |W1| 1, and every layer's scores sum to R."""
    w1, w2 = gaussian(5, 4), gaussian(3, 5, seed=2)
    paths = float((w2.abs() @ w1.abs()).sum())
    assert zero_cost.synflow(prepare(dense([w1, w2]), gaussian(2, 4))) == pytest.approx(2 * paths)
    normed = plain(nn.Linear(4, 5, bias=False), nn.LayerNorm(5), nn.ReLU(), nn.Linear(5, 3, bias=False)).double()
    normed[0].weight.data, normed[3].weight.data = w1, w2
    assert zero_cost.synflow(prepare(normed, gaussian(2, 4), None, None)) == pytest.approx(2 * paths)


def test_naswot_compares_signs():
    w, x = gaussian(5, 4), gaussian(6, 4)
    signs = x @ w.T > 0
    alike = (signs[:, None] == signs[None]).sum(2).double() + torch.eye(6)
    model = dense([w, gaussian(3, 5, seed=2)])
    found = zero_cost.naswot(prepare(model, x), x)
    assert found == pytest.approx(float(torch.logdet(alike)))
    assert math.isnan(zero_cost.naswot(prepare(model[:1], x), x))


def test_the_gradient_of_cross_entropy_on_a_linear_layer():
    """dL/dW = (p - e_label)' x / N, and of the random signs s' x / N."""
    model, x = seeded_module(nn.Linear, 4, 3), gaussian(8, 4)
    problem, generator = prepare(model, x), torch.Generator().manual_seed(0)
    with torch.no_grad():
        away = model(x).softmax(1) - nn.functional.one_hot(LABELS, 3)
    expected = (away.T @ x / 8).norm() + away.mean(0).norm()
    assert zero_cost.grad_norm(problem, x, LABELS, generator) == pytest.approx(float(expected))
    signs = (torch.randint(0, 2, (8, 3), generator=torch.Generator().manual_seed(0)) * 2 - 1).double()
    expected = (signs.T @ x / 8).norm() + signs.mean(0).norm()
    assert zero_cost.grad_norm(problem, x, None, generator) == pytest.approx(float(expected))


def test_the_kernel_of_a_linear_layer_is_that_of_the_inputs():
    x = gaussian(5, 6)
    found = torch.linalg.svdvals(x)
    model = seeded_module(nn.Linear, 6, 3, bias=False)
    assert zero_cost.ntk_condition(prepare(model, x), x) == pytest.approx(float((found[0] / found[-1]) ** 2))
    assert zero_cost.ntk_condition(prepare(model, x), torch.cat([x, x])) == math.inf


# -- rankings -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ranking() -> Ranking:
    models = {f"width {w}": net((4, w, 3)) for w in (2, 8, 4)}
    return capalloc.rank(models, gaussian(8, 4), by="capacity", labels=LABELS)


def test_the_order_is_that_of_the_column(ranking):
    assert ranking.order == ["width 8", "width 4", "width 2"]
    assert list(ranking.parameters.values) == [19, 67, 35]
    assert (ranking.measured == 1).all()
    assert (ranking.capacity <= ranking.parameters).all()
    assert set(ranking.data.data_vars) == {*Ranking.COLUMNS, "depth", "measured"}
    text = repr(ranking)
    assert all(line in text for line in EVIDENCE)
    assert text.index("width 8") < text.index("width 4") < text.index("width 2")


@pytest.mark.parametrize("by", Ranking.COLUMNS)
def test_every_column_orders_with_the_best_first(ranking, by):
    again = Ranking(ranking.data.assign_attrs(by=by))
    values = ranking.data[by].to_series()[again.order].to_numpy() * (-1 if by == "ntk_condition" else 1)
    assert (np.diff(values) <= 0).all()


def test_what_is_not_known_stands_last(ranking):
    data = ranking.data.assign(capacity=("model", [1.0, math.nan, 2.0]))
    assert Ranking(data).order == ["width 4", "width 2", "width 8"]


def test_every_column_says_what_it_is_and_which_loss(ranking):
    (_, about) = ranking.view().tables
    assert [row[0] for row in about.rows][:1] == ["capacity"]
    assert len(about.rows) == len(Ranking.COLUMNS) + 1
    assert any("cross entropy of the labels" in row[1] for row in about.rows)
    without = Ranking(ranking.data.assign_attrs(labelled=False)).view().tables[1]
    assert any("random signs" in row[1] for row in without.rows)


def test_models_of_a_list_have_numbers_and_inputs_may_serve_once():
    batches = gaussian(8, 4).split(3)
    found = capalloc.rank([net((4, 3, 2)), net((4, 5, 2))], iter(batches), by="parameters")
    assert found.order == ["model 2", "model 1"]
    assert found.num_examples == 8


def test_the_share_on_inputs_that_vary():
    """A linear layer of two inputs, one of them always 2: half of what is not on the constant."""
    x = gaussian(8, 2)
    x[:, 1] = 2.0
    found = capalloc.rank([seeded_module(nn.Linear, 2, 3)], x)
    allocation = capalloc.propagate(seeded_module(nn.Linear, 2, 3), x, solver="markov")
    assert float(found.informative[0]) == pytest.approx(float(allocation.capacity[0]) / allocation.total)


def test_another_solver_and_metric_are_taken():
    x = gaussian(32, 4) * torch.tensor([1.0, 1.0, 1.0, 1e-3])
    model = net((4, 3, 2))
    found = capalloc.rank([model], x, solver="auto", metric="variance")
    exact = capalloc.measure(model, x, metric="variance")
    assert float(found.capacity[0]) == pytest.approx(exact.total)


class Words(nn.Module):
    """Mean of the vectors of token ids, where a mask of integers lets them through, and a dense network on it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.table, self.rest = nn.Embedding(9, 4), net((4, width, 3))

    def forward(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        vectors = self.table(ids)
        return self.rest((vectors if mask is None else vectors * mask[..., None]).mean(1))


def test_models_of_token_ids_are_ranked_as_those_of_their_vectors():
    ids = torch.arange(1, 41).remainder(9).reshape(8, 5)
    ids[:, 0] = 2
    model = seeded_module(Words, 3)
    found = capalloc.rank({"words": model, "more": seeded_module(Words, 4)}, ids)
    assert found.order == ["more", "words"]
    one = found.data.sel(model="words")
    assert int(one.parameters) == sum(p.numel() for p in model.rest.parameters())  # the table stands before the inputs
    assert float(one.capacity) == pytest.approx(capalloc.measure(model, ids).total)
    assert float(one.flops) == 2 * (4 * 3 + 3 * 3)
    rest = model.rest
    within = (rest[0].weight.abs().sum(1) + rest[0].bias.abs()) @ rest[2].weight.abs().sum(0)

    assert float(one.synflow) == pytest.approx(2 * within.item() + rest[2].bias.abs().sum().item(), rel=1e-6)
    by_token = capalloc.propagate(model, ids, solver="markov")
    assert float(one.informative) == pytest.approx(float(by_token.capacity[1:].sum()) / by_token.total)
    assert float(capalloc.rank([model], ids, solver="auto").capacity[0]) == float(one.capacity)


def test_what_has_no_derivative_stays_as_it_is():
    """A mask that differs between the examples is no signal: neither do points leave it, nor is it a one of SynFlow."""
    ids, mask = torch.arange(40).remainder(9).reshape(8, 5), torch.ones(8, 5, dtype=torch.int64)
    mask[1::2, 3:] = 0
    mask[0, 0] = 0
    model, given = seeded_module(Words, 3), {"ids": ids, "mask": mask}
    found = capalloc.rank([model], given)
    assert float(found.capacity[0]) == pytest.approx(capalloc.measure(model, given).total)
    w1, w2 = model.rest[0].weight.abs(), model.rest[2].weight.abs()
    b1, b2 = model.rest[0].bias.abs(), model.rest[2].bias.abs()
    flow = 2 * w2.sum(0) @ (w1.sum(1) * 4 / 5 + b1) + b2.sum()  # four ones of five tokens
    assert float(found.synflow[0]) == pytest.approx(flow.item(), rel=1e-6)


class Hard(nn.Module):
    """A branch on the values of the inputs: neither a graph nor `vmap`."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 3), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x).relu()
        return self.last(h if float(h.sum().detach()) > -1 else -h)


def test_what_vmap_cannot_enter_has_the_same_dimension():
    hard, x = seeded_module(Hard), gaussian(24, 4)
    assert dimension(hard, x) == dimension(plain(hard.first, nn.ReLU(), hard.last), x)


def test_what_cannot_be_found_out_is_left_out_with_a_note():
    found = capalloc.rank({"odd": seeded_module(Hard), "plain": net((4, 3, 2))}, gaussian(8, 4))
    assert any(note.startswith("odd: ") and "left out" in note for note in found.data.attrs["notes"])
    assert not any(math.isnan(float(found.data[column].sel(model="plain"))) for column in Ranking.COLUMNS)
    assert float(found.data.parameters.sel(model="odd")) == 23


@pytest.mark.parametrize(
    ("weight", "word"), [(1.0, "plain"), (1e-2, "plain, fading"), (1e2, "plain, growing")], ids=str
)
def test_the_verdict_on_depth_of_plain_networks(weight, word):
    model = dense([torch.eye(6).double() * weight for k in range(4)])
    assert str(capalloc.rank([model], gaussian(8, 6)).depth.values[0]) == word


def test_that_of_residual_networks_is_the_phase():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x):
            return x + self.layer(x).relu()

    model = nn.Sequential(*(seeded_module(Block, seed=k) for k in range(3)))
    x = gaussian(8, 4)
    assert str(capalloc.rank([model], x).depth.values[0]) == capalloc.diagnose(model, x).scaling.phase


# -- arguments ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"by": "speed"}, "by must be one of parameters, flops, capacity, .*, got 'speed'"),
        ({"models": {}}, "models must hold at least one model"),
        (
            {"models": nn.Sequential(nn.Linear(4, 3))},
            "models must be several, by name or in a list, got one Sequential",
        ),
        ({"models": "lenet"}, "models must be several, by name or in a list, got one str"),
        ({"models": torch.tensor(1.0)}, "models must be several, by name or in a list, got one Tensor"),
        ({"solver": 1j}, "solver must be one of markov, block, segments, hessian, or settings of .*, got 1j"),
        ({"inputs": gaussian(1, 4)}, "inputs must hold at least two examples, which are compared, got 1"),
        ({"labels": LABELS[:3]}, r"labels must be whole numbers, one an example, got shape \(3,\)"),
        ({"labels": LABELS.double()}, "labels must be whole numbers"),
        ({"metric": 3j}, "metric must"),
    ],
)
def test_refused(more, message):
    given = {"models": [net((4, 3, 3))], "inputs": gaussian(8, 4)} | more
    with pytest.raises((ValueError, TypeError), match=message):
        capalloc.rank(given.pop("models"), given.pop("inputs"), **given)


def test_an_error_names_its_model():
    with pytest.raises(ValueError, match=r"^wide: model does not accept inputs of shape \(examples, 4\)"):
        capalloc.rank({"narrow": net((4, 3, 3)), "wide": net((5, 3, 3))}, gaussian(8, 4))


class Failing(nn.Module):
    """Code of the user's own that raises."""

    def __init__(self, error):
        super().__init__()
        self.linear, self.error = nn.Linear(4, 3), error

    def forward(self, x):
        if x.shape[-1] == 4:
            raise self.error
        return self.linear(x)


def test_an_error_of_the_users_own_keeps_its_type_and_its_words():
    with pytest.raises(KeyError, match=r"^'sky'\nof mine$") as caught:
        capalloc.rank({"mine": Failing(KeyError("sky")).double()}, gaussian(8, 4))
    assert caught.value.__notes__ == ["of mine"]
    with pytest.raises(ValueError, match=r"^mine: model does not accept .*: negative colour") as told:
        capalloc.rank({"mine": Failing(ValueError("negative colour")).double()}, gaussian(8, 4))
    assert isinstance(told.value.__cause__, ValueError)  # whose traceback has the place


def test_the_forecast_counts_the_functional_dimension():
    few, many = (Candidate.of(net((4, n, 3)), gaussian(8, 4), None, None, None, 0) for n in (3, 200))
    assert dimension_seconds(many.problem, many.x, 1e-3) > 3 * 3 * 1600 * 1e-3  # passes of as many points
    assert many.seconds > few.seconds


def test_a_dataset_that_is_ranked_by_nothing_is_refused(ranking):
    with pytest.raises(ValueError, match=r"by must be one of \['parameters', .*, and is 'speed'"):
        Ranking(ranking.data.assign_attrs(by="speed"))


def test_the_kernel_of_a_pruned_model_is_that_of_the_entries_left() -> None:
    """Pruning keeps the masked weight on the module, of the last run."""
    model, x = net((4, 8, 3)), gaussian(6, 4)
    whole = net((4, 8, 3))
    prune.l1_unstructured(model[0], "weight", 0.25)
    model(x)
    with torch.no_grad():
        whole[0].weight.copy_(model[0].weight)
    ranked = capalloc.rank({"pruned": model, "whole": whole}, x).data.ntk_condition
    condition = [float(ranked.sel(model=name)) for name in ("pruned", "whole")]
    kernels = []
    for m in (model, whole):
        rows = []
        for one in x:
            m.zero_grad()
            m(one[None]).sum().backward()
            rows.append(torch.cat([p.grad.flatten() for p in m.parameters()]))
        kernels.append(torch.stack(rows) @ torch.stack(rows).T)
    np.testing.assert_allclose(condition, [float(torch.linalg.cond(kernel)) for kernel in kernels], rtol=1e-6)
    assert condition[0] != condition[1]  # the masked entries are still
