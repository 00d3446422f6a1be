"""Captioning clients that vanish, in every phase, more of them than there is room, and what a crowd costs others."""

import threading

import httpx
import pytest

from carousel.models.codec.image import Preprocessing
from carousel.service.engine.runner import OnnxEncoder
from carousel.service.pictures.images import ImageReader

PATH = "/v1/models/endless/captions"
SVG = f"{PATH}/attention.svg"


def _form(*files: bytes, **fields: str) -> bytes:
    parts = [f'name="{name}"\r\n\r\n{value}'.encode() for name, value in fields.items()]
    parts += [b'name="image"; filename="photo"\r\n\r\n' + file for file in files]
    return b"".join(b"--b\r\nContent-Disposition: form-data; " + part + b"\r\n" for part in parts) + b"--b--\r\n"


def _send(connection, body: bytes, path: str = PATH, length: int | None = None) -> None:
    head = f"POST {path} HTTP/1.1\r\nHost: test\r\nContent-Type: multipart/form-data; boundary=b\r\n"
    connection.socket.sendall(f"{head}Content-Length: {length or len(body)}\r\n\r\n".encode() + body)


@pytest.fixture
def engine(server):
    return server.context.repository.models["endless"].engine


class Gate:
    """Holds threads up until it is opened."""

    def __init__(self) -> None:
        self.entered = threading.Semaphore(0)
        self.count = 0
        self._open = threading.Event()

    def wait(self) -> None:
        self.count += 1
        self.entered.release()
        assert self._open.wait(60)

    def open(self) -> None:
        self._open.set()


@pytest.fixture
def slow_decoding(monkeypatch):
    """Image decoding that does not end before it is told to."""
    gate = Gate()
    apply = Preprocessing.apply

    def wait(self, image):
        gate.wait()
        return apply(self, image)

    monkeypatch.setattr(Preprocessing, "apply", wait)
    yield gate
    gate.open()


@pytest.mark.parametrize("goodbye", ["close", "reset"])
@pytest.mark.parametrize("fields", [{}, {"beam_width": "4"}, {"stream": "true"}, {"temperature": "1"}], ids=str)
def test_client_that_vanishes_while_it_is_captioned_frees_its_rows(
    raw_client, engine, eventually, ended, unchanged, picture, fields, goodbye
):
    with unchanged():
        connection = raw_client()
        _send(connection, _form(picture(0), **fields))
        eventually(lambda: engine.describe().running >= 1)
        connection.socket.close() if goodbye == "close" else connection.reset()
    eventually(lambda: engine.describe().admitted == 0 and engine.describe().running == 0)
    ended(ok=2, cancelled=1)


def test_client_that_vanishes_with_many_images_frees_all_rows(raw_client, engine, eventually, ended, picture):
    connection = raw_client()
    _send(connection, _form(*[picture(seed) for seed in range(30)]))
    eventually(lambda: engine.describe().running == 8)
    connection.reset()
    eventually(lambda: engine.describe().admitted == 0 and engine.describe().running == 0)
    ended(cancelled=1)


@pytest.mark.parametrize("path", [PATH, SVG])
def test_client_that_vanishes_while_its_image_is_decoded_frees_its_place(
    raw_client, engine, eventually, ended, picture, slow_decoding, path
):
    connection = raw_client()
    _send(connection, _form(picture(0)), path)
    assert slow_decoding.entered.acquire(timeout=20)
    assert engine.describe().admitted == 1  # a place is taken before anything is decoded
    connection.reset()
    eventually(lambda: engine.describe().admitted == 0)
    ended(cancelled=1)
    slow_decoding.open()


def test_images_of_a_client_that_vanished_are_not_decoded(
    raw_client, server, engine, eventually, ended, picture, slow_decoding
):
    threads = server.context.images.count
    connection = raw_client()
    _send(connection, _form(*[picture(seed) for seed in range(60)]))
    eventually(lambda: slow_decoding.count == threads)
    connection.reset()
    eventually(lambda: engine.describe().admitted == 0)
    ended(cancelled=1)
    slow_decoding.open()
    assert server.context.images._threads.submit(lambda: slow_decoding.count).result(20) == threads


def test_client_that_vanishes_on_the_socket_while_its_image_is_decoded_frees_its_place(
    connect, engine, eventually, ended, picture, slow_decoding
):
    stream = connect(model="endless")
    stream.socket.send(picture(0))
    assert slow_decoding.entered.acquire(timeout=20)
    assert engine.describe().admitted == 1
    stream.socket.close()
    eventually(lambda: engine.describe().admitted == 0)
    ended(cancelled=1)


def test_client_that_vanishes_while_its_image_waits_for_the_encoder_frees_its_place(
    raw_client, run_server, eventually, picture, outcomes, monkeypatch
):
    gate = Gate()
    call = OnnxEncoder.__call__
    monkeypatch.setattr(
        "carousel.service.served.repository.usable_cores", lambda: 1
    )  # one image at a time in the encoder
    with run_server() as server:

        def wait(self, images):
            gate.wait()
            return call(self, images)

        monkeypatch.setattr(OnnxEncoder, "__call__", wait)
        model = server.context.repository.models["endless"]
        first, second = raw_client(server), raw_client(server)
        _send(first, _form(picture(0)))
        assert gate.entered.acquire(timeout=20)
        _send(second, _form(picture(1)))
        eventually(lambda: model.encoder.waiting == 1)
        second.reset()
        eventually(lambda: model.engine.describe().admitted == 1 and model.encoder.waiting == 0)
        first.reset()
        eventually(lambda: model.engine.describe().admitted == 0)
        gate.open()
        eventually(lambda: outcomes(server) == {"cancelled": 2})


def test_client_that_vanishes_while_it_sends_is_cancelled(raw_client, engine, ended, picture):
    connection = raw_client()
    _send(connection, _form(picture(0))[:100], length=5_000)
    connection.socket.close()
    ended(cancelled=1)
    assert engine.describe().admitted == 0


def test_sse_client_that_never_reads_is_ended(raw_client, engine, eventually, ended, picture):
    connection = raw_client()
    _send(connection, _form(picture(0), stream="true", attention="true"))
    eventually(lambda: engine.describe().running == 1)
    eventually(lambda: engine.describe().admitted == 0 and engine.describe().running == 0, seconds=40)
    ended(slow_reader=1)


def test_socket_that_never_reads_is_ended(raw_client, engine, eventually, ended, picture):
    connection = raw_client()
    connection.upgrade("/v1/models/endless/stream")
    content = picture(0, size=(3, 2))
    assert len(content) < 126
    connection.socket.sendall(bytes([0x82, 0x80 | len(content), 0, 0, 0, 0]) + content)
    eventually(lambda: engine.describe().running == 1)
    eventually(lambda: engine.describe().admitted == 0 and engine.describe().running == 0, seconds=40)
    ended(slow_reader=1)


def test_captions_beyond_capacity_are_refused_undecoded(run_server, connect, picture, eventually, monkeypatch):
    with run_server(max_rows=4, max_waiting=0) as server, httpx.Client(base_url=server.url, timeout=60) as client:
        running = [connect(server, model="endless") for _ in range(3)]
        for busy in running:
            busy.socket.send(picture(0))
            assert [busy.receive()["type"] for _ in range(2)] == ["accepted", "token"]
        monkeypatch.setattr(ImageReader, "encode", None)  # to decode anything would be a defect now
        file = ("image", ("a", picture(0)))
        for files, fields in ([file], {"beam_width": "2"}), ([file] * 60, {"beam_width": "2"}):
            response = client.post(PATH, files=files, data=fields)
            assert (response.status_code, response.json()["error"]["code"]) == (503, "capacity_exceeded")
            assert 1 <= int(response.headers["retry-after"]) <= 60
        for busy in running:  # else the server would wait for them, and they with all that is unread for it
            busy.send(type="cancel")
            assert busy.rest()[-1]["reason"] == "cancelled"


def test_many_images_take_turns_in_what_places_are_free(run_server, picture, captioner):
    with run_server(max_rows=4, max_waiting=0) as server, httpx.Client(base_url=server.url, timeout=60) as client:
        engine = server.context.repository.models["scenes"].engine
        files = [picture(seed) for seed in range(9)]
        taken = [engine.admit() for _ in range(3)]
        response = client.post(
            "/v1/models/scenes/captions",
            files=[("image", ("a", file)) for file in files],
            data={"beam_width": "1"},
        )
        for place in taken:
            engine.leave(place)
        assert response.status_code == 200
        told = [image["captions"][0]["tokens"] for image in response.json()["images"]]
        assert told == [captioner.greedy(file)[0] for file in files]


def test_beam_wider_than_the_engine_is_refused(run_server, picture):
    with run_server(max_rows=4) as server, httpx.Client(base_url=server.url, timeout=60) as client:
        response = client.post(PATH, files={"image": ("a", picture(0))}, data={"beam_width": "5"})
        assert response.status_code == 422
        assert "1 to 4" in response.json()["error"]["message"]


def test_large_images_change_nobodys_tokens(client, unchanged, picture):
    large = picture(0, size=(6_000, 4_000))  # 24 million pixels in a few kilobytes
    with unchanged():
        response = client.post(
            "/v1/models/scenes/captions", files=[("image", ("a", large))] * 4, data={"beam_width": "3"}
        )
    assert response.status_code == 200
    texts = {image["captions"][0]["text"] for image in response.json()["images"]}
    assert len(texts) == 1


def test_image_does_not_wait_for_all_of_anothers(server, client, picture, slow_decoding):
    """Who comes with one image waits for as many others as there are threads, not for a hundred."""
    threads = server.context.images.count
    pending = threading.Thread(
        target=lambda: httpx.post(
            f"{server.url}/v1/models/scenes/captions", files=[("image", ("a", picture(0)))] * 100, timeout=60
        )
    )
    pending.start()
    for _ in range(threads):
        assert slow_decoding.entered.acquire(timeout=20)
    assert server.context.repository.models["scenes"].encoder.waiting == 0
    slow_decoding.open()
    pending.join()


@pytest.mark.parametrize("fields", [{}, {"beam_width": "1"}, {"stream": "true"}], ids=str)
def test_image_that_the_model_fails_on_fails_alone(client, refused, caption, picture, monkeypatch, fields):
    call = OnnxEncoder.__call__

    def fail_on_white(self, images):
        if (images > 0.99).all(axis=(1, 2, 3)).any():
            raise RuntimeError("too bright")
        return call(self, images)

    monkeypatch.setattr(OnnxEncoder, "__call__", fail_on_white)
    white = picture([255] * 18)
    files = [white] if "stream" in fields else [picture(0), white, picture(1)]
    response = client.post("/v1/models/scenes/captions", files=[("image", ("a", file)) for file in files], data=fields)
    assert "too bright" in refused(response, 500, "step_failed", retryable=True)
    assert caption(picture(0))
