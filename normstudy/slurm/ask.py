"""Asking Slurm by its own commands. sacct is not among them: where there is no accounting it knows nothing."""

from __future__ import annotations

import contextlib
import functools
import os
import re
import subprocess
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

SECONDS = 30  # for an answer: without a configuration they look for one for a minute
OVER = {
    "BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "REVOKED",
    "TIMEOUT",
}  # fmt: skip
WAITING = {"CONFIGURING", "PENDING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "SPECIAL_EXIT"}
HEAD = re.compile(r"(\w+: (error: |fatal: )?|\w+ error: )?(Batch job submission failed: |allocation failure: )?")
MOST_JOBS = 1000  # of an array, as Slurm ships it


# Options of which a user's own variable for sbatch counts where the configuration is silent.
LEFT_TO_USERS = ("account", "constraint", "partition", "qos", "reservation")


class Unavailable(Exception):
    """Slurm cannot be asked, or refuses; its text says why, in a line."""


class Counts(NamedTuple):
    """The jobs of an array that are not over. reason: why most of the pending ones wait, as Slurm puts it.

    ended: how many ended otherwise than by themselves, with success; of those that Slurm has not forgotten.
    """

    running: int
    pending: int
    reason: str = ""
    ended: int = 0

    @property
    def alive(self) -> bool:
        return self.running + self.pending > 0

    def __str__(self) -> str:
        if not self.alive:
            return "over"
        told = [f"{self.running:,} running"] if self.running else []
        if self.pending:
            told.append(f"{self.pending:,} pending" + (f" ({self.reason})" if self.reason else ""))
        return ", ".join(told)


def counts(job_id: str, name: str) -> Counts:
    """How far an array, or a single job, is. name: of it, as numbers are given anew. Raises Unavailable."""
    try:
        told = _call(
            "squeue", "--noheader", "--array", "--states=all", f"--jobs={job_id}", f"--name={name}", "--format=%T|%r"
        )
    except Unavailable as why:
        if "Invalid job id" not in str(why):
            raise
        return Counts(0, 0)  # Slurm forgets a job some minutes after its end
    jobs = [line.strip().split("|", 1) for line in told.splitlines() if "|" in line]
    alive = [(state, reason) for state, reason in jobs if state not in OVER]
    reasons = Counter(reason for state, reason in alive if state in WAITING and reason != "None")
    pending = sum(state in WAITING for state, _ in alive)
    ended = sum(state in OVER and state != "COMPLETED" for state, _ in jobs)
    reason = next((reason for reason, _ in reasons.most_common(1)), "")
    return Counts(len(alive) - pending, pending, reason, ended)


def id_of(name: str) -> str | None:
    """The id of the array, or job, that has this name and is not forgotten yet; None where there is none.

    Raises Unavailable.
    """
    told = _call("squeue", "--noheader", "--states=all", f"--name={name}", "--format=%F").split()
    return told[0] if told else None


def cancel(job_id: str, name: str) -> None:
    """Cancel what is pending of an array and have what runs of it end: SIGTERM, and SIGKILL half a minute later.

    Raises Unavailable.
    """
    try:
        _call("scancel", f"--name={name}", job_id)
    except Unavailable as why:
        if "Invalid job id" not in str(why):  # with a name it says so of a job that is over
            raise


def is_preempted() -> bool:
    """Whether the job that this process is of still runs, but only within a time of grace, to make room for another.

    Slurm puts it back into the queue when that time is over, and not where it has ended before. False where Slurm
    cannot be asked.
    """
    try:
        told = dict(re.findall(r"(\w+)=(\S+)", _call("scontrol", "show", "job", os.environ["SLURM_JOB_ID"])))
    except (KeyError, Unavailable):
        return False
    return told.get("JobState") == "RUNNING" and told.get("PreemptTime", "None") not in ("None", "Unknown", "N/A")


@functools.cache
def cluster() -> str:
    """The name of the cluster whose Slurm is asked here. Raises Unavailable."""
    found = re.search(r"^ClusterName\s*=\s*(\S+)", _call("scontrol", "show", "config"), re.MULTILINE)
    return found[1] if found else ""


def most_jobs() -> int:
    """Of an array. Raises Unavailable."""
    found = re.search(r"^MaxArraySize\s*=\s*(\d+)", _call("scontrol", "show", "config"), re.MULTILINE)
    return max(1, min(MOST_JOBS, int(found[1]))) if found else MOST_JOBS  # 0: no arrays


def try_out(options: Mapping[str, str]) -> None:
    """Have sbatch look at options without submitting anything. Raises Unavailable with what it says against them.

    Where it only finds no free node it says nothing here: nodes come back.
    """
    try:
        words = [f"--{name}" if value == "true" else f"--{name}={value}" for name, value in options.items()]
        with only(options):
            _call("sbatch", "--test-only", *words, "--wrap=true")
    except Unavailable as why:
        if "Requested node" not in str(why):
            raise


@contextlib.contextmanager
def only(options: Iterable[str]) -> Iterator[None]:
    """Take a user's variables for sbatch away: they outdo what its script says. options: that are given here."""
    kept = {f"SBATCH_{name.upper()}" for name in LEFT_TO_USERS if name not in options}
    taken = {key: os.environ.pop(key) for key in [*os.environ] if key.startswith("SBATCH_") and key not in kept}
    try:
        yield
    finally:
        os.environ.update(taken)


def words_of(told: str) -> str:
    """What a command of Slurm says in its last line that is no hint: `Invalid partition name specified`."""
    lines = [line for line in map(str.strip, told.splitlines()) if line and not line.startswith("Try ")]
    last = "".join(filter(str.isprintable, lines[-1])) if lines else ""
    return HEAD.sub("", last, count=1)


def _call(*words: str) -> str:
    """What a command prints. Raises Unavailable where it fails, is not there or does not answer."""
    # A user's own wishes for what squeue shows, and what scancel spares, are not ours.
    env = {k: v for k, v in os.environ.items() if not k.startswith(("SQUEUE_", "SCANCEL_"))}
    try:
        done = subprocess.run(
            words, env=env, capture_output=True, text=True, errors="replace", timeout=SECONDS, check=False,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
    except FileNotFoundError:
        raise Unavailable(f"there is no {words[0]} here") from None
    except subprocess.TimeoutExpired:
        raise Unavailable(f"{words[0]} does not answer") from None
    except OSError as error:
        raise Unavailable(f"{words[0]}: {error.strerror}") from None
    if done.returncode:
        raise Unavailable(words_of(done.stderr) or f"{words[0]} ended with exit code {done.returncode}")
    return done.stdout
