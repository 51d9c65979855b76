"""`capalloc rank`: several models on one line."""

from __future__ import annotations

import json

import numpy as np

import capalloc
from commands import refused, run


def test_the_command_line(folder):
    np.save("labels.npy", np.arange(8) % 2)
    result = run("rank", "factories:net", "factories:made", "--shape", "1,6,6", "--examples", "8", "--labels",
                 "labels.npy", "--by", "synflow", "--json", "--quiet", "--out", "found.nc")  # fmt: skip
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["by"] == "synflow"
    assert sorted(found["order"]) == ["factories:made", "factories:net"]
    assert found["settings"]["labelled"] is True
    assert capalloc.load("found.nc").order == found["order"]


def test_the_command_refuses_models_of_other_inputs(folder):
    assert "models are made for inputs of shapes" in refused("rank", "lenet", "resnet18", code=2)
    assert "--by must be one of" in refused("rank", "factories:net", "--shape", "1,6,6", "--by", "speed", code=2)
