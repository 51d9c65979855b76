"""Exported programs from `.pt2` files, without running anything that a file may hold.

`torch.export.load` unpickles parts of a file, evaluates its symbolic expressions and guards as Python, calls whatever
function a node names, and loads compiled libraries. So every part is checked first, in the bytes that are then loaded:
tensors as raw bytes, registered operators, arithmetic on symbols, plain names; anything else is refused.
"""

from __future__ import annotations

import ast
import io
import json
import math
import os
import re
import zipfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch._ops import OpOverload
from torch.export import ExportedProgram

from capalloc._operators.records import RECORDS
from capalloc._runtime.extras import load_late

MODEL = "model"  # the name torch.export.save gives its one program
PLAIN_NAME = re.compile(r"[\w.:\-]*")
SYMBOL = re.compile(r"[a-z]{1,2}\d+")
OPERATOR = re.compile(r"torch\.ops\.(aten|prims)\.\w+\.\w+")
#: Operators that exports of usual models hold beside those that are recorded, of torch's core, entry by entry, or made
#: of others. Some of the rest trust their arguments: `aten._reshape_alias` reads and writes beyond its tensor.
EXPORTED = {
    *("_assert_async", "_assert_scalar", "_assert_tensor_metadata", "_unique2", "_weight_norm_interface"),
    *("aminmax", "arange", "bernoulli", "bincount", "block_diag", "channel_shuffle", "col2im", "copy_"),
    *("cummax", "cummin", "detach_", "eye", "histc", "im2col", "kthvalue", "lift_fresh_copy", "linalg_eigh"),
    *("linalg_inv_ex", "linalg_lu_factor", "linalg_matrix_exp", "linalg_qr", "linspace", "logcumsumexp"),
    *("logsumexp", "max_unpool2d", "max_unpool3d", "median", "multinomial", "nanmedian", "native_batch_norm"),
    *("new_empty", "new_full", "new_ones", "new_zeros", "ones", "pixel_shuffle", "pixel_unshuffle"),
    *("rand_like", "randn_like", "renorm", "searchsorted", "tril", "triu", "unfold", "view_as_complex"),
    *("view_as_real", "zeros", "zero_"),
}
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
    *("Add", "Mul", "Pow", "Mod", "Max", "Min", "PythonMod", "PowByNatural", "ModularIndexing"),
    *("FloorDiv", "CeilDiv", "CleanDiv", "FloatTrueDiv", "IntTrueDiv"),
    *("CeilToInt", "FloorToInt", "TruncToFloat", "TruncToInt", "RoundToInt", "ToFloat"),
    *("Eq", "Equality", "Ne", "Unequality", "Lt", "StrictLessThan", "Le", "LessThan"),
    *("Gt", "StrictGreaterThan", "Ge", "GreaterThan"),
}


#: Sizes of a real program are short; sympy takes hours for some longer ones.
LONGEST_EXPRESSION, MOST_ARGUMENTS, LARGEST_NUMBER = 2000, 32, 2**63


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
    _check_members(path, content)
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


def _check_members(path: Path, content: bytes) -> None:
    """Every part is as it was written, by its checksum, and takes no more memory than the file."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            packed = any(part.compress_type != zipfile.ZIP_STORED for part in archive.infolist())
            damaged = None if packed else archive.testzip()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, RuntimeError) as error:
        raise ValueError(f"{path} is damaged, or not written by torch.export.save: {_first_line(error)}") from error
    if packed:
        raise ValueError(f"{path} is compressed, which torch.export.save does not do; it is not read")
    if damaged is not None:
        raise ValueError(f"{path} is damaged: the checksum of {damaged} differs")


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0] or type(error).__name__


class _RefusedError(ValueError):
    """Something in the file could run code."""


def _check_files(path: Path, files: dict[str, bytes]) -> None:
    try:
        if len({name.lower() for name in files}) < len(files):  # a name finds its file in any case
            raise _RefusedError("two files of one name")
        parts = {name.lower(): content for name, content in files.items()}
        for name in parts:
            _check_file(name, parts)
        if f"models/{MODEL}.json" not in files:
            raise KeyError(f"no models/{MODEL}.json in it")
    except _RefusedError as error:
        raise ValueError(
            f"{path} holds {error}, which could run code, so it is not read; if you trust the file, load it with "
            "torch.export.load and pass the program"
        ) from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: {_first_line(error)}") from error


def _check_file(name: str, parts: dict[str, bytes]) -> None:
    content = parts[name]
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
        for tensor, payload in json.loads(content)["config"].items():
            if payload["use_pickle"] or not payload["path_name"].startswith(("weight_", "tensor_")):
                raise _RefusedError(f"a pickle, {payload['path_name']}")
            part = f"{name.rpartition('/')[0]}/{payload['path_name']}"
            _check_length(tensor, payload["tensor_meta"], len(parts[part]))
    if name.startswith("models/"):
        document = json.loads(content)
        for where, check in CHECKS.items():
            for text in _texts(document, where):
                check(text)
        _check_names(document)


def _check_length(tensor: str, meta: dict[str, Any], held: int) -> None:
    """A tensor has no more entries than its part of the file has bytes."""
    sizes, strides = ([axis["as_int"] for axis in meta[key]] for key in ("sizes", "strides"))
    reach = sum((n - 1) * step for n, step in zip(sizes, strides, strict=True)) + meta["storage_offset"]["as_int"]
    if min([*sizes, *strides, 0]) < 0 or (0 not in sizes and max(reach + 1, math.prod(sizes)) > held):
        raise ValueError(f"{tensor} is larger than its part of the file")


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
    if not _is_usual(found) or any("file" in argument.name for argument in found._schema.arguments):
        raise _RefusedError(f"a call of {target!r}")


def _is_usual(operator: OpOverload) -> bool:
    """Tell operators that check their arguments, as far as the kinds of operators tell."""
    name = operator.name().partition("::")[2].partition(".")[0]
    if operator in RECORDS or name in EXPORTED or {torch.Tag.core, torch.Tag.pointwise} & {*operator.tags}:
        return True
    composite = torch._C._dispatch_has_kernel_for_dispatch_key(operator.name(), "CompositeImplicitAutograd")
    return composite and not name.startswith("_")


def _check_expression(text: str) -> None:
    """Arithmetic on symbols, as it is evaluated."""
    for node in _parsed(text):
        match node:
            case ast.Name():
                allowed = node.id in SYMBOLIC_FUNCTIONS or SYMBOL.fullmatch(node.id) is not None
            case ast.Constant(value=str(name)):
                allowed = SYMBOL.fullmatch(name) is not None
            case _:
                allowed = isinstance(node, ARITHMETIC)
        if not allowed:
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


def _parsed(text: str) -> list[ast.AST]:
    """Parts of an expression that Python reads as all others do, without high powers or numbers beyond sizes.

    Torch removes line breaks before it evaluates, so that a text with one, or with a backslash, may be another then.
    """
    try:
        parts = list(ast.walk(ast.parse(text.strip(), mode="eval")))
    except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
        raise _RefusedError(f"the expression {text[:60]!r}") from error
    calls = [len(part.args) for part in parts if isinstance(part, ast.Call)]
    numbers = [part.value for part in parts if isinstance(part, ast.Constant) and not isinstance(part.value, str)]
    plain = all(isinstance(value, (bool, int, float)) and abs(value) <= LARGEST_NUMBER for value in numbers)
    steep = any(isinstance(part, (ast.Pow, ast.LShift)) or _is_steep(part) for part in parts)
    names = sum(isinstance(part, ast.Name) for part in parts)
    long = len(text) > LONGEST_EXPRESSION or max([*calls, 0]) > MOST_ARGUMENTS or names > 4 * MOST_ARGUMENTS
    if not plain or steep or long or not text.isprintable() or "\\" in text:
        raise _RefusedError(f"the expression {text[:60]!r}")
    return parts


def _is_steep(part: ast.AST) -> bool:
    """Tell a power other than a square or a cube."""
    if not (isinstance(part, ast.Call) and isinstance(part.func, ast.Name) and part.func.id.startswith("Pow")):
        return False
    return ast.unparse(part.args[-1]) not in ("2", "3", "Integer(2)", "Integer(3)") if part.args else True


def _check_structure(text: str) -> None:
    """The nesting of inputs and outputs: an enumeration or the factory of a defaultdict would import its module."""
    found = set(_keys(json.loads(text)))
    if found & {"__enum__", "default_factory_module", "default_factory_name"}:
        raise _RefusedError("an enumeration or a factory among its inputs or outputs")


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
