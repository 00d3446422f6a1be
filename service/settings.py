"""What is true of this machine, from the environment: `CAROUSEL_` and the field's name in capitals."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from carousel.service.keys.admin import MIN_ADMIN_KEY_CHARACTERS
from carousel.service.keys.origins import ALL, origin_of
from carousel.service.sessions.tokens import MIN_KEY_BYTES

Providers = Literal["cpu", "cuda"]

PREFIX = "CAROUSEL_"


class Settings(BaseSettings):
    """The README's table documents each; a test holds names, defaults and descriptions together."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, env_ignore_empty=True, extra="forbid", frozen=True)

    host: Annotated[str, Field(description="Address to listen on.")] = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535, description="Port to listen on; 0 takes a free one.")] = 8000
    grpc_port: Annotated[
        int | None,
        Field(
            ge=0,
            le=65535,
            description="Port for the Open Inference Protocol over gRPC, with the extra `grpc`; 0 takes a free one, "
            "none turns it off.",
        ),
    ] = None
    repository: Annotated[Path, Field(description="Model repository: `<model>/<version>/` directories.")] = Path(
        "bundles"
    )
    max_rows: Annotated[
        int, Field(ge=1, le=4096, description="Sequences that one model runs at once: rows of a step.")
    ] = 128
    max_rows_bytes: Annotated[
        int,
        Field(
            ge=1024 * 1024,
            description="Memory for the rows of one model, each with its states twice; where they are so large that "
            "`CAROUSEL_MAX_ROWS` would take more, it runs fewer. Raw streams may take a sixteenth of it more for rows, "
            "and as much again for their states between steps.",
        ),
    ] = 1024 * 1024 * 1024
    max_waiting: Annotated[
        int,
        Field(
            ge=0,
            le=1_000_000,
            description="Rows of a model that may be waited for (a beam waits for as many as it is wide), by `batch` "
            "half of them; more get a 503.",
        ),
    ] = 1024
    max_wait_seconds: Annotated[
        float,
        Field(
            gt=0,
            description="Longest that a request may be expected to wait for a row, if its own time allows as much; "
            "what would wait longer gets a 503.",
        ),
    ] = 20.0
    deadline_seconds: Annotated[
        float,
        Field(
            gt=0,
            description="Longest that a request may take once it is let in, if it asks for no shorter "
            "`timeout_seconds`; then it ends with a 504.",
        ),
    ] = 600.0
    max_connections: Annotated[
        int, Field(ge=1, description="Open connections, HTTP and WebSocket together; one more gets a 503.")
    ] = 4096
    receive_seconds: Annotated[
        float,
        Field(
            gt=0,
            description="Longest that a request may take to come, head and body; then it gets a 408. A connection on "
            "which none begins is closed.",
        ),
    ] = 30.0
    socket_idle_seconds: Annotated[
        float,
        Field(gt=0, description="Longest that a WebSocket may stand open with nothing to do; then it is closed, 4408."),
    ] = 600.0
    intra_op_threads: Annotated[
        int,
        Field(
            ge=0,
            le=1024,
            description="Threads of one onnxruntime operator; 0 is one for each core that the process may use, in "
            "int8, and where a step has few weights, one less but at least one; and one beside an encoder.",
        ),
    ] = 0
    providers: Annotated[
        Providers,
        Field(
            description="`cuda` runs fp32 models on the GPU, with their states there; what cannot runs on the `cpu`."
        ),
    ] = "cpu"
    state_cache_bytes: Annotated[
        int,
        Field(
            ge=0,
            description="Memory for the states of prompts, so that a beginning that was sent before is not consumed "
            "again; 0 turns it off.",
        ),
    ] = 64 * 1024 * 1024
    max_body_bytes: Annotated[int, Field(ge=1024, description="Longest HTTP body and longest WebSocket message.")] = (
        4 * 1024 * 1024
    )
    max_image_body_bytes: Annotated[
        int, Field(ge=1024, description="The same for images: bodies of `/captions`, messages to a captioning model.")
    ] = 16 * 1024 * 1024
    redis_url: Annotated[
        SecretStr | None,
        Field(description="Redis to keep sessions in (`redis://...`), shared by replicas; none keeps them in memory."),
    ] = None
    state_key: Annotated[
        SecretStr | None,
        Field(
            description="Secret that signs state tokens, at least 32 bytes; after a comma, older ones still believed. "
            "None draws one per process: no other replica, and no restart, then takes its tokens."
        ),
    ] = None
    session_ttl_seconds: Annotated[
        int, Field(ge=1, le=10 * 365 * 86400, description="How long a session lives after its last use.")
    ] = 3600
    max_sessions: Annotated[
        int,
        Field(
            ge=1,
            description="Sessions kept in memory; beyond it, or beyond `CAROUSEL_SESSION_STORE_BYTES`, the least "
            "recently used go. Not for Redis.",
        ),
    ] = 100_000
    session_store_bytes: Annotated[
        int, Field(ge=1024 * 1024, description="Memory for the sessions kept there, with what they keep for pictures.")
    ] = 1024 * 1024 * 1024
    max_session_bytes: Annotated[
        int,
        Field(ge=1024, description="Longest state of one session, in memory or in Redis; a longer one is refused."),
    ] = 16 * 1024 * 1024
    max_state_token_bytes: Annotated[
        int,
        Field(
            ge=1024,
            description="Longest state in a token, which is a third longer as text and has to fit into a body; a "
            "longer one is refused.",
        ),
    ] = 1024 * 1024
    api_keys_file: Annotated[
        Path | None,
        Field(description="API keys, hashed, with tenants and limits (`python -m service key`); none asks for no key."),
    ] = None
    admin_key: Annotated[
        SecretStr | None,
        Field(
            description="Key for `/v1/repository`, where models are loaded and unloaded, at least 32 characters; none "
            "turns these routes off."
        ),
    ] = None
    cors_origins: Annotated[
        tuple[str, ...],
        NoDecode,
        Field(
            description="Origins of web pages that may use the server from a browser, WebSockets too, with commas in "
            "between (`https://app.example`); `*` is all. Behind a proxy also the origin that it is reached by."
        ),
    ] = ()
    ignored_fields: Annotated[
        tuple[str, ...],
        NoDecode,
        Field(
            description="Fields that completions do not know and are to ignore, not refuse, with commas in between "
            "(`metadata,store,ignore_eos`)."
        ),
    ] = ()
    watch_seconds: Annotated[
        float,
        Field(
            ge=0,
            allow_inf_nan=False,
            description="Pause between two looks at the repository for new versions; 0 never looks.",
        ),
    ] = 0
    shutdown_grace_seconds: Annotated[
        int,
        Field(
            ge=0,
            description="How long requests and streams may go on after SIGTERM, before they are ended; that takes ten "
            "more at most.",
        ),
    ] = 10
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"], Field(description="Least severe log line that is written.")
    ] = "info"
    log_format: Annotated[
        Literal["text", "json"], Field(description="Log lines as `text` or as `json`, one object a line.")
    ] = "text"

    @field_validator("cors_origins", "ignored_fields", mode="before")
    @classmethod
    def _with_commas(cls, value: object) -> object:
        return tuple(filter(None, map(str.strip, value.split(",")))) if isinstance(value, str) else value

    @field_validator("grpc_port")
    @classmethod
    def _with_grpc(cls, value: int | None) -> int | None:
        if value is not None and find_spec("grpc") is None:
            raise ValueError("needs the extra `grpc` (pip install 'carousel[grpc]')")
        return value

    @field_validator("host")
    @classmethod
    def _an_address(cls, value: str) -> str:
        if not value.strip():  # asyncio would listen on every address
            raise ValueError("is empty; give an address, such as 127.0.0.1, or 0.0.0.0 for all")
        return value

    @field_validator("cors_origins")
    @classmethod
    def _origins(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(ALL if origin == ALL else origin_of(origin) for origin in value)

    @field_validator("state_key")
    @classmethod
    def _long_keys(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None:
            shortest = min(len(key.encode()) for key in value.get_secret_value().split(","))
            if shortest < MIN_KEY_BYTES:
                raise ValueError(
                    f"a key has {shortest} bytes; give at least {MIN_KEY_BYTES} random ones (openssl rand -hex 32)"
                )
        return value

    @field_validator("admin_key")
    @classmethod
    def _long_admin_key(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and len(value.get_secret_value()) < MIN_ADMIN_KEY_CHARACTERS:
            raise ValueError(
                f"has {len(value.get_secret_value())} characters; give at least {MIN_ADMIN_KEY_CHARACTERS} random ones "
                "(openssl rand -hex 32)"
            )
        return value

    @field_validator("redis_url")
    @classmethod
    def _redis_scheme(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and not value.get_secret_value().startswith(("redis://", "rediss://", "unix://")):
            raise ValueError("is no URL of a Redis server; allowed are redis://, rediss:// and unix://")
        return value


def unknown_variables(names: Iterable[str]) -> str:
    """What to say of variables that begin like settings and are none; empty where there are none.

    Args:
        names: of the environment's variables. Upper and lower case are alike, as for settings.
    """
    known = [field.upper() for field in Settings.model_fields]
    told = []
    for name in sorted(name for name in names if name.upper().startswith(PREFIX)):
        rest = name.upper().removeprefix(PREFIX)
        if rest not in known:
            near = difflib.get_close_matches(rest, known, n=1)
            told.append(f"{name} (is {PREFIX}{near[0]} meant?)" if near else name)
    return f"no settings, and without effect: {', '.join(told)}" if told else ""
