"""Histograms against prometheus_client's own."""

from __future__ import annotations

import prometheus_client
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, generate_latest

from service.observability.histogram import Histogram

BUCKETS = (0.00005, 0.01, 1.0, 1024)


def exposition(registry):
    return [line for line in generate_latest(registry).decode().splitlines() if "_created" not in line]


@given(st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from([*BUCKETS, 0.0, 0.02, 5000.0]) | st.floats(0, 2000))))
def test_exposition_is_that_of_the_library(observations):
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    mine = Histogram("step_seconds", "Steps.", ("model", "phase"), BUCKETS, ours)
    other = prometheus_client.Histogram("step_seconds", "Steps.", ("model", "phase"), registry=theirs, buckets=BUCKETS)
    for phase, value in observations:
        mine.labels("m", phase).observe(value)
        other.labels("m", phase).observe(value)
    assert exposition(ours) == exposition(theirs)


def test_two_metrics_of_one_name_are_refused():
    registry = CollectorRegistry()
    Histogram("step_seconds", "Steps.", (), BUCKETS, registry)
    with pytest.raises(ValueError, match="step_seconds"):
        Histogram("step_seconds", "Steps.", (), BUCKETS, registry)
