"""Damaged and hostile files: saved programs, results, checkpoints, arrays and images."""

from __future__ import annotations

import copy
import io
import json
import random
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.export import Dim, export, save

import capalloc
from capalloc._model.archive import load_program
from capalloc.app.cli.image_folder import read_images
from capalloc.app.cli.input_source import read_array
from fuzz.outcome import CLEAR, SILENT, Case, Verdict, judge

#: Errors of a file say so in one of these words, or name it.
SAID = ("damaged", "holds", "is not", "no file", "not read", "refused", "another", "cannot", "saved", "digest")
#: Values that a document may hold in the place of another.
JUNK: tuple[Any, ...] = (
    *(None, True, -1, 0, 2**62, 2**70, 1.5, "", "x", "relu", "__import__('os')", [], {}, [[]], {"as_int": -5}),
    *({"as_ints": [2**40, 2]}, {"as_tensor": {"name": "input"}}, "torch.os.system", "torch.ops.aten.resize_.default"),
)


@cache
def _folder() -> Path:
    return Path(tempfile.mkdtemp())


@cache
def _model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)).eval()


@cache
def _inputs() -> torch.Tensor:
    return torch.randn(6, 4, generator=torch.Generator().manual_seed(0))


@cache
def program() -> bytes:
    path = _folder() / "model.pt2"
    save(export(_model(), (_inputs(),), dynamic_shapes=({0: Dim("batch", max=99)},)), path)
    return path.read_bytes()


@cache
def result() -> bytes:
    path = _folder() / "result.nc"
    capalloc.measure(_model(), _inputs()).save(path)
    return path.read_bytes()


def _settings(path: Path) -> dict[str, Any]:
    return {
        "solver": capalloc.solvers.Stochastic(num_probes=4),
        "ridge": 1e-3,
        "generator": torch.Generator().manual_seed(0),
        "run": capalloc.Run(checkpoint=path, checkpoint_seconds=0.0),
    }


@cache
def checkpoint() -> bytes:
    path, held = _folder() / "run.safetensors", b""
    capalloc.measure(_model(), _inputs(), **_settings(path))
    held = path.read_bytes() if path.exists() else held
    return held


@cache
def array() -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, inputs=_inputs().numpy())
    return buffer.getvalue()


@cache
def image() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.arange(192, dtype=np.uint8).reshape(8, 8, 3)).save(buffer, format="PNG")
    return buffer.getvalue()


def _program_text(path: Path) -> Any:
    read = load_program(path)
    return f"{read.graph} {[tensor.tolist() for tensor in read.state_dict.values()]}"


def _result_values(path: Path) -> Any:
    return capalloc.load(path).capacity.values.tolist()


def _answer(path: Path) -> Any:
    return capalloc.measure(_model(), _inputs(), **_settings(path)).capacity.values.round(6).tolist()


def _pixels(path: Path) -> Any:
    return read_images(path.parent).tolist()


def _array_values(path: Path) -> Any:
    return read_array(path).tolist()


#: The name of a file, what it holds when whole, and how it is read.
KINDS: dict[str, tuple[Callable[[], bytes], Callable[[Path], Any]]] = {
    "model.pt2": (program, _program_text),
    "result.nc": (result, _result_values),
    "run.safetensors": (checkpoint, _answer),
    "inputs.npz": (array, _array_values),
    "images/image.png": (image, _pixels),
}


def cases(rng: random.Random) -> Iterator[Case]:
    """Damage without end, and documents of programs with values in the place of others."""
    while True:
        name = rng.choice([*KINDS, "model.pt2"])
        harm = rng.choice([*HARMS, _other_value] if name == "model.pt2" else list(HARMS))
        seed = rng.randrange(2**32)
        yield Case(f"{name}: {harm.__name__} {seed}", lambda n=name, h=harm, s=seed: _try(n, h, random.Random(s)))


def _flip(content: bytes, rng: random.Random) -> bytes:
    changed = bytearray(content)
    for _ in range(rng.choice((1, 1, 1, 8))):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _cut(content: bytes, rng: random.Random) -> bytes:
    return content[: rng.randrange(len(content))]


def _swap(content: bytes, rng: random.Random) -> bytes:
    a, b = sorted(rng.randrange(len(content)) for _ in range(2))
    return content[:a] + content[b:] + content[a:b]


def _noise(content: bytes, rng: random.Random) -> bytes:
    start = rng.randrange(len(content))
    return content[:start] + rng.randbytes(min(64, len(content) - start)) + content[start + 64 :]


def _other_value(content: bytes, rng: random.Random) -> bytes:
    """A program of other words, with checksums that fit."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    key = next(name for name in parts if name.endswith("models/model.json"))
    document = json.loads(parts[key])
    for _ in range(rng.choice((1, 1, 2, 4))):
        owner, place = rng.choice(list(_places(document)))
        owner[place] = copy.deepcopy(rng.choice(JUNK))
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, part in (parts | {key: json.dumps(document).encode()}).items():
            archive.writestr(name, part)
    return buffer.getvalue()


def _places(tree: Any) -> Iterator[tuple[Any, Any]]:
    for key, part in list(
        tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    ):
        yield tree, key
        if key != "metadata":
            yield from _places(part)


HARMS = (_flip, _cut, _swap, _noise)


@cache
def _whole(name: str) -> Any:
    content, read = KINDS[name]
    path = _folder() / "whole" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content())
    return read(path)


def _try(name: str, harm: Callable[[bytes, random.Random], bytes], rng: random.Random) -> Verdict:
    """A damaged file is refused, or read as it was; other words in a program may be another program."""
    content, read = KINDS[name]
    expected = _whole(name)
    path = _folder() / "harmed" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(harm(content(), rng))
    try:
        found = read(path)
    except Exception as error:
        return judge(error, path.name, str(path.parent), *SAID)
    return (CLEAR, "") if harm is _other_value or found == expected else (SILENT, "other values are read")
