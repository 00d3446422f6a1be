"""Text files, plain or gzipped, read whole with their digest; and their lines."""

from __future__ import annotations

import gzip
import hashlib
import zlib
from pathlib import Path
from typing import Annotated

from pydantic import BeforeValidator

from carousel.training.errors import CorpusError


def _as_list(value: object) -> object:
    return ([value] if value else []) if isinstance(value, str) else value


Paths = Annotated[list[str], BeforeValidator(_as_list)]
"""One path, or a list of them."""


def read_text(path: Path, key: str) -> tuple[str, str]:
    """The text of a UTF-8 file and the sha256 of its unpacked bytes.

    Args:
        path: a file; unpacked where it ends in .gz.
        key: of the recipe, for the error's sentence.

    Raises:
        CorpusError: the file is missing, empty, damaged or not UTF-8.
    """
    try:
        content = path.read_bytes()
        if path.suffix == ".gz":
            content = gzip.decompress(content)
    except FileNotFoundError:
        raise CorpusError(f"{key}: there is no file {path}; paths are relative to the current directory") from None
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise CorpusError(f"{key}: {path} is not a whole gzip file ({error})") from None
    except OSError as error:
        raise CorpusError(f"{key}: {path} cannot be read ({error.strerror})") from None
    if not content:
        raise CorpusError(f"{key}: {path} is empty; there is nothing in it to learn from")
    try:
        text = content.decode("utf-8-sig")  # a byte order mark is not text
    except UnicodeDecodeError as error:
        if content.startswith((b"\xff\xfe", b"\xfe\xff")):
            raise CorpusError(f"{key}: {path} is UTF-16; save it as UTF-8") from None
        raise CorpusError(
            f"{key}: {path} is not UTF-8 at byte offset {error.start:,} (0x{content[error.start]:02x}); "
            "convert it to UTF-8 first"
        ) from None
    return text, hashlib.sha256(content).hexdigest()


def lines_of(text: str) -> list[str]:
    """The lines, whoever's ends they have; splitlines() would also cut at U+2028 and the like."""
    return one_line_end(text).split("\n")


def one_line_end(text: str) -> str:
    """The text with every line end, CR LF or a lone CR, as LF (Python's universal newlines)."""
    return text.replace("\r\n", "\n").replace("\r", "\n") if "\r" in text else text
