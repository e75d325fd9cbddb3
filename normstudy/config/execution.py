"""What a user may ask of Slurm for the jobs of a sweep, and the options of sbatch that it comes to."""

from __future__ import annotations

import dataclasses
import math
import re
from dataclasses import dataclass, field

from normstudy.config.checks import at_least, finite, one_of
from normstudy.errors import ConfigError

KEYS = (
    "partition", "account", "gpus", "memory_gb", "minutes", "signal_seconds", "requeues", "jobs", "sbatch",
)  # fmt: skip
SIGNAL_MOST = 65_535  # seconds, of sbatch --signal

# Options of sbatch that have a key of their own, and those that would break what this relies on.
HAVE_KEYS = {
    "account": "account", "array": "jobs", "cpus-per-task": "workers", "gpus": "gpus", "gpus-per-node": "gpus",
    "gpus-per-task": "gpus", "mem": "memory_gb", "partition": "partition", "signal": "signal_seconds",
    "time": "minutes",
}  # fmt: skip
FIXED = (
    "chdir", "clusters", "error", "get-user-env", "gid", "help", "input", "job-name", "no-requeue", "nodes", "ntasks",
    "ntasks-per-node", "open-mode", "output", "parsable", "quiet", "requeue", "test-only", "uid", "usage", "version",
    "wait", "wrap",
)  # fmt: skip
NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
VALUE = re.compile(r"""[^'"\\-][^'"\\]*""")


def check_execution(execution: ExecutionConfig) -> None:
    """Raise a ConfigError for what no job can be, and for a key of jobs where nothing is submitted."""
    if execution.cluster == "local":
        defaults = type(execution).__dataclass_fields__
        for key in KEYS:
            value, default = getattr(execution, key), defaults[key].default
            if value != ({} if default is dataclasses.MISSING else default):
                raise ConfigError(f"execution.{key} {value} is of jobs, and none are submitted: add execution=slurm")
        return
    for key in ("partition", "account"):
        if (value := getattr(execution, key)) is not None:
            _check_value(f"execution.{key}", value)
    for name, value in execution.sbatch.items():
        _check_option(name, value)
    if execution.gpus not in (0, 1):
        raise ConfigError(
            f"execution.gpus {execution.gpus} is out of range: a job trains on one GPU, more jobs use more; give 0 or 1"
        )
    if execution.device == "cuda" and not execution.gpus:
        raise ConfigError("execution.device cuda: the jobs have execution.gpus 0: add execution.gpus=1")
    if execution.device == "cpu" and execution.gpus:
        raise ConfigError("execution.device cpu: the GPU of execution.gpus 1 would idle: leave one of the two")
    if execution.signal_seconds > min(SIGNAL_MOST, 60 * execution.minutes - 1):
        raise ConfigError(
            f"execution.signal_seconds {execution.signal_seconds} leaves nothing of execution.minutes "
            f"{execution.minutes} ({60 * execution.minutes} s), or exceeds {SIGNAL_MOST}: give fewer"
        )


def _check_option(name: str, value: object) -> None:
    key = f"execution.sbatch {name}"
    if not NAME.fullmatch(name):
        raise ConfigError(f"execution.sbatch {name!r} is not an option: write its long name, as in {{qos: low}}")
    if name in HAVE_KEYS:
        raise ConfigError(f"{key} has a key of its own: give execution.{HAVE_KEYS[name]}")
    if name in FIXED:
        raise ConfigError(f"{key} is set by normstudy: leave it out")
    _check_value(key, value)


def _check_value(key: str, value: object) -> None:
    if not (isinstance(value, str) and value.isprintable() and VALUE.fullmatch(value)):
        raise ConfigError(
            f"{key} {value!r} is not a value: give a word without quotes, backslashes and line breaks that does not "
            "begin with -"
        )


def workers_of(execution: ExecutionConfig) -> int:
    """Worker processes of a job."""
    return execution.workers or 1


def device_of(execution: ExecutionConfig) -> str:
    """cpu or cuda: the machine that submits tells nothing."""
    return "cuda" if execution.gpus else "cpu"


def of_sbatch(execution: ExecutionConfig) -> dict[str, str]:
    """Long name -> value of every option that follows from the configuration; the value true: it has none."""
    asked = {
        "partition": execution.partition,
        "account": execution.account,
        "time": execution.minutes,
        "nodes": 1,
        "cpus-per-task": workers_of(execution),
        "mem": None if execution.memory_gb is None else f"{max(1, round(1024 * execution.memory_gb))}M",
        "gpus-per-node": execution.gpus or None,
        "signal": f"USR2@{execution.signal_seconds}",
    }
    flags = {name: "true" if value.lower() == "true" else value for name, value in execution.sbatch.items()}
    return {name: str(value) for name, value in asked.items() if value is not None} | {"requeue": "true"} | flags


DEVICE_NAMES = ("auto", "cpu", "cuda")


CLUSTER_NAMES = ("local", "slurm")


@dataclass
class ExecutionConfig:
    """How runs are executed. Never part of a run's identity: on one kind of CPU no value here changes a result.

    A GPU rounds otherwise, as another kind of CPU does; the column `device` records it. From partition on the keys
    are those of cluster=slurm.
    """

    cluster: str = "local"  # local: processes on this machine | slurm: jobs
    device: str = "auto"  # auto | cpu | cuda; in jobs auto is cuda where they have a GPU
    workers: int | None = None  # processes, one thread each; null: one per core (one per GPU), and in a job 1
    runs_per_batch: int | None = None  # runs trained as one program; null: chosen by batching.py
    checkpoint_seconds: float = 60.0  # between two checkpoints of a batch
    retry_failed: bool = True  # whether runs that crashed in an earlier call are tried again
    max_tries: int = 3  # after so many crashes a run is left failed
    partition: str | None = None  # or several, as a,b; null: Slurm's default
    account: str | None = None  # null: Slurm's default
    gpus: int = 0  # of a job: 0 or 1
    memory_gb: float | None = None  # of a job; null: Slurm's default
    minutes: int = 60  # limit of a job's time: at it, runs are saved and the job waits in the queue again
    signal_seconds: int = 120  # before that limit, when the job is told
    requeues: int = 100  # so often a job may reach its limit
    jobs: int = 8  # at most at the same time
    sbatch: dict[str, str] = field(default_factory=dict)  # further options: {qos: low, constraint: zen4}

    def __post_init__(self) -> None:
        one_of("execution.cluster", self.cluster, CLUSTER_NAMES)
        one_of("execution.device", self.device, DEVICE_NAMES)
        for key in ("workers", "runs_per_batch", "max_tries", "minutes", "signal_seconds", "jobs"):
            if getattr(self, key) is not None:
                at_least(f"execution.{key}", getattr(self, key), 1)
        at_least("execution.requeues", self.requeues, 0)
        if not 0 <= self.checkpoint_seconds < math.inf:
            raise ConfigError(
                f"execution.checkpoint_seconds {self.checkpoint_seconds:g} is out of range: give seconds, 0 or more"
            )
        if self.memory_gb is not None:
            finite("execution.memory_gb", self.memory_gb, 0, strict=True)
        check_execution(self)
