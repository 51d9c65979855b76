"""Steps from the blocks' answer to the measured capacity, without a ridge.

With R R' the pseudo-inverse of G's blocks, A = R'G R and y_d what d steps of block Lanczos make of A^(-1/2) z, for
random signs z that share their space,

    kappa_s ~ E |(C R y_d)_s|^2,

which is the blocks' answer with y_0 = z and trace(G^+ G_s) at the end (docs/theory.md, section 4). Stopping early
is what regularises. A probe tells of a slot from that slot's constraints alone. The sum over parameters of a tensor is
read off in the blocks' coordinates: E |(A^(1/2) y_d)_t|^2.

Index convention: k probes, s slots, t tensors; vectors are (k, params).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from capalloc._linalg.inverse_root import UNITS_OF_ROUNDING, InverseRoot
from capalloc._linalg.krylov import KrylovSpace
from capalloc._linalg.saturation import BlockMoments
from capalloc._measure.example_sums import ExampleSums
from capalloc._runtime.memory import give_back

#: Images C' xi of random rows, which tell the parameters that move, variances that no sample saw, and the parts of
#: tensors in the blocks' answer. Slots need more of them.
FEWEST_IMAGES, IMAGES = 2, 8


@dataclass(frozen=True)
class ProbeReading:
    """The capacity that each probe sees after some steps."""

    steps: int
    slots: Tensor  # (k, s)
    tensors: Tensor  # (k, t); of images where blocks are read alone
    moments: BlockMoments  # of every example's constraints
    constant: float  # share of the constant's constraints that stand beside the blocks

    def held(self, total: float) -> Tensor:
        """Return the capacity of every slot, (s,), where all of them hold `total`.

        Blocks know no constraint of these examples apart, steps all of them.
        """
        known = torch.full_like(self.slots[0], float(self.steps > 0))
        known[-1] = max(float(known[-1]), self.constant)
        return self.moments.held(total, known)

    @property
    def least_total(self) -> float:
        """The least total of all slots: eigenvalues of A that steps have found not to be zero."""
        return float(self.slots.sum(1).mean()) if self.steps else 0.0


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
        """The last reading after at most half of them."""
        return [reading for reading in self.readings if 2 * reading.steps <= self.last.steps][-1]


def never_late(steps: int, seconds: float) -> bool:
    """Return False: there is all the time for another step."""
    return False


def refine(
    sums: ExampleSums,
    root: InverseRoot,
    z: Tensor,
    at: Collection[int],
    enough: Callable[[Refinement], bool],
    late: Callable[[int, float], bool] = never_late,
) -> Refinement:
    """Take steps until `enough` says so, to the last of `at` at most, and read after those numbers of them.

    They also end, with a reading, where another step would be `late`, by their number and the seconds of the last.
    """
    image = sums.noise(0, IMAGES)
    unused, root = unmoved(image, sums.examples.x.dtype), root.completed(root.turned(image))
    found: list[ProbeReading] = []
    for reading in readings(sums, root, z, at, late):
        found.append(reading)
        if enough(Refinement(tuple(found), unused)):
            break
    return Refinement(tuple(found), unused)


def unmoved(image: Tensor, dtype: torch.dtype) -> Tensor:
    """Tell the parameters that no probe has moved, (params,), beyond rounding where products are in float64.

    In float32 what is small beside the largest may be no rounding: only zeros count.
    """
    if dtype != torch.float64:
        return (image == 0).all(0)
    size = image.abs().amax(0)
    return size <= UNITS_OF_ROUNDING * torch.finfo(dtype).eps * float(size.max())


def blocks_alone(sums: ExampleSums, root: InverseRoot, directions: Iterable[Tensor], together: bool) -> Refinement:
    """Read the blocks' answer off C R z for random signs z, (k, params) each: E |(C R z)_s|^2 is R' G_s R's trace.

    Few images C' xi tell the tensors' parts, which need no more. Signs are held `together`, or their rows are: of a
    large network these are fewer, and its images are in the precision of products and change where they stand.
    """
    image = sums.noise(0, FEWEST_IMAGES, torch.float64 if together else sums.examples.x.dtype)
    unused = unmoved(image, sums.examples.x.dtype)
    image = root.turned(image)
    root = root.completed(image)
    tensors = _by_tensor(root.whitened(image).square_(), sums.examples.sizes).double()
    del image
    give_back(len(unused))
    if together:
        slots, moments = sums.read(root.push(torch.cat([*directions])))
    else:
        rows = sums.examples.by_example(torch.cat([sums.push(root.push(z, own=True)) for z in directions]))
        slots, moments = rows.square().sum((1, 2)), BlockMoments.of(rows, sums.examples.num_outputs)
    reading = ProbeReading(0, slots, tensors, moments, _constant(root))
    return Refinement((reading,), unused)


def readings(
    sums: ExampleSums,
    root: InverseRoot,
    z: Tensor,
    at: Collection[int],
    late: Callable[[int, float], bool] = never_late,
) -> Iterator[ProbeReading]:
    """Yield readings after so many steps, each step from one more product with G and each reading from one with C."""
    space = KrylovSpace.of(z, UNITS_OF_ROUNDING * torch.finfo(sums.examples.x.dtype).eps)
    if 0 in at:
        yield read(sums, root, z, 0, z * root.pull(sums.gram(root.push(z))))
    for steps in range(1, max(at) + 1):
        began = time.perf_counter()
        if len(space.next):
            space = space.step(root.pull(sums.gram(root.push(space.next))))
        last = late(steps, time.perf_counter() - began)
        if last or steps in at:
            y = space.inverse_sqrt(z)
            yield read(sums, root, y, steps, space.sqrt(y).square())
        if last:
            return


def read(sums: ExampleSums, root: InverseRoot, y: Tensor, steps: int, energy: Tensor) -> ProbeReading:
    """Read slots off C R y, and tensors off the energy y'A y of every coordinate, (k, params)."""
    slots, moments = sums.read(root.push(y))
    return ProbeReading(steps, slots, _by_tensor(energy, sums.examples.sizes), moments, _constant(root))


def _constant(root: InverseRoot) -> float:
    return 0.0 if root.beside is None else root.beside.share


def _by_tensor(values: Tensor, sizes: list[int]) -> Tensor:
    return torch.stack([part.sum(1) for part in values.split(sizes, 1)], 1)
