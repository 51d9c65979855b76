"""What calls cost beside what was asked of them, in processor time of this process."""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from unittest.mock import patch

import torch
from torch import Tensor, nn

import capalloc
from benchmarks.architectures import CONSTRAINTS, EPOCHS, NETWORKS, SEED, built, trained
from benchmarks.fresh_process import print_rows, rows_of
from benchmarks.measure import problem as demo_problem
from benchmarks.propagate import Stack, exported, forward_backward, image, resnet50
from benchmarks.real_size import timed
from benchmarks.start import processor_seconds
from benchmarks.table import Table, median_seconds
from capalloc import architectures
from capalloc._graph.capture import capture
from capalloc._model.problem import prepare
from capalloc.app.demo import load_digits
from capalloc.solvers import Block, Stochastic

REPEATS = 5
#: Those of docs/validation.md that took longest.
SLOW_ONCE = ("LSTM", "GRU", "MLP-Mixer", "ViT", "BERT", "Swin", "U-Net, transposed")
#: Depth and groups of a SENet-154.
SENET_DEPTHS, SENET_GROUPS = (3, 8, 36, 3), 64


class SqueezedBlock(nn.Module):
    """A bottleneck with a grouped convolution, squeezed and excited before the skip."""

    def __init__(self, ins: int, width: int, stride: int) -> None:
        super().__init__()
        outs = 2 * width

        def norm(size: int, conv: nn.Module) -> list[nn.Module]:
            return [conv, nn.BatchNorm2d(size), nn.ReLU()]

        self.branch = nn.Sequential(
            *norm(width, nn.Conv2d(ins, width, 1, bias=False)),
            *norm(outs, nn.Conv2d(width, outs, 3, stride, 1, groups=SENET_GROUPS, bias=False)),
            *norm(outs, nn.Conv2d(outs, outs, 1, bias=False))[:-1],
        )
        self.excite = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(outs, outs // 16, 1),
            nn.ReLU(),
            nn.Conv2d(outs // 16, outs, 1),
            nn.Sigmoid(),
        )
        alike = stride == 1 and ins == outs
        self.skip = nn.Identity() if alike else nn.Sequential(*norm(outs, nn.Conv2d(ins, outs, 1, stride))[:-1])

    def forward(self, x: Tensor) -> Tensor:
        h = self.branch(x)
        return torch.relu(self.skip(x) + h * self.excite(h))


def senet154() -> nn.Module:
    """The blocks of a SENet-154, 3, 8, 36 and 3, between a stem and a pooled head."""
    layers: list[nn.Module] = [nn.Conv2d(3, 128, 7, 4, 3), nn.ReLU()]
    ins = 128
    for stage, depth in enumerate(SENET_DEPTHS):
        for k in range(depth):
            layers.append(SqueezedBlock(ins, 128 * 2**stage, 2 if stage and not k else 1))
            ins = 256 * 2**stage
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(ins, 1000)).eval()


def seconds(call: Callable[[], object], repeats: int = REPEATS) -> float:
    """Median processor time of a call, after one to get ready where there are several."""
    if repeats > 1:
        call()
    return statistics.median(timed(call)[1] for _ in range(repeats))


def once(call: Callable[[], object]) -> tuple[str, str]:
    """Processor time of one thread, and then the time of the clock with two."""
    alone = seconds(call, 1)
    return f"{alone:.1f} s", f"{on_two_threads(call):.1f} s"


def on_two_threads(call: Callable[[], object]) -> float:
    torch.set_num_threads(2)
    try:
        return median_seconds(call, 1)[0]
    finally:
        torch.set_num_threads(1)


def walk() -> Iterator[tuple[str, ...]]:
    ours = lambda: architectures.make("resnet50").eval()  # noqa: E731
    x = image(224)
    for name, make in (("transformers' ResNet-50", resnet50), ("our own ResNet-50", ours)):
        model = make()
        program = exported(model, x)
        one_pass = seconds(partial(forward_backward, model, x))
        for what, asked, given in (("walk alone", 3, program), ("with its capture", 5, model)):
            found = seconds(partial(capalloc.propagate, given, x, solver="markov")) / one_pass
            yield f"{name}, Markov rule, {what}", f"{asked} passes", f"{found:.1f} passes"


def captures() -> Iterator[tuple[str, ...]]:
    for name, model in (("the blocks of a SENet-154", senet154()), ("DenseNet-121", architectures.make("densenet121"))):
        problem = prepare(model.eval(), image(224), None, None, traced=True, by_input=True)
        capture(problem, 1)
        yield f"capture of {name}", "6 s", f"{seconds(partial(capture, problem, 1), 3):.1f} s"


def depth() -> Iterator[tuple[str, ...]]:
    small = torch.randn(8, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    for name, model, x, asked in (
        ("a ResNet-18 at 64 x 64", architectures.make("resnet18").eval(), small, 10),
        ("a stack of 50 blocks, 100 layers", Stack(50).eval(), small[..., :32, :32], 20),
    ):
        yield f"`diagnose` of {name}, 8 examples", f"{asked} s", *once(partial(capalloc.diagnose, model, x))


def table() -> Iterator[tuple[str, ...]]:
    with tempfile.TemporaryDirectory() as folder:
        saved = str(Path(folder) / "found.nc")
        command = ["propagate", "resnet50", "--solver", "markov", "--table", "--quiet", "--out", saved]
        found, clock = of_command(command), median_seconds(partial(of_command, command, 2), 1)[0]
    yield "`capalloc propagate resnet50 --table`", "60 s", f"{found:.0f} s", f"{clock:.0f} s"


def logging() -> Iterator[tuple[str, ...]]:
    from capalloc.callbacks import CapacityLogger

    model = architectures.make("resnet18")
    x = torch.randn(64, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    steps = {number: seconds(partial(forward_backward, model, x[:number])) for number in (8, 64)}
    x = x[:8]
    with tempfile.TemporaryDirectory() as folder, CapacityLogger(folder, x) as logger:
        found = seconds(partial(logger.log, model, 0), 3)
    for number, step in steps.items():
        what = f"a log after the first, ResNet-18 at 64 x 64, 8 examples, beside a step of {number}"
        yield what, "1 step", f"{found / step:.2g} steps"


def limited() -> Iterator[tuple[str, ...]]:
    model, x = architectures.make("gpt-tiny"), torch.randn(8, 64, 128, generator=torch.Generator().manual_seed(0))
    last = lambda scores: scores[:, -1]  # noqa: E731
    calls: dict[str, Callable[[], object]] = {
        "measure(solver=Stochastic(max_seconds=1))": partial(
            capalloc.measure, model, x, last, ridge=1e-3, solver=Stochastic(max_seconds=1)
        ),
        "propagate(solver=Block(max_seconds=1))": partial(
            capalloc.propagate, model, x, last, solver=Block(max_seconds=1)
        ),
    }
    for name, call in calls.items():
        yield f"`{name}`, gpt-tiny, scores of the last of 64 tokens", "2 s", f"{seconds(call, 1):.1f} s"


def audited() -> Iterator[tuple[str, ...]]:
    model, x = architectures.make("lenet"), torch.randn(64, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    found = seconds(partial(capalloc.audit, model, x, seconds=1), 3)
    yield "`audit(seconds=1)` of lenet", "2 s", f"{found:.1f} s"
    found = of_command(["audit", "lenet", "--seconds", "1", "--quiet"])
    yield "`capalloc audit lenet --seconds 1`, its start included", "", f"{found:.1f} s"


def small() -> Iterator[tuple[str, ...]]:
    digits = load_digits(SEED)
    for name in SLOW_ONCE:
        module, lesson = NETWORKS[name]
        x, y = lesson.inputs(digits.train_images), lesson.targets(digits.train_images, digits.train_labels)
        model = trained(built(module, lesson, SEED), x, y, lesson, EPOCHS, SEED).double()
        test = lesson.inputs(digits.test_images).double()
        params = sum(p.numel() for p in model.parameters())
        test = test[: -(-CONSTRAINTS * params // model(test[:1]).numel())]
        found = once(partial(capalloc.measure, model, test, metric="variance"))
        yield f"`measure` of the trained {name}, {params} parameters", "15 s", *found
    network, images = demo_problem()
    yield "`measure` of the demo's 1928 parameters, 16 images", "4 s", *once(partial(capalloc.measure, network, images))


def of_command(arguments: list[str], threads: int = 1) -> float:
    with patch.dict(os.environ, {"OMP_NUM_THREADS": str(threads)}):
        return processor_seconds(["-W", "ignore", "-m", "capalloc.app.cli", *arguments])


PARTS = ("walk", "captures", "depth", "table", "logging", "limited", "audited", "small")


def run() -> Table:
    rows = [row for part in PARTS for row in rows_of("limits", part)]
    return Table(
        "Asked and found",
        f"Processor time of one thread; ratios of one run, medians of {REPEATS}, to one pass of the same model forward "
        "and backward. Calls of seconds once, and most once more on two threads by the clock; of the command line, "
        "imports included. Parts in processes of their own.",
        ("what", "asked, at most", "found", "two threads"),
        [(*row, "")[:4] for row in rows],
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    for wanted in sys.argv[1:]:
        print_rows(globals()[wanted]())
