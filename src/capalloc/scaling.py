"""Whether a network's depth is scaled well: rates of residual blocks, gains of plain layers."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, Literal

import numpy as np
import torch
import xarray as xr
from torch import Tensor
from torch.fx import Node

from capalloc.energy.batches import Batches, Precision
from capalloc.energy.carriers import NO_PRODUCTS, Products
from capalloc.energy.rates import Flow, Layer, layers
from capalloc.energy.residual import ResidualBlock, Trails
from capalloc.energy.trace import Watch
from capalloc.problem import ModelLike, OutputSelection, prepare
from capalloc.scaling_result import Scaling

#: Multipliers are found one after another until every rate is this close to the balanced one, relative to it.
SETTLED, ROUNDS = 0.01, 20


def scaling(
    model: ModelLike,
    inputs: Tensor | Iterable[Any],
    outputs: OutputSelection = None,
    *,
    batch_size: int | Literal["auto"] = "auto",
    dtype: Precision = "auto",
    products: Products | None = None,
    progress: bool = False,
) -> Scaling:
    """How each residual block splits path energy, and how each plain layer changes it; and what would balance them.

    lambda_l = branch energy / skip energy and T = sum_l log(1 + lambda_l), docs/theory.md, section 5 (Donier 2019,
    arXiv 1903.04455): T grows without bound if branches of unit gain are multiplied by more than 1/sqrt(depth), and
    then gradients shatter; it goes to 0 below, and then branches propagate nothing. Multipliers are those with which
    every block has the rate 1 / depth, T near 1; where norms make a branch independent of its stream they are found by
    walking again. Energies are those of paths from the inputs, with gates as on the examples.

    Args:
        model: any module that `torch.export` captures, an exported program, or the path of one saved as .pt2; a private
            copy in evaluation mode is used.
        inputs: examples (examples, *inputs), or an iterable of such batches; labels in (x, y) are ignored.
        outputs: from what the model returns to the tensor where paths end.
        batch_size: examples walked at once.
        dtype: of the path energies, as in `propagate`.
        products: as in `propagate`.
        progress: show a progress bar over batches.

    Returns:
        Scaling: by residual block and by layer, with the phase and advice in words.

    Raises:
        UnsupportedOperatorError, ValueError, TypeError: as `propagate`.

    """
    started = time.perf_counter()
    problem = prepare(model, inputs, outputs, traced=True)
    batches = Batches.of(problem, "data", batch_size, dtype=dtype, progress=progress, products=products or NO_PRODUCTS)
    trails = Trails.of(batches.graph, batches.carriers)
    blocks, stretches = trails.blocks(), layers(trails)
    nodes = {block.sum for block in blocks}.union(*(layer.nodes for layer in stretches))
    parts, gains = _totals(replace(batches, watch=Watch(frozenset(nodes))), blocks, stretches)
    rates = _rates(parts)
    multipliers = _balance(replace(batches, progress=False), blocks, rates)
    data = xr.Dataset(
        {
            "rate": ("block", rates.numpy()),
            "multiplier": ("block", multipliers.numpy()),
            "last_layer": ("block", np.array([block.last_layer for block in blocks], dtype=object)),
            **{
                name: ("layer", column)
                for name, column in zip(("gain", "gradient_gain", "mean_squared_gate"), gains.T.numpy(), strict=True)
            },
            "rescaled": ("layer", np.array([layer.rescaled for layer in stretches], dtype=np.int8)),
        },
        coords={
            "block": np.array([block.name for block in blocks], dtype=object),
            "layer": np.array([layer.name for layer in stretches], dtype=object),
        },
        attrs={"num_examples": batches.examples, "seconds": time.perf_counter() - started},
    )
    return Scaling(data)


def _totals(batches: Batches, blocks: Sequence[ResidualBlock], stretches: Sequence[Layer]) -> tuple[Tensor, Tensor]:
    """Shares of skip and branch by block, (blocks, 2), and gains by layer, (layers, 3): means over examples."""
    parts = torch.zeros(len(blocks), 2, dtype=torch.float64)
    gains = torch.zeros(len(stretches), 3, dtype=torch.float64)
    for program, seed in batches():
        flow = Flow.of(program, seed)
        weight = float(seed.flatten(1)[:, 0].sum()) / batches.examples
        parts += weight * _shares(flow, blocks)
        found = [flow.gain(layer) for layer in stretches]
        gains += weight * torch.tensor([(g.up, g.down, g.gate) for g in found], dtype=torch.float64).reshape(-1, 3)
        program.forget()
    return parts, gains.exp2()


def _shares(flow: Flow, blocks: Sequence[ResidualBlock]) -> Tensor:
    parts = torch.tensor([flow.parts(block) for block in blocks], dtype=torch.float64).reshape(-1, 2)
    return parts / parts.sum(1, keepdim=True)


def _rates(parts: Tensor) -> Tensor:
    skip, branch = parts.unbind(1)
    return torch.where(branch > 0, branch / skip, 0.0)


@dataclass
class _Balance:
    """Multipliers of branches, and the rates that they give on the first batch."""

    batches: Batches
    blocks: Sequence[ResidualBlock]

    def rates(self, multipliers: Mapping[Node, float]) -> Tensor:
        """Walk with the branches multiplied."""
        watch = Watch(frozenset(block.sum for block in self.blocks), multipliers)
        (program, seed), *_ = islice(replace(self.batches, watch=watch)(), 1)
        flow = Flow.of(program, seed)
        found = _rates(_shares(flow, self.blocks))
        program.forget()
        return found


def _balance(batches: Batches, blocks: Sequence[ResidualBlock], rates: Tensor) -> Tensor:
    """What to multiply every branch by, so that all rates are 1 / depth; NaN where a branch passes nothing."""
    wanted = 1 / max(len(blocks), 1)
    multipliers = torch.ones_like(rates)
    open_ = (rates > 0) & rates.isfinite()
    balance = _Balance(batches, blocks)
    for _ in range(ROUNDS):
        far = (rates / wanted - 1).abs()[open_]
        if not len(far) or float(far.max()) < SETTLED:
            break
        multipliers = torch.where(open_, multipliers * (wanted / rates).sqrt(), multipliers)
        pairs = zip(blocks, multipliers.tolist(), strict=True)
        rates = balance.rates({block.branch: factor for block, factor in pairs})
    return torch.where(open_, multipliers, torch.nan)
