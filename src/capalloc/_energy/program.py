"""The energy network of one batch: steps that are linear in path energies, with the gates frozen.

Index convention: every tensor of the network has the shape of the value it belongs to, (examples, ...).
An entry is the total energy of the paths from the inputs (and the constant) to that unit; entries of a
parameter are its squares. Energies of deep networks leave the range of floating point and only ratios are
needed, so slot k holds a mantissa whose largest entry stays within 2**-RANGE and 2**RANGE and stands for
mantissa * 2**exponents[k]: powers of two, hence exact.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from capalloc._energy.maps import EnergyMap, Gate, OpenWhere, Product, Sum, as_map
from capalloc._energy.program_steps import Edge, PartialMixture, Step, times
from capalloc._energy.ranges import Range, least_of_gates
from capalloc._energy.symmetries.labels import GROUND, NOTHING, Channels, filled

#: Rescaling costs a pass over the entries, so it waits until the largest has left this range of exponents.
RANGE = 8
EnergyFunction = Callable[..., Tensor]


@dataclass(frozen=True, eq=False)
class Energy:
    """One tensor of the energy network, as rules see it."""

    slot: int
    shape: tuple[int, ...]
    labels: Tensor | None = None  # channel labels of a signal; None for a parameter

    @property
    def is_signal(self) -> bool:
        """Tell whether paths from the inputs end here; otherwise it is made of parameters alone."""
        return self.labels is not None


@dataclass
class Program:
    """Steps in order, with every slot's mantissa and exponent, and the channels' ties."""

    dtype: torch.dtype = torch.float64
    values: list[Tensor] = field(default_factory=list)
    exponents: list[int] = field(default_factory=list)
    is_signal: list[bool] = field(default_factory=list)
    free: list[bool] = field(default_factory=list)  # whether a selected parameter is in the slot
    steps: list[Step] = field(default_factory=list)
    edges: list[Edge] = field(default_factory=list)
    params: dict[str, int] = field(default_factory=dict)  # selected parameter -> slot
    channels: Channels = field(default_factory=Channels)
    layers: dict[str, tuple[int, ...]] = field(default_factory=dict)  # layer name -> slots
    nodes: dict[str, int] = field(default_factory=dict)  # node of the graph that is watched -> slot
    input: int = -1
    constant: int = -1
    output: int = -1
    found: dict[Any, Any] = field(default_factory=dict)  # matrices of operators without a rule of their own
    making: Callable[[Mapping[int, Tensor]], tuple[dict[int, Tensor], bool]] | None = None  # `Making.held`
    powers: dict[int, Tensor] = field(default_factory=dict)  # weight slot -> d log(weight) / d theta, where not alike
    needed: set[int] = field(default_factory=set)  # signals whose energies the sweeps read
    weights: bool = True  # whether sweeps ask what weights carry, which takes the energies that enter them
    # What linear segments ask of channels (`linear_spaces`): signals that enter a gate, labels of those that a fixed
    # factor treats unlike from place to place, and (labels, index) of channels that a fixed map keeps apart.
    decoupled: list[Energy] = field(default_factory=list)
    uneven: list[Tensor] = field(default_factory=list)
    pooled: list[Energy] = field(default_factory=list)  # of them, those that enter a maximum: a bias may pass it
    bent: bool = False  # whether a gate does not let rescale what enters it
    apart: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    partial: list[PartialMixture] = field(default_factory=list)
    side: Literal["both", "inputs", "constant"] = "both"  # whose paths are being traced
    begun: bool = False  # whether a free parameter would have started paths while those of the inputs were traced
    #: takes the next map with weights whole, from the inputs
    mix: Callable[[EnergyMap, Energy, Energy], tuple[EnergyMap, Energy]] | None = None
    nothing: set[int] = field(default_factory=set)  # signals without any path
    still: set[int] = field(default_factory=set)  # signals that no parameter and no input moves
    reach: Range | None = field(init=False)  # of numbers narrower than float64

    def __post_init__(self) -> None:
        self.reach = None if self.dtype == torch.float64 else Range(self.is_signal)

    # -- leaves ---------------------------------------------------------------------------------------------

    def leaf(self, energy: Tensor, labels: Tensor | None = None) -> Energy:
        """Add a tensor that no step makes."""
        mantissa, shift = _normalise(energy.to(self.dtype))
        return self._slot(mantissa, shift, labels, self.reach.of_leaf(energy) - shift if self.reach else 0)

    def squares(self, value: Tensor) -> Energy:
        """Add the squares of a tensor; they are taken of the rescaled value, so none is lost to underflow."""
        value, exponent = _normalise(value.detach().to(self.dtype), of_square=True)
        mantissa, shift = _normalise(value.square())
        least = self.reach.of_squares(value, mantissa, shift) - shift if self.reach else 0
        return self._slot(mantissa, 2 * exponent + shift, None, least)

    def start(self, input_energy: Tensor) -> Energy:
        """Add the inputs, and the constant input of energy 1."""
        ground = torch.tensor(GROUND)
        self.constant = self.leaf(torch.ones((), dtype=self.dtype, device=input_energy.device), labels=ground).slot
        energy = self.leaf(input_energy, labels=ground)
        self.input = energy.slot
        self.needed |= {self.constant, self.input}
        return energy

    def none(self, shape: Sequence[int]) -> Energy:
        """Add a signal without any path."""
        zeros = self.values[self.constant].new_zeros(()).expand(tuple(shape))
        energy = self.leaf(zeros, labels=torch.tensor(NOTHING))
        self.nothing.add(energy.slot)
        return energy

    def parameter(self, name: str, value: Tensor) -> Energy:
        """Add a selected parameter."""
        energy = self.squares(value)
        self.params[name] = energy.slot
        self.free[energy.slot] = True
        return energy

    def revalue(self, weight: Energy, value: Tensor) -> Energy:
        """Replace a leaf whose paths carry another weight than its own, such as a bias with a mean folded in."""
        if self.side == "inputs":
            return weight
        if self.side == "constant":  # where its value is 0 it may be more at x = mu
            value = torch.where(value == 0, 1.0, value)
        names = [name for name, slot in self.params.items() if slot == weight.slot]
        return self.parameter(names[0], value) if names else self.squares(value)

    # -- steps ----------------------------------------------------------------------------------------------

    def step(
        self, fn: EnergyMap | EnergyFunction, args: Sequence[Energy], labels: Tensor | None, moves: bool = False
    ) -> Energy:
        """Append out = fn(arguments), rescaled, and evaluate it."""
        signals = [a.slot for a in args if a.is_signal]
        top = max((self.exponents[s] for s in signals), default=0)
        factors = tuple(math.ldexp(1.0, max(self.exponents[a.slot] - top, -1074)) if a.is_signal else 1.0 for a in args)
        fn = as_map(fn)
        raw = fn(*(times(self.values[a.slot], f) for a, f in zip(args, factors, strict=True)))
        mantissa, shift = (raw, 0) if moves else _normalise(raw)
        exponent = top + shift + sum(self.exponents[a.slot] for a in args if not a.is_signal)
        step = Step(fn, tuple(a.slot for a in args), factors, math.ldexp(1.0, -shift), len(self.values), moves)
        least = self.reach.of_step(step, raw) - shift if self.reach else 0
        out = self._slot(mantissa, exponent, labels, least)
        self.steps.append(step)
        self.free[out.slot] = labels is None and any(self.free[a.slot] for a in args)
        if signals and self.nothing.issuperset(signals):
            self.nothing.add(out.slot)
        if signals and self.still.issuperset(signals) and not any(self.free[a.slot] for a in args):
            self.still.add(out.slot)
        return out

    def move(self, fn: EnergyFunction, *args: Energy) -> Energy:
        """Move data: every output entry is one input entry, or nothing; labels move along."""
        if not any(a.is_signal for a in args):
            return self.step(fn, args, None, moves=True)
        full = (a.labels.expand(a.shape).to(torch.float64) for a in args if a.labels is not None)
        return self.step(fn, args, fn(*full).long(), moves=True)

    def gate(self, energy: Energy, squared: Tensor | float) -> Energy:
        """Multiply by squared gates, broadcastable to the energy or the energy to them."""
        gates = squared.to(self.dtype) if isinstance(squared, Tensor) else squared
        self.see_uneven(energy, gates)
        if (
            isinstance(gates, Tensor)
            and energy.labels is not None
            and not any(energy is e for e in self.decoupled[-3:])
        ) and _keeps_apart(gates, energy.labels):
            self.decoupled.append(energy)
        return self.step(Gate(gates, least_of_gates(squared) if self.reach else None), [energy], energy.labels)

    def open_where(self, energy: Energy, z: Tensor) -> Energy:
        """Let through where z > 0, as ReLU does; z has the shape of the energy."""
        if z.dtype != self.dtype or z.shape != energy.shape:
            return self.gate(energy, z > 0)
        self.see_uneven(energy, z)
        return self.step(OpenWhere(z), [energy], energy.labels)

    def see_uneven(self, energy: Energy, factor: Tensor | float) -> None:
        """Note channels that a fixed factor treats unlike from place to place."""
        if isinstance(factor, Tensor) and energy.labels is not None and factor.numel() > energy.labels.numel():
            self.uneven.append(energy.labels)

    def add(self, *terms: Energy) -> Energy:
        """Add residually: energies add, channels are tied."""
        first, *rest = terms
        for other in rest:
            assert first.labels is not None
            assert other.labels is not None
            shape = np.broadcast_shapes(first.shape, other.shape)
            tie = self.channels.tie if self.still.isdisjoint((first.slot, other.slot)) else self.channels.shift
            tie(first.labels, other.labels)
            covered, filler = (first, other) if first.shape == shape else (other, first)
            first = self.step(Sum(), [first, other], filled(covered.labels, filler.labels))
        return first

    def weigh(
        self,
        fn: EnergyMap | EnergyFunction,
        signal: Energy,
        weight: Energy,
        read: Tensor,
        written: Tensor,
        out_labels: Tensor,
        others: tuple[tuple[Tensor, Tensor], ...] = (),
    ) -> Energy:
        """Apply a parametric linear map: edges from channels `read` to channels `written`, tied where not free."""
        if self.mix is not None and self.free[weight.slot]:
            (fn, signal), self.mix = self.mix(as_map(fn), signal, weight), None
        out = self.step(fn, [signal, weight], out_labels)
        if signal.slot in self.nothing:
            return out
        if self.free[weight.slot]:
            again = self.side == "constant" and signal.slot != self.constant
            by_signal = out_labels.numel() != written.numel() or math.prod(out.shape) < math.prod(weight.shape)
            edge = Edge(len(self.steps) - 1, weight.slot, read, written, out_labels, others, again, by_signal)
            self.edges.append(edge)
            if self.weights:
                self.needed |= {signal.slot, out.slot} if by_signal else {signal.slot}
        else:
            carried = self.values[weight.slot] > 0
            for side, other in ((read, written), *others):
                self.channels.tie(torch.where(carried, side, 0), other)
        return out

    def begin(self, weight: Energy) -> Energy:
        """Start paths at the constant input with a parameter: a bias."""
        if self.side == "inputs":
            self.begun |= self.free[weight.slot]
            return self.none(weight.shape)
        labels = self.channels.fresh(weight.shape)
        ground = torch.full((), GROUND)
        return self.weigh(Product(), self._constant(), weight, ground, labels, labels)

    def fixed(self, value: Tensor) -> Energy:
        """Start paths at the constant input with a fixed number."""
        if self.side == "inputs":
            return self.none(value.shape)
        value = torch.where(value.isfinite(), value, 0.0)  # infinities are masks, which a softmax closes
        started = self.stand(value, torch.where(value != 0, GROUND, NOTHING).cpu())  # where it is 0 no path starts
        self.still.add(started.slot)
        return started

    def stand(self, value: Tensor, labels: Tensor | None) -> Energy:
        """Start paths at the constant input with fixed numbers that channels `labels` hold."""
        return self.step(Product(), [self._constant(), self.squares(value)], labels)

    def coherent(self, inputs: Energy, constant: Energy | None, at_mean: Tensor) -> Energy | None:
        """Give the constant's paths that meet in a unit before any gate the energy of its value at x = mu.

        Those that arrive share it in proportion to their energies; where none does it starts anew.
        """
        square = at_mean.to(self.dtype).square()
        if constant is None or constant.slot in self.nothing:
            return self.stand(at_mean, inputs.labels)
        assert inputs.labels is not None
        assert constant.labels is not None
        self.channels.tie(inputs.labels, constant.labels)
        arrived = self.values[constant.slot].expand(square.shape) * 2.0 ** self.exponents[constant.slot]
        shared = self.step(Gate(torch.where(arrived > 0, square / arrived, 0.0)), [constant], constant.labels)
        missing = torch.where(arrived > 0, 0.0, at_mean)
        return self.add(shared, self.stand(missing, inputs.labels)) if bool((missing != 0).any()) else shared

    def whole(self, inputs: Energy, constant: Energy | None, at_mean: Tensor) -> Energy:
        """Join the paths from the inputs and from the constant."""
        return self.add(inputs, self.stand(at_mean, inputs.labels) if constant is None else constant)

    def release(self, slots: Iterable[int]) -> None:
        """Let go of signals whose energies no sweep reads; a step's adjoint asks for their shape alone."""
        for slot in slots:
            if self.is_signal[slot] and slot not in self.needed:
                self.values[slot] = self.values[slot].new_zeros(()).expand(self.values[slot].shape)

    def forget(self) -> None:
        """Let go of everything large, once the sweeps are done: steps refer back to the program that holds them."""
        self.values.clear()
        self.steps.clear()

    def signals(self, step: Step) -> list[int]:
        """List the slots that a step reads and paths end in, each once."""
        return [slot for slot in dict.fromkeys(step.args) if self.is_signal[slot]]

    def owners(self) -> dict[int, frozenset[str]]:
        """Map slots that are made of parameters alone to the names of those."""
        owners = {slot: frozenset([name]) for name, slot in self.params.items()}
        for step in self.steps:
            mine = frozenset[str]().union(*(owners.get(slot, ()) for slot in step.args))
            if mine and not self.is_signal[step.out]:
                owners[step.out] = mine
        return owners

    # -- internals ------------------------------------------------------------------------------------------

    def _constant(self) -> Energy:
        return Energy(self.constant, (), torch.tensor(GROUND))

    def _slot(self, value: Tensor, exponent: int, labels: Tensor | None, least: float) -> Energy:
        self.values.append(value)
        if self.reach:
            self.reach.least.append(least)
        self.exponents.append(exponent)
        self.is_signal.append(labels is not None)
        self.free.append(False)
        return Energy(len(self.values) - 1, tuple(value.shape), labels)


def _keeps_apart(gates: Tensor, labels: Tensor) -> bool:
    """Tell whether gates treat channels unlike, and not in the same way everywhere."""
    own = {axis for axis in range(-labels.ndim, 0) if labels.shape[axis] > 1}
    varying = {axis for axis in range(-gates.ndim, 0) if bool((gates != gates.narrow(axis, 0, 1)).any())}
    return bool(varying & own) and bool(varying - own)


def _normalise(value: Tensor, of_square: bool = False) -> tuple[Tensor, int]:
    """Split a value into a mantissa with its largest entry in range, and the power of two taken out."""
    if not value.numel():
        return value, 0
    low, high = (float(x) for x in value.aminmax()) if of_square else (0.0, float(value.amax()))
    largest = max(-low, high)
    if largest == 0.0 or not math.isfinite(largest):
        return value, 0
    shift = max(math.frexp(largest)[1] - 1, -1000)  # 2.0**1000 is still a number
    if abs(shift) * (2 if of_square else 1) <= RANGE:
        return value, 0
    return times(value, math.ldexp(1.0, -shift)), shift
