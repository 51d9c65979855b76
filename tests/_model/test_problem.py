"""Model and data: what is refused, what is selected, and how batches are cut."""

from __future__ import annotations

import inspect
import itertools
import re
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import xarray as xr
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import capalloc
from capalloc import linear as linear_theory
from capalloc._model.given_examples import check_batch
from capalloc._model.places import axis_names
from capalloc._model.private_copy import private_copy
from capalloc._model.problem import Problem, prepare, seeded
from capalloc._runtime.memory import Budget
from capalloc.results import Result
from zoo import gaussian, seeded_module

X = torch.linspace(-1, 1, 12).reshape(4, 3)


def asserts(y: Tensor) -> Tensor:
    raise AssertionError("refused")


def packed() -> PackedSequence:
    return pack_padded_sequence(X.reshape(2, 2, 3), torch.tensor([2, 1]), batch_first=True)


class Returns(nn.Module):
    """A linear model that wraps what it returns."""

    def __init__(self, wrap) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 2)
        self.wrap = wrap

    def forward(self, x: Tensor):
        return self.wrap(self.linear(x))


class Wrapped(nn.Module):
    """Another model, and what is made of what it returns."""

    def __init__(self, net: nn.Module, wrap) -> None:
        super().__init__()
        self.net, self.wrap = net, wrap

    def forward(self, x: Tensor):
        return self.wrap(self.net(x))


def linear(**changes) -> nn.Linear:
    model = nn.Linear(3, 2)
    for name, value in changes.items():
        getattr(model, name).data.fill_(value)
    return model


def weight_normed() -> nn.Module:
    with pytest.warns(FutureWarning, match="weight_norm"):
        return nn.utils.weight_norm(nn.Linear(3, 2))


REFUSED = {
    "nothing and a tensor": (
        lambda: prepare(Returns(lambda y: (None, y)), X),
        TypeError,
        "say which tensor to constrain, for example outputs=1",
    ),
    "a mapping of a number and a tensor": (
        lambda: prepare(Returns(lambda y: {"loss": 1.0, "y": y}), X),
        TypeError,
        "say which tensor to constrain, for example outputs='y'",
    ),
    "tensors inside": (
        lambda: prepare(Returns(lambda y: {"all": [y]}), X),
        TypeError,
        "say which tensor to constrain, with a function of what it returns",
    ),
    "a part of a tensor": (
        lambda: prepare(linear(), X, outputs="logits"),
        ValueError,
        "returns one tensor, which has no output 'logits': leave outputs out",
    ),
    "no such position": (
        lambda: prepare(Returns(lambda y: (y, y)), X, outputs=2),
        ValueError,
        "returns a tuple without the output 2; it has 2",
    ),
    "no such name": (
        lambda: prepare(Returns(lambda y: (y, y)), X, outputs="logits"),
        ValueError,
        "returns a tuple without the output 'logits'",
    ),
    "no such key": (
        lambda: prepare(Returns(lambda y: {"a": y}), X, outputs="b"),
        ValueError,
        "returns a dict without the output 'b'; it has a",
    ),
    "a name of no tensor": (
        lambda: prepare(Returns(lambda y: {"a": [y]}), X, outputs="a"),
        TypeError,
        "outputs must lead to a tensor, got list",
    ),
    "not a module": (lambda: prepare(torch.relu, X), TypeError, "model must be a torch.nn.Module"),
    "outputs not callable": (
        lambda: capalloc.measure(linear(), X, outputs=True),
        TypeError,
        "outputs must be a text or an integer or a function or None, got True",
    ),
    "inputs not iterable": (
        lambda: prepare(linear(), 3),
        TypeError,
        "inputs must be a tensor or an iterable of batches, got int",
    ),
    "no batch": (lambda: prepare(linear(), []), ValueError, "inputs hold no example"),
    "no example": (lambda: prepare(linear(), X[:0]), ValueError, "inputs hold no example"),
    "no parameters": (lambda: prepare(nn.ReLU(), X), ValueError, "model has no parameters"),
    "params a string": (
        lambda: prepare(linear(), X, params="weight"),
        TypeError,
        r"sequence of names or patterns, or a predicate; write \['weight'\]",
    ),
    "unknown name": (
        lambda: prepare(linear(), X, params=["wieght"]),
        ValueError,
        r"params names \['wieght'\], which the model lacks; it has weight, bias",
    ),
    "nothing selected": (
        lambda: prepare(linear(), X, params=lambda name: False),
        ValueError,
        "params selects no parameter",
    ),
    "NaN parameter": (
        lambda: prepare(linear(bias=torch.nan), X),
        ValueError,
        "parameter 'bias' holds NaN or inf",
    ),
    "inf parameter": (
        lambda: prepare(linear(weight=torch.inf), X),
        ValueError,
        "parameter 'weight' holds NaN or inf",
    ),
    "lazy parameter": (lambda: prepare(nn.LazyLinear(2), X), ValueError, "'weight' has no shape yet"),
    "outputs not a tensor": (
        lambda: prepare(linear(), X, outputs=lambda y: [y]),
        TypeError,
        "outputs must lead to a tensor, got list",
    ),
    "tuple": (
        lambda: prepare(Returns(lambda y: (y, y)), X),
        TypeError,
        r"model returns a tuple, .* outputs=0",
    ),
    "a dictionary of arrays": (
        lambda: linear_theory.estimate_covariance({"x": X}),
        TypeError,
        "inputs are a dict",
    ),
    "batch not a tensor": (
        lambda: prepare(linear(), [X.numpy()]),
        TypeError,
        "inputs: each batch must be a tensor or an .x, y. pair, got ndarray",
    ),
    "no examples axis": (lambda: prepare(linear(), X[0]), ValueError, r"for one example use inputs\[None\]"),
    "integer inputs": (
        lambda: prepare(linear(), X.long()),
        TypeError,
        "inputs are integers that no embedding of the model looks up.*input is torch.int64.*need floating point",
    ),
    "complex inputs": (lambda: prepare(linear(), X.to(torch.complex64)), TypeError, "need floating point"),
    "empty axis": (lambda: prepare(linear(), X[:, :0]), ValueError, "inputs have an axis of length 0"),
    "NaN inputs": (lambda: prepare(linear(), X * torch.nan), ValueError, "inputs hold NaN or inf"),
    "inf inputs": (lambda: prepare(linear(), X / 0), ValueError, "inputs hold NaN or inf"),
    "model in double": (
        lambda: prepare(linear().double(), X),
        TypeError,
        r"parameter 'weight' is torch.float64 but inputs are torch.float32.*inputs.to\(torch.float64\)",
    ),
    "wrong shape": (
        lambda: prepare(linear(), torch.ones(4, 5)),
        ValueError,
        r"model does not accept inputs of shape \(examples, 5\)",
    ),
    "examples axis lost": (
        lambda: prepare(Returns(torch.sum), X),
        ValueError,
        r"outputs must keep the leading examples axis: got shape \(\)",
    ),
    "examples axis moved": (
        lambda: prepare(Returns(lambda y: y.T), X),
        ValueError,
        r"leading examples axis: got shape \(2, 1\)",
    ),
    "no output": (
        lambda: prepare(linear(), X, outputs=lambda y: y[:, :0]),
        ValueError,
        r"outputs are empty: shape \(1, 0\)",
    ),
    "detached": (
        lambda: prepare(Returns(Tensor.detach), X),
        ValueError,
        "outputs do not depend on inputs",
    ),
    "constant": (
        lambda: prepare(linear(), X, outputs=torch.zeros_like),
        ValueError,
        "outputs do not depend on inputs",
    ),
    "integer outputs": (
        lambda: prepare(linear(), X, outputs=lambda y: y.argmax(1)),
        ValueError,
        "outputs do not depend on inputs",
    ),
    "NaN outputs": (
        lambda: prepare(linear(), X, outputs=lambda y: y * torch.nan),
        ValueError,
        "outputs hold NaN or inf on the first example",
    ),
    "not copyable": (lambda: prepare(Locked(), X), ValueError, "model cannot be copied.*: cannot pickle"),
    "kept and read": (lambda: prepare(Stale(), X), ValueError, "model cannot be copied.*kept on a module"),
    "scripted": (lambda: prepare(scripted(), X), TypeError, "model is TorchScript.*program of torch.export"),
    "a scripted part": (
        lambda: prepare(nn.Sequential(nn.Linear(3, 3), scripted()), X),
        TypeError,
        "^1 is TorchScript.*the nn.Module that was scripted",
    ),
    "no values": (
        lambda: prepare(nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2, device="meta")), X),
        ValueError,
        "'1.weight' is on the meta device",
    ),
    "inputs without values": (lambda: prepare(linear(), X.to("meta")), ValueError, "inputs are on the meta device"),
    "nested inputs": (
        lambda: prepare(linear(), torch.nested.nested_tensor([torch.ones(2, 3), torch.ones(1, 3)])),
        TypeError,
        "inputs are a nested tensor.*to_padded_tensor",
    ),
    "a packed sequence": (lambda: prepare(nn.GRU(3, 2), packed()), TypeError, "packed sequence.*pad_packed_sequence"),
    "a named packed sequence": (lambda: prepare(nn.GRU(3, 2), {"input": packed()}), TypeError, "packs them in forward"),
    "packed batches": (lambda: prepare(nn.GRU(3, 2), [packed()]), TypeError, "rows are moments of many examples"),
    "sparse outputs": (
        lambda: prepare(Returns(lambda y: y.to_sparse()), X),
        TypeError,
        "outputs are torch.sparse_coo.*to_dense",
    ),
    "the module of a program": (
        lambda: prepare(torch.export.export(linear(), (X,)).module(), X),
        ValueError,
        f"exported for batches of {len(X)}, .*: pass the program itself, or export it with a dynamic number",
    ),
    "a model that asserts": (lambda: prepare(Returns(asserts), X), ValueError, "does not accept inputs .*: refused$"),
    "sparse inputs": (lambda: prepare(linear(), X.to_sparse()), TypeError, "inputs are sparse.*to_dense"),
    "a dictionary": (
        lambda: prepare(linear(), {"x": X}),
        ValueError,
        r"does not accept x \(examples, 3\): .*argument 'x'",
    ),
    "batches of dictionaries": (
        lambda: prepare(linear(), [{"x": X}]),
        ValueError,
        r"does not accept x \(examples, 3\)",
    ),
    "one pair": (lambda: prepare(linear(), (X, X)), ValueError, r"for one \(x, y\) batch pass x alone"),
    "one pair with labels": (lambda: prepare(linear(), [X, torch.arange(4)]), ValueError, "two tensors of 4 each"),
    "parameters for names": (
        lambda: prepare(linear(), X, params=linear().parameters()),
        TypeError,
        "params must hold names of parameters, got Parameter",
    ),
    "a dictionary out": (
        lambda: prepare(Returns(lambda y: {"scores": y}), X),
        TypeError,
        r"returns a dict, .* outputs='scores'",
    ),
    "complex outputs": (
        lambda: prepare(Returns(lambda y: torch.complex(y, y)), X),
        TypeError,
        "outputs are complex.*torch.view_as_real",
    ),
    "batch statistics": (
        lambda: prepare(nn.BatchNorm1d(3, track_running_stats=False), X),
        ValueError,
        "examples interact: the model runs on two examples, but not on one alone",
    ),
    "one after the other": (
        lambda: prepare(Returns(lambda y: y.cumsum(0)), X),
        ValueError,
        "examples interact: the outputs for one example change",
    ),
}


class Locked(nn.Linear):
    """Holds what nobody can copy."""

    def __init__(self) -> None:
        super().__init__(3, 2)
        self.rows = (row for row in ())


class Stale(nn.Linear):
    """Reads a tensor that it made of parameters long ago."""

    def __init__(self) -> None:
        super().__init__(3, 2)
        self.twice = 2 * self.weight

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.twice.T


def scripted() -> nn.Module:
    with pytest.warns(DeprecationWarning, match="torch.jit.trace"):
        return torch.jit.trace(linear(), X)


@pytest.mark.parametrize("case", REFUSED)
def test_refuses_with_a_way_out(case):
    call, kind, message = REFUSED[case]
    with pytest.raises(kind, match=message):
        call()


def test_every_refusal_is_tested():
    """Each `raise` in the module has a message that some case above expects, or a test below."""
    sources = [Path(inspect.getfile(part)).read_text() for part in (Problem, check_batch, private_copy)]
    raised = sum(len(re.findall(r"^ +raise ", source, re.MULTILINE)) for source in sources)
    below = 1  # batches that differ in shape
    assert len(REFUSED) + below >= raised


def test_later_batches_are_checked_when_they_come():
    problem = prepare(linear(), [X, torch.ones(4, 4), X])
    with pytest.raises(ValueError, match=r"batches differ in shape: \(4,\) after \(3,\)"):
        list(problem.batches(2))
    problem = prepare(linear(), [*[X] * 4, X * torch.nan])
    with pytest.raises(ValueError, match="NaN or inf"):
        list(problem.batches(2))


@pytest.mark.parametrize("batch_size", [1, 2, 3, 5, 12, 100])
def test_batches_cut_any_stream_to_size(batch_size):
    stream = [X[:1], (X[1:3], "labels"), [X[3:], None], X, X[:0]]
    problem = prepare(linear(), iter(stream))
    batches = list(problem.batches(batch_size))
    assert torch.equal(torch.cat(batches), torch.cat([X, X]))
    assert all(len(batch) == batch_size for batch in batches[:-1])
    assert problem.count() == 8
    assert torch.equal(torch.cat(list(problem.batches(batch_size))), torch.cat([X, X]))  # a second pass


def test_batches_carry_no_gradient_and_the_copys_dtype():
    problem = prepare(linear(), X.clone().requires_grad_(), dtype=torch.float64)
    (batch,) = problem.batches(10)
    assert not batch.requires_grad
    assert batch.dtype == problem.dtype == torch.float64


@pytest.mark.parametrize("params", [["bias"], ("bias",), ("b*",), ["[a-c]*"], lambda name: name == "bias"])
def test_params_selects_by_name_pattern_or_predicate(params):
    problem = prepare(linear(), X, params=params)
    assert list(problem.params) == ["bias"]
    assert problem.num_params == 2
    assert problem.params["bias"] is dict(problem.model.named_parameters())["bias"]


@pytest.mark.parametrize("params", [["first.weight"], ["second.weight"], ["second.weight", "first.weight"]])
def test_a_tied_parameter_goes_by_any_of_its_names(params):
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)
            self.second.weight = self.first.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.second(torch.relu(self.first(x)))

    assert list(prepare(Tied(), X, params=params).params) == ["first.weight"]


def test_frozen_parameters_are_fixed_unless_all_are_asked_for():
    net, x = seeded_module(nn.Sequential, nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)), gaussian(20, 3)
    whole = capalloc.measure(net, x)
    net[0].requires_grad_(False)
    found, named = capalloc.measure(net, x), capalloc.measure(net, x, params=["2.weight", "2.bias"])
    assert torch.equal(torch.as_tensor(found.capacity.values), torch.as_tensor(named.capacity.values))
    note = "16 of 26 parameters are frozen (requires_grad=False) and fixed: 0.weight, 0.bias; params='all' counts them"
    assert note in found.attrs["notes"]
    assert note in capalloc.propagate(net, x, solver="markov").attrs["notes"]
    assert note in repr(capalloc.effective_parameters(net, x, ridge=0.1))
    assert note not in named.attrs["notes"]
    assert capalloc.measure(net, x, params="all").total == pytest.approx(whole.total)
    net.requires_grad_(False)  # a model that is only read, such as a saved program
    assert capalloc.measure(net, x).total == pytest.approx(whole.total)


def test_one_example_may_lose_its_axis_to_squeeze():
    net = seeded_module(nn.Sequential, nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    squeezed, x = capalloc.measure(Wrapped(net, lambda y: y.squeeze()), gaussian(12, 3)), gaussian(12, 3)
    assert squeezed.total == pytest.approx(capalloc.measure(net, x).total)


@pytest.mark.parametrize("name", ["logits", "last_hidden_state"])
def test_default_output_in_a_dictionary(name):
    assert prepare(Returns(lambda y: {"other": 0, name: y}), X)(X).shape == (4, 2)


class Company(nn.Module):
    """A layer whose examples also see what `seen` makes of the batch."""

    def __init__(self, seen):
        super().__init__()
        self.layer, self.seen = nn.Linear(3, 2), seen

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) * (1 + self.seen(x))


def shifted(x: Tensor, by: int) -> Tensor:
    """What stands so many places before each example, else zero."""
    return F.pad(x[:, :1], (0, 0, by, 0))[: len(x)]


def first_come(x: Tensor, room: int) -> Tensor:
    """One for the first of those who want, as in a mixture of experts with limited room."""
    wanting = (x[:, :1] > 0).to(x)
    return wanting * (wanting.cumsum(0) <= room)


SEEN = {
    **{f"the one {k} before": partial(shifted, by=k) for k in (1, 2, 7, 15)},
    **{f"the one {k} after": lambda x, k=k: shifted(x.flip(0), k).flip(0) for k in (1, 7)},
    **{f"room for {k}": partial(first_come, room=k) for k in (1, 3, 5)},
    "the mean": lambda x: x.mean(0)[:1],
    "the largest": lambda x: x.amax(0)[:1],
    "the rank in the batch": lambda x: x[:, :1].argsort(0).argsort(0).to(x) / len(x),
}


@pytest.mark.parametrize("alike", [False, True], ids=["all differ", "the first two are equal"])
@pytest.mark.parametrize("seen", SEEN)
def test_examples_that_see_any_other_are_refused(seen, alike):
    x = gaussian(16, 3)
    x[1] = x[0] if alike else x[1]
    with pytest.raises(ValueError, match="examples interact: the outputs for one example change"):
        prepare(seeded_module(lambda: Company(SEEN[seen])), x)


@pytest.mark.parametrize("alone", [torch.zeros_like, lambda x: x[:, :1] ** 2, lambda x: torch.rand_like(x[:, :1])])
def test_examples_alone_are_taken_also_by_a_model_that_draws(alone):
    prepare(seeded_module(lambda: Company(lambda x: alone(x)[:, :1])), gaussian(40, 3))


METHODS = ("propagate", "walk", "scaling", "shattering", "diagnose", "decoupling", "receptive_field", "output_gram")


@pytest.mark.parametrize("method", METHODS)
def test_every_method_refuses_examples_that_interact(method):
    """Attention without batch_first takes examples for positions."""

    class Mixing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mix, self.head = nn.MultiheadAttention(4, 2), nn.Linear(12, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.mix(x, x, x)[0].flatten(1))

    with pytest.raises(ValueError, match="examples interact"):
        getattr(capalloc, method)(seeded_module(Mixing), gaussian(5, 3, 4))


@pytest.mark.parametrize("method", METHODS)
def test_one_output_needs_no_axis_of_its_own(method):
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)).double()
    call = getattr(capalloc, method)
    bare, kept = (
        call(model, gaussian(9, 4), outputs=lambda y: y[:, 0]),
        call(model, gaussian(9, 4), outputs=lambda y: y[:, :1]),
    )
    if method == "output_gram":
        assert torch.equal(bare.squeeze(), kept.squeeze())
    elif method == "walk":
        np.testing.assert_allclose(bare.inputs, kept.inputs)
    else:
        differing = {"seconds", "data_digest", "output_position"}
        for result in (bare, kept):
            result.data.attrs = {key: value for key, value in result.data.attrs.items() if key not in differing}
        xr.testing.assert_allclose(bare.to_xarray(), kept.to_xarray())


BATCHES = [X, X[:0], X[:1]]


class Once:
    """Batches that are served once, by an object that is no iterator."""

    def __init__(self) -> None:
        self.left = iter(BATCHES)

    def __iter__(self):
        return self.left

    def __len__(self):
        return len(BATCHES)


class Drained:
    """Batches that are taken off a list, which gives a new iterator each time."""

    def __init__(self) -> None:
        self.left = [*BATCHES]

    def __iter__(self):
        while self.left:
            yield self.left.pop(0)


def one_buffer():
    """Yield one tensor, filled anew for each batch of one example."""
    buffer = torch.empty_like(X[:1])
    for row in torch.cat(BATCHES):
        yield buffer.copy_(row)


class Noisy:
    """Examples drawn anew in each pass, the first of them known."""

    def __init__(self) -> None:
        self.passes = 0

    def __iter__(self):
        self.passes += 1
        return iter([batch * self.passes for batch in BATCHES])


@pytest.mark.parametrize("served", [Once, Drained, one_buffer, Noisy])
def test_batches_of_a_first_pass_are_kept(served):
    problem = prepare(linear(), served())
    for _ in range(2):
        assert torch.equal(torch.cat(list(problem.batches(2))), torch.cat(BATCHES))


def test_an_empty_batch_may_stand_anywhere():
    problem = prepare(linear(), [X[:0], X[:1], X[1:]])
    assert torch.equal(torch.cat(list(problem.batches(2))), X)


def test_batches_without_an_end_are_refused(monkeypatch):
    monkeypatch.setattr("capalloc._model.given_examples.budget_of", lambda device: Budget(10 * X.nbytes))
    with pytest.raises(MemoryError, match="batch 11 of inputs, which are kept for several passes, needs"):
        prepare(linear(), itertools.repeat(X))


@pytest.mark.parametrize("name", ["logits", "last_hidden_state"])
def test_default_output_of_a_model_output_object(name):
    problem = prepare(Returns(lambda y: SimpleNamespace(**{name: y, "other": None})), X)
    assert problem(X).shape == (4, 2)


class Several(NamedTuple):
    hidden: Tensor
    logits: Tensor


class Positions(nn.Module):
    """A convolution before a classifier, and both of what they return."""

    def __init__(self) -> None:
        super().__init__()
        self.mix, self.end = nn.Conv1d(1, 2, 3, padding=1), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Several:
        hidden = self.mix(x).relu()
        return Several(hidden, self.end(hidden))


WITH_OUTPUTS = {
    name: getattr(room, name)
    for room in (capalloc, capalloc.solvers, capalloc.depth_limit)
    for name in dir(room)
    if inspect.isfunction(getattr(room, name)) and "outputs" in inspect.signature(getattr(room, name)).parameters
}


@pytest.mark.parametrize("name", WITH_OUTPUTS)
def test_every_method_takes_outputs_by_name_and_by_position(name):
    def answer(outputs: Any) -> Any:
        torch.manual_seed(0)
        model = seeded_module(Positions)
        found = WITH_OUTPUTS[name]([model] if name == "rank" else model, x, outputs, **more)
        found = list(found.state_dict().values()) if isinstance(found, nn.Module) else found
        return {k: v.values for k, v in found.data.variables.items()} if isinstance(found, Result) else found

    x, more = gaussian(6, 1, 4), {"ridge": 0.1} if name == "effective_parameters" else {}
    expected = answer(lambda returned: returned[1])
    for outputs in ("logits", 1, -1):
        assert repr(answer(outputs)) == repr(expected)
    if name != "decoupling":  # of the one gate, which both see
        assert repr(answer("hidden")) != repr(expected)


def test_logits_come_before_hidden_states():
    model = Returns(lambda y: SimpleNamespace(last_hidden_state=y, logits=y[:, :1]))
    assert prepare(model, X)(X).shape == (4, 1)


def test_outputs_are_flattened_behind_the_examples():
    model = nn.Conv2d(1, 2, 2)
    assert prepare(model, torch.ones(3, 1, 4, 4))(torch.ones(3, 1, 4, 4)).shape == (3, 18)


def test_copy_is_private_and_in_evaluation_mode():
    model = nn.Sequential(nn.Linear(3, 2), nn.Dropout()).train()
    problem = prepare(model, X, dtype=torch.float64)
    assert not problem.model.training
    assert model.training
    problem.params["0.weight"].data.zero_()
    assert model[0].weight.abs().sum() > 0
    assert model[0].weight.dtype == torch.float32
    assert model[0].weight.requires_grad


def test_seeded_repeats_and_restores():
    state = torch.get_rng_state()
    draws = []
    for _ in range(2):
        with seeded(3, torch.device("cpu")):
            draws.append(torch.rand(4))
    assert torch.equal(*draws)
    assert torch.equal(torch.get_rng_state(), state)


def test_axes_have_names_up_to_volumes():
    assert axis_names(1) == ("input",)
    assert axis_names(3) == ("channel", "row", "column")
    assert axis_names(5) == ("axis_0", "axis_1", "axis_2", "axis_3", "axis_4")


def test_seeding_the_processor_leaves_other_devices_alone(monkeypatch):
    for module in (torch.cuda, torch.xpu, torch.mps):
        name = "manual_seed" if module is torch.mps else "manual_seed_all"
        monkeypatch.setattr(module, name, lambda seed: pytest.fail("another device is seeded"))
    with seeded(3, torch.device("cpu")):
        drawn = torch.rand(4)
    assert torch.equal(drawn, torch.rand(4, generator=torch.Generator().manual_seed(3)))


class Chaotic(nn.Module):
    """A float32 network that makes much of a rounding, which is another one in a larger batch."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = (self.first(x) + (1e-6 if len(x) > 1 else 0.0)).sigmoid()
        for _ in range(14):
            h = 4 * h * (1 - h)
        return h


def test_rounding_that_a_deep_network_enlarges_is_no_interaction():
    torch.manual_seed(0)
    model, x = Chaotic(), torch.randn(4, 3)
    together, alone = model(x[:2]), torch.cat([model(one[None]) for one in x[:2]])
    assert float((together - alone).abs().max()) > 1e-3  # far more than rounding of the outputs themselves
    assert prepare(model, x).num_params == 8


class Unregistered(nn.Module):
    """Layers in plain containers, beside those that are listed a second time."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(2, 2)
        self.layers = [nn.Linear(3, 2), nn.Tanh()]
        self.by_name = {"again": (self.last,), "scale": nn.Parameter(torch.ones(2))}

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.layers[1](self.layers[0](x)) * self.by_name["scale"])


@pytest.mark.parametrize("method", [capalloc.measure, capalloc.propagate, partial(capalloc.propagate, solver="markov")])
def test_parameters_in_plain_containers_are_named(method):
    found = method(Unregistered(), gaussian(20, 3).float())
    said = "parameters kept in lists, tuples or dicts are not the model's and count for nothing: "
    assert [n for n in found.attrs["notes"] if n.startswith(said)] == [
        f"{said}layers[0], by_name['scale']; torch's ModuleList, ModuleDict, ParameterList and ParameterDict make them "
        "its own"
    ]
    assert found.attrs["num_params"] == 6
    listed = Unregistered()
    listed.layers = nn.ModuleList(listed.layers)
    listed.by_name["scale"] = 1.0
    assert not any(said in n for n in method(listed, gaussian(20, 3).float()).attrs["notes"])


def test_a_model_whose_layers_are_all_in_a_list_is_told_so():
    model = nn.Module()
    model.layers = [nn.Linear(3, 2)]
    model.forward = lambda x: model.layers[0](x)
    with pytest.raises(ValueError, match=r"no parameters.*count for nothing: layers\[0\]; torch's ModuleList"):
        prepare(model, X)
