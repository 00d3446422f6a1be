"""Memories that the client keeps: signed, so that the server can believe what comes back.

A token is the memory's bytes and an HMAC-SHA256 (RFC 2104) over the tenant and those bytes, which hold the model's
digest and version, in unpadded URL-safe base64 (RFC 4648, section 5). It is signed, not encrypted, and can be used more
than once: two requests from one token are a fork, which is what a search over continuations wants.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import struct
from collections.abc import Sequence

from carousel.service.sessions.codec import MAX_MEMORY_BYTES, decode, encode
from carousel.service.sessions.errors import InvalidMemory, InvalidToken
from carousel.service.sessions.memory import Memory, ModelIdentity, check_fit

MIN_KEY_BYTES = 32
MAX_TOKEN_CHARACTERS = -(-(MAX_MEMORY_BYTES + hashlib.sha256().digest_size) * 4 // 3)

_PURPOSE = b"carousel state token 1\0"
"""Keeps a signature from meaning anything elsewhere, should the key be used for something else too."""


class TokenSigner:
    """Makes tokens and takes them back.

    Args:
        keys: secrets of at least MIN_KEY_BYTES each. The first signs; a token signed with any of them is believed. To
            rotate, put the new key first and drop the old one when its tokens need not be honoured any more.

    Raises:
        ValueError: there is no key, or a short one.
    """

    def __init__(self, keys: Sequence[bytes]) -> None:
        if not keys:
            raise ValueError("there is no key to sign state tokens with; give at least one")
        for key in keys:
            if len(key) < MIN_KEY_BYTES:
                raise ValueError(
                    f"a key for state tokens has {len(key)} bytes; give at least {MIN_KEY_BYTES} random ones "
                    "(openssl rand -hex 32)"
                )
        self._keys = list(keys)

    def sign(self, memory: Memory, tenant: str) -> str:
        """The token of a memory, good for this tenant only.

        Raises:
            MemoryTooLarge
        """
        content = encode(memory)
        return _to_text(content + _signature(self._keys[0], tenant, content))

    def open(self, token: str, tenant: str, model: ModelIdentity) -> Memory:
        """The memory in a token, for this model to go on from.

        Raises:
            InvalidToken: it was not signed with our keys for this tenant, or is not whole.
            ModelMismatch: it is genuine, and another model's.
        """
        content = self._verified(token, tenant)
        try:
            memory = decode(content)
        except InvalidMemory as error:  # ours, yet unreadable: made by a release with another format
            raise InvalidToken(f"the state token cannot be read ({error}); start anew without it") from None
        check_fit(memory, model)
        return memory

    def _verified(self, token: str, tenant: str) -> bytes:
        raw = _to_bytes(token)
        size = hashlib.sha256().digest_size
        content, seen = raw[:-size], raw[-size:]
        genuine = [hmac.compare_digest(seen, _signature(key, tenant, content)) for key in self._keys]
        if not any(genuine):
            raise InvalidToken(
                f"the state token of {len(token):,} characters was not signed by this service for this caller, or was "
                "altered; send one back exactly as it was received, or start anew without it"
            )
        return content


def _signature(key: bytes, tenant: str, content: bytes) -> bytes:
    name = tenant.encode()
    return hmac.digest(key, _PURPOSE + struct.pack("<I", len(name)) + name + content, "sha256")


def _to_text(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def _to_bytes(token: str) -> bytes:
    """Raises InvalidToken. One token has one text: what decodes to the same bytes and reads differently is refused."""
    if len(token) > MAX_TOKEN_CHARACTERS:
        raise InvalidToken(
            f"the state token has {len(token):,} characters; one of this service has at most {MAX_TOKEN_CHARACTERS:,}"
        )
    try:
        raw = base64.urlsafe_b64decode(token + "=" * (-len(token) % 4))  # skips what is no base64: hence the way back
    except ValueError:
        raw = b""
    if not raw or _to_text(raw) != token:
        raise InvalidToken(
            f"the state token of {len(token):,} characters is no unpadded URL-safe base64; "
            "send one back exactly as it was received, or start anew without it"
        )
    return raw
