"""The result of `diagnose`: works from a saved file, with no model at hand."""

from __future__ import annotations

from typing import ClassVar

import xarray as xr

from capalloc.results.base import PLACED, Result, Variable, axis_rows, words_for
from capalloc.results.scaling import Scaling
from capalloc.results.shattering import Shattering
from capalloc.results.view import Fact, Table, View, beside, estimate, standing

FIELD = ("axis", "field_size", "field_start", "field_stride", "field_cut", "field_deviation")


class Diagnosis(Result):
    """`scaling`, `shattering` and the receptive field of one model, as one result.

    Args:
        data: the variables of a `Scaling` and of a `Shattering`, and by input axis `field_size`, `field_start`,
            `field_stride`, `field_cut` and `field_deviation` of the central output position (`receptive_field`).

    Raises:
        ValueError: a variable is missing, or an invariant of one of the parts does not hold.

    """

    FORMAT = "capalloc-diagnosis"
    MAKER = "capalloc.diagnose()"
    SCHEMA: ClassVar = dict.fromkeys(FIELD, Variable(("axis",)))
    ROWS: ClassVar = {
        "layers": axis_rows("layer"),
        "blocks": axis_rows("block"),
        **Shattering.ROWS,
        "axes": axis_rows("axis"),
    }

    def check(self) -> None:
        """Both parts can be made."""
        _ = self.scaling, self.shattering

    @property
    def scaling(self) -> Scaling:
        """Rates of residual blocks, gains of layers; its verdict knows the correlation of gradients."""
        found = self._part("scaling", "block", "layer")
        return Scaling(found.assign_attrs(correlation=self.shattering.kept))

    @property
    def shattering(self) -> Shattering:
        """Correlations of gradients."""
        return Shattering(self._part("shattering", "place", "gate", "distance"))

    @property
    def advice(self) -> list[str]:
        """Changes to make to initial weights; empty where nothing asks for one, or the network is trained."""
        return [*self.scaling.advice, *self.shattering.advice]

    @property
    def summary(self) -> str:
        """The figures that matter most, in one line."""
        scaled, shattered = self.scaling, self.shattering
        depth = scaled.phase if scaled.phase == "plain" else f"{scaled.phase}, T = {scaled.T:.3g}"
        alike = estimate(shattered.correlation, digits=".3g")
        return f"{depth}; shattering index {shattered.index:.3g}, correlation of gradients {alike}"

    def view(self) -> View:
        """Everything of the parts, and the receptive field."""
        parts = {"scaling": self.scaling.view(), "shattering": self.shattering.view()}
        own = {name: value for name, value in self.data.attrs.items() if name not in (*parts, *PLACED)}
        return self._view(
            title="Diagnosis of depth",
            heading=self.summary,
            facts=[
                standing(
                    "exact", "for these examples, but likeness of gradients: predicted is a guide, measured an estimate"
                ),
                *beside(fact for part in parts.values() for fact in part.facts),
                *self._sizes(),
            ],
            brief=1,
            tables=[*(table for part in parts.values() for table in part.tables), *self._field()],
            charts=[chart for part in parts.values() for chart in part.charts],
            advice=self.advice,
            settled="; ".join(filter(None, (part.settled for part in parts.values()))),
            notes=list(dict.fromkeys(note for part in parts.values() for note in part.notes)),
            values={"summary": self.summary, **parts["scaling"].values, **parts["shattering"].values}
            | {"advice": self.advice},
            series=parts["scaling"].series,
            settings=own | {f"{name}: {key}": v for name, part in parts.items() for key, v in part.settings.items()},
        )

    @property
    def _words(self) -> dict[str, str]:
        return words_for(self.data.attrs, self.data["axis"].to_numpy())

    def _sizes(self) -> list[Fact]:
        """The field of the central output position, in places of the input."""
        sizes = self.data["field_size"].to_series()
        along = f"({' × '.join(self._words.values())}), of the central output position"
        return [Fact("receptive field", " × ".join(f"{size:g}" for size in sizes), along)] if len(sizes) else []

    def _field(self) -> list[Table]:
        rows = []
        for k in range(self.data.sizes["axis"]):
            axis, size, start, stride, cut, deviation = (self.data[name].to_numpy()[k] for name in FIELD)
            every = "" if stride != stride else f"{stride:g}"  # NaN: none
            rows.append(
                [self._words[str(axis)], f"{size:g}{' (cut)' if cut else ''}", f"{start:g}", every, f"{deviation:.3g}"]
            )
        return [Table("receptive field", ["axis", "size", "from", "stride", "deviation"], rows)] if rows else []

    def _part(self, name: str, *axes: str) -> xr.Dataset:
        """The variables over some axes, with the settings of one part."""
        variables = self.data.variables.items()
        kept = [name for name, variable in variables if variable.dims and set(variable.dims) <= set(axes)]
        return self.data[kept].drop_attrs(deep=False).assign_attrs(self.data.attrs.get(name) or {})
