"""Files of before the first release, HDF5 by h5netcdf: read for one release, by a process of their own.

HDF5 hangs or crashes on damaged bytes, and follows what a file says to other files. So another process reads, with a
limit of time, after a check that all is in the file and no larger than it, and writes the file as it is written today.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import xarray as xr

from capalloc._runtime.extras import load_extra
from capalloc._runtime.netcdf import CONTENT, FORMAT, encode_file

HDF5_MAGIC: Final = b"\x89HDF\r\n\x1a\n"
#: Seconds for a file of some kilobytes.
PATIENCE: Final = 20.0


def converted(path: Path) -> bytes:
    """Return the bytes of an old file in today's format.

    Raises:
        ValueError: the file is damaged, or refers to others.
        ModuleNotFoundError: h5netcdf is not installed.

    """
    load_extra("reading files of before the first release", "h5netcdf")
    command = [sys.executable, "-c", f"from {__name__} import main; main()", str(path)]
    try:
        done = subprocess.run(command, capture_output=True, timeout=PATIENCE, check=False)
    except subprocess.TimeoutExpired:
        raise ValueError(f"HDF5 did not end within {PATIENCE:.0f} s") from None
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip().splitlines()
        raise ValueError(said[-1] if said else f"HDF5 ended by signal {-done.returncode}")
    return done.stdout


def main() -> None:
    """Write the old file that the command line names to the standard output, in today's format."""
    if hasattr(signal, "alarm"):
        signal.alarm(round(PATIENCE))  # ends HDF5 in the middle of a loop, should the reader be gone by then
    try:
        sys.stdout.buffer.write(convert(Path(sys.argv[1])))
    except ValueError as error:
        sys.exit(str(error))


def convert(path: Path) -> bytes:
    """Return what `converted` does, in this process.

    Raises:
        ValueError: something in the file is not an array of its own size in it.

    """
    h5py = load_extra("reading files of before the first release", "h5py")
    with h5py.File(path) as file:
        _check_inside(file, h5py, path.stat().st_size)
    dataset = xr.load_dataset(path, engine="h5netcdf")
    name, content = (str(dataset.attrs.get(key, "")) for key in (FORMAT, CONTENT))
    return encode_file(dataset, name, content)


def _check_inside(file: Any, h5py: Any, length: int) -> None:
    for name in file:
        if not isinstance(file.get(name, getlink=True), h5py.HardLink):
            raise ValueError(f"{name} is a link to elsewhere")
        held = file[name]
        if not isinstance(held, h5py.Dataset) or held.external or held.is_virtual or held.chunks:
            raise ValueError(f"{name} is no plain array in the file")
        if held.id.get_storage_size() and held.nbytes > length:
            raise ValueError(f"{name} is larger than the file")
        if not held.id.get_storage_size() and b"not a netCDF variable" not in held.attrs.get("NAME", b""):
            raise ValueError(f"{name} holds nothing")
