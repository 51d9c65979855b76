"""What the default answer of `propagate` costs on the networks people use, in passes of the model."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

import capalloc
from benchmarks.fresh_process import print_rows, rows_of
from benchmarks.propagate import forward_backward
from benchmarks.table import Table
from capalloc import architectures
from capalloc._derivatives import exact_derivatives
from capalloc._measure.example_sums import ExampleSums
from capalloc._measure.examples import plan_examples
from capalloc._measure.precondition import inverse_root
from capalloc._measure.task import make_task
from capalloc._model.problem import random_signs
from capalloc._propagate.effort import SAMPLE_OF_LARGE
from capalloc._runtime.steps import Steps
from capalloc._settings import Block

EXAMPLES, TOKENS = 2, 64


class Embedded(nn.Module):
    """A model of tokens that reads embeddings, and answers at the last token."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model(inputs_embeds=x).last_hidden_state[:, -1]


class Pooled(nn.Module):
    """A vision transformer's class token."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x).last_hidden_state[:, 0]


def resnet50() -> tuple[nn.Module, Tensor]:
    return architectures.make("resnet50"), torch.randn(EXAMPLES, 3, 224, 224)


def vit_b16() -> tuple[nn.Module, Tensor]:
    from transformers import ViTConfig, ViTModel

    return Pooled(ViTModel(ViTConfig(), add_pooling_layer=False)), torch.randn(EXAMPLES, 3, 224, 224)


def gpt2() -> tuple[nn.Module, Tensor]:
    from transformers import GPT2Config, GPT2Model

    model = GPT2Model(GPT2Config())
    x = model.wte(torch.randint(50257, (EXAMPLES, TOKENS))).detach()
    model.wte = nn.Identity()  # embeddings are the inputs here
    return Embedded(model), x


MODELS: dict[str, Callable[[], tuple[nn.Module, Tensor]]] = {"ResNet-50": resnet50, "ViT-B/16": vit_b16, "GPT-2": gpt2}


def run() -> Table:
    return Table(
        "The default answer at real size, in passes of the model",
        f"{EXAMPLES} examples of 224 x 224, or {TOKENS} tokens; random combinations of outputs of each, two for the "
        "whole call and one for its parts; processor time of one thread, each network in a process of its own. A pass "
        "is forward and backward, timed before and after: of one example for the whole call, of all examples for its "
        "parts. A step is one product with the constraints and one with their transpose.",
        (
            "network",
            "parameters",
            "seconds of a pass",
            "whole call",
            "factors",
            "blocks, a probe",
            "a step",
            "said",
            "of regions",
        ),
        [
            ("asked, at most", "", "", "100", "40", "8", "8", "", ""),
            *(row for name in MODELS for row in rows_of("real_size", name)),
        ],
    )


def in_passes(model: nn.Module, x: Tensor) -> tuple[str, ...]:
    before = seconds_of_pass(model, x[:1])
    answer, took = timed(lambda: capalloc.propagate(model, x, solver=Block()))
    one = (before + seconds_of_pass(model, x[:1])) / 2
    whole = seconds_of_pass(model, x)
    with exact_derivatives():
        task = make_task(model, x)
        examples, plan = plan_examples(task, Block(output_probes=1), 1, SAMPLE_OF_LARGE.longest)
        examples = replace(examples, batch_size=plan.batch_size, vectors=plan.chunk)
        root, factors = timed(lambda: inverse_root(examples, SAMPLE_OF_LARGE))
        held = examples.prepared()
        sums = ExampleSums(held, Steps(held))
        signs = random_signs((1, examples.num_params), examples.x, examples.generator(9, 0))
        alone = timed(lambda: sums.push(root.push(signs)))[1]
        step = statistics.median(timed(lambda: sums.gram(signs.double()))[1] for _ in range(3))
    params = sum(p.numel() for p in model.parameters())
    said = [f"{answer.attrs['missing'] + answer.attrs[part]:.2f}" for part in ("noise", "noise_of_regions")]
    parts = (f"{seconds / whole:.1f}" for seconds in (factors, alone, step))
    return f"{params / 1e6:.1f} M", f"{one:.2f}", f"{took / one:.0f}", *parts, *said


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    """What work gives, and its processor time: other programs on the machine are not counted."""
    began = time.process_time()
    found = work()
    return found, time.process_time() - began


def seconds_of_pass(model: nn.Module, x: Tensor) -> float:
    return statistics.median(timed(lambda: forward_backward(model, x))[1] for _ in range(3))


if __name__ == "__main__":
    torch.set_num_threads(1)
    for name in sys.argv[1:]:
        torch.manual_seed(0)  # what is said of the distance depends on the weights
        model, x = MODELS[name]()
        print_rows([(name, *in_passes(model.eval(), x))])
