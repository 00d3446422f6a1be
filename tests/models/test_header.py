"""A checkpoint's header: what it is of today, and what it was before is turned into it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from carousel.models.errors import CheckpointError
from carousel.models.nn.checkpoint import Checkpoint, read_checkpoint
from carousel.models.nn.header import current
from carousel.models.nn.load import load


@pytest.fixture(params=["make_checkpoint", "make_tracing_checkpoint", "make_captioning_checkpoint"])
def written(request: pytest.FixtureRequest, tmp_path: Path) -> Checkpoint:
    """As training wrote it before format 2."""
    return read_checkpoint(request.getfixturevalue(request.param)(tmp_path / "best.safetensors"))


def test_header_of_before_is_loaded_as_todays(written: Checkpoint) -> None:
    assert "format" not in written.header
    header = current(written.header)
    assert (header["format"], header["task"]) == (2, written.header["task"])
    assert current(header) is header
    before, now = load(written), load(Checkpoint(written.tensors, header))
    assert (now.codecs, now.ports, now.head, now.files) == (before.codecs, before.ports, before.head, before.files)
    assert (now.limits, now.decoding, now.provenance) == (before.limits, before.decoding, before.provenance)
    expected = before.network.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in now.network.state_dict().items())


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"format": 3}, "checkpoint is of format 3; allowed are 1 and 2"),
        (
            {"network": {"kind": "transformer", "config": {}}},
            "checkpoint's network is 'transformer'; it should",
        ),
        ({"network": {"kind": "language"}}, "does not hold a whole .* model: its header has no 'config'"),
        ({"codecs": {"text": {"kind": "smell"}}}, "a codec is of kind 'smell'; known are"),
        ({"head": {"kind": "tail"}}, "a head is of kind 'tail'; known are"),
        ({"files": 5}, "does not hold a whole .* model: "),
        ({"limits": {"max_new_tokens": 0}}, "checkpoint's header limits.max_new_tokens: "),
    ],
)
def test_header_that_does_not_fit_is_refused(written: Checkpoint, change: dict[str, object], sentence: str) -> None:
    header = {**current(written.header), **change}
    with pytest.raises(CheckpointError, match=sentence):
        load(Checkpoint(written.tensors, header))


def test_header_of_a_task_that_there_was_not_is_refused(written: Checkpoint) -> None:
    with pytest.raises(CheckpointError, match=r"task 'painting'; allowed are language, tracing, captioning$"):
        load(Checkpoint(written.tensors, {**written.header, "task": "painting"}))
