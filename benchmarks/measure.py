"""`measure` against `torch.func.jacrev` of `jacfwd`: the mixed derivative alone, and with the same solve after it."""

from __future__ import annotations

import contextlib
import math
import multiprocessing
import resource
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.func import functional_call, jacfwd, jacrev

from benchmarks.table import Table, median_seconds
from capalloc._derivatives import choose_jacobian
from capalloc._linalg.leverage import polar_factor
from capalloc._measure.measure import measure
from capalloc._model.input_metric import input_metric
from capalloc._model.problem import prepare, seeded
from capalloc.app.demo import build
from capalloc.solvers import Dense

EXAMPLES = 16
BATCH = 4
REPEATS = 3
OURS = "capalloc, per-layer products"
#: Relative error up to which an answer counts as the same.
SAME = 1e-8


def run() -> Table:
    """Times in one process on one thread; peak memory in a fresh process each."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return compare()
    finally:
        torch.set_num_threads(threads)


def compare() -> Table:
    """All contenders on the same network and examples."""
    contenders = {
        OURS: capalloc_rows,
        "torch.func.jacrev of jacfwd, example by example": naive_rows,
        "torch.func.jacfwd of jacrev, example by example": forward_over_reverse_rows,
    }
    net, x = problem()
    reference = capalloc_rows(net, x)
    timings = {}
    for name, rows in contenders.items():
        rows(net, x[:1])  # warm up
        seconds, result = median_seconds(partial(rows, net, x), REPEATS)
        timings[name] = (seconds, relative_error(result, reference), peak_mib(rows))
    ours = timings[OURS][0]
    cells = [
        (f"Jacobian: {name}", f"{s * 1e3:.0f} ms", f"{s / ours:.1f}", f"{error:.0e}", f"{mib:.0f} MiB")
        for name, (s, error, mib) in timings.items()
    ]
    params = sum(p.numel() for p in net.parameters())
    return Table(
        "Mixed derivative and measured capacity of the demo's network",
        f"The demo's network (two convolutions, a maximum, a linear layer): {params} parameters, "
        f"64 inputs, 10 outputs, {len(x)} random examples, float64, one thread. Median of {REPEATS}. The Jacobian "
        "rows compare the mixed derivative alone, all that comes before it in `measure` included; the rows below add "
        "the same dense solve (capacity by parameter and input), which then takes most of the time. Error: largest "
        "difference over largest entry. Memory: peak resident size of a fresh process that does this alone, less "
        "that of one that only builds the network.",
        ("what", "time", "times ours", "relative error", "peak memory"),
        cells + end_to_end(net, x),
    )


def end_to_end(net: nn.Module, x: Tensor) -> list[tuple[str, ...]]:
    """The whole `measure` call against the naive Jacobian and the solve that `measure` uses."""
    seconds, allocation = median_seconds(partial(capacity, net, x), REPEATS)
    naive_seconds, table = median_seconds(partial(naive_capacity, net, x), REPEATS)
    ours = torch.from_numpy(allocation.values)
    error = relative_error(table.reshape_as(ours), ours)
    assert error < SAME, f"another answer: relative error {error:.1e}"
    return [
        ("Capacity: capalloc.measure", f"{seconds * 1e3:.0f} ms", "1.0", "", f"{peak_mib(capacity):.0f} MiB"),
        (
            "Capacity: jacrev of jacfwd, same solver",
            f"{naive_seconds * 1e3:.0f} ms",
            f"{naive_seconds / seconds:.1f}",
            f"{error:.0e}",
            f"{peak_mib(naive_capacity):.0f} MiB",
        ),
    ]


def problem() -> tuple[nn.Module, Tensor]:
    """The demo's network and random 8 x 8 images."""
    with seeded(0, torch.device("cpu")):
        x = torch.rand(EXAMPLES, 1, 8, 8, dtype=torch.float64)
    return build(0).double().eval().requires_grad_(False), x


def capalloc_rows(net: nn.Module, x: Tensor) -> Tensor:
    """(examples, outputs, inputs, params), everything included that `measure` does to get there."""
    with torch.no_grad():
        own = prepare(net, x, dtype=torch.float64)
        space = input_metric(None, own, intercept=False)
        replay = partial(seeded, 0, x.device)
        jacobian = choose_jacobian(own, x[:2], replay).jacobian
        directions = next(space.chunks(space.num_inputs))
        rows = x.new_empty(len(x), net(x[:1]).shape[1], space.num_inputs, own.num_params)
        for start in range(0, len(x), BATCH):
            parts = jacobian(x[start : start + BATCH], directions, replay)
            columns = [parts[name].flatten(3) for name in own.params]
            torch.cat(columns, 3, out=rows[start : start + BATCH])
        return rows


def mixed(net: nn.Module, x: Tensor, outer: Callable, inner: Callable, slope_first: bool) -> dict[str, Tensor]:
    """d/dtheta grad_x f of one example, in either order."""
    params = {name: p.detach() for name, p in net.named_parameters()}

    def f(values: dict[str, Tensor], point: Tensor) -> Tensor:
        return functional_call(net, values, (point[None],))[0]

    if slope_first:
        return outer(inner(f, argnums=1), argnums=0)(params, x)
    return outer(inner(f, argnums=0), argnums=1)(params, x)


def naive_rows(net: nn.Module, x: Tensor) -> Tensor:
    return torch.stack([_rows(net, mixed(net, one, jacrev, jacfwd, True)) for one in x])


def forward_over_reverse_rows(net: nn.Module, x: Tensor) -> Tensor:
    def rows(one: Tensor) -> Tensor:
        jacobian = mixed(net, one, jacfwd, jacrev, False)
        return torch.cat([j.flatten(-one.ndim).flatten(1, -2).mT for j in jacobian.values()], -1)

    return torch.stack([rows(one) for one in x])


def _rows(net: nn.Module, jacobian: dict[str, Tensor]) -> Tensor:
    """(outputs, *input, *parameter) by name to (outputs, inputs, params)."""
    sizes = {name: p.numel() for name, p in net.named_parameters()}
    return torch.cat([j.reshape(j.shape[0], -1, sizes[name]) for name, j in jacobian.items()], -1)


def capacity(net: nn.Module, x: Tensor):
    """kappa_i of `measure` without the constant input, in the coordinates and the metric of the naive rows."""
    plain = Dense(coordinates="plain")
    return measure(net, x, ridge=1e-3, intercept=False, metric="identity", solver=plain).capacity


def naive_capacity(net: nn.Module, x: Tensor) -> Tensor:
    """The same from the naive Jacobian."""
    C = naive_rows(net, x) / math.sqrt(len(x))
    polar, _ = polar_factor(C.flatten(0, 2), 1e-3)
    return polar.square().sum(1).reshape(C.shape[:3]).sum((0, 1))


def relative_error(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max())


def peak_mib(function: Callable[[nn.Module, Tensor], object]) -> float:
    """Peak resident memory of a fresh process that calls `function`, beyond that of building the network."""
    return (_fresh_peak(function) - _bare_peak()) / 1024


@cache
def _bare_peak() -> int:
    return _fresh_peak(None)


def _fresh_peak(function: Callable[[nn.Module, Tensor], object] | None) -> int:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        peak: int = pool.apply(_peak, (function,))
        pool.close()
        pool.join()
    return peak


def _peak(function: Callable[[nn.Module, Tensor], object] | None) -> int:
    torch.set_num_threads(1)
    net, x = problem()
    if function is None:
        net(x)
    else:
        function(net, x)
    with contextlib.suppress(OSError):  # Linux: ru_maxrss would include the parent's peak
        (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in line)
        return int(line.split()[1])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
