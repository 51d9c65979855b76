"""Files of results: what is read is what was written, bit by bit, and no larger than the file."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from capalloc._runtime import netcdf
from capalloc._runtime.netcdf import decode, encode

DTYPES = ("f8", "f4", "f2", "i8", "u8", "i4", "u2", "?", "<U3", "S4")
WRITTEN = encode(
    xr.Dataset({"a": ("x", np.arange(5.0))}, {"x": list("abcde")}, {"notes": ["one"]}), "thing-1", '{"notes": ["one"]}'
)


def texts(dtype: str) -> st.SearchStrategy[str | bytes] | None:
    """Texts without zeros, which the classic format fills them up with, and no empty ones, whose type has no width."""
    if dtype.startswith("<U"):
        return st.text(st.characters(min_codepoint=1, exclude_categories=["Cs"]), min_size=1, max_size=3)
    return st.binary(min_size=1, max_size=4).filter(lambda b: b"\0" not in b) if dtype.startswith("S") else None


@given(
    values=st.sampled_from(DTYPES).flatmap(
        lambda dtype: arrays.arrays(dtype, st.sampled_from([(), (3,), (2, 3), (0,), (3, 0)]), elements=texts(dtype))
    ),
    coordinate=st.booleans(),
)
def test_every_bit_comes_back(values, coordinate):
    dims = tuple("xyz"[: values.ndim])
    dataset = xr.Dataset({"v": (dims, values), "w": ((), 1.5)})
    dataset = dataset.set_coords("v") if coordinate else dataset
    name, content, found = decode(encode(dataset, "thing-1", "{}"))
    assert (name, content) == ("thing-1", "{}")
    xr.testing.assert_identical(found, dataset)
    assert found["v"].dtype == values.dtype
    assert found["v"].values.tobytes() == values.tobytes()


@pytest.mark.parametrize("number", [2**31, 2**53, 2**53 + 1, 2**63 - 80, -(2**63)])
def test_integers_beyond_those_of_the_format_come_back(number):
    values = np.array([number, -1])
    assert decode(encode(xr.Dataset({"v": ("x", values)}), "thing-1", "{}"))[2]["v"].values.tolist() == values.tolist()


@given(st.integers(0, len(WRITTEN) - 1), st.integers(0, 7))
def test_a_single_bit_that_turned_is_refused(place, bit):
    data = bytearray(WRITTEN)
    data[place] ^= 1 << bit
    with pytest.raises(ValueError, match=r"the digest differs|no NetCDF-3 file .* that holds its digest"):
        decode(bytes(data))


def signed(data: bytes) -> bytes:
    """The same bytes with a digest that fits them."""
    return netcdf.MARK.sub(b"sha256:" + netcdf._digest(data), data, count=1)


def test_other_programs_read_it():
    with xr.open_dataset(io.BytesIO(WRITTEN)) as found:
        np.testing.assert_array_equal(found["a"], np.arange(5.0))
        assert json.loads(found.attrs["attrs"]) == {"notes": ["one"]}


def test_a_variable_is_no_larger_than_the_file():
    long = WRITTEN.replace(b"x\0\0\0" + (5).to_bytes(4, "big"), b"x\0\0\0" + (2**30).to_bytes(4, "big"), 1)
    assert long != WRITTEN
    with pytest.raises(ValueError, match="its variables are larger than the file"):
        decode(signed(long))


def test_a_text_is_no_longer_than_the_file():
    short = encode(xr.Dataset({"a": ("x", ["b" * 1000])}), "thing-1", "{}")
    long = short.replace(b'"<U1000", "coordinate": ', b'"<U100000","coordinate":')
    assert long != short
    with pytest.raises(ValueError, match="its variable a is larger than the file"):
        decode(signed(long))


def test_a_header_that_ends_too_early_is_refused():
    with pytest.raises(ValueError, match="its header is cut short"):
        decode(signed(WRITTEN[: WRITTEN.index(b"thing-1")]))


def test_what_no_file_keeps_is_named():
    with pytest.raises(TypeError, match="z is of complex128, which a file cannot keep; use numbers"):
        encode(xr.Dataset({"z": 1j}), "thing-1", "{}")
    with pytest.raises(TypeError, match="z is of object, which a file cannot keep"):
        encode(xr.Dataset({"z": ("x", np.array([{}, 1], dtype=object))}), "thing-1", "{}")
