"""The study of linear architectures: the same numbers on every run, resumable, and its figure, table and page."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
import xarray as xr
from typer.testing import CliRunner

from capalloc.app.cli import app
from capalloc.app.studies import linear_study as study
from capalloc.app.studies.linear_command import LINEAR_FRAME
from capalloc.app.studies.linear_figure import plot_linear_study, smoothed
from capalloc.app.studies.linear_study import LINEAR_ARCHITECTURES, STUDY_PROCESSES, LinearSettings, linear_study
from capalloc.app.studies.linear_table import columns, groups, page
from commands import misused

SMALL = LinearSettings(lags=20, restarts=2, max_iterations=30)
NAMES = (["dense", "dilated", "recurrent"], ["AR(2)", "fractional noise"])


@pytest.fixture(scope="module")
def small() -> xr.Dataset:
    return linear_study(SMALL, *NAMES)


def test_the_table_holds_what_theory_says(small):
    dense = small.sel(architecture="dense")
    np.testing.assert_allclose(dense["capacity"], 1, atol=1e-9)
    np.testing.assert_allclose(dense["excess"], 0, atol=1e-12)
    np.testing.assert_allclose(small["total"].sel(architecture="dilated"), 5, atol=1e-9)
    np.testing.assert_allclose(small["capacity"].sum("lag"), small["total"], atol=1e-9)
    np.testing.assert_allclose(small["within_lags"].sel(within=100), small["total"], atol=1e-9)
    np.testing.assert_allclose(dense["within_lags"], [[1, 10, 20]] * 2, atol=1e-9)
    np.testing.assert_allclose(small["loss"], (small["excess"] + small["best_loss"]), atol=1e-9)
    variance = float(STUDY_PROCESSES["AR(2)"]().autocovariance(1)[0])
    assert float(small["best_loss"].sel(process="AR(2)")) == pytest.approx(1 / variance)
    filters = small["filter"].sel(architecture="dense", process="AR(2)")
    np.testing.assert_allclose(filters[:3], [0.6, -0.3, 0], atol=1e-6)


def test_the_same_numbers_on_every_run_and_from_part_of_it(small):
    threads = torch.get_num_threads()
    again = linear_study(SMALL, ["recurrent"], ["fractional noise"])
    part = small.sel(architecture=["recurrent"], process=["fractional noise"])
    xr.testing.assert_identical(again, part)
    assert torch.get_num_threads() == threads


def test_a_run_goes_on_where_it_was_cut_short(small, tmp_path, monkeypatch):
    real, calls = study.cell, []

    def failing(architecture, process, *rest):
        if len(calls) == 3:
            raise KeyboardInterrupt
        calls.append((architecture, process))
        return real(architecture, process, *rest)

    monkeypatch.setattr(study, "cell", failing)
    with pytest.raises(KeyboardInterrupt):
        linear_study(SMALL, *NAMES, cells=tmp_path)
    assert len(list(tmp_path.iterdir())) == 3
    (tmp_path / "dense,_AR(2).nc").write_bytes(b"cut off")  # a damaged cell is computed again
    done = []
    monkeypatch.setattr(study, "cell", lambda *a: (done.append(a[:2]), real(*a))[1])
    xr.testing.assert_identical(linear_study(SMALL, *NAMES, cells=tmp_path), small)
    assert ("dense", "AR(2)") in done
    assert len(done) == 4
    done.clear()
    other = LinearSettings(lags=20, restarts=2, max_iterations=30, seed=1)
    linear_study(other, ["dilated"], ["AR(2)"], cells=tmp_path)
    assert done == [("dilated", "AR(2)")]  # another seed is another cell


def test_a_saved_study_is_drawn_without_a_model(small, tmp_path):
    figure = plot_linear_study(small)
    try:
        assert len(figure.axes) == 2
        assert [ax.get_xscale() for ax in figure.axes] == ["linear", "log"]
        assert [len(ax.lines) for ax in figure.axes] == [3, 3]
    finally:
        plt.close(figure)
    figure, axes = plt.subplots(1, 2)
    assert plot_linear_study(small, list(axes)) is figure
    with pytest.raises(ValueError, match="2 processes need as many axes"):
        plot_linear_study(small, [axes[0]])
    plt.close(figure)


@pytest.mark.parametrize("logarithmic", [False, True])
def test_smoothing_keeps_the_sum(logarithmic):
    lag = np.arange(1, 513)
    capacity = xr.DataArray(np.random.default_rng(0).random(512), dims="lag", coords={"lag": lag})
    shown = smoothed(capacity, logarithmic)
    assert shown.size <= 64
    flat = smoothed(capacity * 0 + 2.0, logarithmic)
    np.testing.assert_allclose(flat, 2)
    assert float(smoothed(capacity[:8], logarithmic)[0]) == pytest.approx(float(capacity[0]))


def test_the_page_is_whole_and_escaped(small):
    html = str(page(small.assign_coords(architecture=["<dense>", "dilated", "recurrent"]), b"png"))
    assert "&lt;dense&gt;" in html
    assert "<script" not in html
    assert "http" not in html.replace("http-equiv", "")
    assert html.count("<tr>") == 1 + 6
    assert columns(small) == ["params", "capacity", "excess", "≤ 1", "≤ 10", "≤ 100"]
    (first, _) = groups(small)
    assert first.rows[0].cells[:2] == ["20", "20"]


def test_a_star_marks_training_cut_short():
    cut = linear_study(LinearSettings(lags=16, restarts=1, max_iterations=1), ["dilated x4"], ["fractional noise"])
    assert groups(cut)[0].rows[0].cells[2].endswith(" *")


def test_the_command_writes_everything_the_same_each_time(tmp_path):
    options = [
        "linear-study",
        "--architecture",
        "dense",
        "--architecture",
        "dilated",
        "--process",
        "AR(2)",
        "--lags",
        "12",
        "--quiet",
    ]
    files = {}
    for name in ("one", "two"):
        result = CliRunner().invoke(app, [*options, "--out", str(tmp_path / name)], catch_exceptions=False)
        assert result.exit_code == 0, result.output
        assert "dilated" in result.output
        files[name] = tmp_path / name
    one, two = (LINEAR_FRAME.read(folder) for folder in files.values())
    xr.testing.assert_identical(one, two)
    assert one.attrs["lags"] == 12
    for suffix in ("png", "html"):
        first, second = ((folder / f"linear-study.{suffix}").read_bytes() for folder in files.values())
        assert first == second


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: LinearSettings(lags=0), "lags must be at least 1"),
        (lambda: LinearSettings(seed=-1), "seed must be at least 0"),
        (lambda: LinearSettings(restarts=0), "restarts must be"),
        (lambda: LinearSettings(root="square"), "root must be one of"),
        (lambda: linear_study(SMALL, ["transformer"]), "'transformer'"),
        (lambda: linear_study(SMALL, ["dense"], []), "unknown or empty"),
        (lambda: linear_study(LinearSettings(lags=4), ["convolutions"]), "reach over 17 values"),
    ],
)
def test_bad_settings_are_clear_errors(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def test_every_architecture_of_the_study_takes_its_default_window():
    for build in LINEAR_ARCHITECTURES.values():
        model = build(LinearSettings().lags, torch.Generator())
        assert model(torch.zeros(2, LinearSettings().lags, dtype=torch.float64)).shape == (2, 1)


@pytest.mark.parametrize("option", ["architecture", "process"])
def test_unknown_names_are_wrong_usage(tmp_path, monkeypatch, option):
    monkeypatch.chdir(tmp_path)
    assert f"--{option} must be one of" in misused("linear-study", f"--{option}", "nothing")
    assert not (tmp_path / "linear-study").exists()
