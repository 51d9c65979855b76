"""The model as a functional ATen graph: the only module that knows `torch.export`."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.export.graph_signature import InputKind
from torch.fx import Node
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils import _pytree as pytree

from capalloc.energy.decompositions import table
from capalloc.problem import Problem, seeded


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

    def calls(self) -> Iterator[Node]:
        """The operator calls in order."""
        return (node for node in self.nodes if node.op == "call_function")

    def entries(self) -> int:
        """How many numbers the calls compute."""
        values = [leaf for node in self.calls() for leaf in pytree.tree_leaves(node.meta.get("val"))]
        return sum(value.numel() for value in values if isinstance(value, Tensor))


class _Constrained(nn.Module):
    """The model followed by the choice of constraint outputs."""

    def __init__(self, model: nn.Module, select: Callable[[Any], Tensor]) -> None:
        super().__init__()
        self.model = model
        self.select = select

    def forward(self, x: Tensor) -> Tensor:
        return self.select(self.model(x))


def capture(problem: Problem, batch_size: int) -> Graph:
    """Export the model at `batch_size` and make the graph functional, composite operators kept whole."""
    example = problem.probe.expand(batch_size, *problem.input_shape).clone()
    wrapped = _Constrained(problem.model, problem.select).eval()
    with warnings.catch_warnings(), seeded(0, example.device), torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        warnings.simplefilter("ignore")
        try:
            program = torch.export.export(wrapped, (example,), strict=False).run_decompositions(dict(table()))
        except Exception as error:
            raise ValueError(
                "torch.export cannot capture this model, which propagation needs "
                f"(measure() does not): {type(error).__name__}: {error}"
            ) from error
    return _graph(program, batch_size)


def _graph(program: torch.export.ExportedProgram, batch_size: int) -> Graph:
    params: dict[str, str] = {}
    constants: dict[str, Any] = {}
    inputs: list[str] = []
    for spec in program.graph_signature.input_specs:
        name = getattr(spec.arg, "name", "")
        if spec.kind is InputKind.USER_INPUT:
            inputs.append(name)
        elif spec.kind is InputKind.PARAMETER:
            params[name] = str(spec.target).removeprefix("model.")
            constants[name] = program.state_dict[str(spec.target)]
        else:
            store = program.state_dict if str(spec.target) in program.state_dict else program.constants
            constants[name] = store[str(spec.target)]
    nodes = tuple(program.graph.nodes)
    output = nodes[-1].args[0][-1]  # type: ignore[index, unused-ignore]
    assert isinstance(output, Node)
    return Graph(nodes, params, constants, inputs[0], output, batch_size)


def module_path(node: Node) -> str:
    """Path of the innermost module a node belongs to, '' for the model itself."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    path = str(stack[-1][0]) if stack else ""
    return path.removeprefix("model").removeprefix(".")
