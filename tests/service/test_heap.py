"""What freed memory costs, asked of processes of their own, whose allocator nobody else has set."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
from unittest.mock import Mock

import pytest

from carousel.service.served import heap
from carousel.service.served.heap import MAX_ARENAS

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")

CODE = """
import ctypes, threading
{limit}
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
gate = threading.Barrier(9)

def hold():
    libc.malloc(1 << 16)
    gate.wait(30)
    gate.wait(30)

threads = [threading.Thread(target=hold) for _ in range(8)]
for thread in threads:
    thread.start()
gate.wait(30)
libc.malloc_stats()
gate.wait(30)
"""
LIMIT = "from carousel.service.served.heap import share_arenas; share_arenas()"


def arenas(limit: str, **environment: str) -> int:
    done = subprocess.run(
        [sys.executable, "-c", CODE.format(limit=limit)],
        env={name: value for name, value in os.environ.items() if name != "MALLOC_ARENA_MAX"} | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return len(re.findall("^Arena", done.stderr, re.MULTILINE))


def test_threads_share_arenas_unless_the_environment_says_otherwise():
    assert arenas("") > MAX_ARENAS
    assert arenas(LIMIT) <= MAX_ARENAS
    assert arenas(LIMIT, MALLOC_ARENA_MAX="5") == 5


RESIDENT = """
import os
import numpy as np
from carousel.service.served.heap import give_back_freed, keep_large_pieces_apart

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6
"""


def printed(code: str) -> float:
    done = subprocess.run(
        [sys.executable, "-c", RESIDENT + code],
        env={name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")},
        capture_output=True,
        text=True,
        check=True,
    )
    return float(done.stdout)


ZEROS = """
before = resident()
for _ in range(3):
    np.ones(24 << 20, np.uint8)
zeros = np.zeros(20 << 20, np.uint8)
print(resident() - before)
"""


def test_large_zeros_cost_nothing_until_they_are_written_to() -> None:
    assert printed("keep_large_pieces_apart()" + ZEROS) < 2
    assert printed(ZEROS) > 18  # as malloc has it by itself


def test_what_the_environment_says_of_large_pieces_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    library = Mock()
    monkeypatch.setattr(heap, "_glibc", lambda: library)
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", "1000000")
    heap.keep_large_pieces_apart()
    assert not library.mock_calls
    monkeypatch.delenv("MALLOC_MMAP_THRESHOLD_")
    heap.keep_large_pieces_apart()
    assert len(library.mock_calls) == 2


def test_holes_among_what_stays_are_given_back() -> None:
    holes = """
pieces = [np.ones(64 << 10, np.uint8) for _ in range(1000)]
before = resident()
del pieces[::2]
give_back_freed()
print(before - resident())
"""
    assert printed(holes) > 25
    assert printed(holes.replace("give_back_freed()", "")) < 10
