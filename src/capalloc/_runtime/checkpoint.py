"""Checkpoints: the state of a long run in a file, whole or not at all, for one run only, with nothing to execute in it.

A file is in the safetensors format. Its metadata hold "header", which is JSON: format and version, a digest of all that
follows, the fingerprint of the run (`_measure.fingerprint`) and the tree of the state (`packing`).
"""

from __future__ import annotations

import glob
import hashlib
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from safetensors import safe_open
from safetensors.numpy import save_file
from torch import Tensor

from capalloc._runtime.files import atomically, check_target
from capalloc._runtime.packing import pack, unpack

CHECKPOINT_FORMAT: Final = "capalloc-checkpoint"
CHECKPOINT_VERSION: Final = 2
#: Relative difference up to which two numbers of a fingerprint count as equal: they may come from other hardware.
SAME = 1e-6
#: What a fingerprint calls arguments whose state cannot be seen: no file can be told to be of their run.
DOUBTS = "cannot be told apart"
#: Writing takes at most this share of the time.
WRITING = 0.1

Fingerprint = Mapping[str, str | int | float | list[float] | None]


@dataclass(frozen=True)
class Checkpoint:
    """A file that a state is written to and read from, by one process."""

    path: Path
    types: tuple[type, ...] = ()
    device: torch.device | None = None  # of the tensors that are read

    def __post_init__(self) -> None:
        check_target(self.path)

    def load(self, fingerprint: Fingerprint) -> Any:
        """The state in the file; None if there is no file.

        Raises:
            ValueError: the file is damaged, no checkpoint, from a newer capalloc, or of another run.

        """
        temporary = f".{glob.escape(self.path.name)}.{'[0-9a-f]' * 8}.tmp"
        for stale in self.path.parent.glob(temporary):  # of a process that was killed while writing
            stale.unlink(missing_ok=True)
        if not self.path.exists():
            return None
        header, arrays = _read(self.path)
        _check_format(self.path, header)
        _check_digest(self.path, header, arrays)
        check_fingerprint(self.path, header["fingerprint"], fingerprint)
        return unpack(header["state"], [torch.from_numpy(array).to(self.device) for array in arrays], self.types)

    def save(self, fingerprint: Fingerprint, state: Any) -> None:
        """Replace the file: written beside it, flushed to the disk, then renamed."""
        tensors: list[Tensor] = []
        tree = pack(state, tensors)
        arrays = [t.detach().cpu().contiguous().numpy() for t in tensors]
        header = {
            "format": CHECKPOINT_FORMAT,
            "version": CHECKPOINT_VERSION,
            "fingerprint": dict(fingerprint),
            "state": tree,
        }
        header["digest"] = _digest(header, arrays)
        members = {f"array_{k}": array for k, array in enumerate(arrays)}
        with atomically(self.path) as temporary:
            save_file(members, temporary, {"header": json.dumps(header)})

    def remove(self) -> None:
        """Leave no file."""
        self.path.unlink(missing_ok=True)


@dataclass
class Clock:
    """The clock of checkpoints: it strikes every `seconds`, and less often where writing takes long; always for 0."""

    seconds: float
    due: float = field(init=False)

    def __post_init__(self) -> None:
        self.due = time.monotonic() + self.seconds

    def __call__(self) -> bool:
        """Tell whether it is time to write again."""
        return time.monotonic() >= self.due

    def written(self, began: float) -> None:
        """Count from now, after writing since `began`."""
        now = time.monotonic()
        self.due = now + (max(self.seconds, (now - began) / WRITING) if self.seconds else 0)


def check_fingerprint(path: Path, found: Fingerprint, wanted: Fingerprint) -> None:
    """Raise ValueError where a checkpoint belongs to another run, and say which settings differ."""
    if said := differences(found, wanted, "there", "here"):
        raise ValueError(
            f"the checkpoint {path} belongs to another run ({said}); repeat that run's arguments to go on with it, or "
            "give checkpoint= another path, or delete the file"
        )


def differences(found: Fingerprint, wanted: Fingerprint, there: str, here: str) -> str:
    """List the settings that differ, and how; empty if none does."""
    keys = sorted(set(found) | set(wanted))
    differ = [key for key in keys if not _same(found.get(key), wanted.get(key))]
    return "; ".join(f"{key}: {_short(found.get(key))} {there}, {_short(wanted.get(key))} {here}" for key in differ)


def _read(path: Path) -> tuple[dict[str, Any], list[np.ndarray]]:
    try:
        with safe_open(path, framework="np") as file:
            header = json.loads(file.metadata()["header"])
            return header, [file.get_tensor(f"array_{k}") for k in range(len(list(file.keys())))]
    except PermissionError:
        raise
    except Exception as error:  # damaged bytes raise errors of any type
        raise _damaged(path, error) from error


def _damaged(path: Path, why: object) -> ValueError:
    return ValueError(
        f"{path} is damaged or no checkpoint of capalloc ({why}); delete it to start anew, or give checkpoint= another "
        "path"
    )


def _check_format(path: Path, header: dict[str, Any]) -> None:
    if header.get("format") != CHECKPOINT_FORMAT:
        raise _damaged(path, f"its format is {header.get('format')!r}")
    if header["version"] > CHECKPOINT_VERSION:
        raise ValueError(
            f"{path} was written by a newer capalloc (version {header['version']} of the format, this one reads up to "
            f"{CHECKPOINT_VERSION}); upgrade capalloc"
        )


def _check_digest(path: Path, header: dict[str, Any], arrays: list[np.ndarray]) -> None:
    digest = header.pop("digest", None)
    if digest != _digest(header, arrays):
        raise _damaged(path, "its content does not match its digest")


def _digest(header: dict[str, Any], arrays: list[np.ndarray]) -> str:
    hashed = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
    for array in arrays:
        hashed.update(f"{array.dtype} {array.shape}".encode())
        hashed.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return hashed.hexdigest()


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, float) and isinstance(b, float):
        return abs(a - b) <= SAME * max(abs(a), abs(b))
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(_same(x, y) for x, y in zip(a, b, strict=True))
    return bool(a == b)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
