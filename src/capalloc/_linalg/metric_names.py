"""Words for the metric of the inputs, apart from all that computes it: command lines are read before torch is there."""

from __future__ import annotations

from typing import Literal, get_args

#: Unit energy of each input about zero, or what the data say (docs/theory.md, section 2).
MetricName = Literal["identity", "variance", "covariance"]
METRICS: tuple[str, ...] = get_args(MetricName)
#: The metric of all methods and commands where none is asked for.
DEFAULT_METRIC: MetricName = "identity"
