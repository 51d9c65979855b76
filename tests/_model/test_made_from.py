"""What results keep of the call that made them: enough to make them again, and nothing that changes by itself."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

import capalloc
from capalloc._model.examples_digest import digest_of_examples
from capalloc.app.cli import app
from capalloc.solvers import Stochastic

X = torch.randn(12, 4, generator=torch.Generator().manual_seed(1))
METHODS = (
    *("measure", "propagate", "diagnose", "scaling", "shattering", "receptive_field", "decoupling"),
    *("prune_scores", "effective_parameters", "audit"),
)


def net() -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))


def made(result: Any) -> dict[str, Any]:
    return result.data.attrs["made"]


@pytest.mark.parametrize("method", METHODS)
def test_every_result_says_what_it_was_made_from(method: str, tmp_path: Path) -> None:
    result = getattr(capalloc, method)(net(), X)
    told = made(result)
    assert told["call"] == f"capalloc.{method}(model, inputs)"
    assert (told["model"], told["inputs"]) == ("Sequential, 23 parameters", "12 x 4")
    assert told["data_digest"] == digest_of_examples(X)
    assert told["versions"]["capalloc"] == version("capalloc")
    assert result.view().made == told
    assert "made" not in result.view().settings
    result.save(tmp_path / "result.nc")
    assert made(capalloc.load(tmp_path / "result.nc")) == told


def test_arguments_are_those_that_are_no_defaults() -> None:
    drawn = torch.Generator().manual_seed(7)
    found = capalloc.measure(net(), X, ridge=[0.1, 0.2], generator=drawn, solver=Stochastic(rtol=0.1, num_probes=8))
    assert {made(one)["call"] for one in found.values()} == {
        "capalloc.measure(model, inputs, ridge=[0.1, 0.2], generator=torch.Generator().manual_seed(7), "
        "solver=Stochastic(rtol=0.1, num_probes=8))"
    }
    assert made(found[0.1])["seed"] == 7
    metric = torch.ones(4)
    told = made(capalloc.scaling(net(), X, lambda y: y[:, :1], metric=metric, progress=False, batch_size=4))
    assert told["call"].endswith("lambda>>, metric=<Tensor of 4>)")
    assert "seed" not in told  # nothing is drawn


def test_a_part_of_another_method_keeps_nothing_of_its_own() -> None:
    diagnosis = capalloc.diagnose(net(), X)
    assert "made" not in diagnosis.data.attrs["scaling"]
    assert made(diagnosis)["call"] == "capalloc.diagnose(model, inputs)"


class Tokens(nn.Module):
    """A vector for each token, or one for all places of a channel."""

    def __init__(self, first: nn.Module) -> None:
        super().__init__()
        self.first = first

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        return (y[0] if isinstance(y, tuple) else y).flatten(1)


@pytest.mark.parametrize(
    ("first", "axes"),
    [
        (nn.Linear(6, 2), ["token", "feature"]),
        (nn.GRU(6, 2, batch_first=True), ["step", "feature"]),
        (nn.Conv1d(5, 2, 3), ["channel", "position"]),
        (nn.Sequential(nn.Flatten(), nn.Linear(30, 2)), None),
    ],
)
def test_two_axes_are_named_by_the_layer_that_reads_them(first: nn.Module, axes: list[str] | None) -> None:
    found = capalloc.measure(Tokens(first), torch.randn(4, 5, 6, generator=torch.Generator().manual_seed(0)))
    assert made(found).get("axes") == axes


def test_the_command_line_keeps_its_command(tmp_path: Path) -> None:
    out = tmp_path / "a result.nc"
    done = CliRunner().invoke(app, ["scaling", "mlp", "--shape", "1,4,4", "--quiet", "--out", str(out)])
    assert done.exit_code == 0, done.output
    assert made(capalloc.load(out))["command"] == f"capalloc scaling mlp --shape 1,4,4 --quiet --out '{out}'"
