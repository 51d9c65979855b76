"""The result of `prune_scores`: works from a saved file, with no model at hand."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from capalloc.results.base import Result, Variable
from capalloc.results.view import Fact, Table, View, standing

if TYPE_CHECKING:
    from torch import Tensor, nn

#: Share of all scores that the largest weights of a table hold together.
MOST_SCORES = 0.9


class PruneScores(Result):
    """Share of the path energy that goes through every parameter, $theta^2 dE/d theta^2 / E$, between 0 and 1.

    - `parameter`, along "tensor": names of the scored parameter tensors, in the model's order;
    - `share`: sums of the scores of each tensor: 1 where every path uses it once;
    - `layer`: the module that a tensor belongs to;
    - `units`: along which of its axes its output channels lie, -1 for none.

    `weights` holds the scores themselves. Parameters that only steer gates (queries, keys) carry no path energy and
    matter all the same: they have none, or NaN where others of their tensor have one. `to_pandas` has a row for each of
    "tensors" or of "units", the output channels of layers.

    Args:
        data: the Dataset with those variables and `score_0`, `score_1`, ...: the scores of each tensor over its axes.

    Raises:
        ValueError: a variable is missing, or scores are negative or do not sum to their share.

    """

    FORMAT = "capalloc-prune-scores"
    MAKER = "capalloc.prune_scores()"
    SCHEMA: ClassVar = {
        "parameter": Variable(("tensor",)),
        "layer": Variable(("tensor",)),
        "units": Variable(("tensor",)),
        "share": Variable(("tensor",), 0, finite=True),
    }
    SETTINGS = ("num_params", "num_examples")
    ROWS: ClassVar = {"tensors": lambda r: r._tensor_frame(), "units": lambda r: r._unit_frame()}
    VALUES = ("num_params", "num_examples")

    #: Relative to the share of a tensor: what sums in float32 lose.
    TOLERANCE = 1e-4

    def check(self) -> None:
        """Every tensor has its scores, and they sum to its share."""
        for k, (name, share) in enumerate(zip(self.names, self.share.to_numpy(), strict=True)):
            if f"score_{k}" not in self.data:
                raise ValueError(f"the dataset lacks score_{k}, for {name}; {self.MAKER} makes one that has it")
            scores = self.data[f"score_{k}"].to_numpy()
            if (scores < 0).any():
                raise ValueError(f"the scores of {name} must not be negative")
            if not abs((total := float(np.nansum(scores, dtype=np.float64))) - share) <= self.TOLERANCE * share:
                raise ValueError(f"the scores of {name} sum to {total:.6g}, and its share is {share:.6g}")

    @property
    def names(self) -> list[str]:
        """The scored parameter tensors."""
        return [str(name) for name in self.parameter.to_numpy()]

    @property
    def weights(self) -> dict[str, NDArray[Any]]:
        """The score of every parameter, in the shape of its tensor, by name; NaN for what only steers gates."""
        return {name: self.data[f"score_{k}"].to_numpy() for k, name in enumerate(self.names)}

    @property
    def unit_scores(self) -> dict[str, NDArray[np.float64]]:
        """The score of every output channel by layer: the energy of the paths that enter it, its bias included.

        NaN for a channel that only steers gates.
        """
        found: dict[str, NDArray[np.float64]] = {}
        columns = zip(map(str, self.layer.to_numpy()), self.units.to_numpy(), self.weights.values(), strict=True)
        for layer, axis, scores in columns:
            if axis >= 0:
                rows = np.moveaxis(scores, int(axis), 0).astype(float).reshape(scores.shape[axis], -1)
                by_unit = np.where(np.isnan(rows).all(1), np.nan, np.nansum(rows, 1))
                found[layer] = found.get(layer, 0.0) + by_unit
        return found

    def importance(self, model: nn.Module) -> dict[tuple[nn.Module, str], Tensor]:
        """The scores of weights, without biases and scales, as `torch.nn.utils.prune.global_unstructured` takes them.

        What has no score in a tensor that has some is infinite: it stays.

        Args:
            model: the scored model, or another of the same architecture.

        Raises:
            ValueError: a weight is missing, or has another shape.

        """
        found = {}
        own = dict(model.named_parameters())
        for name, scores in self.weights.items():
            if scores.ndim < 2:
                continue
            if name in own and own[name].is_complex() and scores.shape[-1] == 2:
                scores = scores.sum(-1)  # of both parts of a number
            if name not in own or tuple(own[name].shape) != scores.shape:
                raise ValueError(f"model has no parameter {name!r} of shape {scores.shape}; pass the scored model")
            module, _, leaf = name.rpartition(".")
            kept = np.where(np.isnan(scores), np.inf, scores)
            found[model.get_submodule(module), leaf] = own[name].detach().new_tensor(kept)
        return found

    def view(self) -> View:
        """Shares by tensor, and how few weights hold most of them."""
        weights = self.weights
        sizes = [int((~np.isnan(scores)).sum()) for scores in weights.values()]
        rows = [
            [name, f"{scores.size:,}", f"{share:.3g}", _few(scores), f"{np.count_nonzero(scores == 0):,}"]
            for (name, scores), share in zip(weights.items(), self.share.to_numpy(), strict=True)
        ]
        return self._view(
            title="Scores for pruning",
            heading=f"{sum(sizes):,} of {self.num_params:,} parameters scored",
            about="The share of path energy that each parameter carries; those with the least can go first.",
            facts=[standing("exact"), *self._in_no_use(), Fact("examples", f"{self.num_examples:,}")],
            tables=[Table("parameter tensors", ["tensor", "parameters", "share", "hold 90 %", "unused"], rows, sizes)],
            rows=("tensors", "units"),
        )

    def _in_no_use(self) -> list[Fact]:
        """Parameters that carry nothing, and units that no path enters: they can go at once."""
        unused = sum(int(np.count_nonzero(scores == 0)) for scores in self.weights.values())
        dead = {layer: int((scores == 0).sum()) for layer, scores in self.unit_scores.items()}
        where = ", ".join(f"{number:,} of layer {layer}" for layer, number in dead.items() if number)
        facts = [Fact("carry nothing", f"{unused:,} parameters", "on these examples: all of them can go together")]
        return [*facts, Fact("dead units", where or "none")]

    def _tensor_frame(self) -> pd.DataFrame:
        weights = self.weights.values()
        columns = {
            **{name: self.data[name].to_numpy() for name in ("layer", "share")},
            "parameters": [scores.size for scores in weights],
            "unused": [int(np.count_nonzero(scores == 0)) for scores in weights],
        }
        return pd.DataFrame(columns, index=pd.Index(self.names, name="tensor"))

    def _unit_frame(self) -> pd.DataFrame:
        parts = [
            pd.DataFrame({"layer": layer, "unit": np.arange(len(scores)), "score": scores})
            for layer, scores in self.unit_scores.items()
        ]
        return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=["layer", "unit", "score"])


def _few(scores: NDArray[Any]) -> str:
    """The share of parameters, largest first, that hold most of the scores."""
    ordered = np.sort(scores[~np.isnan(scores)], axis=None)[::-1].cumsum(dtype=np.float64)
    if not ordered.size or ordered[-1] == 0:
        return "–"
    return f"{(np.searchsorted(ordered, MOST_SCORES * ordered[-1]) + 1) / ordered.size:.1%}"
