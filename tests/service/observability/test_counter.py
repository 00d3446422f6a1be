"""Counters against prometheus_client's own."""

from __future__ import annotations

import prometheus_client
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, generate_latest

from service.observability.counter import Counter


def exposition(registry):
    return [line for line in generate_latest(registry).decode().splitlines() if "_created" not in line]


@given(st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 10**12))))
def test_exposition_is_that_of_the_library(counts):
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    mine = Counter("tokens_total", "Tokens.", ("model", "kind"), ours)
    other = prometheus_client.Counter("tokens_total", "Tokens.", ("model", "kind"), registry=theirs)
    for kind, amount in counts:
        mine.labels("m", kind).inc(amount)
        other.labels("m", kind).inc(amount)
    assert exposition(ours) == exposition(theirs)


def test_series_are_forgotten_by_their_labels():
    registry = CollectorRegistry()
    counter = Counter("tokens_total", "Tokens.", ("model", "kind"), registry)
    for model in ("a", "b"):
        counter.labels(model, "prompt").inc()
    counter.remove_by_labels({"model": "a"})
    assert registry.get_sample_value("tokens_total", {"model": "a", "kind": "prompt"}) is None
    assert registry.get_sample_value("tokens_total", {"model": "b", "kind": "prompt"}) == 1
