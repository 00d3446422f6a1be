"""Checkpoints: what is written is read, a kill leaves the old file, and a foreign file is refused in one sentence."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from carousel.models.errors import CheckpointError
from carousel.models.nn import checkpoint as checkpoint_module
from carousel.models.nn.checkpoint import Checkpoint, read_checkpoint, write_checkpoint
from tests.trained import load_language_model


def test_checkpoint_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "last.safetensors"
    shared = torch.arange(6.0).view(2, 3)
    tensors = {"a.x": shared, "a.y": shared, "b.t": shared.t(), "n": torch.tensor(7, dtype=torch.int64)}
    header = {"step": 3, "best": 1.25, "text": "é\n", "list": [1, None]}
    write_checkpoint(path, Checkpoint(tensors, header))
    seen = read_checkpoint(path)
    assert seen.header == header
    assert seen.tensors.keys() == tensors.keys()
    assert all(torch.equal(seen.tensors[name], value) for name, value in tensors.items())
    assert seen.group("a").keys() == {"x", "y"}
    assert os.listdir(tmp_path) == ["last.safetensors"]


def test_checkpoint_that_cannot_be_completed_leaves_the_previous_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "last.safetensors"
    write_checkpoint(path, Checkpoint({"x": torch.ones(3)}, {"step": 1}))

    def full_disk(descriptor: int) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(checkpoint_module.os, "fsync", full_disk)
    with pytest.raises(OSError, match="no space"):
        write_checkpoint(path, Checkpoint({"x": torch.zeros(3)}, {"step": 2}))
    assert read_checkpoint(path).header == {"step": 1}


def test_checkpoint_missing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="there is no such checkpoint file"):
        read_checkpoint(tmp_path / "none.safetensors")


@pytest.mark.parametrize("content", [b"", b"not a checkpoint at all", b"\x80\x04pickled"])
def test_checkpoint_of_another_format_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="is not a safetensors file"):
        read_checkpoint(path)


def test_checkpoint_that_is_truncated_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    write_checkpoint(path, Checkpoint({"x": torch.ones(30)}, {}))
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match="is not a safetensors file"):
        read_checkpoint(path)


@pytest.mark.parametrize("metadata", [None, {"carousel": "{"}, {"carousel": "[1]"}, {"other": "{}"}])
def test_checkpoint_without_our_header_is_refused(tmp_path: Path, metadata: dict[str, str] | None) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"x": torch.ones(3)}, path, metadata)
    with pytest.raises(CheckpointError, match="without Carousel's JSON header"):
        read_checkpoint(path)


@pytest.mark.parametrize("tied", [False, True])
def test_language_model_is_loaded_with_its_codec(make_checkpoint, tmp_path: Path, tied: bool) -> None:
    written = read_checkpoint(make_checkpoint(tmp_path / "best.safetensors", tied=tied))
    model, codec = load_language_model(written)
    assert not model.training
    assert codec.decode(codec.encode("cab\n")) == "cab\n"
    assert all(torch.equal(value, written.tensors[f"model.{name}"]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"task": "tracing"}, "a whole tracing model: its header has no 'skills'"),
        ({"model": {"vocabulary_size": 13, "heads": 4}}, "model configuration: model.heads is not a key"),
        ({"model": 5}, "model configuration: model is 5; it should be an object"),
        (
            {"model": {"vocabulary_size": 13, "hidden_size": 1.5}},
            "model configuration: model.hidden_size is 1.5; it should be a valid integer",
        ),
        ({"model": {"vocabulary_size": 14}}, "checkpoint does not hold a whole language model"),
        ({"tokenizer": "{}"}, "checkpoint does not hold a whole language model"),
    ],
)
def test_language_model_refuses_a_header_that_does_not_fit(
    make_checkpoint, tmp_path: Path, change: dict[str, object], sentence: str
) -> None:
    written = read_checkpoint(make_checkpoint(tmp_path / "best.safetensors"))
    with pytest.raises(CheckpointError, match=sentence):
        load_language_model(Checkpoint(written.tensors, {**written.header, **change}))


def test_language_model_refuses_missing_tensors(make_checkpoint, tmp_path: Path) -> None:
    written = read_checkpoint(make_checkpoint(tmp_path / "best.safetensors"))
    tensors = {name: value for name, value in written.tensors.items() if name != "model.projection.bias"}
    with pytest.raises(CheckpointError, match=r"projection\.bias"):
        load_language_model(Checkpoint(tensors, written.header))
