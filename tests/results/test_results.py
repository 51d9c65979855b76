"""Every kind of result: files that keep it to the bit, `load` that knows which one a file holds, tidy tables."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import xarray as xr
from torch import nn

import capalloc
from allocations import allocation
from capalloc import Allocation, depth_limit
from capalloc._runtime.files import atomically, write_dataset, write_text
from capalloc._runtime.netcdf import encode
from capalloc.depth_limit import Evolution
from capalloc.results import Diagnosis, ReceptiveField, Scaling, Shattering
from capalloc.results.base import Result, axis_frame
from capalloc.results.kinds import RESULTS, load
from zoo import gaussian, seeded_module


class Residual(nn.Module):
    """Two residual blocks with ReLU between convolutions."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(1, 3, 3, padding=1)
        self.blocks = nn.ModuleList(nn.Conv2d(3, 3, 3, padding=1) for _ in range(2))
        self.last = nn.Linear(3, 2)

    def forward(self, x):
        x = self.first(x)
        for block in self.blocks:
            x = x + block(x.relu())
        return self.last(x.mean((2, 3)))


@pytest.fixture(scope="module")
def results() -> dict[str, Result]:
    """One of each kind, of one model."""
    model, x = seeded_module(Residual), gaussian(4, 1, 6, 6)
    block = depth_limit.WalkBlock(depth_limit.StepLaw.uniform(3, 2), 0.5)
    made = [
        capalloc.measure(model, x[:, :, :3, :3], outputs=lambda y: y, params=["first.weight", "last.weight"]),
        capalloc.decoupling(model, x),
        capalloc.effective_parameters(model, x, ridge=0.1),
        capalloc.diagnose(model, x),
        depth_limit.jump([block] * 2, depth_limit.point((4, 5))),
        capalloc.receptive_field(model, x, lambda y: y[:, :, None, None], output_position=(0, None, None)),
        capalloc.scaling(model, x),
        capalloc.shattering(model, x),
        capalloc.prune_scores(model, x),
        capalloc.audit(model, x),
        capalloc.rank({"first": model, "second": model}, x),
    ]
    return {type(result).__name__: result for result in made}


NAMES = sorted(kind.__name__ for kind in RESULTS)


def same_bits(a: xr.Dataset, b: xr.Dataset) -> None:
    xr.testing.assert_identical(a, b)
    for name, variable in a.variables.items():
        if variable.dtype.kind in "fiub":
            assert variable.dtype == b[name].dtype
            assert variable.to_numpy().tobytes() == b[name].to_numpy().tobytes(), name


def test_there_is_one_of_each_kind(results):
    assert sorted(results) == NAMES
    assert len({kind.FORMAT for kind in RESULTS}) == len(RESULTS)
    assert all(issubclass(kind, Result) for kind in RESULTS)


@pytest.mark.parametrize("name", NAMES)
def test_files_keep_every_bit(results, name, tmp_path):
    result = results[name]
    result.save(tmp_path / "r.nc")
    for loaded in (load(tmp_path / "r.nc"), type(result).load(str(tmp_path / "r.nc"))):
        assert type(loaded) is type(result)
        same_bits(loaded.to_xarray(), result.to_xarray())
        assert loaded.to_xarray().attrs == result.to_xarray().attrs
        assert repr(loaded) == repr(result)
    assert os.listdir(tmp_path) == ["r.nc"]
    loaded.save(tmp_path / "again.nc")
    same_bits(load(tmp_path / "again.nc").to_xarray(), result.to_xarray())


@pytest.mark.parametrize("name", NAMES)
def test_the_dataset_makes_the_result_again(results, name):
    dataset = results[name].to_xarray()
    same_bits(type(results[name]).from_xarray(dataset).to_xarray(), dataset)


def test_a_field_is_the_same_python_values(results, tmp_path):
    field = results["ReceptiveField"]
    field.save(tmp_path / "f.nc")
    loaded = ReceptiveField.load(tmp_path / "f.nc")
    for name in ("axes", "map", "support", "influence", *ReceptiveField.SETTINGS):
        a, b = getattr(field, name), getattr(loaded, name)
        if isinstance(a, xr.DataArray):
            xr.testing.assert_identical(a, b)
            assert a.name == b.name
        else:
            assert repr(a) == repr(b), name  # NaN equals no NaN
    assert [type(v) for v in vars(loaded.axes["row"]).values()] == [int, int, int, float, float, bool, float]


def test_a_field_of_capacity_keeps_its_parameters(tmp_path):
    model = seeded_module(nn.Sequential, nn.Conv1d(1, 2, 3), nn.ReLU(), nn.Conv1d(2, 1, 3))
    field = capalloc.receptive_field(model, gaussian(3, 1, 9), of="capacity")
    field.save(tmp_path / "f.nc")
    assert load(tmp_path / "f.nc").map.name == "capacity"
    columns = ["row", "column", "capacity", "support", "influence"]
    assert list(load(tmp_path / "f.nc").to_pandas("inputs").columns) == columns


def test_a_diagnosis_without_a_field(results, tmp_path):
    data = results["Diagnosis"].data
    none = Diagnosis(data.isel(axis=slice(0, 0)))
    none.save(tmp_path / "d.nc")
    assert load(tmp_path / "d.nc").data.sizes["axis"] == 0


# -- files that are none ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kept", [0.0, 0.3, 0.9])
def test_a_half_written_file_is_refused(results, name, kept, tmp_path):
    path = tmp_path / "r.nc"
    results[name].save(path)
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content))])
    for read in (load, type(results[name]).load):
        with pytest.raises(ValueError, match=r"r.nc is damaged or no NetCDF file"):
            read(path)


@pytest.mark.parametrize("name", NAMES)
def test_a_newer_file_is_refused(results, name, tmp_path):
    kind = type(results[name])
    write_dataset(results[name].to_xarray(), tmp_path / "r.nc", kind.FORMAT, kind.VERSION + 1)
    with pytest.raises(ValueError, match=r"was written by a newer capalloc .* upgrade capalloc"):
        load(tmp_path / "r.nc")


@pytest.mark.parametrize("name", NAMES)
def test_what_a_file_lost_is_named(results, name, tmp_path):
    """Without a variable that it needs there is no result; the others are optional, and the rest is whole."""
    kind, dataset = type(results[name]), results[name].to_xarray()
    needed = []
    for lost in dataset.variables:
        try:
            kind.from_xarray(dataset.drop_vars(lost))
        except (KeyError, ValueError):
            needed.append(lost)
    assert len(needed) >= 2
    write_dataset(dataset.drop_vars(needed[-1]), tmp_path / "r.nc", kind.FORMAT, kind.VERSION)
    with pytest.raises(ValueError, match=rf"r\.nc is damaged: .*{needed[-1]}"):
        load(tmp_path / "r.nc")


@pytest.mark.parametrize("name", NAMES)
def test_another_kind_is_refused_by_name(results, name, tmp_path):
    results[name].save(tmp_path / "r.nc")
    other = Scaling if name != "Scaling" else Shattering
    with pytest.raises(ValueError, match=f"holds '{type(results[name]).FORMAT}-1', not a {other.FORMAT}"):
        other.load(tmp_path / "r.nc")


def test_load_names_what_it_finds(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no file"):
        load(tmp_path / "none.nc")
    with pytest.raises(FileNotFoundError, match="there is no file"):
        load(tmp_path)
    (tmp_path / "text.nc").write_text("capacity")
    with pytest.raises(ValueError, match=r"text.nc is damaged or no NetCDF file"):
        load(tmp_path / "text.nc")
    xr.Dataset({"temperature": ("time", [1.0])}).to_netcdf(tmp_path / "other.nc", engine="scipy")
    with pytest.raises(ValueError, match=r"other.nc is damaged or no NetCDF file of capalloc"):
        load(tmp_path / "other.nc")
    write_dataset(xr.Dataset({"a": 1.0}), tmp_path / "study.nc", "capalloc-linear-study", 1)
    with pytest.raises(ValueError, match="holds 'capalloc-linear-study', which is none of the results Allocation"):
        load(tmp_path / "study.nc")
    (tmp_path / "a.nc").write_bytes(encode(allocation().to_xarray(), "capalloc-allocation-1", "{"))
    with pytest.raises(ValueError, match="is damaged: its attributes cannot be read"):
        load(tmp_path / "a.nc")


def test_a_file_that_may_not_be_read_is_not_called_damaged(tmp_path, monkeypatch):
    allocation().save(tmp_path / "a.nc")
    monkeypatch.setattr(Path, "read_bytes", mock.Mock(side_effect=PermissionError("denied")))
    with pytest.raises(PermissionError, match="denied"):
        load(tmp_path / "a.nc")


def test_what_is_written_is_on_the_disk_before_the_old_file_goes(tmp_path, monkeypatch):
    (tmp_path / "f").write_text("old")
    seen = []
    flush = os.fsync

    def noted(descriptor):
        seen.append((os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}")), (tmp_path / "f").read_text()))
        flush(descriptor)

    if not Path("/proc/self/fd").is_dir():
        pytest.skip("descriptors have no names here")
    monkeypatch.setattr(os, "fsync", noted)
    with atomically(tmp_path / "f") as temporary:
        temporary.write_text("new")
    assert seen == [(temporary.name, "old"), (tmp_path.name, "new")]


# -- invariants of a receptive field ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda d: d.assign_attrs(of="paths"), r"of must be one of \('energy', 'capacity'\), got 'paths'"),
        (lambda d: d.sel(axis=["row"]), r"must be over the same axes, got \('row',\)"),
        (lambda d: d.assign(support=d["support"][0]), "axes, map and support must be over the same axes"),
        (lambda d: d.assign_attrs(moving=()), "moving must name some of the axes"),
        (lambda d: d.assign_attrs(moving=("time",)), r"moving must name some of the axes .*, got \('time',\)"),
        (lambda d: d.assign(map=-d["map"]), "map must not be negative, but holds -"),
        (lambda d: d.assign(map=d["map"] * math.nan), "map holds NaN or inf"),
        (lambda d: d.assign(map=d["map"] * math.inf), "map holds NaN or inf"),
        (lambda d: d.assign(influence=d["influence"] & False), "influence must hold the support, over the axes"),
        (lambda d: d.assign(influence=d["influence"][0]), "influence must hold the support, over the axes"),
        (lambda d: d.assign_attrs(paths_status="sure"), r"paths_status must be one of \('exact', .*got 'sure'"),
        (lambda d: d.assign_attrs(influence_status="sure"), "influence_status must be one of"),
        (lambda d: d.assign(map=d["map"] * 2), "map must sum to 1, as a law does, but sums to 2"),
    ],
)  # fmt: skip
def test_a_field_that_is_none_is_refused(results, change, match):
    field = results["ReceptiveField"]
    with pytest.raises(ValueError, match=match):
        ReceptiveField(change(field.data))


# -- tidy tables ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_tables_have_one_row_for_each(results, name):
    result, dataset = results[name], results[name].to_xarray()
    for rows in result.ROWS:
        if (name, rows) in (("Allocation", "units"), ("ReceptiveField", "layers")):
            continue
        frame = result.to_pandas(rows)
        assert len(frame) == expected_rows(result, dataset, rows), rows
        assert frame.columns.is_unique
        assert not isinstance(frame.index, type(None))
        assert frame.index.is_unique
    assert result.to_pandas().equals(result.to_pandas(next(iter(result.ROWS))))


def expected_rows(result: Result, dataset: xr.Dataset, rows: str) -> int:
    """Products of sizes, written by hand."""
    sizes = dataset.sizes
    own = "layer" if rows == "stretches" else rows.removesuffix("s")
    if (name := f"depth_{own}") in sizes and rows != "layers":  # of an audit
        return sizes[name]
    if "depth_axis" in sizes and rows == "axes":
        return sizes["depth_axis"]
    grid = {"Allocation": "capacity", "ReceptiveField": "map", "Evolution": "law"}
    if isinstance(result, (Allocation, ReceptiveField)) and rows == "inputs":
        return dataset[grid[type(result).__name__]].size
    if isinstance(result, Evolution) and rows == "positions":
        return sizes["depth"] * sizes["row"] * sizes["column"]
    if isinstance(result, Allocation) and rows == "table":
        return sizes["parameter"] * dataset["capacity"].size
    if rows == "units":
        return sum(len(scores) for scores in result.unit_scores.values())
    return sizes[{"params": "parameter", "spectrum": "node", "axes": "axis"}.get(rows, rows.removesuffix("s"))]


@pytest.mark.parametrize("name", NAMES)
def test_rows_that_are_not_there(results, name):
    with pytest.raises(ValueError, match=r"rows must be one of \('.*\), got 'cells'"):
        results[name].to_pandas("cells")


def test_tables_of_an_allocation():
    a = allocation()
    params = a.to_pandas("params")
    assert params.loc["conv.weight", "capacity"] == float(a.by_parameter.sel(parameter="conv.weight"))
    assert params["share"].sum() == pytest.approx(1)
    table = a.to_pandas("table")
    assert list(table.columns) == ["parameter", "channel", "row", "column", "capacity"]
    assert table["capacity"].sum() + sum(table.attrs["bias"].values()) == a.total
    wide = table.set_index(["parameter", "channel", "row", "column"])["capacity"]
    assert wide["conv.bias", 0, 2, 3] == float(a.table.sel(parameter="conv.bias")[0, 2, 3])
    units = a.to_pandas("units")
    assert units.groupby("layer")["capacity"].sum().to_dict() == {"conv": 6.0, "body.0": 1.0}
    assert units["unit"].tolist() == [*range(6), 0]
    estimated = a.replace(attrs={"by_parameter_standard_error": dict.fromkeys(params.index, 0.25)})
    assert estimated.to_pandas("params")["standard_error"].tolist() == [0.25] * 3


def test_tables_that_an_allocation_does_not_hold():
    bare = allocation().replace(table=None, layers={})
    for rows, match in {
        "table": r"holds no table; propagate\(..., table=True\)",
        "units": r"holds no layers; propagate\(..., layers=True\)",
        "spectrum": r"holds no spectrum; measure\(\) keeps one",
    }.items():
        with pytest.raises(ValueError, match=match):
            bare.to_pandas(rows)


def test_a_table_of_no_capacity_has_no_shares():
    names = {"parameter": ["w"]}
    zero = Allocation(xr.DataArray(np.zeros(3), dims="input"), 0.0, xr.DataArray([0.0], dims="parameter", coords=names))
    assert zero.to_pandas("params")["share"].tolist() == [0.0]


def test_eigenvalues_in_a_table_sum_to_the_number_of_parameters(results):
    a = results["Allocation"]
    frame = a.to_pandas("spectrum")
    assert frame["number"].sum() == pytest.approx(a.attrs["num_params"])
    assert (frame["eigenvalue"] > 1e-9 * frame["eigenvalue"].max()).sum() == pytest.approx(a.total)


def test_tables_of_a_walk(results):
    walk = results["Evolution"]
    depths = walk.to_pandas()
    assert list(depths.columns) == ["absorbed", "mean_row", "mean_column", "deviation_row", "deviation_column"]
    assert depths.loc[2, "deviation_row"] == float(walk.deviation.sel(axis="row")[2])
    positions = walk.to_pandas("positions")
    assert list(positions.columns) == ["depth", "row", "column", "probability"]
    np.testing.assert_allclose(positions.groupby("depth")["probability"].sum() + depths["absorbed"], 1)


def test_a_table_takes_the_variables_over_its_axis_alone(results):
    data = results["Decoupling"].data
    assert {"layer"} < set(data.dims)
    frame = axis_frame(data, "layer")
    assert [data[name].dims for name in frame.columns] == [("layer",)] * frame.shape[1]


# -- no model ---------------------------------------------------------------------------------------------------


def test_results_need_no_model_and_load_what_draws_when_it_draws(tmp_path):
    """Files, text and tables leave torch and matplotlib unloaded; pictures and cards load matplotlib alone."""
    allocation().save(tmp_path / "a.nc")
    code = f"""
import sys
from capalloc.results import load
from capalloc.results import regions
heavy = lambda: sorted({{"torch", "matplotlib", "jinja2"}} & set(sys.modules))
found = load({str(tmp_path / "a.nc")!r})
repr(found), found.view(), found.to_pandas("params"), found.by(regions.regions)
print(heavy())
found._repr_html_(), found.figure()
print(heavy(), sorted(n for n in sys.modules if n.startswith("capalloc._") and not n.startswith("capalloc._runtime")))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, "MPLBACKEND": "agg"}
    )
    assert done.stdout == "[]\n['jinja2', 'matplotlib'] []\n", done.stderr


def test_a_text_is_not_written_over_a_saved_result(tmp_path):
    found = allocation()
    found.save(tmp_path / "a.nc")
    with pytest.raises(ValueError, match=r"a\.nc holds a saved result, which the text would replace"):
        capalloc.write_report(tmp_path / "a.nc", {"a": found})
    assert capalloc.load(tmp_path / "a.nc").total == found.total
    write_text(tmp_path / "a.txt", "old")
    write_text(tmp_path / "a.txt", "new")
    assert (tmp_path / "a.txt").read_text() == "new"
