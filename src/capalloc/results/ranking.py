"""The result of `rank`: works from a saved file, with no models at hand."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Final

import numpy as np
import pandas as pd

from capalloc.results.base import Result, Variable
from capalloc.results.view import Table, View, standing


@dataclass(frozen=True)
class RankedColumn:
    """A number that architectures are ranked by."""

    head: str
    about: str
    digits: str = ".4g"
    sign: int = 1  # -1 where less is better


RANKED_BY: Final = "capacity"
#: What the study of docs/validation.md, "Ranking architectures before training", says of them.
EVIDENCE: Final = (
    "of 100 small networks (docs/validation.md) the order by capacity agrees with that by trained accuracy by .74 to "
    ".85 on three sets of digits, that by the count of parameters by .63 to .69",
    "among their better half capacity has .38 to .56, the count .30 to .55; on patches of photographs no column agrees "
    "by more than .12",
)


class Ranking(Result):
    """Architectures in an order, the best first by one column, at their initial weights.

    Along "model", NaN where it is not known:

    - the numbers of `COLUMNS`, each with what it is;
    - `depth`: the word of `Scaling.phase`, and for plain networks whether path energy leaves the range of training;
    - `measured`: 1 where `capacity` is a measured rank, 0 where it is the total of `propagate`.

    Args:
        data: the Dataset with those variables.

    Raises:
        ValueError: a variable is missing, or the column to rank by is none of them.

    """

    FORMAT = "capalloc-ranking"
    MAKER = "capalloc.rank()"
    COLUMNS: ClassVar[dict[str, RankedColumn]] = {
        "parameters": RankedColumn("parameters", "number of trainable parameters; exact", ",.0f"),
        "flops": RankedColumn("FLOPs", "of one forward pass: two a multiplication in matrix products; exact", ",.0f"),
        "capacity": RankedColumn(
            "capacity",
            "functional dimension: parameters that count independently; exact, but a guide where a ~ stands",
            ",.0f",
        ),
        "informative": RankedColumn("informative", "share of capacity on inputs that vary in the data; a guide", ".1%"),
        "alike": RankedColumn("gradients alike", "correlation of gradients at different examples; a guide", ".2f"),
        "synflow": RankedColumn("SynFlow", "sum of θ dR/dθ under |θ|, on ones, without norms"),
        "naswot": RankedColumn("NASWOT", "log det (K + 1), K the activations at which examples agree"),
        "grad_norm": RankedColumn("GradNorm", "sum over tensors of |dL/dθ|"),
        "ntk_condition": RankedColumn("NTK condition", "of the tangent kernel; less is better", sign=-1),
    }
    SCHEMA: ClassVar = {
        **dict.fromkeys(("model", "depth", "measured", *COLUMNS), Variable(("model",))),
        **dict.fromkeys(("parameters", "flops", "capacity", "informative"), Variable(("model",), low=0)),
    }
    SETTINGS = ("by", "labelled", "num_examples")
    ROWS: ClassVar = {"models": lambda r: r._frame()}
    VALUES = ("by", "order", "num_examples")

    def check(self) -> None:
        """The column to rank by is known."""
        if self.by not in self.COLUMNS:
            raise ValueError(f"by must be one of {list(self.COLUMNS)}, and is {self.by!r}")

    @property
    def order(self) -> list[str]:
        """Names of the models, the best first; those of which nothing is known last."""
        return [str(name) for name in self._frame().index]

    def view(self) -> View:
        """A row for each model, and what each column is."""
        own = self.COLUMNS
        first = [self.by, *(name for name in own if name != self.by)]
        rows = [
            [
                str(name),
                *("~" * (c == "capacity" and not row["measured"]) + _written(row[c], own[c].digits) for c in first),
                str(row["depth"]),
            ]
            for name, row in self._frame().iterrows()
        ]
        told = {name: own[name].head for name in first[1:] if name not in ("capacity", "parameters", "flops")}
        spare = sorted(told.values(), key=lambda head: head == own["informative"].head)  # which goes last
        loss = "the cross entropy of the labels" if self.labelled else "outputs times random signs, for want of labels"
        about = [
            *([own[c].head, own[c].about + (f"; L is {loss}" if c == "grad_norm" else "")] for c in first),
            ["depth", "whether depth starts in balance, as diagnose says"],
        ]
        counted = self.data["model"].to_numpy()[self.measured.to_numpy() == 0]
        notes = (
            [f"capacity is the total of propagate and not measured: {', '.join(map(str, counted))}"]
            if len(counted)
            else []
        )
        return self._view(
            title="Ranking",
            heading=f"{self.data.sizes['model']} models by {own[self.by].head}",
            about="Architectures at their initial weights, the most promising first.",
            facts=[
                standing("exact", "where the table of columns says so, for one draw of weights; the others are a guide")
            ],
            tables=[
                Table("models", ["model", *(own[name].head for name in first), "depth"], rows, spare=spare),
                Table("columns", ["column", "what it is"], about, detail=True),
            ],
            notes=[*EVIDENCE, *notes, *self.data.attrs.get("notes", ())],
        )

    def _frame(self) -> pd.DataFrame:
        frame = self.data[[*self.COLUMNS, "depth", "measured"]].to_dataframe()
        key = frame[self.by] * self.COLUMNS[self.by].sign
        return frame.loc[key.sort_values(ascending=False, kind="stable", na_position="last").index]


def _written(value: float, digits: str) -> str:
    return "–" if math.isnan(value) else "∞" if np.isinf(value) else format(value, digits)
