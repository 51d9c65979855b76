"""The preconditioner of the solves, from a sample of the constraints."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from capalloc._linalg.kronecker import Kronecker, kronecker
from capalloc._measure.example_sums import Products

#: Random constraints that the preconditioner is made from, on at most so many examples.
SAMPLES, SAMPLED_EXAMPLES = 128, 64
#: From so many parameters on, fewer: each sample costs more than it brings.
MOST_PARAMS, FEW_SAMPLES = 2_000_000, 32


def precondition(products: Products) -> Kronecker:
    """From random constraints of single examples."""
    shapes = [tuple(p.shape) for p in products.operator.problem.params.values()]
    return kronecker(shapes, partial(samples, products))


def samples(products: Products, stream: int) -> Iterator[Tensor]:
    """C'xi of single examples, whose second moment is G."""
    chosen = torch.linspace(0, len(products.x) - 1, min(len(products.x), SAMPLED_EXAMPLES)).round().long()
    wanted = SAMPLES if products.num_params < MOST_PARAMS else FEW_SAMPLES
    each = max(1, wanted // len(chosen))
    alone = replace(products, x=products.x[chosen.to(products.x.device)], batch_size=1)
    for batch in alone.batches():
        for part in torch.arange(each).split(products.vectors):
            drawn = alone.adjoint(batch, alone.normal_rows(batch, len(part), 3, stream, int(part[0])))
            yield drawn.to(batch.x.dtype)
