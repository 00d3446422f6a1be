"""What names a session: its id among the sessions of one tenant and one model."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass

from carousel.service.sessions.errors import InvalidSessionId

MAX_SESSION_ID_CHARACTERS = 128
SESSION_ID_PATTERN = rf"^(?!\.{{1,2}}$)[A-Za-z0-9._-]{{1,{MAX_SESSION_ID_CHARACTERS}}}$"
"""`.` and `..` are no ids: as a part of a URL they mean another place."""

_PATTERN = re.compile(SESSION_ID_PATTERN.removesuffix("$") + r"\Z")  # `$` would let a final newline pass


@dataclass(frozen=True, slots=True)
class SessionKey:
    """One session.

    Args:
        tenant: who it belongs to. To any other tenant it does not exist.
        model: the model's name. Two models may have a session of one id: their memories have nothing in common.
        session: the id that the client chose.

    Raises:
        InvalidSessionId
    """

    tenant: str
    model: str
    session: str

    def __post_init__(self) -> None:
        if _PATTERN.match(self.session):
            return
        seen = self.session if len(self.session) <= MAX_SESSION_ID_CHARACTERS else f"{len(self.session):,} characters"
        raise InvalidSessionId(
            f"session id is {seen!a}; an id is 1 to {MAX_SESSION_ID_CHARACTERS} of the characters "
            "A-Z a-z 0-9 . _ - and neither . nor .."
        )

    @property
    def digest(self) -> str:
        """What a store calls the session: ids that clients chose, and may mean people, stay out of its key space.

        The parts are joined unambiguously: neither the model's name nor the id can hold a NUL.
        """
        return hashlib.sha256("\0".join((self.tenant, self.model, self.session)).encode()).hexdigest()
