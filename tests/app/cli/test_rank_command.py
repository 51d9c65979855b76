"""`capalloc rank`: several models on one line."""

from __future__ import annotations

import json

import numpy as np

import capalloc
from capalloc.app.cli.compute import arguments_of_each
from commands import misused, refused, run


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


def test_arguments_are_of_all_models_or_of_one(folder):
    models = ("factories:net", "factories:net", "mlp", "--shape", "1,6,6", "--examples", "8", "--json", "--quiet")
    of_one = ("--arg", "2:channels=4", "--arg", "factories:net:act='Tanh'", "--arg", "mlp:depth=1")
    result = run("rank", *models, *of_one)
    assert result.exit_code == 0, result.output
    counts = {row["model"]: row["parameters"] for row in json.loads(result.stdout)["models"]}
    assert counts["factories:net act='Tanh'"] == 2 * 9 + 2 * 16 * 2
    assert counts["factories:net channels=4 act='Tanh'"] == 4 * 9 + 4 * 16 * 2
    assert "mlp" in counts
    refused_ = run("rank", *models, *of_one, "--arg", "channels=3")
    assert refused_.exit_code == 1
    assert "channels" in refused_.stderr  # mlp has none


def test_what_is_said_of_one_model_counts_above_what_is_said_of_all():
    found = arguments_of_each(["a", "b"], ["b:depth=2", "depth=1", "1:width=x=y"])
    assert found == {"a": ("a", ["depth=1", "width=x=y"]), "b": ("b", ["depth=2"])}


def test_arguments_of_no_model_are_refused(folder):
    assert "--arg must be name=value or model:name=value" in misused("rank", "lenet", "mlp", "--arg", "width")
    assert "--arg vit:depth=2 is of no model in the line: lenet, mlp" in misused(
        "rank", "lenet", "mlp", "--arg", "vit:depth=2"
    )
    assert "mlp depth=2 stands twice; give each its own --arg" in misused("rank", "mlp", "mlp", "--arg", "depth=2")


def test_a_ranking_has_no_picture(folder):
    """So its help offers none."""
    assert "--picture" not in run("rank", "--help").stdout
    assert "--picture" in run("audit", "--help").stdout


TWO = """
from torch import nn


class Two(nn.Module):
    def __init__(self, width=3):
        super().__init__()
        self.left, self.right, self.head = nn.Linear(3, width), nn.Linear(4, width), nn.Linear(width, 2)

    def forward(self, left, right):
        return self.head((self.left(left) + self.right(right)).relu())
"""


def test_text_models_are_ranked_on_ids_that_all_of_them_know(folder):
    small = ("--arg", "depth=1", "--arg", "heads=2", "--arg", "1:vocabulary=30", "--arg", "2:vocabulary=5")
    told = ("rank", "gpt-tiny", "bert-tiny", *small, "--shape", "6", "--examples", "4", "--json")
    result = run(*told)
    assert result.exit_code == 0, result.output
    assert "4 random inputs of 6 tokens" in result.stderr
    found = json.loads(result.stdout)["models"]
    assert {row["model"] for row in found} == {"gpt-tiny", "bert-tiny"}
    assert all(row["capacity"] > 0 for row in found)


def test_models_of_several_inputs_are_ranked_on_the_arrays_of_a_file(folder):
    np.savez("two.npz", left=np.ones((4, 3), np.float32), right=np.eye(4, dtype=np.float32))
    (folder / "two.py").write_text(TWO, encoding="utf-8")
    both = run("rank", "two.py:Two", "two.py:Two", "--arg", "2:width=5", "--data", "two.npz", "--json", "-q")
    assert both.exit_code == 0, both.output
    assert [row["parameters"] for row in json.loads(both.stdout)["models"]] == [5 * 9 + 12, 3 * 9 + 8]
