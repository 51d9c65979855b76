"""The model as a functional ATen graph: the only module that knows `torch.export`."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch._C import DispatchKey
from torch._ops import HigherOrderOperator, OpOverload
from torch._subclasses.fake_tensor import FakeTensor
from torch.export import Dim, ExportedProgram
from torch.export.graph_signature import InputKind
from torch.fx import Node
from torch.utils import _pytree as pytree

from capalloc._graph.computed_for_nothing import drop_what_is_lost
from capalloc._graph.exporting import exporting
from capalloc._graph.out_of_place import make_out_of_place
from capalloc._graph.own_gradients import check_gradients
from capalloc._graph.retrace import RETRACED, retrace
from capalloc._graph.weigh_by_parameters import weigh_by_parameters
from capalloc._model.custom_functions import noted
from capalloc._model.exported import SavedModel, module_of, user_inputs
from capalloc._model.problem import Problem
from capalloc._operators.calls import arguments_of, leaves, mapped
from capalloc._operators.decompositions import table
from capalloc._operators.records import record

#: Said in the results of a graph that was captured this way.
STRICT = "torch.export takes this model in strict mode alone, where it reads its Python instead of running it"
#: Functions that torch.export leaves in a graph for a `torch.func.vmap`, which decomposing puts in line.
VMAP_MARKS = "torch._functorch.predispatch"
#: Where the wrapper keeps the model.
PREFIX = "model."


@dataclass(frozen=True)
class Graph:
    """A functional ATen graph for a fixed batch size, with the tensors its placeholders stand for."""

    nodes: tuple[Node, ...]
    params: dict[str, str]  # placeholder -> parameter name
    constants: dict[str, Any]  # placeholder -> parameter, buffer or lifted constant
    input: str  # placeholder of the examples
    output: Node
    batch_size: int
    found: dict[Any, Any] = field(default_factory=dict)  # matrices of operators without a rule, for all batches
    notes: tuple[str, ...] = ()  # on how it was captured
    functions: tuple[str, ...] = ()  # custom autograd functions that forward calls

    def calls(self) -> Iterator[Node]:
        return (node for node in self.nodes if node.op == "call_function")

    def entries(self) -> int:
        """Count the numbers that the calls compute."""
        return sum(self.sizes())

    def sizes(self) -> list[int]:
        """Count the numbers of each tensor that the calls compute."""
        values = [leaf for node in self.calls() for leaf in leaves(node.meta.get("val"))]
        return [value.numel() for value in values if isinstance(value, Tensor)]


class _Constrained(nn.Module):
    """The model followed by the choice of constraint outputs."""

    def __init__(self, model: nn.Module, select: Callable[[Any], Tensor]) -> None:
        super().__init__()
        self.model = model
        self.select = select

    def forward(self, x: Tensor) -> Tensor:
        return self.select(self.model(x))


class _Selected(nn.Module):
    """The choice of constraint outputs, from the leaves of what a model returns."""

    def __init__(self, select: Callable[[Any], Tensor], spec: pytree.TreeSpec) -> None:
        super().__init__()
        self.select = select
        self.spec = spec

    def forward(self, *leaves: Any) -> Tensor:
        return self.select(pytree.tree_unflatten(list(leaves), self.spec))


def capture(problem: Problem, batch_size: int) -> Graph:
    """Capture the model's graph at `batch_size`: functional, with composite operators whole where they have a rule.

    An exported program of one input is not exported again: its own graph serves. One of several inputs is, and its
    operators keep their modules. Where its batch size is fixed it is that of the graph.
    """
    program = problem.program
    if isinstance(problem.model, SavedModel):
        batch_size = problem.model.fixed_size or batch_size
    try:
        if program is None:
            graph = _exported(problem, batch_size)
        else:
            with exporting(problem):
                graph = _own(problem, decomposed(program), batch_size)
    except Exception as error:
        other = None
        ways = (_retraced, partial(_exported, strict=True), partial(_retraced, below=True))
        for way in ways if program is None else ():
            with suppress(Exception):
                other = other or way(problem, batch_size)
        if other is None:
            raise ValueError(
                "torch.export cannot capture this model, which propagation needs "
                f"(measure() does not): {_in_words(error)}"
            ) from error
        graph = other
    for node in graph.calls():
        if isinstance(node.target, HigherOrderOperator):
            raise NotImplementedError(
                f"the graph holds a call of torch's {node.target} with functions of its own, which has no rule: "
                "write it in plain Python, or use capalloc.measure"
            )
    if graph.functions:
        check_gradients(problem, graph)
    return replace(graph, nodes=weigh_by_parameters(graph.nodes, graph.input, graph.params))


def _in_words(error: Exception) -> str:
    """The reason why a model cannot be exported: a branch on values by its place, else what torch says of it."""
    if type(error).__name__ != "GuardOnDataDependentSymNode":
        return f"{type(error).__name__}: {error}"
    place = re.search(r'File "(.+)", line (\d+)', str(error))
    where = f" ({place[1]}, line {place[2]})" if place else ""
    return f"what forward does depends on values that it computes, as an if on them does{where}"


def export_once(problem: Problem) -> Problem:
    """The problem with its model exported for any number of examples from 2 on: graphs of all sizes cost one export.

    As it is where a program was given, and where what the model does depends on that number.
    """
    if problem.program is not None:
        return problem
    example = problem.probe.expand(3, *problem.input_shape).clone()  # export takes 0 and 1 for numbers of their own
    with suppress(Exception), exporting(problem), noted(problem.model) as functions:
        program = torch.export.export(problem.model, (example,), dynamic_shapes=({0: Dim.AUTO},), strict=False)
        if not functions and getattr(program, "_guards_code", None) == []:  # else it holds for some numbers only
            make_out_of_place(program.graph)
            return replace(problem, program=decomposed(program))
    return problem


def decomposed(program: ExportedProgram) -> ExportedProgram:
    """Make a program functional and of operators with a rule where they can be had; leave one that is."""
    calls = [node for node in program.graph.nodes if node.op == "call_function"]
    decompositions = dict(table())  # the decomposing takes entries out
    if not any(node.target in decompositions or _is_composite(node) for node in calls):
        return program
    with _ends_without_gradient(program):
        functional: ExportedProgram = program.run_decompositions(decompositions)
    return functional


@contextmanager
def _ends_without_gradient(program: ExportedProgram) -> Iterator[None]:
    """End paths where a part under `torch.no_grad()` ends, for a while: decomposing puts it in line, unmarked."""
    added: list[tuple[torch.fx.Graph, Node]] = []
    for node in program.graph.nodes:
        if node.target is not torch.ops.higher_order.wrap_with_set_grad_enabled or node.args[0]:
            continue
        part = getattr(program.graph_module, node.args[1].target).graph
        last = part.output_node()
        for made in last.all_input_nodes:
            if isinstance(made.meta.get("val"), Tensor) and not _writes_to_given(made):
                with part.inserting_before(last):
                    detached = part.call_function(torch.ops.aten.detach.default, (made,))
                detached.meta.update(made.meta)
                last.replace_input_with(made, detached)
                added.append((part, detached))
    try:
        yield
    finally:
        for part, detached in added:
            detached.replace_all_uses_with(detached.all_input_nodes[0])
            part.erase_node(detached)


def _writes_to_given(made: Node) -> bool:
    """Tell whether a node of a part writes in place to what the part was given, such as a parameter."""
    writes = isinstance(made.target, OpOverload) and made.target._schema.is_mutable
    return writes and isinstance(made.args[0], Node) and made.args[0].op == "placeholder"


def _is_constant(value: Any) -> bool:
    """Tell whether export made a node of a tensor that stands in the code of `forward`."""
    return isinstance(value, Node) and value.target is torch.ops.aten.lift_fresh_copy.default


def _is_composite(node: Node) -> bool:
    """Tell whether an operator without a rule writes in place or is made of others.

    Sizes are none of these, and what has no gradient, such as a mask or a constant, may stay as it is. Dropout that
    drops shows its mask when it is taken apart.
    """
    target, made = node.target, node.meta.get("val")
    if target is torch.ops.aten.detach_.default and _is_constant(node.args[0]):
        return False
    if target is torch.ops.aten.dropout.default:
        return bool(arguments_of(node)["train"])
    if record(target).energy is not None or target is torch.ops.aten.sym_size.int:
        return False
    if isinstance(made, Tensor) and not (made.is_floating_point() or made.is_complex()):
        return isinstance(target, OpOverload) and target._schema.is_mutable
    if not isinstance(target, OpOverload):  # `torch.func.vmap` in forward leaves marks of where it begins and ends
        return isinstance(target, HigherOrderOperator) or getattr(target, "__module__", None) == VMAP_MARKS
    return target._schema.is_mutable or target.has_kernel_for_dispatch_key(DispatchKey.CompositeImplicitAutograd)


def _exported(problem: Problem, batch_size: int, *, strict: bool = False) -> Graph:
    """The graph that torch.export captures: it runs the model, or in `strict` mode reads its Python."""
    with exporting(problem):
        example = problem.probe.expand(batch_size, *problem.input_shape).clone()
        wrapped = _Constrained(problem.model, problem.select).eval()
        with noted(wrapped) as functions:
            program = torch.export.export(wrapped, (example,), strict=strict)
        if any(isinstance(value, FakeTensor) for value in program.constants.values()):
            raise ValueError("the program writes to what it has no values of")  # decomposing it ends the process
        make_out_of_place(program.graph)
        program = decomposed(program)
    params, constants, replaced = _values(program)
    nodes = {node.name: node for node in program.graph.nodes}
    for name, first in (replaced | _written(program, params)).items():
        nodes[name].replace_all_uses_with(nodes[first])
    output = nodes["output"].args[0][-1]  # type: ignore[index, unused-ignore]
    assert isinstance(output, Node)
    params = {name: path.removeprefix(PREFIX) for name, path in params.items()}
    drop_what_is_lost(program.graph)
    notes = (STRICT,) if strict else ()
    return Graph(
        tuple(program.graph.nodes),
        params,
        constants,
        user_inputs(program)[0],
        output,
        batch_size,
        notes=notes,
        functions=tuple(functions),
    )


def _retraced(problem: Problem, batch_size: int, *, below: bool = False) -> Graph:
    """The graph of what the model calls on an example: the parameters are inputs of its program."""
    example = problem.probe.expand(batch_size, *problem.input_shape).clone()
    with exporting(problem):
        wrapped = _Constrained(problem.model, problem.select).eval()
        with noted(wrapped) as functions:
            program, params = retrace(wrapped, example, below=below)
        program = decomposed(program)
    *names, x = user_inputs(program)
    given = dict(zip(names, params, strict=True))
    constants = _values(program)[1] | {name: params[path] for name, path in given.items()}
    output = program.graph.output_node().args[0][-1]  # type: ignore[index, unused-ignore]
    assert isinstance(output, Node)
    drop_what_is_lost(program.graph)
    paths = {name: path.removeprefix(PREFIX) for name, path in given.items()}
    return Graph(
        tuple(program.graph.nodes),
        paths,
        constants,
        x,
        output,
        batch_size,
        notes=(RETRACED,),
        functions=tuple(functions),
    )


def _own(problem: Problem, program: ExportedProgram, batch_size: int) -> Graph:
    """A copy of the graph of a given program, for a batch size, followed by the choice of constraint outputs."""
    params, constants, replaced = _values(program)
    name = user_inputs(program)[0]
    copies: dict[Node, Node] = {}
    graph = torch.fx.Graph()
    returned: Any = graph.graph_copy(program.graph, copies)
    nodes = {old.name: new for old, new in copies.items()}
    sizes = _sizes(nodes[name].meta["val"].shape, (batch_size, *problem.input_shape))
    for node in graph.nodes:
        node.meta["val"] = mapped(lambda v: _concrete(v, sizes), node.meta.get("val"))
        stack = node.meta.get("nn_module_stack") or {}
        node.meta["nn_module_stack"] = {key: (PREFIX + path, kind) for key, (path, kind) in stack.items()}
    written = {} if isinstance(problem.model, SavedModel) else _written(program, params)
    for tied, first in (replaced | written).items():
        nodes[tied].replace_all_uses_with(nodes[first])
    output = _choose(problem, graph, list(returned), constants, batch_size)
    graph.output((output,))
    drop_what_is_lost(graph)
    params = {nodes[node].name: path for node, path in params.items()}
    constants = {nodes[node].name if node in nodes else node: value for node, value in constants.items()}
    return Graph(tuple(graph.nodes), params, constants, nodes[name].name, output, batch_size)


def _values(program: ExportedProgram) -> tuple[dict[str, str], dict[str, Any], dict[str, str]]:
    """Placeholders: parameters by name, values of all but the inputs, and those that hold another's tensor."""
    params: dict[str, str] = {}
    constants: dict[str, Any] = {}
    replaced: dict[str, str] = {}
    owners: dict[tuple[Any, ...], str] = {}
    for spec in program.graph_signature.input_specs:
        name, target = getattr(spec.arg, "name", ""), str(spec.target)
        if spec.kind is InputKind.USER_INPUT:
            continue
        value = (program.state_dict if target in program.state_dict else program.constants)[target]
        constants[name] = value
        if spec.kind is InputKind.PARAMETER:
            owner = owners.setdefault((value.data_ptr(), value.shape, value.stride()), name)
            if owner == name or not value.numel():
                params[name] = target
            else:
                replaced[name] = owner
    return params, constants, replaced


def _written(program: ExportedProgram, params: dict[str, str]) -> dict[str, str]:
    """Name the nodes that a parameter is overwritten by, as by a clamp without gradient, with its placeholder.

    A private copy that has run holds what was written already, and gradients go to the parameter.
    """
    placeholders = {path: name for name, path in params.items()}
    outputs = [spec for spec in program.graph_signature.output_specs if spec.kind.name == "PARAMETER_MUTATION"]
    return {spec.arg.name: placeholders[spec.target] for spec in outputs if spec.target in placeholders}


def _sizes(symbolic: Sequence[Any], shape: Sequence[int]) -> dict[Any, int]:
    return {n.node.expr: k for n, k in zip(symbolic, shape, strict=True) if not isinstance(n, int)}


def _concrete(value: Any, sizes: dict[Any, int]) -> Any:
    """Fill known sizes into what a node computes: tensors without data, numbers."""
    if isinstance(value, torch.SymInt):
        return int(value.node.expr.subs(sizes))
    if isinstance(value, Tensor):
        shape = [_concrete(n, sizes) for n in value.shape]
        return torch.empty(shape, dtype=value.dtype, device="meta")
    return value


def _choose(
    problem: Problem,
    graph: torch.fx.Graph,
    returned: list[Any],
    constants: dict[str, Any],
    batch_size: int,
) -> Node:
    """The node of the constraint outputs; what `outputs` computes itself is exported and appended."""
    if problem.outputs is None and len(returned) == 1 and isinstance(returned[0], Node):
        return returned[0]  # there is nothing to choose from
    tree = problem.model(problem.probe)
    chosen = problem.select(tree)
    leaves, spec = pytree.tree_flatten(tree)
    for node, leaf in zip(returned[-len(leaves) :], leaves, strict=True):
        if leaf is chosen and isinstance(node, Node):
            return node
    examples = tuple(x.expand(batch_size, *x.shape[1:]).clone() if isinstance(x, Tensor) else x for x in leaves)
    select = _Selected(problem.select, spec)
    program = decomposed(torch.export.export(select, examples, strict=False))
    copies: dict[Node, Node] = {}
    _, values, _ = _values(program)
    given = dict(zip(user_inputs(program), returned[-len(leaves) :], strict=True))
    for node in program.graph.nodes:
        if node.op == "placeholder" and node.name in given:
            copies[node] = given[node.name]
        elif node.op != "output":
            copies[node] = graph.node_copy(node, lambda n: copies[n])
            if node.op == "placeholder":
                constants[copies[node].name] = values[node.name]
    last = program.graph.output_node().args[0][-1]  # type: ignore[index, unused-ignore]
    assert isinstance(last, Node)
    return copies[last]


def module_path(node: Node) -> str:
    """Give the path of the innermost module a node belongs to, '' for the model itself."""
    return module_of(node).removeprefix("model").removeprefix(".")
