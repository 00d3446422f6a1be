"""A network of each cell is served, and says what torch says."""

from __future__ import annotations

import json
import urllib.request
from pathlib import Path

import pytest
import torch

from carousel.models.nn.cells.cell import CELLS
from carousel.models.nn.checkpoint import read_checkpoint
from carousel.models.nn.language import generate
from carousel.service.settings import Settings
from tests.service.conftest import running
from tests.trained import load_language_model


@pytest.mark.parametrize("cell", sorted(CELLS))
def test_network_of_each_cell_is_served(make_bundle, make_checkpoint, tmp_path: Path, cell: str) -> None:
    make_bundle(tmp_path / "models", "mine", cell=cell, seed=3)
    model, codec = load_language_model(read_checkpoint(make_checkpoint(tmp_path / "best", cell=cell, seed=3)))
    body = {"model": "mine", "prompt": "abacabad", "max_tokens": 20, "temperature": 0.0, "logprobs": 1}
    with running(Settings(repository=tmp_path / "models", port=0, max_rows=4, intra_op_threads=1)) as server:
        request = urllib.request.Request(f"{server.url}/v1/completions", json.dumps(body).encode(), method="POST")
        request.add_header("content-type", "application/json")
        with urllib.request.urlopen(request) as response:
            (choice,) = json.load(response)["choices"]
    prompt = codec.encode("abacabad")
    said = generate(model, prompt, 20)
    assert choice["text"] == codec.decode(said)
    with torch.inference_mode():
        logits, _ = model(torch.tensor([prompt + said]), model.initial_state(1))
    expected = logits[0, len(prompt) - 1 : -1].log_softmax(1)[range(20), said]
    torch.testing.assert_close(torch.tensor(choice["logprobs"]["token_logprobs"]), expected, atol=1e-4, rtol=1e-4)
