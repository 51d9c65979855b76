"""How results show themselves: short text, and HTML that is whole, escaped and fit for light and dark pages."""

from __future__ import annotations

import base64
import re
import xml.etree.ElementTree as ET
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
import xarray as xr

from allocations import allocation
from capalloc import Allocation
from capalloc.depth_limit import Evolution, StepLaw, WalkBlock, jump, point
from capalloc.results import (
    Audit,
    Decoupling,
    Diagnosis,
    EffectiveParameters,
    Extent,
    Finding,
    PruneScores,
    Ranking,
    ReceptiveField,
    Scaling,
    Shattering,
    Walk,
)
from capalloc.results.base import Result
from capalloc.results.card import CARD_ROWS, NAMED_CELLS, as_html
from capalloc.results.kinds import RESULTS
from capalloc.results.receptive_field import extent_columns
from capalloc.results.text import TEXT_ROWS, as_text
from capalloc.results.view import STANDING, Table, View, counted, estimate

HOSTILE = '"><script>alert(1)</script><img src=x onerror="alert(2)">&\'</style>'


def made(name: str = "layer") -> dict[str, Result]:
    """One result of each kind with every name `name`, made of numbers."""
    a = allocation((4, 5), kind=name, notes=[name])
    tensors = [f"{name}{k}" for k in range(3)]
    a = a.replace(by_parameter=a.by_parameter.assign_coords(parameter=tensors), table=None)
    scaling = xr.Dataset(
        {
            "rate": ("block", [50.0]),
            "multiplier": ("block", [0.02]),
            "identity": ("block", [0]),
            "last_layer": ("block", [name]),
            **{key: ("layer", [2.0]) for key in ("gain", "gradient_gain", "mean_squared_gate")},
            "rescaled": ("layer", [0]),
        },
        coords={"block": [name], "layer": [name]},
    )
    shattering = xr.Dataset(
        {
            "kind": ("place", ["inputs"]),
            **{f"measured_{k}{e}": ("place", [0.001]) for k in ("independent", "nearby") for e in ("", "_error")},
            **{f"predicted_{k}": ("place", [0.001]) for k in ("independent", "nearby")},
            **{key: ("gate", [0.5]) for key in ("decoupling", "decoupling_nearby", "crossing")},
            **{key: ("distance", [0.5]) for key in ("measured_line", "measured_line_error", "predicted_line")},
        },
        coords={"place": [name], "gate": [name], "distance": [1.0]},
    )
    columns = ("size", "start", "stride", "cut", "deviation")
    axis = xr.Dataset({f"field_{key}": ("axis", [1.0]) for key in columns}, coords={"axis": [name]})
    numbers = [
        *(
            f"{key}{end}"
            for key in ("decoupling", "coupled_decoupling", "example_decoupling")
            for end in ("", "_error")
        ),
        *("mean_squared_gate", "dead", "saturated"),
    ]
    decoupling = xr.Dataset(
        {**{key: ("layer", [0.5]) for key in numbers}, **{key: ("layer", [name]) for key in ("kind", "operator")}},
        coords={"layer": [name], "units": ("layer", [3])},
        attrs={"notes": [name], "num_examples": 2},
    )
    law = xr.DataArray(np.full((2, 3), 1 / 6), dims=("row", "column"))
    extents = extent_columns({n: Extent(1, 0, 1, 0.0, 1.0, False, 0.0) for n in law.dims})
    values = ("exact", "exact", "energy", "data", 1, 2, ("row", "column"), (name,), (None,))
    field = ReceptiveField(
        xr.Dataset(
            {"map": law, "support": law > 0, "influence": law > 0, **extents},
            {"axis": ["row", "column"]},
            dict(zip(ReceptiveField.SETTINGS, values, strict=True)),
        )
    )
    determined = EffectiveParameters(
        xr.Dataset(
            {
                "by_parameter": ("parameter", [0.75]),
                "leverage": (("example", "output"), [[0.5], [0.25]]),
                "hat": (("example", "output", "other"), [[[0.5]], [[0.25]]]),
                "eigenvalue": ("node", [3.0]),
            },
            {"parameter": [name]},
            {"num_params": 3, "num_examples": 2, "num_outputs": 1, "ridge": 1.0, "rank": 1, "notes": [name]},
        )
    )
    finding = {"level": "serious", "weight": 1.0, "what": name, "do": "see to it", "docs": "scaling.md"}
    settings = {"total": 2.0, "total_standard_error": None, "seconds": 1.0, "forecast_seconds": 2.0, "found": [finding]}
    audit = xr.Dataset(
        {key: ("layer", [1.0]) for key in Audit.COLUMNS},
        {"layer": [name]},
        {"num_params": 3, "num_examples": 2, **settings},
    )
    scores = xr.Dataset(
        {
            **{"parameter": ("tensor", [name]), "layer": ("tensor", [name]), "units": ("tensor", [0])},
            **{"share": ("tensor", [0.75]), "score_0": (("score_0_0", "score_0_1"), [[0.5, 0.25]])},
        },
        attrs={"num_params": 3, "num_examples": 2, "notes": [name]},
    )
    ranking = xr.Dataset(
        {
            **{key: ("model", [1.0]) for key in Ranking.COLUMNS},
            "depth": ("model", ["plain"]),
            "measured": ("model", [1]),
        },
        {"model": [name]},
        {"by": "capacity", "labelled": True, "num_examples": 2, "notes": [name]},
    )
    walk = jump([WalkBlock(StepLaw.uniform(3, 2), 0.5)], point((4, 5)))
    found = [
        Audit(audit),
        a,
        Decoupling(decoupling),
        Diagnosis(xr.merge([scaling, shattering, axis])),
        determined,
        Evolution(walk.data.drop_attrs().assign_attrs({name: name})),
        field,
        Scaling(scaling),
        Shattering(shattering),
        PruneScores(scores),
        Ranking(ranking),
    ]
    return {type(result).__name__: result for result in found}


NAMES = sorted(kind.__name__ for kind in RESULTS)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "Allocation"])
def test_every_result_says_how_far_its_numbers_may_be_trusted(name):
    first = made()[name].view().facts[0]
    assert first.name == STANDING
    assert re.match("exact$|estimated$|a guide$", first.value)


@pytest.mark.parametrize(
    ("attrs", "said"),
    [
        ({"solver": "dense"}, "exact but for rounding, for these examples"),
        ({"solver": "dense", "ridge": 0.1}, "exact but for rounding, for these examples and this ridge"),
        ({"solver": "stochastic"}, "estimated (after ± stand standard errors)"),
        (
            {"solver": "block", "missing": 0.02, "noise": 0.01, "total_range": [6, 9]},
            "estimated (the map within about 0.03 of the exact one; the total from 6 to 9)",
        ),
        (
            {"solver": "block", "missing": 0.1, "noise": 0.0, "total_range": [0, 9]},
            "estimated (the map within about 0.10 of the exact one; the total up to 9)",
        ),
        ({"solver": "markov"}, "a guide (gates are taken to decouple totally; no error is known)"),
    ],
)
def test_a_map_says_whether_it_is_exact(attrs, said):
    found = allocation((3, 3), **attrs)
    shown = next(fact for fact in found.view().facts if fact.name == STANDING)
    assert f"{shown.value} {shown.more}" == said
    assert repr(found).startswith(f"<capalloc.Allocation, {found.certainty}>")
    assert found.view().values["certainty"] == re.split(" but| \\(", said)[0]


def test_a_map_of_unknown_origin_claims_nothing():
    assert allocation((3, 3)).certainty is None
    assert STANDING not in [fact.name for fact in allocation((3, 3)).view().facts]


@pytest.mark.parametrize(
    ("value", "error", "said"),
    [
        (855.903, None, "855.9"),
        (7.34146, 0.17, "7.34 ± 0.17"),
        (312.615, 4.6, "312.6 ± 4.6"),
        (12345.6, None, "12,346"),
        (961.0, None, "961"),
        (2574.7, 123.0, "2,575 ± 123"),
        (0.0, None, "0"),
        (-0.0, 0.0, "0"),
    ],
)
def test_a_count_has_no_more_digits_than_it_knows(value, error, said):
    assert counted(value, error) == said


class Page(HTMLParser):
    """Elements, and whether every one that opens closes."""

    def __init__(self, text: str):
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))
        if tag != "img":
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.mark.parametrize("name", NAMES)
def test_html_stands_alone(name):
    html = made()[name]._repr_html_()
    page = Page(html)
    assert page.open == []
    assert page.seen[0][0] == "div"
    tags = {tag for tag, _ in page.seen}
    assert not tags & {"script", "link", "iframe", "object", "html", "body"}
    for _, attrs in page.seen:
        assert not any(key.startswith("on") for key in attrs)
        for key in ("src", "href"):
            assert (attrs.get(key) or "data:image/png;base64,").startswith("data:image/png;base64,")
    assert "http" not in html
    assert "url(" not in html
    assert f"capalloc.{name}</strong>" in html
    assert len(html) < 10_000


@pytest.mark.parametrize("name", NAMES)
def test_hostile_names_are_text(name):
    plain, hostile = (Page(made(which)[name]._repr_html_()) for which in ("layer", HOSTILE))
    assert [tag for tag, _ in hostile.seen] == [tag for tag, _ in plain.seen]
    assert "&lt;script&gt;" in made(HOSTILE)[name]._repr_html_()


@pytest.mark.parametrize("name", NAMES)
def test_text_is_short_and_says_what_it_is(name):
    text = repr(made()[name])
    assert name in text.splitlines()[0]
    assert str(made()[name]) == text
    assert text.count("\n") < 30
    assert max(map(len, text.splitlines())) < 250
    assert "xarray" not in text


def test_colours_are_those_of_the_page():
    """Nothing sets a colour of text or ground, so that a dark notebook stays dark."""
    style = re.search(r"<style>(.*?)</style>", allocation()._repr_html_(), re.DOTALL)[1]
    without_bar = re.sub(r"\.capalloc-card \.scale i\{.*?\}", "", style)
    assert re.findall(r"(?<![-\w])color:\s*([^;}]+)", without_bar) == ["inherit"]
    assert set(re.findall(r"background:\s*([^;}]+)", without_bar)) == {"none"}
    for selector in re.findall(r"^([^{]+)\{", style.strip(), re.MULTILINE):
        assert all(part.strip().startswith(".capalloc-card") for part in selector.split(","))


def test_totals_come_with_their_standard_errors():
    errors = {"total_standard_error": 1.25, "bias_standard_error": 0.5}
    a = allocation(**errors, by_parameter_standard_error={"conv.weight": 0.75})
    for text in (repr(a), a._repr_html_()):
        assert f"{a.total:.6g} ± 1.2 of 200 parameters" in text
        assert f"2.5 ± 0.5 ({2.5 / a.total:.1%})" in text
    assert "± 0.75</td>" in a._repr_html_()
    assert "±" not in repr(allocation())


def test_notes_are_marked():
    assert '<p class="note">few examples</p>' in allocation(notes=["few examples"])._repr_html_()


def picture(values: np.ndarray) -> tuple[str, str]:
    dims = ("channel", "row", "column")[-values.ndim :]
    a = xr.DataArray(values, dims=dims)
    total = xr.DataArray([values.sum()], dims="parameter", coords={"parameter": ["w"]})
    html = Allocation(a, 0.0, total)._repr_html_()
    return re.search(r"<figure>\s*(.*?)\s*<div", html, re.DOTALL)[1], html


def test_small_maps_name_their_cells():
    svg = ET.fromstring(picture(np.ones((2, 3, 4)))[0])
    assert len(list(svg.iter("rect"))) == 12
    assert next(svg.iter("title")).text == "row 0, column 0: 2"


@pytest.mark.parametrize(
    ("shape", "cells", "said"),
    [
        ((20, 20), (20, 20), ""),
        ((NAMED_CELLS + 1,), (1, 129), "in sums of column 2"),
        ((300,), (1, 150), "in sums of column 2"),
        ((1, 40), (1, 40), ""),
        ((40, 1), (40, 1), ""),
        ((3, 600, 400), (200, 200), "in sums of row 3 x column 2"),
    ],
)
def test_large_and_long_maps_are_pictures(shape, cells, said):
    figure, html = picture(np.ones(shape))
    data = re.search(r"base64,([A-Za-z0-9+/=]+)", figure)[1]
    header = base64.b64decode(data)[:24]
    assert (int.from_bytes(header[20:24]), int.from_bytes(header[16:20])) == cells
    assert said in html
    assert "<rect" not in figure


def test_a_coarse_map_keeps_its_sum_and_says_its_scale():
    values = np.zeros((3, 513))
    values[1, 510:] = 1.0
    _, html = picture(values)
    assert "in sums of column 3" in html
    assert "<span>0</span><i></i><span>3</span>" in html


def test_a_map_of_no_capacity():
    assert "<svg" in picture(np.zeros((4, 4)))[1]


def test_long_tables_are_cut_and_closed():
    rows = [[f"l{k}", str(k)] for k in range(500)]
    tables = {number: [Table("layers", ["layer", "units"], rows[:number])] for number in (3, TEXT_ROWS, 500)}
    view = View("capalloc.Kind", "Kinds", "long", tables=tables[500])
    text = as_text(view)
    assert text.count("\n") == TEXT_ROWS + 3
    assert f"… {500 - TEXT_ROWS + 1} more" in text
    html = as_html(view)
    assert html.count("<tr>") == CARD_ROWS + 1
    assert f"… {500 - CARD_ROWS + 1} more" in html
    assert "<details><summary>layers (500)" in html
    assert "<details open><summary>layers (3)" in as_html(replace(view, tables=tables[3]))
    whole = as_text(replace(view, tables=tables[TEXT_ROWS]))
    assert f"l{TEXT_ROWS - 1}" in whole
    assert "more" not in whole


def test_ipython_finds_them():
    formatters = pytest.importorskip("IPython.core.formatters", reason="IPython is not installed")
    data, _ = formatters.DisplayFormatter().format(allocation())
    assert data["text/html"] == allocation()._repr_html_()
    assert data["text/plain"] == repr(allocation())


def test_a_browser_shows_them_in_light_and_dark(browser):
    """No request, no message, no dialog; text keeps the page's colour; nothing is wider than the page."""
    page = browser.new_page(viewport={"width": 800, "height": 600})
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("dialog", lambda dialog: said.append(dialog.message))
    page.on("request", lambda request: said.append(request.url) if not request.url.startswith("data:") else None)
    for ground, ink in (("#ffffff", "rgb(17, 17, 17)"), ("#111418", "rgb(238, 238, 238)")):
        results = "".join(result._repr_html_() for result in made(HOSTILE).values())
        page.set_content(f"<body style='background:{ground};color:{ink}'>{results}</body>")
        colours = page.evaluate(
            "[...document.querySelectorAll('.capalloc-card td, .capalloc-card p')].map(e => getComputedStyle(e).color)"
        )
        assert set(colours) == {ink}
        assert page.evaluate("document.documentElement.scrollWidth") <= 800
        sizes = page.evaluate("[...document.querySelectorAll('figure svg')].map(e => e.getBoundingClientRect().height)")
        assert len(sizes) == 3
        assert min(sizes) > 50
    assert said == []
    page.close()


SMALL = {
    "Walk": (
        Walk(xr.DataArray([[1 / 3, 0.5]], dims=("row", "column")), 1 / 6, {"0": xr.DataArray(np.ones(3))}),
        "Walk(inputs=<DataArray of 1 x 2>, bias=0.166667, layers={'0': <DataArray of 3>})",
    ),
    "Extent": (
        Extent(3, -1, 2, 1 / 3, float("nan"), False, 2.5),
        "Extent(size=3, start=-1, stop=2, centre=0.333333, stride=nan, cut=False, deviation=2.5)",
    ),
    "Finding": (
        Finding("to know", 2 / 3, "it", "nothing", "a.md"),
        "Finding(level='to know', weight=0.666667, what='it', do='nothing', docs='a.md', value=None, error=None)",
    ),
}


@pytest.mark.parametrize("name", SMALL)
def test_small_values_show_six_digits_and_sizes(name):
    value, shown = SMALL[name]
    assert repr(value) == shown


def test_nothing_shows_minus_zero():
    assert estimate(-1e-9) == "0.000"
    assert estimate(-1e-9, 0.1, ",.2f", ".2g") == "0.00 ± 0.1"
    assert estimate(-0.0, digits=".6g") == "0"
    assert estimate(-0.5, digits=".1f") == "-0.5"
    assert "-0.0" not in repr(Extent(3, 0, 3, -0.0, 1.0, False, -0.0))
