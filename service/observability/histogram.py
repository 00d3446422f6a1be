"""Histograms for what happens thousands of times a second (labelled.py says why not prometheus_client's)."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import HistogramMetricFamily

from service.observability.labelled import Labelled


class Series:
    """The observations of one set of labels."""

    __slots__ = ("_bounds", "_counts", "_sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        """Count a value; a bucket's bound belongs to it."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def cumulative(self) -> tuple[list[tuple[str, float]], float]:
        """For each bound, how many values are not above it; and the sum of all."""
        total, buckets = 0, []
        for bound, count in zip([*map(repr, self._bounds), "+Inf"], self._counts, strict=True):
            total += count
            buckets.append((bound, float(total)))
        return buckets, self._sum


class Histogram(Labelled[Series, HistogramMetricFamily]):
    """One metric: a Series for each set of labels.

    Args:
        name: of the metric.
        help_text: what it counts.
        labels: the names of its labels.
        buckets: upper bounds, ascending; that of infinity comes by itself.
        registry: where it is collected.
    """

    family = HistogramMetricFamily

    def __init__(
        self, name: str, help_text: str, labels: Sequence[str], buckets: Sequence[float], registry: CollectorRegistry
    ) -> None:
        self._bounds = tuple(map(float, buckets))
        super().__init__(name, help_text, labels, registry)

    def make(self) -> Series:
        """A series without observations."""
        return Series(self._bounds)

    def tell(self, family: HistogramMetricFamily, values: Sequence[str], series: Series) -> None:
        """Add a series."""
        family.add_metric(values, *series.cumulative())
