"""How many cores this process may use, which in a container are seldom those that the machine has."""

from __future__ import annotations

import math
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

_PROC = Path("/proc/self")


def usable_cores(proc: Path = _PROC) -> int:
    """Cores of the affinity mask (`taskset`, cpusets), and no more than the control groups' quota (`docker --cpus`).

    A quota is rounded up: at 1.5 cores two threads have work for three quarters of the time. Where there is neither,
    these are the machine's.

    Args:
        proc: where Linux says in which control groups a process is, and where those are mounted.
    """
    allowed = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    return min([allowed, *map(math.ceil, _quotas(proc))])


def _quotas(proc: Path) -> Iterator[float]:
    """The quota of each control group that the process is in, from its own up to the topmost that is visible, in cores.

    The kernel's documents: Documentation/admin-guide/cgroup-v2.rst ("cpu.max") and scheduler/sched-bwc.rst (version 1).
    """
    try:
        groups = (proc / "cgroup").read_text(errors="replace").splitlines()
        mounts = (proc / "mountinfo").read_text(errors="replace").splitlines()
    except OSError:
        return
    for group in groups:  # 0::/path, or 4:cpu,cpuacct:/path
        number, _, rest = group.partition(":")
        controllers, _, path = rest.partition(":")
        unified = number == "0" and not controllers
        if not unified and "cpu" not in controllers.split(","):
            continue
        for mount in mounts:  # 36 35 0:31 ROOT MOUNTPOINT OPTIONS [FIELDS...] - TYPE SOURCE SUPER_OPTIONS
            before, _, after = mount.partition(" - ")
            kind, _, options = after.partition(" ")
            if (kind == "cgroup2") if unified else (kind == "cgroup" and "cpu" in options.split()[-1].split(",")):
                root, point = (_unescaped(field) for field in before.split()[3:5])
                yield from _along(Path(point), _below(root, path), unified=unified)


def _below(root: str, path: str) -> list[str]:
    """The group's path in a mount that shows the hierarchy from `root` on. Where it shows another part, its top."""
    root = root.rstrip("/")
    if path == root or path.startswith(f"{root}/"):
        return [part for part in path.removeprefix(root).split("/") if part not in ("", "..")]
    return []


def _along(directory: Path, parts: list[str], *, unified: bool) -> Iterator[float]:
    for depth in range(len(parts) + 1):
        group = directory.joinpath(*parts[:depth])
        try:
            if unified:  # "max 100000" or "150000 100000"
                quota, period = (group / "cpu.max").read_text().split()
            else:
                quota, period = ((group / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
            if quota != "max" and int(quota) > 0 and int(period) > 0:  # version 1 has -1 for none
                yield int(quota) / int(period)
        except (OSError, ValueError):  # the root group has no such file
            continue


def _unescaped(field: str) -> str:
    """Spaces and the like are octal in mountinfo."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), field)
