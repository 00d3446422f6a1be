"""What is true of this machine, from the environment: `CAROUSEL_` and the field's name in capitals."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    """The README's table documents each; a test holds the two together."""

    model_config = SettingsConfigDict(env_prefix="CAROUSEL_", extra="forbid", frozen=True)

    host: Annotated[str, Field(description="Address to listen on.")] = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535, description="Port to listen on; 0 takes a free one.")] = 8000
    repository: Annotated[Path, Field(description="Model repository: `<model>/<version>/` directories.")] = Path(
        "bundles"
    )
    max_rows: Annotated[
        int, Field(ge=1, le=4096, description="Sequences that one model runs at once: rows of a step.")
    ] = 128
    max_waiting: Annotated[
        int, Field(ge=0, le=1_000_000, description="Requests that may wait for a row of a model; more get a 503.")
    ] = 1024
    intra_op_threads: Annotated[
        int, Field(ge=0, le=1024, description="Threads of one onnxruntime operator; 0 is one per core.")
    ] = 0
    max_body_bytes: Annotated[int, Field(ge=1024, description="Longest HTTP body and longest WebSocket message.")] = (
        4 * 1024 * 1024
    )
    shutdown_grace_seconds: Annotated[
        int, Field(ge=0, description="How long open requests may go on after SIGTERM.")
    ] = 10
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"], Field(description="Least severe log line that is written.")
    ] = "info"
