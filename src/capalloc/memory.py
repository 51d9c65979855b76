"""What fits: free memory of a device, and the refusal of what would not."""

from __future__ import annotations

import os

import torch

FLOAT64 = 8
#: Share of the free memory that a computation may plan to fill.
SHARE = 0.7


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
