"""Memory is what the machine has free and what limits of the process and of its container leave of it."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from capalloc._runtime.memory_limits import bytes_within_limits

GIB = 2**30
LIMITS = "Limit          Soft Limit   Hard Limit   Units\nMax address space   {}   unlimited   bytes\n"
Files = Callable[..., Path]


@pytest.fixture
def process(tmp_path) -> Files:
    """Write files of a process and of control groups below `tmp_path`; give the folder of the process."""

    def write(**files: str) -> Path:
        for name, text in files.items():
            file = tmp_path / name.replace("__", "/").replace("_dot_", ".")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
        return tmp_path / "self"

    return write


def group(folder: str, **files: object) -> dict[str, str]:
    return {f"{folder}__memory_dot_{name}": f"{value}\n" for name, value in files.items()}


def mounted(tmp_path: Path, version: int, path: str, root: str = "/") -> dict[str, str]:
    kind, options, number = ("cgroup", "rw,memory", "4:memory:") if version == 1 else ("cgroup2", "rw", "0::")
    line = f"35 31 0:32 {root} {tmp_path}/groups rw,relatime shared:9 - {kind} none {options}\n"
    other = f"36 31 0:33 / {tmp_path}/elsewhere rw - cgroup none rw,cpu\n37 31 0:34 / / rw - ext4 /dev/sda rw\n"
    return {"self__mountinfo": other + line, "self__cgroup": f"9:cpu:/other\n{number}{path}\n"}


def test_no_limit_is_none(process):
    assert bytes_within_limits(process(self__limits=LIMITS.format("unlimited"))) == math.inf
    assert bytes_within_limits(Path("/nowhere")) == math.inf


def test_the_address_space_that_is_used_counts(process):
    status = "Name:\tpython\nVmPeak:\t9 kB\nVmSize:\t1048576 kB\n"
    assert bytes_within_limits(process(self__limits=LIMITS.format(4 * GIB), self__status=status)) == 3 * GIB
    assert bytes_within_limits(process(self__limits=LIMITS.format(GIB // 2), self__status=status)) == 0


def test_a_group_of_version_2(process, tmp_path):
    """Its own limits, without the page cache, which the kernel takes back, and those of the groups around it."""
    at = mounted(tmp_path, 2, "/jobs/one")
    stat = f"anon 7\ninactive_file {GIB}\nactive_file {GIB}\nfile {9 * GIB}"
    own = group("groups__jobs__one", max=8 * GIB, high="max", current=3 * GIB, stat=stat)
    assert bytes_within_limits(process(**at, **own)) == 7 * GIB
    assert bytes_within_limits(process(**at, **group("groups__jobs", max=6 * GIB, current=5 * GIB))) == GIB
    process(**group("groups__jobs", max="max", current=5 * GIB), **group("groups__jobs__one", high=4 * GIB))
    assert bytes_within_limits(tmp_path / "self") == 3 * GIB


def test_a_group_of_version_1(process, tmp_path):
    at, none = mounted(tmp_path, 1, "/docker/abc", root="/docker/abc"), 0x7FFFFFFFFFFFF000
    stat = f"cache 5\nactive_file 9\nhierarchical_memory_limit {none}\ntotal_inactive_file {GIB}\ntotal_active_file 0\n"
    own = group("groups", limit_in_bytes=2 * GIB, usage_in_bytes=2 * GIB, stat=stat)
    assert bytes_within_limits(process(**at, **own)) == GIB
    process(**group("groups", limit_in_bytes=none, stat=stat.replace(f"{none}", f"{3 * GIB}")))
    assert bytes_within_limits(tmp_path / "self") == 2 * GIB  # the limit of a group that is not shown


def test_a_group_that_is_not_shown_is_the_one_that_is(process, tmp_path):
    at = mounted(tmp_path, 2, "/../other", root="/jobs")
    assert bytes_within_limits(process(**at, **group("groups", max=GIB, current=0))) == GIB


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_a_limit_of_the_process_is_free_memory():
    """And what does not fit is refused before the allocator fails."""
    code = """
import resource, torch, capalloc
from torch import nn
from capalloc._runtime.memory import available_bytes
size = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize() + 2**29
resource.setrlimit(resource.RLIMIT_AS, (size, size))
assert 2**28 < available_bytes(torch.device("cpu")) <= 2**29
try:
    capalloc.measure(nn.Linear(60, 60), torch.randn(10000, 60))
except MemoryError as error:
    print(error)
"""
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "needs" in said
    assert "may be used" in said
