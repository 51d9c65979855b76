"""Files that the first version of each format wrote load, and are written the same today."""

from __future__ import annotations

from pathlib import Path
from unittest import mock

import h5py
import pytest
import xarray as xr

from capalloc._runtime import old_files
from capalloc._runtime.netcdf import decode
from capalloc.results import load
from capalloc.results.kinds import RESULTS

FOLDER = Path(__file__).parent / "netcdf3"
#: The same as they were written before, by HDF5.
OLD = Path(__file__).parent / "version_1"
#: By file: its kind, and numbers that the version which wrote it printed.
WRITTEN = {
    "measured": ("Allocation", ("56 of 64 parameters", "6.761 (12.1%)")),
    "propagated": ("Allocation", ("62 of 64 parameters", "12.41 (20.0%)")),
    "effective": ("EffectiveParameters", ("10.1876 of 51 parameters", "9 examples of 3 outputs", "1.49 of example 5")),
    "field": ("ReceptiveField", ("of all outputs", "0.769", "0.758")),
    "gates": ("Decoupling", ("0.587 ± 0.109", "0.462 ± 0.094", "0.716 ± 0.197", "63.9%")),
    "scaling": ("Scaling", ("1 residual block, 1 layer: trivial, T = 0.0828", "0.0863")),
    "shattering": ("Shattering", ("index 0.0529, correlation of gradients 0.947", "0.979 ± 0.011")),
    "diagnosis": ("Diagnosis", ("T = 0.0828; shattering index 0.0529", "0.979 ± 0.011")),
    "audit": ("Audit", ("2 worth a look", "33 (65% of them", "1 of 1")),
    "scores": ("PruneScores", ("51 of 51 parameters scored", "33.3%")),
    "ranking": ("Ranking", ("2 models by capacity", "wide", "44", "plain", "by the count of parameters")),
    "walk": ("Evolution", ("2 blocks on row 3 x column 4", "jump, borders absorbing", "0.6142", "1.951", "0.1009")),
}


def test_there_is_a_file_of_every_kind():
    assert {kind for kind, _ in WRITTEN.values()} == {kind.__name__ for kind in RESULTS}
    assert {path.stem for folder in (FOLDER, OLD) for path in folder.glob("*.nc")} == set(WRITTEN)


@pytest.mark.parametrize("name", WRITTEN)
def test_a_file_says_what_it_said(name):
    kind, said = WRITTEN[name]
    found = load(FOLDER / f"{name}.nc")
    assert type(found).__name__ == kind
    for piece in said:
        assert piece in repr(found)


@pytest.mark.parametrize("name", WRITTEN)
def test_a_file_is_written_the_same_today(name, tmp_path):
    load(FOLDER / f"{name}.nc").save(tmp_path / "again.nc")
    old, new = (decode(path.read_bytes()) for path in (FOLDER / f"{name}.nc", tmp_path / "again.nc"))
    assert new[:2] == old[:2]
    xr.testing.assert_identical(new[2], old[2])
    assert [v.dtype for v in new[2].variables.values()] == [v.dtype for v in old[2].variables.values()]


@pytest.mark.parametrize("name", sorted(path.stem for path in OLD.glob("*.nc")))
def test_a_file_of_before_the_first_release_holds_the_same(name):
    old, new = (decode(data) for data in (old_files.convert(OLD / f"{name}.nc"), (FOLDER / f"{name}.nc").read_bytes()))
    assert new[:2] == old[:2]
    xr.testing.assert_identical(new[2], old[2])


def test_a_process_of_its_own_reads_old_files(tmp_path, monkeypatch):
    assert repr(load(OLD / "walk.nc")) == repr(load(FOLDER / "walk.nc"))
    damaged = tmp_path / "damaged.nc"
    damaged.write_bytes((OLD / "walk.nc").read_bytes()[:900])
    with pytest.raises(ValueError, match=r"damaged or no NetCDF file of capalloc: OSError: .*truncated file"):
        load(damaged)
    monkeypatch.setattr(old_files, "PATIENCE", 0.01)
    with pytest.raises(ValueError, match="HDF5 did not end within 0 s"):
        load(OLD / "walk.nc")


def test_an_old_file_without_the_package_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "h5netcdf", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'capalloc\[hdf5\]'"):
        load(OLD / "walk.nc")


def linked(file: h5py.File) -> None:
    file["elsewhere"] = h5py.ExternalLink("/etc/hostname", "/")


def outside(file: h5py.File) -> None:
    file.create_dataset("leak", (2,), "S20", external=[("/etc/hostname", 0, 40)])


def virtual(file: h5py.File) -> None:
    layout = h5py.VirtualLayout((2,), "f8")
    layout[:] = h5py.VirtualSource("other.h5", "a", (2,))
    file.create_virtual_dataset("borrowed", layout)


def packed(file: h5py.File) -> None:
    file.create_dataset("bomb", (3 * 10**8,), "f8", chunks=(1 << 20,), compression="gzip")


def unwritten(file: h5py.File) -> None:
    file.create_dataset("bomb", (3 * 10**8,), "f8")


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (linked, "elsewhere is a link"),
        (outside, "leak is no plain array in the file"),
        (virtual, "borrowed is no plain array"),
        (packed, "bomb is no plain array"),
        (unwritten, "bomb holds nothing"),
        (lambda file: file.create_group("inner"), "inner is no plain array"),
    ],
)
def test_an_old_file_stands_alone(spoil, said, tmp_path):
    path = tmp_path / "a.nc"
    path.write_bytes((OLD / "walk.nc").read_bytes())
    with h5py.File(path, "a") as file:
        spoil(file)
    with pytest.raises(ValueError, match=said):
        old_files.convert(path)


def test_an_old_array_is_no_larger_than_its_file(tmp_path):
    held = mock.MagicMock(spec=h5py.Dataset, external=None, is_virtual=False, chunks=None, nbytes=10**9)
    file = mock.MagicMock(**{"get.return_value": h5py.HardLink(), "__getitem__.return_value": held})
    file.__iter__.return_value = iter(["a"])
    with pytest.raises(ValueError, match="a is larger than the file"):
        old_files._check_inside(file, h5py, 100)


def test_an_older_field_does_not_say_what_else_can_change_the_output():
    field = load(FOLDER / "field.nc")
    assert (field.influence, field.influence_sizes, field.paths_status, field.influence_status) == (None,) * 4
    assert "field of influence" not in repr(field)
    assert "influence" not in field.to_pandas("inputs")
