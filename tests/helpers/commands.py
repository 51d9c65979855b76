"""The command line run in this process, and a module of factories for it."""

from __future__ import annotations

from typer.testing import CliRunner

from capalloc.app.cli import app

RUNNER = CliRunner()


FACTORIES = """
import torch
from torch import nn

def net(channels=2, act="ReLU"):
    flat = channels * 16
    layers = [nn.Conv2d(1, channels, 3, bias=False), getattr(nn, act)(), nn.Flatten(), nn.Linear(flat, 2, bias=False)]
    return nn.Sequential(*layers)

def convs():
    return nn.Sequential(nn.Conv1d(1, 2, 3), nn.ReLU(), nn.Conv1d(2, 1, 3, stride=2))

class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(3, 2), nn.Linear(3, 4)

    def forward(self, x):
        return {"one": self.one(x).relu(), "two": self.two(x)}

class Holder:
    double = staticmethod(lambda: net().double())

made = net()
number = 3

def nothing():
    return number
"""


def run(*arguments: str):
    return RUNNER.invoke(app, list(arguments))


def misused(*arguments: str) -> str:
    """The one line that a command refuses a value with that it cannot have."""
    return refused(*arguments, code=2)


def refused(*arguments: str, quiet: bool = True, code: int = 1) -> str:
    """The one line that a command refuses its arguments with."""
    result = run(*arguments, *["--quiet"] * quiet)
    assert result.exit_code == code, result.output
    assert result.stdout == ""
    assert result.stderr.startswith("capalloc: ")
    assert result.stderr.count("\n") == 1
    return result.stderr
