"""What fits: free memory of a device, how to cut the work to it, and the refusal of what would not fit."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch

FLOAT64 = 8
#: Share of the free memory that a computation may plan to fill.
SHARE = 0.7
#: Bytes of working memory that a batch aims at, unless the solver gains from more rows.
BATCH_BYTES = 2**28
#: Rows of constraints are kept between passes if they take less than this share of the room.
KEPT_SHARE = 0.5


def available_bytes(device: torch.device) -> int:
    """Free memory of the device, in bytes."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    page = os.sysconf("SC_PAGE_SIZE")
    free = page * os.sysconf("SC_AVPHYS_PAGES")
    return max(free, _available_linux())


def require(num_bytes: float, budget: float, what: str, way_out: str) -> None:
    """Raise `MemoryError` with the numbers and the way out, if `num_bytes` exceeds `budget`."""
    if num_bytes > budget:
        raise MemoryError(f"{what} needs {_gib(num_bytes)}, and {_gib(budget)} may be used; {way_out}")


@dataclass(frozen=True)
class Size:
    """Of the constraint matrix: examples x outputs x slots rows, params columns."""

    examples: int
    outputs: int
    slots: int
    params: int

    @property
    def rows(self) -> int:
        """Number of rows in all."""
        return self.examples * self.outputs * self.slots

    @property
    def wide(self) -> bool:
        """Fewer rows than parameters."""
        return self.rows < self.params


@dataclass(frozen=True)
class Plan:
    """How the work is cut: examples and directions at a time, and whether rows are kept between passes."""

    batch_size: int
    chunk: int
    keep: bool


def make_plan(size: Size, forecast: int, batch_size: int | str, device: torch.device) -> Plan:
    """Cut the work to what the free memory of `device` holds, or raise `MemoryError`.

    `forecast` is how many float64 numbers one example and direction hold at once.
    """
    budget = SHARE * available_bytes(device)
    stored = FLOAT64 * size.rows * size.params
    small = min(size.rows, size.params)
    solver = FLOAT64 * 12 * small**2 + (3 * stored if size.wide else 0)
    require(
        solver,
        budget,
        f"the exact solver for {size.params} parameters and {size.rows} rows of constraints",
        "take fewer parameters with params= or fewer examples",
    )
    per_direction = FLOAT64 * forecast
    room = budget - solver
    require(
        per_direction,
        room,
        f"one example along one of {size.slots} directions, with {size.outputs} outputs",
        "take fewer parameters with params= or fewer outputs with outputs=",
    )
    chunk = max(1, min(size.slots, int(room / per_direction)))
    if isinstance(batch_size, str):
        aim = min(room / 2, max(BATCH_BYTES, 3 * FLOAT64 * 4 * size.params**2))
        batch_size = max(1, min(size.examples, int(aim / (per_direction * size.slots))))
    elif batch_size > 1:
        require(
            min(batch_size, size.examples) * per_direction * size.slots,
            room,
            f"a batch of {batch_size} examples",
            'lower batch_size or leave it "auto"',
        )
    keep = size.wide or stored < KEPT_SHARE * room
    return Plan(batch_size, chunk, keep)


def _available_linux() -> int:
    """Free memory counting the page cache, which the kernel gives back; 0 where it is not reported."""
    try:
        with open("/proc/meminfo") as lines:
            fields = dict(line.split(":", 1) for line in lines)
        return 1024 * int(fields["MemAvailable"].split()[0])
    except (OSError, KeyError, ValueError):
        return 0


def _gib(num_bytes: float) -> str:
    return f"{num_bytes / 2**30:.3g} GiB"
