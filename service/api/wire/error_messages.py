"""The shape of errors, as the API's description has it, and which an operation may have."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, Field


class ErrorDetail(BaseModel):
    """What went wrong."""

    code: str
    message: str
    retryable: bool


class ErrorBody(BaseModel):
    """The shape of every error."""

    error: ErrorDetail


class OpenAIErrorDetail(ErrorDetail):
    """What went wrong, with OpenAI's fields."""

    type: Annotated[str, Field(description="invalid_request_error, rate_limit_error or server_error.")]
    param: Annotated[str | None, Field(description="The field at fault, where it is one.")]


class OpenAIErrorBody(BaseModel):
    """The shape of errors on OpenAI's routes."""

    error: OpenAIErrorDetail


ERRORS: dict[int | str, dict[str, type[ErrorBody]]] = {
    status: {"model": ErrorBody} for status in (400, 401, 404, 408, 409, 410, 413, 422, 429, 500, 503, 504)
}
"""Of the operations on one model."""
