import json

import pytest

from tests.benchmarks.test_report import report

pytest.importorskip("matplotlib", reason="matplotlib is not installed (it comes with the extra 'dev')")

from carousel.benchmarks.plots import main

PREFILL = {
    "lengths": [10, 100, 1000],
    "prefill_seconds": [0.001, 0.004, 0.03],
    "steps_seconds": [0.004, 0.04, 0.4],
    "resume_seconds": [0.0004, 0.0004, 0.0005],
}

PREFIX = {"model": "m", "lengths": [16, 128], "cold_seconds": [0.002, 0.005], "warm_seconds": [0.0005, 0.0005]}


FRAMES = {
    "real_time": [
        {"network": "n", "side": side, "streams": streams, "hertz": 5, "result": {"first_token": {"p99_seconds": p99}}}
        for side, streams, p99 in (
            ("carousel", 16, 0.002),
            ("carousel", 32, 0.5),
            ("one session", 16, 0.02),
            ("one session", 24, None),
        )
    ]
}


def labels(monkeypatch):
    """What is written at the ends of the lines, as it is drawn."""
    seen = []
    from matplotlib.axes import Axes

    original = Axes.annotate
    monkeypatch.setattr(
        Axes, "annotate", lambda self, text, *rest, **how: seen.append(text) or original(self, text, *rest, **how)
    )
    return seen


def test_plots_draw_what_each_file_holds(tmp_path, monkeypatch):
    seen = labels(monkeypatch)
    runs, prefill, prefix, frames = (tmp_path / f"{name}.json" for name in ("runs", "prefill", "prefix", "frames"))
    runs.write_text(report().to_json())
    prefill.write_text(json.dumps(PREFILL))
    prefix.write_text(json.dumps(PREFIX))
    frames.write_text(json.dumps(FRAMES))
    assert main([str(runs), str(prefill), str(prefix), str(frames), "--output", str(tmp_path)]) == 0
    drawn = {path.name for path in tmp_path.glob("*.png")}
    assert drawn == {"open_loop.png", "throughput.png", "prefill.png", "prefix.png", "frames.png"}
    assert {"carousel int8", "naive fp32", "naive int8", "between tokens, p99"} <= set(seen)
    assert {"step by step", "prefill", "resumed from a session", "unknown", "sent before"} <= set(seen)
    assert {"carousel", "one session", "10 ms"} <= set(seen)


def test_plots_refuse_a_file_without_measurements(tmp_path, capsys):
    empty = tmp_path / "empty.json"
    empty.write_text("{}")
    assert main([str(empty), "--output", str(tmp_path)]) == 1
    assert "holds no measurement" in capsys.readouterr().err
    assert main([str(tmp_path / "nothing.json"), "--output", str(tmp_path)]) == 1
    assert "cannot be read" in capsys.readouterr().err
    assert not list(tmp_path.glob("*.png"))
