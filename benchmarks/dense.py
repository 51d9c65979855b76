"""The dense solver of `measure` beside the plain matrix product that its Gram matrix takes."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

import capalloc
from benchmarks.table import Table
from capalloc._derivatives import Constraints, choose_jacobian
from capalloc._linalg.gram_root import GramPass, gram_error, root_of_gram
from capalloc._linalg.leverage import Scores, Triangle
from capalloc._linalg.row_block import RowBlock
from capalloc._linalg.slot_grams import SlotGrams
from capalloc._measure.dense import scores_in_passes
from capalloc._measure.task import make_task
from capalloc._model.problem import seeded
from capalloc._runtime.steps import Steps

EXAMPLES = 32
BATCH = 4
REPEATS = 3
RIDGE = 1e-3
#: Relative error of capacities that products in float64 keep.
ACCURACY = 1e-8
#: A ridge and a relative error of capacities at which float32 products may be taken.
COARSE_RIDGE, COARSE = 0.1, 1e-2


def problem() -> tuple[nn.Module, Tensor]:
    """A convolutional classifier of 8 x 8 images, and random images."""
    with seeded(0, torch.device("cpu")):
        net = nn.Sequential(
            *(nn.Conv2d(1, 6, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(6, 12, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Flatten(), nn.Linear(48, 10)),
        )
        return net.eval(), torch.randn(EXAMPLES, 1, 8, 8)


def constraints_of(net: nn.Module, x: Tensor) -> tuple[Constraints, list[int]]:
    """The rows of constraints as `measure` makes them, and the sizes of the parameter tensors."""
    task = make_task(net, x)
    choice = choose_jacobian(task.problem, task.x[:2], partial(task.replay, 0))
    chunk = task.space.num_inputs
    sizes = [p.numel() for p in task.problem.params.values()]
    return Constraints(task.problem, choice.jacobian, task.space, task.x, BATCH, chunk, task.replay, len(x)), sizes


def run() -> Table:
    """On one thread, contenders in turn."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.no_grad():
            return compare()
    finally:
        torch.set_num_threads(threads)


def gram_stage(blocks: list[RowBlock], dtype: torch.dtype, num_slots: int = 0) -> Tensor:
    """G by products in that dtype, both triangles; with a number of slots by slot first."""
    stage = GramPass(dtype, num_slots=num_slots)
    gram = stage.whole(stage.over(blocks))
    assert gram is not None
    return gram


def compare() -> Table:
    """Stages of the solver over the plain product of the same shapes and dtype."""
    net, x = problem()
    constraints, sizes = constraints_of(net, x)
    blocks = list(constraints())
    C = torch.cat([block.rows for block in blocks])
    single = C.float()
    gram = gram_stage(blocks, torch.float64)
    num_slots = constraints.space.num_slots
    assert gram_error(float(gram.trace()), RIDGE, len(C), torch.float64) < ACCURACY  # else the solver would take QR

    def solved(made: list[RowBlock], ridge: float, accuracy: float = ACCURACY, by_slot: bool = True) -> Scores:
        steps = Steps(lambda start: made)
        return scores_in_passes(steps, sizes, num_slots, len(C), ridge, accuracy, by_slot=by_slot)

    filled = [replace(block, filled=torch.ones_like(block.filled)) for block in blocks]
    product = {torch.float64: "torch.mm, float64", torch.float32: "torch.mm, float32"}
    calls: dict[str, Callable[[], object]] = {
        product[torch.float64]: lambda: torch.mm(C.T, C),
        product[torch.float32]: lambda: torch.mm(single.T, single),
        "Gram stage, float64": lambda: gram_stage(blocks, torch.float64),
        "Gram stage, float32 products, float64 sums": lambda: gram_stage(blocks, torch.float32),
        "Gram stage by input, float64": lambda: gram_stage(blocks, torch.float64, num_slots),
        "Gram stage by input, float64, no column skipped": lambda: gram_stage(filled, torch.float64, num_slots),
        "QR stage (no ridge)": lambda: Triangle().over(blocks),
        "root of the Gram matrix": lambda: root_of_gram(gram, RIDGE, len(C), torch.float64),
        "Gram, root and scores, float64": lambda: solved(blocks, RIDGE),
        "Gram, root and scores, float64, no column skipped": lambda: solved(filled, RIDGE),
        "Gram, root and scores, float64, scores of rows": lambda: solved(blocks, RIDGE, by_slot=False),
        "the same, no column skipped": lambda: solved(filled, RIDGE, by_slot=False),
        "Gram, root and scores, float32": lambda: solved(blocks, COARSE_RIDGE, COARSE, by_slot=False),
        "QR, root and scores (no ridge)": lambda: solved(blocks, 0.0),
        "rows of constraints": lambda: list(constraints()),
        "rows, Gram, root and scores, float64": lambda: solved(list(constraints()), RIDGE),
        "rows, Gram, root and scores, float32": lambda: solved(list(constraints()), COARSE_RIDGE, COARSE),
        "capalloc.measure, model and checks included": lambda: capalloc.measure(net, x, ridge=RIDGE, batch_size=BATCH),
    }
    medians = timed(calls)
    by_input = sum(strip.nbytes for strip in SlotGrams.of(blocks, num_slots).strips)
    rows = []
    for name, t in medians.items():
        like = torch.float32 if "float32" in name else torch.float64
        rows.append((name, f"{t:.3f} s", f"{t / medians[product[like]]:.2f}"))
    return Table(
        "The dense solver of `measure`",
        f"A network of two convolutions and a linear layer: {len(C)} rows of constraints ({EXAMPLES} examples), "
        f"{C.shape[1]} parameters, ridge {RIDGE}, one thread, medians of {REPEATS} rounds in which all take turns. "
        f"Ratio: to torch.mm of the same rows in the same dtype. Float32 products: ridge {COARSE_RIDGE}, "
        f"accuracy {COARSE}. Rows take {C.nbytes / 2**20:.0f} MiB, their Gram matrices by input "
        f"{by_input / 2**20:.0f}, in the place of kept rows.",
        ("stage", "time", "over torch.mm"),
        rows,
    )


def timed(calls: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Medians in seconds; the first round sets buffers up."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(REPEATS + 1):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            if turn:
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}
