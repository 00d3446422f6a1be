"""The table of what models take: disk is counted, memory is a running service's."""

from __future__ import annotations

import pytest

from carousel.benchmarks import memory
from carousel.benchmarks.load import Window


@pytest.mark.slow
def test_table_has_a_line_for_each_bundle(tiny_bundle, tiny_tracing_bundle, monkeypatch, capsys) -> None:
    monkeypatch.setattr(memory, "WINDOW", Window(seconds=0.5, warmup_seconds=0.1))
    memory.main([str(tiny_bundle), str(tiny_tracing_bundle), "--streams", "2"])
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in capsys.readouterr().out.splitlines()[4:]]
    assert [line[0] for line in lines] == ["tiny 1, fp32", "tiny-tutor 1, fp32"]
    for path, (_, _, stored, ready, after) in zip((tiny_bundle, tiny_tracing_bundle), lines, strict=True):
        assert stored == f"{sum(file.stat().st_size for file in path.iterdir()) / 1e6:,.1f} MB"
        assert 50 < float(ready.removesuffix(" MB")) < 300
        assert (after == "-") == (path == tiny_tracing_bundle)
