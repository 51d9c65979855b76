"""Attention: its weights are frozen gates that mix positions; softmax where paths go through it."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from capalloc._energy.program import Energy
from capalloc._energy.rules.matrix_products import contract
from capalloc._energy.rules.registration import Call, rule
from capalloc._operators.calls import Operation

aten = torch.ops.aten


def attention_weights(operation: Operation, dtype: torch.dtype | None = None) -> Tensor:
    """Read the weights that one call gives to its values, (..., queries, keys), computed in a precision."""
    query, key = (operation[name].to(dtype or operation[name].dtype) for name in ("query", "key"))
    if operation["enable_gqa"]:
        key = key.repeat_interleave(query.shape[-3] // key.shape[-3], dim=-3)
    scale = 1 / math.sqrt(query.shape[-1]) if operation["scale"] is None else operation["scale"]
    logits = query @ key.mT * scale
    mask = operation["attn_mask"]
    if operation["is_causal"]:
        mask = torch.ones(logits.shape[-2:], dtype=torch.bool, device=logits.device).tril()
    if mask is not None:
        logits = logits.masked_fill(~mask, -torch.inf) if mask.dtype is torch.bool else logits + mask
    weights: Tensor = logits.softmax(-1).nan_to_num(0.0)  # a query that may look at nothing gets 0
    return weights


@rule(aten.scaled_dot_product_attention.default, gates=attention_weights)
def attention(call: Call) -> Energy:
    """softmax(q k' / sqrt(d) + mask) v: the values carry, through the squares of the attention weights."""
    value, heads = call.signal("value"), call["query"].shape[-3] if call["query"].ndim > 2 else 1
    if call["enable_gqa"] and value.shape[-3] != heads:
        times = heads // value.shape[-3]
        value = call.program.move(lambda e: e.repeat_interleave(times, dim=-3), value)
    return contract(call, value, attention_weights(call.operation, torch.float64), from_left=True)


@rule(aten.softmax.int, aten._softmax.default, aten._safe_softmax.default, gates=lambda operation: operation.result)
def softmax(call: Call) -> Energy:
    """dy_i/dx_j = y_i (1{i = j} - y_j), squared."""
    y = call.result.to(call.program.dtype)
    return call.program.gate(_centred(call, y), y.double().square())


@rule(aten.log_softmax.int, aten._log_softmax.default)
def log_softmax(call: Call) -> Energy:
    """dy_i/dx_j = 1{i = j} - p_j, squared."""
    return _centred(call, call.result.to(call.program.dtype).exp())


def _centred(call: Call, p: Tensor) -> Energy:
    """(1 - p_i)^2 e_i + sum over j != i of p_j^2 e_j, all terms positive so that no rounding makes it negative."""
    x, dim = call.signal("self"), call["dim"]
    assert x.labels is not None
    squared, own = p.square(), (1 - p).square()

    def run(e: Tensor) -> Tensor:
        sent = squared * e
        return own * e + _before(sent, dim) + _before(sent.flip(dim), dim).flip(dim)

    return call.program.step(run, [x], call.program.channels.merge(x.labels, x.shape, (dim,)))


def _before(e: Tensor, dim: int) -> Tensor:
    """Sums over the entries before each."""
    none = torch.zeros_like(e.narrow(dim, 0, 1))
    return torch.cat([none, e.cumsum(dim).narrow(dim, 0, e.shape[dim] - 1)], dim)
