"""Memory: what is free on a device, and the refusal of what would not fit.

Each kind of work states what it costs; a `Budget` says how much of it fits at a time.
"""

from __future__ import annotations

import ctypes
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import torch

from capalloc._runtime.memory_limits import bytes_within_limits

FLOAT64 = 8
#: Share of the free memory that a computation may plan to fill.
SHARE = 0.7
#: Numbers in a model from which on it is worth some hundredths of a second to return what is free.
LEAST_GIVEN_BACK = 2**21
#: Bytes of work from which on it is worth as much to keep what is free.
KEPT_FROM = 2**26
#: Settings of glibc by their numbers in malloc.h, and the values that its own adjustments lead to: it maps what is
#: longer than a threshold, which what is freed raises to 32 MiB, and returns free memory beyond twice that.
TRIM_THRESHOLD, MMAP_THRESHOLD, MMAP_MAX = -1, -3, -4
USUAL_MALLOC = ((MMAP_MAX, 2**16), (MMAP_THRESHOLD, 2**25), (TRIM_THRESHOLD, 2**26))
#: What of the environment says how memory is kept.
OF_MALLOC = ("MALLOC_MMAP_", "MALLOC_TRIM_", "GLIBC_TUNABLES")


@dataclass(frozen=True)
class Budget:
    """Bytes that may still be filled."""

    num_bytes: float

    def set_aside(self, num_bytes: float, what: str, way_out: str) -> Budget:
        """Return what is left after `num_bytes`.

        Raises:
            MemoryError: they do not fit; with the numbers and the way out.

        """
        if num_bytes > self.num_bytes:
            raise MemoryError(f"{what} needs {gib(num_bytes)}, and {gib(self.num_bytes)} may be used; {way_out}")
        return Budget(self.num_bytes - num_bytes)

    def batch_size(self, each: float, examples: int, asked: int | str, aim: float) -> int:
        """Return how many examples of `each` bytes go at a time: as many as asked, or for "auto" as fill `aim` bytes.

        Raises:
            MemoryError: as many as asked do not fit.

        """
        if isinstance(asked, str):
            return max(1, min(examples, int(min(aim, self.num_bytes) / each)))
        self.set_aside(
            min(asked, examples) * each, f"a batch of {asked} examples", 'lower batch_size or leave it "auto"'
        )
        return min(asked, examples)


def budget_of(device: torch.device, max_bytes: float | None = None) -> Budget:
    """Return `max_bytes`, or a share of the free memory of a device.

    Raises:
        ValueError: no such number of bytes.

    """
    if max_bytes is not None and not 0 < max_bytes < math.inf:
        raise ValueError(f"max_bytes must be a positive, finite number or None, got {max_bytes!r}")
    return Budget(SHARE * available_bytes(device) if max_bytes is None else max_bytes)


def available_bytes(device: torch.device) -> int:
    """Return the free memory of the device, in bytes; of the machine's no more than limits leave to this process."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    page = os.sysconf("SC_PAGE_SIZE")
    free = page * os.sysconf("SC_AVPHYS_PAGES")
    return int(min(max(free, _available_linux()), bytes_within_limits()))


def _available_linux() -> int:
    """Free memory counting the page cache, which the kernel gives back; 0 where it is not reported."""
    try:
        with open("/proc/meminfo") as lines:
            fields = dict(line.split(":", 1) for line in lines)
        return 1024 * int(fields["MemAvailable"].split()[0])
    except (OSError, KeyError, ValueError):
        return 0


def give_back(numbers: int) -> None:
    """Return freed memory to the system beside vectors of so many numbers, where they are long.

    The C library, glibc, keeps what layers leave in pieces, and grows for the next that fits into none of them.
    """
    if numbers >= LEAST_GIVEN_BACK and (glibc := _glibc()) is not None:
        glibc.malloc_trim(0)


@contextmanager
def memory_kept(num_bytes: float) -> Iterator[None]:
    """Keep what is freed for what comes next, in work of so many bytes that makes the same layers again and again.

    glibc returns long tensors to the system one by one, and a page that comes back is cleared first: a fifth of the
    time of products with convolutions, two fifths at worst. A user's own settings stay.
    """
    glibc = _glibc()
    if glibc is None or num_bytes < KEPT_FROM or any(name.startswith(OF_MALLOC) for name in os.environ):
        yield
        return
    glibc.mallopt(MMAP_MAX, 0)
    glibc.mallopt(TRIM_THRESHOLD, 2**31 - 1)
    try:
        yield
    finally:
        for setting, value in USUAL_MALLOC:
            glibc.mallopt(setting, value)
        glibc.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    """Return the C library where it is this one."""
    with suppress(OSError, TypeError):
        library = ctypes.CDLL(None)
        return library if hasattr(library, "gnu_get_libc_version") else None
    return None


def gib(num_bytes: float) -> str:
    """Return a number of bytes in words."""
    return f"{num_bytes / 2**30:.3g} GiB"
