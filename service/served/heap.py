"""What the C library does with memory that is freed: settings and calls of glibc's malloc, and nothing with any other.

While a model is opened, its files, parsed graphs and weights in the layout of the file come and go: a hundred megabytes
of holes among what stays. By itself malloc keeps the pages of holes for later. And from the first large piece that is
freed it takes all up to that size, 32 MB at most, from the heap: arrays of zeros, whose pages cost nothing until they
are written to, then cost all of them at once.
"""

from __future__ import annotations

import ctypes
import os
import sys

LARGE_BYTES = 16 << 20
"""From here on a piece is mapped by itself and unmapped when it is freed. What a step or a prefill call needs for a
moment is smaller: mapping it anew in each call would take longer."""

MAX_ARENAS = 2
"""glibc gives threads arenas of their own, up to eight a core, and what is freed in one is of no use in another. Each
version that is loaded brings new threads: after some hundred reloads the process held a sixth more than it had needed.
Two hold it where it was (`python -m benchmarks.reloads`), and little here allocates from many threads at once."""

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8
"""Of <malloc.h>."""


def keep_large_pieces_apart() -> None:
    """Fix what is large, unless MALLOC_MMAP_THRESHOLD_ says otherwise. Called before much is allocated.

    What is free at the heap's end is kept up to twice that size.
    """
    library = _glibc()
    if library is not None and "MALLOC_MMAP_THRESHOLD_" not in os.environ:
        library.mallopt(M_MMAP_THRESHOLD, LARGE_BYTES)
        library.mallopt(M_TRIM_THRESHOLD, 2 * LARGE_BYTES)


def share_arenas() -> None:
    """Let all threads share MAX_ARENAS, unless MALLOC_ARENA_MAX says otherwise. Called before there are threads."""
    library = _glibc()
    if library is not None and "MALLOC_ARENA_MAX" not in os.environ:
        library.mallopt(M_ARENA_MAX, MAX_ARENAS)


def give_back_freed() -> None:
    """Give whole free pages back to the system. Takes milliseconds, in which other threads may wait for memory."""
    library = _glibc()
    if library is not None:
        library.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    """The C library of this process; None where it is not glibc."""
    library = ctypes.CDLL(None) if sys.platform == "linux" else None
    return library if hasattr(library, "malloc_trim") else None
