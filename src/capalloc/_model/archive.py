"""Exported programs from `.pt2` files, without running anything that a file may hold.

`torch.export.load` unpickles parts of a file, evaluates its symbolic expressions and guards as Python, calls whatever
function a node names, and loads compiled libraries. So every part is checked first, in the bytes that are then loaded:
tensors as raw bytes, registered operators, arithmetic on symbols, plain names; anything else is refused.
"""

from __future__ import annotations

import ast
import io
import json
import os
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch._ops import OpOverload
from torch.export import ExportedProgram

from capalloc._runtime.extras import load_late

MODEL = "model"  # the name torch.export.save gives its one program
PLAIN_NAME = re.compile(r"[\w.:\-]*")
SYMBOL = re.compile(r"[a-z]{1,2}\d+")
OPERATOR = re.compile(r"torch\.ops\.(aten|prims)\.\w+\.\w+")
PLAIN_FUNCTIONS = re.compile(r"(_operator|math)\.[a-z]\w*|torch\.sym_\w+")
#: Wrap a part of the graph, which is checked as the rest is.
WRAPPERS = {f"torch.ops.higher_order.wrap_with_{name}" for name in ("set_grad_enabled", "autocast")}
#: Text that torch keeps as text, or that has a check of its own.
FREE_TEXT = {"metadata", "as_string", "as_strings", "torch_version", "verifiers", "treespec_namedtuple_fields"}
ARITHMETIC = (
    *(ast.Expression, ast.Constant, ast.Name, ast.Load, ast.UnaryOp, ast.BinOp, ast.BoolOp, ast.Compare, ast.Call),
    *(ast.keyword, ast.operator, ast.unaryop, ast.boolop, ast.cmpop),
)
SYMBOLIC_FUNCTIONS = {
    *("Symbol", "Integer", "Rational", "Float", "Identity", "Where", "And", "Or", "Not"),
    *("Add", "Mul", "Pow", "Mod", "Max", "Min", "PythonMod", "PowByNatural", "FloatPow", "ModularIndexing"),
    *("FloorDiv", "CeilDiv", "CleanDiv", "FloatTrueDiv", "IntTrueDiv"),
    *("CeilToInt", "FloorToInt", "TruncToFloat", "TruncToInt", "RoundToInt", "ToFloat"),
    *("Eq", "Equality", "Ne", "Unequality", "Lt", "StrictLessThan", "Le", "LessThan"),
    *("Gt", "StrictGreaterThan", "Ge", "GreaterThan"),
}


def load_program(path: str | os.PathLike[str]) -> ExportedProgram:
    """Read the program that `torch.export.save` wrote; a file that could run code is refused.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no such file, is damaged, or holds what would have to be unpickled, evaluated or linked.

    """
    path = Path(path)
    if path.suffix != ".pt2":
        raise ValueError(f"{path} is not a .pt2 file; write one with torch.export.save(program, 'model.pt2')")
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    content = path.read_bytes()
    try:
        pt2 = load_late("torch.export.pt2_archive")  # it brings the whole of torch's compiler
        reader = pt2.PT2ArchiveReader(io.BytesIO(content))
        files = {name: reader.read_bytes(name) for name in reader.get_file_names()}
    except Exception as error:  # the archive reader raises any type on foreign bytes
        raise ValueError(f"{path} is damaged, or not written by torch.export.save: {_first_line(error)}") from error
    _check_files(path, files)
    try:
        # Not torch.export.load: where this fails, that goes on to an older format, which it unpickles.
        program: ExportedProgram = pt2._package.load_pt2(io.BytesIO(content)).exported_programs[MODEL]
    except Exception as error:
        raise ValueError(f"{path} is damaged, or of another version of torch: {_first_line(error)}") from error
    return program


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0] or type(error).__name__


class _RefusedError(ValueError):
    """Something in the file could run code."""


def _check_files(path: Path, files: dict[str, bytes]) -> None:
    try:
        if len({name.lower() for name in files}) < len(files):  # a name finds its file in any case
            raise _RefusedError("two files of one name")
        for name, content in files.items():
            _check_file(name.lower(), content)
        if f"models/{MODEL}.json" not in files:
            raise KeyError(f"no models/{MODEL}.json in it")
    except _RefusedError as error:
        raise ValueError(
            f"{path} holds {error}, which could run code, so it is not read; if you trust the file, load it with "
            "torch.export.load and pass the program"
        ) from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: {_first_line(error)}") from error


def _check_file(name: str, content: bytes) -> None:
    if name.startswith("data/aotinductor/"):
        raise _RefusedError("a compiled library")
    if name.endswith(".pt"):
        if not name.startswith("data/sample_inputs/"):
            raise _RefusedError(f"a pickle, {name}")
        try:
            torch.load(io.BytesIO(content), weights_only=True)
        except Exception as error:
            raise _RefusedError(f"a pickle of more than tensors, {name}") from error
    if name.endswith("_config.json"):
        for payload in json.loads(content)["config"].values():
            if payload["use_pickle"] or not payload["path_name"].startswith(("weight_", "tensor_")):
                raise _RefusedError(f"a pickle, {payload['path_name']}")
    if name.startswith("models/"):
        document = json.loads(content)
        for where, check in CHECKS.items():
            for text in _texts(document, where):
                check(text)
        _check_names(document)


def _texts(tree: Any, key: str) -> Iterator[str]:
    """Every text under a key, at any depth."""
    if isinstance(tree, dict):
        for name, value in tree.items():
            if name == key:
                yield from (v for v in (value if isinstance(value, list) else [value]) if isinstance(v, str))
            yield from _texts(value, key)
    elif isinstance(tree, list):
        for item in tree:
            yield from _texts(item, key)


def _check_names(tree: Any) -> None:
    """Names become part of Python code, so they may hold nothing else."""
    if isinstance(tree, str) and PLAIN_NAME.fullmatch(tree) is None:
        raise _RefusedError(f"the name {tree[:60]!r}")
    if isinstance(tree, list):
        for item in tree:
            _check_names(item)
    if isinstance(tree, dict):
        for name, value in tree.items():
            _check_names(name)
            if name not in FREE_TEXT and name not in CHECKS:
                _check_names(value)


def _check_target(target: str) -> None:
    """A function that a node calls: a registered operator that touches no file, or plain arithmetic."""
    if PLAIN_FUNCTIONS.fullmatch(target) or target in WRAPPERS:
        return
    if OPERATOR.fullmatch(target) is None:
        raise _RefusedError(f"a call of {target[:60]!r}")
    found: Any = torch.ops
    for part in target.split(".")[2:]:
        found = getattr(found, part, None)
    if not isinstance(found, OpOverload):
        raise _RefusedError(f"a call of {target!r}, an operator that this torch lacks")
    if any("file" in argument.name for argument in found._schema.arguments):
        raise _RefusedError(f"a call of {target!r}")


def _check_expression(text: str) -> None:
    """Arithmetic on symbols, as it is evaluated."""
    for node in _parsed(text):
        named = isinstance(node, ast.Name) and (node.id in SYMBOLIC_FUNCTIONS or SYMBOL.fullmatch(node.id))
        quoted = isinstance(node, ast.Constant) and isinstance(node.value, str)
        allowed = SYMBOL.fullmatch(node.value) if quoted else named or not isinstance(node, ast.Name)  # type: ignore[attr-defined]
        if not isinstance(node, ARITHMETIC) or not allowed:
            raise _RefusedError(f"the expression {text[:60]!r}")


def _check_guard(text: str) -> None:
    """A comparison of the input's sizes, such as L['x'].size()[0] <= 64."""
    for node in _parsed(text):
        known = isinstance(node, (*ARITHMETIC, ast.Subscript, ast.Attribute, ast.List, ast.Tuple))
        foreign = (isinstance(node, ast.Name) and node.id != "L") or (
            isinstance(node, ast.Attribute) and node.attr not in ("size", "shape")
        )
        calls = isinstance(node, ast.Call) and not isinstance(node.func, ast.Attribute)
        if not known or foreign or calls:
            raise _RefusedError(f"the guard {text[:60]!r}")


def _parsed(text: str) -> Iterator[ast.AST]:
    try:
        return ast.walk(ast.parse(text.strip(), mode="eval"))
    except SyntaxError as error:
        raise _RefusedError(f"the expression {text[:60]!r}") from error


def _check_structure(text: str) -> None:
    """The nesting of inputs and outputs: an enumeration in it would import its module."""
    if "__enum__" in set(_keys(json.loads(text))):
        raise _RefusedError("an enumeration among its inputs or outputs")


def _keys(tree: Any) -> Iterator[str]:
    """Every key, in documents quoted inside the document too."""
    if isinstance(tree, dict):
        yield from tree
    if isinstance(tree, (dict, list)):
        for item in tree.values() if isinstance(tree, dict) else tree:
            yield from _keys(item)
    if isinstance(tree, str) and tree[:1] in '[{"':
        with suppress(ValueError):
            yield from _keys(json.loads(tree))


#: Keys whose texts torch interprets, and what they may hold.
CHECKS: dict[str, Callable[[str], None]] = {
    "target": _check_target,
    "as_operator": _check_target,
    "expr_str": _check_expression,
    "guards_code": _check_guard,
    "in_spec": _check_structure,
    "out_spec": _check_structure,
}
