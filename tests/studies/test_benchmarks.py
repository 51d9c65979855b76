"""The groups of benchmarks hold all of them."""

from __future__ import annotations

from benchmarks.__main__ import GROUPS, ON_REQUEST, discover


def test_every_benchmark_is_in_one_group_or_on_request() -> None:
    named = [*ON_REQUEST, *(name for group in GROUPS.values() for name in group)]
    assert sorted(named) == sorted(discover())
