"""Memory, processors and open files are those of the container, where these are fewer than the machine's."""

import contextlib
import os
import resource
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from scaler.core import limits
from scaler.core.errors import ScalerError

GIB = 1 << 30
V1 = """\
4:memory:{path}
2:cpu,cpuacct:{path}
0::/
"""
MOUNTS = """\
23 1 0:21 / /proc rw - proc proc rw
32 31 0:29 {within} /sys/fs/cgroup/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct
35 31 0:32 {within} /sys/fs/cgroup/memory rw,relatime shared:9 - cgroup cgroup rw,memory
41 31 0:38 {within} /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
"""


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A machine of 64 cores and 256 GiB, of which 200 are free, whose control groups a test makes."""
    monkeypatch.setattr(limits, "ROOT", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)))
    monkeypatch.setattr(
        psutil, "virtual_memory", lambda: type("Memory", (), {"total": 256 * GIB, "available": 200 * GIB})
    )

    def make(groups, path, within="/", listed=V1):
        (tmp_path / "proc/self").mkdir(parents=True)
        (tmp_path / "proc/self/cgroup").write_text(listed.format(path=path))
        (tmp_path / "proc/self/mountinfo").write_text(MOUNTS.format(within=within))
        for name, content in groups.items():
            (tmp_path / "sys/fs/cgroup" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "sys/fs/cgroup" / name).write_text(f"{content}\n")

    return make


def found():
    return limits.cores(), limits.total_memory() / GIB, limits.available_memory() / GIB


def test_without_control_groups_they_are_the_machines(machine):
    assert found() == (64, 256, 200)
    machine({"memory/memory.limit_in_bytes": 9223372036854771712, "memory/memory.usage_in_bytes": 90 * GIB}, "/")
    assert found() == (64, 256, 200)


@pytest.mark.parametrize(
    ("path", "within"),
    [("/docker/4711", "/"), ("/docker/4711", "/docker/4711"), ("/", "/"), ("/docker/4711", "/../..")],
    ids=["seen from the host", "mounted in the container", "a name space of its own", "a mount of elsewhere"],
)
def test_those_of_a_container_of_version_1(machine, path, within):
    place = "docker/4711/" if (path, within) == ("/docker/4711", "/") else ""
    machine(
        {
            f"memory/{place}memory.limit_in_bytes": 8 * GIB,
            f"memory/{place}memory.usage_in_bytes": 5 * GIB,
            f"memory/{place}memory.stat": f"active_file 1\ntotal_active_file {GIB}\ntotal_inactive_file {2 * GIB}",
            f"cpu,cpuacct/{place}cpu.cfs_quota_us": 250_000,
            f"cpu,cpuacct/{place}cpu.cfs_period_us": 100_000,
        },
        path,
        within,
    )
    assert found() == (2, 8, 6)  # a whole core each, and what is cached of files can be taken back


def test_those_of_version_2_and_of_all_groups_above(machine):
    machine(
        {
            "unified/job/memory.max": 16 * GIB,
            "unified/job/memory.current": 12 * GIB,
            "unified/job/memory.stat": f"inactive_file {GIB}\nactive_file 0",
            "unified/job/cpu.max": "50000 100000",
            "unified/job/step/memory.max": "max",
            "unified/job/step/memory.current": GIB,
            "unified/job/step/cpu.max": "max 100000",
        },
        "",
        listed="0::/job/step\n",
    )
    assert found() == (1, 16, 5)  # half a core is one


def test_a_group_that_is_over_its_limit_has_nothing_free(machine):
    machine({"unified/memory.max": GIB, "unified/memory.current": 2 * GIB}, "", listed="0::/\n")
    assert limits.available_memory() == 0


@contextlib.contextmanager
def control_group(controller):
    """A control group of version 1 of its own, below this process's."""
    above = next(iter(limits._groups(controller)), None)
    if above is None or not os.access(above, os.W_OK):
        pytest.skip("needs the right to make a control group")
    group = above / f"test-{os.getpid()}"
    group.mkdir()
    try:
        yield group
    finally:
        group.rmdir()


def test_a_limit_that_the_kernel_sets_is_found():
    with control_group("memory") as group:
        if not (group / "memory.limit_in_bytes").exists():
            pytest.skip("not of version 1")
        (group / "memory.limit_in_bytes").write_text(str(GIB))
        program = f"""
from pathlib import Path
import os
Path({str(group / "cgroup.procs")!r}).write_text(str(os.getpid()))
from scaler.core import limits
print(limits.total_memory(), limits.available_memory())
"""
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    total, available = map(int, done.stdout.split())
    assert total == GIB and GIB // 2 < available <= GIB


IN_A_SMALL_SHELL = """
import resource, sys
soft, hard = map(int, sys.argv[1:3])
resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
from scaler.core.cli import command
from scaler.core.limits import allow_open_files
@command
def main():
    allow_open_files(300, "data/rows-128")
    files = [open("/dev/null") for _ in range(300)]
    print(len(files), resource.getrlimit(resource.RLIMIT_NOFILE)[1])
main()
"""


@pytest.mark.parametrize(("soft", "hard", "status"), [(100, 1000, 0), (1000, 1000, 0), (100, 256, 2)])
def test_the_limit_of_open_files_is_raised_as_far_as_it_may_be(soft, hard, status):
    root = Path(__file__).parent.parent.parent
    command = [sys.executable, "-c", IN_A_SMALL_SHELL, str(soft), str(hard)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=root)
    assert (done.returncode, done.stdout) == (status, f"300 {hard}\n" if status == 0 else "")
    if status:
        assert done.stderr.count("\n") == 1
        assert done.stderr.startswith(
            "error: data/rows-128: 300 files are open at a time, and this process may open 256 in all; raise the limit"
        )


def test_no_limit_of_open_files_is_lowered():
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    limits.allow_open_files(1, "here")
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == before
    if before[1] != resource.RLIM_INFINITY:
        with pytest.raises(ScalerError, match="here: "):
            limits.allow_open_files(before[1], "here")
