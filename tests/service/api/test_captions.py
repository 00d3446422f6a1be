"""Captions over HTTP against the oracle, whichever way they are asked for."""

import base64
import json
from concurrent.futures import ThreadPoolExecutor
from xml.etree import ElementTree

import httpx
import numpy as np
import pytest

from tests.service.tiny_captioner import END, WORDS, text_of

CAPTIONS = "/v1/models/scenes/captions"
SVG = f"{CAPTIONS}/attention.svg"


def _b64(content: bytes) -> str:
    return base64.b64encode(content).decode()


def _post(client, **body):
    response = client.post(CAPTIONS, json=body)
    assert response.status_code == 200, response.text[:500]
    return [image["captions"] for image in response.json()["images"]]


@pytest.fixture
def many(picture):
    """Files whose captions are of many lengths."""
    return [picture(seed) for seed in range(24)]


def test_greedy_captions_are_the_oracles(caption, captioner, many):
    lengths = set()
    for file, found in zip(many, caption(*many, beam_width=1), strict=True):
        tokens, logprob, _ = captioner.greedy(file)
        lengths.add(len(tokens))
        (one,) = found
        assert one["tokens"] == tokens
        assert one["text"] == text_of(tokens)
        assert one["finish_reason"] == ("length" if len(tokens) == 20 else "stop")
        assert one["logprob"] == pytest.approx(logprob, abs=1e-4)
        length = len(tokens) + (one["finish_reason"] == "stop")
        assert one["score"] == pytest.approx(logprob / length**0.7, abs=1e-4)  # the model's length penalty
        assert "attention" not in one
    assert len(lengths) > 4


@pytest.mark.parametrize("penalty", [0, 0.7, 1.5])
def test_beam_finds_what_its_definition_says(caption, captioner, many, penalty):
    found = caption(*many, beam_width=4, n=4, length_penalty=penalty)
    for file, captions in zip(many, found, strict=True):
        expected = captioner.beam(file, 4, penalty)
        assert [one["tokens"] for one in captions] == [tokens for tokens, _, _ in expected]
        assert [one["text"] for one in captions] == [text_of(tokens) for tokens, _, _ in expected]
        assert [one["logprob"] for one in captions] == pytest.approx([logprob for _, logprob, _ in expected], abs=1e-4)
        assert [one["score"] for one in captions] == pytest.approx([score for _, _, score in expected], abs=1e-4)


def test_request_that_names_nothing_takes_the_models_defaults(caption, captioner, picture):
    (one,) = caption(picture(3))
    assert one["tokens"] == captioner.beam(picture(3), 3, 0.7)[0][0]


def test_image_may_come_in_a_form_in_base64_or_as_a_data_uri(client, caption, picture):
    file = picture(5)
    expected = caption(file, beam_width=2, n=2)
    wrapped = base64.encodebytes(file).decode()  # with MIME's line ends
    for text in (_b64(file), wrapped, f"data:image/png;base64,{_b64(file)}"):
        assert _post(client, image=text, beam_width=2, n=2) == [expected]
        assert _post(client, images=[text], beam_width=2, n=2) == [expected]


@pytest.mark.parametrize(
    ("kind", "options"), [("JPEG", {"quality": 95}), ("WEBP", {"lossless": True}), ("GIF", {}), ("PNG", {})]
)
def test_image_of_each_kind_is_captioned(caption, captioner, picture, kind, options):
    file = picture(7, kind, **options)
    assert caption(file, beam_width=1)[0]["tokens"] == captioner.greedy(file)[0]


def test_image_of_one_pixel_is_captioned(caption, captioner, picture):
    file = picture(7, size=(1, 1))
    assert caption(file, beam_width=1)[0]["tokens"] == captioner.greedy(file)[0]


def test_images_are_answered_in_their_order(client, caption, picture):
    files = [picture(seed) for seed in range(20)]  # of 8 rows
    alone = [caption(file) for file in files]
    assert caption(*files) == alone
    assert _post(client, images=[_b64(file) for file in files]) == alone


def test_caption_is_the_same_alone_and_among_63_others(server, caption, picture):
    files = [picture(seed) for seed in range(64)]
    ways = [{"beam_width": 1}, {"beam_width": 3}, {"temperature": 1, "seed": 3}]
    alone = [caption(file, **ways[place % 3]) for place, file in enumerate(files)]

    def ask(place: int):
        with httpx.Client(base_url=server.url, timeout=60, trust_env=False) as client:
            fields = {name: str(value) for name, value in ways[place % 3].items()}
            return client.post(CAPTIONS, files=[("image", ("photo", files[place]))], data=fields).json()

    with ThreadPoolExecutor(64) as pool:
        together = list(pool.map(ask, range(64)))
    assert [answer["images"][0]["captions"] for answer in together] == alone


def test_sampling_depends_on_its_seed_alone(caption, picture):
    file = picture(2)
    texts = [caption(file, temperature=1, seed=seed)[0]["text"] for seed in range(12)]
    assert len(set(texts)) > 3
    assert [caption(file, temperature=1, seed=seed)[0]["text"] for seed in range(12)] == texts


def test_sampling_fields_sample(caption, captioner, picture):
    file = picture(2)
    greedy = text_of(captioner.greedy(file)[0])
    assert caption(file, top_k=1)[0]["text"] == greedy  # of one
    assert caption(file, temperature=0, seed=4)[0]["text"] == greedy
    assert len({caption(file, seed=seed)[0]["text"] for seed in range(9)}) > 3


def test_log_probability_of_a_sampled_caption_is_the_models(caption, captioner, picture):
    file = picture(2)
    (one,) = caption(file, temperature=2, seed=5)
    state, features = captioner.begin(file)
    total, token = 0.0, 1
    for following in [*one["tokens"], END][:20]:
        logprobs, state, _ = captioner.step(token, state, features)
        total, token = total + logprobs[following], following
    assert one["logprob"] == pytest.approx(total, abs=1e-4)


@pytest.mark.parametrize("width", [1, 3])
def test_max_tokens_bounds_a_caption(caption, picture, width):
    for longest in (1, 3):
        for found in caption(picture(1), picture(2), max_tokens=longest, beam_width=width):
            assert len(found[0]["tokens"]) + (found[0]["finish_reason"] == "stop") <= longest


@pytest.mark.parametrize("width", [1, 3])
def test_attention_tells_where_the_model_looked(caption, captioner, many, width):
    for file, (one,) in zip(many, caption(*many, attention="true", beam_width=width), strict=True):
        assert [word["text"] for word in one["attention"]] == [WORDS[token] for token in one["tokens"]]
        state, features = captioner.begin(file)
        for before, word in zip([1, *one["tokens"]], one["attention"], strict=False):
            _, state, expected = captioner.step(before, state, features)
            assert np.array(word["map"]) == pytest.approx(expected, abs=1e-4)


def test_attention_changes_no_caption(caption, picture):
    plain, attended = caption(picture(4)), caption(picture(4), attention="true")
    assert [one["text"] for one in plain] == [one["text"] for one in attended]


def test_empty_caption_is_one(client, picture, captioner):
    """Where the end comes first, there is a caption of no words."""
    file = next(file for seed in range(200) if text_of(captioner.beam(file := picture(seed), 6, 0.0)[-1][0]) == "")
    (captions,) = _post(client, image=_b64(file), beam_width=6, n=6, length_penalty=0, attention=True)
    assert (captions[-1]["text"], captions[-1]["tokens"], captions[-1]["attention"]) == ("", [], [])
    assert captions[-1]["finish_reason"] == "stop"


def test_picture_shows_the_image_once_for_each_word(client, caption, picture):
    file = picture(4, size=(60, 40))
    words = caption(file, max_tokens=9)[0]["text"].split()
    answers = [
        client.post(SVG, files={"image": ("photo", file)}, data={"max_tokens": "9"}),
        client.post(SVG, json={"image": _b64(file), "max_tokens": 9}),
    ]
    for answer in answers:
        assert answer.status_code == 200, answer.text
        assert answer.headers["content-type"].startswith("image/svg+xml")
        assert answer.headers["content-security-policy"] == "default-src 'none'; img-src data:"
        root = ElementTree.fromstring(answer.text)
        texts = [element.text for element in root.iter("{http://www.w3.org/2000/svg}text")]
        assert texts[0] == " ".join(words)
        assert texts[2:] == words
        assert len(list(root.iter("{http://www.w3.org/2000/svg}use"))) == len(words) + 1
    assert answers[0].text == answers[1].text


def test_sse_is_the_socket_s_events(client, captioner, picture):
    file = picture(9)
    body = {"image": _b64(file), "stream": True, "attention": True}
    with client.stream("POST", CAPTIONS, json=body) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        lines = [line for line in response.iter_lines() if line]
    assert all(line.startswith("data: ") for line in lines)
    accepted, *tokens, finished = (json.loads(line[6:]) for line in lines)
    assert accepted["type"] == "accepted"
    assert accepted["request_id"] == response.headers["x-request-id"]
    expected, _, maps = captioner.greedy(file)
    assert [token["token"] for token in tokens] == expected
    assert [token["index"] for token in tokens] == list(range(len(expected)))
    assert "".join(token["text"] for token in tokens) == finished["text"] == text_of(expected)
    for token, looked in zip(tokens, maps, strict=True):
        assert np.array(token["attention"]) == pytest.approx(looked, abs=1e-4)
    assert finished["reason"] == ("length" if len(expected) == 20 else "stop")
    assert finished["usage"]["completion_tokens"] == len(expected)


def test_sse_by_form_samples_as_the_whole_answer_does(client, caption, picture):
    file = picture(9)
    fields = {"temperature": "1", "seed": "8"}
    whole = caption(file, **fields)[0]["text"]
    response = client.post(CAPTIONS, files={"image": ("photo", file)}, data={**fields, "stream": "true"})
    finished = json.loads(response.text.strip().splitlines()[-1][6:])
    assert finished["text"] == whole


def test_captions_are_counted_and_recorded(client, caption, picture, ended, server):
    def waited():
        labels = {"model": "scenes", "version": "1"}
        return server.context.metrics.registry.get_sample_value("carousel_queue_seconds_sum", labels)

    before = waited()
    caption(picture(0))
    caption(picture(0), beam_width=1)
    ended(ok=2)
    assert waited() > before
    text = client.get("/metrics").text
    assert 'endpoint="/v1/models/{model}/captions",model="scenes",outcome="ok"' in text


@pytest.mark.parametrize("size", [(2, 70_000), (70_000, 2), (1, 1)])
def test_image_of_any_shape_has_captions_and_a_picture(client, picture, size):
    files = {"image": picture(size=size)}
    for path in ("captions", "captions/attention.svg"):
        response = client.post(f"/v1/models/scenes/{path}", files=files)
        assert response.status_code == 200, response.text
    assert len(response.content) < 200_000
