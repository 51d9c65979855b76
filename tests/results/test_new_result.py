"""A new result is one class: with a schema and a view it is saved, loaded and shown everywhere."""

from __future__ import annotations

import json
import pickle
from dataclasses import FrozenInstanceError
from typing import ClassVar

import matplotlib
import numpy as np
import pytest
import xarray as xr

from capalloc.app.callbacks.summary import summarise
from capalloc.app.cli.as_json import as_dict, plain
from capalloc.app.cli.tables import print_view
from capalloc.app.report import report_html
from capalloc.results import Result, Variable, View, load
from capalloc.results.base import axis_rows
from capalloc.results.kinds import RESULTS
from capalloc.results.view import Axis, Chart, Fact, Line, Map, Table


class Wear(Result):
    """How much of each layer is worn, and where."""

    FORMAT = "tests-wear"
    MAKER = "wear()"
    SCHEMA: ClassVar = {
        "layer": Variable(("layer",)),
        "worn": Variable(("layer",), 0, 1),
        "place": Variable(("*",), low=-1, finite=True),
    }
    SETTINGS = ("tool",)
    ROWS: ClassVar = {"layers": axis_rows("layer")}

    VALUES = ("mean", "tool")

    @property
    def mean(self) -> float:
        return float(self.worn.mean())

    def view(self) -> View:
        names, worn = self.layer.to_numpy().tolist(), self.worn.to_numpy()
        return self._view(
            title="Wear",
            heading=f"{len(names)} layers",
            about="Where the network is worn.",
            facts=[Fact("most worn", names[int(worn.argmax())], f"by {worn.max():.0%}")],
            tables=[Table("layers", ["layer", "worn"], [[n, f"{w:.2f}"] for n, w in zip(names, worn, strict=True)])],
            charts=[
                Chart(
                    "Wear by depth",
                    [Line("wear", [1, 2], worn, "dots", named=True)],
                    Axis("layer", names=names),
                    Axis("share"),
                )
            ],
            maps=[Map(self.place, "wear", caption="wear")],
            advice=[f"mend {names[int(worn.argmax())]}"],
            series={"layers": dict(zip(names, worn.tolist(), strict=True))},
        )


@pytest.fixture
def dataset() -> xr.Dataset:
    return xr.Dataset(
        {"worn": ("layer", [0.25, 0.75]), "place": (("row", "column"), np.eye(3))},
        coords={"layer": ["first", "last"]},
        attrs={"tool": "file", "notes": ["by eye"]},
    )


@pytest.fixture
def wear(dataset) -> Wear:
    return Wear(dataset)


def test_it_is_saved_and_loaded(wear, tmp_path):
    wear.save(tmp_path / "w.nc")
    for loaded in (Wear.load(tmp_path / "w.nc"), load(tmp_path / "w.nc", kinds=[*RESULTS, Wear])):
        assert type(loaded) is Wear
        xr.testing.assert_identical(loaded.data, wear.data)
    with pytest.raises(ValueError, match="holds 'tests-wear', which is none of the results Allocation"):
        load(tmp_path / "w.nc")


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        (lambda d: d.drop_vars("worn"), ValueError, r"the dataset lacks \['worn'\]; wear\(\) makes one that has them"),
        (lambda d: d.drop_attrs(), ValueError, r"lacks \['tool'\]"),
        (lambda d: d.rename(layer="unit"), ValueError, r"lacks \['layer'\]"),
        (lambda d: d.assign(worn=d["worn"][0]), ValueError, r"worn has axes \(\); it needs \(layer\)"),
        (lambda d: d.assign(place=d["place"].sum()), ValueError, r"place has axes \(\); it needs \(\*\)"),
        (lambda d: d.assign(worn=d["worn"] + 0.5), ValueError, r"worn must lie in \[0, 1\], but holds 1.25"),
        (lambda d: d.assign(place=d["place"] - 1.5), ValueError, "place must be at least -1, but holds -1.5"),
        (lambda d: d.assign(place=d["place"] * np.nan), ValueError, "place holds NaN or inf"),
        (lambda d: d.assign_attrs(tool=object()), TypeError, r"attrs\['tool'\] is a object, which a file cannot keep"),
    ],
)  # fmt: skip
def test_its_schema_is_checked(dataset, change, error, match):
    with pytest.raises(error, match=match):
        Wear(change(dataset))


def test_variables_and_settings_are_attributes(wear):
    xr.testing.assert_identical(wear.worn, wear.data["worn"])
    assert wear.tool == "file"
    assert not hasattr(wear, "notes")  # neither declared
    with pytest.raises(AttributeError, match="Wear has no attribute 'colour'"):
        _ = wear.colour
    with pytest.raises(FrozenInstanceError, match="cannot assign to field 'tool'"):
        wear.tool = "saw"
    assert pickle.loads(pickle.dumps(wear)).tool == "file"


def test_it_is_text_and_a_card(wear):
    text = repr(wear)
    assert text.startswith("<test_new_result.Wear, 2 layers>\n  most worn  last by 75%\n")
    for piece in ("  first  0.25", "mend last", "by eye"):
        assert piece in text
    card = wear._repr_html_()
    for piece in ("<td>last by 75%</td>", "<td>0.25</td>", "<svg", "mend last", "by eye"):
        assert piece in card


def test_it_is_a_table_on_the_command_line_and_json(wear, capsys):
    print_view(wear.view())
    printed = capsys.readouterr().out
    for piece in ("Wear, 2 layers", "last by 75%", "0.25", "mend last", "note: by eye"):
        assert piece in printed
    assert json.loads(json.dumps(plain(as_dict(wear)))) == {
        "result": "Wear",
        "mean": 0.5,
        "tool": "file",
        "settings": {"tool": "file", "notes": ["by eye"]},
        "layers": [{"layer": "first", "worn": 0.25}, {"layer": "last", "worn": 0.75}],
    }
    assert wear.to_pandas().loc["last", "worn"] == 0.75


def test_it_is_logged(wear):
    summary = summarise(wear, "wear")
    expected = {"wear/mean": 0.5, "wear/largest": 1.0, "wear_layers/first": 0.25, "wear_layers/last": 0.75}
    assert summary.scalars == expected
    assert set(summary.images) == {"wear/map"}


def test_it_is_a_section_of_the_report(wear):
    page = report_html({"mine": wear})
    for piece in (">Wear: mine</h2>", "Where the network is worn.", "last<small>by 75%</small>", "Wear by depth",
                  "<title>last, wear: 0.75</title>", "Mend last.", "By eye.", "<td>file</td>"):  # fmt: skip
        assert piece in page
    assert "nothing to do" not in page
    assert '"tests-wear-1":{"line":false' in page


def test_it_is_drawn(wear):
    with matplotlib.rc_context({"backend": "agg"}):
        figure = wear.figure()
    drawn, chart, *_ = figure.axes
    np.testing.assert_array_equal(drawn.images[0].get_array(), np.eye(3))
    assert [label.get_text() for label in chart.get_xticklabels()] == ["first", "last"]


class Silent(Result):
    """A result with nothing to draw."""

    FORMAT, MAKER, SCHEMA, ROWS = "tests-silent", "nothing", {}, {}

    def view(self) -> View:
        return self._view(title="Silence", heading="nothing")


def test_nothing_is_drawn_of_a_result_without_a_picture():
    with pytest.raises(ValueError, match=r"a test_new_result.Silent has no picture: neither a map nor a chart"):
        Silent(xr.Dataset()).plot()
    assert "Silence: s</h2>" in report_html({"s": Silent(xr.Dataset())})
