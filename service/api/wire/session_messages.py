"""What is told of a session."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, Field


class SessionInfo(BaseModel):
    """A session. Times are Unix seconds."""

    session: str
    model: str
    version: Annotated[int, Field(description="Of the model that wrote it last.")]
    steps: Annotated[int, Field(description="Tokens or attempts that it holds.")]
    created_at: float
    updated_at: float
    expires_in_seconds: float
