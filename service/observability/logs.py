"""Log lines as text or as JSON, one object a line."""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime
from typing import Literal, Protocol, runtime_checkable

TEXT_FORMAT = "%(asctime)s %(levelname)s %(name)s %(message)s"


@runtime_checkable
class Fields(Protocol):
    """A log message that is more than its text."""

    def fields(self) -> dict[str, object]:
        """What a program may want to know of it, by name."""
        ...


class JsonFormatter(logging.Formatter):
    """`time` (UTC, RFC 3339), `level`, `logger`, `message`, `exception` where there is one, and a message's fields."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if isinstance(record.msg, Fields):
            line |= record.msg.fields()
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def install(level: str, kind: Literal["text", "json"]) -> None:
    """Write the log to standard error."""
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False  # the formats ask for none of them
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter() if kind == "json" else logging.Formatter(TEXT_FORMAT))
    logging.basicConfig(level=level.upper(), handlers=[handler])
