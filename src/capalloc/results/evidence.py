"""Everything known of one model, from which findings are drawn: measured, or read from a saved file."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from capalloc.results.allocation import Allocation
from capalloc.results.audit_findings import Audit
from capalloc.results.base import Result
from capalloc.results.diagnosis import Diagnosis
from capalloc.results.pruning import PruneScores

#: Nothing at all, over the mean.
NO_SHARE = 1e-6


@dataclass(frozen=True)
class Evidence:
    """Everything known of one model; None for what could not be found out."""

    layers: pd.DataFrame  # by name, with the columns of `Audit`
    num_params: int
    lengths: Mapping[str, int] = field(default_factory=dict)  # of the inputs' axes, by name, as far as they are known
    allocation: Allocation | None = None
    scores: PruneScores | None = None
    diagnosis: Diagnosis | None = None
    repeats: Mapping[str, Sequence[tuple[int, int]]] = field(
        default_factory=dict
    )  # channels read, and what they repeat

    @classmethod
    def of_saved(cls, result: Result) -> Evidence | None:
        """Everything that one result knows; None of a kind that no finding is drawn from."""
        if isinstance(result, Allocation):
            sizes = result.attrs.get("parameter_sizes", {})  # not where the user made the allocation
            number = result.attrs.get("num_params") or sum(sizes.values())
            return cls(layer_table(sizes, result), max(1, number), allocation=result)
        return cls(layer_table({}), 1, diagnosis=result) if isinstance(result, Diagnosis) else None

    @property
    def guide(self) -> str:
        """A word on numbers that stand on an assumption alone, and have no error."""
        solver = "" if self.allocation is None else str(self.allocation.attrs.get("solver"))
        return " (a guide, which assumes total decoupling)" if solver in ("markov", "segments") else ""

    @property
    def vectors(self) -> list[str]:
        """Modules whose weight and bias are of one size: norms, which have no width of their own."""
        sizes = {} if self.allocation is None else self.allocation.attrs.get("parameter_sizes", {})
        by_owner: dict[str, list[int]] = {}
        for name, size in sizes.items():
            by_owner.setdefault(_owner(name), []).append(size)
        return [name for name, found in by_owner.items() if len(found) > len(set(found)) == 1]

    @property
    def zeros(self) -> list[str]:
        """Tensors that hold capacity and carry no path energy: their values are zero, and they are in use."""
        if self.scores is None or self.allocation is None:
            return []
        scored, held = self.scores.to_pandas(), self.allocation.by_parameter.to_series()
        silent = scored.loc[scored["share"] == 0, "parameters"]
        return [str(name) for name, size in silent.items() if held.get(name, 0.0) > NO_SHARE * size]

    @property
    def idle(self) -> pd.Series[float]:
        """Parameters of each tensor that no path uses, the most first."""
        if self.scores is None:
            return pd.Series(dtype=float)
        unused = self.scores.to_pandas()["unused"].sort_values(ascending=False)
        return unused[(unused > 0) & ~unused.index.isin(self.zeros)]

    @property
    def in_use(self) -> pd.Series[float]:
        """Parameters of each layer without the idle ones."""
        idle = self.idle.groupby([_owner(name) for name in self.idle.index]).sum()
        return self.layers["parameters"] - idle.reindex(self.layers.index, fill_value=0.0)

    @property
    def missing(self) -> float:
        """The share of the capacity that may stand elsewhere than the map says."""
        return 0.0 if self.allocation is None else float(self.allocation.attrs.get("missing") or 0.0)

    @property
    def unknown(self) -> float:
        """The parameters of that share: all of them may be one layer's, or one input's."""
        return 0.0 if self.allocation is None else self.missing * self.allocation.total

    @property
    def rising(self) -> float:
        """The parameters that more examples may add: as many as the last half has; no end where the data are few."""
        attrs = {} if self.allocation is None else self.allocation.attrs
        if attrs.get("limited_by_data"):
            return math.inf
        half = attrs.get("half_total")
        return 0.0 if self.allocation is None or half is None else max(0.0, self.allocation.total - half)


def layer_table(
    sizes: Mapping[str, int],
    allocation: Allocation | None = None,
    scores: PruneScores | None = None,
    channels: Mapping[str, tuple[float, float]] | None = None,
) -> pd.DataFrame:
    """The modules that own parameters, in their order, with the columns of an `Audit`.

    `sizes` counts the parameters of each tensor, `channels` those that a layer reads and their directions: 0 where it
    is never called.
    """
    owners = pd.Series({name: _owner(name) for name in sizes}, dtype=object)
    names = list(dict.fromkeys(owners))
    layers = pd.DataFrame({"parameters": pd.Series(sizes, dtype=float).groupby(owners).sum()}, index=names)
    for column in Audit.COLUMNS[1:]:
        layers[column] = np.nan
    if allocation is not None and names:
        errors = pd.Series(allocation.attrs.get("by_parameter_standard_error", {}), dtype=float)
        layers["capacity"] = allocation.by_parameter.to_series().groupby(owners).sum()
        layers["use"] = layers["capacity"] / layers["parameters"]
        if allocation.attrs.get("unseen_params"):  # such as queries and keys: paths know nothing of their use
            partly = [_owner(name) for name in allocation.attrs.get("unseen_by_parameter", ())]
            layers["use"] = layers["use"].where((layers["capacity"] > 0) & ~layers.index.isin(partly))
        if len(errors):
            layers["use_error"] = np.sqrt((errors**2).groupby(owners).sum()) / layers["parameters"]
    for name, units in ({} if scores is None else scores.unit_scores).items():
        if name in layers.index:  # not of what stands before the inputs
            layers.loc[name, ["units", "dead"]] = len(units), int((units == 0).sum())
    for name, read in (channels or {}).items():
        if name in layers.index:
            layers.loc[name, ["channels", "directions"]] = read
    return layers


def _owner(tensor: str) -> str:
    """The module that owns a tensor; a tensor of the model itself is its own."""
    return tensor.rpartition(".")[0] or tensor
