"""One run at a time on a file: a lock beside it, which the operating system takes back from a process that ends."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from capalloc._runtime.files import check_target

if sys.platform == "win32":
    import msvcrt
else:
    import errno
    import fcntl


@contextmanager
def sole_run(path: str | os.PathLike[str] | None) -> Iterator[None]:
    """Hold the lock of a file for a while; do nothing for None.

    Raises:
        RuntimeError: another run holds it.

    """
    if path is None:
        yield
        return
    target = check_target(path)
    beside = target.with_name(f".{target.name}.lock")
    descriptor = _held(beside)
    if descriptor is None:
        holder = beside.read_text() or "unknown"
        raise RuntimeError(
            f"the checkpoint {target} is in use by another run (process {holder}); wait for its end, or give "
            "checkpoint= another path"
        )
    try:
        os.ftruncate(descriptor, 0)
        os.write(descriptor, str(os.getpid()).encode())
        yield
    finally:
        _release(beside, descriptor)


def _held(path: Path) -> int | None:
    """Return the descriptor of the lock's file, locked; None where another process holds it."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        if not _locks(descriptor):
            os.close(descriptor)
            return None
        try:
            if os.path.samestat(os.fstat(descriptor), path.stat()):
                return descriptor
        except FileNotFoundError:
            pass
        os.close(descriptor)  # its holder had finished, and removed it, in between


def _release(path: Path, descriptor: int) -> None:
    """Remove the lock's file: while it is locked, or where open files cannot be removed, after."""
    if sys.platform != "win32":
        path.unlink(missing_ok=True)
    os.close(descriptor)
    if sys.platform == "win32":
        try:
            path.unlink(missing_ok=True)
        except PermissionError:  # another run has taken it
            return


def _locks(descriptor: int) -> bool:
    """Lock a file, far behind what is written in it; True also where the file system knows no locks."""
    try:
        if sys.platform == "win32":
            os.lseek(descriptor, 2**20, os.SEEK_SET)
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
            os.lseek(descriptor, 0, os.SEEK_SET)
        else:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return sys.platform != "win32" and error.errno not in (errno.EWOULDBLOCK, errno.EACCES)
    return True
