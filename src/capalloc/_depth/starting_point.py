"""Signs of initial weights: branches that start closed on purpose, and norms that training has not moved."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.fx import Node

from capalloc._energy.residual import ResidualBlock, Trails
from capalloc._graph.capture import Graph
from capalloc._operators.calls import arguments_of
from capalloc._operators.records import record

#: Root mean square of a branch's scale up to which it is small on purpose: the largest start of layer scale (Touvron et
#: al., arXiv 2103.17239).
SMALL_SCALE = 0.1 * (1 + 1e-6)
#: Rate times the number of blocks up to which a branch hardly counts.
HARDLY = 0.1

TOLD = "weights of a trained network: rates and correlations are described, no advice is given"
SEEN = (
    "weights look trained, since a norm's scales or shifts differ from channel to channel: rates and correlations are "
    "described, no advice is given; trained=False (--initial) says that they are initial weights"
)


def starts_at_identity(trails: Trails, block: ResidualBlock, rate: float, number: int) -> bool:
    """Tell whether a branch hardly counts because of a weight of zero in it, or of a small scale.

    A scale multiplies entry by entry: layer scale, ReZero, the scale of a norm.
    """
    if not rate * number <= HARDLY:
        return False
    values = parameters(trails.graph)
    bent = {parameter.name for parameter in trails.carriers.reparametrised}
    for node in trails.weighing(block.source, block.branch):
        name = trails.weights(node)[0]
        weight = values[name]
        if any(trails.graph.params.get(placeholder) == name for placeholder in bent):
            if rate == 0 and not weight.any():  # tanh(0), and not 1 + 0
                return True
            continue
        is_scale = weight.numel() == max(weight.shape, default=1)
        if not weight.any() or (is_scale and float(weight.double().square().mean()) <= SMALL_SCALE**2):
            return True
    return False


def described(graph: Graph, trained: bool | None) -> dict[str, Any]:
    """Give what a result is told of the network: whether it has norms, and whether it is trained, with a note.

    The user says that it is trained, or its norms do: they start with one scale and one shift for all channels. Running
    statistics tell nothing: a network whose statistics were taken from data may still have its initial weights.
    """
    norms = [node for node in graph.calls() if record(node.target).kind == "normalisation"]
    found: dict[str, Any] = {"normed": bool(norms)}
    if trained or (trained is None and _moved(graph, norms)):
        found |= {"trained": True, "notes": [TOLD if trained else SEEN]}
    return found


def parameters(graph: Graph) -> dict[str, Tensor]:
    """The values of the parameters, by name."""
    return {name: graph.constants[placeholder] for placeholder, name in graph.params.items()}


def _moved(graph: Graph, norms: list[Node]) -> bool:
    """Tell whether a scale or a shift of a norm differs between channels."""
    used = (arguments_of(node).get(key) for node in norms for key in ("weight", "bias"))
    values = (graph.constants[node.name] for node in used if isinstance(node, Node) and node.name in graph.params)
    return any(bool((value != value.flatten()[0]).any()) for value in values)
