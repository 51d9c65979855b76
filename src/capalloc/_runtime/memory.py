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
        raise MemoryError(f"{what} needs {gib(num_bytes)}, and {gib(budget)} may be used; {way_out}")


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

    @property
    def stored_bytes(self) -> int:
        """Of all rows."""
        return FLOAT64 * self.rows * self.params

    @property
    def solver_bytes(self) -> int:
        """Of the dense solver's own matrices."""
        return FLOAT64 * 12 * min(self.rows, self.params) ** 2 + (3 * self.stored_bytes if self.wide else 0)


@dataclass(frozen=True)
class Plan:
    """How the work is cut: examples and directions at a time, whether rows are kept between passes, bytes of it all."""

    batch_size: int
    chunk: int
    keep: bool
    forecast: int = 0


def check_solver(size: Size, device: torch.device) -> float:
    """Bytes that are left beside the dense solver's own matrices, or `MemoryError` if these would not fit."""
    budget = SHARE * available_bytes(device)
    require(
        size.solver_bytes,
        budget,
        f"the exact solver for {size.params} parameters and {size.rows} rows of constraints",
        "take fewer parameters with params= or fewer examples",
    )
    return budget - size.solver_bytes


def make_plan(size: Size, forecast: int, batch_size: int | str, device: torch.device) -> Plan:
    """Cut the work to what the free memory of `device` holds, or raise `MemoryError`.

    `forecast` is how many float64 numbers one example and direction hold at once.
    """
    room = check_solver(size, device)
    per_direction = FLOAT64 * forecast
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
    keep = size.wide or size.stored_bytes < KEPT_SHARE * room
    kept = size.stored_bytes if keep and not size.wide else 0
    return Plan(batch_size, chunk, keep, size.solver_bytes + batch_size * chunk * per_direction + kept)


def _available_linux() -> int:
    """Free memory counting the page cache, which the kernel gives back; 0 where it is not reported."""
    try:
        with open("/proc/meminfo") as lines:
            fields = dict(line.split(":", 1) for line in lines)
        return 1024 * int(fields["MemAvailable"].split()[0])
    except (OSError, KeyError, ValueError):
        return 0


def gib(num_bytes: float) -> str:
    """In words."""
    return f"{num_bytes / 2**30:.3g} GiB"
