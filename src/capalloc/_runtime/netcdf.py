"""Datasets as NetCDF-3 files with a digest of all their bytes, which no C parser reads.

The classic format with 64-bit offsets holds no links, no compression and nothing outside the file, so that what a
file takes in memory is about its length. It has neither 64-bit integers nor booleans nor more than one axis of
length 0: the attribute `HELD_TYPES` says what each variable was, and holds those without an entry.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import re
from typing import Any, Final

import numpy as np
import xarray as xr

MAGIC: Final = b"CDF\x02"
#: Attributes of the file: its digest, what its variables were, what it is, and the Dataset's own attributes as JSON.
DIGEST, HELD_TYPES, FORMAT, CONTENT = "digest", "types", "format", "attrs"
#: The digest, which counts as zeros while it is made.
MARK: Final = re.compile(rb"sha256:([0-9a-f]{64})")
BLANK: Final = "0" * 64
INT32: Final = np.iinfo(np.int32)
#: Whole numbers up to which float64 has all.
WHOLE: Final = 2**53
#: Bytes of a number, by its code in the file.
WIDTHS: Final = {1: 1, 2: 1, 3: 2, 4: 4, 5: 4, 6: 8}
#: Strings are of four bytes a character in memory, and of one or more in the file.
WIDENED: Final = 8


def encode(dataset: xr.Dataset, name: str, content: str) -> bytes:
    """Return the bytes of a file of the format `name`, with the JSON `content` for its attributes.

    Raises:
        TypeError: a variable holds neither numbers, booleans nor strings.

    """
    types = {str(key): _type(str(key), variable, key in dataset.coords) for key, variable in dataset.variables.items()}
    file = dataset.drop_vars([key for key, held in types.items() if "shape" in held])
    plain = {key: (held.dims, _plain(held.values), held.attrs) for key, held in file.variables.items()}
    file = file.assign(plain).set_coords([key for key in plain if types[str(key)]["coordinate"]])
    file.attrs = {
        DIGEST: f"sha256:{BLANK}",
        HELD_TYPES: json.dumps(types),
        FORMAT: name,
        CONTENT: content,
    }
    encoding = {key: {"_FillValue": None} for key in file.variables}
    data = bytes(file.to_netcdf(engine="scipy", format="NETCDF3_64BIT", encoding=encoding))
    return MARK.sub(b"sha256:" + _digest(data), data, count=1)


def decode(data: bytes) -> tuple[str, str, xr.Dataset]:
    """Return the format, the attributes as JSON and the variables of what `encode` wrote.

    Raises:
        ValueError: the bytes are no such file, or not as they were written.

    """
    found = MARK.search(data)
    if not data.startswith(MAGIC) or found is None:
        raise ValueError("it is no NetCDF-3 file of 64-bit offsets that holds its digest")
    if found[1] != _digest(data):
        raise ValueError("its bytes are not those that were written: the digest differs")
    if _declared_bytes(data) > len(data):
        raise ValueError("its variables are larger than the file")
    dataset = xr.load_dataset(io.BytesIO(data), engine="scipy", mask_and_scale=False, decode_times=False)
    types = json.loads(dataset.attrs[HELD_TYPES])
    for key, held in types.items():
        values = np.empty(0).reshape(held["shape"]) if "shape" in held else dataset[key].values
        if np.dtype(held["dtype"]).itemsize * values.size > WIDENED * len(data):
            raise ValueError(f"its variable {key} is larger than the file")
        dataset[key] = (held["axes"], values.astype(held["dtype"]), dataset[key].attrs if key in dataset else {})
    dataset = dataset.set_coords([key for key, held in types.items() if held["coordinate"]])
    name, content = (str(dataset.attrs[key]) for key in (FORMAT, CONTENT))
    dataset.attrs = {}
    return name, content, dataset[list(types)]


def _digest(data: bytes) -> bytes:
    """Return the digest of a file, its own counted as zeros."""
    digest = hashlib.sha256(MARK.sub(b"sha256:" + BLANK.encode(), data, count=1))
    return digest.hexdigest().encode()


def _declared_bytes(data: bytes) -> int:
    """Return the bytes that the header says all variables take together."""
    header = _Header(io.BytesIO(data[len(MAGIC) + 4 :]))  # the number of records, of which there are none, is left out
    lengths = []
    for _ in header.entries():
        header.text()
        lengths.append(header.integer())
    header.skip_attributes()
    total = 0
    for _ in header.entries():
        header.text()
        shape = [lengths[header.integer()] for _ in range(header.integer())]
        header.skip_attributes()
        total += math.prod(shape) * WIDTHS[header.integer()]
        header.read(12)  # its size and its place
    return total


class _Header:
    """The header of a file in the classic format: big-endian integers, and texts filled up to four bytes."""

    def __init__(self, data: io.BytesIO) -> None:
        self._data = data

    def read(self, size: int) -> bytes:
        data = self._data.read(size)
        if len(data) < size:
            raise ValueError("its header is cut short")
        return data

    def integer(self) -> int:
        return int.from_bytes(self.read(4), "big")

    def entries(self) -> range:
        """Return a range over the entries of the list that begins here."""
        self.integer()  # its tag
        return range(self.integer())

    def text(self) -> None:
        self.padded(self.integer())

    def padded(self, size: int) -> None:
        self.read(size + -size % 4)

    def skip_attributes(self) -> None:
        for _ in self.entries():
            self.text()
            width = WIDTHS[self.integer()]
            self.padded(width * self.integer())


def _type(name: str, variable: xr.Variable, coordinate: bool) -> dict[str, Any]:
    kind = variable.dtype.kind
    if kind not in "biufUSO" or (kind == "O" and not all(isinstance(value, str) for value in variable.values.flat)):
        raise TypeError(f"{name} is of {variable.dtype}, which a file cannot keep; use numbers, booleans or strings")
    held = {"axes": list(variable.dims), "dtype": variable.dtype.str if kind != "O" else "O", "coordinate": coordinate}
    return held if variable.size else held | {"shape": list(variable.shape)}


def _plain(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return values as the classic format has them: integers beyond 32 bits as float64, those beyond 53 as text."""
    if values.dtype.kind == "b":
        return values.astype(np.int8)
    if values.dtype.kind in "iu":
        least, most = int(values.min()), int(values.max())
        if INT32.min <= least and most <= INT32.max:
            return values.astype(np.int32)
        return values.astype(np.float64 if least >= -WHOLE and most <= WHOLE else str)
    return values.astype(np.float64) if values.dtype.kind == "f" and values.dtype.itemsize not in (4, 8) else values
