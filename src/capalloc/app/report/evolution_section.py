"""The section about the walk of capacity through blocks: its law at the inputs, and how it spreads on the way."""

from __future__ import annotations

from collections.abc import Mapping

from capalloc.app.report.charts import Axis, Series, chart
from capalloc.app.report.encode import encode
from capalloc.app.report.explorer import Explorer, Figure
from capalloc.app.report.layout import high
from capalloc.app.report.section import Fact, Section, exact
from capalloc.results.evolution import Evolution
from capalloc.results.templating import render

#: Bytes of the map, before base64.
MAP = 400_000


def evolution_sections(results: Mapping[str, Evolution]) -> list[Section]:
    """One section for each evolution."""
    return [_section(f"evolution-{k}", name, found) for k, (name, found) in enumerate(results.items(), 1)]


def _section(key: str, name: str, found: Evolution) -> Section:
    law = found.final.drop_vars("depth", errors="ignore").clip(min=0)
    blocks = found.law.sizes["depth"] - 1
    shown = Explorer(
        key=key,
        names=[name],
        unit="probability",
        figures=[Figure(f"{name}, after {blocks} blocks", "map", (0,), law, (0.0, high(law)))],
        maps=encode(law.to_numpy()[None].astype(float), MAP),
    )
    deviation = found.deviation
    series = [
        Series(axis, range(blocks + 1), deviation.sel(axis=axis).to_numpy(), "line", k)
        for k, axis in enumerate(found.space)
    ]
    label = f"Standard deviation of the walk against the number of blocks passed, up to {blocks}"
    drawn = chart(label, series, Axis("blocks passed, outputs first", whole=True), Axis("deviation in pixels"))
    facts = [Fact(f"deviation, {axis}", exact(float(deviation.sel(axis=axis)[-1])), "pixels") for axis in found.space]
    facts.append(Fact("absorbed at the borders", f"{float(found.absorbed[-1]):.1%}"))
    body = render("report/evolution.html", facts=facts, maps=shown.render(), chart=drawn)
    return Section(key, f"Walk through depth: {name}", body, shown.data())
