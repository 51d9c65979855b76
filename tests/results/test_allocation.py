"""The result type: its invariants, its words, and files that keep it."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from allocations import NAMES, allocation
from capalloc import Allocation
from capalloc._runtime.files import atomically, write_dataset
from capalloc._runtime.netcdf import encode


def same(a: Allocation, b: Allocation) -> None:
    xr.testing.assert_identical(a.to_xarray(), b.to_xarray())
    assert a.attrs == b.attrs
    assert list(a.layers) == list(b.layers)
    for name, units in a.layers.items():
        xr.testing.assert_identical(units, b.layers[name])
    assert (a.table is None) == (b.table is None)
    if a.table is not None:
        xr.testing.assert_identical(a.table, b.table)


def test_modules_sum_to_the_total_at_any_depth():
    names = ["scale", "body.0.a.weight", "body.0.b.weight", "body.1.weight", "head.weight", "head.bias"]
    values = np.arange(1.0, 7.0)
    a = Allocation(xr.DataArray([20.0, 0.5], dims="input"), 0.5, xr.DataArray(values, {"parameter": names}))
    expected = {
        None: {"scale": 1, "body.0.a": 2, "body.0.b": 3, "body.1": 4, "head": 11},
        1: {"scale": 1, "body": 9, "head": 11},
        2: {"scale": 1, "body.0": 5, "body.1": 4, "head": 11},
        9: {"scale": 1, "body.0.a": 2, "body.0.b": 3, "body.1": 4, "head": 11},
    }
    for depth, sums in expected.items():
        assert a.by_module(depth).to_series().to_dict() == sums
        assert list(a.by_module(depth=depth).module.values) == list(sums)
    with pytest.raises(ValueError, match=r"depth must be a positive integer, or None .* got 0"):
        a.by_module(0)
    with pytest.raises(TypeError, match=r"depth must be an integer or None, got 1\.5"):
        a.by_module(1.5)


def test_total_is_the_inputs_and_the_constant_one():
    a = allocation()
    assert a.total == float(a.capacity.sum()) + 2.5
    assert a.total == pytest.approx(float(a.by_parameter.sum()))


@pytest.mark.parametrize(
    ("field", "change", "message"),
    [
        ("capacity", lambda v: v * 1.01, r"by_parameter.sum\(\) is .* but total is"),
        ("capacity", lambda v: v.where(v != v.max(), -1.0), "capacity must be non-negative, but holds -1"),
        ("capacity", lambda v: v.where(v.row > 0), "capacity holds NaN or inf"),
        ("capacity", lambda v: v.rename(row="parameter"), "none of them called 'parameter'"),
        ("capacity", lambda v: v.sum(), "it needs at least one"),
        ("bias", lambda v: -v, "bias must be non-negative, but holds -2.5"),
        ("bias", lambda v: np.inf, "bias holds NaN or inf"),
        ("by_parameter", lambda v: v * 0.99, r"by_parameter.sum\(\) is .* they must agree"),
        ("by_parameter", lambda v: v * np.nan, "by_parameter holds NaN or inf"),
        ("by_parameter", lambda v: v.drop_vars("parameter"), "by_parameter has axes .* with names"),
        ("by_parameter", lambda v: v.rename(parameter="weight"), "by_parameter has axes"),
        ("table", lambda v: v.drop_vars("bias"), "a coordinate 'bias' over 'parameter'"),
        ("table", lambda v: v.transpose(), "table has axes"),
        ("table", lambda v: v[1:], r"table has shape \(2, 1, 4, 6\), not \(3, 1, 4, 6\)"),
        ("table", lambda v: v * np.nan, "table holds NaN or inf"),
        ("table", lambda v: v[:, :, ::-1], r'table.sum\("parameter"\) - capacity, at worst'),
        ("table", lambda v: v.roll(parameter=1), r"table.sum\(input axes\) \+ table.bias - by_parameter, at worst"),
        ("layers", lambda v: {"conv": v["conv"] * np.nan}, r"layers\['conv'\] holds NaN or inf"),
    ],
)  # fmt: skip
def test_refuses_what_breaks_an_invariant(field, change, message):
    a = allocation()
    with pytest.raises(ValueError, match=message):
        a.replace(**{field: change(getattr(a, field))})


def test_refuses_a_table_whose_bias_is_another():
    a = allocation()
    table = a.table.assign_coords(bias=a.table.coords["bias"] + np.array([1.0, 0, 0]))
    by_parameter = a.by_parameter + np.array([1.0, -1.0, 0])
    table[1] -= 0  # the marginal over inputs stays; only the two biases disagree
    with pytest.raises(ValueError, match="they must agree"):
        a.replace(table=table, by_parameter=by_parameter)


def test_refuses_attributes_that_a_file_cannot_keep():
    with pytest.raises(TypeError, match=r"attrs\['model'\] is a object, which a file cannot keep"):
        allocation(model=object())


def test_forgives_rounding():
    a = allocation()
    a.replace(capacity=a.capacity.astype("float32") * (1 + 1e-6))
    a.replace(bias=a.bias + 1e-9)


def test_holds_no_capacity_at_all():
    zero = Allocation(
        capacity=xr.DataArray(np.zeros(3), dims="input"),
        bias=0.0,
        by_parameter=xr.DataArray([0.0], dims="parameter", coords={"parameter": ["w"]}),
    )
    assert zero.total == 0
    assert "most on" not in repr(zero)


def test_repr_says_what_matters():
    text = repr(allocation(notes=["symmetries: lower bound", "few examples"]))
    assert "measured" in text
    assert "of 200 parameters" in text
    assert "channel 1, row 4, column 6" in text
    assert text.endswith("\n  symmetries: lower bound\n  few examples")
    assert text.count("\n") < 8


def test_repr_names_the_region_or_input_that_holds_most():
    image = allocation()
    values = np.zeros((1, 4, 6))
    values[0, 0, 5] = image.total - image.bias
    assert "top right" in repr(image.replace(capacity=image.capacity.copy(data=values), table=None))
    line = allocation((5,), ("lag",))
    shifted = line.capacity.assign_coords(lag=[10, 20, 30, 40, 50])
    top = int(shifted.lag[shifted.to_numpy().argmax()])
    assert f"lag {top}," in repr(line.replace(capacity=shifted, table=None))
    assert f"lag {top // 10 - 1}," in repr(line)


def test_repr_html_escapes_names():
    page = allocation(kind="<script>alert(1)</script>", notes=["<b>"])._repr_html_()
    assert "<script>" not in page
    assert "<b>" not in page
    assert "&lt;script&gt;" in page
    assert "<svg" in page


def test_to_pandas_has_one_row_per_input():
    a = allocation()
    frame = a.to_pandas()
    assert list(frame.columns) == ["channel", "row", "column", "capacity"]
    assert len(frame) == a.capacity.size
    assert frame.capacity.sum() + frame.attrs["bias"] == a.total
    assert frame.set_index(["channel", "row", "column"]).capacity[0, 2, 3] == a.capacity[0, 2, 3]


def test_a_standard_error_stays_with_its_inputs(tmp_path):
    a = allocation()
    error = xr.full_like(a.capacity, 0.25)
    a = a.replace(capacity=a.capacity.assign_coords(standard_error=error))
    assert list(a.to_pandas().columns) == ["channel", "row", "column", "capacity", "standard_error"]
    a.save(tmp_path / "a.nc")
    same(Allocation.load(tmp_path / "a.nc"), a)


def test_to_xarray_keeps_layers_of_the_same_axis_names_apart():
    dataset = allocation().to_xarray()
    assert dataset["layer_0"].attrs["layer"] == "conv"
    assert dataset["layer_0"].dims == ("layer_0_channel", "layer_0_row")
    same(Allocation.from_xarray(dataset), allocation())


def test_from_xarray_says_what_is_missing():
    with pytest.raises(ValueError, match=r"the dataset lacks \['bias'\]"):
        Allocation.from_xarray(allocation().to_xarray().drop_vars("bias"))


@pytest.mark.parametrize("shape", [(5,), (4, 6), (3, 4, 6)])
@pytest.mark.parametrize("table", [True, False])
def test_files_keep_everything(tmp_path, shape, table):
    a = allocation(
        shape,
        notes=["first", "zweite Anmerkung: κ"],
        seconds=1.5,
        exact=True,
        none=None,
        nested={"a": [1, 2]},
        scalar=np.float64(0.5),
        pair=(1, 2),
    )
    a = a if table else a.replace(table=None)
    path = tmp_path / "a.nc"
    a.save(path)
    same(Allocation.load(path), a)
    assert a.attrs["pair"] == [1, 2]
    assert a.attrs["scalar"] == 0.5


def test_files_keep_coordinates_and_twelve_layers(tmp_path):
    a = allocation((5,), ("lag",))
    lags = {"lag": ["a", "b", "c", "d", "e"]}
    layers = {f"layer.{k}": xr.DataArray(np.full(k + 1, 1.0), dims="unit") for k in range(12)}
    a = a.replace(capacity=a.capacity.assign_coords(lags), table=a.table.assign_coords(lags), layers=layers)
    a.save(tmp_path / "a.nc")
    same(Allocation.load(str(tmp_path / "a.nc")), a)


@settings(max_examples=20, deadline=None)
@given(arrays(float, st.tuples(st.integers(1, 4), st.integers(1, 4)), elements=st.floats(0, 1e6)), st.floats(0, 1e3))
def test_files_keep_any_map(tmp_path_factory, values, bias):
    total = xr.DataArray([values.sum() + bias], dims="parameter", coords={"parameter": ["w"]})
    a = Allocation(xr.DataArray(values, dims=("row", "column")), bias, total)
    path = tmp_path_factory.mktemp("any") / "a.nc"
    a.save(path)
    same(Allocation.load(path), a)


def test_save_replaces_a_file_whole(tmp_path):
    path = tmp_path / "a.nc"
    allocation(seed=0).save(path)
    allocation(seed=1).save(path)
    same(Allocation.load(path), allocation(seed=1))
    assert os.listdir(tmp_path) == ["a.nc"]


def test_a_failed_save_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a.nc"
    allocation().save(path)

    whole = Path.write_bytes

    def half_written(target, data):
        whole(target, data[: len(data) // 2])
        raise OSError("No space left on device")

    with mock.patch.object(Path, "write_bytes", half_written), pytest.raises(OSError, match="No space left"):
        allocation(seed=1).save(path)
    same(Allocation.load(path), allocation())
    assert os.listdir(tmp_path) == ["a.nc"]


def test_save_says_that_the_folder_is_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist; make it first"):
        allocation().save(tmp_path / "nowhere" / "a.nc")


def test_save_says_that_the_path_is_a_folder(tmp_path):
    with pytest.raises(IsADirectoryError, match="is a folder; give the name of a file"):
        allocation().save(tmp_path)


def test_written_files_have_ordinary_permissions(tmp_path):
    (tmp_path / "plain").touch()
    with atomically(tmp_path / "file") as temporary:
        temporary.touch()
    assert (tmp_path / "file").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_file_that_is_replaced_keeps_its_mode(tmp_path):
    path = tmp_path / "a.nc"
    allocation().save(path)
    path.chmod(0o600)
    allocation(seed=1).save(path)
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no named pipes")
def test_no_device_is_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="no ordinary file but a device or a pipe"):
        allocation().save(tmp_path / "pipe")


def test_load_says_that_the_file_is_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no file"):
        Allocation.load(tmp_path / "a.nc")
    with pytest.raises(FileNotFoundError, match="there is no file"):
        Allocation.load(tmp_path)


@pytest.mark.parametrize("content", [b"", b"no NetCDF at all", pickle.dumps([1, 2])])
def test_load_refuses_other_bytes(tmp_path, content):
    path = tmp_path / "a.nc"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="damaged or no NetCDF file"):
        Allocation.load(path)


@pytest.mark.parametrize("kept", [0.2, 0.5, 0.9])
def test_load_refuses_a_truncated_file(tmp_path, kept):
    path = tmp_path / "a.nc"
    allocation().save(path)
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content))])
    with pytest.raises(ValueError, match="damaged"):
        Allocation.load(path)


def test_load_refuses_a_foreign_dataset(tmp_path):
    path = tmp_path / "a.nc"
    xr.Dataset({"temperature": ("time", [1.0, 2.0])}).to_netcdf(path, engine="scipy")
    with pytest.raises(ValueError, match="damaged or no NetCDF file of capalloc: it is no NetCDF-3 file"):
        Allocation.load(path)
    write_dataset(xr.Dataset({"a": 1.0}), path, "capalloc-linear-study", 1)
    with pytest.raises(ValueError, match="holds 'capalloc-linear-study-1', not a capalloc-allocation"):
        Allocation.load(path)


def test_load_refuses_a_newer_format(tmp_path):
    path = tmp_path / "a.nc"
    write_dataset(allocation().to_xarray(), path, "capalloc-allocation", 2)
    with pytest.raises(ValueError, match=r"newer capalloc \(capalloc-allocation-2.*upgrade"):
        Allocation.load(path)


@pytest.mark.parametrize("content", ["{", "[1]", "3"])
def test_load_refuses_damaged_attributes(tmp_path, content):
    path = tmp_path / "a.nc"
    path.write_bytes(encode(allocation().to_xarray(), "capalloc-allocation-1", content))
    with pytest.raises(ValueError, match="is damaged"):
        Allocation.load(path)


def test_load_refuses_numbers_that_break_an_invariant(tmp_path):
    path = tmp_path / "a.nc"
    dataset = allocation().to_xarray()
    write_dataset(dataset.assign(capacity=dataset["capacity"] * 2), path, "capalloc-allocation", 1)
    with pytest.raises(ValueError, match=r"is damaged: .* must agree"):
        Allocation.load(path)


def test_load_refuses_a_file_without_its_numbers(tmp_path):
    path = tmp_path / "a.nc"
    write_dataset(allocation().to_xarray().drop_vars("table_bias"), path, "capalloc-allocation", 1)
    with pytest.raises(ValueError, match="is damaged"):
        Allocation.load(path)


def test_attributes_are_json_in_the_file(tmp_path):
    path = tmp_path / "a.nc"
    allocation(notes=["one"]).save(path)
    with xr.open_dataset(path) as file:
        assert json.loads(file.attrs["attrs"])["notes"] == ["one"]
        assert file.attrs["format"] == "capalloc-allocation-1"


def test_names_are_those_of_the_tensors():
    assert [str(name) for name in allocation().by_parameter["parameter"].values] == NAMES
