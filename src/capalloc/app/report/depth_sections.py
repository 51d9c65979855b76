"""Sections about what depth does: decoupling by gate, scaling of blocks, shattering of gradients, the three at once."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from markupsafe import Markup

from capalloc.app.report.charts import Axis, Series, chart
from capalloc.app.report.section import Fact, Section, exact
from capalloc.results.decoupling import Decoupling
from capalloc.results.diagnosis import Diagnosis
from capalloc.results.scaling import Scaling
from capalloc.results.shattering import KINDS, Shattering
from capalloc.results.templating import render
from capalloc.results.words import Tables

PHASES = {
    "plain": "no residual blocks",
    "balanced": "gradients keep their likeness, and branches count",
    "degenerate": "hardly a path goes around the branches: gradients shatter",
    "trivial": "hardly a path goes through a branch: they propagate nothing",
}


def decoupling_sections(results: Mapping[str, Decoupling]) -> list[Section]:
    """One section for each result."""
    return [
        Section(f"decoupling-{k}", f"Decoupling by depth: {name}", _decoupling(name, found))
        for k, (name, found) in enumerate(results.items(), 1)
    ]


def depth_sections(results: Mapping[str, Scaling | Shattering | Diagnosis]) -> list[Section]:
    """Charts, advice and tables of each result."""
    sections = []
    for k, (name, found) in enumerate(results.items(), 1):
        scaled = found.scaling if isinstance(found, Diagnosis) else found if isinstance(found, Scaling) else None
        shattered = (
            found.shattering if isinstance(found, Diagnosis) else found if isinstance(found, Shattering) else None
        )
        facts, charts = [], []
        if scaled is not None:
            facts += _scaling_facts(scaled)
            charts.append(("How strong each block is" if _blocks(scaled) else "Gain of each layer", _rates(scaled)))
        if shattered is not None:
            facts += _shattering_facts(shattered)
            charts.append(("Likeness of gradients, by depth", _places(shattered)))
            charts.append(("Likeness of gradients, by distance of the inputs", _line(shattered)))
        title = {Scaling: "Scaling", Shattering: "Shattering", Diagnosis: "Diagnosis of depth"}[type(found)]
        body = _body(facts, charts, found.tables(), advice=found.advice)
        sections.append(Section(f"depth-{k}", f"{title}: {name}", body))
    return sections


def _body(
    facts: list[Fact], charts: list[tuple[str, Markup]], tables: Tables, advice: list[str] | None = None
) -> Markup:
    return render("report/depth.html", facts=facts, charts=charts, tables=tables, advice=advice)


def _decoupling(name: str, found: Decoupling) -> Markup:
    depth = np.arange(1, len(found) + 1)
    labels = {"decoupling": "units", "coupled_decoupling": "units, by coupling", "example_decoupling": "examples"}
    series = []
    for k, (variable, label) in enumerate(labels.items()):
        values = found.data[variable].to_numpy()
        if np.isnan(values).all():
            continue
        errors = found.data[f"{variable}_error"].to_numpy()
        titles = [f"{layer}, {label}: {v:.3f}" for layer, v in zip(found.layers, values, strict=True)]
        series.append(Series(label, depth + 0.12 * (k - 1), values, "dots", k, 2 * np.nan_to_num(errors), titles))
    label = f"Decoupling of the {len(found)} gates of {name}, inputs first, from 0 as a linear map to 1 totally"
    x = Axis("gate, inputs first", 0.5, len(found) + 0.5, whole=True)
    drawn = chart(label, series, x, Axis("decoupling", -0.02, 1.02))
    means = [Fact("gates", str(len(found)), f"on {found.data.attrs.get('num_examples', '?')} examples")]
    for variable, label in labels.items():
        values = found.data[variable].to_numpy()
        if np.isfinite(values).any():
            means.append(Fact(f"mean over gates, {label}", f"{np.nanmean(values):.3f}", "0 linear, 1 total"))
    charts = [("Decoupling of each gate; bars are two standard errors", drawn)]
    return _body(means, charts, found.tables())


def _blocks(found: Scaling) -> int:
    return int(found.data.sizes["block"])


def _scaling_facts(found: Scaling) -> list[Fact]:
    facts = [Fact("regime", found.phase, PHASES[found.phase])]
    if _blocks(found):
        facts.append(Fact("T, the sum of log(1 + λ)", f"{found.T:.3g}", f"over {_blocks(found)} residual blocks"))
        facts.append(Fact("path energy that takes no branch", _percent(found.skip_share), "e^−T"))
    else:
        facts.append(Fact("gain of path energy in all", exact(found.total_gain), "1 keeps its scale"))
    return facts


def _shattering_facts(found: Shattering) -> list[Fact]:
    measured = float(found.data["measured_independent"][0])
    return [
        Fact(
            "correlation of gradients", f"{found.correlation:.3g}", f"at the inputs, predicted; {measured:.3g} measured"
        ),
        Fact("shattering index", f"{found.index:.3g}", "mean number of decouplings on a path"),
    ]


def _rates(found: Scaling) -> Markup:
    number = _blocks(found)
    if not number:
        at = np.arange(1, found.data.sizes["layer"] + 1)
        names = [str(name) for name in found.data["layer"].to_numpy()]
        series = [Series("", [0.5, len(at) + 0.5], [1, 1], "thin", 3)]
        for k, (label, key) in enumerate({"energy, upwards": "gain", "gradients, downwards": "gradient_gain"}.items()):
            values = found.data[key].to_numpy()
            titles = [f"{name}, {label}: {v:.3g}" for name, v in zip(names, values, strict=True)]
            series.append(Series(label, at, values, "dots", k, titles=titles))
        label = f"Gain of path energy and of gradients at each of {len(at)} layers, inputs first; 1 keeps the scale"
        x = Axis("layer, inputs first", 0.5, len(at) + 0.5, whole=True)
        return chart(label, series, x, Axis("gain", log=True))
    at, rates = np.arange(1, number + 1), found.data["rate"].to_numpy()
    names = [f"{name}: λ = {v:.3g}" for name, v in zip(found.data["block"].to_numpy(), rates, strict=True)]
    series = [
        Series("branch over skip", at, rates, "dots", 0, titles=names),
        Series(f"balanced, 1/{number}", [0.5, number + 0.5], [1 / number] * 2, "dashed", 1),
    ]
    label = f"Rate λ of {number} residual blocks, inputs first, beside the balanced rate 1/{number}"
    return chart(
        label, series, Axis("residual block, inputs first", 0.5, number + 0.5, whole=True), Axis("λ", log=True)
    )


def _places(found: Shattering) -> Markup:
    kinds = found.data["kind"].to_numpy()
    along = found.data.isel(place=kinds != "gate") if "stream" in kinds else found.data
    depth = np.arange(along.sizes["place"])
    series = []
    for k, kind in enumerate(KINDS):
        values, errors = along[f"measured_{kind}"].to_numpy(), along[f"measured_{kind}_error"].to_numpy()
        names = [f"{name}, {kind}: {v:.3f}" for name, v in zip(along["place"].to_numpy(), values, strict=True)]
        series.append(Series(f"{kind}, predicted", depth, along[f"predicted_{kind}"].to_numpy(), "line", k))
        series.append(Series(f"{kind}, measured", depth, values, "dots", k, 2 * np.nan_to_num(errors), names))
    what = "residual block" if "stream" in kinds else "gate"
    label = f"Correlation of gradients at {len(depth)} places, measured and predicted, inputs first"
    return chart(label, series, Axis(f"{what}, inputs first", whole=True), Axis("correlation", -0.1, 1.05))


def _line(found: Shattering) -> Markup:
    at = found.data["distance"].to_numpy()
    errors = 2 * np.nan_to_num(found.data["measured_line_error"].to_numpy())
    series = [
        Series("predicted", at, found.data["predicted_line"].to_numpy(), "line", 0),
        Series("measured", at, found.data["measured_line"].to_numpy(), "dots", 0, errors),
    ]
    label = "Correlation of gradients at inputs on a line against their distance, measured and predicted"
    return chart(label, series, Axis("distance, two examples apart = 1"), Axis("correlation", -0.1, 1.05))


def _percent(share: float) -> str:
    return "–" if math.isnan(share) else f"{share:.2g}" if share < 1e-3 else f"{share:.1%}"
