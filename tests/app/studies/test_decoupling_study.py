"""The decoupling study: from linear to pseudo-random gates, its figure and its command."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
import xarray as xr
from torch import nn
from typer.testing import CliRunner

from capalloc._decoupling.gate_decoupling import gate_moments
from capalloc.app.cli import app
from capalloc.app.studies.decoupling_command import DECOUPLING_FRAME
from capalloc.app.studies.decoupling_figure import plot_decoupling_study
from capalloc.app.studies.decoupling_study import KernelStack, decoupling_study, equal_moment, layer_decoupling
from zoo import gaussian

SMALL = {"depth": 3, "draws": 2, "num_examples": 300}


@pytest.fixture(scope="module")
def study() -> xr.Dataset:
    return decoupling_study(**SMALL)


def test_from_saturated_and_flat_to_the_markov_rule(study):
    profile = study["capacity"]
    np.testing.assert_allclose(profile.sel(setting="δ = 0"), 1, atol=1e-9)  # linear: one a input
    # Parameters minus one symmetry for each hidden channel, at any decoupling above none.
    np.testing.assert_allclose(study["total"][1:], (6 + 12 + 6) - 4, atol=1e-6)
    np.testing.assert_allclose(study["decoupling"][:5], [0, 0.25, 0.5, 0.75, 1], atol=1e-12)
    sines = study["decoupling"].where(study["family"] == "omega", drop=True)
    assert (np.diff(sines) > 0).all()
    total = profile.sel(setting="δ = 1")
    distance = lambda name: float(abs(profile.sel(setting=name) - total).sum())  # noqa: E731
    assert distance("sin(4 z)") < distance("sin(1 z)") < distance("sin(0.5 z)")
    assert (study["capacity_error"] >= 0).all()


def test_seeds_repeat(study):
    xr.testing.assert_identical(decoupling_study(**SMALL), study)
    assert not np.allclose(decoupling_study(seed=1, **SMALL)["capacity"][1], study["capacity"][1])


def test_gate_moments_are_those_of_the_network():
    stack = KernelStack.random(2, 2, 3, torch.Generator().manual_seed(0))
    x = gaussian(500, 1, 5)
    (ours,) = stack.gate_moments(nn.ReLU(), x)
    z = nn.functional.conv1d(x, stack.kernels[0])
    first = nn.Conv1d(1, 2, 3, dtype=torch.float64)
    first.weight.data, first.bias.data = stack.kernels[0], -z.mean((0, 2))
    (theirs,) = gate_moments(nn.Sequential(first, nn.ReLU()), x).values()
    np.testing.assert_allclose(ours, theirs, atol=1e-12)
    assert layer_decoupling(equal_moment(4, 0.3)) == pytest.approx(0.3)


def test_figure(study):
    figure = plot_decoupling_study(study)
    assert len(figure.axes) == 6
    labels = [text.get_text() for text in figure.axes[3].get_legend().get_texts()]
    assert labels[0] == "δ = 0, total 7"
    assert plot_decoupling_study(study, figure.axes) is figure
    plt.close(figure)


def test_command_writes_whole_files(tmp_path):
    out = tmp_path / "new" / "folder"
    arguments = [
        "decoupling-study",
        "--out",
        str(out),
        "--seed",
        "3",
        "--depth",
        "2",
        "--channels",
        "1",
        "--draws",
        "2",
        "--quiet",
    ]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    assert sorted(p.name for p in out.iterdir()) == ["decoupling-study.nc", "decoupling-study.png"]
    assert (out / "decoupling-study.png").read_bytes()[:4] == b"\x89PNG"
    assert DECOUPLING_FRAME.read(out).attrs["seed"] == 3
    assert "sin(4 z)" in done.output


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"depth": 1}, "depth must be at least 2, got 1"),
        ({"draws": 1}, "draws must be at least 2, got 1"),
        ({"channels": 0}, "channels must be at least 1, got 0"),
        ({"deltas": [0.5, 2]}, r"deltas must lie in \[0, 1\], got \[2\]"),
    ],
)
def test_refusals(options, match):
    with pytest.raises(ValueError, match=match):
        decoupling_study(**options)
