"""Custom autograd functions whose gradient is not that of their forward, which is all that a captured graph knows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from capalloc._model.agree import agree
from capalloc._model.custom_functions import learning
from capalloc._model.problem import Problem, seeded
from capalloc._operators.calls import arguments_of, invoke, mapped

#: Batches on which gradients are compared, each beside one of random numbers.
BATCHES_COMPARED = 4


def check_gradients(
    problem: Problem, nodes: Iterable[Node], values: Mapping[str, Any], output: Node, functions: Iterable[str]
) -> None:
    """Compare the gradients of the model, whose forward calls custom `functions`, with those of its captured graph.

    Args:
        problem: the model.
        nodes: the graph's.
        values: what its placeholders stand for: a parameter's name, a tensor, or, where there is none, the examples.
        output: the node of the constraint outputs.
        functions: names, for the error.

    Raises:
        ValueError: they are not the same.

    """
    params = dict(problem.model.named_parameters())
    nodes = list(nodes)
    size = next(node.meta["val"].shape[0] for node in nodes if node.op == "placeholder" and node.name not in values)
    random = torch.Generator().manual_seed(0)
    for batch, _ in islice(problem.padded_batches(size), BATCHES_COMPARED):
        drawn = torch.randn(batch.shape, generator=random).to(batch) * batch.std().clamp(min=1.0)
        # Units that are closed on some examples may be open on others.
        if not all(_agree(problem, nodes, values, output, params, x.clone().requires_grad_()) for x in (batch, drawn)):
            raise ValueError(
                f"the gradient of the captured graph is not the model's: custom autograd functions "
                f"({', '.join(functions)}) have one of their own, as surrogates do, and a graph has that of their "
                "forward; write s(x) + (f(x) - s(x)).detach() with the function s whose gradient it is"
            )


def _agree(
    problem: Problem,
    nodes: list[Node],
    values: Mapping[str, Any],
    output: Node,
    params: Mapping[str, Tensor],
    x: Tensor,
) -> bool:
    """Tell whether the gradients are the same on examples; they are where one of them is not known."""
    with suppress(RuntimeError), torch.enable_grad(), learning(params.values()), seeded(0, x.device):
        leaves = [x, *(p for p in params.values() if p.requires_grad)]
        own = _gradients(problem.select(problem.model(x)), leaves)
        of_graph = _gradients(_run(nodes, values, params, x)[output], leaves)
        pairs = [(a, b) for a, b in zip(own, of_graph, strict=True) if a.isfinite().all() and b.isfinite().all()]
        return all(agree(a, b) for a, b in pairs)
    return True


def _gradients(y: Tensor, leaves: list[Tensor]) -> tuple[Tensor, ...]:
    weights = torch.randn(y.shape, generator=torch.Generator().manual_seed(0)).to(y)
    found: tuple[Tensor, ...] = torch.autograd.grad((y * weights).sum(), leaves, materialize_grads=True)
    return found


def _run(nodes: list[Node], values: Mapping[str, Any], params: Mapping[str, Tensor], x: Tensor) -> dict[Node, Any]:
    """Give the value of every node."""
    known: dict[Node, Any] = {}
    for node in nodes:
        if node.op == "placeholder":
            value = values.get(node.name, x)
            known[node] = params[value] if isinstance(value, str) else value
        elif node.op == "call_function":
            given = mapped(lambda a: known[a] if isinstance(a, Node) else a, arguments_of(node))
            known[node] = invoke(node.target, given)
    return known
