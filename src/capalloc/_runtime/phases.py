"""The shares of a call's time, phase by phase."""

from __future__ import annotations

import time


class Phases:
    """The seconds of every phase of a call, in order; called with the name of the phase that just ended."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._since = time.perf_counter()

    def __call__(self, ended: str) -> None:
        """Add the time since the last call."""
        now = time.perf_counter()
        self.seconds[ended] = self.seconds.get(ended, 0.0) + now - self._since
        self._since = now

    def shares(self) -> dict[str, float]:
        """Give each phase's share of the time."""
        whole = sum(self.seconds.values()) or 1.0
        return {phase: seconds / whole for phase, seconds in self.seconds.items()}
