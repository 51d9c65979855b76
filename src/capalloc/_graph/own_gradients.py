"""Custom autograd functions whose gradient is not that of their forward, which is all that a captured graph knows."""

from __future__ import annotations

from contextlib import suppress
from itertools import islice
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from capalloc._graph.interpret import evaluate
from capalloc._model.agree import agree
from capalloc._model.custom_functions import learning
from capalloc._model.problem import Problem, seeded

if TYPE_CHECKING:
    from capalloc._graph.capture import Graph

#: Batches on which gradients are compared, each beside one of random numbers.
BATCHES_COMPARED = 4


def check_gradients(problem: Problem, graph: Graph) -> None:
    """Compare the gradients of the model, whose forward calls custom functions, with those of its captured graph.

    Raises:
        ValueError: they are not the same.

    """
    random = torch.Generator().manual_seed(0)
    for batch, _ in islice(problem.padded_batches(graph.batch_size), BATCHES_COMPARED):
        drawn = torch.randn(batch.shape, generator=random).to(batch) * batch.std().clamp(min=1.0)
        # Units that are closed on some examples may be open on others.
        if not all(_agree(problem, graph, x.clone().requires_grad_()) for x in (batch, drawn)):
            raise ValueError(
                f"the gradient of the captured graph is not the model's: custom autograd functions "
                f"({', '.join(graph.functions)}) have one of their own, as surrogates do, and a graph has that of "
                "their forward; write s(x) + (f(x) - s(x)).detach() with the function s whose gradient it is"
            )


def _agree(problem: Problem, graph: Graph, x: Tensor) -> bool:
    """Tell whether the gradients are the same on examples; they are where one of them is not known."""
    params = dict(problem.model.named_parameters())
    with suppress(RuntimeError), torch.enable_grad(), learning(params.values()), seeded(0, x.device):
        leaves = [x, *(p for p in params.values() if p.requires_grad)]
        own = _gradients(problem.select(problem.model(x)), leaves)
        of_graph = _gradients(evaluate(graph, x, params)[graph.output], leaves)
        pairs = [(a, b) for a, b in zip(own, of_graph, strict=True) if a.isfinite().all() and b.isfinite().all()]
        return all(agree(a, b) for a, b in pairs)
    return True


def _gradients(y: Tensor, leaves: list[Tensor]) -> tuple[Tensor, ...]:
    weights = torch.randn(y.shape, generator=torch.Generator().manual_seed(0)).to(y)
    found: tuple[Tensor, ...] = torch.autograd.grad((y * weights).sum(), leaves, materialize_grads=True)
    return found
