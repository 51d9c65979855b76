"""Decoupling measured on examples: a model and data -> `Decoupling`, and the gate moments that propagation takes."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from capalloc._decoupling.coupling import FirstLayers, feeding_rows, some_pairs
from capalloc._decoupling.pair_estimates import ExamplePairs, PairEstimate, UnitPairs, Units
from capalloc._decoupling.sites import Gated, GateSite, SeenGates
from capalloc._linalg.metric_names import DEFAULT_METRIC
from capalloc._model.input_metric import InputMetricLike, input_metric
from capalloc._model.made_from import recorded
from capalloc._model.problem import ModelLike, OutputSelection, Problem, prepare
from capalloc._operators.calls import Operation
from capalloc._operators.records import record
from capalloc._runtime.arguments import checked
from capalloc._runtime.surroundings import undisturbed
from capalloc.results.decoupling import BINS, QUANTILES, Decoupling

#: Gates up to this share of the largest possible count as saturated.
SATURATED = 0.01
#: Pre-activations over which the largest slope of an activation is sought.
STEEP_RANGE = 5.0
#: Examples compared with one another, all pairs of them, and units over which they are compared.
MAX_EXAMPLES, MAX_UNITS = 128, 4096
#: Gate moments are units x units matrices: the most units a layer may have.
MAX_MOMENT_UNITS = 8192


@dataclass
class GateTally:
    """Sums and pairs of one site, kept while examples stream by."""

    units: Units
    pairs: UnitPairs
    coupled: UnitPairs | None
    examples: ExamplePairs

    @classmethod
    def of(
        cls,
        gated: Gated,
        seen: SeenGates,
        num_pairs: int,
        chosen: Tensor,
        generator: torch.Generator,
        first: FirstLayers | None,
    ) -> GateTally:
        """Choose pairs and units when the first gates tell how many there are."""
        site, number = seen.site, seen.gates.shape[1]
        largest = largest_gate(seen.operation)
        pairs = some_pairs(number, num_pairs, generator)
        compared = torch.arange(number)
        if number > MAX_UNITS:
            compared = torch.randperm(number, generator=generator)[:MAX_UNITS].sort().values
        return cls(
            Units(None if largest is None else SATURATED * largest),
            UnitPairs(pairs, complete=len(pairs) == number * (number - 1) // 2),
            _coupled(gated, site, number, num_pairs, generator, first),
            ExamplePairs(chosen, compared, complete=number <= MAX_UNITS),
        )

    def add(self, seen: SeenGates) -> None:
        self.units.add(seen.gates)
        self.examples.add(seen.gates, seen.start)
        self.pairs.add(seen.gates, seen.start)
        if self.coupled is not None:
            self.coupled.add(seen.gates, seen.start)


@checked
@recorded
@undisturbed()
def decoupling(
    model: ModelLike,
    inputs: Tensor | Iterable[Any],
    outputs: OutputSelection = None,
    *,
    metric: InputMetricLike = DEFAULT_METRIC,
    batch_size: int = 64,
    num_pairs: int = 2048,
    generator: torch.Generator | None = None,
    progress: bool = False,
) -> Decoupling:
    """Measure on examples how far every activation of a network decouples its units, and its examples.

    $d_jj' = 1 - |A_jj'| / sqrt(A_jj A_j'j')$ with $A_jj' = E[a_j a_j']$ over examples, for pairs of units; the same
    with the mean over units, for pairs of examples (docs/theory.md, section 3). Gates are read from the captured graph
    that `propagate` uses: slopes of activations; winners of max pooling; and, as kinds of their own, attention weights,
    softmax weights, 1 / std of normalisation layers and selections (`where`, GLU).

    Args:
        model: any module that `torch.export` captures, an exported program, or the path of one saved as .pt2; a private
            copy in evaluation mode is used.
        inputs: examples (examples, *inputs), at least two, or an iterable of such batches; labels are ignored.
        outputs: the constraint outputs, as in `measure`; gates beside their path count too.
        metric: of the inputs, as in `propagate`. Gates are those of the examples whatever it is; it says how alike the
            units of the first layers are, W S W', and so weighs the pairs of their coupled decoupling.
        batch_size: examples at a time; it changes no result.
        num_pairs: pairs of units compared in each layer; all of them where there are no more.
        generator: chooses the pairs of units and the examples compared; a fixed seed by default.
        progress: show a progress bar over batches.

    Returns:
        Decoupling, one row for each gate in order of depth, with standard errors.

    Raises:
        ValueError: bad settings, fewer than two examples, a model without gates or that `torch.export` cannot
            capture.
        TypeError: inputs or outputs that no method can use.

    Reference: J. Donier, Capacity allocation through neural network layers, arXiv 1902.08572.

    """
    started = time.perf_counter()
    _check_counts(batch_size=batch_size, num_pairs=num_pairs)
    problem = prepare(model, inputs, outputs, by_input=True)
    if problem.layout is not None:
        problem.layout.check_alike("decoupling")
    space = input_metric(metric, problem)
    gated = _gated(problem, batch_size)
    first = None if space.center is None else FirstLayers.of(gated.graph, space)
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    chosen = torch.randperm(gated.examples, generator=generator)[:MAX_EXAMPLES].sort().values
    tallies: dict[GateSite, GateTally] = {}
    for seen in gated(progress):
        if seen.site not in tallies:
            tallies[seen.site] = GateTally.of(gated, seen, num_pairs, chosen, generator, first)
        tallies[seen.site].add(seen)
    attrs = {
        "num_examples": gated.examples,
        "metric": space.word,
        "num_pairs": num_pairs,
        "examples_compared": len(chosen),
        "notes": [*gated.notes, *(first.notes if first else ())],
        "seconds": time.perf_counter() - started,
    }
    return Decoupling(_dataset(tallies, gated.examples).assign_attrs(attrs))


@checked
@undisturbed()
def gate_moments(
    model: ModelLike,
    inputs: Tensor | Iterable[Any],
    *,
    layers: Sequence[str] | None = None,
    batch_size: int = 64,
    progress: bool = False,
) -> dict[str, Tensor]:
    """Measure the gate moments $A = E[a a']$ of every activation on examples (docs/theory.md, section 3).

    What `propagate_moments` takes for a dense network.

    Args:
        model: any module that `torch.export` captures, an exported program, or the path of one saved as .pt2; a private
            copy in evaluation mode is used.
        inputs: examples (examples, *inputs), or an iterable of such batches; labels are ignored.
        layers: names of the activations wanted, as `decoupling` gives them; all activations by default.
        batch_size: examples at a time.
        progress: show a progress bar over batches.

    Returns:
        A by layer, (units, units) in float64, in order of depth.

    Raises:
        ValueError: bad settings, a layer that the model lacks, or one of more than 8192 units.
        TypeError: inputs that no method can use.

    """
    _check_counts(batch_size=batch_size)
    gated = _gated(prepare(model, inputs), batch_size)
    names = [s.name for s in gated.sites if s.kind == "activation"] if layers is None else list(layers)
    unknown = sorted(set(names) - {site.name for site in gated.sites})
    if unknown:
        raise ValueError(f"layers names {unknown}, which the model lacks; it has {[s.name for s in gated.sites]}")
    moments: dict[str, Tensor] = {}
    for seen in gated(progress):
        if seen.site.name in names:
            gates = seen.gates.to(torch.float64)
            _check_units(seen.site.name, gates.shape[1])
            added = gates.T @ gates / gated.examples
            moments[seen.site.name] = moments[seen.site.name] + added if seen.site.name in moments else added
    return moments


def largest_gate(operation: Operation) -> float | None:
    """Give the largest gate there can be, for activations among pre-activations from -5 to 5; None without a bound."""
    kind = record(operation.op).kind
    if kind == "activation":
        z = STEEP_RANGE * torch.arange(-500, 501, dtype=torch.float64) / 500  # with 0, where poles are
        top = float(operation.slope(z).double().abs().max())
        return top if math.isfinite(top) else None
    return None if kind == "normalisation" else 1.0


def _gated(problem: Problem, batch_size: int) -> Gated:
    if problem.count() < 2:
        raise ValueError("inputs hold 1 example, and decoupling compares examples: pass at least 2")
    gated = Gated.of(problem, batch_size)
    if not gated.sites:
        raise ValueError("the model has no activation, pooling, attention or normalisation, and so no gates: d = 0")
    return gated


def _check_counts(**counts: Any) -> None:
    for name, value in counts.items():
        if not (isinstance(value, int) and value > 0):
            raise ValueError(f"{name} must be a positive integer, got {value!r}")


def _check_units(name: str, units: int) -> None:
    if units > MAX_MOMENT_UNITS:
        raise ValueError(
            f"layer {name!r} has {units} units, and its gate moments would be as many squared; "
            f"name layers of at most {MAX_MOMENT_UNITS} units with layers="
        )


def _coupled(
    gated: Gated,
    site: GateSite,
    units: int,
    num_pairs: int,
    generator: torch.Generator,
    first: FirstLayers | None,
) -> UnitPairs | None:
    """Pairs that the layer's weight couples, with the squared cosines of their rows; in the metric for first layers."""
    rows = feeding_rows(gated.graph, site.node, gated.depends) if site.kind == "activation" else None
    if rows is None:
        return None
    pairs = rows.pairs(units, num_pairs, generator)
    complete = len(pairs) < num_pairs or len(pairs) == units * (units - 1) // 2
    if not len(pairs):
        return None
    cosines = first.squared_cosines(site.node, pairs) if first else None
    return UnitPairs(pairs, complete, rows.squared_cosines(pairs) if cosines is None else cosines)


def _dataset(tallies: dict[GateSite, GateTally], examples: int) -> xr.Dataset:
    rows: list[dict[str, Any]] = []
    for site, tally in tallies.items():
        units = tally.pairs.estimate(examples)
        coupled = tally.coupled.estimate(examples) if tally.coupled else PairEstimate(np.nan, np.nan, torch.empty(0))
        between = tally.examples.estimate()
        square, dead, saturated = tally.units.summary()
        assert tally.units.squares is not None
        rows.append(
            {
                "kind": site.kind,
                "operator": site.operator,
                "units": len(tally.units.squares),
                "decoupling": units.mean,
                "decoupling_error": units.error,
                "coupled_decoupling": coupled.mean,
                "coupled_decoupling_error": coupled.error,
                "example_decoupling": between.mean,
                "example_decoupling_error": between.error,
                "mean_squared_gate": square,
                "dead": dead,
                "saturated": saturated,
                "decoupling_quantiles": _quantiles(units.each),
                "decoupling_histogram": _histogram(units.each),
                "example_decoupling_quantiles": _quantiles(between.each),
                "example_decoupling_histogram": _histogram(between.each),
            }
        )
    more = {"quantiles": ("quantile",), "histogram": ("bin",)}
    variables = {
        key: (("layer", *more.get(key.rsplit("_", 1)[-1], ())), np.array([row[key] for row in rows])) for key in rows[0]
    }
    middles = (np.arange(BINS) + 0.5) / BINS
    coords = {"layer": [site.name for site in tallies], "quantile": list(QUANTILES), "bin": middles}
    return xr.Dataset(variables, coords=coords)


def _quantiles(each: Tensor) -> np.ndarray[Any, np.dtype[np.float64]]:
    known = each[~each.isnan()].numpy()
    return np.quantile(known, QUANTILES) if len(known) else np.full(len(QUANTILES), np.nan)


def _histogram(each: Tensor) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Count pairs by bin, as shares."""
    known = each[~each.isnan()].numpy()
    counts, _ = np.histogram(known, bins=BINS, range=(0, 1))
    return counts / max(len(known), 1)
