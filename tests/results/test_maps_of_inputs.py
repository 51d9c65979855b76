"""Results of several inputs: each has a map of its own in the object, the file, the pictures and the page."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pytest
import xarray as xr

import capalloc
from capalloc.app.callbacks.summary import summarise
from capalloc.app.cli.as_json import as_dict
from capalloc.app.report import report_html
from capalloc.partitions import regions
from capalloc.results import load

INPUTS = [
    {"name": "image", "axes": ["row", "column"], "shape": [3, 4]},
    {"name": "words", "axes": ["token"], "shape": [5]},
]


def made(scale: float = 1.0, errors: bool = True) -> capalloc.Allocation:
    """17 entries of two inputs, two parameter tensors."""
    table = scale * np.arange(34.0).reshape(2, 17)
    names = ["image"] * 12 + ["words"] * 5
    places = [f"{k // 4}, {k % 4}" for k in range(12)] + list(map(str, range(5)))
    coords = {"input_name": ("input", names), "place": ("input", places)}
    if errors:
        coords["standard_error"] = ("input", np.linspace(0, 1, 17))
    parameters = {"parameter": ["a.weight", "b.weight"]}
    return capalloc.Allocation(
        capacity=xr.DataArray(table.sum(0), dims="input", coords=coords),
        bias=3.0,
        by_parameter=xr.DataArray(table.sum(1) + np.array([1, 2]), dims="parameter", coords=parameters),
        table=xr.DataArray(table, dims=("parameter", "input"), coords=parameters | {"bias": ("parameter", [1, 2])}),
        attrs={"kind": "measured", "num_params": 700, "notes": [], "inputs": INPUTS},
    )


def test_each_input_has_its_map_and_its_table():
    found = made()
    assert {name: m.dims for name, m in found.maps.items()} == {"image": ("row", "column"), "words": ("token",)}
    assert sum(float(m.sum()) for m in found.maps.values()) == pytest.approx(float(found.capacity.sum()))
    np.testing.assert_array_equal(found.maps["image"].to_numpy().ravel(), found.capacity[:12])
    np.testing.assert_array_equal(found.maps["words"]["standard_error"], np.linspace(0, 1, 17)[12:])
    np.testing.assert_array_equal(found.tables["image"].sum("parameter"), found.maps["image"])
    assert found.tables["words"].dims == ("parameter", "token")


def test_one_tensor_has_one_map_without_a_name():
    one = capalloc.Allocation(
        made().maps["image"], 0.0, xr.DataArray([336.0], dims="parameter", coords={"parameter": ["w"]})
    )
    assert list(one.maps) == ["inputs"]
    assert one.maps["inputs"].identical(one.capacity)
    assert one.tables == {}


def test_a_file_keeps_the_inputs_apart(tmp_path):
    made().save(tmp_path / "a.nc")
    again = load(tmp_path / "a.nc")
    assert again.data.identical(made().data)
    assert all(again.maps[name].identical(values) for name, values in made().maps.items())


def test_parts_are_of_an_input_or_of_all():
    found = made()
    assert found.by("input_name").to_series().to_dict() == {"image": 336.0, "words": 225.0}
    assert float(found.by("token", name="words").sum()) == 225
    assert found.by(regions, name="image").sizes["part"] == 9
    with pytest.raises(ValueError, match="there is no input 'sound'; there are image, words"):
        found.by("token", name="sound")


def test_rows_say_whose_they_are():
    frame = made().to_pandas()
    assert frame.groupby("input_name", sort=False)["capacity"].sum().to_dict() == {"image": 336.0, "words": 225.0}
    assert frame["place"].tolist()[3:5] == ["0, 3", "1, 0"]
    assert as_dict(made())["by_input"] == {"image": 336.0, "words": 225.0}


def test_maps_are_compared_by_name():
    a = made()
    turned = a.data.isel(input=[*range(12, 17), *range(12)]).assign_attrs(inputs=INPUTS[::-1])
    b = capalloc.Allocation.from_xarray(turned)
    assert capalloc.total_variation(a, b) == pytest.approx(0)
    one = capalloc.Allocation(
        a.maps["image"], 0.0, xr.DataArray([336.0], dims="parameter", coords={"parameter": ["w"]})
    )
    with pytest.raises(ValueError, match="the maps are of other inputs: image, words and inputs"):
        capalloc.total_variation(a, one)


def test_text_and_card_tell_of_each():
    assert "image row 3, column 4; words token 5" in repr(made())
    assert "words" in repr(made()).split("inputs\n")[1]
    card = made()._repr_html_()
    assert card.count("<figure>") == 2
    assert "words: capacity in parameters" in card


def test_pictures_of_each_stand_side_by_side():
    figure = made().figure()
    titles = [ax.get_title() for ax in figure.axes if ax.get_title()]
    assert titles == ["image: measured capacity, 336", "words: measured capacity, 225"]
    plt.close(figure)
    summary = summarise(made(), "capacity")
    assert set(summary.images) == {"capacity/map_image", "capacity/map_words"}


def test_a_page_has_a_section_for_each():
    page = report_html({"first": made(), "second": made(2.0)})
    assert "Where the capacity goes, image" in page
    assert "Where the capacity goes, words" in page
    assert '"maps-1"' in page
    assert '"maps-1-2"' in page
    table = page.split("Which parameters serve which region")[-1]
    for column in ("image", "words", "constant input"):
        assert f'<th scope="col">{column}</th>' in table
