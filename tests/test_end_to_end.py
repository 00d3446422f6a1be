"""From a text file to a served figure: what training prints is what the engine gives for the same text."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from carousel.export.__main__ import main as export
from carousel.models.bundle import open_bundle
from carousel.models.codec.text import TextCodec
from carousel.service.engine.core import EngineCore
from carousel.service.engine.parameters import ScoreParameters
from carousel.service.engine.port import Request
from carousel.service.served.opening import open_runner
from carousel.training.__main__ import main as train

ROOT = Path(__file__).parent.parent
SMALL = [
    "model.embedding_size=6", "model.hidden_size=11", "batches.lanes=3", "batches.window=13", "schedule.epochs=2",
    "run.threads=1",
]  # fmt: skip


def run(*command: str, cwd: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-m", *command], cwd=cwd, env=None, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def call(command: str, *arguments: str, cwd: Path) -> None:
    """The same in this process: what starts and imports need not be tried three times."""
    main = {"training": train, "export": export}[command]
    with contextlib.chdir(cwd):
        assert main(arguments) == 0


@pytest.mark.slow
@pytest.mark.parametrize(("tokenizer", "run"), [("character", run), ("word", call), ("bpe", call)])
def test_own_text_is_trained_exported_and_scored_alike(tmp_path, tokenizer, run):
    text = "".join(f"the {number} of {number * 7919 % 101} things is écarté\n" for number in range(300))
    (tmp_path / "mine.txt").write_text(text)
    held_out = text[len(text) - int(len(text) * 0.1) :]
    kind = [f"tokenizer.kind={tokenizer}"] + (["tokenizer.vocabulary_size=300"] if tokenizer == "bpe" else [])
    run(
        "training", "training/recipes/own_text.toml", f"corpus.train={tmp_path / 'mine.txt'}", *SMALL, *kind,
        "--output", str(tmp_path / "run"), cwd=ROOT,
    )  # fmt: skip
    run("export", str(tmp_path / "run"), "--repository", str(tmp_path / "repository"), "--name", "mine", cwd=ROOT)

    bundle = open_bundle(tmp_path / "repository" / "mine" / "1")
    core = EngineCore(open_runner(bundle, intra_op_threads=1), max_rows=2)
    core.add(0, Request(np.array(bundle.codec(TextCodec).encode(held_out)), ScoreParameters()))
    finished = []
    while not core.idle:
        finished += core.step().finished
    logprobs = finished[0][1].result.logprobs
    assert bundle.manifest.figures is not None
    assert np.exp(-logprobs.mean()) == pytest.approx(bundle.manifest.figures.served["perplexity"], abs=1e-3)
    assert len(logprobs) == bundle.manifest.figures.served["tokens"]
