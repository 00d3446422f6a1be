"""Where a command writes its result: whole or not at all, and through whatever stands at the path.

A regular file is replaced when its successor is whole, also behind a link, which stays one, with the mode that it had.
What is no regular file (a pipe, a device, /dev/stdout) has readers of its own and is written in place.
"""

from __future__ import annotations

import os
import re
import secrets
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from carousel.models.errors import CarouselError

STDOUT = 1
"""The descriptor of standard output."""

_STREAMS = {"/dev/stdout": STDOUT, "/dev/stderr": 2}
_DESCRIPTOR = re.compile(r"/(?:dev|proc/(?:self|thread-self|[0-9]+))/fd/([0-9]+)")
MAX_LINKS = 40
"""As Linux follows."""


class OutputError(CarouselError):
    """A path that nothing can be written to."""


def check_output(path: Path, *, make_parents: bool = False, inputs: Iterable[Path] = ()) -> None:
    """See, before the work, that a result can be written to a path.

    Args:
        path: as open_output takes it.
        make_parents: make the directory that it is to lie in.
        inputs: files that the command reads, or writes another result to: the result must not take their place.

    Raises:
        OutputError: it is a directory or one of the inputs, or its own directory is missing or cannot be written to.
    """
    if str(path) == "-":
        raise OutputError("-: is no file; give /dev/stdout for standard output")
    if descriptor_of(path) is not None:
        return
    target = _target(path)
    for other in inputs:
        if _is_one_file(target, other):
            raise OutputError(f"{path}: is {other}, which the result would replace; give another path")
    if target.is_dir():
        raise OutputError(f"{path}: is a directory; give the path of a file")
    if _is_special(target):
        return
    try:
        if make_parents:
            target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{path}: its directory cannot be made ({error.strerror}); give another path") from None
    if not target.parent.is_dir():
        raise OutputError(f"{path}: there is no directory {target.parent}; make it first, or give another path")
    if not os.access(target.parent, os.W_OK | os.X_OK):
        raise OutputError(f"{path}: the directory {target.parent} cannot be written to; give another path")


@contextmanager
def open_output(path: Path, *, make_parents: bool = False) -> Iterator[BinaryIO]:
    """A file to write a result to; what is regular appears at the path when the block has ended well.

    Args:
        path: of a file, of a link to one, or of a pipe or device.
        make_parents: make the directory that it is to lie in.

    Raises:
        OutputError: as check_output.
        OSError: it cannot be written.
    """
    check_output(path, make_parents=make_parents)
    descriptor, target = descriptor_of(path), _target(path)
    if descriptor is not None:
        # Not opened anew: that would begin at the start of a file that the shell appends to.
        with os.fdopen(os.dup(descriptor), "wb") as file:
            yield file
        return
    if _is_special(target):
        with target.open("wb") as file:
            yield file
        return
    unfinished = target.with_name(f".{target.name[:40]}.{secrets.token_hex(4)}.part")
    try:
        with unfinished.open("xb") as file:
            if target.exists():
                os.fchmod(file.fileno(), stat.S_IMODE(target.stat().st_mode))
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, target)
    finally:
        unfinished.unlink(missing_ok=True)


def descriptor_of(path: Path) -> int | None:
    """The open file that a path such as /dev/stdout or /dev/fd/3 stands for, links followed; None for any other."""
    for _ in range(MAX_LINKS):
        text = os.path.abspath(path)
        if text in _STREAMS:
            return _STREAMS[text]
        if found := _DESCRIPTOR.fullmatch(text):
            return int(found[1])
        if not path.is_symlink():
            return None
        path = path.parent / os.readlink(path)
    return None


def _target(path: Path) -> Path:
    try:
        return path.resolve()
    except (OSError, RuntimeError):  # of links that go in a circle
        raise OutputError(f"{path}: its links lead nowhere; give another path") from None


def _is_one_file(target: Path, other: Path) -> bool:
    """Whether two paths lead to one regular file, be it by links or by another name of it; or would, were it there."""
    try:
        found, wanted = target.stat(), other.stat()
    except OSError:
        return target == Path(os.path.realpath(other))
    return stat.S_ISREG(found.st_mode) and os.path.samestat(found, wanted)


def _is_special(target: Path) -> bool:
    """Whether something stands there that is no regular file."""
    try:
        return not stat.S_ISREG(target.stat().st_mode)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise OutputError(f"{target}: cannot be written to ({error.strerror}); give another path") from None
