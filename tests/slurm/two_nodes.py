"""A real Slurm of two nodes on this machine, without systemd and without touching a system's own.

    two_nodes.py FOLDER

starts one below FOLDER and ends it at Ctrl-C. Needs root and Debian's slurmctld, slurmd, slurm-client and munge. The
daemons run in the foreground as children, on free ports, with a key, a socket and logs of their own.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

NODES = ("n1", "n2")
CORES = 2  # of each node, as they say; both are this machine
NEEDED = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "scancel", "scontrol", "sinfo")
END_WITH_US = ("setpriv", "--pdeathsig", "TERM")  # if this process is killed
SECONDS = 30  # until every node is idle

CONF = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket
CredType=cred/munge
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmdSpoolDir={folder}/spool.%n
StateSaveLocation={folder}/state
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
ReturnToService=1
SchedulerParameters=bf_interval=2,sched_interval=5
KillWait=10
JobRequeue=0
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
{nodes}
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
PartitionName=debug Nodes=ALL Default=YES MaxTime=INFINITE State=UP
PartitionName=grace Nodes=ALL MaxTime=INFINITE State=UP GraceTime=120
PartitionName=urgent Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=2
"""


def missing() -> list[str]:
    """The required programs that are not installed."""
    return [name for name in NEEDED if shutil.which(name, path=_path()) is None]


def _path() -> str:
    return f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"


def _free_ports(n: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(n)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


@contextlib.contextmanager
def cluster(folder: Path) -> Iterator[dict[str, str]]:
    """Run a cluster; yields the environment in which Slurm's commands talk to this cluster."""
    env = {**os.environ, "PATH": _path(), "SLURM_CONF": str(folder / "slurm.conf")}
    with contextlib.ExitStack() as stack:
        # The path of a socket has at most 107 bytes. The user munge must be able to enter every folder of the path, so
        # the private folder in memory that the tests use is not possible.
        short = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="slurm-", dir="/tmp")))
        short.chmod(0o755)
        for name in ("munge", "state", *(f"spool.{node}" for node in NODES)):
            (short / name).mkdir(mode=0o755)
        ports = _free_ports(1 + len(NODES))
        host = socket.gethostname().partition(".")[0]
        nodes = "\n".join(
            f"NodeName={node} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs={CORES} RealMemory=1000"
            for node, port in zip(NODES, ports[1:], strict=True)
        )
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "slurm.conf").write_text(CONF.format(host=host, folder=short, ports=ports, nodes=nodes))
        daemons = [
            _munged(short / "munge"),
            ["slurmctld", "-D", "-c"],
            *(["slurmd", "-D", "-N", node] for node in NODES),
        ]
        for number, words in enumerate(daemons):
            log = stack.enter_context(open(folder / f"{number}-{words[0]}.log", "wb"))
            user = _munge_user() if words[0] == "munged" else None
            process = subprocess.Popen(
                [*END_WITH_US, *words], env=env, stdout=log, stderr=log, stdin=subprocess.DEVNULL, user=user,
                start_new_session=True,
            )  # fmt: skip
            stack.callback(_end, process)
            if words[0] == "munged":
                _wait(lambda: (short / "munge" / "socket").exists(), "munged")
        stack.callback(cancel_all, env)
        _wait(lambda: _idle(env) == len(NODES), "all nodes")
        yield env


def _munged(folder: Path) -> Sequence[str]:
    user = _munge_user()
    key = folder / "key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o600)
    if user is not None:
        for path in (folder, key):
            shutil.chown(path, user)
    files = {"key-file": "key", "socket": "socket", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
    return ["munged", "--foreground", "--force", *(f"--{option}={folder / name}" for option, name in files.items())]


def _munge_user() -> str | None:
    """The user munge where it exists: there munged refuses to run as root."""
    with contextlib.suppress(KeyError):
        return pwd.getpwnam("munge").pw_name
    return None


def _idle(env: dict[str, str]) -> int:
    told = subprocess.run(["sinfo", "-h", "-N", "-t", "idle", "-o", "%N"], env=env, capture_output=True, text=True)
    return len(set(told.stdout.split()))  # one line a partition


def _wait(condition: object, what: str) -> None:
    end = time.monotonic() + SECONDS
    while not condition():  # type: ignore[operator]
        if time.monotonic() > end:
            raise RuntimeError(f"Slurm does not start: waited {SECONDS} s for {what}")
        time.sleep(0.1)


def cancel_all(env: dict[str, str]) -> None:
    """End every job."""
    subprocess.run(["scancel", "--full", "--signal=KILL", "--user=root"], env=env, check=False)
    subprocess.run(["scancel", "--user=root"], env=env, check=False)
    end = time.monotonic() + SECONDS
    while time.monotonic() < end and subprocess.run(["squeue", "-h"], env=env, capture_output=True).stdout.strip():
        time.sleep(0.2)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(timeout=20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


if __name__ == "__main__":
    with cluster(Path(sys.argv[1]).resolve()) as environment, contextlib.suppress(KeyboardInterrupt):
        print(f"export SLURM_CONF={environment['SLURM_CONF']}", flush=True)
        while True:
            time.sleep(3600)
