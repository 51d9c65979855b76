"""Pictures of maps: what is drawn, read back from the Axes or the SVG."""

from __future__ import annotations

import base64
import io
import itertools
import xml.etree.ElementTree as ET

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest
import xarray as xr
from matplotlib.image import imread

from allocations import allocation
from capalloc.results.images import image, limits
from capalloc.results.plots import plot_map
from capalloc.results.regions import VERTICAL, grid, thirds
from capalloc.results.svg import MAX_CELLS, colours, gradient, map_svg

SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(autouse=True)
def _no_window():
    with matplotlib.rc_context({"backend": "agg"}):
        yield
        plt.close("all")


def parse(svg: str) -> ET.Element:
    return ET.fromstring(str(svg).replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1))


def test_plot_draws_the_map_summed_over_channels():
    a = allocation((3, 4, 6))
    _, ax = plt.subplots()
    assert a.plot(ax) is ax
    np.testing.assert_array_equal(ax.images[0].get_array(), a.capacity.sum("channel"))
    assert "summed over channel" in ax.get_title()
    assert "measured capacity" in ax.get_title()
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("column", "row")
    assert ax.images[0].get_clim() == (0, float(a.capacity.sum("channel").max()))


def test_plot_makes_a_figure_when_asked_for_none():
    ax = allocation((1, 4, 6)).plot()
    assert len(ax.figure.axes) == 2  # the map and its colour bar
    assert "summed" not in ax.get_title()


def test_plot_draws_a_line_over_one_axis():
    a = allocation((5,), ("lag",))
    line = plot_map(a.capacity.assign_coords(lag=[1, 2, 4, 8, 16])).lines[0]
    np.testing.assert_array_equal(line.get_xdata(), [1, 2, 4, 8, 16])
    np.testing.assert_array_equal(line.get_ydata(), a.capacity)
    np.testing.assert_array_equal(plot_map(a.capacity).lines[0].get_xdata(), range(5))


def test_plot_of_a_difference_is_symmetrical_around_zero():
    difference = xr.DataArray([[1.0, -3.0]], dims=("row", "column"))
    assert plot_map(difference, signed=True).images[0].get_clim() == (-3, 3)


def test_limits_of_an_empty_map_are_no_empty_interval():
    assert limits(xr.DataArray(np.zeros((2, 2)))) == (0, 1)


def test_svg_names_every_cell_and_its_value():
    a = allocation((1, 4, 6))
    root = parse(map_svg(a.capacity))
    titles = [title.text for title in root.iter(f"{SVG}title")]
    expected = [f"row {i}, column {j}: {float(a.capacity[0, i, j]):.4g}" for i in range(4) for j in range(6)]
    assert titles == expected
    assert root.get("role") == "img"
    assert len(list(root.iter(f"{SVG}text"))) == 24


def test_svg_of_one_axis_is_one_row():
    root = parse(map_svg(allocation((5,), ("lag",)).capacity))
    assert root.get("viewBox") == "0 0 5 1"
    assert next(root.iter(f"{SVG}title")).text.startswith("lag 0: ")


def test_svg_uses_the_scale_it_is_given():
    values = xr.DataArray([[0.0, 1.0]], dims=("row", "column"))
    fills = [rect.get("fill") for rect in parse(map_svg(values, (0, 2))).iter(f"{SVG}rect")]
    assert fills == ["#440154", "#21918c"]  # viridis at 0 and 1/2


def test_svg_marks_the_sign_of_a_difference():
    values = xr.DataArray([[0.5, -2.0]], dims=("row", "column"))
    assert [t.text for t in parse(map_svg(values, signed=True)).iter(f"{SVG}text")] == ["+0.5", "-2.0"]


def test_svg_of_a_large_map_is_one_picture():
    values = xr.DataArray(np.arange(MAX_CELLS + 80.0).reshape(-1, 16), dims=("row", "column"))
    root = parse(map_svg(values))
    (picture,) = root.iter(f"{SVG}image")
    address = picture.get("href")
    pixels = imread(io.BytesIO(base64.b64decode(address.removeprefix("data:image/png;base64,"))))
    np.testing.assert_allclose(pixels[..., :3], colours(values.to_numpy() / values.to_numpy().max()), atol=1 / 255)


def test_svg_escapes_axis_names():
    svg = map_svg(xr.DataArray([[1.0]], dims=("<b>", "column")), label='"><script>')
    assert "<b>" not in svg
    assert "<script>" not in svg


def test_gradient_runs_through_the_colours():
    assert gradient().startswith("linear-gradient(to right, #440154")
    assert gradient(signed=True) != gradient()


@pytest.mark.parametrize("shape", [(8, 8), (3, 7, 5), (2, 3, 4, 6)])
def test_regions_sum_to_the_whole(shape):
    a = allocation(shape, tuple(f"axis_{k}" for k in range(len(shape))))
    assert float(grid(a.capacity).sum()) == pytest.approx(float(a.capacity.sum()))
    table = grid(a.table.drop_vars("bias"), keep="parameter")
    assert table.dims == ("parameter", "region")
    np.testing.assert_allclose(table.sum("region"), a.by_parameter - a.table.coords["bias"])


def test_regions_are_where_their_names_say():
    values = xr.DataArray(np.arange(64.0).reshape(8, 8), dims=("row", "column"))
    regions = grid(values)
    assert len(regions) == 9
    assert float(regions.sel(region="top left")) == values[:3, :3].sum()
    assert float(regions.sel(region="centre")) == values[3:5, 3:5].sum()
    assert float(regions.sel(region="bottom right")) == values[5:, 5:].sum()


def test_regions_leave_out_what_holds_no_pixel():
    assert list(grid(xr.DataArray(np.ones((2, 3)), dims=("row", "column"))).region.values) == [
        "top left", "top centre", "top right", "bottom left", "bottom centre", "bottom right",
    ]  # fmt: skip


def test_thirds_are_symmetrical_and_complete():
    for length in range(1, 40):
        parts = thirds(length)
        assert len(parts) == len(VERTICAL)
        assert parts[0].start == 0
        assert parts[-1].stop == length
        assert all(a.stop == b.start for a, b in itertools.pairwise(parts))
        assert parts[0].stop - parts[0].start == parts[2].stop - parts[2].start


def test_regions_need_an_image():
    with pytest.raises(
        ValueError, match=r"a grid of regions needs a capacity map of at least two axes, got \('input',\)"
    ):
        grid(allocation((5,), ("input",)).capacity)


def test_image_keeps_the_last_two_axes():
    assert image(allocation((3, 4, 6)).capacity).dims == ("row", "column")
