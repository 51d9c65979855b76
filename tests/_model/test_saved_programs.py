"""Exported programs and .pt2 files give what the live model gives, and nothing in a file is run."""

from __future__ import annotations

import copy
import io
import json
import pickle
import sys
import zipfile
from collections import OrderedDict
from functools import partial
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis.strategies import booleans, data, dictionaries, floats, integers, lists, none, recursive, sampled_from
from torch import nn
from torch.export import Dim, export, save

import capalloc
from capalloc._derivatives.tape import tap_model
from capalloc._graph.capture import capture
from capalloc._model import graph_shapes
from capalloc._model.archive import load_program
from capalloc._model.exported import SavedModel
from capalloc._model.problem import prepare
from capalloc._model.stored_structure import Returned
from capalloc.solvers import Block
from zoo import NormedResidual, gaussian, seeded_module

SHAPES = {"static": None, "dynamic": {"x": {0: Dim("batch", max=64)}}, "automatic": {"x": {0: Dim.DYNAMIC}}}


class Net(nn.Module):
    """Batch norm, dropout, an in-place activation, a child named "model", tied weights, a dictionary of outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.model = nn.Conv2d(1, 3, 3, padding=1)
        self.norm = nn.BatchNorm2d(3)
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.drop = nn.Dropout()
        self.first, self.second, self.third = nn.Linear(27, 3), nn.Linear(3, 3), nn.Linear(3, 3)
        self.third.weight = self.second.weight
        nn.init.normal_(self.norm.running_mean)
        nn.init.uniform_(self.norm.running_var, 0.5, 2.0)

    def forward(self, x):
        h = self.norm(self.model(x)).relu_()
        h = h + self.conv(h).relu()
        hidden = self.first(self.drop(nn.functional.max_pool2d(h, 2)).flatten(1))
        return {"logits": self.third(torch.relu(self.second(hidden))), "hidden": hidden}


CHOICES = {
    "leaf": lambda returned: returned["hidden"],
    "other leaf": lambda returned: returned["logits"],
    "computed": lambda returned: 2 * returned["logits"][:, :2],
}

#: Every form of a program and every choice of its outputs, once or more.
PAIRS = [("static", "leaf"), ("static", "computed"), ("dynamic", "other leaf"), ("automatic", "computed")]


@pytest.fixture(scope="module")
def net():
    return seeded_module(Net).eval()


@pytest.fixture(scope="module")
def images():
    return gaussian(5, 1, 6, 6)


@pytest.fixture(scope="module", params=SHAPES)
def program(request, net, images):
    return export(net, (images[:3],), dynamic_shapes=SHAPES[request.param], strict=False)


def file_of(program: torch.export.ExportedProgram, folder: Path) -> Path:
    path = folder / "net.pt2"
    save(program, path)
    return path


@pytest.fixture(scope="module")
def forms(program, tmp_path_factory) -> list[object]:
    """A program in memory, in a file, and lowered."""
    return [program, str(file_of(program, tmp_path_factory.mktemp("forms"))), program.run_decompositions({})]


def assert_same(a: capalloc.Allocation, b: capalloc.Allocation) -> None:
    np.testing.assert_allclose(a.capacity, b.capacity, atol=1e-10)
    assert list(a.by_parameter.parameter.values) == list(b.by_parameter.parameter.values)
    np.testing.assert_allclose(a.by_parameter, b.by_parameter, atol=1e-10)
    assert a.bias == pytest.approx(b.bias, abs=1e-10)
    assert a.attrs["num_params"] == b.attrs["num_params"]


@pytest.mark.parametrize(("program", "choice"), PAIRS, indirect=["program"])
def test_propagate_gives_what_the_live_model_gives(net, images, program, choice, forms):
    live = capalloc.propagate(net, images, CHOICES[choice], solver="markov")
    for form in forms:
        assert_same(capalloc.propagate(form, images, CHOICES[choice], solver="markov"), live)


@pytest.mark.parametrize(("program", "choice"), PAIRS, indirect=["program"])
def test_measure_gives_what_the_live_model_gives(net, images, program, choice, forms):
    live = capalloc.measure(net, images, CHOICES[choice], ridge=1e-3)
    for form in forms[1:]:
        assert_same(capalloc.measure(form, images, CHOICES[choice], ridge=1e-3), live)


def test_walk_and_layers_give_what_the_live_model_gives(net, images, program, tmp_path):
    path, choose = file_of(program, tmp_path), CHOICES["other leaf"]
    live, saved = (capalloc.walk(model, images, choose) for model in (net, path))
    np.testing.assert_allclose(saved.inputs, live.inputs, atol=1e-10)
    for name in ("model", "norm", "conv", "first", "second"):
        np.testing.assert_allclose(saved.layers[name], live.layers[name], atol=1e-10)


class Empty(nn.Module):
    """A layer, and a buffer that holds nothing."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 2)
        self.register_buffer("nothing", torch.zeros(0, 2))

    def forward(self, x):
        return self.layer(x).relu() + self.nothing.sum(0)


def test_tensors_of_no_number_are_read(tmp_path):
    model, x = seeded_module(Empty), gaussian(4, 3)
    assert capalloc.measure(file_of(export(model, (x,)), tmp_path), x).total == capalloc.measure(model, x).total


def test_receptive_field_gives_what_the_live_model_gives(tmp_path):
    model = seeded_module(nn.Sequential, nn.Conv1d(1, 2, 3), nn.ReLU(), nn.Conv1d(2, 1, 3, stride=2))
    x = gaussian(4, 1, 20)
    live = capalloc.receptive_field(model, x)
    for shapes in (None, ({0: Dim("batch")},)):
        path = file_of(export(model.eval(), (x[:2],), dynamic_shapes=shapes), tmp_path)
        saved = capalloc.receptive_field(path, x)
        assert saved.sizes == live.sizes
        np.testing.assert_allclose(saved.map, live.map, atol=1e-10)


@pytest.mark.parametrize("solver", [Block(4), "hessian"], ids=["block", "hessian"])
def test_other_solvers(solver, tmp_path):
    model, x = seeded_module(NormedResidual).eval(), gaussian(3, 1, 12)
    path = file_of(export(model, (x,)), tmp_path)
    live, saved = (capalloc.propagate(m, x, solver=solver) for m in (model, path))
    np.testing.assert_allclose(saved.capacity, live.capacity, rtol=1e-6)  # blocks go another way, and are float32


def test_decoupling_of_a_program_with_a_free_batch_axis(net, images, tmp_path):
    path = file_of(export(net, (images,), dynamic_shapes=SHAPES["dynamic"]), tmp_path)
    live, saved = (capalloc.decoupling(model, images, CHOICES["other leaf"]) for model in (net, path))
    np.testing.assert_allclose(saved.data.decoupling, live.data.decoupling, atol=1e-10)
    fixed = export(net, (images,))
    with pytest.raises(ValueError, match=r"exported for exactly 5 examples.*dynamic_shapes"):
        capalloc.decoupling(fixed, images, CHOICES["other leaf"])


def test_measure_knows_the_affine_layers_of_a_program(tmp_path):
    """No parameter is differentiated by plain autograd."""
    layers = [nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.LayerNorm(64), nn.Linear(64, 3)]
    model, x = seeded_module(nn.Sequential, *layers).eval(), gaussian(4, 1, 6, 6)
    program = export(model, (x,))
    for form in (model, program, program.run_decompositions({})):
        assert tap_model(prepare(form, x)).opaque == ()
    live, saved = (capalloc.measure(form, x, ridge=1e-3) for form in (model, program))
    assert live.attrs["differentiation"] == saved.attrs["differentiation"] != "loop"
    assert_same(saved, live)


def test_parameters_can_be_chosen_by_name(net, images, program):
    live, saved = (
        capalloc.propagate(m, images, CHOICES["leaf"], params=["model.weight"], solver="markov") for m in (net, program)
    )
    assert_same(saved, live)


def test_a_fixed_batch_size_is_the_size_of_every_chunk(net, images):
    program = export(net, (images[:3],))
    problem = prepare(program, images, CHOICES["leaf"])
    assert capture(problem, 64).batch_size == 3
    with torch.no_grad():
        for number in (1, 2, 3, 5):
            torch.testing.assert_close(problem(images[:number]), net(images[:number])["hidden"])


def test_a_program_is_not_exported_again(net, images, program, monkeypatch):
    def fail(*_, **__):
        raise AssertionError("exported")

    monkeypatch.setattr(torch.export, "export", fail)
    capalloc.propagate(program, images, CHOICES["leaf"], solver="markov")


def test_a_graph_in_known_operators_is_not_decomposed_again(monkeypatch):
    model, x = seeded_module(nn.Sequential, nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).eval(), gaussian(3, 3)
    program = export(model, (x,)).run_decompositions({})
    live = capalloc.propagate(model, x, solver="markov")
    monkeypatch.setattr(torch.export.ExportedProgram, "run_decompositions", None)
    assert_same(capalloc.propagate(program, x, solver="markov"), live)
    assert_same(capalloc.propagate(model, x, solver="markov"), live)


def test_the_program_is_left_as_it_was(net, images):
    program = export(net, (images,))
    code, state = str(program), {k: v.clone() for k, v in program.state_dict.items()}
    capalloc.propagate(program, images, CHOICES["computed"], solver="markov")
    capalloc.measure(program, images, CHOICES["leaf"], ridge=1e-3)
    assert str(program) == code
    assert all(torch.equal(program.state_dict[k], v) for k, v in state.items())
    assert all(p.requires_grad and p.grad is None for p in program.parameters())


def test_transformers_programs(tmp_path):
    transformers = pytest.importorskip("transformers")
    size = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    config = transformers.ViTConfig(**size, image_size=8, patch_size=4, num_channels=1)
    model = seeded_module(transformers.ViTForImageClassification, config).eval()
    x = gaussian(3, 1, 8, 8)
    path = file_of(export(model, (x,), strict=False), tmp_path)
    assert_same(capalloc.propagate(path, x, solver="markov"), capalloc.propagate(model, x, solver="markov"))


# -- what is refused ----------------------------------------------------------------------------------------


def test_what_a_model_can_be():
    with pytest.raises(TypeError, match=r"an exported program or the path of a \.pt2 file, got int"):
        capalloc.propagate(3, gaussian(2, 3), solver="markov")


class Recurrent(nn.Module):
    """The last output of recurrent layers, and their last state."""

    def __init__(self, kind: str, **options: object) -> None:
        super().__init__()
        self.net = getattr(nn, kind)(3, 4, batch_first=True, **options)

    def forward(self, x):
        found, state = self.net(x)
        return {"found": found.sum(1), "state": (state[0] if isinstance(state, tuple) else state).transpose(0, 1)}


def sizes_of(graph: torch.fx.Graph) -> dict[str, list[list[int]]]:
    """Sizes and strides of what nodes hold, by name, free ones as numbers."""

    def numbers(value: object) -> list[list[int]]:
        tensors = [v for v in torch.utils._pytree.tree_leaves(value) if isinstance(v, torch.Tensor)]
        sizes = [[*v.shape, *v.stride()] for v in tensors]
        return [[n.node.hint if isinstance(n, torch.SymInt) else n for n in row] for row in sizes]

    return {node.name: found for node in graph.nodes if (found := numbers(node.meta.get("val")))}


@pytest.mark.parametrize(
    ("kind", "options"),
    [("GRU", {}), ("LSTM", {"proj_size": 2, "bidirectional": True}), ("RNN", {"nonlinearity": "relu"})],
)
def test_recurrent_layers_are_not_run_step_by_step(kind, options, tmp_path):
    """Their sizes are those that torch finds by every step: hundreds of them took ten seconds."""
    x = gaussian(4, 2, 3).float()
    program = export(Recurrent(kind, **options).eval(), (x,), dynamic_shapes={"x": {0: Dim("batch", max=64)}})
    save(program, tmp_path / "model.pt2")
    with mock.patch.object(graph_shapes, "_recurrent", wraps=graph_shapes._recurrent) as at_once:
        read = load_program(tmp_path / "model.pt2")
    assert at_once.call_count == 1
    expected, found = sizes_of(program.graph), sizes_of(read.graph)
    assert len(expected) > 5
    assert {name: found[name] for name in expected} == expected
    answers = [capalloc.propagate(one, x, "found", solver="markov") for one in (read, program)]
    assert_same(*answers)


class Pair(nn.Module):
    """Two inputs, or token ids and a mask."""

    def __init__(self, table: nn.Module) -> None:
        super().__init__()
        self.table, self.other, self.head = table, nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x, y):
        return self.head(torch.relu(self.table(x) + self.other(y)))


class Masked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.inner, self.head = nn.Embedding(7, 3, padding_idx=0), nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, ids, mask):
        return self.head((torch.relu(self.inner(self.table(ids))) * mask[..., None]).sum(1))


SEVERAL = {
    "two": (lambda: Pair(nn.Linear(2, 4)), {"x": gaussian(12, 2), "y": gaussian(12, 3)}),
    "tokens": (
        lambda: Masked(),
        {"ids": torch.randint(7, (12, 5), generator=torch.Generator().manual_seed(0)), "mask": torch.ones(12, 5)},
    ),
}


@pytest.mark.parametrize("name", SEVERAL)
@pytest.mark.parametrize("how", ["in order", "by name", "fixed", "saved"])
def test_programs_of_several_inputs_give_what_the_model_gives(name: str, how: str, tmp_path: Path) -> None:
    make, given = SEVERAL[name]
    model = seeded_module(make)
    given = {key: value.double() if value.is_floating_point() else value for key, value in given.items()}
    some = {key: value[:5] for key, value in given.items()}  # twelve are chunks of five, five and two
    args, kwargs = ((), some) if how == "by name" else (tuple(some.values()), None)
    program = export(model, args, kwargs, dynamic_shapes=None if how == "fixed" else {k: {0: Dim.AUTO} for k in given})
    if how == "saved":
        save(program, tmp_path / "model.pt2")
    found = tmp_path / "model.pt2" if how == "saved" else program
    for method in (capalloc.measure, partial(capalloc.propagate, solver="markov")):
        expected = method(model, given)
        for inputs in (given, tuple(given.values())):
            allocation = method(found, inputs)
            np.testing.assert_allclose(allocation.capacity, expected.capacity, atol=1e-6)
            assert allocation.capacity.coords.equals(expected.capacity.coords)
        np.testing.assert_allclose(allocation.by_parameter, expected.by_parameter, atol=1e-6)


@pytest.mark.parametrize("name", SEVERAL)
@pytest.mark.parametrize("how", ["fixed", "saved"])
def test_layers_of_programs_of_several_inputs_have_the_models_names(name: str, how: str, tmp_path: Path) -> None:
    make, given = SEVERAL[name]
    model = seeded_module(make).float()
    given = {key: value.float() if value.is_floating_point() else value for key, value in given.items()}
    free = None if how == "fixed" else {k: {0: Dim.AUTO} for k in given}
    program = export(model, tuple(v[:3] for v in given.values()), dynamic_shapes=free)
    if how == "saved":
        save(program, tmp_path / "model.pt2")
        program = tmp_path / "model.pt2"
    expected, found = (capalloc.propagate(m, given, layers=True) for m in (model, program))
    assert expected.layers
    assert set(found.layers) == set(expected.layers)
    for path, layer in expected.layers.items():
        np.testing.assert_allclose(found.layers[path], layer, rtol=1e-5)
    for path, laws in capalloc.walk(model, given).layers.items():
        np.testing.assert_allclose(capalloc.walk(program, given).layers[path], laws, rtol=1e-5)


def test_a_program_of_one_input_takes_it_by_name_and_token_ids(tmp_path: Path) -> None:
    model = seeded_module(lambda: nn.Sequential(nn.Embedding(5, 3), nn.Flatten(), nn.Linear(6, 2)))
    ids = torch.randint(5, (9, 2), generator=torch.Generator().manual_seed(0))
    save(export(model, (ids,), dynamic_shapes=({0: Dim.AUTO},)), tmp_path / "model.pt2")
    expected = capalloc.measure(model, ids)
    for inputs in (ids, {"input": ids}):
        np.testing.assert_allclose(capalloc.measure(tmp_path / "model.pt2", inputs).capacity, expected.capacity)


def test_inputs_that_a_program_does_not_take_are_refused() -> None:
    program = export(seeded_module(lambda: Pair(nn.Linear(2, 4))), (gaussian(2, 2), gaussian(2, 3)))
    with pytest.raises(ValueError, match=r"the program takes x, y, and was given x$"):
        capalloc.measure(program, gaussian(2, 2))
    with pytest.raises(ValueError, match="the program takes x, y, and was given x, y, z"):
        capalloc.measure(program, {"x": gaussian(2, 2), "y": gaussian(2, 3), "z": gaussian(2, 1)})
    with pytest.raises(ValueError, match=r"the program was exported for inputs y of shape \(2, 3\), got \(2, 4\)"):
        capalloc.measure(program, (gaussian(2, 2), gaussian(2, 4)))


def test_inputs_that_are_no_tensors_are_refused() -> None:
    class Scaled(nn.Linear):
        def forward(self, x, scale):
            return super().forward(x) * scale

    program = export(seeded_module(lambda: Scaled(3, 2)), (gaussian(2, 3), 2.0))
    with pytest.raises(ValueError, match=r"the program takes 2 inputs \(x, scale\), not all of them tensors"):
        capalloc.measure(program, gaussian(2, 3))


def test_an_input_without_axes_is_refused():
    class Scalar(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(3))

        def forward(self, x):
            return x * self.weight

    with pytest.raises(ValueError, match="the program's input has no examples axis"):
        capalloc.propagate(export(Scalar(), (torch.tensor(1.0),)), gaussian(2, 3), solver="markov")


class Trained(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.linear, self.layer = nn.Linear(3, 3), layer

    def forward(self, x):
        return self.layer(self.linear(x))


@pytest.mark.parametrize("layer", [nn.Dropout(), nn.AlphaDropout(), nn.BatchNorm1d(3), nn.RReLU()])
def test_a_program_of_a_model_in_training_is_refused(layer):
    x = gaussian(4, 3).float()
    model = Trained(layer)
    with pytest.raises(ValueError, match=r"exported in training mode .* export it again after model.eval\(\)"):
        capalloc.measure(export(model, (x,)), x)
    capalloc.measure(export(model.eval(), (x,)), x, ridge=1.0)


def test_attention_with_dropout_is_refused():
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 4)

        def forward(self, x):
            h = self.linear(x)
            return nn.functional.scaled_dot_product_attention(h, h, h, dropout_p=0.1)

    x = gaussian(2, 3, 4).float()
    with pytest.raises(ValueError, match="exported in training mode"):
        capalloc.measure(export(Attention(), (x,)), x)


def test_inputs_of_another_shape_are_refused(program):
    with pytest.raises(ValueError, match=r"exported for inputs of shape \((any|3), 1, 6, 6\), got \(1, 1, 7, 6\)"):
        capalloc.propagate(program, gaussian(2, 1, 7, 6), solver="markov")


def test_files_that_are_none(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no file"):
        capalloc.propagate(tmp_path / "none.pt2", gaussian(2, 3), solver="markov")
    with pytest.raises(ValueError, match=r"is not a .pt2 file; write one with torch.export.save"):
        capalloc.propagate(str(tmp_path / "weights.pt"), gaussian(2, 3), solver="markov")
    noise = tmp_path / "noise.pt2"
    noise.write_bytes(b"noise" * 100)
    with pytest.raises(ValueError, match=r"is damaged, or not written by torch.export.save"):
        capalloc.propagate(noise, gaussian(2, 3), solver="markov")


WEIGHTS = "data/weights/model_weights_config.json"


class Evil:
    """Unpickling it leaves a mark."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


@pytest.fixture(scope="module")
def plain_parts(tmp_path_factory):
    """A small program's file, as the bytes of its parts."""
    model = nn.Sequential(nn.Linear(3, 2), nn.ReLU())
    path = tmp_path_factory.mktemp("plain")
    path = file_of(export(model, (torch.randn(3, 3),), dynamic_shapes=({0: Dim("batch", max=99)},)), path)
    with zipfile.ZipFile(path) as archive:
        return {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}


@pytest.fixture
def plain(plain_parts):
    return dict(plain_parts)


@pytest.fixture(scope="module")
def small(plain_parts, tmp_path_factory):
    """A path, the bytes of that file, and what is read from them."""
    path, content = tmp_path_factory.mktemp("small") / "small.pt2", archive_of(plain_parts)
    return path, content, loaded(path, content)


def rewritten(parts: dict[str, bytes], folder: Path) -> Path:
    path = folder / "changed.pt2"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, content in parts.items():
            archive.writestr(f"changed/{name}", content)
    return path


def with_model(parts: dict[str, bytes], change) -> dict[str, bytes]:
    document = json.loads(parts["models/model.json"])
    change(document)
    return parts | {"models/model.json": json.dumps(document).encode()}


def test_an_archive_written_again_is_read(plain, tmp_path):
    assert load_program(rewritten(plain, tmp_path)).graph_signature.user_inputs == ("input",)


def test_parts_that_are_not_needed_are_not_opened(plain, tmp_path):
    mark = tmp_path / "mark"
    buffer = io.BytesIO()
    torch.save(((Evil(mark),), {}), buffer)
    others = dict.fromkeys(("data/sample_inputs/model.pt", "data/weights/model.pt"), buffer.getvalue())
    load_program(rewritten(plain | others | {"data/aotinductor/model/x.so": b"no library"}, tmp_path))
    assert not mark.exists()


def test_pickled_weights_and_constants_are_not_run(plain, tmp_path):
    mark = tmp_path / "mark"
    buffer = io.BytesIO()
    torch.save(Evil(mark), buffer)
    config = json.loads(plain["data/weights/model_weights_config.json"])
    next(iter(config["config"].values()))["use_pickle"] = True
    changed = {"data/weights/model_weights_config.json": json.dumps(config).encode()}
    with pytest.raises(ValueError, match="holds a pickle, weight_0, which is not read; if you trust the file"):
        load_program(rewritten(plain | changed | {"data/weights/weight_0": buffer.getvalue()}, tmp_path))
    payload = {"path_name": "opaque_obj_0", "is_param": False, "use_pickle": False, "tensor_meta": None}
    changed = {"data/constants/model_constants_config.json": json.dumps({"config": {"c": payload}}).encode()}
    changed["data/constants/opaque_obj_0"] = pickle.dumps(Evil(mark))
    with pytest.raises(ValueError, match="holds a pickle, opaque_obj_0"):
        load_program(rewritten(plain | changed, tmp_path))
    assert not mark.exists()


def test_doubled_and_overlapping_parts_are_refused(plain, tmp_path):
    path = rewritten(plain, tmp_path)
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate name"):
        archive.writestr("changed/byteorder", b"big")
    with pytest.raises(ValueError, match="two parts have one name"):
        load_program(path)
    path = rewritten(plain | {"byteorder": bytes(200_000)}, tmp_path)
    with zipfile.ZipFile(path, "a") as archive:  # one more entry of the directory for the same bytes
        twin = copy.copy(archive.getinfo("changed/byteorder"))
        twin.filename = "changed/second"
        archive.filelist.append(twin)
        archive._didModify = True
    with pytest.raises(ValueError, match="parts of it overlap"):
        load_program(path)


def nodes(document):
    return document["graph_module"]["graph"]["nodes"]


def with_size(text):
    """Change a size of the input to an expression."""
    return lambda d: d["graph_module"]["graph"]["tensor_values"]["input"]["sizes"][0]["as_expr"].update(expr_str=text)


def with_target(target):
    """Let the first node call something else."""
    return lambda d: nodes(d)[0].update(target=target)


def with_structure(key, stored):
    """Change the nesting of inputs or outputs."""
    return lambda d: d["graph_module"]["module_call_graph"][0]["signature"].update({key: json.dumps([1, stored])})


LEAF = {"type": None, "context": None, "children_spec": []}
FACTORY = {"default_factory_module": "antigravity", "default_factory_name": "fly", "dict_context": ["a"]}
#: Texts that torch evaluates or imports: none is looked at but to tell whether two sizes are one.
IGNORED = {
    "a line that torch joins": with_size("Symbol('s31\\\n')"),
    "code": with_size("__import__('os').system('true')"),
    "high powers": with_size("9**9**9**9"),
    "a long maximum": with_size("Max(" + ", ".join(f"Symbol('s{k}')" for k in range(600)) + ")"),
    "bytes": with_size("b'bytes'"),
    "guards": lambda d: d.update(guards_code=["__import__('os').system('true')"]),
    "other sizes": lambda d: d["graph_module"]["graph"]["tensor_values"]["relu"].update(sizes="__import__('os')"),
    "a factory": with_structure(
        "out_spec",
        {"type": "collections.defaultdict", "context": json.dumps(FACTORY), "children_spec": [LEAF]},
    ),
    "an enumeration": with_structure(
        "out_spec",
        {"type": "m.E", "context": json.dumps({"__enum__": True, "fqn": "antigravity:x", "name": "y"})}
        | {"children_spec": [LEAF]},
    ),
}
REFUSED = {
    "holds a call of 'torch.ops.aten._reshape_alias.default'": with_target("torch.ops.aten._reshape_alias.default"),
    "holds a call of 'torch.os.system'": with_target("torch.os.system"),
    "holds a call of 'torch.hub.load'": with_target("torch.hub.load"),
    "holds a call of '_operator.pow'": with_target("_operator.pow"),
    "holds a call of 'torch.ops.aten.from_file.default'": with_target("torch.ops.aten.from_file.default"),
    "holds a call of .* an operator that this torch lacks": with_target("torch.ops.aten.nothing.default"),
    r"is damaged.* 'x\): import os #' is no name": lambda d: d["graph_module"]["signature"]["input_specs"].append(
        {"user_input": {"arg": {"as_tensor": {"name": "x): import os #"}}}}
    ),
    "is damaged.* 'lambda' is no name": lambda d: nodes(d)[0]["outputs"][0]["as_tensor"].update(name="lambda"),
    "is damaged.* a part of it has another form": lambda d: d["graph_module"].update(graph=[]),
    "is damaged.* no 'nothing' in it": lambda d: nodes(d)[0]["inputs"][0]["arg"]["as_tensor"].update(name="nothing"),
    "two values are called 'linear'": lambda d: nodes(d).append(nodes(d)[0]),
    "an argument of the kind 'as_custom_obj'": lambda d: nodes(d)[0]["inputs"][0].update(arg={"as_custom_obj": {}}),
    "lacks its argument input": lambda d: nodes(d)[0]["inputs"].pop(0),
    "has no argument 'more'": lambda d: nodes(d)[0]["inputs"].append({"name": "more", "arg": {"as_int": 1}}),
    "is no integer of 64 bits": lambda d: nodes(d)[0]["inputs"][0].update(arg={"as_int": 2**70}),
    "is neither true nor false": lambda d: nodes(d)[0]["inputs"][0].update(arg={"as_bool": 3}),
    "'7.0' is no number": lambda d: nodes(d)[0]["inputs"][0].update(arg={"as_float": "7.0"}),
    "is no word": lambda d: nodes(d)[0]["inputs"][0].update(arg={"as_string": "\x1b[31m"}),
    "a sparse tensor is not read": lambda d: nodes(d)[0]["inputs"][0].update(arg={"as_layout": 1}),
    "an input that is no tensor": lambda d: d["graph_module"]["graph"]["inputs"].append({"as_none": True}),
    "an input of the kind 'custom_obj'": lambda d: d["graph_module"]["signature"]["input_specs"].append(
        {"custom_obj": {}}
    ),
    "an output of the kind 'loss_output'": lambda d: d["graph_module"]["signature"]["output_specs"].append(
        {"loss_output": {}}
    ),
    "its inputs are not those of its graph": lambda d: d["graph_module"]["signature"]["input_specs"].reverse(),
    "is no name of a parameter": lambda d: d["graph_module"]["signature"]["input_specs"][0]["parameter"].update(
        parameter_name="0..weight"
    ),
    "its form is 99": lambda d: d["schema_version"].update(major=99),
    "a nesting of the form 2": lambda d: d["graph_module"]["module_call_graph"][0]["signature"].update(
        in_spec=json.dumps([2, LEAF])
    ),
    "what it takes and returns is not what its graph does": with_structure(
        "out_spec", {"type": "builtins.list", "context": "null", "children_spec": [LEAF, LEAF]}
    ),
}


@pytest.mark.parametrize("what", IGNORED)
def test_texts_that_torch_evaluates_or_imports_do_nothing(plain, tmp_path, what):
    path = rewritten(with_model(plain, IGNORED[what]), tmp_path)
    x = torch.randn(40, 3)
    assert capalloc.measure(path, x, outputs=only_leaf).total == pytest.approx(
        capalloc.measure(rewritten(plain, tmp_path), x).total
    )
    assert "antigravity" not in sys.modules


def only_leaf(returned):
    return returned if isinstance(returned, torch.Tensor) else returned[0]


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_no_model_is_refused(plain, tmp_path, what):
    with pytest.raises(ValueError, match=what):
        load_program(rewritten(with_model(plain, REFUSED[what]), tmp_path))


def test_sizes_beyond_any_memory_are_refused(plain, tmp_path):
    def huge(document):
        size = [{"name": "size", "arg": {"as_ints": [2**22, 2**22]}, "kind": 1}]
        made = {"target": "torch.ops.aten.zeros.default", "inputs": size, "outputs": [{"as_tensor": {"name": "more"}}]}
        nodes(document).append(made)

    with pytest.raises(ValueError, match="more is beyond any memory"):
        load_program(rewritten(with_model(plain, huge), tmp_path))


def test_sizes_that_take_long_to_work_out_are_refused(plain, tmp_path):
    """(n - 2)^2, squared again and again: 1 at the size it was exported with, and without end at any other."""

    def call(target, name, *args):
        inputs = [{"name": "", "arg": {"as_sym_int": arg}, "kind": 1} for arg in args]
        return {"target": target, "inputs": inputs, "outputs": [{"as_sym_int": {"as_name": name}}]}

    def steep(document):
        taken = [("self", {"as_tensor": {"name": "input"}}), ("dim", {"as_int": 0})]
        inputs = [{"name": name, "arg": arg, "kind": 1} for name, arg in taken]
        named = {"outputs": [{"as_sym_int": {"as_name": "n"}}]}
        nodes(document).append({"target": "torch.ops.aten.sym_size.int", "inputs": inputs} | named)
        nodes(document).append(call("_operator.sub", "n0", {"as_name": "n"}, {"as_int": 2}))
        for k in range(40):
            nodes(document).append(call("_operator.mul", f"n{k + 1}", {"as_name": f"n{k}"}, {"as_name": f"n{k}"}))

    with pytest.raises(ValueError, match="the sizes of n4 are too long to work out"):
        load_program(rewritten(with_model(plain, steep), tmp_path))


def test_numbers_beyond_sizes_are_refused_as_the_program_runs():
    class Steep(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(3, 3)

        def forward(self, x):
            n = x.shape[0] - 2
            for _ in range(6):
                n = n * n
            return self.linear(x) * n

    program = export(Steep().eval(), (torch.randn(3, 3),), dynamic_shapes=({0: Dim.DYNAMIC},))
    with pytest.raises(ValueError, match="computes a size beyond 64 bits in mul"):
        SavedModel(program)(torch.randn(9, 3))


def test_a_name_of_torchs_own_is_no_part_of_a_graph(tmp_path):
    class Gated(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(3, 3)

        def forward(self, x):
            with torch.no_grad():
                gate = self.linear(x).sigmoid()
            return gate * self.linear(x)

    path = file_of(export(Gated().eval(), (torch.randn(2, 3),)), tmp_path)
    with zipfile.ZipFile(path) as archive:
        parts = {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}
    load_program(rewritten(parts, tmp_path))
    renamed = {"models/model.json": parts["models/model.json"].replace(b'"submod_1"', b'"forward"')}
    with pytest.raises(ValueError, match="'forward' is no name of a part of the graph"):
        load_program(rewritten(parts | renamed, tmp_path))


def test_a_layer_may_be_called_as_it_likes(tmp_path):
    model = nn.Sequential(OrderedDict(shape=nn.Linear(3, 4), program=nn.ReLU(), dtype=nn.Linear(4, 2))).eval()
    x = torch.randn(20, 3)
    saved = capalloc.measure(file_of(export(model, (x,)), tmp_path), x)
    assert saved.total == pytest.approx(capalloc.measure(model, x).total)


def test_what_is_returned_by_names_is_found_by_names():
    returned = Returned(logits=1, hidden=2)
    assert (returned.logits, returned["hidden"], returned[0]) == (1, 2, 1)
    with pytest.raises(AttributeError, match="the program returns logits, hidden, and no loss"):
        assert returned.loss


@settings(max_examples=40, deadline=None)
@given(data())
def test_a_file_with_any_byte_changed_is_refused_or_the_same(small, draw):
    path, content, code = small
    place = draw.draw(integers(0, len(content) - 1))
    changed = bytearray(content)
    changed[place] ^= 1 << draw.draw(integers(0, 7))
    assert loaded(path, bytes(changed)) in (None, code)


JSON = recursive(
    none() | booleans() | integers(-(2**70), 2**70) | floats() | sampled_from(["", "input", "relu", "as_int", "a.b"]),
    lambda inner: (
        lists(inner, max_size=3)
        | dictionaries(sampled_from(["as_int", "as_tensor", "as_ints", "name", "as_sym_int"]), inner, max_size=2)
    ),
    max_leaves=4,
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data())
def test_any_value_in_the_place_of_another_is_read_or_refused(small, plain_parts, draw):
    document = json.loads(plain_parts["models/model.json"])
    place = draw.draw(sampled_from([path for path in places(document) if path]))
    owner = document
    for key in place[:-1]:
        owner = owner[key]
    owner[place[-1]] = draw.draw(JSON)
    loaded(small[0], archive_of(plain_parts | {"models/model.json": json.dumps(document).encode()}))


def places(tree, path=()):
    """Every place in a document, but of what is free text."""
    yield path
    for key, part in tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ():
        if key != "metadata":
            yield from places(part, (*path, key))


def archive_of(parts):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in parts.items():
            archive.writestr(f"small/{name}", content)
    return buffer.getvalue()


def loaded(path, content):
    """The program's graph and weights as text; None where it is refused."""
    path.write_bytes(content)
    try:
        program = load_program(path)
    except ValueError:
        return None
    return f"{program.graph} {[p.tolist() for p in program.state_dict.values()]}"


def test_a_tensor_is_no_larger_than_its_part_of_the_file(plain, tmp_path):
    config = json.loads(plain[WEIGHTS])
    for key, value in (("sizes", [{"as_int": 6 * 10**8}, {"as_int": 1}]), ("strides", [{"as_int": -3}, {"as_int": 1}])):
        changed = copy.deepcopy(config)
        changed["config"]["0.weight"]["tensor_meta"][key] = value
        with pytest.raises(ValueError, match=r"is damaged.*0.weight is larger than its part of the file"):
            load_program(rewritten(plain | {WEIGHTS: json.dumps(changed).encode()}, tmp_path))


def test_a_bit_that_turned_is_refused(plain, tmp_path):
    path = rewritten(plain, tmp_path)
    data = bytearray(path.read_bytes())
    data[data.index(plain["data/weights/weight_0"]) + 3] ^= 128
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"is damaged, .* the checksum of changed/data/weights/weight_0 differs"):
        load_program(path)


def test_a_compressed_file_is_not_read(plain, tmp_path):
    path = tmp_path / "packed.pt2"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in plain.items():
            archive.writestr(f"packed/{name}", content)
    with pytest.raises(ValueError, match="it is compressed, which torch"):
        load_program(path)


def test_a_damaged_file_says_so(plain, tmp_path):
    with pytest.raises(ValueError, match="is damaged"):
        load_program(rewritten(plain | {"models/model.json": b"{"}, tmp_path))
    without = {name: content for name, content in plain.items() if name != "models/model.json"}
    with pytest.raises(ValueError, match=r"is damaged.*no 'models/model.json' in it"):
        load_program(rewritten(without, tmp_path))
    with pytest.raises(ValueError, match="is damaged, or of another version of torch"):
        load_program(rewritten(with_model(plain, lambda d: d.pop("schema_version")), tmp_path))
    truncated = tmp_path / "short.pt2"
    truncated.write_bytes(rewritten(plain, tmp_path).read_bytes()[:700])
    with pytest.raises(ValueError, match=r"is damaged, or not written by torch\.export\.save"):
        load_program(truncated)
