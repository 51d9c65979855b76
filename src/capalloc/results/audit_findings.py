"""The result of `audit`: works from a saved file, with no model at hand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import MISSING, asdict, dataclass, fields, replace
from typing import TYPE_CHECKING, ClassVar, Literal, get_args

import xarray as xr

from capalloc.results.base import PLACED, Result, Variable, axis_rows
from capalloc.results.diagnosis import Diagnosis
from capalloc.results.scaling import Scaling
from capalloc.results.shattering import Shattering
from capalloc.results.text import briefly
from capalloc.results.view import Fact, Table, View, beside, counted, estimate, standing

if TYPE_CHECKING:
    import pandas as pd

#: What the names of a diagnosis begin with in an audit, whose own layers are other ones.
OF_DEPTH = "depth_"
#: What a note says of a part that was not looked at.
LEFT_OUT = " left out: "
Level = Literal["serious", "worth a look", "to know"]
LEVELS: tuple[Level, ...] = get_args(Level)


@dataclass(frozen=True)
class Finding:
    """One thing that was found: what, with its number and error, what to do, and where the docs explain it."""

    level: Level
    weight: float  # the share of the network, or of its inputs, that it is about: what orders a level
    what: str
    do: str
    docs: str  # a page, as in docs/
    value: float | None = None  # the number that it is about
    error: float | None = None  # its standard error; None where the number is exact, or none is known

    __repr__ = briefly

    @property
    def sentence(self) -> str:
        """All of it in one line."""
        return f"{self.level}: {self.what}; {self.do} (docs/{self.docs})"


#: What every finding has, and what it may have.
OF_EVERY_FINDING = {f.name for f in fields(Finding) if f.default is MISSING}
OF_A_FINDING = {f.name for f in fields(Finding)}


def by_weight(findings: Sequence[Finding]) -> list[Finding]:
    """Findings in their order: the most serious first, the largest of a level first."""
    return sorted(findings, key=lambda found: (LEVELS.index(found.level), -found.weight))


def _of_depth(rows: str) -> Callable[[Audit], pd.DataFrame]:
    """The table of `to_pandas` that the diagnosis has."""

    def table(audit: Audit) -> pd.DataFrame:
        if audit.diagnosis is None:
            raise ValueError(f"this audit has no {rows}: its diagnosis of depth was left out; its notes may say why")
        return audit.diagnosis.to_pandas("layers" if rows == "stretches" else rows)

    return table


class Audit(Result):
    """Findings on one model, the most serious first, a table of its layers, and the diagnosis of its depth.

    `findings` has each with its number, what to do and where the docs explain it. Along "layer", in the model's order,
    NaN where it is not known:

    - `parameters`, and the `capacity` that they hold together; `use`, the second over the first, and `use_error`;
    - `units` of the layer, and how many of them are `dead`: on these examples no path goes through them;
    - `channels` that it reads, and the `directions` that hold 99 % of their variance, each channel at variance 1.

    `diagnosis` is what `capalloc.diagnose` returns: balance of depth, likeness of gradients, receptive field. Its
    tables are among those of `to_pandas`; "stretches" are the layers of its gains.

    Args:
        data: the Dataset with those variables, and with those of a `Diagnosis`, each name after "depth_", where there
            is one.

    Raises:
        ValueError: a variable is missing, or a finding has no known level.

    """

    FORMAT = "capalloc-audit"
    MAKER = "capalloc.audit()"
    COLUMNS = ("parameters", "capacity", "use", "use_error", "units", "dead", "channels", "directions")
    SCHEMA: ClassVar = {
        "layer": Variable(("layer",)),
        **{name: Variable(("layer",), low=0) for name in COLUMNS},
    }
    SETTINGS = ("num_params", "num_examples", "total", "total_standard_error", "seconds", "forecast_seconds", "found")
    DEPTH_ROWS = ("blocks", "stretches", "places", "gates", "distances", "axes")
    ROWS: ClassVar = {"layers": axis_rows("layer"), **{rows: _of_depth(rows) for rows in DEPTH_ROWS}}
    VALUES = ("findings", "total", "num_params", "seconds", "forecast_seconds")

    def check(self) -> None:
        """Every finding can be read, and the diagnosis made."""
        for found in self.data.attrs["found"]:
            if not OF_EVERY_FINDING <= set(found) <= OF_A_FINDING or found["level"] not in LEVELS:
                raise ValueError(f"a finding needs {sorted(OF_EVERY_FINDING)} and a level of {LEVELS}: {found}")
        there = set(map(str, self.data.variables))
        needed = {f"{OF_DEPTH}{name}" for kind in (Diagnosis, Scaling, Shattering) for name in kind.SCHEMA}
        if there & needed and (missing := sorted(needed - there)):
            raise ValueError(f"the dataset lacks {missing}; {self.MAKER} makes one that has them")
        _ = self.diagnosis

    @property
    def findings(self) -> list[Finding]:
        """Everything found, the most serious first; empty where nothing was."""
        return [Finding(**found) for found in self.data.attrs["found"]]

    @property
    def diagnosis(self) -> Diagnosis | None:
        """Balance of depth, likeness of gradients and receptive field; None where left out."""
        names = [name for name in map(str, self.data.variables) if name.startswith(OF_DEPTH)]
        if not names:
            return None
        part = self.data[names].drop_attrs(deep=False)
        part = part.rename({name: str(name).removeprefix(OF_DEPTH) for name in (*part.variables, *part.dims)})
        return Diagnosis(part.assign_attrs(self.data.attrs["depth"]))

    def view(self) -> View:
        """Findings, the layers that they stand on, and all that the diagnosis shows."""
        findings, diagnosis = self.findings, self.diagnosis
        depth = None if diagnosis is None else diagnosis.view()
        counts = [(sum(found.level == level for found in findings), level) for level in LEVELS]
        partial = any(LEFT_OUT in note for note in self.data.attrs.get("notes", ()))
        nothing = "nothing found" + ", in a part of what there is to see" * partial
        heading = ", ".join(f"{number} {level}" for number, level in counts if number) or nothing
        facts = [
            standing("exact", "for these examples, but where ±, ~ or a word says otherwise"),
            Fact("parameters", f"{self.num_params:,}"),
        ]
        if self.total is not None:
            shown, known = counted(self.total, self.total_standard_error), self.data.attrs.get("certainty")
            share = f"{self.total / self.num_params:.0%} of them, on these examples"
            facts.append(Fact("capacity", shown, f"({known}; {share})" if known else f"({share})"))
        facts.append(Fact("examples", f"{self.num_examples:,}"))
        facts.append(Fact("seconds", f"{self.seconds:.3g}", f"({self.forecast_seconds:.2g} were forecast)"))
        values = {name: getattr(self, name) for name in self.VALUES}
        values |= {"findings": [asdict(f) for f in findings], "diagnosis": None if depth is None else depth.values}
        left_out = ("found", "depth", *PLACED)
        return self._view(
            title="Audit",
            heading=heading,
            about="Everything that is known of this model at once, the most serious first.",
            facts=[*facts, *beside(() if depth is None else depth.facts)],
            tables=[self._layers(), *(() if depth is None else map(_apart, depth.tables))],
            charts=() if depth is None else depth.charts,
            advice=[found.sentence for found in findings] or None,  # the heading says that there is nothing
            settled="parts were left out, as the notes say" if partial and not findings else "",
            values=values,
            rows=("layers",) if depth is None else tuple(self.ROWS),
            settings={name: value for name, value in self.data.attrs.items() if name not in left_out},
        )

    def _layers(self) -> Table:
        guide, rows = "~" * (self.data.attrs.get("certainty") == "a guide"), []
        for k, name in enumerate(self.data["layer"].to_numpy()):
            row = {column: float(self.data[column][k]) for column in self.COLUMNS}
            rows.append([
                str(name),
                f"{row['parameters']:,.0f}",
                guide * (row["use"] >= 0) + estimate(row["use"], row["use_error"], ".2f", ".3f"),
                estimate(row["units"], digits=",.0f"),
                estimate(row["dead"], digits=",.0f"),
                f"{row['directions']:,.0f} of {row['channels']:,.0f}" if row["directions"] >= 0 else "–",
            ])  # fmt: skip
        head = ["layer", "parameters", "use", "units", "dead", "directions read"]
        bars = {"use": self.data["use"].to_numpy().tolist()}
        return Table("layers", head, rows, self.data["parameters"].to_numpy().tolist(), bars=bars)


def _apart(table: Table) -> Table:
    """A table of the diagnosis, whose layers are not those of the audit."""
    return replace(table, apart=True, title="gains of layers" if table.title == "layers" else table.title)


def within(diagnosis: Diagnosis) -> xr.Dataset:
    """The variables of a diagnosis under the names that they have in an audit, and its settings as `depth`."""
    data = diagnosis.data
    renamed = data.drop_attrs(deep=False).rename({name: f"{OF_DEPTH}{name}" for name in (*data.variables, *data.dims)})
    return renamed.assign_attrs(depth=data.attrs)


def as_data(findings: Sequence[Finding]) -> list[dict[str, object]]:
    """Findings in their order, as JSON keeps them."""
    return [asdict(found) for found in by_weight(findings)]
