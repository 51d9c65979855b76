"""Spectrum of a symmetric positive matrix by stochastic Lanczos quadrature.

From v on the unit sphere, m products give a Gauss quadrature of the density of eigenvalues seen by v, and
E[v'f(G)v] = trace f(G) / p. For f = s / (s + ridge) it is an upper bound at each v, and Gauss-Radau with a node at
zero a lower one.
Reference: S. Ubaru, J. Chen, Y. Saad, Fast estimation of tr(f(A)) via stochastic Lanczos quadrature, SIAM J. Matrix
Anal. Appl. 38 (2017) 1075-1099; G. Golub, G. Meurant, Matrices, moments and quadrature (2010).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.linalg import eigh_tridiagonal
from torch import Tensor

#: A new Lanczos vector shorter than this, relative to the largest so far, ends the recurrence: the space is exhausted.
EXHAUSTED = 1e-10


@dataclass(frozen=True)
class Quadrature:
    """Nodes and weights of every probe, (probes, nodes); weights of a probe sum to 1."""

    nodes: np.ndarray
    weights: np.ndarray
    radau_nodes: np.ndarray
    radau_weights: np.ndarray

    def total(self, ridge: float, num_params: int) -> SpectrumTotal:
        """Effective degrees of freedom, sum s / (s + ridge)."""
        upper = (self.weights * self._share(self.nodes, ridge)).sum(1)
        lower = (self.radau_weights * self._share(self.radau_nodes, ridge)).sum(1)
        squares = (self.weights * self._share(self.nodes, ridge) ** 2).sum(1)
        p = num_params
        variance = max(float((squares - upper**2).mean()), 0.0) * 2 * p**2 / (p + 2)
        error = (variance / len(upper)) ** 0.5
        return SpectrumTotal(float(lower.mean()) * p, float(upper.mean()) * p, error)

    @staticmethod
    def _share(s: np.ndarray, ridge: float) -> np.ndarray:
        return s / (s + ridge)


@dataclass(frozen=True)
class SpectrumTotal:
    """Bounds of the quadrature, in the mean over probes, and the standard error over probes."""

    lower: float
    upper: float
    standard_error: float


@dataclass(frozen=True)
class Recurrence:
    """Everything that the next Lanczos step needs, for several probes: plain tensors, (probes, n) and (probes, 1)."""

    v: Tensor  # the vectors whose products come next
    previous: Tensor
    beta: Tensor
    largest: Tensor
    diagonal: tuple[Tensor, ...] = ()
    off: tuple[Tensor, ...] = ()  # one for every product, so that the last is past the end

    @property
    def steps(self) -> int:
        """Products so far."""
        return len(self.diagonal)

    def step(self, product: Tensor) -> Recurrence:
        """Take in the products with `v`."""
        w = product - self.beta * self.previous
        alpha = (w * self.v).sum(1, keepdim=True)
        w = w - alpha * self.v
        beta = w.norm(dim=1, keepdim=True)
        largest = torch.maximum(self.largest, alpha.abs() + beta)
        beta = torch.where(beta > EXHAUSTED * largest, beta, 0)
        v = torch.where(beta > 0, w / torch.where(beta > 0, beta, 1), 0)
        return Recurrence(v, self.v, beta, largest, (*self.diagonal, alpha[:, 0]), (*self.off, beta[:, 0]))


def recurrence(start: Tensor) -> Recurrence:
    """Begin from each row of `start`, (probes, n), scaled to the unit sphere."""
    zero = torch.zeros(len(start), 1, dtype=start.dtype, device=start.device)
    return Recurrence(start / start.norm(dim=1, keepdim=True), torch.zeros_like(start), zero, zero)


def quadrature(found: Recurrence) -> Quadrature:
    """Nodes and weights from the steps so far; at least one."""
    diagonal, off = (torch.stack(part, 1).cpu().numpy() for part in (found.diagonal, found.off))
    gauss = [nodes_and_weights(a, b[:-1]) for a, b in zip(diagonal, off, strict=True)]
    radau = [nodes_and_weights(*with_zero(a, b)) for a, b in zip(diagonal, off, strict=True)]
    return Quadrature(*(np.stack(parts) for parts in (*zip(*gauss, strict=True), *zip(*radau, strict=True))))


def nodes_and_weights(diagonal: np.ndarray, off: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Gauss nodes and weights of one probe; rounding below zero is zero."""
    values, vectors = eigh_tridiagonal(diagonal, off)
    return np.clip(values, 0, None), vectors[0] ** 2


def with_zero(diagonal: np.ndarray, off: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The tridiagonal matrix one larger that has the eigenvalue zero: Gauss-Radau.

    Its last pivot must vanish; a pivot that already does ends the space, and nothing is added.
    """
    pivot = float(diagonal[0])
    for a, b in zip(diagonal[1:], off[:-1], strict=True):
        pivot = float(a) - float(b) ** 2 / pivot if pivot > 0 else 0.0
    last = float(off[-1]) ** 2 / pivot if pivot > 0 else 0.0
    return np.append(diagonal, last), np.asarray(off)
