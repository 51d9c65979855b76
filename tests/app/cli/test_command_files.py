"""Commands on saved results and on what there is: compare, report, models, design, studies."""

from __future__ import annotations

import json
import re
from functools import partial

import numpy as np
import pytest
import xarray as xr

import capalloc
import commands
from allocations import allocation
from capalloc import architectures
from capalloc.app.cli import app
from capalloc.app.cli.compare_files import differences
from capalloc.app.cli.write_page import names
from capalloc.results.comparison import agreement
from commands import RUNNER, run
from lacking import lack

refused = partial(commands.refused, quiet=False)


@pytest.fixture
def saved(tmp_path, monkeypatch):
    """Two allocations in files."""
    monkeypatch.chdir(tmp_path)
    results = [allocation(seed=seed) for seed in (0, 1)]
    for name, result in zip("ab", results, strict=True):
        result.save(f"{name}.nc")
    return results


def test_compare_says_what_the_functions_do(saved):
    a, b = saved
    said = json.loads(run("compare", "a.nc", "b.nc", "--json").stdout)
    assert said["correlation"] == pytest.approx(capalloc.correlation(a, b))
    null = capalloc.correlation(a, b, backwards=True)
    assert said["correlation_backwards"] == pytest.approx(null)
    assert said["total_variation"] == pytest.approx(capalloc.total_variation(a, b))
    assert said["total_variation_of_inputs"] == pytest.approx(capalloc.total_variation(a, b, constant=False))
    assert said["same_data"] is None
    assert (said["first_total"], said["second_bias"]) == pytest.approx((a.total, b.bias))
    changes = [row["difference"] for row in said["params"]]
    assert [abs(change) for change in changes] == sorted(map(abs, changes), reverse=True)
    assert sum(changes) == pytest.approx(b.total - a.total)
    shown = run("compare", "a.nc", "b.nc").stdout
    assert f"correlation: {capalloc.correlation(a, b):.3g}, and {null:.3g} with the second map backwards" in shown
    assert said["params"][0]["parameter"] in shown


def test_compare_says_when_two_results_stand_on_different_data(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, digest, count in (("a", "0a", 50), ("b", "0b", 60), ("again", "0a", 50)):
        allocation(data_digest=digest, num_examples=count).save(f"{name}.nc")
    told = run("compare", "a.nc", "b.nc").stdout
    assert "the two stand on different examples" in told
    assert re.search("^first: .*, of 50 examples$", told, re.MULTILINE)
    assert re.search("^second: .*, of 60 examples$", told, re.MULTILINE)
    assert "different examples" not in run("compare", "a.nc", "again.nc").stdout
    said = json.loads(run("compare", "a.nc", "b.nc", "--json").stdout)
    assert (said["same_data"], said["first_examples"], said["second_examples"]) == (False, 50, 60)


def test_tensors_that_one_lacks_count_as_0():
    a, b = allocation(seed=0), allocation(seed=0)
    renamed = b.by_parameter.assign_coords(parameter=[f"{name}!" for name in b.by_parameter["parameter"].values])
    b = capalloc.Allocation(b.capacity, b.bias, renamed, attrs=b.attrs)
    found = differences(a, b)
    assert len(found) == 2 * a.by_parameter.size
    assert float(found["difference"].sum()) == pytest.approx(0)


def test_a_constant_map_has_no_correlation_and_still_compares():
    a = allocation(seed=0)
    flat = capalloc.Allocation(
        a.capacity.copy(data=np.full(a.capacity.shape, float(a.capacity.mean()))), a.bias, a.by_parameter
    )
    facts = agreement(a, flat)
    assert np.isnan(facts["correlation"])
    assert facts["total_variation"] > 0
    with pytest.raises(ValueError, match=r"the maps differ in shape: \(1, 4, 6\) and \(4, 6\)"):
        agreement(a, capalloc.Allocation(a.capacity.sum(a.capacity.dims[0]), a.bias, a.by_parameter))


def test_compare_takes_allocations(saved, tmp_path):
    assert "there is no file c.nc" in refused("compare", "a.nc", "c.nc")
    (tmp_path / "c.nc").write_bytes(b"noise")
    assert "c.nc is damaged or no NetCDF file" in refused("compare", "a.nc", "c.nc")
    scaled = xr.Dataset(
        {name: ("block", np.array([], dtype=object)) for name in ("rate", "multiplier", "identity", "last_layer")}
        | {name: ("layer", np.array([1.0])) for name in ("gain", "gradient_gain", "mean_squared_gate", "rescaled")},
        coords={"block": np.array([], dtype=object), "layer": ["one"]},
    )
    scaled = scaled.assign(rate=scaled["rate"].astype(float), multiplier=scaled["multiplier"].astype(float))
    capalloc.results.Scaling(scaled).save("scaling.nc")
    assert "scaling.nc holds a Scaling; compare takes allocations" in refused("compare", "a.nc", "scaling.nc")


def test_report_writes_a_page_of_the_files(saved, tmp_path):
    result = run("report", "a.nc", "b.nc", "--out", "page.html", "--title", "Two of <them>")
    assert result.exit_code == 0, result.output
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "Two of &lt;them&gt;" in page
    assert result.stderr == "capalloc: wrote page.html\n"
    told = run("report", "a.nc", "b.nc", "--out", "page.html", "--quiet", "--json")
    assert (json.loads(told.stdout), told.stderr) == ({"results": ["a", "b"], "out": "page.html"}, "")
    assert "does not exist; make it first" in refused("report", "a.nc", "--out", "no/page.html")
    before = (tmp_path / "a.nc").read_bytes()
    assert "the page would be written over the result a.nc" in refused("report", "a.nc", "b.nc", "--out", "a.nc")
    assert (tmp_path / "a.nc").read_bytes() == before
    assert "a file is given twice; give each once" in refused("report", "a.nc", "a.nc")


def test_files_of_one_name_are_told_apart(tmp_path):
    paths = [tmp_path / "one" / "a.nc", tmp_path / "two" / "a.nc", tmp_path / "b.nc"]
    assert list(names(paths)) == [str(tmp_path / "one" / "a"), str(tmp_path / "two" / "a"), "b"]


def test_models_lists_every_architecture():
    result = RUNNER.invoke(app, ["models"], env={"COLUMNS": "120"})
    assert result.exit_code == 0, result.output
    rows = [line.split()[:3] for line in result.stdout.splitlines()]
    for a in map(architectures.info, architectures.names()):
        shape = str(a.shape[0]) if a.reads_tokens else ",".join(map(str, a.shape))  # and the word tokens
        assert [a.name, f"{a.num_params:,}", shape] in rows
    said = {row["name"]: row for row in json.loads(run("models", "--json").stdout)["models"]}
    assert list(said) == architectures.names()
    assert said["resnet18"]["arguments"]["depths"] == [2, 2, 2, 2]
    assert said["resnet18"]["shape"] == [3, 224, 224]


def test_design_is_served(monkeypatch):
    called = []
    serve = lambda port, open_browser, start: called.append((port, open_browser))  # noqa: E731
    monkeypatch.setattr("capalloc.app.cli.design_command.serve", serve)
    assert run("design", "--port", "1234", "--no-browser").exit_code == 0
    assert run("design").exit_code == 0
    assert called == [(1234, False), (8050, True)]


def test_design_asks_for_dash(monkeypatch):
    lack(monkeypatch, "dash", unload="capalloc.app.design")
    assert "the design page needs the package dash: pip install 'capalloc[design]'" in refused("design")


def test_studies_speak_json(tmp_path):
    told = ["--out", str(tmp_path), "--json", "--quiet"]
    said = json.loads(run("decoupling-study", "--depth", "2", "--channels", "1", "--draws", "2", *told).stdout)
    assert said["settings"]["depth"] == 2
    assert {"setting", "decoupling", "capacity", "width"} == set(said["profiles"][0])
    result = run("linear-study", "--architecture", "dense", "--process", "white noise", "--lags", "12", *told)
    (cell,) = json.loads(result.stdout)["cells"]
    assert (cell["architecture"], cell["process"], cell["params"]) == ("dense", "white noise", 12)
    assert result.stderr == ""
