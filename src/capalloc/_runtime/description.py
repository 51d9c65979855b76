"""Digests of any values, code among them: equal in two processes only where the values do the same.

A function is its instructions, defaults, closure, and the globals that it reads, in turn; an object its class and its
state. What is installed, and not written by the user, goes by name and version.
"""

from __future__ import annotations

import copyreg
import dis
import hashlib
import site
import sys
import sysconfig
import types
import weakref
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.utils.hooks import RemovableHandle

from capalloc._runtime.packing import as_bytes

#: Values that their text says all of.
PLAIN_TYPES = (bool, int, float, complex, str, bytes, type(None), type(...), range, torch.dtype, torch.Size)
#: Objects that only serve to remove a hook.
HANDLES = (RemovableHandle, torch._C.Generator)
#: Functions and attributes that are written in C: their names say all of them.
COMPILED = (
    types.GetSetDescriptorType,
    types.MemberDescriptorType,
    types.WrapperDescriptorType,
    types.MethodDescriptorType,
    types.ClassMethodDescriptorType,
)
#: Attributes that torch marks modules with, or not, by what else the process has done with it.
MARKS = ("_is_", "_compile", "_torchdynamo_")
#: Of pickles, whose way of taking objects apart is taken here too.
PROTOCOL = 4
#: Letters of a digest: enough to tell mistakes apart.
DIGEST_LENGTH = 16


class Description:
    """Digests of values, and in `doubts` the types of those whose state cannot be seen."""

    def __init__(self) -> None:
        self.doubts: set[str] = set()
        self._known: dict[int, bytes] = {}
        self._alive: list[Any] = []  # so that no identity is given twice

    def digest(self, *values: Any) -> str:
        """Return the digest of values in their order."""
        try:
            return hashlib.sha256(b"".join(map(self._of, values))).hexdigest()[:DIGEST_LENGTH]
        except RecursionError:
            self.doubts.add("values nested too deeply")
            return ""

    def _of(self, value: Any) -> bytes:
        if type(value) in PLAIN_TYPES:
            return _hashed(type(value).__name__, repr(value))
        if id(value) not in self._known:
            self._alive.append(value)
            self._known[id(value)] = b"itself"  # where it holds itself
            self._known[id(value)] = _hashed(type(value).__name__, *self._parts(value))
        return self._known[id(value)]

    def _parts(self, value: Any) -> Iterator[bytes | str]:
        if isinstance(value, torch.device):
            yield value.type  # ranks have each their own
        elif isinstance(value, types.CodeType):
            yield from self._code(value)
        elif isinstance(value, types.FunctionType):
            yield from self._function(value)
        elif isinstance(value, types.MethodType):
            yield from map(self._of, (value.__func__, value.__self__))
        elif isinstance(value, types.ModuleType):
            yield _version(value.__name__) or _source(value)
        elif isinstance(value, type):
            yield from self._class(value)
        elif isinstance(value, Tensor):
            yield from self._tensor(value)
        elif isinstance(value, nn.Module):
            yield from self._module(value)
        elif isinstance(value, ExportedProgram):
            yield from map(self._of, (value.graph_module, value.constants, str(value.graph_signature)))
        elif type(value) in (list, tuple):
            yield from map(self._of, value)
        elif type(value) is dict:  # a hash that an object keeps of itself is salted anew in every process
            yield from (self._of(part) for item in value.items() if "_hash" not in str(item[0]) for part in item)
        elif isinstance(value, (set, frozenset)):
            yield from sorted(map(self._of, value))
        elif isinstance(value, (property, classmethod, staticmethod)):
            yield from map(self._of, (value.fget, value.fset) if isinstance(value, property) else (value.__func__,))
        elif isinstance(value, weakref.ref):
            yield self._of(value())
        elif isinstance(value, COMPILED):
            yield value.__qualname__
        elif isinstance(value, (torch._ops.OpOverload, torch._ops.OpOverloadPacket)):
            yield str(value)
        else:
            yield from self._object(value)

    def _code(self, code: types.CodeType) -> Iterator[bytes | str]:
        yield code.co_code
        yield from (repr(part) for part in (code.co_names, code.co_varnames, code.co_freevars, code.co_flags))
        yield from map(self._of, code.co_consts)

    def _function(self, function: types.FunctionType) -> Iterator[bytes | str]:
        if version := _version(function.__globals__.get("__name__", "")):  # a wrapper bears another's __module__
            yield f"{function.__qualname__} {version}"
        yield self._of(function.__code__)
        yield from map(self._of, (function.__defaults__, function.__kwdefaults__, vars(function)))
        for cell in function.__closure__ or ():
            yield self._of(cell.cell_contents) if cell != types.CellType() else "empty"
        if not version:
            for name in sorted(set(_globals_in(function.__code__)) & set(function.__globals__)):
                yield name
                yield self._of(function.__globals__[name])

    def _class(self, kind: type) -> Iterator[bytes | str]:
        yield kind.__qualname__
        if version := _version(kind.__module__):
            yield version
            return
        yield from map(self._of, kind.__bases__)
        for name, part in sorted(vars(kind).items()):
            if not (name.startswith("__") or name == "_abc_impl") or isinstance(part, types.FunctionType):
                yield name
                yield self._of(part)

    def _tensor(self, tensor: Tensor) -> Iterator[bytes | str]:
        yield f"{tensor.dtype} {tuple(tensor.shape)}"
        plain = tensor.detach()
        plain = plain.to_dense() if plain.layout != torch.strided else plain
        yield as_bytes(plain.resolve_conj().resolve_neg().cpu()).numpy().tobytes()

    def _module(self, module: nn.Module) -> Iterator[bytes | str]:
        """Give a network's class and state; hooks are numbered in the order of their making, which is no part of it."""
        if isinstance(compiled := vars(module).get("_modules", {}).get("_orig_mod"), nn.Module):
            yield self._of(compiled)
            return
        yield self._of(type(module))
        for name, value in vars(module).items():
            if name.startswith(MARKS):
                continue
            yield name
            if isinstance(module, torch.fx.GraphModule) and name == "_graph":
                yield str(value)
            elif "_hooks" in name and isinstance(value, Mapping):
                yield from map(self._of, value.values())
            else:
                yield self._of(value)

    def _object(self, value: Any) -> Iterator[bytes | str]:
        yield self._of(type(value))
        if isinstance(value, HANDLES):
            return
        try:
            reduce = copyreg.dispatch_table.get(type(value))
            state = reduce(value) if reduce else value.__reduce_ex__(PROTOCOL)
        except Exception:  # of any type: objects say by it that they cannot be copied
            state = None
        if isinstance(state, tuple):
            made, arguments, *rest = state
            yield from map(self._of, (made, arguments))
            yield from (self._of(list(part) if isinstance(part, Iterator) else part) for part in rest)
        elif state is not None:
            yield from map(self._of, (state, getattr(value, "__wrapped__", None)))
        else:
            self.doubts.add(f"{type(value).__module__}.{type(value).__qualname__}")


def _hashed(*parts: bytes | str) -> bytes:
    hashed = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        hashed.update(len(data).to_bytes(8, "big"))
        hashed.update(data)
    return hashed.digest()


def _globals_in(code: types.CodeType) -> Iterator[str]:
    """Give the names of globals that the code reads, and functions written inside it."""
    yield from (step.argval for step in dis.get_instructions(code) if step.opname in ("LOAD_GLOBAL", "LOAD_NAME"))
    for inner in code.co_consts:
        if isinstance(inner, types.CodeType):
            yield from _globals_in(inner)


@cache
def _version(module: str) -> str:
    """Return name and version of what is installed, Python's own and this package among it; empty for user code."""
    package = module.partition(".")[0]
    if package in sys.stdlib_module_names:
        return f"{module} {sys.version_info[:2]}"
    file = getattr(sys.modules.get(package), "__file__", None)
    if package == "capalloc" or (file and any(Path(file).is_relative_to(folder) for folder in _installed())):
        return f"{module} {getattr(sys.modules[package], '__version__', '')}"
    return ""


@cache
def _installed() -> tuple[str, ...]:
    paths = sysconfig.get_paths()
    return (paths["purelib"], paths["platlib"], *site.getsitepackages(), site.getusersitepackages())


def _source(module: types.ModuleType) -> bytes | str:
    """Return a user's module as it stands in its file."""
    try:
        return Path(module.__file__ or "").read_bytes()
    except OSError:
        return module.__name__
