"""Metrics with a series for each set of labels, for what happens thousands of times a second.

prometheus_client's own take locks, and walk the buckets. Here it is an addition, or a bisection and two; `python -m
benchmarks.recording` prints what it comes to. There is one writer, the event loop, so there is nothing to lock.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar, Generic, TypeVar

from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

SeriesT = TypeVar("SeriesT")
FamilyT = TypeVar("FamilyT", bound=Metric)


class Labelled(Collector, ABC, Generic[SeriesT, FamilyT]):
    """One metric.

    Args:
        name: of the metric.
        help_text: what it tells.
        labels: the names of its labels.
        registry: where it is collected.
    """

    family: ClassVar[type]
    """What the library calls a metric of this kind; made from a name, a help text and names of labels."""

    def __init__(self, name: str, help_text: str, labels: Sequence[str], registry: CollectorRegistry) -> None:
        self._name = name
        self._help = help_text
        self._labels = labels
        self._series: dict[tuple[str, ...], SeriesT] = {}
        registry.register(self)

    @abstractmethod
    def make(self) -> SeriesT:
        """A series of which nothing is known yet."""

    @abstractmethod
    def tell(self, family: FamilyT, values: Sequence[str], series: SeriesT) -> None:
        """Add a series, which has these values of the labels."""

    def labels(self, *values: str) -> SeriesT:
        """The series of these labels, made where there is none: keep it, looking it up costs more than counting."""
        assert len(values) == len(self._labels), "as many values as labels"
        series = self._series.get(values)
        if series is None:
            series = self._series[values] = self.make()
        return series

    def remove(self, *values: str) -> None:
        """Forget the series of these labels."""
        del self._series[values]

    def remove_by_labels(self, labels: Mapping[str, str]) -> None:
        """Forget the series that have these labels, whatever their others are."""
        wanted = [(self._labels.index(name), value) for name, value in labels.items()]
        for values in list(self._series):
            if all(values[place] == value for place, value in wanted):
                del self._series[values]

    def describe(self) -> Iterator[Metric]:
        """The metric without its series."""
        yield self.family(self._name, self._help, labels=self._labels)

    def collect(self) -> Iterator[Metric]:
        """The metric with its series."""
        family = self.family(self._name, self._help, labels=self._labels)
        for values, series in list(self._series.items()):
            self.tell(family, values, series)
        yield family
