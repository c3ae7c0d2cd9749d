"""A cluster with two nodes on this machine: munge, Slurm's controller and two of its daemons."""

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "scontrol", "scancel")
SYSTEM = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])

CONFIGURATION = """
ClusterName=box
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort={ports[0]}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.sock,cred_expire=15
SlurmUser=root
SlurmdUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=1
KillWait=15
MinJobAge=3600
ReturnToService=2
MpiDefault=none
NodeName=n1 NodeHostname=localhost NodeAddr=127.0.0.1 Port={ports[1]} CPUs=1 RealMemory=8000
NodeName=n2 NodeHostname=localhost NodeAddr=127.0.0.1 Port={ports[2]} CPUs=1 RealMemory=8000
PartitionName=all Nodes=n1,n2 Default=YES MaxTime=INFINITE State=UP
"""

# What submitit asks of Slurm's accounting, which a cluster of one machine does not have.
SACCT = """#!/bin/sh
echo "JobID|State|NodeList"
for word; do
  case $word in [0-9]*) scontrol --oneliner show job "$word" 2>/dev/null ;; esac
done | awk '{
  delete v
  for (i = 1; i <= NF; i++) { n = index($i, "="); v[substr($i, 1, n - 1)] = substr($i, n + 1) }
  id = v["JobId"]
  if ("ArrayJobId" in v) {
    task = v["ArrayTaskId"]
    id = v["ArrayJobId"] "_" (task ~ /^[0-9]+$/ ? task : "[" task "]")
  }
  print id "|" v["JobState"] "|" v["NodeList"]
}'
"""


class Cluster:
    """What tests need of the running cluster.

    Attributes:
        environment: variables with which Slurm's commands find it.
    """

    def __init__(self, environment: dict[str, str]) -> None:
        self.environment = environment

    def run(
        self, words: Sequence[object], *, cwd: Path = ROOT, timeout: float = 1800
    ) -> subprocess.CompletedProcess[str]:
        """Run a command to its end, and return what it wrote."""
        return subprocess.run(
            [str(word) for word in words],
            cwd=cwd,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    def submit(self, words: Sequence[object], folder: Path, *options: str) -> str:
        """Submit a job that runs a command; returns the job's id."""
        script = folder / "job.sh"
        script.write_text("#!/bin/sh\nexec " + " ".join(f"'{word}'" for word in words) + "\n")
        output = f"--output={folder}/job-%j.log"
        done = self.run(["sbatch", "--parsable", "--open-mode=append", output, *options, script])
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def state(self, job: str) -> str:
        """The state of a job, such as RUNNING."""
        shown = self.run(["scontrol", "--oneliner", "show", "job", job]).stdout.split()
        return dict(word.partition("=")[::2] for word in shown).get("JobState", "")

    def queued(self) -> list[str]:
        """The names of the jobs that have not ended, and their states."""
        return self.run(["squeue", "--noheader", "--format=%j %T"]).stdout.split("\n")[:-1]


def until(done: Callable[[], object], seconds: float = 900) -> None:
    """Wait until ``done`` returns something true."""
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.3)


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


@contextmanager
def running(folder: Path, commands: Sequence[Sequence[object]]) -> Iterator[None]:
    """Run daemons, each after the one before answers, and end them by their ids."""
    environment = {**os.environ, "PATH": SYSTEM, "SLURM_CONF": str(folder / "slurm.conf")}
    started: list[subprocess.Popen[bytes]] = []
    try:
        for words in commands:
            log = (folder / f"{words[0]}.out").open("ab")
            command = [str(word) for word in words]
            started.append(subprocess.Popen(command, env=environment, stdout=log, stderr=log))
            log.close()
        yield
    finally:
        for each in reversed(started):
            each.terminate()
        for each in reversed(started):
            try:
                each.wait(30)
            except subprocess.TimeoutExpired:
                each.kill()
                each.wait()


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """Two nodes with one core each; skipped where Slurm is not installed or cannot be started."""
    missing = [name for name in COMMANDS if shutil.which(name, path=SYSTEM) is None]
    if missing:
        pytest.skip(f"Slurm is not installed ({', '.join(missing)}): apt-get install slurm-wlm")
    if os.geteuid() != 0:
        pytest.skip("Slurm's daemons are started as root")
    with tempfile.TemporaryDirectory(prefix="slurm-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        environment = _prepared(folder)
        socket_, key = folder / "munge.sock", folder / "munge.key"
        munged = ["munged", "--foreground", "--force", f"--socket={socket_}", f"--key-file={key}"]
        files = {"pid": "munged.pid", "log": "munged.log", "seed": "munge.seed"}
        munged += [f"--{option}-file={folder / file}" for option, file in files.items()]
        daemons = [["slurmctld", "-D"], *(["slurmd", "-D", "-N", node] for node in ("n1", "n2"))]
        with running(folder, [munged]):
            until(socket_.exists, 30)
            with running(folder, daemons):
                made = Cluster(environment)
                until(lambda: made.run(["sinfo", "-h", "-o", "%T %D"]).stdout == "idle 2\n", 60)
                yield made
                made.run(["scancel", "--user=root"])
                until(lambda: not made.queued(), 60)


def _prepared(folder: Path) -> dict[str, str]:
    """Write the cluster's files; returns the variables for its users."""
    ports = free_ports(3)
    for part in ("state", "spool-n1", "spool-n2", "bin"):
        (folder / part).mkdir()
    (folder / "slurm.conf").write_text(CONFIGURATION.format(folder=folder, ports=ports))
    (folder / "munge.key").write_bytes(os.urandom(1024))
    (folder / "munge.key").chmod(0o600)
    (folder / "bin" / "sacct").write_text(SACCT)
    (folder / "bin" / "sacct").chmod(0o755)
    path = os.pathsep.join([str(folder / "bin"), str(Path(sys.executable).parent), SYSTEM])
    own = {
        "PATH": path,
        "SLURM_CONF": str(folder / "slurm.conf"),
        "MASTER_ADDR": "127.0.0.1",  # the nodes' names are no addresses
        "OMP_NUM_THREADS": "1",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "DVC_NO_ANALYTICS": "1",
    }
    outside = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "PYTEST_"))}
    return {**outside, **own}
