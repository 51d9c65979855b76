"""Files that the first version of each format wrote load, and are written the same today."""

from __future__ import annotations

from pathlib import Path

import pytest
import xarray as xr

from capalloc._runtime.netcdf import decode
from capalloc.results import load
from capalloc.results.kinds import RESULTS

FOLDER = Path(__file__).parent / "netcdf3"
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
    assert {path.stem for path in FOLDER.glob("*.nc")} == set(WRITTEN)


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
