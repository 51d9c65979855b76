"""Shapes and types of all that a graph computes, by running it on tensors without data."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._dispatch.python import enable_python_dispatcher
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import GraphModule, Interpreter, Node
from torch.utils import _pytree as pytree

from capalloc._model.known_operators import WRAPPERS
from capalloc._model.stored_graph import LARGEST_NUMBER, device_of, dtype_of, integer, layout_of, one
from capalloc._operators.records import record
from capalloc._runtime.extras import load_late

SYMBOL = re.compile(r"Symbol\('([a-z]{1,2}\d+)'(, \w+=True)*\)")
#: An example's size where the file does not say one, or says one that torch takes for a number of its own.
SMALLEST_FREE_SIZE = 2
#: Sizes of a real program are short; torch takes hours for some longer ones.
LONGEST_SIZE, HIGHEST_POWER, ENTRIES_OF_ANY_MEMORY = 200, 8, 2**40
#: Calls that hold a loop over time, and the number of their arguments: input, states, weights, has_biases, num_layers,
#: dropout, train, bidirectional, batch_first.
ARGUMENTS_OF_TIME_LOOPS = 9
TIME_LOOPS = frozenset(getattr(torch.ops.aten, name).input for name in ("gru", "lstm", "rnn_tanh", "rnn_relu"))


class Shapes:
    """Tensors without data, some of their sizes free."""

    def __init__(self) -> None:
        self.symbolic = load_late("torch.fx.experimental.symbolic_shapes")  # it brings sympy
        self.sources = load_late("torch._dynamo.source")
        self.env = self.symbolic.ShapeEnv(duck_shape=False)
        self.mode = FakeTensorMode(shape_env=self.env, allow_fallback_kernels=False)
        self.free: dict[str, Any] = {}  # sizes by the texts that stand for them

    def like(self, value: Tensor) -> Tensor:
        """A tensor of the sizes of another."""
        fake: Tensor = self.mode.from_tensor(value.detach(), static_shapes=True)
        return fake.requires_grad_(value.requires_grad)

    def input(self, meta: Mapping[str, Any]) -> Tensor:
        """An input of the sizes that a file gives: numbers, or free where there is an expression."""
        layout_of(meta["layout"])
        dtype = dtype_of(meta["dtype"])
        sizes = [self._size(size) for size in meta["sizes"]]
        strides = [_hint(stride) for stride in meta["strides"]]
        order = sorted(range(len(sizes)), key=lambda k: -strides[k])
        with self.mode:
            laid = torch.empty([sizes[k] for k in order], dtype=dtype, device=device_of(meta["device"]))
            return laid.permute([order.index(k) for k in range(len(order))])

    def _size(self, stored: Mapping[str, Any]) -> Any:
        kind, value = one(stored)
        if kind == "as_int":
            return integer(value)
        text = value["expr_str"]
        named = SYMBOL.fullmatch(text)
        key = named[1] if named else text  # of an expression only that two axes have the same one counts
        if key not in self.free:
            hint = max(_hint(stored), SMALLEST_FREE_SIZE)
            source = self.sources.ConstantSource(f"size_{len(self.free)}")
            symbol = self.env.create_symbol(hint, source, self.symbolic.DimDynamic.DYNAMIC)
            self.free[key] = self.env.create_symintnode(symbol, hint=hint)
        return self.free[key]

    def fill(self, module: GraphModule, inputs: Sequence[Tensor]) -> None:
        """Put what every node computes into its `meta["val"]`."""
        with self.env.suppress_guards(), enable_python_dispatcher(), self.mode, torch.no_grad():
            _Filling(module).run(*inputs)

    def ranges(self) -> dict[Any, Any]:
        """Give the numbers that free sizes may be."""
        return dict(self.env.var_to_range)


class _Filling(Interpreter):
    """Runs a graph and keeps what its nodes compute."""

    def run_node(self, n: Node) -> Any:
        result = super().run_node(n)
        for leaf in pytree.tree_leaves(result):
            _check(leaf, n)
        if not isinstance(result, GraphModule):
            n.meta["val"] = result
        return result

    def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run one operator, or the part of the graph that a wrapper holds."""
        if target.__name__.startswith("_assert"):  # of what it was exported with
            return None
        if target in WRAPPERS.values():
            place = next(k for k, value in enumerate(args) if isinstance(value, GraphModule))
            return _Filling(args[place]).run(*args[place + 1 :])
        whole = target in TIME_LOOPS and len(args) == ARGUMENTS_OF_TIME_LOOPS
        if whole and all(map(_has_three_axes, (args[0], *_states(args)))):
            return _recurrent(*args)
        return super().call_function(record(target).function or target, args, kwargs)


def _has_three_axes(value: Any) -> bool:
    return isinstance(value, Tensor) and value.ndim == 3


def _states(args: Sequence[Any]) -> Sequence[Any]:
    return args[1] if isinstance(args[1], (list, tuple)) else args[1:2]


def _recurrent(x: Tensor, hx: Any, *settings: Any) -> tuple[Tensor, ...]:
    """Make what recurrent layers return, in the sizes of their states: torch would run every time step."""
    *_, bidirectional, batch_first = settings
    states = _states((x, hx))
    first, second = (x.shape[1], x.shape[0]) if batch_first else x.shape[:2]  # time, examples
    found = x.new_empty(first, second, states[0].shape[-1] * (2 if bidirectional else 1))
    return (found.transpose(0, 1) if batch_first else found, *(state.new_empty(state.shape) for state in states))


def _check(value: Any, node: Node) -> None:
    """Refuse sizes that take long to work out, and more entries than any memory holds."""
    sizes = [*value.shape, value.numel()] if isinstance(value, Tensor) else [value]
    for size in sizes:
        number: Any = size
        if isinstance(size, (torch.SymInt, torch.SymFloat)):
            if _is_long(size.node.expr):
                raise ValueError(f"the sizes of {node.name} are too long to work out")
            number = size.node.hint if size.node.has_hint() else 0
        limit = ENTRIES_OF_ANY_MEMORY if isinstance(value, Tensor) else LARGEST_NUMBER
        if isinstance(number, int) and abs(number) > limit:
            raise ValueError(f"{node.name} is beyond any memory")


def _is_long(expression: Any) -> bool:
    powers = (part.exp for part in expression.find(lambda part: part.is_Pow))
    steep = any(not power.is_number or abs(power) > HIGHEST_POWER for power in powers)
    return steep or expression.count_ops() > LONGEST_SIZE


def _hint(stored: Mapping[str, Any]) -> int:
    """Give a size's number when the program was exported."""
    kind, value = one(stored)
    return integer(value) if kind == "as_int" else integer((value.get("hint") or {}).get("as_int") or 0)
