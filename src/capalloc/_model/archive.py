"""Exported programs from `.pt2` files, read without torch's loader: JSON and raw bytes become a graph and tensors.

`torch.export.load` unpickles parts of a file, evaluates its symbolic expressions as Python, imports the types of its
containers, calls whatever function a node names, and loads compiled libraries. Here no part of a file is a program.
"""

from __future__ import annotations

import json
import math
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch._export.verifier import load_verifier
from torch.export import ExportedProgram
from torch.export.exported_program import ModuleCallEntry, ModuleCallSignature
from torch.export.graph_signature import (
    ConstantArgument,
    ExportGraphSignature,
    InputKind,
    InputSpec,
    OutputKind,
    OutputSpec,
    TensorArgument,
)
from torch.fx import GraphModule, Node

from capalloc._model.graph_shapes import Shapes
from capalloc._model.known_operators import RefusedError
from capalloc._model.stored_graph import (
    LONGEST_NAME,
    StoredGraph,
    device_of,
    dtype_of,
    integer,
    layout_of,
    name_of,
    one,
)
from capalloc._model.stored_structure import read_structure

MODEL = "models/model.json"  # the name torch.export.save gives its one program
WEIGHTS, CONSTANTS = "data/weights/", "data/constants/"
NEEDED = (MODEL, WEIGHTS, CONSTANTS)
SCHEMA = 8  # of torch 2.6 and later
INPUT_KINDS = {
    "user_input": (InputKind.USER_INPUT, ""),
    "parameter": (InputKind.PARAMETER, "parameter_name"),
    "buffer": (InputKind.BUFFER, "buffer_name"),
    "tensor_constant": (InputKind.CONSTANT_TENSOR, "tensor_constant_name"),
}
OUTPUT_KINDS = {
    "user_output": (OutputKind.USER_OUTPUT, ""),
    "buffer_mutation": (OutputKind.BUFFER_MUTATION, "buffer_name"),
    "user_input_mutation": (OutputKind.USER_INPUT_MUTATION, "user_input_name"),
}


def load_program(path: str | os.PathLike[str]) -> ExportedProgram:
    """Read the program that `torch.export.save` wrote; nothing in the file is run, imported or evaluated.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no such file, is damaged, or holds more than known operators on plain tensors.

    """
    path = Path(path)
    if path.suffix != ".pt2":
        raise ValueError(f"{path} is not a .pt2 file; write one with torch.export.save(program, 'model.pt2')")
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    parts = _parts(path)
    try:
        return _program(parts)
    except RefusedError as error:
        raise ValueError(
            f"{path} holds {error}, which is not read; if you trust the file, load it with torch.export.load and "
            "pass the program"
        ) from error
    except Exception as error:  # torch raises any type where operators do not fit together
        raise ValueError(f"{path} is damaged, or of another version of torch: {_first_line(error)}") from error


def _parts(path: Path) -> dict[str, bytes]:
    """Read what a program needs of the archive; every part is as it was written, by its checksum."""
    try:
        with zipfile.ZipFile(path) as archive:
            found = archive.infolist()
            if any(part.compress_type != zipfile.ZIP_STORED for part in found):
                raise ValueError("it is compressed, which torch.export.save does not do")
            if sum(part.file_size for part in found) > path.stat().st_size:
                raise ValueError("parts of it overlap")
            named = {part.filename.partition("/")[2]: part for part in found}
            if len(named) < len(found):
                raise ValueError("two parts have one name")
            if (changed := archive.testzip()) is not None:
                raise ValueError(f"the checksum of {changed[:60]} differs")
            return {name: archive.read(part) for name, part in named.items() if name.startswith(NEEDED)}
    except (zipfile.BadZipFile, OSError, EOFError, ValueError, NotImplementedError, RuntimeError) as error:
        raise ValueError(f"{path} is damaged, or not written by torch.export.save: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    """Give the first line; a key that is missing says no more than its name, and a wrong type nothing of the file."""
    if isinstance(error, KeyError):
        return f"no {str(error)[:60]} in it"
    if isinstance(error, (TypeError, AttributeError, IndexError, StopIteration)):
        return "a part of it has another form"
    return (str(error).splitlines() or [""])[0][:300] or type(error).__name__


def _program(parts: dict[str, bytes]) -> ExportedProgram:
    document = json.loads(parts[MODEL])
    version = document["schema_version"]["major"]
    if version != SCHEMA:
        raise ValueError(f"its form is {str(version)[:20]}, and {SCHEMA} is read; export the model again")
    stored = document["graph_module"]
    tensors = _tensors(parts, WEIGHTS, "weight_") | _tensors(parts, CONSTANTS, "tensor_")
    read = StoredGraph(stored["graph"])
    module = GraphModule(read.module, read.graph)
    inputs = [_input_spec(spec) for spec in stored["signature"]["input_specs"]]
    outputs = [_output_spec(read, spec) for spec in stored["signature"]["output_specs"]]
    _fill(module, stored["graph"]["tensor_values"], inputs, tensors, shapes := Shapes())
    kept = [spec.target for spec in inputs if spec.kind is InputKind.PARAMETER or spec.persistent]
    state = {name: tensors.pop(name) for name in [*dict.fromkeys(kept)] if name is not None}
    return ExportedProgram(
        root=module,
        graph=module.graph,
        graph_signature=ExportGraphSignature(inputs, outputs),
        state_dict=state,
        range_constraints=shapes.ranges(),
        module_call_graph=[_entry(stored, inputs, outputs)],
        constants=tensors,
        verifiers=[load_verifier("TRAINING" if "TRAINING" in document["verifiers"] else "ATEN")],
    )


def _fill(
    module: GraphModule, metas: Mapping[str, Any], inputs: list[InputSpec], tensors: Mapping[str, Any], shapes: Shapes
) -> None:
    """Work out what all nodes compute."""
    names = [spec.arg.name for spec in inputs]
    if names != [node.name for node in module.graph.nodes if node.op == "placeholder"]:
        raise ValueError("its inputs are not those of its graph")
    shapes.fill(
        module,
        [
            shapes.input(metas[name]) if spec.target is None else shapes.like(tensors[spec.target])
            for name, spec in zip(names, inputs, strict=True)
        ],
    )


def _tensors(parts: dict[str, bytes], folder: str, prefix: str) -> dict[str, Any]:
    """Make the tensors of a folder; those that share a part share memory."""
    memory: dict[str, bytearray] = {}
    found: dict[str, Any] = {}
    for name, payload in json.loads(parts[f"{folder}model_{folder.split('/')[1]}_config.json"])["config"].items():
        part = payload["path_name"]
        if payload["use_pickle"] or not part.startswith(prefix):
            raise RefusedError(f"a pickle, {part[:60]}")
        if part not in memory:
            memory[part] = bytearray(parts.pop(folder + part))
        tensor = _tensor(name, payload["tensor_meta"], memory[part])
        found[name] = nn.Parameter(tensor, tensor.is_floating_point()) if payload["is_param"] else tensor
    return found


def _tensor(name: str, meta: Mapping[str, Any], content: bytearray) -> Tensor:
    """Lay a tensor over the bytes of its part, which hold all of it."""
    sizes, strides = ([integer(axis["as_int"]) for axis in meta[key]] for key in ("sizes", "strides"))
    offset, dtype = integer(meta["storage_offset"]["as_int"]), dtype_of(meta["dtype"])
    layout_of(meta["layout"])
    reach = offset + 1 + sum((n - 1) * step for n, step in zip(sizes, strides, strict=True))
    held = len(content) // dtype.itemsize
    if min([*sizes, *strides, offset]) < 0 or (0 not in sizes and max(reach, math.prod(sizes)) > held):
        raise ValueError(f"{name[:60]} is larger than its part of the file")
    if 0 in sizes:
        return torch.empty(sizes, dtype=dtype)
    flat = torch.frombuffer(content, dtype=dtype, count=held)
    return flat.as_strided(sizes, strides, offset).to(device_of(meta["device"]))


def _input_spec(stored: Mapping[str, Any]) -> InputSpec:
    form, spec = one(stored)
    if form not in INPUT_KINDS:
        raise ValueError(f"an input of the kind {form[:60]!r}, where tensors are read")
    kind, target = INPUT_KINDS[form]
    given = spec["arg"] if target else spec["arg"]["as_tensor"]
    argument = TensorArgument(name_of(given["name"]))
    path = ".".join(map(_part_of_path, spec[target].split("."))) if target else None
    return InputSpec(kind, argument, path, spec.get("persistent"))


def _part_of_path(text: str) -> str:
    if not text or len(text) > LONGEST_NAME or not text.isprintable():
        raise ValueError(f"{text[:60]!r} is no name of a parameter")
    return text


def _output_spec(read: StoredGraph, stored: Mapping[str, Any]) -> OutputSpec:
    form, spec = one(stored)
    if form not in OUTPUT_KINDS:
        raise ValueError(f"an output of the kind {form[:60]!r}")
    kind, target = OUTPUT_KINDS[form]
    value = read.named[spec["arg"]["name"]] if target else read.value(spec["arg"])
    argument = TensorArgument(value.name) if isinstance(value, Node) else ConstantArgument("", value)
    return OutputSpec(kind, argument, str(spec[target]) if target else None)


def _entry(stored: Mapping[str, Any], inputs: list[InputSpec], outputs: list[OutputSpec]) -> ModuleCallEntry:
    """Say how the whole program is called."""
    fields = stored.get("treespec_namedtuple_fields") or {}
    signature = next(entry["signature"] for entry in stored["module_call_graph"] if entry["fqn"] == "")
    taken, returned = (read_structure(signature[key], fields) for key in ("in_spec", "out_spec"))
    given = [spec.arg for spec in inputs if spec.kind is InputKind.USER_INPUT]
    made = [spec.arg for spec in outputs if spec.kind is OutputKind.USER_OUTPUT]
    if (taken.num_leaves, returned.num_leaves) != (len(given), len(made)):
        raise ValueError("what it takes and returns is not what its graph does")
    return ModuleCallEntry("", ModuleCallSignature(given, made, taken, returned))
