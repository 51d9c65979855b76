"""Eigenvectors of symmetric matrices where torch's LAPACK finds none."""

from __future__ import annotations

import pytest
import torch
from benchmarks.scale import images
from torch import Tensor

import capalloc
from capalloc._linalg.symmetric import eigh
from capalloc.architectures.resnet import resnet18
from capalloc.solvers import Block


def never_converges(matrix: Tensor) -> None:
    raise torch.linalg.LinAlgError("linalg.eigh: The algorithm failed to converge")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_eigenvectors_are_those_of_another_lapack_where_torch_does_not_converge(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    half = torch.randn(30, 8, generator=torch.Generator().manual_seed(0), dtype=dtype)
    matrix = half @ half.T
    monkeypatch.setattr(torch.linalg, "eigh", never_converges)
    values, vectors = eigh(matrix)
    assert values.dtype == vectors.dtype == dtype
    assert (values.diff() >= 0).all()
    rounding = 100 * torch.finfo(dtype).eps * float(values[-1])
    torch.testing.assert_close(vectors @ torch.diag(values) @ vectors.T, matrix, rtol=0, atol=rounding)
    torch.testing.assert_close(vectors.T @ vectors, torch.eye(30, dtype=dtype), rtol=0, atol=1e-5)


def test_eigenvectors_of_what_is_not_finite_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.linalg, "eigh", never_converges)
    with pytest.raises(torch.linalg.LinAlgError, match="failed to converge"):
        eigh(torch.full((2, 2), torch.nan))


def test_blocks_of_kernels_on_maps_of_one_pixel() -> None:
    """Eight ninths of the last stage's weights see padding alone; torch's LAPACK on x86 gave up on such a block."""
    torch.manual_seed(0)
    model = resnet18(width=8, num_classes=10, shape=(3, 16, 16)).eval()
    found = capalloc.propagate(model, images(8, 16), metric="variance", solver=Block(num_probes=2, num_steps=1))
    assert found.attrs["unused_params"] >= 8 / 9 * sum(p.numel() for p in model[-2].parameters() if p.ndim == 4)
    assert found.total > 0
