"""Parts of a forward pass that autograd does not see hold nothing, by whichever context they are hidden."""

import numpy as np
import pytest
import torch
from torch import nn

import capalloc

HIDING = {
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "set_grad_enabled": lambda: torch.set_grad_enabled(False),
}


class Frozen(nn.Module):
    """Features without a gradient beside the inputs."""

    def __init__(self, hiding=None):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.hiding = nn.Linear(4, 3), nn.Linear(7, 2), hiding

    def forward(self, x):
        if self.hiding is None:
            features = torch.relu(self.a(x)).detach()
        else:
            with self.hiding():
                features = torch.relu(self.a(x))
        return self.b(torch.cat([features.clone(), x], 1))


@pytest.mark.parametrize("hiding", HIDING)
@pytest.mark.parametrize("solver", ["auto", "block", "markov"])
def test_hidden_parts_are_as_detached(hiding, solver):
    x = torch.randn(30, 4, generator=torch.Generator().manual_seed(1))
    found, expected = (capalloc.propagate(Frozen(h), x, solver=solver) for h in (HIDING[hiding], None))
    if solver != "block":  # whose probes are other ones
        np.testing.assert_allclose(found.capacity, expected.capacity, atol=1e-6)
    np.testing.assert_allclose(found.by_parameter, expected.by_parameter, atol=1e-6)
    assert found.total == pytest.approx(14 + 2, abs=1e-6)
