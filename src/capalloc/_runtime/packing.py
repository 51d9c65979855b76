"""Values as plain data: a JSON tree that points into a list of arrays, and back, with no code in between.

What travels between processes and into checkpoints: None, booleans, numbers, strings, tuples, lists, string-keyed
dicts, tensors, arrays, dtypes and those dataclasses that the reader names.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor


def pack(value: Any, arrays: list[Tensor]) -> Any:
    """The tree of `value`; its tensors are appended to `arrays`.

    Raises:
        TypeError: a value that is none of the above.

    """
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Tensor):
        arrays.append(value)
        return {"tensor": len(arrays) - 1}
    if isinstance(value, torch.dtype):
        return {"dtype": str(value).removeprefix("torch.")}
    if isinstance(value, np.ndarray):
        arrays.append(torch.from_numpy(np.ascontiguousarray(value)))
        return {"array": len(arrays) - 1}
    if isinstance(value, (tuple, list)):
        return {type(value).__name__: [pack(item, arrays) for item in value]}
    if isinstance(value, dict):
        return {"dict": {key: pack(item, arrays) for key, item in value.items()}}
    if is_dataclass(value) and not isinstance(value, type):
        parts = {field.name: pack(getattr(value, field.name), arrays) for field in fields(value)}
        return {"class": type(value).__name__, "fields": parts}
    raise TypeError(f"a {type(value).__name__} is no plain data; keep numbers, words, tensors and dataclasses of them")


def unpack(tree: Any, arrays: list[Tensor], types: Iterable[type]) -> Any:
    """The value of a tree; dataclasses are those among `types`.

    Raises:
        ValueError: a tree that `pack` did not make, or of other types.

    """
    known = {kind.__name__: kind for kind in types}
    if not isinstance(tree, dict):
        return tree
    match tree:
        case {"tensor": index}:
            return arrays[index]
        case {"array": index}:
            return arrays[index].cpu().numpy()
        case {"dtype": name}:
            return getattr(torch, name)
        case {"tuple": items}:
            return tuple(unpack(item, arrays, types) for item in items)
        case {"list": items}:
            return [unpack(item, arrays, types) for item in items]
        case {"dict": items}:
            return {key: unpack(item, arrays, types) for key, item in items.items()}
        case {"class": name, "fields": parts} if name in known:
            return known[name](**{key: unpack(item, arrays, types) for key, item in parts.items()})
    raise ValueError(f"the data hold {sorted(tree)} {tree.get('class', '')!r}, which is not known here")


def as_bytes(tensor: Tensor) -> Tensor:
    """The content, (bytes), without a copy where it lies in one piece."""
    flat = tensor.detach().contiguous().flatten()
    return flat.as_strided(flat.shape, (1,)).view(torch.uint8)  # a single number may have any stride
