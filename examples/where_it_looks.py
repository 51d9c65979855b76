"""Does it look where it should? Two networks that forecast carbon dioxide half a year ahead, from a year of weeks."""

import statsmodels.api
import torch
from torch import nn

import capalloc

weeks = statsmodels.api.datasets.co2.load_pandas().data["co2"].interpolate()  # Mauna Loa, 1958 to 2001
change = torch.tensor(weeks.diff().dropna().to_numpy())
windows = ((change - change.mean()) / change.std()).unfold(0, 64 + 26, 1)
past, ahead = windows[:, None, :64], windows[:, 64:].sum(1)
ahead = ahead / ahead.std()


def forecaster(*dilations: int) -> nn.Sequential:
    """Convolutions of three weeks, and one output for every week that has all of its past."""
    torch.manual_seed(0)
    channels = [1, 8, 8, 8, 8]
    sizes = zip(channels, dilations, strict=True)
    layers = [layer for width, d in sizes for layer in (nn.Conv1d(width, 8, 3, dilation=d), nn.ReLU())]
    return nn.Sequential(*layers, nn.Conv1d(8, 1, 1)).double()


def error(network: nn.Module) -> float:
    """Train on the first 1600 weeks; the mean squared error on the last 590, the target's variance being 1."""
    optimiser = torch.optim.Adam(network.parameters(), lr=3e-3)
    for _ in range(200):
        some = torch.randint(1600, (64,))
        optimiser.zero_grad()
        (network(past[some])[:, 0, -1] - ahead[some]).square().mean().backward()
        optimiser.step()
    return float((network(past[1630:])[:, 0, -1] - ahead[1630:]).square().mean().detach())


errors = {}
for name, dilations in {"plain": (1, 1, 1, 1, 1), "dilated": (1, 2, 4, 8, 16)}.items():
    network = forecaster(*dilations)
    last = (network(past[:1]).shape[-1] - 1,)
    field = capalloc.receptive_field(network, past[:8], output_position=last)
    errors[name] = error(network)
    print(
        f"{name}: sees {field.axes['column'].size} weeks, mostly {field.area_95}; error once trained {errors[name]:.2f}"
    )
assert errors["dilated"] < errors["plain"] / 2
