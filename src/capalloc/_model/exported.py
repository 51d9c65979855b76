"""Exported programs as models: their parameters under their own names, and any number of examples."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind
from torch.fx import GraphModule, Interpreter, Node
from torch.utils import _pytree as pytree

from capalloc._operators.calls import arguments_of
from capalloc._operators.records import record

LARGEST_SIZE = 2**63


class SavedModel(nn.Module):
    """The module that an exported program stands for, in evaluation mode, on any number of examples.

    It takes its inputs in order or by name. A program exported at a fixed batch size runs on chunks of exactly that
    size, the last one padded.
    """

    def __init__(self, program: ExportedProgram) -> None:
        super().__init__()
        _check_inputs(program)
        _check_mode(program)
        self._program = program
        self._shapes = _input_shapes(program)
        self.input_names = tuple(user_inputs(program))
        self._places: list[str | None] = []  # what each placeholder stands for, None for the examples
        first: dict[tuple[Any, ...], Tensor] = {}  # one parameter where a file holds one tensor under two names
        for spec in program.graph_signature.input_specs:
            path = None if spec.kind is InputKind.USER_INPUT else str(spec.target)
            self._places.append(path)
            if path is None:
                continue
            value = (program.state_dict if path in program.state_dict else program.constants)[path]
            if spec.kind is InputKind.PARAMETER:
                key = (value.data_ptr(), value.shape, value.stride()) if value.numel() else (path,)
                value = first.setdefault(key, nn.Parameter(value.detach(), requires_grad=False))  # the same memory
            _place(self, path, value)
        self._dtype = next((p.dtype for p in self.parameters() if p.is_floating_point()), torch.float32)
        for path in dict.fromkeys(map(module_of, program.graph.nodes)):
            _make_part(self, path)

    def forward(self, *given: Tensor, **named: Tensor) -> Any:
        by_name = dict(zip(self.input_names, given, strict=False)) | named
        if set(by_name) != {*self.input_names}:
            raise TypeError(f"the program takes {', '.join(self.input_names)}, and was given {', '.join(by_name)}")
        inputs = [by_name[name] for name in self.input_names]
        for x, shape, name in zip(inputs, self._shapes, self.input_names, strict=True):
            self._check(x, shape, f" {name}" if len(self.input_names) > 1 else "")
        return in_chunks(self._run, inputs, self.fixed_size)

    @property
    def fixed_size(self) -> int | None:
        """The only number of examples that the program runs on, if it is one."""
        return self._shapes[0][0]

    def check_examples(self, x: Tensor) -> None:
        """Refuse examples of another shape than the program was exported for."""
        self._check(x, self._shapes[0])

    def takes_one_signal(self) -> bool:
        """Tell whether its one input is of floating point, and no parameter is complex."""
        if any(p.is_complex() for p in self.parameters()):
            return False
        return len(self.input_names) == 1 and _input_values(self._program)[0].is_floating_point()

    def _check(self, x: Tensor, shape: tuple[int | None, ...], name: str = "") -> None:
        if not _fits(x.shape[1:], shape[1:]):
            raise ValueError(f"the program was exported for inputs{name} of shape {shown(shape)}, got {tuple(x.shape)}")

    def __deepcopy__(self, memo: dict[int, Any]) -> SavedModel:
        memo[id(self._program)] = self._program  # it is only read
        copied = type(self).__new__(type(self))
        memo[id(self)] = copied
        copied.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return copied

    def _run(self, inputs: Sequence[Tensor]) -> Any:
        values = iter(inputs)
        given = [next(values) if path is None else _taken(self, path) for path in self._places]
        floating = (t.dtype for t in (*inputs, *self.parameters()) if t.is_floating_point())
        returned = _Run(self, self._program, self._dtype, next(floating, self._dtype)).run(*given)
        kinds = [spec.kind for spec in self._program.graph_signature.output_specs]
        own = [value for value, kind in zip(returned, kinds, strict=True) if kind is OutputKind.USER_OUTPUT]
        return pytree.tree_unflatten(own, self._program.call_spec.out_spec)


def check_batch_of(model: nn.Module) -> None:
    """Refuse a program's own module whose guards hold it to one number of examples."""
    if not isinstance(model, GraphModule) or not hasattr(model, "_guards_fn"):
        return
    given = (node.meta.get("val") for node in model.graph.nodes if node.op == "placeholder")
    for value in given:
        if isinstance(value, Tensor) and value.ndim and isinstance(value.shape[0], int):
            raise ValueError(
                f"model is the module of a program exported for batches of {value.shape[0]}, and is asked for others, "
                "too: pass the program itself, or export it with a dynamic number of examples"
            )


def in_chunks(run: Callable[[list[Tensor]], Any], inputs: Sequence[Tensor], size: int | None) -> Any:
    """Run on chunks of exactly `size` examples, the last one padded, and join what they return; at once for None."""
    number = len(inputs[0])
    if size is None or number == size:
        return run([*inputs])
    returned = []
    for chunk in zip(*(x.split(size) for x in inputs), strict=True):
        returned.append(run([torch.cat([x, x[-1:].expand(size - len(x), *x.shape[1:])]) for x in chunk]))
    leaves = [pytree.tree_leaves(r) for r in returned]
    joined = [torch.cat(parts)[:number] if parts[0].ndim else parts[0] for parts in zip(*leaves, strict=True)]
    return pytree.tree_unflatten(joined, pytree.tree_structure(returned[0]))


class _Part(nn.Module):
    """A module that the program was made of: it runs its operators one by one, which are captured under its name."""

    def forward(self, run: Callable[[], Any]) -> Any:
        """Run one operator."""
        return run()


def module_of(node: Node) -> str:
    """Give the path of the innermost module that a node belongs to, '' for the model itself."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    return str(stack[-1][0]) if stack else ""


def _make_part(module: nn.Module, path: str) -> nn.Module:
    """Give the part of that path, made with those above it where there is none."""
    for name in path.split(".") if path else ():
        if name not in module._modules:
            if not name or hasattr(module, name):
                break  # a name of torch's own
            module.add_module(name, _Part())
        module = getattr(module, name)
    return module


def _place(module: nn.Module, path: str, value: Any) -> None:
    """Put a tensor where its dotted path says."""
    *owners, name = path.split(".")
    for owner in owners:
        if owner not in module._modules:
            module.add_module(owner, _Part())
        module = getattr(module, owner)
    if isinstance(value, nn.Parameter):
        module.register_parameter(name, value)
    elif isinstance(value, Tensor):
        module.register_buffer(name, value)
    else:
        setattr(module, name, value)


def _taken(module: nn.Module, path: str) -> Any:
    owner, _, name = path.rpartition(".")
    return getattr(module.get_submodule(owner), name)


class _Run(Interpreter):
    """The program's graph, operator by operator, in another precision than it was exported in."""

    def __init__(self, model: nn.Module, program: ExportedProgram, exported: torch.dtype, wanted: torch.dtype) -> None:
        super().__init__(program.graph_module)
        self.model = model
        self.cast = {exported.to_complex(): wanted.to_complex(), exported: wanted}

    def run_node(self, n: Node) -> Any:
        """Run one node, in the module that it belongs to."""
        run = partial(super().run_node, n)
        try:
            part = self.model.get_submodule(module_of(n)) if n.op == "call_function" else None
        except AttributeError:
            part = None
        return part(run) if isinstance(part, _Part) else run()

    def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run one operator."""
        if target.__name__.startswith("_assert"):  # of what it was exported with, which the caller checks
            return None
        args, kwargs = pytree.tree_map_only(torch.dtype, lambda d: self.cast.get(d, d), (args, kwargs))
        result = super().call_function(record(target).function or target, args, kwargs)
        if type(result) is int and abs(result) > LARGEST_SIZE:  # else a file's arithmetic could fill the memory
            raise ValueError(f"the program computes a size beyond 64 bits in {target.__name__}")
        return result


def user_inputs(program: ExportedProgram) -> list[str]:
    """Placeholders of the program's own inputs."""
    return [getattr(s.arg, "name", "") for s in program.graph_signature.input_specs if s.kind is InputKind.USER_INPUT]


def input_shape(program: ExportedProgram) -> tuple[int | None, ...]:
    """Shape of the program's first input, None for an axis of any length."""
    return _input_shapes(program)[0]


def _input_shapes(program: ExportedProgram) -> list[tuple[int | None, ...]]:
    return [tuple(n if isinstance(n, int) else None for n in value.shape) for value in _input_values(program)]


def _input_values(program: ExportedProgram) -> list[Any]:
    nodes = {node.name: node for node in program.graph.nodes}
    return [nodes[name].meta.get("val") if name in nodes else None for name in user_inputs(program)]


def shown(shape: tuple[int | None, ...]) -> str:
    """A shape for people: `any` where it is free."""
    return "(" + ", ".join("any" if n is None else str(n) for n in shape) + ")"


def _fits(given: Sequence[int], exported: Sequence[int | None]) -> bool:
    return len(given) == len(exported) and all(n in (None, k) for k, n in zip(given, exported, strict=True))


def _check_inputs(program: ExportedProgram) -> None:
    names, values = user_inputs(program), _input_values(program)
    if not names or not all(isinstance(value, Tensor) for value in values):
        raise ValueError(
            f"the program takes {len(names)} inputs ({', '.join(names)}), not all of them tensors: export a module "
            "whose forward takes tensors of examples"
        )
    if not all(value.ndim for value in values):
        raise ValueError("the program's input has no examples axis")


def _check_mode(program: ExportedProgram) -> None:
    for node in program.graph.nodes:
        if _is_training(node):
            raise ValueError(
                f"the program was exported in training mode ({node.target} in {node.name!r}); export it again after "
                "model.eval()"
            )


def _is_training(node: Node) -> bool:
    """Tell whether an operator behaves as it does only while a model is trained."""
    given = arguments_of(node)
    probability = given.get("dropout_p", given.get("dropout", 1.0))  # of attention, of recurrent layers
    return probability != 0 and given.get("train", given.get("training", "dropout_p" in given)) is not False
