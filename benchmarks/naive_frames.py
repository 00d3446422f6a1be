"""The peers of frames: what is written today around a recurrent network in an ONNX file, as voice agents have it.

One WebSocket a client, one onnxruntime call a frame in the thread pool, the client's states in local variables. The
session is each connection's own (`--sessions each`), as agents open it, or one for all (`--sessions one`).

    python -m benchmarks.naive_frames --network voice --file silero_vad.onnx --sessions each --port 8001
"""

from __future__ import annotations

import argparse
import asyncio
from contextlib import suppress
from pathlib import Path

import uvicorn
from fastapi import FastAPI, WebSocket, WebSocketDisconnect

from carousel.benchmarks.networks import NETWORKS, ByHand, Network


def create_app(network: Network, *, shared: bool) -> FastAPI:
    """The app; `shared` is one session for all."""
    app = FastAPI()
    session = network.session() if shared else None

    @app.get("/readyz")
    def ready() -> dict[str, str]:
        return {"status": "ready"}

    @app.websocket("/v1/models/{model}/stream")
    async def stream(socket: WebSocket) -> None:
        run = asyncio.get_running_loop().run_in_executor
        await socket.accept()
        with suppress(WebSocketDisconnect):
            await socket.receive_text()
            client = ByHand(network, session or await run(None, network.session))
            await socket.send_text('{"type":"accepted"}')
            while True:
                frame = await socket.receive_bytes()
                await socket.send_bytes(await run(None, client.answer, frame))

    return app


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.naive_frames", description=__doc__.split("\n", 1)[0])
    parser.add_argument("--network", choices=NETWORKS, required=True)
    parser.add_argument("--file", type=Path, required=True, help="its ONNX file")
    parser.add_argument("--sessions", choices=("each", "one"), required=True)
    parser.add_argument("--port", type=int, required=True)
    arguments = parser.parse_args()
    app = create_app(NETWORKS[arguments.network](arguments.file), shared=arguments.sessions == "one")
    # As the service sets it: nothing is compressed, and no line a request.
    uvicorn.run(
        app, host="127.0.0.1", port=arguments.port, log_level="warning", access_log=False,
        ws="websockets-sansio", ws_per_message_deflate=False,
    )  # fmt: skip


if __name__ == "__main__":
    main()
