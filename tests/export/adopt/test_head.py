"""A head that samples: what ids are, and who serves the bundle."""

import json
import re

import numpy as np
import pytest
from onnx import TensorProto

from carousel.export.adopt.__main__ import main
from carousel.export.adopt.head import tokenizer_of
from carousel.models.bundle import open_bundle
from carousel.models.codec.text import TextCodec
from tests.export.adopt.strangers import FEATURES, UNITS, Stranger

TOKENS = ["<UNK>", "a", "b", "c", " "]


def language_network() -> bytes:
    """Ids -> logits of the next: [batch, time] -> [batch, time, 5]"""
    net = Stranger()
    net.takes("ids", ["batch", "time"], TensorProto.INT64)
    net.node("Gather", [net.weight("embedding", len(TOKENS), FEATURES), "ids"], ["x"])
    net.node("Transpose", ["x"], ["x_t"], perm=[1, 0, 2])
    net.recurrent("GRU", "x_t")
    net.node("Squeeze", ["y", net.constant("axis", np.array([1]))], ["y_t"])
    net.node("Transpose", ["y_t"], ["y_b"], perm=[1, 0, 2])
    net.node("MatMul", ["y_b", net.weight("V", UNITS, len(TOKENS))], ["logits"])
    net.gives("logits", ["batch", "time", len(TOKENS)])
    return net.content()


@pytest.fixture
def tokens(tmp_path):
    path = tmp_path / "vocabulary.json"
    path.write_text(json.dumps(TOKENS))
    return path


GENERATE = ["--time", "ids=1", "--head", "generate", "--feeds", "ids", "--from", "logits"]


def adopt(tmp_path, content, *flags):
    (tmp_path / "net.onnx").write_bytes(content)
    return main([str(tmp_path / "net.onnx"), "--repository", str(tmp_path / "bundles"), "--name", "net", *flags])


def test_bundle_without_an_encoder_is_of_language(tmp_path, tokens):
    assert adopt(tmp_path, language_network(), *GENERATE, "--codec", f"ids={tokens}") == 0
    manifest = open_bundle(tmp_path / "bundles" / "net" / "1").manifest
    assert (manifest.task, manifest.head.kind, manifest.ports) == (
        "language", "generate", {"ids": "tokens", "logits": "tokens"},
    )  # fmt: skip


def test_tokenizer_file_stays_what_it_is(tmp_path, tokens):
    made = tokenizer_of(tokens)
    codec = TextCodec.from_json(made.decode())
    assert codec.encode("ab?") == [1, 2, 0]
    assert codec.decode([1, 4, 3]) == "a c"
    (tmp_path / "tokenizer.json").write_bytes(made)
    assert tokenizer_of(tmp_path / "tokenizer.json") == made
    (tmp_path / "ids.json").write_text(json.dumps({token: place for place, token in enumerate(TOKENS)}))
    assert tokenizer_of(tmp_path / "ids.json") == made


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("nothing", "is no JSON"),
        ("[1, 2]", "is neither a tokenizer.json of the tokenizers library nor a list of tokens"),
        ('["a", "a"]', "is neither a tokenizer.json"),
        ('{"a": 0, "b": 2}', "is neither a tokenizer.json"),
        ('{"model": {}}', "not a tokenizer of the tokenizers library"),
        ('["a", "b"]', "2 tokens; .* is not a float32 row of them"),
    ],
)
def test_bad_tokens_are_refused(tmp_path, capsys, content, sentence):
    path = tmp_path / "tokens.json"
    path.write_text(content)
    assert adopt(tmp_path, language_network(), *GENERATE, "--codec", f"ids={path}") == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(sentence, line), line


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--head", "generate", "--feeds", "ids"], "--head generate is of a step, and needs --feeds, --from"),
        (["--feeds", "ids"], "--feeds, --from and --codec are of --head generate"),
        (["--head", "generate", "--feeds", "ids", "--from", "logits", "--encoder-only"], "is of a step"),
    ],
)
def test_flags_that_do_not_go_together_are_refused(tmp_path, capsys, flags, sentence):
    with pytest.raises(SystemExit, match="2"):
        adopt(tmp_path, language_network(), *flags)
    assert sentence in capsys.readouterr().err


def test_ports_and_tokens_must_be_there(tmp_path, tokens, capsys):
    assert adopt(tmp_path, language_network(), *GENERATE) == 1
    assert "needs to know what ids are: --codec ids=FILE" in capsys.readouterr().err
    assert adopt(tmp_path, language_network(), *GENERATE, "--codec", f"x={tokens}") == 1
    assert "--codec x=...: ids go through ids and logits alone" in capsys.readouterr().err
    wrong = [flag if flag != "logits" else "scores" for flag in GENERATE]
    assert adopt(tmp_path, language_network(), *wrong, "--codec", f"ids={tokens}") == 1
    assert "ports names 'scores', which is no port; ports are ids, logits" in capsys.readouterr().err
