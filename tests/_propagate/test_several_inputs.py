"""Several inputs and token ids: against closed forms, brute force, and models of one tensor written by hand."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import capalloc
from capalloc._measure.measure import measure
from capalloc._settings import Block, Dense, Stochastic
from reference import by_tensor, capacity_table, constraints, mixed_derivative
from several import Additive, Gated, Joined, Text, Transformer
from zoo import seeded_module

PLAIN, FEW = Dense(coordinates="plain"), Stochastic(num_probes=8)


def draw(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


X, Y = draw(40, 3), draw(40, 2, 2, seed=2)
IDS = torch.randint(7, (30, 5), generator=torch.Generator().manual_seed(3))


def make(kind: Callable[[], nn.Module]) -> nn.Module:
    return seeded_module(kind).double().eval()


def joined_vector() -> Tensor:
    return torch.cat([X, Y.flatten(1)], 1)


def vectors(model: nn.Module, ids: Tensor = IDS) -> Tensor:
    return model.embed(ids).detach()


METHODS = {
    "measure": measure,
    "propagate": capalloc.propagate,
    "markov": lambda model, inputs: capalloc.propagate(model, inputs, solver="markov"),
    "block": lambda model, inputs: capalloc.propagate(model, inputs, solver=Block(2, 4)),
    "segments": lambda model, inputs: capalloc.propagate(model, inputs, solver="segments"),
    "hessian": lambda model, inputs: capalloc.propagate(model, inputs, solver="hessian"),
    "stochastic": lambda model, inputs: measure(model, inputs, ridge=0.1, solver=FEW),
}
EXACT = [name for name in METHODS if name not in ("block", "stochastic")]


@pytest.mark.proves(
    "2", "capacity of a linear map of two inputs: one parameter for each entry and output", oracle="closed form"
)
@pytest.mark.parametrize("method", EXACT)
def test_a_linear_map_of_two_inputs_gives_every_entry_its_column(method):
    found = METHODS[method](make(Additive), (X, Y))
    assert list(found.maps) == ["x", "y"]
    np.testing.assert_allclose(found.maps["x"], np.full(3, 2.0), rtol=1e-9)
    np.testing.assert_allclose(found.maps["y"], np.full((2, 2), 2.0), rtol=1e-9)
    assert found.bias == pytest.approx(2)


@pytest.mark.proves("2", "several inputs lie end to end", oracle="brute force in float64")
def test_a_gated_pair_equals_brute_force():
    model = make(Gated)
    found = measure(model, (X, Y), solver=PLAIN)
    expected = by_tensor(capacity_table(constraints(Joined(model), joined_vector())), model)
    np.testing.assert_allclose(found.maps["x"], expected[:, :3].sum(0), rtol=1e-6)
    np.testing.assert_allclose(found.maps["y"], expected[:, 3:7].sum(0).reshape(2, 2), rtol=1e-6)
    np.testing.assert_allclose(found.tables["y"], expected[:, 3:7].reshape(-1, 2, 2), atol=1e-7)
    assert found.bias == pytest.approx(expected[:, 7].sum())


METRICS = [("measure", "variance"), ("measure", "covariance"), ("markov", "variance")]


@pytest.mark.parametrize(("method", "metric"), METRICS)
def test_metrics_see_the_inputs_side_by_side(method, metric):
    solve = measure if method == "measure" else capalloc.propagate
    more = {} if method == "measure" else {"solver": "markov"}
    model, y = make(Gated), Y * torch.tensor([1.0, 5.0])
    two = solve(model, (X, y), metric=metric, **more)
    one = solve(Joined(model), torch.cat([X, y.flatten(1)], 1), metric=metric, **more)
    np.testing.assert_allclose(two.capacity, one.capacity, rtol=1e-6)
    assert two.bias == pytest.approx(one.bias)


@pytest.mark.parametrize("method", ["measure", "markov", "hessian"])
def test_two_inputs_are_one_vector_to_every_method(method):
    two, one = (METHODS[method](make(Gated), (X, Y)), METHODS[method](Joined(make(Gated)), joined_vector()))
    np.testing.assert_allclose(two.capacity, one.capacity, rtol=1e-6)
    assert two.total == pytest.approx(one.total)
    assert sum(float(m.sum()) for m in two.maps.values()) + two.bias == pytest.approx(two.total)


@pytest.mark.proves("2", "a token holds what its vector holds", oracle="the same network on vectors")
@pytest.mark.parametrize("method", METHODS)
def test_token_ids_are_their_vectors_counted_together(method):
    model = make(Text)
    ids, fed = METHODS[method](model, IDS), METHODS[method](model.net, vectors(model))
    assert ids.capacity.dims == ("token",)
    np.testing.assert_allclose(ids.capacity, fed.capacity.sum("column"), rtol=1e-6, atol=1e-9)
    assert (ids.total, ids.bias) == pytest.approx((fed.total, fed.bias))
    assert float(ids.capacity.sum()) + ids.bias == pytest.approx(ids.total)
    assert list(ids.maps) == ["input_ids"]
    assert any("embed.weight (7 x 2) stands before the inputs" in note for note in ids.attrs["notes"])
    assert ids.attrs["num_params"] == sum(p.numel() for p in model.net.parameters())


def test_errors_of_tokens_are_of_the_sums_over_features():
    model = make(Text)
    ids, features = METHODS["stochastic"](model, IDS), METHODS["stochastic"](model.net, vectors(model))
    error, apart = ids.capacity["standard_error"], features.capacity["standard_error"].sum("column")
    assert (error.to_numpy() <= apart.to_numpy() * (1 + 1e-9)).all()
    exact = measure(model, IDS, ridge=0.1, solver="dense")
    assert bool((abs(ids.capacity - exact.capacity) < 4 * error).all())


@pytest.mark.proves("2", "a mask of each example", oracle="brute force in float64")
def test_a_mask_that_differs_by_example_equals_brute_force():
    model = make(Text)
    mask = (torch.arange(5) < torch.randint(2, 6, (30, 1), generator=torch.Generator().manual_seed(4))).long()
    found = measure(model, {"input_ids": IDS, "attention_mask": mask}, solver=PLAIN)

    class At(nn.Module):
        def __init__(self, net: nn.Module, own: Tensor) -> None:
            super().__init__()
            self.net, self.own = net, own

        def forward(self, h: Tensor) -> Tensor:
            return self.net(h, self.own[None])

    rows = [mixed_derivative(At(model.net, m), h) for h, m in zip(vectors(model), mask, strict=True)]
    expected = capacity_table(np.stack(rows)).sum(0)
    np.testing.assert_allclose(found.capacity, expected[:-1].reshape(5, 2).sum(1), rtol=1e-5)
    assert list(found.maps) == ["input_ids"]  # a mask has no derivative, and no map


@pytest.mark.parametrize("method", ["measure", "markov"])
def test_a_transformer_of_ids_is_that_of_their_vectors(method):
    model = make(Transformer)
    ids, fed = METHODS[method](model, IDS), METHODS[method](model.net, vectors(model))
    np.testing.assert_allclose(ids.capacity, fed.capacity.sum("column"), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("method", ["measure", "markov"])
def test_a_mask_of_ones_changes_nothing(method):
    model = make(Text)
    masked = METHODS[method](model, {"input_ids": IDS, "attention_mask": torch.ones_like(IDS)})
    np.testing.assert_allclose(masked.capacity, METHODS[method](model, IDS).capacity, rtol=1e-6)


def test_batches_of_a_loader_are_read_by_what_the_model_requires():
    labels = torch.arange(40)
    one, two, text = nn.Linear(3, 2).double(), make(Gated), make(Text)
    loaders = {
        "(x, y) of one input": (one, DataLoader(TensorDataset(X, labels), 16), X),
        "(x, y) of one input, both floating": (one, DataLoader(TensorDataset(X, Y), 16), X),
        "(x, y, labels)": (two, DataLoader(TensorDataset(X, Y, labels), 16), (X, Y)),
        "((x, y), labels)": (two, [((X[:20], Y[:20]), labels[:20]), ((X[20:], Y[20:]), labels[20:])], (X, Y)),
        "dictionaries": (two, [{"x": X[:9], "y": Y[:9], "labels": labels[:9]}, {"y": Y[9:], "x": X[9:]}], (X, Y)),
        "a generator": (two, (pair for pair in [(X[:20], Y[:20]), (X[20:], Y[20:])]), (X, Y)),
        "(ids, labels)": (text, DataLoader(TensorDataset(IDS, labels[:30]), 16), IDS),
    }
    for name, (model, given, whole) in loaders.items():
        found, expected = measure(model, given), measure(model, whole)
        np.testing.assert_allclose(found.capacity, expected.capacity, rtol=1e-6, err_msg=name)
        assert found.attrs["data_digest"] == expected.attrs["data_digest"]


class Tied(nn.Module):
    """A head that reads the table of the embedding, tokens first, ids looked up by indexing."""

    def __init__(self, by_index: bool = False) -> None:
        super().__init__()
        self.embed, self.mix, self.by_index = nn.Embedding(7, 4), nn.Linear(20, 4), by_index

    def forward(self, ids: Tensor) -> Tensor:
        h = self.embed.weight[ids] if self.by_index else self.embed(ids.T).transpose(0, 1)
        return torch.tanh(self.mix(h.flatten(1))) @ self.embed.weight.T


class TiedAfter(nn.Module):
    def __init__(self, tied: nn.Module) -> None:
        super().__init__()
        self.embed, self.mix = tied.embed, tied.mix

    def forward(self, h: Tensor) -> Tensor:
        return torch.tanh(self.mix(h.flatten(1))) @ self.embed.weight.T


@pytest.mark.parametrize("by_index", [False, True])
def test_a_table_that_the_head_reads_too_counts_by_that(by_index):
    model = Tied(by_index).double()
    found, fed = measure(model, IDS), measure(TiedAfter(model), vectors(model))
    np.testing.assert_allclose(found.capacity, fed.capacity.sum("column"), rtol=1e-6)
    np.testing.assert_allclose(found.by_parameter, fed.by_parameter, rtol=1e-6)
    assert not found.attrs["notes"]


def test_all_parameters_count_the_table_that_stands_before_the_inputs():
    model = make(Text)
    found = capalloc.propagate(model, IDS, solver="markov", params="all")
    assert found.attrs["num_params"] == sum(p.numel() for p in model.parameters())
    assert float(found.by_parameter.sel(parameter="embed.weight")) == 0


class Siamese(nn.Module):
    """Two sequences through one table, a time of each example, a flag that chooses a sign."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.mix = nn.Embedding(7, 2), nn.Linear(9, 2)

    def forward(self, a: Tensor, b: Tensor, time: Tensor, flag: Tensor | None = None) -> Tensor:
        h = torch.cat([self.embed(a).flatten(1), self.embed(b).flatten(1), time[:, None]], 1)
        return self.mix(h) * (1 if flag is None else 1 - 2 * flag.to(h)[:, None])


@pytest.mark.parametrize("method", ["measure", "markov"])
def test_one_table_serves_two_inputs_and_a_number_is_an_input(method):
    given = {"a": IDS[:, :2], "b": IDS[:, 2:4], "time": draw(30), "flag": IDS[:, 0] > 3}
    found = METHODS[method](make(Siamese), given)
    assert {name: m.sizes for name, m in found.maps.items()} == {
        "a": {"token": 2},
        "b": {"token": 2},
        "time": {"input": 1},
    }
    np.testing.assert_allclose(found.maps["b"], [4, 4], rtol=1e-9)
    np.testing.assert_allclose(found.maps["time"], [2], rtol=1e-9)


class Kinds(nn.Module):
    """Tokens with the vectors of their part and place added, as in BERT."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.kinds, self.places = nn.Embedding(7, 2), nn.Embedding(2, 2), nn.Embedding(5, 2)
        self.head = nn.Linear(10, 2)

    def forward(self, input_ids: Tensor, token_type_ids: Tensor, position_ids: Tensor) -> Tensor:
        return self.after(self.embed(input_ids), token_type_ids, position_ids)

    def after(self, h: Tensor, kinds: Tensor, places: Tensor) -> Tensor:
        return torch.tanh(self.head((h + self.kinds(kinds) + self.places(places)).flatten(1)))


class KindsAfter(nn.Module):
    """The same with one part and one place for each token of all examples."""

    def __init__(self, net: nn.Module, kinds: Tensor) -> None:
        super().__init__()
        self.kinds, self.places, self.head, self.own, self.after = net.kinds, net.places, net.head, kinds, Kinds.after

    def forward(self, h: Tensor) -> Tensor:
        return self.after(self, h, self.own, torch.arange(5))


@pytest.mark.parametrize("method", ["measure", "markov"])
def test_parts_and_places_of_tokens_are_constants(method):
    kinds, places = torch.tensor([0, 0, 1, 1, 1]), torch.arange(5).expand(30, 5)
    model, given = make(Kinds), {"input_ids": IDS, "token_type_ids": kinds.expand(30, 5), "position_ids": places}
    found, fed = METHODS[method](model, given), METHODS[method](KindsAfter(model, kinds), vectors(model))
    assert list(found.maps) == ["input_ids"]
    np.testing.assert_allclose(found.capacity, fed.capacity.sum("column"), rtol=1e-6)
    varying = METHODS[method](model, given | {"token_type_ids": (IDS > 3).long()})
    assert list(varying.maps) == ["input_ids"]


class Masked(nn.Module):
    """A linear map of the tokens that a mask leaves."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(7, 2), nn.Linear(10, 3)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        return self.head((self.embed(ids) * mask[..., None]).flatten(1))


@pytest.mark.parametrize("method", ["measure", "markov", "hessian"])
def test_every_token_that_is_ever_seen_holds_its_column(method):
    mask = torch.ones(30, 5, dtype=torch.bool)
    mask[1:, 3], mask[:, 4] = False, False
    found = METHODS[method](make(Masked), (IDS, mask))
    np.testing.assert_allclose(found.capacity, [6, 6, 6, 6, 0], rtol=1e-9)
    assert found.bias == pytest.approx(3)


def test_the_model_stays_as_it_was():
    model = make(Text)
    before, ran = copy.deepcopy(model.state_dict()), model(IDS)["logits"]
    capalloc.propagate(model, {"input_ids": IDS})
    assert "forward" not in vars(model)
    assert all(torch.equal(model.state_dict()[name], value) for name, value in before.items())
    assert torch.equal(model(IDS)["logits"], ran)


class Decoder(nn.Module):
    """Reads its tokens twice: as they are, and one place later through the same table."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(7, 2), nn.Linear(20, 2)

    def forward(self, ids: Tensor) -> Tensor:
        late = torch.zeros_like(ids)
        late[:, 1:] = ids[:, :-1]
        return self.head(torch.cat([self.embed(ids), self.embed(late)], 1).flatten(1))


def test_ids_that_the_model_makes_are_constants_which_a_note_says():
    found = measure(make(Decoder), IDS)
    assert list(found.maps) == ["ids"]
    np.testing.assert_allclose(float(found.capacity.sum()) + found.bias, found.total)
    assert (
        "what embed.weight gives for integers that the model makes of its inputs is a constant"
        in found.attrs["notes"][-1]
    )


def test_a_table_that_is_asked_for_holds_nothing_which_a_note_says():
    found = capalloc.propagate(make(Text), IDS, solver="markov", params=["embed.weight", "net.head.weight"])
    assert float(found.by_parameter.sel(parameter="embed.weight")) == 0
    assert any(
        "embed.weight (7 x 2) stands before" in note and "has no capacity" in note for note in found.attrs["notes"]
    )


@dataclass
class Observed:
    """What a model may take as one argument."""

    x: torch.Tensor
    rest: dict[str, Any]


class Nested(nn.Module):
    """`Gated` behind one argument, which also holds what is no tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = make(Gated)

    def forward(self, batch: Any) -> torch.Tensor:
        of = batch if isinstance(batch, Observed) else Observed(batch["x"], batch["rest"])
        return self.inner(of.x, of.rest["y"][0]) if of.rest["on"] else of.x


@pytest.mark.parametrize("kind", [Observed, dict])
@pytest.mark.parametrize("method", ["measure", "markov"])
def test_what_an_argument_holds_is_several_inputs(method, kind):
    expected = METHODS[method](make(Gated), (X, Y))
    found = METHODS[method](Nested(), {"batch": kind(x=X, rest={"y": (Y,), "on": True})})
    np.testing.assert_allclose(found.capacity, expected.capacity, rtol=1e-9)
    assert list(found.maps) == ["batch.x", "batch.rest.y.0"]


def test_a_compiled_model_of_two_inputs():
    compiled = capalloc.propagate(torch.compile(make(Gated)), (X, Y), solver="markov")
    np.testing.assert_allclose(compiled.capacity, METHODS["markov"](make(Gated), (X, Y)).capacity)


ENDLESS: dict[str, object] = {"x": X, "y": Y}
ENDLESS["rest"] = ENDLESS
ROUND: list[object] = [X, Y]
ROUND.append(ROUND)
REFUSED = {
    "a dict that holds itself": (Gated, ENDLESS, r"inputs\['rest'\]\['rest'\] is a container that holds itself"),
    "a list that holds itself": (Gated, {"x": X, "y": ROUND}, r"inputs\['y'\]\[2\] is a container that holds itself"),
    "a batch that holds itself": (Gated, (batch for batch in [ENDLESS]), r"a batch of inputs\['rest'\] is a container"),
    "too few": (Gated, [X, Y, X], "inputs are 3 tensors, but the model requires 2 .x, y."),
    "one of two": (Gated, (X,), "inputs are 1 tensors, but the model requires 2"),
    "lengths": (Gated, (X, Y[:5]), r"one leading examples axis of one length, got x \(40, 3\), y \(5, 2, 2\)"),
    "no axis": (Gated, {"x": X, "y": torch.tensor(1.0)}, "one leading examples axis of one length"),
    "no example": (Gated, (X[:0], Y[:0]), "inputs hold no example"),
    "no tensor": (Gated, {"labels": X}, "a dict without a tensor"),
    "a list": (Gated, {"x": [1.0], "y": Y}, r"inputs\['x'\] must be a tensor, or a dict, tuple .*, got list"),
    "a dict as an argument": (
        Nested,
        {"x": X, "rest": {"y": Y}},
        r"batch: give those .* \(a dict that is itself",
    ),
    "precisions": (Gated, (X, Y.float()), "inputs are of torch.float32, torch.float64"),
    "complex": (Gated, (X.to(torch.complex64), Y), r"inputs\['x'\] is torch.complex64, .*pass a plain real tensor"),
    "empty axis": (Gated, (X[:, :0], Y), r"inputs\['x'\] has an axis of length 0"),
    "another name": (
        Gated,
        {"x": X, "z": Y},
        r"does not accept x \(examples, 3\), z .*unexpected keyword argument 'z'",
    ),
    "shapes": (Gated, [(X[:20], Y[:20]), (X[20:], Y[20:, :1])], r"batches differ in the shape of 'y': \(1, 2\)"),
    "other arguments": (Gated, [{"x": X, "y": Y}, {"x": X}], r"a batch has the arguments \['x'\]"),
    "other batches": (Gated, [(X, Y), X], "each batch must hold the same arguments as the first, got Tensor"),
    "ids beyond": (Text, [IDS, IDS + 5], r"token ids 'input_ids' must be in 0 .. 6, got values 5 .. 11"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused_says_what_to_do(case):
    kind, given, message = REFUSED[case]
    with pytest.raises((ValueError, TypeError), match=message):
        measure(make(kind), given)


class Shifted(nn.Module):
    """Looks up all tokens but the last."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(7, 2), nn.Linear(8, 2)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.embed(ids[:, :-1]).flatten(1))


class Renormed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(7, 2, max_norm=1.0), nn.Linear(10, 2)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.embed(ids).flatten(1))


def test_look_ups_that_cannot_be_answered_are_refused():
    with pytest.raises(ValueError, match=r"looks up \(2, 4\) of the token ids 'ids', \(2, 5\): a part of them"):
        measure(make(Shifted), IDS)
    with pytest.raises(ValueError, match="renormalises its table"):
        measure(make(Renormed), IDS)
    half = nn.Sequential(nn.Embedding(3000, 2), nn.Flatten(), nn.Linear(10, 2)).bfloat16()
    read = Reads(half)
    with pytest.raises(ValueError, match=r"'ids' holds integers that torch.bfloat16 cannot keep: use model.float\(\)"):
        capalloc.propagate(read, torch.arange(2500, 2510).reshape(2, 5), solver="markov")


class Reads(nn.Module):
    """Reads ids beside their vectors."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, ids: Tensor) -> Tensor:
        return self.net(ids) * (ids > 0).all(1, keepdim=True)


class Numbers(nn.Module):
    """Reads ids as numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(5, 2)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(ids.double())


@pytest.mark.parametrize("shift", [7, -3])
def test_token_ids_beyond_the_table_are_named_as_what_they_are(shift: int) -> None:
    model = nn.Sequential(nn.Embedding(7, 2), nn.Flatten(), nn.Linear(6, 2))
    ids = torch.arange(12).reshape(4, 3) % 7 + shift
    with pytest.raises(ValueError, match=r"model does not accept input \(examples, 3\): index out of range"):
        capalloc.propagate(model, ids)


def test_integers_that_nothing_looks_up_are_refused():
    with pytest.raises(TypeError, match=r"no embedding of the model looks up \(ids is torch.int64\)"):
        measure(make(Numbers), IDS)


class Classes(nn.Module):
    """Takes one-hot vectors, or makes them of ids."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.head = nn.Linear(35, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        hot = x if x.is_floating_point() else nn.functional.one_hot(x, num_classes=7).float()
        return self.head(torch.relu(self.hidden(hot.flatten(1))))


@pytest.mark.parametrize("solver", ["measured", "markov"])
def test_one_hot_vectors_are_the_vectors_of_ids(solver):
    method = measure if solver == "measured" else partial(capalloc.propagate, solver="markov")
    model = make(Classes).float()
    by_class, by_token = method(model, nn.functional.one_hot(IDS, 7).float()), method(model, IDS)
    assert by_token.capacity.dims == ("token",)
    np.testing.assert_allclose(by_token.capacity, by_class.capacity.sum(by_class.capacity.dims[-1]), rtol=1e-5)
    assert by_token.total == pytest.approx(by_class.total, rel=1e-5)


class Bag(nn.Module):
    """A bag of vectors, at once or of an embedding."""

    def __init__(self, mode: str, at_once: bool) -> None:
        super().__init__()
        self.bag, self.hidden, self.head = nn.EmbeddingBag(7, 3, mode=mode), nn.Linear(3, 4), nn.Linear(4, 2)
        self.at_once = at_once

    def forward(self, ids: Tensor) -> Tensor:
        if self.at_once:
            found = self.bag(ids)
        else:
            found = getattr(nn.functional.embedding(ids, self.bag.weight), self.bag.mode)(1)
        return self.head(torch.relu(self.hidden(found)))


@pytest.mark.parametrize("mode", ["sum", "mean"])
def test_a_bag_of_tokens_is_the_sum_or_mean_of_their_vectors(mode):
    whole, apart = make(partial(Bag, mode, at_once=True)), make(partial(Bag, mode, at_once=False))
    np.testing.assert_allclose(measure(whole, IDS).capacity, measure(apart, IDS).capacity)
    found = [capalloc.propagate(one, IDS, solver="markov").capacity for one in (whole, apart)]
    np.testing.assert_allclose(*found)


class Copied(Bag):
    """It looks up a copy of its ids, in memory of its own."""

    def forward(self, ids: Tensor) -> Tensor:
        return super().forward(ids.clone())


def test_copies_of_ids_are_known_by_their_values():
    found = [
        capalloc.propagate(make(partial(kind, "sum", at_once=False)), IDS, solver="markov") for kind in (Bag, Copied)
    ]
    np.testing.assert_array_equal(found[1].capacity, found[0].capacity)


def test_the_largest_of_a_bag_is_no_look_up():
    with pytest.raises(TypeError, match="no embedding of the model looks up"):
        measure(make(partial(Bag, "max", at_once=True)), IDS)


def test_methods_of_one_tensor_refuse_several():
    with pytest.raises(ValueError, match="this method is of one tensor of inputs, not of x, y: pass a model"):
        capalloc.depth_limit.read(make(Gated), (X, Y))


OTHERS = {
    "scaling": lambda model, inputs: capalloc.scaling(model, inputs, trained=False).data,
    "shattering": lambda model, inputs: capalloc.shattering(model, inputs, trained=False, num_lines=1).data,
    "decoupling": lambda model, inputs: capalloc.decoupling(model, inputs).data,
    "effective_parameters": lambda model, inputs: capalloc.effective_parameters(model, inputs, ridge=0.1).data,
    "prune_scores": lambda model, inputs: capalloc.prune_scores(model, inputs).data,
}


@pytest.mark.parametrize("method", OTHERS)
def test_methods_that_tell_nothing_of_inputs_take_several(method):
    text = make(Text)
    for one, other in (
        (OTHERS[method](text, IDS), OTHERS[method](text.net, vectors(text))),
        (OTHERS[method](make(Gated), (X, Y)), OTHERS[method](Joined(make(Gated)), joined_vector())),
    ):
        for name, values in one.data_vars.items():
            if values.dtype.kind == "f":
                np.testing.assert_allclose(values, other[name], rtol=1e-6, atol=1e-12)


def test_a_walk_ends_at_each_input():
    law = capalloc.walk(make(Gated), (X, Y))
    assert law.inputs.coords["input_name"].to_numpy().tolist() == ["x"] * 3 + ["y"] * 4
    assert float(law.inputs.sum()) + law.bias == pytest.approx(1)
    np.testing.assert_allclose(law.inputs, capalloc.walk(Joined(make(Gated)), joined_vector()).inputs)


@pytest.mark.parametrize("method", [capalloc.propagate, capalloc.measure, capalloc.audit, capalloc.prune_scores])
def test_a_model_of_nothing_but_its_table_of_tokens_has_no_capacity(method):
    class Bag(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(7, 3)

        def forward(self, ids: Tensor) -> Tensor:
            return self.table(ids).mean(1)

    with pytest.raises(
        ValueError, match=r"no parameters but table\.weight, before the vectors of tokens, .* no capacity"
    ):
        method(Bag(), torch.arange(6).reshape(3, 2))
