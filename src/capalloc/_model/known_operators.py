"""Functions that a graph in a file may call: operators that check their arguments, and arithmetic on sizes."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable
from typing import Any

import torch
from torch._ops import OpOverload

from capalloc._operators.records import RECORDS

OPERATOR = re.compile(r"torch\.ops\.(aten|prims)\.([a-z_]\w*)\.([a-z_]\w*)", re.ASCII | re.IGNORECASE)
#: Operators that exports of usual models hold beside those that are recorded, of torch's core, entry by entry, or made
#: of others. Some of the rest trust their arguments: `aten._reshape_alias` reads and writes beyond its tensor.
EXPORTED = {
    *("_assert_async", "_assert_scalar", "_assert_tensor_metadata", "_unique2", "_weight_norm_interface"),
    *("aminmax", "arange", "bernoulli", "bincount", "block_diag", "channel_shuffle", "col2im", "copy_"),
    *("cummax", "cummin", "detach_", "eye", "histc", "im2col", "kthvalue", "lift_fresh_copy", "linalg_eigh"),
    *("linalg_inv_ex", "linalg_lu_factor", "linalg_matrix_exp", "linalg_qr", "linspace", "logcumsumexp"),
    *("logsumexp", "max_unpool2d", "max_unpool3d", "median", "multinomial", "nanmedian", "native_batch_norm"),
    *("new_empty", "new_full", "new_ones", "new_zeros", "ones", "pixel_shuffle", "pixel_unshuffle"),
    *("rand_like", "randn_like", "renorm", "searchsorted", "tril", "triu", "unfold", "view_as_complex"),
    *("view_as_real", "zeros", "zero_"),
}
#: Arithmetic on sizes; no powers and no shifts, whose results take any amount of memory.
ARITHMETIC: dict[str, Callable[..., Any]] = {
    f"{prefix}.{name}": getattr(module, name)
    for prefix, module, names in (
        ("_operator", operator, "eq ne le ge lt gt neg pos mul add sub floordiv truediv mod and_ or_ getitem"),
        ("math", math, "trunc floor ceil"),
        ("torch", torch, "sym_not sym_int sym_float sym_ite sym_max sym_min"),
    )
    for name in names.split()
}
#: They run a part of the graph, which is read as the rest is.
WRAPPERS: dict[str, Any] = {
    "torch.ops.higher_order.wrap_with_set_grad_enabled": torch.ops.higher_order.wrap_with_set_grad_enabled,
    "torch.ops.higher_order.wrap_with_autocast": torch.ops.higher_order.wrap_with_autocast,
}


class RefusedError(ValueError):
    """Something in a file could run code, or do more than a model does."""


def function_of(target: str) -> Callable[..., Any]:
    """Find the function that a node calls, without an import.

    Raises:
        RefusedError: it is none of those that a graph may call.

    """
    if target in ARITHMETIC or target in WRAPPERS:
        return ARITHMETIC.get(target) or WRAPPERS[target]
    named = OPERATOR.fullmatch(target)
    if named is None:
        raise RefusedError(f"a call of {target[:60]!r}")
    namespace, packet, overload = named.groups()
    found: Any = getattr(getattr(getattr(torch.ops, namespace), packet, None), overload, None)
    if not isinstance(found, OpOverload):
        raise RefusedError(f"a call of {target[:60]!r}, an operator that this torch lacks")
    if not _is_usual(found) or any("file" in argument.name for argument in found._schema.arguments):
        raise RefusedError(f"a call of {target[:60]!r}")
    return found


def _is_usual(op: OpOverload) -> bool:
    """Tell operators that check their arguments, as far as the kinds of operators tell."""
    name = op.name().partition("::")[2].partition(".")[0]
    if op in RECORDS or name in EXPORTED or {torch.Tag.core, torch.Tag.pointwise} & {*op.tags}:
        return True
    composite = torch._C._dispatch_has_kernel_for_dispatch_key(op.name(), "CompositeImplicitAutograd")
    return composite and not name.startswith("_")
