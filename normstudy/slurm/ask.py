"""Query Slurm through its own commands, except sacct, which fails on clusters without accounting."""

import contextlib
import functools
import os
import re
import subprocess
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

SECONDS = 30  # longest wait for an answer, because a Slurm command without a configuration gives up only after a minute
OVER = {
    "BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "REVOKED",
    "TIMEOUT",
}  # fmt: skip
WAITING = {"CONFIGURING", "PENDING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "SPECIAL_EXIT"}
HEAD = re.compile(r"(\w+: (error: |fatal: )?|\w+ error: )?(Batch job submission failed: |allocation failure: )?")
MOST_JOBS = 1000  # maximum number of jobs in an array by Slurm's default settings
# If the configuration lacks one of these options, the user may set it by an environment variable, e.g. SBATCH_QOS.
LEFT_TO_USERS = ("account", "constraint", "partition", "qos", "reservation")


class Unavailable(Exception):
    """The error raised if Slurm does not answer or refuses a request; its message is the reason, in one line."""


class Counts(NamedTuple):
    """How many of an array's jobs are in each state."""

    running: int
    pending: int
    reason: str = ""  # the most frequent reason that Slurm gives for pending jobs
    ended: int = 0  # jobs that ended without success, among those that Slurm still remembers

    @property
    def alive(self) -> bool:
        return self.running + self.pending > 0

    def __str__(self) -> str:
        running = f"{self.running:,} running" if self.running else ""
        reason = f" ({self.reason})" if self.reason else ""
        return ", ".join(filter(None, [running, f"{self.pending:,} pending{reason}" if self.pending else ""])) or "over"


def counts(job_id: str, name: str) -> Counts:
    """Count an array's jobs by state. Slurm reuses ids, so jobs with another name are ignored. Raises Unavailable."""
    ids = f"--jobs={job_id}", f"--name={name}"
    # Slurm forgets a job, and calls its id invalid, a few minutes after its end.
    answer = _call("squeue", "--noheader", "--array", "--states=all", *ids, "--format=%T|%r", harmless="Invalid job id")
    jobs = [line.strip().split("|", 1) for line in answer.splitlines() if "|" in line]
    alive = [(state, reason) for state, reason in jobs if state not in OVER]
    reasons = Counter(reason for state, reason in alive if state in WAITING and reason != "None")
    pending = sum(state in WAITING for state, _ in alive)
    ended = sum(state in OVER and state != "COMPLETED" for state, _ in jobs)
    reason = next((reason for reason, _ in reasons.most_common(1)), "")
    return Counts(len(alive) - pending, pending, reason, ended)


def id_of(name: str) -> str | None:
    """Return the id of the array or single job `name`, or None if Slurm does not know the name. Raises Unavailable."""
    ids = _call("squeue", "--noheader", "--states=all", f"--name={name}", "--format=%F").split()
    return ids[0] if ids else None


def cancel(job_id: str, name: str) -> None:
    """Cancel an array. Running jobs get SIGTERM, and SIGKILL half a minute later. Raises Unavailable."""
    _call("scancel", f"--name={name}", job_id, harmless="Invalid job id")  # printed for a job that has ended


def is_preempted() -> bool:
    """Return whether Slurm is preempting this process's job. After a grace time, Slurm requeues the job."""
    try:
        fields = dict(re.findall(r"(\w+)=(\S+)", _call("scontrol", "show", "job", os.environ["SLURM_JOB_ID"])))
    except (KeyError, Unavailable):
        return False
    return fields.get("JobState") == "RUNNING" and fields.get("PreemptTime", "None") not in ("None", "Unknown", "N/A")


@functools.cache
def cluster() -> str:
    """Return the name of the Slurm cluster that this machine belongs to. Raises Unavailable."""
    found = re.search(r"^ClusterName\s*=\s*(\S+)", _call("scontrol", "show", "config"), re.MULTILINE)
    return found[1] if found else ""


def most_jobs() -> int:
    """Return the maximum number of jobs in an array. Raises Unavailable."""
    found = re.search(r"^MaxArraySize\s*=\s*(\d+)", _call("scontrol", "show", "config"), re.MULTILINE)
    return max(1, min(MOST_JOBS, int(found[1]))) if found else MOST_JOBS  # MaxArraySize 0 allows only single jobs


def try_out(options: Mapping[str, str]) -> None:
    """Let sbatch check options, without submitting a job. Raises Unavailable if sbatch would never accept them."""
    words = [f"--{name}" if value == "true" else f"--{name}={value}" for name, value in options.items()]
    with only(options):  # ignore that the requested nodes are not available: they may become free
        _call("sbatch", "--test-only", *words, "--wrap=true", harmless="Requested node")


@contextlib.contextmanager
def only(options: Iterable[str]) -> Iterator[None]:
    """Remove SBATCH_* variables in the `with` block. Those of LEFT_TO_USERS stay unless `options` sets them."""
    kept = {f"SBATCH_{name.upper()}" for name in LEFT_TO_USERS if name not in options}
    taken = {key: os.environ.pop(key) for key in [*os.environ] if key.startswith("SBATCH_") and key not in kept}
    try:
        yield
    finally:
        os.environ.update(taken)


def reason_of(errors: str) -> str:
    """Return why a Slurm command failed: the last line of `errors` that is not a hint, without the command's name."""
    lines = [line for line in map(str.strip, errors.splitlines()) if line and not line.startswith("Try ")]
    last = "".join(filter(str.isprintable, lines[-1])) if lines else ""
    return HEAD.sub("", last, count=1)


def _call(*words: str, harmless: str | None = None) -> str:
    """Run a Slurm command and return its output. Raises Unavailable if the command fails, is missing or hangs.

    harmless: if the error contains this text, return "" instead of raising Unavailable.
    """
    # The user's SQUEUE_* and SCANCEL_* variables would change what squeue prints and what scancel ends.
    env = {k: v for k, v in os.environ.items() if not k.startswith(("SQUEUE_", "SCANCEL_"))}
    try:
        done = subprocess.run(
            words, env=env, capture_output=True, text=True, errors="replace", timeout=SECONDS, check=False,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
    except FileNotFoundError:
        raise Unavailable(f"the command {words[0]} is not found on this machine") from None
    except subprocess.TimeoutExpired:
        raise Unavailable(f"{words[0]} does not answer") from None
    except OSError as error:
        raise Unavailable(f"{words[0]}: {error.strerror}") from None
    if not done.returncode:
        return done.stdout
    why = reason_of(done.stderr) or f"{words[0]} ended with exit code {done.returncode}"
    if harmless is None or harmless not in why:
        raise Unavailable(why)
    return ""
