"""The Open Inference Protocol over gRPC: each call is the request of the protocol's REST that asks the same.

So keys, quotas, load, deadlines, metrics, the drain and every sentence are those of the routes; here messages alone are
turned into bodies and back. Tensors go as bytes in both.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from typing import Any, NamedTuple, NoReturn
from urllib.parse import quote, unquote

import grpc
import numpy as np
from starlette.types import ASGIApp, Message, Scope

from carousel.service.api.oip.datatypes import DTYPES
from carousel.service.api.oip.grpc_messages import MESSAGES, SERVICE
from carousel.service.api.oip.repository import OIP_REPOSITORY
from carousel.service.api.oip.tensors import JSON_LENGTH, refuse
from carousel.service.api.wire.error_bodies import OIP_PATH
from carousel.service.api.wire.slices import LARGE
from carousel.service.errors import RequestError
from carousel.service.settings import Settings
from carousel.service.work.rows import dumps

CODES = {
    400: "INVALID_ARGUMENT", 401: "UNAUTHENTICATED", 403: "PERMISSION_DENIED", 404: "NOT_FOUND", 409: "ABORTED",
    410: "NOT_FOUND", 413: "RESOURCE_EXHAUSTED", 422: "INVALID_ARGUMENT", 429: "RESOURCE_EXHAUSTED",
    503: "UNAVAILABLE", 504: "DEADLINE_EXCEEDED",
}  # fmt: skip
"""gRPC's, by HTTP's; any other is INTERNAL."""

CONTENTS = {
    "BOOL": "bool_contents", "INT8": "int_contents", "INT16": "int_contents", "INT32": "int_contents",
    "INT64": "int64_contents", "UINT8": "uint_contents", "UINT16": "uint_contents", "UINT32": "uint_contents",
    "UINT64": "uint64_contents", "FP32": "fp32_contents", "FP64": "fp64_contents",
}  # fmt: skip
"""Where a tensor's numbers are that do not come as bytes."""

HEADERS = ("authorization", "traceparent", "tracestate")
"""Metadata that are headers of the request."""

BY_ITSELF = ("binary_data_size", "binary_data", "binary_data_output")
"""Parameters that gRPC has no use for: its tensors are always bytes."""


class _Answer(NamedTuple):
    """What a route answered."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def told(self) -> Any:
        """Its JSON; of an error the sentence."""
        text = json.loads(self.body[: int(self.headers.get(JSON_LENGTH, len(self.body)))])
        return text if self.status == 200 else text["error"]


class GrpcServer:
    """Answers gRPC on the event loop that makes it.

    Args:
        app: with the routes.
        settings: where to listen, and how much to take.

    Raises:
        OSError: the address cannot be listened on.
    """

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app = app
        self._idle_seconds = settings.socket_idle_seconds
        self._server = grpc.aio.server(
            maximum_concurrent_rpcs=settings.max_connections,
            options=[
                ("grpc.max_receive_message_length", settings.max_body_bytes),
                ("grpc.compression_enabled_algorithms_bitset", 1),  # none: the length that is bounded is the packed one
                ("grpc.so_reuseport", 0),  # two servers on one port would share its clients
            ],
        )
        methods: dict[str, tuple[Callable[..., Any], str, str]] = {
            "ServerLive": (self._server_live, "Empty", "ServerLiveResponse"),
            "ServerReady": (self._server_ready, "Empty", "ReadyResponse"),
            "ModelReady": (self._model_ready, "ModelRequest", "ReadyResponse"),
            "ServerMetadata": (self._server_metadata, "Empty", "ServerMetadataResponse"),
            "ModelMetadata": (self._model_metadata, "ModelRequest", "ModelMetadataResponse"),
            "RepositoryIndex": (self._repository_index, "RepositoryIndexRequest", "RepositoryIndexResponse"),
            "ModelInfer": (self._model_infer, "ModelInferRequest", "ModelInferResponse"),
            "ModelStreamInfer": (self._model_stream_infer, "ModelInferRequest", "ModelStreamInferResponse"),
        }
        handlers = {}
        for name, (method, request, response) in methods.items():
            kind = "stream_stream" if name == "ModelStreamInfer" else "unary_unary"
            handlers[name] = getattr(grpc, f"{kind}_rpc_method_handler")(
                method, MESSAGES[request].FromString, MESSAGES[response].SerializeToString
            )
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        try:
            self.port: int = self._server.add_insecure_port(f"{host}:{settings.grpc_port}")
        except RuntimeError as error:
            raise OSError(f"gRPC cannot listen on {host}:{settings.grpc_port}: {error}") from None

    async def start(self) -> None:
        """Take calls from now on."""
        await self._server.start()

    async def stop(self, grace_seconds: float) -> None:
        """Take none any more; those that go on are ended when the grace is over."""
        await self._server.stop(grace_seconds)

    async def _server_live(self, _: Any, call: Any) -> Any:
        return MESSAGES["ServerLiveResponse"](live=await self._is(call, f"{OIP_PATH}/health/live"))

    async def _server_ready(self, _: Any, call: Any) -> Any:
        return MESSAGES["ReadyResponse"](ready=await self._is(call, f"{OIP_PATH}/health/ready"))

    async def _model_ready(self, request: Any, call: Any) -> Any:
        ready = await self._is(call, f"{_path(request.name, request.version)}/ready")
        return MESSAGES["ReadyResponse"](ready=ready)

    async def _server_metadata(self, _: Any, call: Any) -> Any:
        return MESSAGES["ServerMetadataResponse"](**await self._told(call, "GET", OIP_PATH))

    async def _model_metadata(self, request: Any, call: Any) -> Any:
        return MESSAGES["ModelMetadataResponse"](**await self._told(call, "GET", _path(request.name, request.version)))

    async def _repository_index(self, request: Any, call: Any) -> Any:
        body = dumps({"ready": request.ready}).encode()
        return MESSAGES["RepositoryIndexResponse"](
            models=await self._told(call, "POST", f"{OIP_REPOSITORY}/index", body)
        )

    async def _model_infer(self, request: Any, call: Any) -> Any:
        answer = await self._infer(request, call)
        return _response(answer) if answer.status == 200 else await _abort(call, answer)

    async def _model_stream_infer(self, requests: AsyncIterator[Any], call: Any) -> AsyncIterator[Any]:
        """One after the other, in their order; an error ends its request alone."""
        kind, following = MESSAGES["ModelStreamInferResponse"], aiter(requests)
        while True:
            try:
                async with asyncio.timeout(self._idle_seconds):
                    request = await anext(following, None)
            except TimeoutError:
                told = f"the stream had nothing to do for {self._idle_seconds:g} s (CAROUSEL_SOCKET_IDLE_SECONDS)"
                await call.abort(grpc.StatusCode.DEADLINE_EXCEEDED, told)
            if request is None:
                return
            answer = await self._infer(request, call)
            if answer.status == 200:
                yield kind(infer_response=_response(answer))
            else:
                yield kind(error_message=answer.told, infer_response={"id": request.id})

    async def _infer(self, request: Any, call: Any) -> _Answer:
        path = f"{_path(request.model_name, request.model_version)}/infer"
        try:
            large = request.ByteSize() >= LARGE
            json_bytes, body = await asyncio.to_thread(_body, request) if large else _body(request)
        except RequestError as error:
            return _Answer(error.status, {}, dumps({"error": str(error)}).encode())
        return await self._ask(call, "POST", path, body, [(JSON_LENGTH, str(json_bytes))])

    async def _is(self, call: Any, path: str) -> bool:
        """Whether it is so: what is not there, or not now, is not."""
        answer = await self._ask(call, "GET", path)
        return answer.status == 200 or (answer.status not in (404, 503) and bool(await _abort(call, answer)))

    async def _told(self, call: Any, method: str, path: str, body: bytes = b"") -> Any:
        answer = await self._ask(call, method, path, body)
        return answer.told if answer.status == 200 else await _abort(call, answer)

    async def _ask(
        self, call: Any, method: str, path: str, body: bytes = b"", headers: Iterable[tuple[str, str]] = ()
    ) -> _Answer:
        """What a route answers."""
        said = [(name, value) for name, value in call.invocation_metadata() if name in HEADERS]
        told = {"content-length": str(len(body)), "content-type": "application/octet-stream"}
        kind, _, peer = call.peer().partition(":")
        host, _, port = unquote(peer).rpartition(":")
        scope: Scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "2",
            "method": method,
            "scheme": "http",
            "path": path,
            "raw_path": quote(path).encode(),
            "query_string": b"",
            "root_path": "",
            "headers": [(name.encode(), value.encode()) for name, value in (*said, *told.items(), *headers)],
            "client": (host.strip("[]"), int(port)) if kind in ("ipv4", "ipv6") else None,
            "server": None,
        }
        sent = asyncio.Event()
        start: Message = {}
        parts: list[bytes] = []

        async def receive() -> Message:
            if sent.is_set():
                await asyncio.Future()  # a client that leaves cancels the call
            sent.set()
            return {"type": "http.request", "body": body, "more_body": False}

        async def send(message: Message) -> None:
            if message["type"] == "http.response.start":
                start.update(message)
            else:
                parts.append(message.get("body", b""))

        answered: Awaitable[None] = asyncio.create_task(self._app(scope, receive, send))  # type: ignore[arg-type]
        await answered  # a task of its own, as the drain ends a request by its task
        names = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in start["headers"]}
        return _Answer(start["status"], names, b"".join(parts))


async def _abort(call: Any, answer: _Answer) -> NoReturn:
    """End a call with a route's error."""
    code = grpc.StatusCode[CODES.get(answer.status, "INTERNAL")]
    trailing = [(name, answer.headers[name]) for name in ("retry-after", "x-request-id") if name in answer.headers]
    await call.abort(code, answer.told, tuple(trailing))
    raise AssertionError  # abort raises


def _path(model: str, version: str) -> str:
    """Of a model's routes; a slash in a name does not lead to another one."""
    model, version = (name.replace("/", "%2F") for name in (model, version))
    return f"{OIP_PATH}/models/{model}" + (f"/versions/{version}" if version else "")


def _body(request: Any) -> tuple[int, bytes]:
    """A request as REST sends it: how many bytes of it are JSON, and all of them.

    Raises:
        RequestError: invalid_request.
    """
    raw: list[bytes] = list(request.raw_input_contents)
    if raw and len(raw) != len(request.inputs):
        raise refuse(f"raw_input_contents are {len(raw):,}, of {len(request.inputs):,} inputs; each needs one")
    inputs, behind = [], []
    for at, tensor in enumerate(request.inputs):
        content = _packed(tensor, typed=not raw) or (raw[at] if raw else b"")
        parameters = _parameters(tensor.parameters) | {"binary_data_size": len(content)}
        said = {"name": tensor.name, "datatype": tensor.datatype, "shape": list(tensor.shape)}
        inputs.append(said | {"parameters": parameters})
        behind.append(content)
    outputs = [{"name": each.name, "parameters": _parameters(each.parameters)} for each in request.outputs]
    parameters = _parameters(request.parameters) | {"binary_data_output": True}
    try:
        text = dumps({"id": request.id, "parameters": parameters, "inputs": inputs, "outputs": outputs}).encode()
    except ValueError:
        raise refuse("a parameter is no finite number") from None
    return len(text), b"".join([text, *behind])


def _packed(tensor: Any, *, typed: bool) -> bytes:
    """The bytes of numbers that come as such."""
    given = [field.name for field, _ in tensor.contents.ListFields()]
    if not given:
        return b""
    field = CONTENTS.get(tensor.datatype) if typed else None
    if given != [field]:
        raise refuse(
            f"input {tensor.name[:100]!r} is {tensor.datatype[:20]}, which goes into {field or 'raw_input_contents'}; "
            f"it has {' and '.join(given)}"
        )
    try:
        # Of a list: of protobuf's own sequence numpy wraps what does not fit.
        return np.array(list(getattr(tensor.contents, given[0])), DTYPES[tensor.datatype]).tobytes()
    except OverflowError:
        raise refuse(f"input {tensor.name[:100]!r} has numbers that {tensor.datatype} does not hold") from None


def _parameters(entries: Iterable[Any]) -> dict[str, Any]:
    chosen = {each.key: each.value.WhichOneof("parameter_choice") for each in entries if each.key not in BY_ITSELF}
    values = {each.key: each.value for each in entries}
    return {key: None if name is None else getattr(values[key], name) for key, name in chosen.items()}


def _response(answer: _Answer) -> Any:
    told, at = answer.told, int(answer.headers.get(JSON_LENGTH, len(answer.body)))
    raw: list[bytes] = []
    for output in told["outputs"]:
        size = output.pop("parameters")["binary_data_size"]
        raw.append(answer.body[at : at + size])
        at += size
    return MESSAGES["ModelInferResponse"](**told, raw_output_contents=raw)
