"""Draw docs/pictures/house.png from the imports of src/: packages as rooms, each one floor above all that it imports.

python docs/pictures/house.py
"""

from __future__ import annotations

import ast
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import FancyBboxPatch

ROOT = Path(__file__).parents[2]
HOUSE = ROOT / "src/capalloc"
WIDTH, HEIGHT, BESIDE, ABOVE = 2.5, 1.15, 0.3, 0.62  # of a room, and the gaps between rooms
PUBLIC, PRIVATE = "#ede7f6", "#ffffff"

#: Arrows to the next floor, and those that pass behind rooms of the floors between.
NEXT: dict[str, object] = {"color": "#5e35b1"}
BEHIND: dict[str, object] = {"color": "#ef6c00", "ls": (0, (4, 3)), "connectionstyle": "arc3,rad=0.15"}

Arrow = tuple[str, str]


def rooms() -> list[str]:
    """The packages and modules right under `capalloc`."""
    return sorted(
        {source.relative_to(HOUSE).parts[0].removesuffix(".py") for source in HOUSE.rglob("*.py")} - {"__init__"}
    )


def sources(room: str) -> list[Path]:
    """The files of a package or module, and the stubs that list what is imported later."""
    return sorted([*(HOUSE / room).rglob("*.py"), *HOUSE.glob(f"{room}.py"), *HOUSE.glob(f"{room}.pyi")])


def imported(source: Path) -> Iterator[str]:
    """The rooms that a file imports from."""
    for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
        names: list[str] = []
        if isinstance(node, ast.ImportFrom):
            above = source.relative_to(HOUSE.parent).parts[: -node.level] if node.level else ()
            names = [".".join([*above, *filter(None, [node.module]), alias.name]) for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        yield from (name.split(".")[1] for name in names if name.startswith("capalloc."))


def arrows() -> set[Arrow]:
    """Who imports from whom."""
    found = {(room, other) for room in rooms() for source in sources(room) for other in imported(source)}
    return {(room, other) for room, other in found if room != other and other in rooms()}


def floors(steps: set[Arrow]) -> dict[str, int]:
    """The floor of every room: the longest chain of imports below it."""
    floor = dict.fromkeys(rooms(), 0)
    for _ in floor:
        floor.update({room: 1 + max(floor[other] for one, other in steps if one == room) for room, _ in steps})
    return floor


def plain(steps: set[Arrow]) -> set[Arrow]:
    """The arrows that no chain of others implies."""
    reach = set(steps)
    for middle in rooms():
        reach |= {(a, d) for a, b in reach if b == middle for c, d in reach if c == middle}
    return steps - {(a, d) for a, b in steps for c, d in reach if b == c}


def says(room: str) -> str:
    """The first sentence of a room's docstring, without the section it names."""
    first = (ast.get_docstring(ast.parse(sources(room)[0].read_text(encoding="utf-8"))) or "").split("\n")[0]
    return textwrap.fill(re.sub(r",? \(?docs/theory.md, sections? [\d, ]+\)?", "", first), 27)


def places(steps: set[Arrow]) -> dict[str, tuple[float, float]]:
    """The centre of every room; on its floor it stands as far left or right as what it imports."""
    at: dict[str, tuple[float, float]] = {}
    floor = floors(steps)
    for level in range(max(floor.values()) + 1):
        below = {room: [at[other][0] for one, other in steps if one == room] for room in floor if floor[room] == level}
        order = sorted(below, key=lambda room: sum(below[room]) / max(len(below[room]), 1))
        for column, room in enumerate(order):
            at[room] = (column - (len(order) - 1) / 2) * (WIDTH + BESIDE), level * (HEIGHT + ABOVE)
    return at


def draw(ax: Axes) -> None:
    """Draw the rooms and arrows; private rooms are white."""
    steps = plain(arrows())
    at = places(steps)
    for start, end in sorted(steps):
        (x0, y0), (x1, y1) = at[start], at[end]
        aside = max(min(0.12 * (x1 - x0), 0.4 * WIDTH), -0.4 * WIDTH)
        line = NEXT if y0 - y1 < 1.5 * (HEIGHT + ABOVE) else BEHIND
        style = {"arrowstyle": "-|>", "lw": 1.1, "shrinkA": 0, "shrinkB": 0, **line}
        ends = (x1 - aside, y1 + HEIGHT / 2), (x0 + aside, y0 - HEIGHT / 2)
        ax.annotate("", *ends, arrowprops=style, zorder=1)
    for room, (x, y) in at.items():
        corner = (x - WIDTH / 2, y - HEIGHT / 2)
        look = {"fc": PRIVATE if room.startswith("_") else PUBLIC, "ec": "#4527a0"}
        ax.add_patch(FancyBboxPatch(corner, WIDTH, HEIGHT, boxstyle="round,pad=0,rounding_size=0.08", **look))
        ax.text(x, y + 0.41, room, ha="center", va="center", family="monospace", weight="bold", size=10.5)
        ax.text(x, y + 0.25, says(room), ha="center", va="top", size=6, linespacing=1.25)
    ax.set_aspect("equal")
    ax.autoscale_view()
    ax.axis("off")


def main() -> None:
    """Draw the house and save the picture."""
    figure, ax = plt.subplots(figsize=(11, 9.5), layout="constrained")
    draw(ax)
    figure.savefig(Path(__file__).with_name("house.png"), dpi=100, metadata={"Software": None})


if __name__ == "__main__":
    main()
