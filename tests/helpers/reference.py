"""Slow, obvious references in float64: brute-force derivatives, plain pseudo-inverses."""

from __future__ import annotations

import copy

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev


def mixed_derivative(model: nn.Module, x: Tensor, bias: bool = True, center: Tensor | float = 0.0) -> np.ndarray:
    """d/dtheta_k of (grad_x f_o, f_o - grad_x f_o . (x - center)) for one example: (outputs, inputs + 1, params)."""
    model = copy.deepcopy(model).double().eval()
    params = {name: p.detach() for name, p in model.named_parameters()}
    x = x.double()

    def f(values: dict[str, Tensor], point: Tensor) -> Tensor:
        return functional_call(model, values, (point[None],)).reshape(-1)

    def affine(values: dict[str, Tensor]) -> Tensor:
        slope = jacrev(f, argnums=1)(values, x).flatten(1)
        intercept = f(values, x) - slope @ (x - center).flatten()
        return torch.cat([slope, intercept[:, None]], 1) if bias else slope

    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        jacobian = jacrev(affine)(params)
    return torch.cat([jacobian[name].flatten(2) for name in params], 2).numpy()


def constraints(model: nn.Module, inputs: Tensor, bias: bool = True, center: Tensor | float = 0.0) -> np.ndarray:
    """The mixed derivative of every example: (examples, outputs, slots, params)."""
    return np.stack([mixed_derivative(model, x, bias, center) for x in inputs])


def whiten(C: np.ndarray, covariance: np.ndarray, bias: bool = True) -> np.ndarray:
    """Mix the input axis by the symmetric root of the covariance; the constant input keeps weight 1."""
    values, vectors = np.linalg.eigh(covariance)
    root = vectors @ np.diag(np.sqrt(np.clip(values, 0, None))) @ vectors.T
    mixed = np.einsum("ij,eojk->eoik", root, C[:, :, : len(root)])
    return np.concatenate([mixed, C[:, :, -1:]], 2) if bias else mixed


def capacity_table(C: np.ndarray, ridge: float = 0.0) -> np.ndarray:
    """diag of [G^(-1/2) M_i G^(-1/2)], G + ridge in place of G, from (examples, outputs, slots, params).

    Returns (params, slots).
    """
    rows = C.reshape(-1, C.shape[-1]) / np.sqrt(len(C))
    _, singular, vectors = np.linalg.svd(rows, full_matrices=False)
    keep = singular > 1e-10 * singular.max()
    values, vectors = singular[keep] ** 2 + ridge, vectors[keep]
    root = vectors.T @ np.diag(values**-0.5) @ vectors
    M = np.einsum("eoik,eoil->ikl", C, C) / len(C)
    return np.einsum("ab,ibc,ca->ai", root, M, root, optimize=True)


def by_tensor(table: np.ndarray, model: nn.Module) -> np.ndarray:
    """Sum the rows of a table over each parameter tensor."""
    sizes = [p.numel() for p in model.parameters()]
    return np.stack([part.sum(0) for part in np.split(table, np.cumsum(sizes)[:-1])])


def dense_markov() -> tuple[list[np.ndarray], np.ndarray]:
    """Weights and capacities of docs/theory.md, section 7 (dense, total decoupling)."""
    rng = np.random.default_rng(0)
    weights = [rng.normal(size=shape) for shape in ((4, 3), (3, 4), (2, 3))]
    return weights, np.array([8.37451321, 7.21119266, 7.41429413])
