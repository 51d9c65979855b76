"""The graph of a saved program, from its JSON into `torch.fx`: known operators on plain values, and nothing evaluated.

Sizes that depend on others are what the graph itself computes: the expressions that stand beside them are not read.
"""

from __future__ import annotations

import keyword
import math
import operator
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import nn
from torch._ops import HigherOrderOperator, OpOverload
from torch.fx import Graph, GraphModule, Node

from capalloc._model.known_operators import function_of

NAME = re.compile(r"[A-Za-z_]\w*", re.ASCII)
LONGEST_NAME, LARGEST_NUMBER = 1000, 2**63
#: Numbers that stand for them in the files.
STORED_DTYPES = dict(
    enumerate(
        (
            *(torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.float16, torch.float32),
            *(torch.float64, torch.complex32, torch.complex64, torch.complex128, torch.bool, torch.bfloat16),
        ),
        start=1,
    )
)
MEMORY_FORMATS = dict(
    enumerate(
        (torch.contiguous_format, torch.channels_last, torch.channels_last_3d, torch.preserve_format),
        start=1,
    )
)
STRIDED = 7


def name_of(text: Any) -> str:
    """Check a name, which becomes part of the code that torch writes for a graph."""
    if not isinstance(text, str) or NAME.fullmatch(text) is None or keyword.iskeyword(text) or len(text) > LONGEST_NAME:
        raise ValueError(f"{str(text)[:60]!r} is no name")
    return text


def integer(value: Any) -> int:
    """Check an integer."""
    if type(value) is not int or abs(value) > LARGEST_NUMBER:
        raise ValueError(f"{str(value)[:60]!r} is no integer of 64 bits")
    return value


def device_of(stored: Mapping[str, Any]) -> torch.device:
    """Give the device that a file names, or the processor where this machine lacks it."""
    kind = stored["type"]
    return torch.device("cuda" if kind == "cuda" and torch.cuda.is_available() else "cpu")


def dtype_of(stored: Any) -> torch.dtype:
    """Give the data type that a number stands for."""
    return STORED_DTYPES[integer(stored)]


def layout_of(stored: Any) -> torch.layout:
    """Check that a tensor is dense."""
    if stored != STRIDED:
        raise ValueError("a sparse tensor is not read")
    return torch.strided


def _truth(value: Any) -> bool:
    if type(value) is not bool:
        raise ValueError(f"{str(value)[:60]!r} is neither true nor false")
    return value


def _real(value: Any) -> float:
    number = float(value)  # JSON has no infinity: it is a text then
    if isinstance(value, str) and math.isfinite(number):
        raise ValueError(f"{value[:60]!r} is no number")
    return number


def _word(value: Any) -> str:
    if not isinstance(value, str) or len(value) > LONGEST_NAME or not value.isprintable():
        raise ValueError(f"{str(value)[:60]!r} is no word")
    return value


#: How values are read that refer to nothing else.
PLAIN: dict[str, Callable[[Any], Any]] = {
    "as_none": lambda value: None,
    "as_int": integer,
    "as_float": _real,
    "as_bool": _truth,
    "as_string": _word,
    "as_complex": lambda value: complex(_real(value["real"]), _real(value["imag"])),
    "as_scalar_type": dtype_of,
    "as_memory_format": MEMORY_FORMATS.__getitem__,
    "as_layout": layout_of,
    "as_device": device_of,
}


def one(union: Mapping[str, Any]) -> tuple[str, Any]:
    """Give kind and value of what is one of several kinds."""
    ((kind, value),) = union.items()
    return kind, value


class StoredGraph:
    """A graph as it is read, with what the names in the file stand for."""

    def __init__(self, stored: Mapping[str, Any]) -> None:
        self.graph = Graph()
        self.module = nn.Module()  # the parts that wrappers run
        self.named: dict[str, Node] = {}
        for argument in stored["inputs"]:
            kind, value = one(argument)
            if kind != "as_tensor":
                raise ValueError(f"an input that is no tensor ({kind})")
            name = name_of(value["name"])
            node = self.graph.placeholder(name)
            node.name = name  # which fx would change where Python has one of its own
            self._know(name, node)
        for node in stored["nodes"]:
            self._call(node)
        returned: Any = tuple(self.value(argument) for argument in stored["outputs"])
        self.graph.output(returned[0] if stored.get("is_single_tensor_return") else returned)

    def value(self, union: Mapping[str, Any]) -> Any:
        """Read an argument or a result."""
        return self._value(*one(union))

    def _value(self, kind: str, value: Any) -> Any:
        if kind in PLAIN:
            return PLAIN[kind](value)
        if kind == "as_tensor":
            return self.named[value["name"]]
        if kind in ("as_sym_int", "as_sym_float", "as_sym_bool"):
            symbol, given = one(value)
            return self.named[given] if symbol == "as_name" else self._value(symbol, given)
        if kind == "as_optional_tensor":
            return self.value(value)
        if kind == "as_graph":
            return self._part(value)
        if kind.endswith("s") and isinstance(value, list):
            return [self._value(kind[:-1], item) for item in value]
        raise ValueError(f"an argument of the kind {kind[:60]!r}")

    def _part(self, value: Mapping[str, Any]) -> Node:
        """Read a part of the graph that a wrapper runs."""
        name = name_of(value["name"])
        if hasattr(self.module, name):
            raise ValueError(f"{name!r} is no name of a part of the graph")
        part = StoredGraph(value["graph"])
        self.module.add_module(name, GraphModule(part.module, part.graph))
        return self.graph.create_node("get_attr", name, name=name)

    def _call(self, stored: Mapping[str, Any]) -> None:
        target = function_of(stored["target"])
        args, kwargs = self._arguments(target, stored["inputs"])
        results = [one(result) for result in stored["outputs"]]
        listed = len(results) == 1 and isinstance(results[0][1], list)
        tupled = isinstance(target, HigherOrderOperator) and not stored.get("is_hop_single_tensor_return", True)
        alone = len(results) == 1 and not listed and not tupled
        node = self._add(target, args, kwargs, _result_name(*results[0]) if alone else stored.get("name"))
        node.meta["nn_module_stack"] = dict(_modules(stored.get("metadata") or {}))
        if alone:
            self._know(_result_name(*results[0]), node)
        elif results:
            self._spread([("as_tensor", item) for item in results[0][1]] if listed else results, node)

    def _add(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any], name: str | None) -> Node:
        return self.graph.create_node("call_function", target, args, kwargs, name and name_of(name))

    def _arguments(self, target: Any, inputs: list[Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Read what a call is given: by position as far as the schema's order has no gap, by name after it."""
        if not isinstance(target, OpOverload):
            return tuple(self.value(given["arg"]) for given in inputs), {}
        named = {given["name"]: self.value(given["arg"]) for given in inputs}
        args: list[Any] = []
        kwargs: dict[str, Any] = {}
        for k, argument in enumerate(target._schema.arguments):
            if argument.name in named:
                value = named.pop(argument.name)
                if argument.kwarg_only or len(args) < k:
                    kwargs[argument.name] = value
                else:
                    args.append(value)
            elif not argument.has_default_value():
                raise ValueError(f"{target} lacks its argument {argument.name}")
        if named:
            raise ValueError(f"{target} has no argument {str(next(iter(named)))[:60]!r}")
        return tuple(args), kwargs

    def _spread(self, results: list[tuple[str, Any]], node: Node) -> None:
        """Take apart what a call returns."""
        for k, (kind, value) in enumerate(results):
            if kind == "as_none":
                continue
            name = None if isinstance(value, list) else _result_name(kind, value)
            item = self._add(operator.getitem, (node, k), {}, name)
            item.meta["nn_module_stack"] = dict(node.meta["nn_module_stack"])
            if isinstance(value, list):
                self._spread([("as_tensor", part) for part in value], item)
            else:
                self._know(name, item)

    def _know(self, name: str | None, node: Node) -> None:
        if name is None:
            return
        if name in self.named:
            raise ValueError(f"two values are called {name!r}")
        self.named[name] = node


def _result_name(kind: str, value: Any) -> str | None:
    return None if kind == "as_none" else name_of(value["name"] if kind == "as_tensor" else value["as_name"])


def _modules(metadata: Mapping[str, Any]) -> Iterator[tuple[str, tuple[str, str]]]:
    """Give the modules that a call belongs to, from the outermost."""
    for item in str(metadata.get("nn_module_stack") or "").split(";"):
        key, *rest = item.split(",", 2)
        if len(rest) == 2:
            yield _word(key), (_word(rest[0]), _word(rest[1]))
