"""A real SLURM of several nodes on this machine, for tests: controller, munge and a slurmd in namespaces for each node.

Every node has its own network, hostname, processes, mounts, /dev/shm and boot id, so that it is as far from the others
as one machine allows; killing its first process is a power cut. It needs root, and of Debian slurmctld, slurmd,
slurm-client, munge and iproute2. All of it ends with the process that started it.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

from limits import limit

NEEDED = ("slurmctld", "slurmd", "sbatch", "munged", "ip", "unshare", "nsenter", "setpriv")
SEARCH = f"{os.environ['PATH']}{os.pathsep}/usr/sbin{os.pathsep}/sbin"
NUMBER = os.getpid() % 200  # so that two suites on a machine do not meet
NETWORK, PORT, BRIDGE = f"10.91.{NUMBER}", 16000 + NUMBER, f"scalerbr{NUMBER}"
NODE = """
set -e
hostname {name}
mount --bind {root}/etc/hosts /etc/hosts
mount -t tmpfs -o mode=1777 shm /dev/shm
# or MPI takes two nodes for one, and tries shared memory
cat /proc/sys/kernel/random/uuid > {root}/run/{name}.boot_id
mount --bind {root}/run/{name}.boot_id /proc/sys/kernel/random/boot_id
mount -t tmpfs -o mode=755 run /run
mkdir -p /run/sshd
if [ -d {root}/ssh ]; then
    mkdir -p /root/.ssh
    mount --bind {root}/ssh /root/.ssh
    /usr/sbin/sshd -f /root/.ssh/sshd_config
fi
touch {root}/run/{name}.up
while :; do sleep 3600 & wait $!; done  # a shell that waits also takes in orphans
"""
CONFIGURATION = """
ClusterName=scaler
SlurmctldHost={host}({network}.254)
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={root}/run/munge.sock,cred_expire=5
StateSaveLocation={root}/state
SlurmdSpoolDir={root}/spool/%n
SlurmctldPidFile={root}/run/slurmctld.pid
SlurmdPidFile={root}/run/slurmd-%n.pid
SlurmctldLogFile={root}/log/slurmctld.log
SlurmdLogFile={root}/log/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SlurmdParameters=config_overrides
GresTypes=gpu
MailProg=/bin/true
ReturnToService=2
SlurmdTimeout=10
KillWait=20
MinJobAge=3600
EnforcePartLimits=ALL
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SchedulerParameters=batch_sched_delay=1,sched_interval=2,bf_interval=2
JobCompType=jobcomp/none
"""

MUNGE_FILES = {"socket": "munge.sock", "pid-file": "munged.pid", "log-file": "munged.log", "seed-file": "munged.seed"}
PARTITIONS = {
    "main": "Default=YES PriorityTier=1",
    "three": "PriorityTier=1 GraceTime=15",  # the first three nodes
    "urgent": "PriorityTier=10 PreemptMode=OFF",
    "closed": "AllowAccounts=nobody",
}


PACKAGES = "slurmctld slurmd slurm-client munge iproute2 openssh-server pdsh openmpi-bin"  # of Debian


def missing() -> str | None:
    """Why no cluster can be started here, or None."""
    if os.geteuid():
        return "a SLURM of several nodes needs root, for their namespaces: sudo make test-slurm"
    lacking = [name for name in NEEDED if not shutil.which(name, path=SEARCH)]
    return f"not installed: {', '.join(lacking)}; apt-get install {PACKAGES}" if lacking else None


class Cluster:
    """Four nodes and more, `node1` ..., each declared with 8 cores and 8 GPUs; partitions as in PARTITIONS.

    512 nodes more are declared in the partition `declared`, which no job can start on.
    """

    def __init__(self, root: Path, nodes: int = 4, with_ssh: bool = False) -> None:
        self.root, self.with_ssh = root, with_ssh
        self.nodes = [f"node{number + 1}" for number in range(nodes)]
        self.environ = {**os.environ, "PATH": SEARCH, "SLURM_CONF": str(root / "etc" / "slurm.conf")}
        self._running: dict[str, subprocess.Popen] = {}

    def __enter__(self) -> Cluster:
        try:
            self._begin()
        except BaseException:
            self.__exit__()
            raise
        return self

    def _begin(self) -> None:
        shutil.rmtree(self.root, ignore_errors=True)
        for name in ("etc", "run", "log", "state", "spool", "dev"):
            (self.root / name).mkdir(parents=True, mode=0o755)
        self._configure()
        if self.with_ssh:
            self._make_keys()
        self.run("ip", "link", "del", BRIDGE)
        self.control("ip", "link", "add", BRIDGE, "type", "bridge")
        self.control("ip", "addr", "add", f"{NETWORK}.254/24", "dev", BRIDGE)
        self.control("ip", "link", "set", BRIDGE, "up")
        key = self.root / "etc" / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o600)
        run = self.root / "run"
        options = [f"--{name}={run / file}" for name, file in MUNGE_FILES.items()]
        self._start("munged", "munged", "-F", "--force", f"--key-file={key}", *options)
        self._until((run / "munge.sock").exists, "munged")
        self._start("slurmctld", "slurmctld", "-D", "-c")
        for name in self.nodes:
            self.start_node(name)
        self._until(lambda: all(self.node_state(name) == "idle" for name in self.nodes), "the nodes")

    def __exit__(self, *_: object) -> None:
        for process in reversed(self._running.values()):
            process.kill()
            process.wait()
        self.run("ip", "link", "del", BRIDGE)
        shutil.rmtree(self.root, ignore_errors=True)

    def _configure(self) -> None:
        etc, names = self.root / "etc", self.nodes
        addresses = {name: f"{NETWORK}.{number + 1}" for number, name in enumerate(names)}
        hosts = {"127.0.0.1": "localhost", f"{NETWORK}.254": socket.gethostname()}
        lines = [f"{address} {name}" for address, name in hosts.items()]
        (etc / "hosts").write_text("\n".join([*lines, *(f"{a} {n}" for n, a in addresses.items())]) + "\n")
        facts = "CPUs=8 Sockets=2 CoresPerSocket=4 ThreadsPerCore=1 RealMemory=64000 Gres=gpu:8"
        text = CONFIGURATION.format(host=socket.gethostname(), network=NETWORK, port=PORT, root=self.root)
        text += "".join(f"NodeName={n} NodeAddr={a} {facts} State=UNKNOWN\n" for n, a in addresses.items())
        text += f"NodeName=big[1-512] {facts} State=CLOUD\n"
        for partition, what in PARTITIONS.items():
            members = ",".join(names[:3] if partition == "three" else names)
            text += f"PartitionName={partition} Nodes={members} MaxTime=7-0 {what}\n"
        text += "PartitionName=declared Nodes=big[1-512] MaxTime=7-0\n"
        (etc / "slurm.conf").write_text(text)
        for number in range(8):  # slurmd drops GPUs without a device file
            os.mknod(self.root / "dev" / f"nvidia{number}", 0o666 | 0o020000, os.makedev(1, 3))
        (etc / "gres.conf").write_text(f"Name=gpu File={self.root}/dev/nvidia[0-7]\n")

    def _make_keys(self) -> None:
        folder = self.root / "ssh"
        folder.mkdir(mode=0o700)
        for name in ("id_ed25519", "hostkey"):
            self.control("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name))
        shutil.copy(folder / "id_ed25519.pub", folder / "authorized_keys")
        trusting = ("StrictHostKeyChecking no", "UserKnownHostsFile /dev/null", "LogLevel ERROR")
        (folder / "config").write_text("Host *\n" + "".join(f" {line}\n" for line in trusting))
        of_server = ("HostKey /root/.ssh/hostkey", "PermitRootLogin prohibit-password", "StrictModes no")
        (folder / "sshd_config").write_text("".join(f"{line}\n" for line in of_server))

    def _start(self, name: str, *command: str) -> None:
        log = (self.root / "log" / f"{name}.out").open("ab")
        words, silent = ["setpriv", "--pdeathsig", "KILL", *command], subprocess.DEVNULL
        self._running[name] = subprocess.Popen(words, stdin=silent, stdout=log, stderr=log, env=self.environ)

    def _until(self, holds: Any, what: str, seconds: float = 120) -> None:
        end = time.monotonic() + limit(seconds)
        while not holds():
            if time.monotonic() > end:
                logs = {path.name: path.read_text(errors="replace")[-800:] for path in (self.root / "log").iterdir()}
                raise RuntimeError(f"{what}: not within {seconds:g} s; {logs}")
            time.sleep(0.1)

    # ---- nodes

    def start_node(self, name: str) -> None:
        """Switch a node on."""
        (self.root / "spool" / name).mkdir(exist_ok=True)
        up = self.root / "run" / f"{name}.up"
        up.unlink(missing_ok=True)
        separate = ("--net", "--uts", "--ipc", "--mount", "--pid", "--fork", "--kill-child=SIGKILL", "--mount-proc")
        self._start(name, "unshare", *separate, "bash", "-c", NODE.format(name=name, root=self.root))
        self._until(up.exists, name)
        number, first = self.nodes.index(name) + 1, str(self._first_process(name))
        link = f"scaler{NUMBER}-{number}"
        self.control("ip", "link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", first)
        self.control("ip", "link", "set", link, "master", BRIDGE, "up")
        self.change(name, "ip", "link", "set", "lo", "up")
        self.change(name, "ip", "addr", "add", f"{NETWORK}.{number}/24", "dev", "eth0")
        self.change(name, "ip", "link", "set", "eth0", "up")
        self.change(name, "slurmd")

    def _first_process(self, name: str) -> int:
        parent = self._running[name].pid
        return int(Path(f"/proc/{parent}/task/{parent}/children").read_text().split()[0])

    def entered(self, name: str) -> tuple[str, ...]:
        """The words before a command that let it run on a node."""
        return ("nsenter", "-t", str(self._first_process(name)), "-n", "-u", "-i", "-m", "-p", "--")

    def inside(
        self, name: str, *command: str, cwd: Path = Path("/"), **environ: str
    ) -> subprocess.CompletedProcess[str]:
        """Run a command on a node."""
        return self.run(*self.entered(name), "env", f"--chdir={cwd}", *command, **environ)

    def change(self, name: str, *command: str) -> None:
        """Run a command on a node that must succeed."""
        self.control(*self.entered(name), *command)

    def cut_power(self, name: str) -> None:
        """End all of a node at once."""
        os.kill(self._first_process(name), signal.SIGKILL)
        self._running.pop(name).wait()

    def node_state(self, name: str) -> str:
        """What SLURM takes a node for."""
        return self.run("sinfo", "-h", "-p", "main", "-n", name, "-o", "%T").stdout.strip()

    # ---- jobs

    def submit(self, *arguments: object, cwd: Path, **environ: str) -> subprocess.CompletedProcess[str]:
        """Run sbatch."""
        return self.run("sbatch", *arguments, cwd=cwd, **environ)

    def run(self, *command: object, cwd: Path = Path("/"), **environ: str) -> subprocess.CompletedProcess[str]:
        """Run srun and the like."""
        return subprocess.run(
            [str(word) for word in command],
            env={**self.environ, **environ},
            cwd=cwd,
            capture_output=True,
            text=True,
            timeout=limit(400),
            check=False,
        )

    def control(self, *command: str, **where: Any) -> str:
        """Run a command that must succeed, as scontrol and scancel; what it says."""
        done = self.run(*command, **where)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")
        return done.stdout

    def job(self, number: str) -> dict[str, str]:
        """What SLURM says of a job."""
        return dict(re.findall(r"(\w+)=(\S*)", self.control("scontrol", "-o", "show", "job", number)))

    def wait(self, number: str, *states: str, seconds: float = 600, restarts: int = 0) -> dict[str, str]:
        """Wait until a job is in one of these states, and has been requeued so often."""
        found: dict[str, str] = {}

        def reached() -> bool:
            nonlocal found
            found = self.job(number)
            return found["JobState"] in states and int(found["Restarts"]) >= restarts

        self._until(reached, f"job {number} ({', '.join(states)})", seconds)
        return found
