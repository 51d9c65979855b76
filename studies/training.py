"""Does the prediction at initial weights tell which deep networks train? (docs/theory.md, sections 5 and 6)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from studies.study import Study
from studies.training_fit import Budget
from studies.training_networks import Network, families
from studies.training_plot import draw
from studies.training_results import Result, Setting, results
from studies.training_tables import page, sleeping_page, wide_page
from studies.training_tasks import digits, pairs

DEPTHS = (10, 20, 50, 100)
SGD_RATES = (1e-4, 1e-3, 1e-2, 3e-2, 1e-1)
ADAM_RATES = (1e-3, 3e-3, 1e-2)
#: Theory is that of wide networks; these fail at width 32, with and without having been predicted to.
WIDTHS, WIDE_DEPTHS, WIDE_FAMILIES = (64, 128), (20, 50), ("plain, He", "plain tanh, 1/n", "divided, 1")
#: Steps of Adam do not shrink with a branch's factor: can it wake branches that carry nothing?
SLEEPING_DEPTHS, SLEEPING = (20, 50), ("residual, $L^{-1/2}$", "residual, $L^{-1}$", "residual, $L^{-2}$", "no blocks")


def run(quick: bool = False) -> Study:
    """Predict, train and compare; `quick` at one depth, one learning rate, two seeds."""
    networks = [network for depth in (DEPTHS[:1] if quick else DEPTHS) for network in families(depth)]
    found = {setting.name: results(setting, networks) for setting in (quick_settings() if quick else settings())}
    narrow = [r for r in found["digits, SGD"] if r.network.depth in WIDE_DEPTHS and r.network.family in WIDE_FAMILIES]
    parts = [page(found)] if quick else [page(found), wide_page(narrow + wide()), sleeping_page(sleeping())]
    return Study("validation.md", {"training": "\n\n".join(parts)}, {"training": draw(found)})


def wide() -> list[Result]:
    """Wider networks on digits, by SGD at the two rates that deep networks prefer."""
    chosen = some(WIDE_DEPTHS, WIDE_FAMILIES)
    networks = [replace(network, width=width) for width in WIDTHS for network in chosen]
    return results(Setting("digits, SGD", digits(), "SGD", SGD_RATES[1:3], threshold=0.9), networks)


def sleeping() -> list[Result]:
    """Pairs of digits by Adam."""
    budget = Budget(epochs=8)
    setting = Setting("pairs, Adam", pairs(), "Adam", ADAM_RATES, threshold=0.75, needs_blocks=True, budget=budget)
    return results(setting, some(SLEEPING_DEPTHS, SLEEPING))


def some(depths: Sequence[int], names: Sequence[str]) -> list[Network]:
    """The families named, at some depths."""
    return [network for depth in depths for network in families(depth) if network.family in names]


def settings() -> list[Setting]:
    """Digits by SGD with momentum and by Adam, pairs of digits by SGD."""
    return [
        Setting("digits, SGD", digits(), "SGD", SGD_RATES, threshold=0.9),
        Setting("digits, Adam", digits(), "Adam", ADAM_RATES, threshold=0.9),
        Setting(
            "pairs, SGD", pairs(), "SGD", SGD_RATES[1:], threshold=0.75, needs_blocks=True, budget=Budget(epochs=8)
        ),
    ]


def quick_settings() -> list[Setting]:
    """The same for seconds."""
    short = {"seeds": (0, 1), "budget": Budget(epochs=2)}
    return [
        Setting("digits, SGD", digits(), "SGD", (1e-2,), threshold=0.9, **short),
        Setting("digits, Adam", digits(), "Adam", (3e-3,), threshold=0.9, **short),
        Setting("pairs, SGD", pairs(per_image=1), "SGD", (1e-2,), threshold=0.75, needs_blocks=True, **short),
    ]
