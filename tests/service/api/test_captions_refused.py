"""What captioning clients get wrong: each is told, nothing of the request runs, and the next is served as if nothing
had been."""

import base64
import io
import json
import socket
import struct
import threading
import zlib

import pytest
from PIL import Image

CAPTIONS = "/v1/models/scenes/captions"
SVG = f"{CAPTIONS}/attention.svg"
SVG_FILE = b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"><rect width="9" height="9"/></svg>'


def _b64(content: bytes) -> str:
    return base64.b64encode(content).decode()


def _header_only(width: int, height: int) -> bytes:
    """A PNG of a few bytes that says it is of this size."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def _jpeg(width: int, height: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (width, height)).save(buffer, "JPEG")
    return buffer.getvalue()


NOT_IMAGES = {
    "empty": b"",
    "text": b"not an image",
    "svg": SVG_FILE,
    "cut": _jpeg(300, 200)[:-400],
    "0 x 0": _header_only(0, 0),
}


@pytest.fixture(autouse=True)
def _next_client_is_served_and_nothing_ran(caption, picture, captioner, server):
    def generated():
        labels = {"model": "scenes", "version": "1", "kind": "generated"}
        return server.context.metrics.registry.get_sample_value("carousel_tokens_total", labels)

    before = generated()
    yield
    assert generated() == before
    assert caption(picture(1), beam_width=1)[0]["tokens"] == captioner.greedy(picture(1))[0]


def _form(client, *files: bytes, path: str = CAPTIONS, **options: str):
    return client.post(path, files=[("image", ("photo", file)) for file in files], data=options)


@pytest.mark.parametrize("path", [CAPTIONS, SVG])
@pytest.mark.parametrize("content", NOT_IMAGES.values(), ids=NOT_IMAGES)
def test_what_is_no_image_is_refused(client, refused, content, path):
    for response in (_form(client, content, path=path), client.post(path, json={"image": _b64(content)})):
        assert refused(response, 400, "invalid_image").startswith("image: ")


@pytest.mark.parametrize(
    "content", [_header_only(30_000, 30_000), _header_only(2**31 - 1, 1), _header_only(20_000, 20_000)]
)
def test_image_of_too_many_pixels_is_refused(client, refused, content):
    for response in (_form(client, content), client.post(CAPTIONS, json={"image": _b64(content)})):
        assert "50,000,000" in refused(response, 413, "image_too_large")


def test_bomb_of_few_bytes_is_refused(client, refused):
    packer = zlib.compressobj()
    rows = b"".join(packer.compress(b"\0" * 2**20) for _ in range(380)) + packer.flush()  # 20,000 x 20,000 of black
    content = _header_only(20_000, 20_000).replace(zlib.compress(b""), rows, 1)
    assert len(content) < 500_000
    refused(_form(client, content), 413, "image_too_large")


def test_error_names_the_image_by_its_place(client, refused, picture):
    files = [picture(0), picture(1), NOT_IMAGES["text"], picture(2)]
    assert refused(_form(client, *files), 400, "invalid_image").startswith("images.2: ")
    response = client.post(CAPTIONS, json={"images": [_b64(file) for file in files]})
    assert refused(response, 400, "invalid_image").startswith("images.2: ")
    files[2] = _header_only(30_000, 30_000)
    assert refused(_form(client, *files), 413, "image_too_large").startswith("images.2: ")


@pytest.fixture
def nobody_calls():
    """A port whose first connection would be noticed."""
    listener = socket.create_server(("127.0.0.1", 0))
    called = threading.Event()

    def wait() -> None:
        try:
            listener.accept()[0].close()
            called.set()
        except OSError:
            pass

    thread = threading.Thread(target=wait)
    thread.start()
    yield listener.getsockname()[1]
    assert not called.is_set(), "the server fetched an address"
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    thread.join()


@pytest.mark.parametrize(
    "address",
    ["http://127.0.0.1:{port}/a.png", "HTTPS://localhost:{port}/", "//127.0.0.1:{port}/a.png", "file:///etc/hostname",
     "data:text/html,hello", "data:image/svg+xml,%3Csvg/%3E", "www.example.com/a.png", "ftp://127.0.0.1:{port}/a"],
)  # fmt: skip
def test_address_is_refused_and_nothing_is_fetched(client, refused, nobody_calls, address):
    address = address.format(port=nobody_calls)
    for body in ({"image": address}, {"images": [address]}):
        assert "nothing is fetched" in refused(client.post(CAPTIONS, json=body), 400, "invalid_image")
    response = client.post(CAPTIONS, files={"other": ("a", b"a")}, data={"image": address})
    refused(response, 422, "invalid_request")
    response = client.post(CAPTIONS, files={"image": (None, address)})
    assert "nothing is fetched" in refused(response, 422, "invalid_request")


@pytest.mark.parametrize("text", ["", "?", "aGVsbG8", "aGVsbG8=x", "a" * 5, "ü", "\ud7ff", "-_-_", "/etc/passwd"])
def test_text_that_is_no_image_in_base64_is_refused(client, refused, text):
    assert refused(client.post(CAPTIONS, json={"image": text}), 400, "invalid_image").startswith("image: ")


BAD_FIELDS = [
    ("beam_width", 0), ("beam_width", -1), ("beam_width", 7), ("beam_width", 10_000), ("beam_width", 10**30),
    ("beam_width", "a"), ("beam_width", 1.5), ("n", 0), ("n", 4), ("n", 10_000), ("max_tokens", 0), ("max_tokens", 21),
    ("max_tokens", 10**30), ("length_penalty", -0.1), ("length_penalty", 10.1), ("length_penalty", 1e308),
    ("temperature", -1), ("top_k", 14), ("top_p", 0), ("top_p", 1.1), ("seed", -2), ("seed", 2**63),
    ("temperature", 1_000.1), ("temperature", 1e300),
    ("attention", "maybe"), ("stream", 7), ("beam_with", 3), ("session", "ada"), ("state", "x"), ("return_state", True),
    ("prompt", "a"), ("min_p", 2), ("repetition_penalty", 0),
]  # fmt: skip


@pytest.mark.parametrize(("name", "value"), BAD_FIELDS, ids=str)
def test_field_is_refused(client, refused, picture, name, value):
    file = picture(0)
    for response in (
        client.post(CAPTIONS, json={"image": _b64(file), name: value}),
        _form(client, file, **{name: str(value)}),
        client.post(SVG, json={"image": _b64(file), name: value}),
    ):
        assert name in refused(response, 422, "invalid_request")


@pytest.mark.parametrize("name", ["temperature", "length_penalty", "top_p", "min_p", "repetition_penalty"])
@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity"])
def test_number_that_is_none_is_refused(client, refused, picture, name, value):
    content = f'{{"image": "{_b64(picture(0))}", "{name}": {value}}}'
    response = client.post(CAPTIONS, content=content, headers={"content-type": "application/json"})
    assert name in refused(response, 422, "invalid_request")
    assert name in refused(_form(client, picture(0), **{name: value}), 422, "invalid_request")


@pytest.mark.parametrize("name", ["temperature", "top_k", "top_p", "min_p", "repetition_penalty", "seed"])
def test_sampling_with_a_beam_is_refused(client, refused, picture, name):
    value = "2" if name == "repetition_penalty" else "1"  # of which 1 asks for nothing
    message = refused(_form(client, picture(0), beam_width="3", **{name: value}), 422, "invalid_request")
    assert name in message
    assert "beam" in message


def test_stream_of_a_beam_or_of_many_is_refused(client, refused, picture):
    file = picture(0)
    assert "beam" in refused(_form(client, file, stream="true", beam_width="2"), 422, "invalid_request")
    assert "one image" in refused(_form(client, file, file, stream="true"), 422, "invalid_request")
    assert "one image" in refused(_form(client, file, file, path=SVG), 422, "invalid_request")
    refused(_form(client, NOT_IMAGES["text"], stream="true"), 400, "invalid_image")


@pytest.mark.parametrize("body", [{}, {"image": "a", "images": ["a"]}, {"images": []}, {"image": None}, {"image": 5},
                                  {"images": "a"}, {"images": [5]}, {"images": [["a"]]}, {"images": {}}])  # fmt: skip
def test_body_without_one_image_or_a_list_is_refused(client, refused, body):
    refused(client.post(CAPTIONS, json=body), 422, "invalid_request")


def test_too_many_images_are_refused_at_once(client, refused, picture):
    file = picture(0)
    response = client.post(CAPTIONS, json={"images": [_b64(file)] * 1000})
    assert "128" in refused(response, 422, "invalid_request")
    assert "128" in refused(_form(client, *[file] * 129), 422, "invalid_request")
    assert "128" in refused(_form(client, *[file] * 1000), 422, "invalid_request")
    refused(_form(client, *[file] * 1001), 400, "malformed_form")


@pytest.mark.parametrize("body", [b"{", b"", b"[" * 100_000, b'{"image": "\xff"}', b"\0", b'{"image": "a"} x'])
def test_body_that_is_not_json_is_refused(client, refused, body):
    response = client.post(CAPTIONS, content=body, headers={"content-type": "application/json"})
    refused(response, 400, "malformed_json")


@pytest.mark.parametrize("body", [b"[]", b'"text"', b"null", b"5"])
def test_body_that_is_no_object_is_refused(client, refused, body):
    response = client.post(CAPTIONS, content=body, headers={"content-type": "application/json"})
    assert "JSON object" in refused(response, 422, "invalid_request")


@pytest.mark.parametrize("kind", ["image/png", "text/plain", "application/x-www-form-urlencoded", "nonsense", "", "ü"])
def test_body_of_another_type_is_refused(client, refused, picture, kind):
    response = client.post(CAPTIONS, content=picture(0), headers={"content-type": kind.encode()})
    assert "multipart/form-data" in refused(response, 422, "invalid_request")


BOUNDARY = "multipart/form-data; boundary=b"


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("multipart/form-data", b""),
        (BOUNDARY, b"nonsense"),
        (BOUNDARY, b"--b\r\n\r\nno name\r\n--b--\r\n"),
        (BOUNDARY, b'--b\r\nContent-Disposition: form-data; name="n"\r\n\r\n' + b"1" * 5_000 + b"\r\n--b--\r\n"),
        (BOUNDARY, b'--b\r\nContent-Disposition: form-data; name="n"\r\n\r\n1\r\n' * 1_001 + b"--b--\r\n"),
        (BOUNDARY, b"--b\r\nX: " + b"x" * 100_000 + b"\r\n\r\n1\r\n--b--\r\n"),
    ],
    ids=["no boundary", "no part", "no name", "huge field", "many fields", "huge header"],
)
def test_body_that_is_no_form_is_refused(client, refused, kind, body):
    refused(client.post(CAPTIONS, content=body, headers={"content-type": kind}), 400, "malformed_form")


def test_form_that_breaks_off_is_refused(client, refused, picture):
    part = b'--b\r\nContent-Disposition: form-data; name="image"; filename="p"\r\n\r\n' + picture(0)
    for body in (part, part + b"\r\n", part + b"\r\n--b", part + b"\r\n--b\r\n"):
        response = client.post(CAPTIONS, content=body, headers={"content-type": BOUNDARY})
        assert "breaks off" in refused(response, 400, "malformed_form")


def test_form_whose_parts_make_no_sense_is_refused(client, refused, picture):
    file = ("photo", picture(0))
    cases = {
        "image": {"data": {"n": "1"}, "files": [("n2", (None, b"1"))]},
        "1 to 128": {"files": [("n", (None, b"1"))]},
        "more than once": {"files": [("image", file), ("n", (None, b"1")), ("n", (None, b"1"))]},
        "is a file": {"files": [("image", file), ("beam_width", ("width", b"3"))]},
        "called image": {"files": [("photo", file)]},
    }
    for words, body in cases.items():
        message = refused(client.post(CAPTIONS, **body), 422, "invalid_request")
        assert words in message or "is no field that is known here" in message


def test_model_without_attention_says_so(client, refused, picture):
    file = picture(0)
    blind = "/v1/models/blind/captions"
    assert "blind" in refused(_form(client, file, path=blind, attention="true"), 409, "no_attention")
    refused(_form(client, file, path=f"{blind}/attention.svg"), 409, "no_attention")
    assert _form(client, file, path=blind).status_code == 200


@pytest.mark.parametrize("path", ["", "/attention.svg"])
@pytest.mark.parametrize("model", ["tiny", "tutor"])
def test_model_of_another_task_is_refused(client, refused, picture, model, path):
    refused(_form(client, picture(0), path=f"/v1/models/{model}/captions{path}"), 409, "wrong_task")
    refused(_form(client, picture(0), path=f"/v1/models/nobody/captions{path}"), 404, "unknown_model")


def test_captioning_model_is_refused_elsewhere(client, refused):
    for path, body in [
        ("next-token", {"text": "a"}), ("score", {"text": "a red"}),
        ("trace", {"attempts": [{"skill": 0, "correct": True}]}),
    ]:  # fmt: skip
        refused(client.post(f"/v1/models/scenes/{path}", json=body), 409, "wrong_task")
    refused(client.post("/v1/completions", json={"model": "scenes", "prompt": "a"}), 409, "wrong_task")


@pytest.mark.parametrize("kind", ["application/json", BOUNDARY])
def test_body_of_100_megabytes_is_refused_unread(raw_client, kind):
    connection = raw_client().socket
    head = f"POST {CAPTIONS} HTTP/1.1\r\nHost: test\r\nContent-Type: {kind}\r\nContent-Length: 100000000\r\n\r\n"
    connection.sendall(head.encode())
    answer = b""
    while b'"retryable":false}}' not in answer:
        part = connection.recv(65_536)
        assert part, answer
        answer += part
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b'"code":"body_too_large"' in answer
    assert b"16,777,216" in answer


@pytest.mark.parametrize("kind", ["application/json", BOUNDARY])
def test_body_is_counted_as_it_comes(client, refused, run_server, kind):
    with run_server(max_image_body_bytes=100_000) as server:
        start = b'--b\r\nContent-Disposition: form-data; name="image"; filename="p"\r\n\r\n'
        chunks = [b'{"image": "' if kind == "application/json" else start, *[b"a" * 1_000] * 101]
        response = client.post(server.url + CAPTIONS, content=iter(chunks), headers={"content-type": kind})
        refused(response, 413, "body_too_large")


def test_images_have_a_limit_of_their_own(client, refused, run_server, picture):
    with run_server(max_body_bytes=2_000, max_image_body_bytes=100_000) as server:
        noise = picture(0) + b"\0" * 50_000  # what comes after the end of a PNG is nothing
        assert _form(client, noise, path=server.url + CAPTIONS).status_code == 200
        refused(_form(client, noise, path=server.url + "/v1/completions"), 413, "body_too_large")


def test_refusals_are_counted_by_their_code(client, picture, ended):
    _form(client, NOT_IMAGES["text"])
    _form(client, _header_only(30_000, 30_000))
    _form(client, picture(0), beam_width="0")
    client.post(CAPTIONS, content=b"{", headers={"content-type": "application/json"})
    client.post(CAPTIONS, content=b"x", headers={"content-type": BOUNDARY})
    _form(client, picture(0), path="/v1/models/blind/captions/attention.svg")
    codes = ["invalid_image", "image_too_large", "invalid_request", "malformed_json", "malformed_form", "no_attention"]
    ended(**dict.fromkeys(codes, 1))


def test_bad_images_change_nobodys_tokens(client, unchanged, picture):
    with unchanged():
        for content in (*NOT_IMAGES.values(), _header_only(30_000, 30_000), b"\0" * 2**20):
            assert _form(client, content, *[picture(0)] * 20).status_code in (400, 413)
        assert client.post(CAPTIONS, content=json.dumps({"image": "A" * 2**22}).encode()).status_code == 422


def test_sixty_bombs_at_once_are_refused_quickly(client, refused):
    bomb = _header_only(30_000, 30_000)
    assert "images." in refused(_form(client, *[bomb] * 60), 413, "image_too_large")
