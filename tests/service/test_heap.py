"""Threads of the served process share a bounded number of the C library's arenas."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys

import pytest

from service.heap import MAX_ARENAS

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
LIMIT = "from service.heap import share_arenas; share_arenas()"


def arenas(limit: str, **environment: str) -> int:
    done = subprocess.run(
        [sys.executable, "-c", CODE.format(limit=limit)],
        env={name: value for name, value in os.environ.items() if name != "MALLOC_ARENA_MAX"} | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return len(re.findall("^Arena", done.stderr, re.MULTILINE))


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_threads_share_arenas_unless_the_environment_says_otherwise():
    assert arenas("") > MAX_ARENAS
    assert arenas(LIMIT) <= MAX_ARENAS
    assert arenas(LIMIT, MALLOC_ARENA_MAX="5") == 5
