"""The design page: time per update of a card, on the server."""

from __future__ import annotations

from benchmarks.table import Table, median_seconds
from capalloc.app.design import Design, read
from capalloc.app.design.dash_app import fill

#: The largest inputs that the page offers, and its default.
INPUTS = {"1-D, 512": {"ndim": 1, "size": 512}, "2-D, 45 x 45": {"size": 45}, "2-D, 64 x 64": {"size": 64}}
DEPTHS = (10, 50, 100)


def run() -> Table:
    return Table(
        "Design page",
        "Milliseconds for one update of a design (numbers, map, table and code; median of 9): the numbers alone / all "
        "of it. Kernel 3 with ReLU, and kernel 11 with GELU.",
        ("input", "kernel", *(f"{depth} layers" for depth in DEPTHS)),
        [row(name, kernel) for name in INPUTS for kernel in (3, 11)],
    )


def row(name: str, kernel: int) -> tuple[str, ...]:
    activation = "relu" if kernel == 3 else "gelu"
    designs = [Design(depth=depth, kernel=kernel, activation=activation, **INPUTS[name]) for depth in DEPTHS]
    return (name, str(kernel), *map(times, designs))


def times(design: Design) -> str:
    numbers, _ = median_seconds(lambda: read(design), 9)
    whole, _ = median_seconds(lambda: fill("A", read(design)), 9)
    return f"{1000 * numbers:.0f} / {1000 * whole:.0f}"
