"""Steps from the blocks' answer to the measured capacity: conjugate gradients, without a ridge.

With R R' the pseudo-inverse of G's blocks, A = R'G R, q_k the polynomial that k steps of conjugate gradients make, and
xi random signs, one for each row of C,

    kappa_s ~ E [ (C R q_k(A) R' C' xi)_s . xi_s ]  =  trace of q_k(A) R' G_s R,

which is the blocks' answer at k = 0 and trace(G^+ G_s) at the end (docs/theory.md, section 4). Stopping early is what
regularises. The sum over parameters of a tensor is read off in the blocks' coordinates: with b = R'C'xi and u the k-th
iterate, E [b_t . u_t].

Index convention: k probes, s slots, t tensors; vectors are (k, params).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from capalloc._linalg.inverse_root import UNITS_OF_ROUNDING, InverseRoot
from capalloc._measure.example_sums import ExampleSums


@dataclass(frozen=True)
class ProbeReading:
    """The capacity that each probe sees after some steps."""

    steps: int
    slots: Tensor  # (k, s)
    tensors: Tensor  # (k, t)


@dataclass(frozen=True)
class Refinement:
    """Readings at the numbers of steps passed, and the parameters that no probe has moved."""

    readings: tuple[ProbeReading, ...]
    unused: Tensor  # (params,)

    @property
    def last(self) -> ProbeReading:
        """The reading after all steps."""
        return self.readings[-1]

    @property
    def half(self) -> ProbeReading:
        """The reading after half of them, rounded down."""
        return self.readings[self.last.steps // 2]


def refine(
    sums: ExampleSums, root: InverseRoot, num_probes: int, most_steps: int, enough: Callable[[Refinement], bool]
) -> Refinement:
    """Take steps until `enough` says so, `most_steps` at most."""
    image = sums.signs(0, num_probes)
    unused, root = unmoved(image, sums.examples.x.dtype), root.completed(image)
    side = root.pull(image)
    found: list[ProbeReading] = []
    for reading in readings(sums, root, side, most_steps):
        found.append(reading)
        if enough(Refinement(tuple(found), unused)):
            break
    return Refinement(tuple(found), unused)


def unmoved(image: Tensor, dtype: torch.dtype) -> Tensor:
    """Tell the parameters that no probe has moved, (params,), beyond rounding where products are in float64.

    In float32 what is small beside the largest may be no rounding: only zeros count.
    """
    size = image.abs().amax(0)
    least = UNITS_OF_ROUNDING * torch.finfo(dtype).eps * float(size.max()) if dtype == torch.float64 else 0.0
    return size <= least


def blocks_alone(sums: ExampleSums, root: InverseRoot, directions: Iterable[Tensor], num_images: int) -> Refinement:
    """Read the blocks' answer off C R z for random signs z, (k, params) each: E |(C R z)_s|^2 is R' G_s R's trace.

    It has the mean of the reading after no step, without its errors from other slots, and takes one product less. Few
    images C' xi tell the tensors' parts, which need no more.
    """
    image = sums.signs(0, num_images)
    root = root.completed(image)
    tensors = _by_tensor(root.pull(image).square(), sums.examples.sizes)
    slots = torch.cat([sums.squares(root.push(z)) for z in directions])
    return Refinement((ProbeReading(0, slots, tensors),), unmoved(image, sums.examples.x.dtype))


def readings(sums: ExampleSums, root: InverseRoot, side: Tensor, most_steps: int) -> Iterator[ProbeReading]:
    """Yield the reading after no step, one, two and so on, each from one more product with G.

    Probes are solved for one by one, side by side: a shared Krylov space would make each reading depend on all probes.
    """
    limits, rounding = torch.finfo(torch.float64), UNITS_OF_ROUNDING * torch.finfo(sums.examples.x.dtype).eps
    sizes = sums.examples.sizes
    seen, product = sums.read(root.push(side), 0)
    yield ProbeReading(0, seen, _by_tensor(side * side, sizes))
    iterate, slots = torch.zeros_like(side), torch.zeros_like(seen)
    residual, direction = side, side
    square = side.square().sum(1)
    moving, steepest = square > 0, torch.zeros_like(square)
    for step in range(1, most_steps + 1):
        if step > 1:
            seen, product = sums.read(root.push(direction), 0)
        turned = root.pull(product)
        curvature = (direction * turned).sum(1)
        slope = curvature / direction.square().sum(1).clamp(min=limits.tiny)
        steepest = torch.maximum(steepest, slope)
        moving = moving & (slope > rounding * steepest)  # what is left of a probe that is solved
        rate = torch.where(moving, square / curvature.clamp(min=limits.tiny), 0.0)[:, None]
        iterate = iterate + rate * direction
        slots = slots + rate * seen
        residual = residual - rate * turned
        before, square = square, residual.square().sum(1)
        turning = torch.where(moving, square / before.clamp(min=limits.tiny), 0.0)[:, None]
        direction = residual + turning * direction
        yield ProbeReading(step, slots, _by_tensor(side * iterate, sizes))


def _by_tensor(values: Tensor, sizes: list[int]) -> Tensor:
    return torch.stack([part.sum(1) for part in values.split(sizes, 1)], 1)
