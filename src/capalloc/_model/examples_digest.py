"""The mark of the examples that a result stands on."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from capalloc._model.given_examples import iterate_batches

#: Bytes of an example's hash, and so of their sum.
DIGEST_BYTES = 8


def digest_of_examples(inputs: Tensor | Iterable[Any]) -> str:
    """Digest the examples in 16 hexadecimal digits, whatever their order, batches, device and precision.

    Every example is hashed as float64, which holds the narrower ones exactly, with its shape, and the hashes are added.
    """
    total = 0
    for batch in iterate_batches(inputs):
        rows = batch.detach().to(device="cpu", dtype=torch.float64).contiguous().numpy()
        shape = f"{rows.shape[1:]}".encode()
        for row in rows:
            hashed = hashlib.blake2b(shape, digest_size=DIGEST_BYTES)
            hashed.update(row)
            total += int.from_bytes(hashed.digest(), "big")
    return f"{total % 2 ** (8 * DIGEST_BYTES):0{2 * DIGEST_BYTES}x}"
