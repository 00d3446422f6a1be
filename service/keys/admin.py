"""The admin key: one for the server, from its environment, beside the keys of callers and above them."""

from __future__ import annotations

import hmac

from carousel.service.errors import RequestError

MIN_ADMIN_KEY_CHARACTERS = 32


def check_admin(key: bytes | None, admin_key: str) -> None:
    """Let nobody pass but who has the admin key. It is compared in constant time.

    Args:
        key: what the request brings, if anything.
        admin_key: the server's.

    Raises:
        RequestError: missing_key, or admin_key_needed.
    """
    if key is None:
        raise RequestError("missing_key", "there is no key; send the header Authorization: Bearer ADMIN_KEY")
    if not hmac.compare_digest(key, admin_key.encode()):
        raise RequestError("admin_key_needed", "the key is not the server's admin key, which this route asks for")
