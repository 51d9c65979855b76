"""The study of balance: all runs at once against torch's own optimisers one by one, and the place in the page."""

from __future__ import annotations

import pytest
import torch
from studies import balance

import capalloc
from study_pages import assert_page_has_places


@pytest.mark.parametrize("optimiser", balance.OPTIMISERS)
def test_all_runs_at_once_are_as_one_by_one(optimiser):
    data, sweep, rates = balance.images(), balance.Sweep((3,), (1,), 2, 2, 1), [0.003, 0.01]
    losses, accuracies = balance.fit(3, 1, optimiser, True, rates, sweep, data)
    for rate, loss, accuracy in zip(rates, losses, accuracies, strict=True):
        found = [alone(optimiser, rate, seed, data) for seed in range(2)]
        assert float(loss) == pytest.approx(sum(pair[0] for pair in found) / 2, rel=1e-3)
        assert float(accuracy) == pytest.approx(sum(pair[1] for pair in found) / 2, abs=0.005)


def alone(optimiser: str, rate: float, seed: int, data: balance.Images) -> tuple[float, float]:
    x, y = data.train
    name = balance.OPTIMISERS[optimiser]
    model = capalloc.balance(balance.network(3, 1, seed), x[: balance.SHOWN], optimiser=name)
    if optimiser == "SGD":
        moving = torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9)
    else:
        moving = torch.optim.Adam(model.parameters(), lr=rate)
    for batch in torch.randperm(len(x), generator=torch.Generator().manual_seed(0)).split(balance.BATCH):
        moving.zero_grad()
        torch.nn.functional.cross_entropy(model(x[batch]), y[batch]).backward()
        moving.step()
    with torch.no_grad():
        loss = torch.nn.functional.cross_entropy(model(data.validation[0]), data.validation[1])
        return float(loss), float((model(data.test[0]).argmax(1) == data.test[1]).float().mean())


def test_the_page_has_a_place_for_the_table():
    assert_page_has_places(balance.run(quick=True))
