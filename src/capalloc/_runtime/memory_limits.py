"""Limits on memory that are narrower than the machine: those of the process, and of the container that it runs in.

Read from the files that Linux shows; elsewhere there is none. A container is a control group, whose memory its own
limit narrows and those of the groups around it, in version 1 of their files or in version 2.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

#: What torch says in a RuntimeError where memory is short.
MEMORY_WORDS = ("can't allocate memory", "out of memory")
#: Limits of a process as its `limits` file names them, and what counts against each in its `status` file.
PROCESS_LIMITS = {"Max address space": "VmSize", "Max data size": "VmData"}
#: Files of a control group's limits, and of what it uses, in versions 2 and 1.
GROUP_LIMITS = ("memory.max", "memory.high", "memory.limit_in_bytes")
GROUP_USES = ("memory.current", "memory.usage_in_bytes")
#: Entries of a group's `memory.stat`, with the groups inside, of pages that the kernel takes back when short.
RECLAIMABLE = {"memory.current": "", "memory.usage_in_bytes": "total_"}


def ran_out(error: BaseException) -> bool:
    """Tell whether an error says that memory is short."""
    named = (
        isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    )  # torch's, which is not imported
    return named or any(words in str(error) for words in MEMORY_WORDS)


def bytes_within_limits(process: Path = Path("/proc/self")) -> float:
    """Return the bytes that the narrowest limit leaves; infinite where there is none.

    Args:
        process: the folder that describes the process: `limits`, `status`, `cgroup` and `mountinfo`.

    """
    groups = (_left_in_group(group) for group in _groups(process))
    return max(0.0, min([math.inf, *_left_to_process(process), *groups]))


def _left_to_process(process: Path) -> Iterator[float]:
    status = dict(line.split(":", 1) for line in _lines(process / "status") if ":" in line)
    for line in _lines(process / "limits"):
        for name, use in PROCESS_LIMITS.items():
            if line.startswith(name) and use in status:
                yield _number(line.removeprefix(name).split()[0]) - 1024 * _number(status[use].split()[0])


def _groups(process: Path) -> Iterator[Path]:
    """Give the folder of every control group that counts the memory of the process, and of those around it."""
    own = {}
    for line in _lines(process / "cgroup"):
        _, controllers, path = line.split(":", 2)
        if not controllers or "memory" in controllers.split(","):
            own["cgroup" if controllers else "cgroup2"] = Path(path)
    for line in _lines(process / "mountinfo"):
        before, _, after = line.partition(" - ")
        kind, _, options = after.split()[:3]
        if kind not in own or (kind == "cgroup" and "memory" not in options.split(",")):
            continue
        root, mount = (Path(_spelt(field)) for field in before.split()[3:5])
        inside = own[kind].relative_to(root) if own[kind].is_relative_to(root) else Path()  # else it is not shown
        yield from (mount / part for part in (inside, *inside.parents))


def _left_in_group(group: Path) -> float:
    limits = [_number(line) for name in GROUP_LIMITS for line in _lines(group / name)]
    stat = dict(line.split(" ", 1) for line in _lines(group / "memory.stat") if " " in line)
    limits += [_number(stat["hierarchical_memory_limit"])] if "hierarchical_memory_limit" in stat else []
    for name in GROUP_USES:
        for line in _lines(group / name):
            cache = sum(_number(stat.get(f"{RECLAIMABLE[name]}{kind}_file", "0")) for kind in ("active", "inactive"))
            return min([math.inf, *limits]) - max(0.0, _number(line) - cache)
    return math.inf


def _lines(file: Path) -> list[str]:
    """Return the lines of a file; none where it is missing or may not be read."""
    try:
        return file.read_text().splitlines()
    except (OSError, UnicodeDecodeError):
        return []


def _number(word: str) -> float:
    """Return a number of bytes; words for none are infinite."""
    return float(word) if word.strip().isdigit() else math.inf


def _spelt(field: str) -> str:
    """Return a path of `mountinfo`, where spaces are written in octal digits."""
    return field.replace(r"\040", " ").replace(r"\011", "\t").replace(r"\134", "\\")
