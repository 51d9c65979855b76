"""Initial weights brought into balance: the advice of `scaling`, carried out for an optimiser."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from capalloc._depth.balance_depth import SETTLED, scaling
from capalloc._energy.batches import Batches
from capalloc._energy.carriers import Products
from capalloc._energy.residual import ResidualBlock, Trails
from capalloc._graph.capture import export_once
from capalloc._linalg.metric_names import DEFAULT_METRIC
from capalloc._model.input_metric import InputMetricLike
from capalloc._model.private_copy import unwrapped
from capalloc._model.problem import OutputSelection, Problem, prepare
from capalloc._operators.records import record
from capalloc._runtime.arguments import checked
from capalloc._runtime.surroundings import undisturbed
from capalloc.results.scaling import Scaling

Optimiser = Literal["sgd", "adam"]
#: Operators that make a branch one layer deeper.
LAYER_KINDS = frozenset({"dense", "convolution", "contraction"})
#: Rounds in which plain layers are brought to gain 1: biases move gates, so that one is not enough.
LEVELLING_ROUNDS = 4


class Multiplied(nn.Module):
    """The parametrisation of a parameter that is used as a multiple of what is stored and trained."""

    factor: Tensor

    def __init__(self, factor: float, like: Tensor) -> None:
        super().__init__()
        self.register_buffer("factor", like.detach().new_tensor(factor))

    def forward(self, stored: Tensor) -> Tensor:
        """The multiple."""
        return self.factor * stored


@checked
@undisturbed()
def balance(
    model: nn.Module,
    inputs: Tensor | Iterable[Any],
    outputs: OutputSelection = None,
    *,
    optimiser: Optimiser = "sgd",
    in_place: bool = False,
    metric: InputMetricLike = DEFAULT_METRIC,
    products: Products | None = None,
    trained: bool | None = None,
) -> nn.Module:
    """Bring the depth of a model's initial weights into balance, so that its best learning rate need not know it.

    Each of L residual blocks gets the rate $1/L$, T near 1 (docs/theory.md, section 5): the weight and bias of its
    branch's last layer become a constant times what is stored, so that gradients carry the constant too. That is the
    limit of blocks of one layer, and for SGD of deeper ones (docs/scaling.md, "Whom the advice is for"). With "adam",
    whose steps have no scale, branches of one layer moreover move $1/sqrt(L)$ as fast (their parameters are stored
    $sqrt(L)$ times as large), and deeper branches are multiplied by $1/sqrt(L)$ again, to $1/L$ in all. The plain
    layers of a network without blocks have their weights multiplied to gain 1 (section 6).

    Args:
        model: any module that `torch.export` captures, at its initial weights.
        inputs: examples (examples, *inputs), or an iterable of such batches; labels are ignored.
        outputs: where paths end, as in `measure`.
        optimiser: what will train it, "sgd" or "adam" (and their kin).
        in_place: change the model itself; by default a copy.
        metric: as in `scaling`.
        products: as in `propagate`.
        trained: as in `scaling`; trained weights are refused, unless False says that they are initial ones.

    Returns:
        nn.Module: the model or its copy. Branches have parametrisations of `torch.nn.utils.parametrize`, of which its
        `remove_parametrizations` makes plain parameters once training is over.

    Raises:
        ValueError: trained weights, another optimiser, a branch that no layer stands for, or a model that cannot be
            copied; nothing is changed.
        UnsupportedOperatorError, TypeError: as `scaling`.

    Reference: G. Yang, D. Yu, C. Zhu, S. Hayou, Feature learning in infinite-depth neural networks, arXiv 2310.02244.

    """
    if optimiser not in ("sgd", "adam"):
        raise ValueError(f'optimiser must be "sgd" or "adam", got {optimiser!r}')
    told: dict[str, Any] = {"metric": metric, "products": products, "trained": trained}
    problem = export_once(prepare(model, inputs, outputs, traced=True, by_input=True))
    found = scaling(problem, problem.inputs, **told)
    if found.trained:
        raise ValueError(
            "model looks trained, and balance is for initial weights; trained=False (--initial) says that it is not"
        )
    if found.phase == "plain":
        changed = model if in_place else _copied(model)
        _level(unwrapped(changed), problem, found, told)
        return changed
    trails = _trails(problem, products)
    factors = dict(_factors(trails, found, optimiser))
    changed = model if in_place else _copied(model)
    for name, (used, stored) in factors.items():
        _multiply(unwrapped(changed), name, used, stored)
    return changed


def _copied(model: nn.Module) -> nn.Module:
    try:
        return copy.deepcopy(model)
    except RuntimeError as error:
        raise ValueError(f"model cannot be copied, as pruned ones cannot; give in_place=True: {error}") from error


def _trails(problem: Problem, products: Products | None) -> Trails:
    batches = Batches.of(problem, "data", "auto", products=products)
    return Trails.of(batches.graph, batches.carriers)


def _factors(trails: Trails, found: Scaling, optimiser: Optimiser) -> Iterator[tuple[str, tuple[float, float]]]:
    """Factors by parameter: of its use, and of what is stored."""
    number = found.data.sizes["block"]
    for block, multiplier in zip(trails.blocks(), found.data["multiplier"].to_numpy(), strict=True):
        if not math.isfinite(multiplier):
            continue
        slow = 1.0
        if optimiser == "adam":
            if _layers(trails, block) > 1:
                multiplier = multiplier / math.sqrt(number)
            else:
                slow = math.sqrt(number)
        if abs(math.log(multiplier)) < SETTLED and slow == 1:
            continue
        if not block.last_layer:
            raise ValueError(
                f'no layer stands for the branch of block "{block.name}" (its weights are shared, or its output is '
                f"curved or gated): multiply the branch by {multiplier:.2g} in forward"
            )
        for node in trails.weighing(block.source, block.branch):
            for name in trails.weights(node):
                last = name.rpartition(".")[0] == block.last_layer or name == block.last_layer
                factor = multiplier if last else 1.0
                if factor != 1 or slow != 1:
                    yield name, (factor / slow, slow)


def _layers(trails: Trails, block: ResidualBlock) -> int:
    """Count the matrix products that a branch has one after the other or side by side."""
    return sum(record(node.target).kind in LAYER_KINDS for node in trails.weighing(block.source, block.branch))


def _multiply(model: nn.Module, name: str, used: float, stored: float) -> None:
    owner, _, leaf = name.rpartition(".")
    module = model.get_submodule(owner)
    param = getattr(module, leaf)
    with torch.no_grad():
        param.mul_(stored)
    parametrize.register_parametrization(module, leaf, Multiplied(used, param))


def _level(model: nn.Module, problem: Problem, found: Scaling, told: Mapping[str, Any]) -> None:
    """Multiply the weights of plain layers until each has gain 1, in the model and in what its program reads."""
    owners = (dict(model.named_parameters()), problem.params)
    for _ in range(LEVELLING_ROUNDS):
        rows = found.data[["gain", "rescaled"]].to_dataframe()
        open_ = rows[(rows["rescaled"] == 0) & (rows["gain"] > 0) & np.isfinite(rows["gain"])]
        far = open_[np.log(open_["gain"]).abs() > SETTLED]
        if far.empty:
            return
        with torch.no_grad():
            for name, gain in far["gain"].items():
                for own in owners:
                    own[f"{name}.weight" if f"{name}.weight" in own else str(name)].mul_(gain**-0.5)
        found = scaling(problem, problem.inputs, **told)
