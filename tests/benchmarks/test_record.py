import numpy as np
import pytest

from carousel.benchmarks.record import Latency, Recorder


def test_latency_quantiles_of_known_durations():
    latency = Latency.of([value / 1000 for value in range(101)])
    assert (latency.count, latency.p50_seconds, latency.p99_seconds) == (
        101,
        pytest.approx(0.050),
        pytest.approx(0.099),
    )


def test_latency_of_nothing_is_unknown_rather_than_zero():
    assert Latency.of([]) == Latency(0, None, None)


def test_recorder_keeps_what_falls_into_the_window():
    recorder = Recorder(start=10.0, end=14.0)
    recorder.first_token(9.9, 9.0)  # in the warm-up
    recorder.next_token(10.0, 9.9)  # the start belongs to the window
    recorder.next_token(10.3, 10.0)
    recorder.finished(10.3)
    recorder.first_token(11.0, 10.5)
    recorder.next_token(13.9, 11.0)
    recorder.next_token(14.0, 13.9)  # the end does not
    recorder.finished(14.0)
    result = recorder.result(client_cpu=0.25)
    assert (result.tokens, result.generations, result.seconds) == (4, 1, 4.0)
    assert result.tokens_per_second == 1.0
    assert result.first_token == Latency(1, pytest.approx(0.5), pytest.approx(0.5))
    p50, p99 = np.quantile([0.1, 0.3, 2.9], [0.5, 0.99])
    assert result.inter_token == Latency(3, pytest.approx(p50), pytest.approx(p99))
    assert result.client_cpu == 0.25


def test_recorder_tells_shed_from_failed():
    recorder = Recorder(0.0, 1.0)
    recorder.failed("overloaded", shed=True)
    recorder.failed("connection_lost", shed=False)
    recorder.failed("connection_lost", shed=False)
    result = recorder.result()
    assert (result.shed, result.failed, result.errors) == (1, 2, {"connection_lost": 2})
