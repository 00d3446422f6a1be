import argparse
from dataclasses import replace
from pathlib import Path

from carousel.benchmarks import against

CHECKOUT = Path(__file__).parents[2]


def test_figures_of_two_commits_are_compared(capsys, monkeypatch):
    monkeypatch.setattr(against, "CLIENTS", 2)
    for module in (against.tracing, against.captions):
        monkeypatch.setattr(module, "WARMUP_SECONDS", 0.1)
    for name in ("SKILLS", "LEARNERS"):
        monkeypatch.setattr(against.tracing, name, 2)
    options = argparse.Namespace(checkout=CHECKOUT, restarts=1, rounds=2, seconds=0.2, streams=[2])
    windows = {"captions": against._captions(1.0), "answers": against._answers(1.0), **against._streams(options)}
    models = dict.fromkeys(windows, "shakespeare") | {"captions": "scenes", "answers": "tutor"}
    asked = {
        what: lambda target, what=what, measure=measure: measure(replace(target, model=models[what]))
        for what, measure in windows.items()
    }
    against._compare(CHECKOUT / "bundles" / "shakespeare" / "2", options, asked)
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in capsys.readouterr().out.splitlines()]
    names = [row[0].removeprefix("shakespeare ") for row in rows]
    assert names[:2] == ["start, seconds", "resident at rest, MB"]
    assert set(names[2:-1]) >= {"captions: a second", "answers: a second", "2 streams, top-k 40: tokens/s"}
    for name, ratio, low, high, seen in rows:
        assert 0 < float(low) <= float(ratio) <= float(high), name
        assert float(seen.replace(",", "")) > 0, name


def test_checkout_without_bundles_is_told(tmp_path, capsys):
    assert against.main([str(tmp_path)]) == 1
    assert f"there is no bundle in {tmp_path}/build/benchmarks-int8/words" in capsys.readouterr().err
