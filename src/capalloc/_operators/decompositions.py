"""Composite operators as the products and activations they are made of, for `torch.export`.

Index convention: sequences are (time, examples, features) inside; a recurrent layer's parameters are (w_ih, w_hh),
then (b_ih, b_hh) with biases, then w_hr with a projection.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from capalloc._operators.records import RECORDS, extend, named

aten = torch.ops.aten
State = tuple[Tensor, ...]
Cell = Callable[[Tensor, State, Sequence[Tensor]], State]  # projected input, state, parameters -> state


def _lerp(start: Tensor, end: Tensor, weight: Tensor) -> Tensor:
    return (1 - weight) * start + weight * end


def _prelu(x: Tensor, slope: Tensor) -> Tensor:
    """x where that is positive, slope x elsewhere: a gate that the sign steers."""
    shape = [1, -1, *[1] * (x.ndim - 2)] if slope.numel() > 1 else [1] * x.ndim
    return torch.where(x > 0, x, slope.reshape(shape) * x)


def _chosen(compare: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    """Make a choice of the one of two tensors that wins, a gate that both steer."""
    return lambda left, right: torch.where(compare(left, right), left, right)


def _cosine(x1: Tensor, x2: Tensor, dim: int = 1, eps: float = 1e-8) -> Tensor:
    """The product of two tensors over their norms, which are constants as far as paths go."""
    norms = [torch.linalg.vector_norm(x, dim=dim, keepdim=True).clamp_min(eps) for x in (x1, x2)]
    cosine: Tensor = (x1 / norms[0] * (x2 / norms[1])).sum(dim)
    return cosine


def _bilinear(left: Tensor, right: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """A product of two tensors for each output."""
    product = torch.einsum("...i,kij,...j->...k", left, weight, right)
    return product if bias is None else product + bias


def _tensordot(left: Tensor, right: Tensor, dims_self: Sequence[int], dims_other: Sequence[int]) -> Tensor:
    """A matrix product over several axes."""
    own, other = list(range(left.ndim)), list(range(left.ndim, left.ndim + right.ndim))
    for here, there in zip(dims_self, dims_other, strict=True):
        other[there] = own[here]
    return torch.einsum(left, own, right, other, [k for k in own + other if (own + other).count(k) == 1])


def distances(lengths: Callable[[Tensor, float], Tensor]) -> Callable[..., Tensor]:
    """Make the lengths of all differences of two sets of points."""
    return lambda left, right, p=2.0, compute_mode=None: lengths(left.unsqueeze(-2) - right.unsqueeze(-3), p)


def pairs(lengths: Callable[[Tensor, float], Tensor]) -> Callable[..., Tensor]:
    """Make the lengths of the differences of each two points of one set."""

    def run(x: Tensor, p: float = 2.0) -> Tensor:
        first, second = torch.triu_indices(len(x), len(x), 1, device=x.device)
        return lengths(x[first] - x[second], p)

    return run


def _length(x: Tensor, p: float) -> Tensor:
    lengths: Tensor = torch.linalg.vector_norm(x, p, -1)
    return lengths


def length(x: Tensor, p: float) -> Tensor:
    """The norm over the last axis, with derivatives of 0 where it is 0, the second ones too."""
    none = (x == 0).all(-1, keepdim=True)
    return torch.where(none.squeeze(-1), 0.0, _length(torch.where(none, 1.0, x), p))


def step(x: Tensor, at_zero: Tensor) -> Tensor:
    """1 above 0, 0 below, without a derivative."""
    return torch.where(x == 0, at_zero, (x > 0).to(x.dtype))


def _stacked(reduce: Callable[[Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    """Make a function of two tensors of one of both along a new axis."""
    return lambda left, right: reduce(torch.stack(torch.broadcast_tensors(left, right)))


def _copy(written_over: Tensor, source: Tensor, non_blocking: bool = False) -> Tensor:
    """The source in the place of what it overwrites; torch has no derivative of its own functional copy."""
    return source.to(written_over.dtype).expand(written_over.shape).clone()


def _weight_norm(v: Tensor, g: Tensor, dim: int = 0) -> Tensor:
    """The weight g v / |v|; the norm, of all of v where `dim` is -1, is a constant as far as paths go."""
    norm: Tensor = torch.linalg.vector_norm(v, 2, [k for k in range(v.ndim) if k != dim], keepdim=dim != -1)
    return v * (g / norm)


def _grouped(rows: Tensor, weights: Tensor, ends: Tensor) -> Tensor:
    """Rows times the matrix of their group, (rows, in) and (groups, in, out), as experts have it: a gate picks it."""
    at = torch.arange(len(rows), device=rows.device)
    group = (at[:, None] >= ends).sum(1)
    picked = group == torch.arange(len(weights), device=rows.device)[:, None]
    return torch.where(picked[:, :, None], rows @ weights, 0.0).sum(0)


def _lstm_step(projected: Tensor, state: State, params: Sequence[Tensor]) -> State:
    """c' = sigmoid(f) c + sigmoid(i) tanh(g), h' = sigmoid(o) tanh(c')."""
    h, c = state
    i, f, g, o = (projected + _from_state(h, params)).chunk(4, -1)
    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    h = o.sigmoid() * c.tanh()
    has_projection = len(params) in (3, 5)
    return F.linear(h, params[-1]) if has_projection else h, c


def _gru_step(projected: Tensor, state: State, params: Sequence[Tensor]) -> State:
    """n = tanh(x_n + sigmoid(r) h_n), h' = (1 - sigmoid(z)) n + sigmoid(z) h."""
    (h,) = state
    x_r, x_z, x_n = projected.chunk(3, -1)
    h_r, h_z, h_n = _from_state(h, params).chunk(3, -1)
    z = (x_z + h_z).sigmoid()
    n = (x_n + (x_r + h_r).sigmoid() * h_n).tanh()
    return ((1 - z) * n + z * h,)


def _plain_step(activation: Callable[[Tensor], Tensor]) -> Cell:
    def step(projected: Tensor, state: State, params: Sequence[Tensor]) -> State:
        return (activation(projected + _from_state(state[0], params)),)

    return step


def _from_state(h: Tensor, params: Sequence[Tensor]) -> Tensor:
    return F.linear(h, params[1], params[3] if len(params) > 3 else None)


def _project(x: Tensor, params: Sequence[Tensor]) -> Tensor:
    return F.linear(x, params[0], params[2] if len(params) > 3 else None)


def _unroll(
    step: Cell, moments: Sequence[Tensor], state: State, params: Sequence[Tensor], backward: bool, packed: bool
) -> Any:
    """Run one layer in one direction: outputs of each moment, and the last state; packed moments lose rows."""
    outputs = []
    for moment in reversed(moments) if backward else moments:
        going = len(moment) if packed else 0  # a length is a number, and the examples of an export are any number
        rest = [s[going:] for s in state] if packed and going < len(state[0]) else []
        state = step(moment, tuple(s[:going] for s in state) if rest else state, params)
        outputs.append(state[0])
        state = tuple(torch.cat(parts) for parts in zip(state, rest, strict=True)) if rest else state
    return outputs[::-1] if backward else outputs, state


def _layers(
    step: Cell, x: Tensor, sizes: list[int] | None, hx: Any, params: Sequence[Tensor], num_layers: int, both: bool
) -> tuple[Tensor, ...]:
    """Layers and directions, each with its own state and parameters, on (time, examples, features) or packed rows."""
    initial = (hx,) if isinstance(hx, Tensor) else tuple(hx)
    directions = 2 if both else 1
    each = len(params) // (num_layers * directions)
    last = []
    for layer in range(num_layers):
        found = []
        for backward in range(directions):
            k = layer * directions + backward
            own = params[k * each : (k + 1) * each]
            projected = _project(x, own)
            moments = projected.unbind() if sizes is None else projected.split(sizes)
            outputs, state = _unroll(
                step, moments, tuple(s[k] for s in initial), own, bool(backward), sizes is not None
            )
            found.append(torch.stack(outputs) if sizes is None else torch.cat(outputs))
            last.append(state)
        x = torch.cat(found, -1) if both else found[0]
    return (x, *(torch.stack(s) for s in zip(*last, strict=True)))


def _recurrent(step: Cell) -> Callable[..., tuple[Tensor, ...]]:
    """Make an operator on whole sequences."""

    def run(
        x: Tensor,
        hx: Tensor | Sequence[Tensor],
        params: Sequence[Tensor],
        has_biases: bool,
        num_layers: int,
        dropout: float,
        train: bool,
        bidirectional: bool,
        batch_first: bool,
    ) -> tuple[Tensor, ...]:
        found = _layers(step, x.transpose(0, 1) if batch_first else x, None, hx, params, num_layers, bidirectional)
        return (found[0].transpose(0, 1), *found[1:]) if batch_first else found

    return run


def _recurrent_packed(step: Cell) -> Callable[..., tuple[Tensor, ...]]:
    """Make an operator on packed sequences, whose lengths must not depend on the inputs."""

    def run(
        data: Tensor,
        batch_sizes: Tensor,
        hx: Tensor | Sequence[Tensor],
        params: Sequence[Tensor],
        has_biases: bool,
        num_layers: int,
        dropout: float,
        train: bool,
        bidirectional: bool,
    ) -> tuple[Tensor, ...]:
        return _layers(step, data, batch_sizes.tolist(), hx, params, num_layers, bidirectional)

    return run


def _pack(x: Tensor, lengths: Tensor, batch_first: bool) -> tuple[Tensor, Tensor]:
    """The rows of sequences in falling order of their lengths, moment by moment, and how many each moment has."""
    x = x.transpose(0, 1) if batch_first else x
    known = [int(length) for length in lengths]  # unlike `tolist`, leaves a trace of what depends on the inputs
    sizes = [sum(length > t for length in known) for t in range(known[0])]
    return torch.cat([x[t, :size] for t, size in enumerate(sizes)]), torch.tensor(sizes)


def _unpack(
    data: Tensor, batch_sizes: Tensor, batch_first: bool, padding_value: float, total_length: int
) -> tuple[Tensor, Tensor]:
    """The inverse of packing, with a number where sequences have ended."""
    sizes = batch_sizes.tolist()
    pad = [0, 0] * (data.ndim - 1)
    moments = [F.pad(rows, [*pad, 0, sizes[0] - len(rows)], value=padding_value) for rows in data.split(sizes)]
    moments += [torch.full_like(moments[0], padding_value)] * (total_length - len(sizes))
    lengths = torch.tensor([sum(size > k for size in sizes) for k in range(sizes[0])])
    return torch.stack(moments, 1 if batch_first else 0), lengths


def _cell(step: Cell) -> Callable[..., Any]:
    """Make an operator for one moment."""

    def run(
        x: Tensor,
        hx: Tensor | Sequence[Tensor],
        w_ih: Tensor,
        w_hh: Tensor,
        b_ih: Tensor | None = None,
        b_hh: Tensor | None = None,
    ) -> Any:
        params = [p for p in (w_ih, w_hh, b_ih, b_hh) if p is not None]
        state = step(_project(x, params), (hx,) if isinstance(hx, Tensor) else tuple(hx), params)
        return state[0] if isinstance(hx, Tensor) else state

    return run


def _cross(a: Tensor, b: Tensor, dim: int = -1) -> Tensor:
    return a.roll(-1, dim) * b.roll(-2, dim) - a.roll(-2, dim) * b.roll(-1, dim)


def _add_product(x: Tensor, mat: Tensor, vec: Tensor, beta: float = 1, alpha: float = 1) -> Tensor:
    return beta * x + alpha * torch.matmul(mat, vec)


def _times_log(x: Tensor, y: Tensor) -> Tensor:
    """Give x log y, 0 where x is, also of the logarithm of 0."""
    return x * y.clamp_min(torch.finfo(y.dtype).tiny).log()


def _remainder(round_down: Callable[[Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    """Make what a division leaves, with the number of times it goes a constant."""
    return lambda x, by: x - by * round_down(x / by).detach()


def _divided(x: Tensor, by: Any, rounding_mode: str | None) -> Tensor:
    """Give a quotient, or the step function that rounds it."""
    if rounding_mode == "floor":
        return torch.floor_divide(x, by)
    return x / by if rounding_mode is None else torch.trunc(x / by)


_TANH, _RELU = _plain_step(torch.tanh), _plain_step(torch.relu)
#: Operators that torch takes apart into products and functions of one tensor.
TAKEN_APART = (
    "einsum glu addcmul addcdiv addr mv dot vdot inner outer ger kron chain_matmul linalg_multi_dot linalg_vecdot "
    "linalg_matmul cross pairwise_distance "
    "float_power.Tensor_Tensor multiply.Tensor divide.Tensor true_divide.Tensor mse_loss l1_loss kl_div vander"
)
#: Products of rows with the matrix of their group, of packages that have their own: torch's takes bfloat16 alone.
EXPERTS_ELSEWHERE = ("transformers::grouped_mm_fallback",)
extend(aten.lerp.Tensor, made_of=_lerp)
extend(aten.cosine_similarity.default, made_of=_cosine)
for _op in (aten.maximum.default, aten.max.other):
    extend(_op, made_of=_chosen(torch.ge))
for _op in (aten.minimum.default, aten.min.other):
    extend(_op, made_of=_chosen(torch.le))
extend(aten.prelu.default, made_of=_prelu)
extend(aten.bilinear.default, made_of=_bilinear)
extend(aten.tensordot.default, made_of=_tensordot)
for _op in (aten._cdist_forward.default, aten.cdist.default):
    extend(_op, made_of=distances(_length))
for _op in (aten.pdist.default, aten._pdist_forward.default):
    extend(_op, made_of=pairs(_length))
extend(aten.hypot.default, made_of=_stacked(lambda x: torch.linalg.vector_norm(x, dim=0)))
extend(aten.logaddexp.default, made_of=_stacked(lambda x: torch.logsumexp(x, 0)))
extend(aten.copy.default, made_of=_copy)
extend(aten.addmv.default, made_of=_add_product)
extend(aten.linalg_cross.default, made_of=_cross)
extend(aten.ldexp.Tensor, made_of=lambda x, power: x * torch.exp2(power))
for _op in (aten.xlogy.Tensor, aten.special_xlogy.default):
    extend(_op, made_of=_times_log)
extend(aten.special_xlog1py.default, made_of=lambda x, y: _times_log(x, 1 + y))
extend(aten.copysign.Tensor, made_of=lambda x, like: torch.where(x.signbit() == like.signbit(), x, -x))
extend(aten.fmod.Tensor, made_of=_remainder(torch.trunc))
extend(aten.remainder.Tensor, made_of=_remainder(torch.floor))
for _op in (aten.div.Tensor_mode, aten.div.Scalar_mode):
    extend(_op, made_of=_divided)
extend(aten._weight_norm.default, made_of=_weight_norm)
_STEPS = {"lstm": _lstm_step, "gru": _gru_step, "rnn_tanh": _TANH, "rnn_relu": _RELU}
#: Recurrent layers on whole sequences, step by step.
RECURRENT = {name: _recurrent(step) for name, step in _STEPS.items()}
for _name, _run in RECURRENT.items():
    extend(getattr(aten, _name).input, made_of=_run)
#: Packed sequences: their lengths are numbers that a run alone tells.
PACKED: dict[Any, Callable[..., Any]] = {
    aten._pack_padded_sequence.default: _pack,
    aten._pad_packed_sequence.default: _unpack,
    **{getattr(aten, name).data: _recurrent_packed(step) for name, step in _STEPS.items()},
}
extend(aten.lstm_cell.default, made_of=_cell(_lstm_step))
extend(aten.gru_cell.default, made_of=_cell(_gru_step))
extend(aten.rnn_tanh_cell.default, made_of=_cell(_TANH))
extend(aten.rnn_relu_cell.default, made_of=_cell(_RELU))


def table() -> dict[Any, Callable[..., Any]]:
    """Map operators to the functions that `torch.export` puts in their place, unless they have a rule."""
    for packet in EXPERTS_ELSEWHERE:
        library, name = packet.split("::")
        if hasattr(getattr(torch.ops, library), name):  # once its package is loaded
            extend(getattr(getattr(torch.ops, library), name).default, made_of=_grouped)
    known = {op: r.made_of for op, r in RECORDS.items() if r.made_of is not None and r.energy is None}
    return _torchs() | known


@cache
def _torchs() -> dict[Any, Callable[..., Any]]:
    found = torch.export.default_decompositions()
    backward = [op for op in found if "backward" in str(op)]  # of derivatives that forward takes
    return {op: found[op] for op in (*named(TAKEN_APART), *backward)}
