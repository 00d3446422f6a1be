"""Counters for what happens thousands of times a second (labelled.py says why not prometheus_client's)."""

from __future__ import annotations

from collections.abc import Sequence

from prometheus_client.metrics_core import CounterMetricFamily

from service.observability.labelled import Labelled


class Total:
    """The count of one set of labels."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0

    def inc(self, amount: int = 1) -> None:
        """Count so many."""
        self.value += amount


class Counter(Labelled[Total, CounterMetricFamily]):
    """One metric: a Total for each set of labels. Its name ends in `_total`."""

    family = CounterMetricFamily

    def make(self) -> Total:
        """Nothing counted."""
        return Total()

    def tell(self, family: CounterMetricFamily, values: Sequence[str], series: Total) -> None:
        """Add a total."""
        family.add_metric(values, series.value)
