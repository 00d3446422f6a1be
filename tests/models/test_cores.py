"""Cores of the affinity mask and of the control groups' quota, versions 1 and 2, as containers show them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from carousel.models.cores import usable_cores
from carousel.models.nn.threads import limit_threads

ALLOWED = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count()
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="there are no control groups here")
V2, V1 = "cgroup2 cgroup rw,nsdelegate", "cgroup cgroup rw,cpu,cpuacct"


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """Makes a machine of 64 cores: `mounts` are (root, directory, kind), `files` what lies below them."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)))

    def make(groups: str, mounts: list[tuple[str, str, str]], files: dict[str, str]) -> Path:
        proc = tmp_path / "proc"
        proc.mkdir()
        (proc / "cgroup").write_text(groups)
        lines = [
            f"{number} 1 0:{number} {root} {str(tmp_path / point).replace(' ', chr(92) + '040')} rw shared:1 - {kind}\n"
            for number, (root, point, kind) in enumerate(mounts)
        ]
        (proc / "mountinfo").write_text("1 0 8:1 / / rw - ext4 /dev/sda rw\nnonsense\n" + "".join(lines))
        for name, content in files.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(content)
        return proc

    return make


@pytest.mark.parametrize(
    ("quota", "cores"),
    [("200000 100000", 2), ("150000 100000", 2), ("50000 100000", 1), ("1000 100000", 1), ("max 100000", 64),
     ("9900000 100000", 64), ("250000 50000", 5), ("", 64), ("x y", 64), ("0 100000", 64)],
)  # fmt: skip
def test_quota_of_version_2_counts_rounded_up(machine, quota, cores):
    proc = machine("0::/\n", [("/", "fs", V2)], {"fs/cpu.max": quota + "\n"})
    assert usable_cores(proc) == cores


def test_quota_of_any_group_above_counts(machine):
    files = {"fs/kubepods/cpu.max": "400000 100000", "fs/kubepods/pod7/cpu.max": "300000 100000"}
    files["fs/kubepods/pod7/abc/cpu.max"] = "max 100000"
    proc = machine("0::/kubepods/pod7/abc\n", [("/", "fs", V2)], files)
    assert usable_cores(proc) == 3


@pytest.mark.parametrize(
    ("quota", "cores"), [("200000", 2), ("-1", 64), ("30000", 1), ("150000", 2), ("250001", 3), ("", 64)]
)
def test_quota_of_version_1_counts(machine, quota, cores):
    files = {"a b/cpu/docker/abc/cpu.cfs_quota_us": quota, "a b/cpu/docker/abc/cpu.cfs_period_us": "100000\n"}
    groups = "12:memory:/docker/abc\n4:cpu,cpuacct:/docker/abc\n0::/\n"
    proc = machine(groups, [("/", "a b/memory", "cgroup cgroup rw,memory"), ("/", "a b/cpu", V1)], files)
    assert usable_cores(proc) == cores


@pytest.mark.parametrize("root", ["/docker/abc", "/docker", "/elsewhere"])
def test_group_is_found_in_a_mount_that_shows_a_part_of_the_hierarchy(machine, root):
    below = "abc/" if root == "/docker" else ""
    files = {f"cpu/{below}cpu.cfs_quota_us": "200000", f"cpu/{below}cpu.cfs_period_us": "100000"}
    proc = machine("4:cpu,cpuacct:/docker/abc\n", [(root, "cpu", V1)], files)
    assert usable_cores(proc) == 2


def test_group_outside_of_what_is_shown_is_not_searched_for(machine):
    proc = machine("0::/../../etc\n", [("/", "fs", V2)], {"fs/cpu.max": "max 100000", "etc/cpu.max": "100000 100000"})
    assert usable_cores(proc) == 64


def test_machine_without_control_groups_has_its_affinity(tmp_path):
    assert usable_cores(tmp_path) == ALLOWED


def test_affinity_of_this_process_counts():
    core = min(os.sched_getaffinity(0))
    code = "from carousel.models.cores import usable_cores; print(usable_cores())"
    command = ["taskset", "-c", str(core), sys.executable, "-c", code]
    assert subprocess.run(command, check=True, capture_output=True, text=True).stdout == "1\n"


@pytest.mark.skipif(not os.access("/sys/fs/cgroup/cpu", os.W_OK), reason="no control group can be made here")
def test_quota_of_this_machine_counts():
    group = Path("/sys/fs/cgroup/cpu/carousel-test")
    group.mkdir()
    try:
        (group / "cpu.cfs_quota_us").write_text("50000")
        code = (
            f"import os, pathlib; pathlib.Path('{group}/cgroup.procs').write_text(str(os.getpid()))\n"
            "from carousel.models.cores import usable_cores; print(usable_cores())"
        )
        assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout == "1\n"
    finally:
        group.rmdir()


@pytest.mark.parametrize(("set_threads", "cores", "threads"), [(3, 2, 2), (1, 2, 1), (2, 2, 2)])
def test_torch_computes_with_no_more_threads_than_cores(monkeypatch, set_threads, cores, threads):
    monkeypatch.setattr("carousel.models.nn.threads.usable_cores", lambda: cores)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(set_threads)
        limit_threads()
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)


def test_nobody_counts_the_machines_cores():
    root = Path(__file__).parents[2]
    found = {
        path.relative_to(root).as_posix()
        for room in ("models", "training", "export", "service", "benchmarks")
        for path in (root / room).rglob("*.py")
        if "cpu_count" in path.read_text()
    }
    # The second compares the two, to leave other services as their users write them where they agree.
    assert found == {"models/cores.py", "benchmarks/step.py"}
