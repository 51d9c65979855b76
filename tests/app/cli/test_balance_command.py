"""`capalloc balance`: the file against the function, and inputs that stay as they are."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import capalloc
from commands import misused, refused, run

NETS = """
import torch
from torch import nn

class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 6)

    def forward(self, h):
        return h + 3 * self.layer(h.relu())

def net(depth=5):
    return nn.Sequential(nn.Linear(4, 6), *(Block() for _ in range(depth)), nn.Linear(6, 2))

def plain(gain=0.3):
    model = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 2))
    for layer in model:
        nn.init.orthogonal_(layer.weight, gain)
        nn.init.zeros_(layer.bias)
    return model
"""
SHAPE = ("--shape", "4", "--quiet")


@pytest.fixture
def nets(folder):
    (folder / "nets.py").write_text(NETS, encoding="utf-8")
    names: dict = {}
    exec(NETS, names)
    return names


@pytest.mark.parametrize("out", ["found.pt", "found.safetensors"])
@pytest.mark.parametrize("optimiser", ["sgd", "adam"])
def test_the_file_holds_the_values_of_the_function(nets, out, optimiser):
    torch.manual_seed(1)
    model = nets["net"]()
    torch.save(model.state_dict(), "given.pt")
    before = Path("given.pt").read_bytes()
    given = ("balance", "nets.py:net", *SHAPE, "--weights", "given.pt", "--json")
    result = run(*given, "--out", out, "--optimiser", optimiser)
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert (told["before"]["phase"], told["after"]["phase"]) == ("strong", "balanced")
    assert {row["parameter"] for row in told["params"]} == {
        f"{k}.layer.{p}" for k in range(1, 6) for p in ("weight", "bias")
    }
    x = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))
    balanced = capalloc.balance(model, x, optimiser=optimiser)
    again = json.loads(run("scaling", "nets.py:net", *SHAPE, "--weights", out, "--json").stdout)
    assert again["T"] == pytest.approx(told["after"]["T"], rel=1e-5) == capalloc.scaling(balanced, x).T
    if out.endswith(".pt"):
        fresh = nets["net"]()
        fresh.load_state_dict(torch.load(out, weights_only=True))
        torch.testing.assert_close(fresh(x), balanced(x))
    assert Path("given.pt").read_bytes() == before


def test_what_is_in_balance_stays_and_is_said_to(nets):
    assert run("balance", "nets.py:plain", *SHAPE).exit_code == 0
    result = run("balance", "nets.py:plain", *SHAPE, "--weights", "balanced.pt", "--out", "again.pt")
    assert result.exit_code == 0, result.output
    assert "nothing to change" in result.stdout
    first, second = (torch.load(name, weights_only=True) for name in ("balanced.pt", "again.pt"))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_layers_are_shown_with_their_factors(nets):
    result = run("balance", "nets.py:plain", *SHAPE)
    assert result.exit_code == 0, result.output
    assert "2.weight" in result.stdout
    assert "path energy times" in result.stdout


def test_an_input_is_not_written_over(nets):
    torch.save(nets["net"]().state_dict(), "given.pt")
    Path("link.pt").symlink_to("given.pt")
    for out in ("given.pt", "./given.pt", "link.pt"):
        said = misused("balance", "nets.py:net", "--shape", "4", "--weights", "given.pt", "--out", out)
        assert "--out would write over the input given.pt" in said


def test_what_cannot_be_balanced_is_refused(nets):
    assert "--out must end in .pt" in misused("balance", "nets.py:net", "--shape", "4", "--out", "found.nc")
    program = torch.export.export(nets["net"](), (torch.zeros(2, 4),))
    torch.export.save(program, "net.pt2")
    assert "a .pt2 file cannot be balanced" in misused("balance", "net.pt2")
    said = refused("balance", "nets.py:net", "--shape", "4", "--trained")
    assert "balance is for initial weights; trained=False (--initial)" in said
    assert not Path("balanced.pt").exists()
