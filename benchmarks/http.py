"""A bare HTTP/1.1 client over asyncio: it shares the machine with the server it measures."""

from __future__ import annotations

import asyncio
from typing import Self

from carousel.benchmarks.load import Target


class Client:
    """One keep-alive connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def open(cls, target: Target) -> Self:
        """Connect."""
        return cls(*await asyncio.open_connection(target.host, target.port))

    async def post(self, path: str, content: bytes, content_type: str = "application/json") -> bytes:
        """The answer's body; anything but a 200 ends the benchmark."""
        head = f"POST {path} HTTP/1.1\r\nhost: b\r\ncontent-type: {content_type}\r\n"
        self._writer.write(f"{head}content-length: {len(content)}\r\n\r\n".encode() + content)
        answer = await self._reader.readuntil(b"\r\n\r\n")
        start = answer.lower().index(b"content-length:") + 15
        length = int(answer[start : answer.index(b"\r", start)])
        told = await self._reader.readexactly(length)
        if not answer.startswith(b"HTTP/1.1 200"):
            raise SystemExit(f"benchmarks: {answer.splitlines()[0].decode()}: {told[:500].decode()}")
        return told

    def close(self) -> None:
        """Hang up."""
        self._writer.close()
