import pytest

from carousel.benchmarks.server import ServerFailed, StepTime, read_step_time, running

EXPOSITION = """\
# HELP carousel_step_seconds a step
# TYPE carousel_step_seconds histogram
carousel_step_seconds_bucket{le="+Inf",model="words",phase="decode"} 30
carousel_step_seconds_sum{model="words",phase="decode"} 0.5
carousel_step_seconds_count{model="words",phase="decode"} 30
carousel_step_seconds_sum{model="words",phase="prefill"} 0.25
carousel_step_seconds_count{model="words",phase="prefill"} 10
carousel_step_seconds_sum{model="other",phase="decode"} 9
carousel_step_seconds_count{model="other",phase="decode"} 9
# HELP carousel_engine_overhead_seconds not onnxruntime
# TYPE carousel_engine_overhead_seconds histogram
carousel_engine_overhead_seconds_bucket{le="+Inf",model="words"} 40
carousel_engine_overhead_seconds_sum{model="words"} 0.125
carousel_engine_overhead_seconds_count{model="words"} 40
carousel_engine_overhead_seconds_sum{model="other"} 9
carousel_engine_overhead_seconds_count{model="other"} 9
"""


def test_step_time_is_read_for_one_model_over_all_phases():
    assert read_step_time(EXPOSITION, "words") == StepTime(steps=40, step_seconds=0.75, overhead_seconds=0.125)


def test_step_time_since_is_the_difference():
    assert StepTime(9, 3.0, 1.0).since(StepTime(4, 1.0, 0.25)) == StepTime(5, 2.0, 0.75)


def test_server_that_ends_early_is_told_with_what_it_printed(tmp_path):
    with pytest.raises(ServerFailed, match="is not a version"), running("naive", tmp_path):
        raise AssertionError("it cannot be ready")
