"""A model whose tokens are bytes and pieces of words: what is a character, bytes decide."""

import itertools
import json
import re

import httpx
import pytest
from websockets.sync.client import connect as websockets_connect

from carousel.training.corpus.tokenizer import TokenizerKind, build_codec
from tests.service.api.conftest import StreamClient

TEXT = "今日は良い天気です。 Déjà vu à l'été, où ça? 😀🎉 明日も晴れるでしょう\n" * 20
END = "\ufffd"


@pytest.fixture(scope="module")
def codec():
    return build_codec(TokenizerKind(kind="bpe", vocabulary_size=300), TEXT)


@pytest.fixture(scope="module")
def bpe(codec, make_bundle, run_server, tmp_path_factory):
    """A server of a byte-level model."""
    repository = tmp_path_factory.mktemp("byte_level")
    make_bundle(repository, "bpe", vocabulary=300, tokenizer=codec._tokenizer)
    with run_server(repository=repository) as server:
        yield server


@pytest.fixture(scope="module")
def complete(bpe):
    with httpx.Client(base_url=bpe.url, timeout=60, trust_env=False) as client:

        def post(prompt, **fields):
            response = client.post("/v1/completions", json={"model": "bpe", "prompt": prompt, **fields})
            assert response.status_code == 200, response.text
            if not fields.get("stream"):
                return response.json()["choices"][0]
            blocks = response.text.strip().split("\n\n")[:-1]
            return [json.loads(block.removeprefix("data: "))["choices"][0] for block in blocks]

        yield post


@pytest.fixture
def stream(bpe):
    with websockets_connect(bpe.socket_url("bpe"), proxy=None) as socket:
        yield StreamClient(socket)


def _decoded(codec, tokens):
    """What is shown of tokens: all but a character that is not whole at the end."""
    text = codec.decode(tokens)
    unfinished = re.fullmatch(rb"(?s).*?([\xc2-\xf4][\x80-\xbf]{0,2})?", b"".join(map(codec.partial_bytes, tokens)))
    return text[:-1] if unfinished[1] and text.endswith(END) else text


@pytest.mark.parametrize("prompt", ["abc" + END, END, "今日は" + END * 3])
def test_prompt_that_ends_in_a_replacement_character_is_whole(codec, complete, stream, prompt):
    fields = {"max_tokens": 6, "seed": 0}
    events = stream.generate(prompt, **fields)
    tokens = [event["token"] for event in events if event["type"] == "token"]
    text = _decoded(codec, tokens)
    assert "".join(event["text"] for event in events if event["type"] == "token") == text
    assert complete(prompt, **fields)["text"] == text
    assert complete(prompt, **fields, echo=True)["text"] == prompt + text
    assert "".join(part["text"] for part in complete(prompt, **fields, stream=True)) == text
    stopped = complete(prompt, **fields, stop=[END])
    assert stopped["text"] == text.split(END)[0]
    logprobs = complete(prompt, **fields, logprobs=0)["logprobs"]
    assert logprobs["text_offset"][0] == 0
    assert [codec.token_name(token) for token in tokens] == logprobs["tokens"]


def test_feed_goes_on_in_the_middle_of_a_character(codec, stream):
    first, *rest = codec.encode("Ā")
    assert rest
    stream.generate([first], max_tokens=1, temperature=0)
    events = stream.generate(rest, kind="feed", max_tokens=20, seed=1)
    tokens = [event["token"] for event in events if event["type"] == "token"]
    assert events[-1]["text"] == _decoded(codec, tokens)


def test_top_logprobs_tell_every_token_apart(codec, complete, stream):
    choice = complete("今日は", logprobs=5, temperature=0, max_tokens=40)
    top = choice["logprobs"]["top_logprobs"]
    assert {len(best) for best in top} == {5}
    named = set(itertools.chain(*top))
    assert named <= {codec.token_name(token) for token in range(codec.vocabulary_size)}
    assert any(name.startswith(r"bytes:\x") for name in named)
    assert END not in named
    for token, logprob, best in zip(
        choice["logprobs"]["tokens"], choice["logprobs"]["token_logprobs"], top, strict=True
    ):
        assert best[token] == logprob == max(best.values())


def test_top_logprobs_of_tokens_of_one_name_tell_the_more_probable():
    from carousel.service.engine.parameters import Alternative
    from carousel.service.tasks.language.completion_logprobs import top_logprobs

    best = (Alternative(1, -1.0), Alternative(2, -2.0))
    assert top_logprobs(7, -3.0, best, {1: "a", 2: "b", 7: "a"}.__getitem__) == {"a": -1.0, "b": -2.0}


def test_logprobs_of_a_streamed_token_are_written_as_those_of_a_list():
    from carousel.service.api.wire.frames import dumps
    from carousel.service.engine.parameters import Alternative
    from carousel.service.tasks.language.completion_logprobs import logprobs_json, sampled_logprobs
    from carousel.service.work.generation import Token

    class Codec:
        names = ('a"\n', "Ā", "bytes:\\xe4", "Ā")

        def token_name(self, token):
            return self.names[token]

    for logprob, others in ((-0.1, [0, 1, 2]), (float("-inf"), [1, 2]), (-1e-7, [1, 3]), (-2.0, [])):
        best = tuple(Alternative(one, -1.0 / (one + 3)) for one in others)
        token = Token(5, 0, "text", logprob, best)
        assert logprobs_json(Codec(), token, 7) == dumps(sampled_logprobs(Codec(), [token], 7))
