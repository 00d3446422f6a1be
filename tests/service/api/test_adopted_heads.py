"""Adopted networks that sample: as language models, and stepped by hand where an encoder begins."""

import json

import httpx
import numpy as np
import onnx

from carousel.export.adopt.trial import Trial
from tests.export.adopt.strangers import UNITS
from tests.export.adopt.test_encoder import reader, writer
from tests.export.adopt.test_head import GENERATE, TOKENS, adopt, language_network


def test_text_goes_on_as_the_file_says(tmp_path, run_server):
    """Served as any language model is."""
    tokens = tmp_path / "vocabulary.json"
    tokens.write_text(json.dumps(TOKENS))
    assert adopt(tmp_path, language_network(), *GENERATE, "--codec", f"ids={tokens}") == 0
    with run_server(repository=tmp_path / "bundles") as server:
        answer = httpx.post(f"{server.url}/v1/models/net/next-token", json={"text": "abca", "top": 5}).json()
    logits = Trial(onnx.load_model_from_string(language_network()))({"ids": np.array([[1, 2, 3, 1]])})["logits"][0, -1]
    shares = np.exp(logits - logits.max())
    told = {each["token"]: each["probability"] for each in answer["candidates"]}
    np.testing.assert_allclose([told[token] for token in range(5)], shares / shares.sum(), rtol=1e-5)


def test_ids_begun_by_an_encoder_are_stepped_by_hand(tmp_path, run_server):
    """The client samples, and a session keeps the state."""
    tokens = tmp_path / "vocabulary.json"
    tokens.write_text(json.dumps({"tokens": [*"abcdefghi"]}))
    (tmp_path / "reader.onnx").write_bytes(reader(attends=True))
    said = ["--encoder", str(tmp_path / "reader.onnx"), "--time", "ids=1", "--time", "token=1", "--lengths", "ids"]
    said += ["--shape", f"memory=12,{2 * UNITS}", "--shape", "mask=12", "--head", "generate", "--feeds", "token"]
    assert adopt(tmp_path, writer(classes=9), *said, "--from", "scores", "--codec", f"token={tokens}") == 0
    encoder, step = (
        Trial(onnx.load_model_from_string(content)) for content in (reader(attends=True), writer(classes=9))
    )
    ids = [3, 1, 4]
    begun = encoder({"ids": np.array([ids]), "mask": np.zeros((1, 3), np.bool_)})
    h, token, expected, seen = begun["h_out"], 0, [], []
    for _ in range(6):
        told = step({"token": np.array([[token]]), "memory": begun["memory_out"], "mask": begun["mask_out"], "h": h})
        h, token = told["h_next"], int(told["scores"].argmax())
        expected.append(token)
    with run_server(repository=tmp_path / "bundles") as server:
        token = 0
        for _ in range(6):
            body = {"inputs": {"ids": ids, "token": [token]}, "session": "s"}
            token = int(
                np.argmax(httpx.post(f"{server.url}/v1/models/net/predict", json=body).json()["outputs"]["scores"])
            )
            seen.append(token)
        bad = httpx.post(f"{server.url}/v1/models/net/predict", json={"inputs": {"ids": ids, "token": [9]}})
    assert seen == expected
    assert bad.json()["error"]["code"] == "token_out_of_range"
    assert "id 9" in bad.json()["error"]["message"]
