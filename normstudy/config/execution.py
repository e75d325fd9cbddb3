"""Define and check the config sections that do not change a run: how runs are executed, and what a search tries."""

import re
from dataclasses import dataclass, field

from normstudy.config.checks import at_least, finite, one_of
from normstudy.errors import ConfigError

CLUSTER_NAMES = ("local", "slurm")
DEVICE_NAMES = ("auto", "cpu", "cuda")

SLURM_KEYS = ("partition", "account", "gpus", "memory_gb", "minutes", "signal_seconds", "requeues", "jobs", "sbatch")
MAX_SIGNAL_SECONDS = 65_535  # the maximum that sbatch --signal accepts
# Options of sbatch that execution.sbatch may not set. HAVE_KEYS: option -> the key of `execution` that sets the option.
# FIXED: options that only normstudy sets.
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
OPTION = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
VALUE = re.compile(r"""[^'"\\-][^'"\\]*""")

MOST_RUNS = 1000  # limit of search.max_runs; seeds from this one on are reserved for sentinels (search/rounds.py)


@dataclass
class ExecutionConfig:
    """Define how runs are executed. Run ids ignore these settings: on one kind of CPU, none of them changes a result.

    A GPU or another kind of CPU rounds differently; the columns device, cpu_capability and blas record the hardware.
    """

    cluster: str = "local"  # local: processes on this machine | slurm: Slurm jobs
    device: str = "auto"  # auto | cpu | cuda; auto in a Slurm job: cuda if gpus is 1, else cpu
    workers: int | None = None  # processes, one thread each; null: 1 on a GPU or in a Slurm job, else 1 per core
    runs_per_batch: int | None = None  # runs trained together as one program; null: chosen from model shape and memory
    checkpoint_seconds: float = 60.0  # time between two checkpoints of a batch
    retry_failed: bool = True  # whether to retry runs that crashed during an earlier command
    max_tries: int = 3  # number of crashes after which a run is no longer retried
    # The following keys have an effect only with cluster=slurm.
    partition: str | None = None  # one partition, or several as a,b; null: Slurm's default
    account: str | None = None  # null: Slurm's default
    gpus: int = 0  # GPUs per job: 0 or 1
    memory_gb: float | None = None  # memory per job; null: Slurm's default
    minutes: int = 60  # time limit per job; shortly before the limit, a job saves its unfinished runs and is requeued
    signal_seconds: int = 120  # a job saves its runs this many seconds before its time limit
    requeues: int = 100  # maximum number of requeues per job
    jobs: int = 8  # maximum number of jobs running at once
    sbatch: dict[str, str] = field(default_factory=dict)  # further options: {qos: low, constraint: zen4}

    def __post_init__(self) -> None:
        one_of("execution.cluster", self.cluster, CLUSTER_NAMES)
        one_of("execution.device", self.device, DEVICE_NAMES)
        for key in ("workers", "runs_per_batch", "max_tries", "minutes", "signal_seconds", "jobs"):
            at_least(f"execution.{key}", getattr(self, key), 1)
        at_least("execution.requeues", self.requeues, 0)
        finite("execution.checkpoint_seconds", self.checkpoint_seconds, 0, strict=False)
        finite("execution.memory_gb", self.memory_gb, 0, strict=True, below=1e9)
        if self.cluster == "slurm":
            _check_slurm(self)
            return
        for key in SLURM_KEYS:
            if (value := getattr(self, key)) != getattr(ExecutionConfig, key, {}):  # sbatch: {} by default
                raise ConfigError(f"execution.{key} {value} applies only to Slurm jobs: add execution=slurm")


def _check_slurm(execution: ExecutionConfig) -> None:
    """Refuse settings with which no Slurm job can train."""
    for key in ("partition", "account"):
        if (value := getattr(execution, key)) is not None:
            _check_value(f"execution.{key}", value)
    for option, value in execution.sbatch.items():
        _check_option(option, value)
    if execution.gpus not in (0, 1):
        raise ConfigError(
            f"execution.gpus {execution.gpus} is out of range, because a job trains on at most one GPU: set it to 0 "
            "or 1 (to use more GPUs, raise execution.jobs)"
        )
    if execution.device == "cuda" and not execution.gpus:
        raise ConfigError("execution.device=cuda needs a GPU, but execution.gpus is 0: add execution.gpus=1")
    if execution.device == "cpu" and execution.gpus:
        raise ConfigError("execution.device=cpu leaves the GPU of execution.gpus=1 idle: remove one of the two keys")
    signal = f"execution.signal_seconds {execution.signal_seconds}"
    if execution.signal_seconds > MAX_SIGNAL_SECONDS:
        raise ConfigError(f"{signal} exceeds {MAX_SIGNAL_SECONDS}, the maximum of sbatch --signal: reduce it")
    if execution.signal_seconds >= 60 * execution.minutes:
        raise ConfigError(
            f"{signal} is not shorter than a job's time limit, execution.minutes {execution.minutes} "
            f"({60 * execution.minutes} s): reduce execution.signal_seconds or raise execution.minutes"
        )


def _check_option(option: str, value: object) -> None:
    if not OPTION.fullmatch(option):
        raise ConfigError(
            f"execution.sbatch {option!r} is not the long name of an option of sbatch: "
            "write the long name without leading dashes, as in {qos: low}"
        )
    if option in HAVE_KEYS:
        raise ConfigError(f"execution.sbatch {option} cannot be set here: set execution.{HAVE_KEYS[option]} instead")
    if option in FIXED:
        raise ConfigError(f"execution.sbatch {option} is reserved for normstudy: leave it out")
    _check_value(f"execution.sbatch {option}", value)


def _check_value(key: str, value: object) -> None:
    if not (isinstance(value, str) and value.isprintable() and VALUE.fullmatch(value)):
        raise ConfigError(
            f"{key} {value!r} is not allowed: use text that has no quotes, backslashes or line breaks and does not "
            "begin with -"
        )


def workers_of(execution: ExecutionConfig) -> int:
    """Return the number of worker processes per Slurm job."""
    return execution.workers or 1


def of_sbatch(execution: ExecutionConfig) -> dict[str, str]:
    """Return the sbatch options of a job: long name -> value, which is "true" for an option that takes no value."""
    asked = {
        "partition": execution.partition, "account": execution.account, "time": execution.minutes, "nodes": 1,
        "cpus-per-task": workers_of(execution),
        "mem": None if execution.memory_gb is None else f"{max(1, round(1024 * execution.memory_gb))}M",
        "gpus-per-node": execution.gpus or None, "signal": f"USR2@{execution.signal_seconds}",
    }  # fmt: skip
    flags = {name: "true" if value.lower() == "true" else value for name, value in execution.sbatch.items()}
    return {name: str(value) for name, value in asked.items() if value is not None} | {"requeue": "true"} | flags


@dataclass
class SearchConfig:
    """Define what `normstudy critical` searches. Other commands ignore these settings, and so do run ids."""

    of: str = "peak_lr"  # the axis: peak_lr | warmup_steps | n_layers
    low: float | None = None  # smallest value to try; null: depends on the axis
    high: float | None = None  # largest value to try; null: depends on the axis
    width: float = 0.4  # decades; a cell is decided when its 95 % intervals are narrower than this
    max_runs: int = 60  # the search of a cell ends at this number of runs

    def __post_init__(self) -> None:
        finite("search.low", self.low, 0, strict=False)
        finite("search.high", self.high, 0, strict=False)
        finite("search.width", self.width, 0, strict=True)
        at_least("search.max_runs", self.max_runs, 10)  # the 4 runs of a first round and 6 sentinels
        if self.max_runs > MOST_RUNS:
            raise ConfigError(f"search.max_runs {self.max_runs} exceeds {MOST_RUNS}: reduce it")
