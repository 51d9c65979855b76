"""Exported programs and .pt2 files give what the live model gives, and nothing in a file is run."""

from __future__ import annotations

import copy
import io
import json
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.export import Dim, export, save

import capalloc
from capalloc._derivatives.tape import tap_model
from capalloc._graph.capture import capture
from capalloc._model.archive import load_program
from capalloc._model.problem import prepare
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


def forms(program: torch.export.ExportedProgram, folder: Path) -> list[object]:
    """A program in memory, in a file, and lowered."""
    path = file_of(program, folder)
    return [program, path, str(path), program.run_decompositions({})]


def assert_same(a: capalloc.Allocation, b: capalloc.Allocation) -> None:
    np.testing.assert_allclose(a.capacity, b.capacity, atol=1e-10)
    assert list(a.by_parameter.parameter.values) == list(b.by_parameter.parameter.values)
    np.testing.assert_allclose(a.by_parameter, b.by_parameter, atol=1e-10)
    assert a.bias == pytest.approx(b.bias, abs=1e-10)
    assert a.attrs["num_params"] == b.attrs["num_params"]


@pytest.mark.parametrize("choice", CHOICES)
def test_propagate_gives_what_the_live_model_gives(net, images, program, choice, tmp_path):
    live = capalloc.propagate(net, images, CHOICES[choice], solver="markov")
    for form in forms(program, tmp_path):
        assert_same(capalloc.propagate(form, images, CHOICES[choice], solver="markov"), live)


@pytest.mark.parametrize("choice", CHOICES)
def test_measure_gives_what_the_live_model_gives(net, images, program, choice, tmp_path):
    live = capalloc.measure(net, images, CHOICES[choice], ridge=1e-3)
    for form in forms(program, tmp_path)[1:]:
        assert_same(capalloc.measure(form, images, CHOICES[choice], ridge=1e-3), live)


def test_walk_and_layers_give_what_the_live_model_gives(net, images, program, tmp_path):
    path, choose = file_of(program, tmp_path), CHOICES["other leaf"]
    live, saved = (capalloc.walk(model, images, choose) for model in (net, path))
    np.testing.assert_allclose(saved.inputs, live.inputs, atol=1e-10)
    for name in ("model", "norm", "conv", "first", "second"):
        np.testing.assert_allclose(saved.layers[name], live.layers[name], atol=1e-10)


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
    np.testing.assert_allclose(saved.capacity, live.capacity, atol=1e-8)


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


def test_two_inputs_are_refused():
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(3, 2).double()

        def forward(self, x, y):
            return self.linear(x + y)

    program = export(Two(), (gaussian(2, 3), gaussian(2, 3)))
    with pytest.raises(ValueError, match=r"the program takes 2 inputs \(x, y\)"):
        capalloc.propagate(program, gaussian(2, 3), solver="markov")


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


@pytest.fixture
def plain(tmp_path):
    """A small program's file, as the bytes of its parts."""
    model = nn.Sequential(nn.Linear(3, 2), nn.ReLU())
    path = file_of(export(model, (torch.randn(2, 3),), dynamic_shapes=({0: Dim("batch", max=9)},)), tmp_path)
    with zipfile.ZipFile(path) as archive:
        return {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}


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


def test_a_pickle_among_sample_inputs_is_not_run(plain, tmp_path):
    mark = tmp_path / "mark"
    buffer = io.BytesIO()
    torch.save(((Evil(mark),), {}), buffer)
    with pytest.raises(ValueError, match=r"holds a pickle of more than tensors.*torch\.export\.load"):
        load_program(rewritten(plain | {"data/sample_inputs/model.pt": buffer.getvalue()}, tmp_path))
    assert not mark.exists()


def test_pickled_weights_and_constants_are_not_run(plain, tmp_path):
    mark = tmp_path / "mark"
    buffer = io.BytesIO()
    torch.save(Evil(mark), buffer)
    config = json.loads(plain["data/weights/model_weights_config.json"])
    next(iter(config["config"].values()))["use_pickle"] = True
    changed = {"data/weights/model_weights_config.json": json.dumps(config).encode()}
    with pytest.raises(ValueError, match="holds a pickle, weight_0"):
        load_program(rewritten(plain | changed | {"data/weights/weight_0": buffer.getvalue()}, tmp_path))
    payload = {"path_name": "opaque_obj_0", "is_param": False, "use_pickle": False, "tensor_meta": None}
    changed = {"data/constants/model_constants_config.json": json.dumps({"config": {"c": payload}}).encode()}
    changed["data/constants/opaque_obj_0"] = pickle.dumps(Evil(mark))
    with pytest.raises(ValueError, match="holds a pickle, opaque_obj_0"):
        load_program(rewritten(plain | changed, tmp_path))
    with pytest.raises(ValueError, match=r"holds a pickle, data/weights/model.pt"):
        load_program(rewritten(plain | {"data/weights/model.pt": buffer.getvalue()}, tmp_path))
    assert not mark.exists()


def test_compiled_libraries_and_doubled_names_are_refused(plain, tmp_path):
    with pytest.raises(ValueError, match="holds a compiled library"):
        load_program(rewritten(plain | {"data/aotinductor/model/x.so": b""}, tmp_path))
    with pytest.raises(ValueError, match="holds two files of one name"):
        load_program(rewritten(plain | {"data/sample_inputs/MODEL.pt": b""}, tmp_path))


def nodes(document):
    return document["graph_module"]["graph"]["nodes"]


def with_size(text):
    """Change a size of the input to an expression."""
    return lambda d: d["graph_module"]["graph"]["tensor_values"]["input"]["sizes"][0]["as_expr"].update(expr_str=text)


HARMFUL = {
    "the expression \"Symbol\\('s31": with_size("Symbol('s31\\\n')"),  # a line that torch joins, and sympy reads anew
    "the expression '9": with_size("9**9**9**9"),
    'the expression "Pow': with_size("Pow(Symbol('s0'), Integer(10000000000))"),
    "the expression 'Pow\\(\\)": with_size("Pow()"),
    "the expression '1000": with_size("1000000000000000000000"),
    'the expression "Max': with_size("Max(" + ", ".join(f"Symbol('s{k}')" for k in range(600)) + ")"),
    'the expression "b': with_size("b'bytes'"),
    "a call of 'torch.ops.aten._reshape_alias.default'": lambda d: nodes(d)[0].update(
        target="torch.ops.aten._reshape_alias.default"
    ),
    "an enumeration or a factory": lambda d: d["graph_module"]["module_call_graph"][0]["signature"].update(
        out_spec=json.dumps(
            [1, {"type": "collections.defaultdict", "context": {"default_factory_module": "m", "dict_context": []}}]
        )
    ),
    "a call of 'torch.os.system'": lambda d: nodes(d)[0].update(target="torch.os.system"),
    "a call of 'torch.hub.load'": lambda d: nodes(d)[0].update(target="torch.hub.load"),
    "a call of 'torch.ops.aten.from_file.default'": lambda d: nodes(d)[0].update(
        target="torch.ops.aten.from_file.default"
    ),
    "an operator that this torch lacks": lambda d: nodes(d)[0].update(target="torch.ops.aten.nothing.default"),
    'the expression "__import__': with_size("__import__('os').system('true')"),
    "the expression 'Symbol\\(1": with_size("Symbol(1"),
    'the expression "Symbol': with_size("Symbol('x.y()')"),
    "the guard": lambda d: d.update(guards_code=["__import__('os').system('true')"]),
    "the name 'x\\)": lambda d: d["graph_module"]["signature"]["input_specs"].append({"name": "x): import os #"}),
    "an enumeration": lambda d: d["graph_module"]["module_call_graph"][0]["signature"].update(
        in_spec=json.dumps([1, {"context": json.dumps({"__enum__": True, "fqn": "os:x", "name": "y"})}])
    ),
}


@pytest.mark.parametrize("what", HARMFUL)
def test_whatever_torch_would_run_is_refused(plain, tmp_path, what):
    with pytest.raises(ValueError, match=f"holds .*{what}.*could run code, so it is not read"):
        load_program(rewritten(with_model(plain, HARMFUL[what]), tmp_path))


def test_squares_of_sizes_are_read(plain, tmp_path):
    change = with_size("Mul(Pow(Symbol('s0', integer=True), Integer(2)), Integer(1))")
    with pytest.raises(ValueError, match="another version of torch"):  # it is no size of this program
        load_program(rewritten(with_model(plain, change), tmp_path))


def test_a_tensor_is_no_larger_than_its_part_of_the_file(plain, tmp_path):
    config = json.loads(plain[WEIGHTS])
    for key, value in (("sizes", [{"as_int": 6 * 10**8}, {"as_int": 1}]), ("strides", [{"as_int": -3}, {"as_int": 1}])):
        changed = copy.deepcopy(config)
        changed["config"]["0.weight"]["tensor_meta"][key] = value
        with pytest.raises(ValueError, match=r"is damaged: 0.weight is larger than its part of the file"):
            load_program(rewritten(plain | {WEIGHTS: json.dumps(changed).encode()}, tmp_path))


def test_a_bit_that_turned_is_refused(plain, tmp_path):
    path = rewritten(plain, tmp_path)
    data = bytearray(path.read_bytes())
    data[data.index(plain["data/weights/weight_0"]) + 3] ^= 128
    path.write_bytes(data)
    with pytest.raises(ValueError, match="is damaged: the checksum of changed/data/weights/weight_0 differs"):
        load_program(path)


def test_a_compressed_file_is_not_read(plain, tmp_path):
    path = tmp_path / "packed.pt2"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in plain.items():
            archive.writestr(f"packed/{name}", content)
    with pytest.raises(ValueError, match="is compressed, which torch"):
        load_program(path)


def test_harmless_guards_are_read(plain, tmp_path):
    parts = with_model(plain, lambda d: d.update(guards_code=["L['input'].size()[0] <= 9"]))
    load_program(rewritten(parts, tmp_path))


def test_a_damaged_file_says_so(plain, tmp_path):
    with pytest.raises(ValueError, match="is damaged"):
        load_program(rewritten(plain | {"models/model.json": b"{"}, tmp_path))
    without = {name: content for name, content in plain.items() if name != "models/model.json"}
    with pytest.raises(ValueError, match=r"is damaged: .*no models/model.json"):
        load_program(rewritten(without, tmp_path))
    with pytest.raises(ValueError, match="is damaged, or of another version of torch"):
        load_program(rewritten(with_model(plain, lambda d: d.pop("schema_version")), tmp_path))
    truncated = tmp_path / "short.pt2"
    truncated.write_bytes(rewritten(plain, tmp_path).read_bytes()[:700])
    with pytest.raises(ValueError, match=r"is damaged, or not written by torch\.export\.save"):
        load_program(truncated)
