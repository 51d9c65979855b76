"""A second way to a graph, where `torch.export` refuses: run the model on an example and write down what it calls."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.export import ExportedProgram
from torch.fx import GraphModule, Node
from torch.fx.experimental.proxy_tensor import make_fx

from capalloc._model.agree import agree
from capalloc._model.noticing import Noticing
from capalloc._model.problem import seeded
from capalloc._model.replaced_params import call_with
from capalloc._operators.decompositions import PACKED

#: Said in the results of a graph that was made this way.
RETRACED = (
    "torch.export does not take this model: its graph was written down while it ran on one example, branches on what "
    "does not depend on the inputs taken as they were, and layers are named after operators"
)


def retrace(model: nn.Module, example: Tensor, *, below: bool = False) -> tuple[ExportedProgram, dict[str, Tensor]]:
    """Export what a model calls on an example, and give its parameters, which are inputs before the example.

    `below` writes down what derivatives call, where forward takes some (`torch.func.grad`).

    Raises ValueError where a branch or a shape depends on the inputs: other examples would take another way; and where
    the graph holds numbers of the run itself, as those do that autograd saved while forward took derivatives.
    """
    params = {name: parameter.detach() for name, parameter in model.named_parameters()}
    run: Callable[..., Tensor] = lambda params, x: call_with(model, params, (x,))  # noqa: E731
    given = example.clone().requires_grad_().clone()  # as `measure` runs it
    written = make_fx(run, PACKED, pre_dispatch=not below, _error_on_data_dependent_ops=False)
    traced: GraphModule = written(params, given)
    if below and not _detaches(run, params, given):
        for node in traced.graph.nodes:
            if node.target is torch.ops.aten.detach.default:  # what autograd saved
                node.replace_all_uses_with(node.args[0])
    placeholders = [node for node in traced.graph.nodes if node.op == "placeholder"]
    depends = {placeholders[-1]}
    for node in list(traced.graph.nodes):
        if depends.isdisjoint(node.all_input_nodes):
            if _reads_a_number(node) or (not node.users and _writes(node)):  # the run has written to the parameters
                traced.graph.erase_node(node)
            continue
        depends.add(node)
        if _reads_a_number(node) or torch.Tag.dynamic_output_shape in getattr(node.target, "tags", ()):
            raise ValueError(f"{node.target} makes a branch or a shape of the inputs")
    traced.graph.eliminate_dead_code()
    traced.recompile()
    _check(traced, run, params, example)
    return torch.export.export(traced, (params, example), strict=False), params


def _detaches(run: Callable[..., Tensor], params: dict[str, Tensor], given: Tensor) -> bool:
    """Tell whether a model detaches tensors itself."""
    detaching = Noticing((Tensor.detach, torch.detach, getattr(Tensor.data, "__get__", None)).__contains__)
    with detaching:
        run(params, given.clone())
    return detaching.seen


def _check(traced: GraphModule, run: Callable[..., Tensor], params: dict[str, Tensor], example: Tensor) -> None:
    known = {p.untyped_storage().data_ptr() for p in params.values()}
    held = (getattr(traced, str(node.target)) for node in traced.graph.nodes if node.op == "get_attr")
    saved = any(isinstance(t, Tensor) and t.untyped_storage().data_ptr() in known for t in held)
    random = torch.Generator().manual_seed(0)
    near = example * (1 - torch.rand(example.shape, generator=random).to(example) / 5)
    far = 4 * torch.randn(example.shape, generator=random).to(example) * example.abs().amax().clamp(min=1)
    for other in (near, far):  # which opens what is closed here
        found = []
        for function in (traced, run):
            with seeded(0, example.device):
                found.append(function(params, other).detach())
        told = other is near or bool(found[1].isfinite().all())
        if saved or (told and not agree(*found)):
            raise ValueError("the graph of one example is not that of another")


def _writes(node: Node) -> bool:
    return isinstance(node.target, OpOverload) and node.target._schema.is_mutable


def _reads_a_number(node: Node) -> bool:
    return node.target in (torch.ops.aten.item.default, torch.ops.aten._local_scalar_dense.default)
