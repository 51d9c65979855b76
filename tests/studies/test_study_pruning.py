"""The study of pruning: each score on a network where the answer is known, and the share that is kept."""

from __future__ import annotations

import pytest
import torch
from studies import pruning

from study_pages import assert_page_has_places


@pytest.fixture
def data() -> pruning.Data:
    rng = torch.Generator().manual_seed(0)
    x, y = torch.rand(40, 1, 6, generator=rng), torch.randint(0, 3, (40,), generator=rng)
    return pruning.Data(x, y, x, y)


@pytest.mark.parametrize("method", pruning.METHODS)
@pytest.mark.parametrize("name", pruning.NETWORKS)
def test_the_share_that_is_kept(data, method, name):
    torch.manual_seed(0)
    model = pruning.NETWORKS[name](data).eval().requires_grad_(False)
    left = pruning.pruned(model, data, method, 0.1, rounds=3)
    weights = torch.cat([m.weight.flatten() for m in pruning.weighted(left)])
    assert int((weights != 0).sum()) == round(0.1 * len(weights))
    own = torch.cat([m.weight.flatten() for m in pruning.weighted(model)])
    assert torch.equal(weights[weights != 0], own[weights != 0])
    again = pruning.trained(left, data, 1)
    assert torch.equal(torch.cat([m.weight.flatten() for m in pruning.weighted(again)]) != 0, weights != 0)


def test_damage_is_that_of_the_loss_under_the_models_own_labels(data):
    """theta^2 E[(d log p(y) / d theta)^2] with y drawn from the model, against a sum over classes by hand."""
    torch.manual_seed(0)
    model = pruning.dense(data).eval()
    (last,) = [m for m in model if isinstance(m, torch.nn.Linear) and m.out_features == 3]
    found = pruning.damage(model, data)[last]
    with torch.no_grad():
        hidden = model[:-1](data.x)
        p = (hidden @ last.weight.T + last.bias).softmax(1)
    # d log p_c / d w_jk = (1[c = j] - p_j) h_k
    expected = torch.einsum("nj,nk->jk", p * (1 - p) ** 2 + (1 - p) * p**2, hidden**2) * last.weight.detach() ** 2
    torch.testing.assert_close(found, expected)


def test_the_page_has_a_place_for_the_table():
    assert_page_has_places(pruning.run(quick=True))
