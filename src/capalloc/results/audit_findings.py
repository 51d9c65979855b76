"""The result of `audit`: works from a saved file, with no model at hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import ClassVar, Literal, get_args

from capalloc.results.base import Result, Variable, axis_rows
from capalloc.results.text import briefly
from capalloc.results.view import Fact, Table, View, estimate

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

    __repr__ = briefly

    @property
    def sentence(self) -> str:
        """All of it in one line."""
        return f"{self.level}: {self.what}; {self.do} (docs/{self.docs})"


def by_weight(findings: Sequence[Finding]) -> list[Finding]:
    """Findings in their order: the most serious first, the largest of a level first."""
    return sorted(findings, key=lambda found: (LEVELS.index(found.level), -found.weight))


class Audit(Result):
    """Findings on one model, the most serious first, and a table of its layers.

    `findings` has each with its number, what to do and where the docs explain it. Along "layer", in the model's order,
    NaN where it is not known:

    - `parameters`, and the `capacity` that they hold together; `use`, the second over the first, and `use_error`;
    - `units` of the layer, and how many of them are `dead`: on these examples no path goes through them;
    - `channels` that it reads, and the `directions` that hold 99 % of their variance, each channel at variance 1.

    Args:
        data: the Dataset with those variables.

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
    ROWS: ClassVar = {"layers": axis_rows("layer")}
    VALUES = ("findings", "total", "num_params", "seconds", "forecast_seconds")

    def check(self) -> None:
        """Every finding can be read."""
        for found in self.data.attrs["found"]:
            if set(found) != set(Finding.__dataclass_fields__) or found["level"] not in LEVELS:
                raise ValueError(
                    f"a finding needs {list(Finding.__dataclass_fields__)} and a level of {LEVELS}: {found}"
                )

    @property
    def findings(self) -> list[Finding]:
        """Everything found, the most serious first; empty where nothing was."""
        return [Finding(**found) for found in self.data.attrs["found"]]

    def view(self) -> View:
        """Findings, and the layers that they stand on."""
        findings = self.findings
        counts = [(sum(found.level == level for found in findings), level) for level in LEVELS]
        heading = ", ".join(f"{number} {level}" for number, level in counts if number) or "nothing found"
        facts = [Fact("parameters", f"{self.num_params:,}")]
        if self.total is not None:
            shown = estimate(self.total, self.total_standard_error, ",.0f", ".2g")
            facts.append(Fact("capacity", shown, f"{self.total / self.num_params:.0%} of them, on these examples"))
        facts.append(Fact("examples", f"{self.num_examples:,}"))
        facts.append(Fact("seconds", f"{self.seconds:.3g}", f"{self.forecast_seconds:.2g} were forecast"))
        return self._view(
            title="Audit",
            heading=heading,
            about="Everything that is known of this model at once, the most serious first.",
            facts=facts,
            tables=[self._layers()],
            advice=[found.sentence for found in findings] or None,  # the heading says that there is nothing
            values={**{name: getattr(self, name) for name in self.VALUES}, "findings": [asdict(f) for f in findings]},
            settings={name: value for name, value in self.data.attrs.items() if name not in ("found", "notes")},
        )

    def _layers(self) -> Table:
        rows = []
        for k, name in enumerate(self.data["layer"].to_numpy()):
            row = {column: float(self.data[column][k]) for column in self.COLUMNS}
            rows.append([
                str(name),
                f"{row['parameters']:,.0f}",
                estimate(row["use"], row["use_error"], ".2f", ".2f"),
                estimate(row["units"], digits=",.0f"),
                estimate(row["dead"], digits=",.0f"),
                f"{row['directions']:,.0f} of {row['channels']:,.0f}" if row["directions"] >= 0 else "–",
            ])  # fmt: skip
        head = ["layer", "parameters", "use", "units", "dead", "directions read"]
        return Table("layers", head, rows, self.data["parameters"].to_numpy().tolist())


def as_data(findings: Sequence[Finding]) -> list[dict[str, object]]:
    """Findings in their order, as JSON keeps them."""
    return [asdict(found) for found in by_weight(findings)]
