"""Path energy through every parameter, as a score for pruning (docs/theory.md, section 4)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

import torch
import xarray as xr
from torch import Tensor, nn

from capalloc._energy.batches import Batches, check_walk, solve_in_range
from capalloc._energy.carriers import Products
from capalloc._energy.gate_sources import GateSource
from capalloc._energy.markov import path_usage
from capalloc._linalg.metric_names import DEFAULT_METRIC
from capalloc._model.input_metric import InputMetricLike, input_metric
from capalloc._model.made_from import recorded
from capalloc._model.problem import ModelLike, OutputSelection, Problem, prepare
from capalloc._model.selected_params import ParamSelection
from capalloc._propagate.gate_moves import moved_by_gates
from capalloc._runtime.arguments import checked
from capalloc._runtime.surroundings import undisturbed
from capalloc.results.pruning import PruneScores
from capalloc.results.view import named

TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


@checked
@recorded
@undisturbed()
def prune_scores(
    model: ModelLike,
    inputs: Tensor | Iterable[Any],
    outputs: OutputSelection = None,
    gates: GateSource = "data",
    *,
    metric: InputMetricLike = DEFAULT_METRIC,
    params: ParamSelection = None,
    batch_size: int | Literal["auto"] = "auto",
    products: Products | None = None,
    progress: bool = False,
) -> PruneScores:
    """Share of the path energy E that goes through every parameter: $theta^2 dE/d theta^2 / E$.

    E sums, over examples, outputs and paths, the squares of all that a path multiplies (docs/theory.md, section 4).
    Where no path uses a weight twice, its share is what E loses when it is set to 0 and the gates stay. It takes no
    labels, and rescaling the units of a layer, or the outputs, changes none.

    Args:
        model: any module that `torch.export` captures, an exported program, or the path of one saved as .pt2; a private
            copy in evaluation mode is used.
        inputs: examples (examples, *inputs), or an iterable of such batches; labels in (x, y) are ignored.
        outputs: whose path energy counts, as in `measure`.
        gates: squared slopes of the activations, as in `propagate`; "gaussian" and "unit" ask for no real data.
        metric: energies of the inputs, as in `propagate`.
        params: as in `propagate`.
        batch_size: examples walked at once.
        products: as in `propagate`.
        progress: show a progress bar over batches.

    Returns:
        PruneScores: a score between 0 and 1 for every parameter; none for those that only steer gates (queries, keys),
        which a note names.

    Raises:
        UnsupportedOperatorError, ValueError, TypeError: as `propagate(solver="markov")`; ValueError too where no path
            reaches the outputs, so that there is nothing to share.

    """
    check_walk(gates, batch_size)
    problem = prepare(model, inputs, outputs, params, traced=True, by_input=True)
    space = input_metric(metric, problem)
    settings: dict[str, Any] = {"progress": progress, "products": products, "metric": space}
    (usage, (program, *_)), batches = solve_in_range(
        lambda dtype: Batches.of(problem, gates, batch_size, dtype=dtype, **settings),
        lambda batches: path_usage(batches()),
    )
    energy = sum(usage.by_example)
    if not energy > 0:
        raise ValueError("no path leads from the inputs to the outputs, so that no parameter carries any path energy")
    scores: dict[str, Tensor] = {}
    for name, slot in program.params.items():
        values, used = program.values[slot], usage.through_params.get(slot)
        share = torch.zeros_like(values) if used is None else values.cpu() * used.cpu() / energy
        scores[name] = share.clamp(max=1).reshape(problem.params[name].shape)
    idle = [name for name, share in scores.items() if not (share > 0).all()]
    steers = dict.fromkeys(batches.carriers.unseen & {*idle}, torch.tensor(True))
    for name, moves in (steers | moved_by_gates(problem, batches, idle)).items():
        scores[name] = torch.where((scores[name] > 0) | ~moves.cpu(), scores[name], torch.nan)
    scores = {name: share for name, share in scores.items() if not share.isnan().all()}
    unscored = [name for name in problem.params if name not in scores or bool(scores[name].isnan().any())]
    notes = [*batches.graph.notes, *problem.notes]
    if unscored:
        notes.append(f"not scored, wholly or in part: {len(unscored)} tensors that only steer gates: {named(unscored)}")
    attrs = {"num_params": problem.num_params, "num_examples": batches.examples, "gates": gates, "metric": space.word}
    return PruneScores(_dataset(problem, scores).assign_attrs({**attrs, "notes": notes}))


def _dataset(problem: Problem, scores: dict[str, Tensor]) -> xr.Dataset:
    modules = dict(problem.model.named_modules())
    layers = [name.rpartition(".")[0] for name in scores]
    wide = {layer for layer, name in zip(layers, scores, strict=True) if scores[name].ndim > 1}
    units = [
        _unit_axis(modules.get(layer), score) if layer in wide else -1
        for layer, score in zip(layers, scores.values(), strict=True)
    ]
    lengths: dict[str, set[int]] = {}
    for layer, axis, score in zip(layers, units, scores.values(), strict=True):
        lengths.setdefault(layer, set()).update([score.shape[axis]] if axis >= 0 else [])
    units = [k if len(lengths[layer]) == 1 else -1 for layer, k in zip(layers, units, strict=True)]  # one layer's
    columns: dict[str, Any] = {
        "parameter": ("tensor", list(scores)),
        "layer": ("tensor", layers),
        "units": ("tensor", units),
        "share": ("tensor", [float(score.double().nansum()) for score in scores.values()]),
    }
    for k, score in enumerate(scores.values()):
        columns[f"score_{k}"] = ([f"score_{k}_{axis}" for axis in range(score.ndim)], score.numpy())
    return xr.Dataset(columns)


def _unit_axis(module: nn.Module | None, score: Tensor) -> int:
    """The axis of a layer's output channels; none where groups of a transposed convolution spread them over two."""
    if score.ndim == 0:
        return -1
    if isinstance(module, TRANSPOSED) and score.ndim > 1:
        return 1 if module.groups == 1 else -1
    return 0
