"""The page: a golden file, and what must hold of any page. What a browser makes of it: test_report_browser.py."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import os
import re
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import capalloc
from allocations import allocation
from capalloc import Allocation
from capalloc.app.pages import PAGES, power, script_json, with_code
from capalloc.app.report import report_html, write_report
from capalloc.app.report.charts import MOST_POINTS, draw
from capalloc.app.report.encode import Encoded, encode
from capalloc.app.report.explorer import describe
from capalloc.app.report.found import DOCS, SHOWN_AT_ONCE, Told
from capalloc.app.report.outlines import outline
from capalloc.app.report.section import exact, number, plain, sentence
from capalloc.results import Audit, Finding, load
from capalloc.results.audit_findings import as_data
from capalloc.results.images import ring, smallest_region
from capalloc.results.regions import named_parts as parts
from capalloc.results.svg import gradient
from capalloc.results.view import Axis, Chart, Line, Table, View

GOLDEN = Path(__file__).parent / "golden" / "report.html"
VOID = {"meta", "br", "img", "link", "input"}
EVIL = "</script><script>alert('x')</script><img src=x onerror=alert(1)>"


class Outline(HTMLParser):
    """Tags that open and close, attributes and text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.scripts: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        kept = self.scripts if self.open and self.open[-1] in ("script", "style") else self.text
        kept.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def data_of(page: str) -> dict:
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)[1])


def decoded(coded: dict) -> np.ndarray:
    """The stack, by the formula that Encoded states, blocks spread over their pixels."""
    values = np.frombuffer(base64.b64decode(coded["data"]), f"<{coded['type']}").reshape(coded["shape"]).astype(float)
    if coded["step"]:
        ends = [np.reshape(coded[name], (-1, *[1] * (values.ndim - 1))) for name in ("low", "step")]
        values = ends[0] + ends[1] * values
    for axis, block in enumerate(coded["block"], 1):
        values = values.repeat(block, axis=axis)
    return values


def pair() -> dict[str, Allocation]:
    return {"measured": allocation(seed=0), "predicted": allocation(seed=1, kind="propagated", notes=["a lower bound"])}


@pytest.fixture(scope="module")
def depth() -> dict:
    """Results of every other kind, from one small residual network."""

    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(2, 2, 3, padding=1)

        def forward(self, x):
            return x + 0.3 * self.conv(torch.relu(x))

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), Residual(), Residual())
        images = torch.randn(4, 1, 9, 9)
    diagnosis = capalloc.diagnose(model, images, generator=torch.Generator().manual_seed(0))
    blocks = [capalloc.depth_limit.WalkBlock(capalloc.depth_limit.StepLaw.uniform(3), 0.5)] * 4
    return {
        "field": capalloc.receptive_field(model, images),
        "gates": capalloc.decoupling(model, images),
        "all": diagnosis,
        "blocks": diagnosis.scaling,
        "gradients": diagnosis.shattering,
        "walk": capalloc.depth_limit.chain(blocks, capalloc.depth_limit.point(9)),
    }


def without_assets(page: str) -> str:
    """The page without what has files of its own: style, script and colours."""
    page = re.sub(r"(<style>|<script>).*?(?=</)", r"\1", page, flags=re.DOTALL)
    page = re.sub(r"sha256-[\w+/=]+", "sha256-", page)
    return re.sub(r'"(sequential|diverging)":"\w+"', r'"\1":""', page)


def test_golden_page():
    """After a wanted change of the page: WRITE_GOLDEN=1 pytest tests/test_report.py, and look at the difference."""
    page = without_assets(report_html(pair(), title="Golden", facts={"test accuracy": "97 %"}))
    if os.environ.get("WRITE_GOLDEN"):
        GOLDEN.write_text(page, encoding="utf-8")
    assert page == GOLDEN.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("allocations", "figures"),
    [
        (pair(), 4),  # two maps, the difference, the scatter
        ({"one": allocation()}, 1),
        ({"one": allocation((5,), ("lag",))}, 1),
        ({"one": allocation((1, 7), ("row", "column"))}, 1),
        ({"one": allocation((2, 3, 4, 5), ("channel", "depth", "row", "column"))}, 1),
        ({str(k): allocation((3, 9, 9), seed=k) for k in range(3)}, 5),  # three maps, two scatters
        ({"large": allocation((1, 80, 80))}, 1),
        ({"a": allocation(), "b": allocation((1, 6, 4))}, 2),
    ],
)
def test_page_is_well_formed_and_needs_no_network(allocations, figures):
    page = report_html(allocations)
    assert type(page) is str  # Markup would escape what is done to it later
    found = Outline(page)
    assert found.open == []
    assert not {"link", "iframe", "object", "form", "base"} & {tag for tag, _ in found.tags}
    for tag, attributes in found.tags:
        for name in ("src", "href"):
            pages = (DOCS,) if tag == "a" else ()  # which findings name: a link fetches nothing
            assert (attributes.get(name) or "#").startswith(("data:", "#", *pages))
        assert not any(name.startswith("on") or name == "style" for name in attributes)
    assert "http" not in page.replace("http-equiv", "").replace(DOCS, "")
    assert len(found.all("figure")) == figures
    keys = [attributes["id"] for _, attributes in found.tags if attributes.get("id")]
    assert len(keys) == len(set(keys))
    for link in found.all("a"):
        assert link["href"][1:] in keys or link["href"].startswith(DOCS)
    assert all(svg.get("aria-label") or svg.get("aria-hidden") for svg in found.all("svg"))


def test_only_the_page_s_own_style_and_script_may_run():
    page = report_html(pair())
    (policy,) = (m["content"] for m in Outline(page).all("meta") if m.get("http-equiv"))
    for tag in ("style", "script"):
        (own,) = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(own.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy
    assert policy.startswith("default-src 'none'; img-src data:;")
    assert "unsafe" not in policy


def test_page_escapes_every_name(depth):
    a = allocation(notes=[EVIL], setting=EVIL)
    names = [EVIL, "b", "c"]
    a = Allocation(
        a.capacity.rename(column=EVIL),
        a.bias,
        a.by_parameter.assign_coords(parameter=names),
        a.table.rename(column=EVIL).assign_coords(parameter=names),
        {},
        {**a.attrs, EVIL: EVIL},
    )
    gates = depth["gates"].data.assign_coords(layer=[f"{EVIL} {k}" for k in range(len(depth["gates"]))])
    page = report_html({EVIL: a, f"{EVIL} gates": capalloc.results.Decoupling(gates)}, title=EVIL, facts={EVIL: EVIL})
    found = Outline(page)
    assert len(found.all("script")) == 2
    assert found.all("img") == []
    assert page.count("&lt;/script&gt;") >= 12
    assert data_of(page)["explorers"]["maps-1"]["layers"]["names"][0] == EVIL


@given(st.recursive(st.text() | st.integers(-9, 9), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)))
def test_json_in_a_script_element_says_the_same_and_cannot_end_it(value):
    text = script_json(value)
    assert json.loads(text) == value
    assert not set("<>&\u2028\u2029") & set(text)


def table_rows(page: str) -> list[list[str]]:
    """Cells of the first table by region, each without its tags; two numbers with a blank between them."""
    body = re.search(r"<table class=\"sortable regions\".*?</table>", page, re.DOTALL)[0]
    rows = re.findall(r"<tr.*?</tr>", body, re.DOTALL)
    cells = [re.findall(r"<t[hd].*?>(.*?)</t[hd]>", row, re.DOTALL) for row in rows]
    return [[re.sub(r"<[^>]+>", " ", cell).strip() for cell in row] for row in cells]


def test_pairs_count_the_constant_and_say_when_the_data_differ():
    a, b = allocation(seed=0, data_digest="0a", num_examples=50), allocation(seed=1, data_digest="0b", num_examples=60)
    page = report_html({"one": a, "other": b})
    for figure in (
        f"{capalloc.total_variation(a, b):.3f}",
        f"{capalloc.total_variation(a, b, constant=False):.3f} among the inputs alone",
        f"{capalloc.correlation(a, b, backwards=True):.3f} with the second map backwards",
        "50 and 60; what differs may be the data",
    ):
        assert figure in page
    assert "different examples" not in report_html({"one": a, "other": a})


def test_table_agrees_with_the_allocation():
    a = allocation()
    head, *rows = table_rows(report_html({"one": a}))
    assert head[:2] == ["parameters", "all"]
    assert [row[0] for row in rows] == ["conv.weight", "conv.bias", "linear.weight", "all"]
    total, *regions, constant = [list(map(float, cell.split())) for cell in rows[-1][1:]]
    assert sum(region[1] for region in regions) == pytest.approx(float(a.capacity.sum()), abs=0.5)
    assert (total, constant) == ([pytest.approx(a.total, abs=0.05)], [a.bias])
    mean, whole = map(float, rows[0][2].split())
    assert whole == pytest.approx(float(a.table[0, 0, :1, :2].sum()), abs=0.051)
    assert mean == pytest.approx(float(a.table[0, 0, :1, :2].mean()), abs=0.005)


def test_the_table_says_what_the_map_says():
    """On 8 x 8 pixels, of which thirds are 3, 2 and 3, a centre of 1.5 a pixel stands out over corners of 1."""
    values = np.ones((1, 1, 8, 8))
    values[..., 3:5, 3:5] = 1.5
    table = xr.DataArray(
        values,
        dims=("parameter", "channel", "row", "column"),
        coords={"parameter": ["weight"], "bias": ("parameter", [0.0])},
    )
    inner = table.drop_vars("bias")
    a = Allocation(inner.sum("parameter"), 0.0, inner.sum(("channel", "row", "column")), table)
    page = report_html({"one": a})
    cells = dict(zip(*table_rows(page)[:2], strict=True))
    assert (cells["centre"], cells["top left"]) == ("1.5  6.0", "1  9.0")
    assert re.findall(r'<td class="h(\d+)">', page) == ["7", "7", "7", "7", "10", "7", "7", "7", "7"]
    assert "most for each pixel in the region centre, 1.5" in page
    assert "most on   centre, 1.5 for each pixel" in repr(a)


def test_table_of_two_holds_both_and_errors_where_known():
    a, b = pair().values()
    a = Allocation(
        a.capacity, a.bias, a.by_parameter, a.table, {}, {"by_parameter_standard_error": {"conv.bias": 0.25}}
    )
    _, *rows = table_rows(report_html({"a": a, "b": b}))
    assert rows[0][1].split() == [number(float(a.by_parameter[0])), number(float(b.by_parameter[0]))]
    assert f"{number(float(a.by_parameter[1]))} ± 0.2" in rows[1][1]


def test_without_a_table_the_page_shows_what_there_is():
    a = allocation()
    page = report_html({"one": Allocation(a.capacity, a.bias, a.by_parameter)})
    assert "Capacity of the parameter tensors" in page
    assert "--table" in page
    assert table_rows(page)[0] == ["parameters", "all"]
    assert f"{float(a.by_parameter[2]):.1f}" in page
    assert 'data-role="layer"' not in page
    assert data_of(page)["explorers"]["maps-1"]["layers"] is None


def test_a_map_of_zeros_makes_a_page():
    a = allocation()
    zero = Allocation(a.capacity * 0, 0.0, a.by_parameter * 0, a.table.copy(data=np.zeros(a.table.shape)).assign_coords(
        bias=("parameter", np.zeros(3))))  # fmt: skip
    assert "<svg" in report_html({"one": zero})
    assert "<dd>–</dd>" in re.sub("<small>.*?</small>", "", report_html({"one": zero, "two": zero}))


def test_the_script_gets_the_numbers_of_the_allocations():
    shown = pair()
    spec = data_of(report_html(shown))["explorers"]["maps-1"]
    np.testing.assert_allclose(decoded(spec["maps"]), [a.capacity for a in shown.values()], rtol=1e-6)
    for a, coded, totals in zip(shown.values(), spec["layers"]["maps"], spec["layers"]["totals"], strict=True):
        np.testing.assert_allclose(decoded(coded)[coded["rows"]], a.table, rtol=1e-6)
        np.testing.assert_allclose(totals, a.by_parameter)


def test_other_parameters_over_the_same_inputs_stand_on_one_scale():
    a, b = pair().values()
    other = ["conv.weight", "x", "y"]
    b = Allocation(
        b.capacity,
        b.bias,
        b.by_parameter.assign_coords(parameter=other),
        b.table.assign_coords(parameter=other),
    )
    page = report_html({"a": a, "b": b})
    layers = data_of(page)["explorers"]["maps-1"]["layers"]
    assert layers["names"] == ["conv.weight", "conv.bias", "linear.weight", "x", "y"]
    assert [m["rows"] for m in layers["maps"]] == [[0, 1, 2, -1, -1], [0, -1, -1, 1, 2]]
    assert page.count('class="sortable regions"') == 2


def test_standard_errors_have_a_map_and_stand_with_the_total():
    a = allocation(total_standard_error=0.5)
    errors = ("channel", "row", "column"), np.full((1, 4, 6), 0.125)
    a = Allocation(a.capacity.assign_coords(standard_error=errors), a.bias, a.by_parameter, a.table, {}, a.attrs)
    page = report_html({"one": a})
    assert "standard error of one" in page
    assert f"{exact(a.total)} ± 0.5" in page
    np.testing.assert_allclose(decoded(data_of(page)["explorers"]["maps-1"]["errors"]["0"]), 0.125)


def test_spectrum_is_drawn_where_there_is_one():
    a = allocation(ridge=0.1)
    spectrum = xr.DataArray([1.0, 2.0], dims="node", coords={"eigenvalue": ("node", [0.0, 4.0])})
    page = report_html({"one": Allocation(a.capacity, a.bias, a.by_parameter, None, {}, a.attrs, spectrum)})
    assert "Spectrum of G" in page
    assert "ridge of one" in page
    assert "Spectrum of G" not in report_html({"one": a})


def test_every_kind_of_result_has_its_section(depth):
    page = report_html(depth | {"maps": allocation()})
    found = Outline(page)
    assert found.open == []
    for heading in ("Receptive field: field", "Decoupling by depth: gates", "Diagnosis of depth: all",
                    "Scaling: blocks", "Shattering: gradients", "Walk through depth: walk"):  # fmt: skip
        assert f">{heading}</h2>" in page
    text = " ".join(found.text)
    assert f"{depth['blocks'].T:.3g}" in text
    for line in depth["all"].advice:
        what, _, do = line.partition("; ")
        assert sentence(what) in text
        assert sentence(do) in text
    assert {"maps-1", "receptive-field-1", "evolution-1"} == set(data_of(page)["explorers"])
    assert all("nan" not in (path.get("d") or "") for path in found.all("path"))


def test_rings_hold_what_they_say(depth):
    figure = data_of(report_html(depth))["explorers"]["receptive-field-1"]["figures"][0]
    assert set(figure["lines"]) == {"theoretical", "ring-68", "ring-95"}
    row, column = depth["field"].axes["row"], depth["field"].axes["column"]
    assert figure["lines"]["theoretical"] == f"M{column.start} {row.start}H{column.stop}V{row.stop}H{column.start}Z"
    values = depth["field"].map.sum("channel").to_numpy()
    for share, area in ((0.68, depth["field"].area_68), (0.95, depth["field"].area_95)):
        assert smallest_region(values, share).sum() == area
        assert figure["lines"][f"ring-{share * 100:.0f}"] == outline(ring(values, share))


def test_a_ring_is_the_smallest_region_of_a_smooth_map_and_passes_over_a_grid():
    places = np.arange(64) - 31.5
    bell = np.exp(-(places[:, None] ** 2 + places**2) / (2 * 9.0**2))
    teeth = 1 + 3 * (np.arange(64) % 2)
    comb = bell * teeth * teeth[:, None]
    for share in (0.68, 0.95):
        smallest = smallest_region(bell, share)
        # Smoothing adds (1/3)^2 / 12 to each variance, relative: 1 % to the area.
        assert ring(bell, share).sum() == pytest.approx(smallest.sum(), rel=0.03)
        assert len(outline(ring(comb, share))) < 1.5 * len(outline(smallest))
        assert len(outline(smallest_region(comb, share))) > 10 * len(outline(smallest))


def test_outline_runs_around_the_region():
    assert outline(np.array([[False, True], [False, True]])) == "M1 0h1M1 2h1M1 0v2M2 0v2"
    corners = outline(np.eye(2, dtype=bool))
    lengths = [int(run) for run in re.findall(r"[hv](\d+)", corners)]
    assert sum(lengths) == 8


def test_a_saved_result_makes_the_same_page(depth, tmp_path):
    for name, result in (depth | {"maps": allocation()}).items():
        result.save(tmp_path / f"{name}.nc")
    loaded = {name: load(tmp_path / f"{name}.nc") for name in (*depth, "maps")}
    assert report_html(loaded) == report_html(depth | {"maps": allocation()})


@pytest.mark.parametrize(("budget", "kind", "block"), [(4000, "f4", (1, 1, 1)), (1500, "u2", (1, 1, 1)),
                                                       (700, "u1", (1, 1, 1)), (120, "u1", (1, 3, 3))])  # fmt: skip
def test_encoding_keeps_to_its_budget_and_to_its_word(budget, kind, block):
    stack = np.random.default_rng(0).normal(size=(2, 2, 13, 11)) * [[[[1]]], [[[100]]]]
    coded = encode(stack, budget)
    assert (coded.type, coded.block) == (kind, block)
    assert len(base64.b64decode(coded.data)) <= budget
    back = decoded(coded.as_json())[:, :, :13, :11]
    if block == (1, 1, 1):
        reach = np.ptp(stack, axis=(1, 2, 3), keepdims=True)
        levels = {"f4": 2**23, "u2": 65535, "u1": 255}[kind]
        assert (abs(back - stack) <= 0.51 * reach / levels + 1e-6 * abs(stack)).all()
    else:
        assert back[0, 1, 3, 3] == pytest.approx(stack[0, 1, 3:6, 3:6].mean(), abs=0.02)
        assert back[0, 1, 12, 9] == pytest.approx(stack[0, 1, 12:, 9:].mean(), abs=0.02)
        assert "means over blocks of 3 × 3" in coded.note
    assert (coded.note == "") == (kind == "f4")


def test_encoding_of_a_line_and_of_a_constant():
    line = encode(np.arange(100.0)[None], 30)
    assert line.block == (4,)
    np.testing.assert_allclose(decoded(line.as_json())[0, :8], [1.5] * 4 + [5.5] * 4, atol=0.3)
    flat = encode(np.full((1, 30), 2.5), 40)
    np.testing.assert_allclose(decoded(flat.as_json()), 2.5)
    assert isinstance(flat, Encoded)


def test_a_large_page_is_small_and_says_what_it_left_out():
    shape, names = (3, 224, 224), [f"layer{k}.weight" for k in range(12)]
    values = np.random.default_rng(0).random((12, *shape))
    coords = {"parameter": names, "bias": ("parameter", np.zeros(12))}
    table = xr.DataArray(values, dims=("parameter", "channel", "row", "column"), coords=coords)
    inner = table.drop_vars("bias")
    a = Allocation(inner.sum("parameter"), 0.0, inner.sum(["channel", "row", "column"]), table)
    page = report_html({"one": a})
    assert len(page) < 5e6
    assert "Shares of layers are rounded to 1/65535 of the largest value and means over blocks of 2 × 2" in page


def test_charts_keep_to_their_frame_and_thin_out_long_lines():
    x = np.linspace(0, 1, 5000)
    drawn = draw(Chart("a line", [Line("s", x, x**2)], Axis("x"), Axis("y", 0, 1)))
    path = re.search(r'class="line s0" d="M(.*?)"', drawn)[1].split("L")
    assert len(path) == MOST_POINTS
    xs, ys = zip(*(map(float, point.split()) for point in path), strict=True)
    assert min(xs) > 50
    assert max(xs) < 356
    assert 0 < min(ys) < max(ys) < 200


def test_charts_leave_out_what_has_no_place():
    line = Line("s", [1, 2, 3, 4], [1.0, math.nan, 0.0, 10.0], "dots", 0, [0, 0, 0, 0.5], named=True)
    drawn = draw(Chart("dots", [line], Axis("x", names=list("abcd")), Axis("y", log=True)))
    assert re.findall(r"<title>(.*)</title>", drawn) == ["a, s: 1", "d, s: 10"]
    assert "nan" not in drawn
    assert "<svg" in draw(Chart("nothing", [Line("s", [], [])], Axis("x"), Axis("y", log=True)))


def test_a_small_label_is_a_power_of_ten():
    assert power("10^-7") == '10<tspan dy="-3.5" font-size="7">−7</tspan>'
    assert power("2·10^5").startswith("2·10<tspan")
    assert power("<10^x>") == "&lt;10^x&gt;"


def test_parts_of_a_line_are_thirds_and_sum_to_it():
    a = allocation((8,), ("lag",))
    found = parts(a.table.drop_vars("bias"), keep="parameter")
    assert list(found.region.values) == ["first third", "middle third", "last third"]
    np.testing.assert_allclose(found.transpose("parameter", "region")[:, 0], a.table[:, :3].sum("lag"))
    np.testing.assert_allclose(parts(a.capacity).sum(), a.capacity.sum())
    assert list(parts(allocation((2,), ("lag",)).capacity).region.values) == ["inputs"]


def test_a_map_in_words_names_its_total_and_its_ends():
    values = xr.DataArray(np.zeros((3, 4)), dims=("row", "column"))
    values[2, 3], values[0, 0] = 5.0, 1.0
    words = describe("measured", values, "parameters")
    assert words.startswith(
        "measured: 6 parameters over 3 rows × 4 columns; most for each pixel in the region bottom right, 5;"
    )
    assert words.endswith("largest: 5 at row 2, column 3")


@pytest.mark.parametrize(
    ("value", "in_table", "in_full"),
    [(0.0, "0", "0"), (0.04, "0", "0.04"), (-3.14159, "−3.1", "−3.142"), (1912.4, "1,912", "1,912"),
     (math.nan, "–", "nan")],
)  # fmt: skip
def test_numbers(value, in_table, in_full):
    assert number(value) == in_table
    assert exact(value) == in_full


def findings_of(page: str) -> list[str]:
    """Whatever stands between the heading of the findings and the next section, without its tags."""
    part = re.search(r'<h2 id="findings">.*?</section>', page, re.DOTALL)[0]
    return [
        " ".join(unescape(re.sub(r"<[^>]+>", " ", item)).split())
        for item in re.findall(r"<li.*?</li>", part, re.DOTALL)
    ]


def uneven(**attrs: object) -> Allocation:
    """Two layers, one of little use, over inputs of which one gets much."""
    values = np.ones((2, 30))
    values[0, 3] = 12.0
    coords = {"parameter": ["a.weight", "b.weight"]}
    table = xr.DataArray(values, dims=("parameter", "input"), coords=coords)
    sizes = {"a.weight": 400, "b.weight": 40}
    told = {"num_params": 440, "parameter_sizes": sizes, "unused_params": 4, "notes": [], **attrs}
    return Allocation(table.sum("parameter"), 0.0, table.sum("input"), attrs=told)


def test_a_page_opens_with_findings_of_all_results_the_most_serious_first():
    """Those of an audit, those that follow from maps, and advice; what several results say stands once."""
    dead = Finding("serious", 0.5, 'layer "a": 9 of 10 units are dead', "remove them", "how-to/prune.md", 9.0)
    values = {name: ("layer", [1.0]) for name in Audit.COLUMNS}
    held = {"num_params": 1, "num_examples": 1, "total": 1.0, "total_standard_error": None, "seconds": 1.0}
    attrs = held | {"forecast_seconds": 1.0, "found": as_data([dead])}
    audit = Audit(xr.Dataset(values, {"layer": ["a"]}, attrs))
    page = report_html({"first": uneven(), "second": uneven(solver="markov"), "audit": audit})
    first, *others = findings_of(page)
    assert first == 'Serious Layer "a": 9 of 10 units are dead. audit Remove them. how-to/prune.md'
    assert f'href="{DOCS}how-to/prune.md"' in page
    assert any("4 parameters (0.9%) are in no use on these examples. first, second" in line for line in others)
    assert any("Input 3 gets much" in line for line in others)
    low = [line for line in others if "use 0.10, 41 of its 400" in line]
    assert [("a guide, which assumes total decoupling" in line) for line in low] == [False, True]
    assert page.index('id="findings"') < page.index('id="maps-1"') < page.index('id="settings"')


def test_the_use_of_what_paths_do_not_see_is_a_dash():
    coords = {"parameter": ["query.weight", "value.weight"]}
    table = xr.DataArray(np.array([[0.0] * 3, [2.0] * 3]), dims=("parameter", "input"), coords=coords)
    attrs = {"num_params": 20, "parameter_sizes": {"query.weight": 10, "value.weight": 10}}
    for unseen, shown in ((10, "–"), (0, "0.00")):
        one = Allocation(
            table.sum("parameter"), 0.0, table.sum("input"), attrs=attrs | {"unseen_params": unseen, "notes": []}
        )
        assert [row[-1] for row in one.view().tables[-1].rows] == [shown, "0.60"]
        assert re.findall(r'"row">query</th>\s*<td[^>]*>10</td>\s*<td[^>]*>([^ <]*)', report_html({"one": one})) == [
            shown
        ]


def test_columns_of_words_stand_to_the_left_with_their_heads():
    table = Table("columns", ["name", "number", "what it is"], [["a", "1.5", "–"], ["b", "12", "words that wrap"]])
    assert table.of_words == [True, False, True]
    page = PAGES.render("report/result.html", view=View("k", "t", "h", tables=[table]), settled="", maps="", charts=[])
    assert '<th scope="col" class="words">what it is</th>' in page
    assert '<th scope="col">number</th>' in page
    assert '<td class="words">–</td>' in page


def test_nothing_found_is_said_where_nothing_is_and_nothing_where_nothing_could_be(depth):
    level = xr.DataArray(np.ones((1, 30)), dims=("parameter", "input"), coords={"parameter": ["w"]})
    assert "Nothing found." in report_html({"one": Allocation(level.sum("parameter"), 0.0, level.sum("input"))})
    assert 'id="findings"' not in report_html({"gates": depth["gates"]})
    many = [Finding("to know", k, f"thing {k}", "none", "") for k in range(SHOWN_AT_ONCE + 2)]
    page = PAGES.render("report/found.html", found=[Told(one, ["x"]) for one in many], first=SHOWN_AT_ONCE,
                        several=False, settled=[])  # fmt: skip
    assert "<summary>2 more</summary>" in page


def test_code_in_a_line_is_code_and_the_rest_is_text():
    assert with_code("use `a<b>` & `c`") == "use <code>a&lt;b&gt;</code> &amp; <code>c</code>"
    assert with_code("one ` alone") == "one ` alone"


def test_use_of_layers_is_drawn_as_bars():
    page = report_html({"one": uneven()})
    assert "How much of each layer is used" in page
    rows = re.search(r'id="maps-1-use".*?</section>', page, re.DOTALL)[0]
    widths = [float(width) for width in re.findall(r'class="part" width="([\d.]+)"', rows)]
    assert widths == pytest.approx([100 * 41 / 400, 75.0], abs=0.051)
    assert "0.10" in rows
    assert "How much of each layer" not in report_html({"one": allocation()})  # whose sizes are not known


def test_a_page_says_what_makes_it_again():
    made = {"command": "capalloc measure 'a b.pt2'", "call": "capalloc.measure(model, inputs)", "model": "Sequential",
            "inputs": "9 x 4", "seed": 3, "data_digest": "0a", "versions": {"torch": "9.9"}}  # fmt: skip
    text = " ".join(" ".join(Outline(report_html({"one": allocation(made=made)})).text).split())
    for words in ("capalloc measure 'a b.pt2'", "capalloc.measure(model, inputs)", "torch 9.9", "0a"):
        assert words in text
    assert "made by" not in report_html({"one": allocation()})


def test_maps_have_axes_and_words_for_tokens_and_features():
    page = report_html({"one": allocation((5, 4), made={"axes": ["token", "feature"]})})
    axes = [re.sub(r"<[^>]+>", " ", axis).split() for axis in re.findall(r'<div class="axis .*?</div>', page)]
    assert axes == [["0", "token", "4"], ["0", "feature", "3"]]
    assert "for each feature of each token" in page
    assert table_rows(page)[0][2:5] == ["first third", "middle third", "last third"]
    assert '<span class="name">row</span>' in report_html({"one": allocation((1, 5, 4))})


def test_settings_count_what_would_fill_the_page():
    assert plain(0.123456) == "0.1235"
    assert plain([1, 2]) == "1, 2"
    assert plain({"walk": 0.123456, "of": True}) == "walk 0.1235, of yes"
    assert plain(dict.fromkeys(range(9))) == "9 values, in the file"


def test_the_bars_have_the_colours_of_the_maps():
    style = PAGES.asset("report/report.css")
    assert gradient() in style
    assert gradient(signed=True) in style


def luminance(colour: str) -> float:
    parts = [int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))


def contrast(a: str, b: str) -> float:
    high, low = sorted((luminance(a), luminance(b)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_text_and_lines_stand_out_from_their_ground(theme):
    """WCAG 2.2, AA: 4.5 for text, 3 for what is drawn; on shaded cells too."""
    found = re.findall(r"--(\w+): light-dark\((#\w{6}), (#\w{6})\)", PAGES.asset("page.css", "report/report.css"))
    colours = {name: values[theme] for name, *values in found}
    for ground in ("page", "card"):
        for text in ("ink", "soft", "accent", "warn"):
            assert contrast(colours[text], colours[ground]) >= 4.5
        for drawn in ("s0", "s1", "s2", "s3"):
            assert contrast(colours[drawn], colours[ground]) >= 3
    mixed = [
        0.45 * int(colours["accent"][k : k + 2], 16) + 0.55 * int(colours["card"][k : k + 2], 16) for k in (1, 3, 5)
    ]
    assert contrast(colours["ink"], "#" + "".join(f"{round(c):02x}" for c in mixed)) >= 4.5


def test_refuses_no_result():
    with pytest.raises(ValueError, match="a report needs at least one result; give a mapping of names to results"):
        report_html({})


def test_refuses_what_is_no_result():
    with pytest.raises(TypeError, match="'map' is a ndarray; a report shows results: Audit, Allocation, Effective"):
        report_html({"map": np.zeros(3)})


def test_write_report_is_whole_or_not_at_all(tmp_path):
    path = tmp_path / "page.html"
    write_report(path, pair())
    assert path.read_text(encoding="utf-8") == report_html(pair())
    with pytest.raises(ValueError, match="at least one"):
        write_report(path, {})
    with pytest.raises(FileNotFoundError, match="does not exist"):
        write_report(tmp_path / "nowhere" / "page.html", pair())
    assert os.listdir(tmp_path) == ["page.html"]
