"""A text to learn from and a text to be measured on."""

from __future__ import annotations

import gzip
import hashlib
import zlib
from dataclasses import dataclass
from pathlib import Path

from training.errors import CorpusError


@dataclass(frozen=True, slots=True)
class TextCorpus:
    """The two texts, and what identifies them."""

    train: str
    validation: str
    sha256: str
    """Of the unpacked bytes of the training file."""
    validation_sha256: str
    """Of the unpacked bytes of the validation file; of the training file where the validation text is its end."""


def read_corpus(train: str, validation: str, validation_fraction: float) -> TextCorpus:
    """Read the texts; without a validation file, the end of the training text is held out.

    Raises:
        CorpusError: a file is missing, empty, damaged or not UTF-8.
    """
    text, digest = _read(Path(train), "corpus.train")
    if validation:
        held_out, validation_digest = _read(Path(validation), "corpus.validation")
        return TextCorpus(text, held_out, digest, validation_digest)
    cut = len(text) - int(len(text) * validation_fraction)
    return TextCorpus(text[:cut], text[cut:], digest, digest)


def _read(path: Path, key: str) -> tuple[str, str]:
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
        raise CorpusError(f"{key}: {path} is empty; a corpus is a text of at least one window per lane")
    try:
        text = content.decode("utf-8-sig")  # a byte order mark is not text
    except UnicodeDecodeError as error:
        raise CorpusError(
            f"{key}: {path} is not UTF-8 at byte offset {error.start:,} (0x{content[error.start]:02x}); "
            "convert it to UTF-8 first"
        ) from None
    return text, hashlib.sha256(content).hexdigest()
