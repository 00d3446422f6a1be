"""Histograms against prometheus_client's own."""

from __future__ import annotations

import prometheus_client
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, generate_latest

from carousel.service.observability.histogram import FrequentHistogram

BUCKETS = (0.00005, 0.01, 1.0, 1024)


def exposition(registry):
    return [line for line in generate_latest(registry).decode().splitlines() if "_created" not in line]


@given(st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from([*BUCKETS, 0.0, 0.02, 5000.0]) | st.floats(0, 2000))))
def test_exposition_is_that_of_the_library(observations):
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    mine = FrequentHistogram("step_seconds", "Steps.", ("model", "phase"), buckets=BUCKETS, registry=ours)
    other = prometheus_client.Histogram("step_seconds", "Steps.", ("model", "phase"), registry=theirs, buckets=BUCKETS)
    for phase, value in observations:
        mine.labels("m", phase).observe(value)
        other.labels("m", phase).observe(value)
    assert exposition(ours) == exposition(theirs)


def test_two_metrics_of_one_name_are_refused():
    registry = CollectorRegistry()
    FrequentHistogram("step_seconds", "Steps.", (), buckets=BUCKETS, registry=registry)
    with pytest.raises(ValueError, match="step_seconds"):
        FrequentHistogram("step_seconds", "Steps.", (), buckets=BUCKETS, registry=registry)


def test_series_are_forgotten_by_their_labels():
    registry = CollectorRegistry()
    histogram = FrequentHistogram("step_seconds", "Steps.", ("model", "phase"), buckets=BUCKETS, registry=registry)
    for model in ("a", "b"):
        histogram.labels(model, "decode").observe(1)
    histogram.remove_by_labels({"model": "a"})
    assert registry.get_sample_value("step_seconds_count", {"model": "a", "phase": "decode"}) is None
    assert registry.get_sample_value("step_seconds_count", {"model": "b", "phase": "decode"}) == 1
