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

from carousel.service.sessions.codec import decode, encode
from carousel.service.sessions.errors import InvalidMemory, InvalidToken, MemoryTooLarge
from carousel.service.sessions.memory import Memory, ModelIdentity, check_fit

MIN_KEY_BYTES = 32
SIGNATURE_BYTES = hashlib.sha256().digest_size

_PURPOSE = b"carousel state token 1\0"
"""Keeps a signature from meaning anything elsewhere, should the key be used for something else too."""


class TokenSigner:
    """Makes tokens and takes them back.

    Args:
        keys: secrets of at least MIN_KEY_BYTES each. The first signs; a token signed with any of them is believed. To
            rotate, put the new key first and drop the old one when its tokens need not be honoured any more.
        max_bytes: of a memory that is signed or believed.

    Raises:
        ValueError: there is no key, or a short one.
    """

    def __init__(self, keys: Sequence[bytes], max_bytes: int = 1024 * 1024) -> None:
        if not keys:
            raise ValueError("there is no key to sign state tokens with; give at least one")
        for key in keys:
            if len(key) < MIN_KEY_BYTES:
                raise ValueError(
                    f"a key for state tokens has {len(key)} bytes; give at least {MIN_KEY_BYTES} random ones "
                    "(openssl rand -hex 32)"
                )
        self._keys = list(keys)
        self._max_bytes = max_bytes
        self.max_characters = -(-(max_bytes + SIGNATURE_BYTES) * 4 // 3)
        """Of the longest token."""

    def check_size(self, size: int) -> None:
        """Hold that a memory of so many bytes may be signed. Raises MemoryTooLarge."""
        if size > self._max_bytes:
            raise MemoryTooLarge(
                f"a state token would hold {size:,} bytes, and at most {self._max_bytes:,} are signed "
                "(CAROUSEL_MAX_STATE_TOKEN_BYTES): let a session keep the state, or have that raised"
            )

    def sign(self, memory: Memory, tenant: str) -> str:
        """The token of a memory, good for this tenant only.

        Raises:
            MemoryTooLarge
        """
        content = encode(memory)
        self.check_size(len(content))
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
        if len(token) > self.max_characters:
            raise InvalidToken(
                f"the state token has {len(token):,} characters, and at most {self.max_characters:,} are read "
                "(CAROUSEL_MAX_STATE_TOKEN_BYTES): send one back exactly as it was received, or start anew without it"
            )
        raw = _to_bytes(token)
        content, seen = raw[:-SIGNATURE_BYTES], raw[-SIGNATURE_BYTES:]
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
