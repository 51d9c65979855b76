"""The block rule: what total decoupling leaves out, from random probes of the mixed derivative.

The Markov rule takes path features to be orthogonal. With ReLU gates they are not: the inputs of one unit stay
coupled, and its weights ask for overlapping constraints. The block rule keeps that coupling and drops only the
one between units: with G_j and M_ij the blocks of G and M_i (docs/theory.md, section 2) that belong to the
weights into unit j,

    kappa_i ~ sum_j trace(G_j^+ M_ij).

Both are second moments of the mixed derivative, so random probes find them without a rule per operator: G_j from
per-example gradients d/dw_j of the derivative of f along random inputs, and the sum from one gradient of the
derivative of f along the random parameters z_j = G_j^(-1/2) xi_j,

    sum_j trace(G_j^+ M_ij) = E_xi [ (d/dx_i D_theta[z] f)^2 ].

Index convention: a weight is (units, fan_in), its first axis the units; a vector is all units, of fan-in 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.func import functional_call, grad, jvp, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from capalloc._model.problem import Problem, random_signs, seeded

Tensors = dict[str, Tensor]
#: Entries of all blocks of one tensor above which its units share one block, up to their scale.
BLOCK_LIMIT = 20_000_000
#: Examples that share one draw of z: few, for the draws are what the estimate's error comes from.
EXAMPLES_PER_DRAW = 8


@dataclass(frozen=True)
class UnitwiseEstimate:
    """Relative capacity at the inputs and the constant, each with the standard error over probes."""

    inputs: Tensor  # (*inputs)
    constant: Tensor  # ()
    inputs_error: Tensor
    constant_error: Tensor


def estimate(problem: Problem, batch_size: int, num_probes: int, generator: torch.Generator) -> UnitwiseEstimate:
    """The block rule from `num_probes` probes of every example, up to a factor common to all inputs."""
    params = {name: p.detach() for name, p in problem.params.items()}
    roots = _roots(problem, params, batch_size, num_probes, generator)
    shape = (num_probes, *problem.input_shape)
    at_inputs = torch.zeros(shape, dtype=torch.float64)
    at_constant = torch.zeros(num_probes, dtype=torch.float64)
    for k in range(num_probes):
        for index, x in enumerate(problem.batches(min(batch_size, EXAMPLES_PER_DRAW))):
            direction = {name: root.sample(generator) for name, root in roots.items()}
            with seeded(index, x.device), sdpa_kernel(SDPBackend.MATH):
                slope, offset = _along(problem, params, direction, x, generator)
            at_inputs[k] += slope.square().sum(0).double().cpu()
            at_constant[k] += offset.square().sum().double().cpu()
    scale = (num_probes - 1) ** 0.5
    return UnitwiseEstimate(
        at_inputs.mean(0), at_constant.mean(), at_inputs.std(0, False) / scale, at_constant.std(0, False) / scale
    )


def _along(
    problem: Problem, params: Tensors, direction: Tensors, x: Tensor, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """d/dx D_theta[direction] of each example's randomly signed outputs, and of their intercepts."""
    out_shape = problem(x).shape
    signs = random_signs(out_shape, x, generator)

    def derivative(x: Tensor) -> tuple[Tensor, Tensor]:
        _, change, *_ = jvp(lambda p: _outputs(problem, p, x), (params,), (direction,))
        each = (change * signs).sum(1)
        return each.sum(), each

    slope, each = grad(derivative, has_aux=True)(x)
    offset: Tensor = each - (slope * x).flatten(1).sum(1)
    return slope, offset


@dataclass(frozen=True)
class UnitRoot:
    """G_j^(-1/2) of every unit of one tensor, and how to draw from it."""

    factor: Tensor  # (units, fan_in, fan_in), or (1, fan_in, fan_in) for units that share theirs
    scale: Tensor  # (units,)
    like: Tensor  # the parameter

    def sample(self, generator: torch.Generator) -> Tensor:
        """z_j = G_j^(-1/2) xi_j with xi of random signs, in the tensor's own shape."""
        units, fan_in = len(self.scale), self.factor.shape[-1]
        xi = random_signs((units, fan_in), self.factor, generator)
        drawn = torch.einsum("uij,uj->ui", self.factor.expand(units, -1, -1), xi) * self.scale[:, None]
        return drawn.reshape(self.like.shape).to(self.like)


def _roots(
    problem: Problem, params: Tensors, batch_size: int, num_probes: int, generator: torch.Generator
) -> dict[str, UnitRoot]:
    moments = {name: _Moment.of(p) for name, p in params.items()}
    for index, x in enumerate(problem.batches(batch_size)):
        for _ in range(num_probes):
            with seeded(index, x.device), sdpa_kernel(SDPBackend.MATH):
                gradients = _mixed(problem, params, x, generator)
            for name, g in gradients.items():
                moments[name].add(g)
    return {name: moment.root(params[name]) for name, moment in moments.items()}


def _mixed(problem: Problem, params: Tensors, x: Tensor, generator: torch.Generator) -> Tensors:
    """Differentiate each example along a random input direction, then in theta, outputs randomly signed."""
    out = problem(x[:1]).shape[1]
    along, signs = random_signs(x.shape, x, generator), random_signs((len(x), out), x, generator)
    constant = random_signs((len(x),), x, generator)

    def derivative(params: Tensors, x: Tensor, along: Tensor, signs: Tensor, constant: Tensor) -> Tensor:
        # The direction of the constant input: the intercept f - grad_x f . x.
        value, change, *_ = jvp(lambda x: _outputs(problem, params, x[None])[0] @ signs, (x,), (along - constant * x,))
        along_inputs_and_constant: Tensor = change + constant * value
        return along_inputs_and_constant

    each = vmap(grad(derivative), in_dims=(None, 0, 0, 0, 0), randomness="same")
    gradients: Tensors = each(params, x, along, signs, constant)
    return gradients


@dataclass
class _Moment:
    """Second moment of per-example gradients, by unit, or shared by the units of a large tensor."""

    total: Tensor
    energy: Tensor  # (units,)
    samples: int = 0

    @classmethod
    def of(cls, parameter: Tensor) -> _Moment:
        units = len(parameter) if parameter.ndim else 1
        fan_in = parameter.numel() // units
        blocks = units if units * fan_in**2 <= BLOCK_LIMIT else 1
        zeros = torch.zeros(blocks, fan_in, fan_in, dtype=torch.float64)
        return cls(zeros, torch.zeros(units, dtype=torch.float64))

    def add(self, gradients: Tensor) -> None:
        """Add the gradients of a batch, (examples, *parameter)."""
        g = gradients.reshape(len(gradients), len(self.energy), -1).double().cpu()
        self.energy += g.square().sum((0, 2))
        if len(self.total) == len(self.energy):
            self.total += torch.einsum("sui,suj->uij", g, g)
        else:
            flat = g.reshape(-1, g.shape[-1])
            self.total += (flat.T @ flat)[None]
        self.samples += len(g)

    def root(self, like: Tensor) -> UnitRoot:
        """The inverse root. Blocks of few samples lean on the units' mean block, in proportion to what they lack."""
        fan_in = self.total.shape[-1]
        mean = self.total.sum(0) / self.energy.sum().clamp(min=torch.finfo(torch.float64).tiny)
        if len(self.total) == len(self.energy):
            lacking = fan_in / (fan_in + self.samples)
            blocks = (1 - lacking) * self.total + lacking * self.energy[:, None, None] * mean
            scale = (self.energy > 0).double()
        else:
            blocks = mean[None]
            scale = torch.where(self.energy > 0, self.energy.clamp(min=1e-300).rsqrt(), 0.0)
        values, vectors = torch.linalg.eigh(blocks)
        kept = values > fan_in * 1e-12 * values.amax(-1, keepdim=True)
        inverse = torch.where(kept & (values > 0), values.clamp(min=1e-300).rsqrt(), 0.0)
        return UnitRoot(vectors * inverse[:, None, :] @ vectors.mT, scale, like)


def _outputs(problem: Problem, params: Mapping[str, Tensor], x: Tensor) -> Tensor:
    return problem.select(functional_call(problem.model, dict(params), (x,))).reshape(len(x), -1)
