"""The scaling of a network's depth: rates of residual blocks, gains of plain layers."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any, Literal

import numpy as np
import torch
import xarray as xr
from torch import Tensor
from torch.fx import Node

from capalloc._depth.starting_point import described, starts_at_identity
from capalloc._energy.affine_stretch import InputStart
from capalloc._energy.batches import Batches, Precision
from capalloc._energy.carriers import Products
from capalloc._energy.rates import NotedEnergies, SummedEnergies, stretches_of
from capalloc._energy.residual import ResidualBlock, Trails
from capalloc._energy.trace import Watch
from capalloc._linalg.metric_names import DEFAULT_METRIC
from capalloc._model.input_metric import InputMetric, InputMetricLike, input_metric
from capalloc._model.made_from import recorded
from capalloc._model.problem import ModelLike, OutputSelection, prepare
from capalloc._runtime.arguments import checked
from capalloc._runtime.surroundings import undisturbed
from capalloc.results.scaling import Scaling

#: Multipliers are found by walking again until every rate is this close to the balanced one, relative to it.
SETTLED, ROUNDS = 0.01, 20
#: Examples that are walked again, the first ones.
BALANCED = 64
SHARED = (
    "{} blocks share weights: T counts every use as if it had weights of its own, but the same weights add up "
    "coherently, and over M steps of one matrix keep their scale at 1/M, not at 1/sqrt(M)"
)


@checked
@recorded
@undisturbed()
def scaling(
    model: ModelLike,
    inputs: Tensor | Iterable[Any],
    outputs: OutputSelection = None,
    *,
    metric: InputMetricLike = DEFAULT_METRIC,
    batch_size: int | Literal["auto"] = "auto",
    dtype: Precision = "auto",
    products: Products | None = None,
    trained: bool | None = None,
    progress: bool = False,
) -> Scaling:
    """Split path energy at each residual block, find its gain through each plain layer, and what would balance them.

    $lambda_l = branch energy / skip energy$ and $T = sum_l log(1 + lambda_l)$, docs/theory.md, section 5 (Donier 2019,
    arXiv 1903.04455): as the depth grows, T grows without bound if branches of unit gain are multiplied by more than
    $1/sqrt(depth)$, and goes to 0 if by less; by the scaling conjecture networks want a limit between. At one depth T
    alone says not whether gradients shatter: `diagnose` adds their correlation. Multipliers are those with which every
    block has the rate 1 / depth, T near 1; where norms make a branch independent of its stream they are found by
    walking again. Branches that start at zero on purpose have none. Energies are those of paths from the inputs, with
    gates as on the examples.

    Args:
        model: any module that `torch.export` captures, an exported program, or the path of one saved as .pt2; a private
            copy in evaluation mode is used.
        inputs: examples (examples, *inputs), or an iterable of such batches; labels in (x, y) are ignored.
        outputs: where paths end, as in `measure`.
        metric: energies of the inputs, as in `propagate`; of a covariance its variances count alone.
        batch_size: examples walked at once.
        dtype: of the path energies, as in `propagate`.
        products: as in `propagate`.
        trained: whether these are the weights of a trained network, which gets no advice; by default its norms tell,
            whose scales and shifts start alike for all channels.
        progress: show a progress bar over batches.

    Returns:
        Scaling: by residual block and by layer, with the phase and advice in words.

    Raises:
        UnsupportedOperatorError, ValueError, TypeError: as `propagate`.

    """
    started = time.perf_counter()
    problem = prepare(model, inputs, outputs, traced=True, by_input=True)
    space = input_metric(metric, problem)
    batches = Batches.of(problem, "data", batch_size, dtype=dtype, progress=progress, products=products)
    found = scale(batches, space, trained)
    return Scaling(found.data.assign_attrs(seconds=time.perf_counter() - started))


def scale(batches: Batches, space: InputMetric, trained: bool | None, *, balanced: bool = True) -> Scaling:
    """Find rates and gains, and where `balanced` the multipliers, which take further walks."""
    batches = replace(batches, start=InputStart(space.variances))  # paths that start at the constant do not count
    trails = Trails.of(batches.graph, batches.carriers)
    blocks, stretches = trails.blocks(), stretches_of(trails)
    tally = SummedEnergies(blocks, stretches)
    _walk(batches, tally)
    rates = tally.rates()
    number = len(blocks)
    closed = [starts_at_identity(trails, b, float(rate), number) for b, rate in zip(blocks, rates, strict=True)]
    identity = torch.tensor(closed, dtype=torch.bool)
    multipliers = torch.full_like(rates, torch.nan)
    if balanced:
        multipliers = _balance(replace(batches, progress=False), blocks, rates, ~identity)
    gains = [tally.gain(layer) for layer in stretches]
    by_layer = np.exp2([(gain.up, gain.down, gain.gate) for gain in gains]).reshape(-1, 3).T
    columns = {
        "rate": ("block", rates.numpy()),
        "multiplier": ("block", multipliers.numpy()),
        "identity": ("block", identity.to(torch.int8).numpy()),
        "last_layer": ("block", np.array([block.last_layer for block in blocks], object)),
        "gain": ("layer", by_layer[0]),
        "gradient_gain": ("layer", by_layer[1]),
        "mean_squared_gate": ("layer", by_layer[2]),
        "rescaled": ("layer", np.array([layer.rescaled for layer in stretches], dtype=np.int8)),
    }
    coords = {
        "block": np.array([block.name for block in blocks], object),
        "layer": np.array([layer.name for layer in stretches], object),
    }
    attrs: dict[str, Any] = {"num_examples": batches.examples, "metric": space.word}
    attrs |= described(batches.graph, trained)
    if (shared := sum(map(trails.shares_weights, blocks))) > 1:
        attrs["notes"] = [*attrs.get("notes", ()), SHARED.format(shared)]
    return Scaling(xr.Dataset(columns, coords, attrs))


def _walk(
    batches: Batches, tally: SummedEnergies, multipliers: Mapping[Node, float] | None = None, most: int | None = None
) -> None:
    """Walk the batches, `most` of them, with some branches multiplied, and add up their energies."""
    nodes = {block.sum for block in tally.blocks}.union(*(layer.nodes for layer in tally.stretches))
    watch = Watch(frozenset(nodes), multipliers or {})
    for program, seed in islice(replace(batches, watch=watch)(), most):
        tally.add(NotedEnergies.of(program, seed))
        program.forget()


def _balance(batches: Batches, blocks: Sequence[ResidualBlock], rates: Tensor, balanced: Tensor) -> Tensor:
    """Factors of branches with which their rates are 1 / depth; NaN where one passes nothing or is not to be balanced.

    Blocks that add one branch to several streams share its multiplier, which balances their mean.
    """
    open_ = (rates > 0) & rates.isfinite() & balanced
    branches = list(dict.fromkeys(block.branch for block, found in zip(blocks, open_, strict=True) if found))
    share = torch.tensor([[block.branch is branch for block in blocks] for branch in branches], dtype=torch.float64)
    share = share.reshape(len(branches), len(blocks)) * open_
    logs = torch.zeros(len(branches), dtype=torch.float64)
    enough = -(-BALANCED // batches.graph.batch_size)
    for _ in range(ROUNDS):
        excess = torch.where(open_, (rates * len(blocks)).log(), 0.0)
        far = share @ excess / share.sum(1)
        if not bool((far.abs() > SETTLED).any()):
            break
        logs -= far / 2
        tally = SummedEnergies(blocks, ())
        _walk(batches, tally, dict(zip(branches, logs.exp().tolist(), strict=True)), enough)
        rates = tally.rates()
    return torch.where(open_, (share.T @ logs).exp(), torch.nan)
