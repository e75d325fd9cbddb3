"""Submit a sweep's tasks as one Slurm array."""

import contextlib
import datetime
import io
import itertools
import math
import shlex
import shutil
import signal
import socket
import sys
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path

from normstudy.config import ExecutionConfig
from normstudy.config import execution as options
from normstudy.errors import ConfigError
from normstudy.slurm import arrays, ask
from normstudy.slurm.arrays import Array
from normstudy.slurm.share import Share
from normstudy.study import records
from normstudy.workers.signals import SIGNALS
from normstudy.workers.task import Task

# A shell that runs sbatch with signals ignored. If Ctrl-C ended sbatch, the ids of its jobs would be lost.
IGNORING_SIGNALS = ("sh", "-c", "trap '' INT TERM HUP; exec \"$@\"", "sh")
ENTRY = "normstudy.slurm"  # the module that a job starts: slurm/__main__.py


def check(execution: ExecutionConfig) -> None:
    """Raise a ConfigError if Slurm or submitit is missing, or if Slurm refuses the options. Writes nothing."""
    try:
        import submitit  # noqa: F401
    except ModuleNotFoundError:
        raise ConfigError("execution=slurm needs submitit: pip install 'normstudy[slurm]'") from None
    for program in ("sbatch", "srun"):
        if shutil.which(program) is None:
            raise ConfigError(
                f"execution=slurm needs the command {program}, which is not found on this machine: run normstudy on a "
                "machine that can submit jobs"
            )
    try:
        ask.try_out(options.of_sbatch(execution))
    except ask.Unavailable as why:
        raise _refused(why) from None


def _refused(why: object) -> ConfigError:
    return ConfigError(f"Slurm refuses the jobs ({why}): change the execution.* keys")


def shares(tasks: Sequence[Task], workers: int, most: int) -> list[list[Task]]:
    """Split tasks, in order, into jobs of up to `workers` tasks. If these exceed `most`, make `most` larger jobs."""
    n = min(math.ceil(len(tasks) / workers), most)
    edges = [math.ceil(len(tasks) * i / n) for i in range(n + 1)]
    return [list(tasks[low:high]) for low, high in itertools.pairwise(edges)]


def submit(
    study_dir: Path, tasks: Sequence[Task], execution: ExecutionConfig, command: str, since: datetime.datetime
) -> Array:
    """Submit one or more tasks. The caller must hold the study's exclusive lock; the jobs wait until it is free.

    Raises a ConfigError, and removes the jobs' record, if Slurm refuses the jobs. since: when the sweep began.
    """
    import submitit

    workers = options.workers_of(execution)
    try:
        parts, cluster = shares(tasks, workers, ask.most_jobs()), ask.cluster()
    except ask.Unavailable as why:
        raise _refused(why) from None
    name = f"normstudy-{study_dir.name[:40]}-{uuid.uuid4().hex[:8]}"
    array = Array(name, command, socket.gethostname(), since.isoformat(timespec="seconds"), len(parts), cluster)
    arrays.write(study_dir, array)
    asked = options.of_sbatch(execution)
    folder, python = study_dir / arrays.FOLDER, f"{shlex.quote(sys.executable)} -P -u -m {ENTRY}"
    executor = submitit.SlurmExecutor(folder, max_num_timeout=execution.requeues, python=python)
    executor.update_parameters(
        job_name=array.name,
        time=execution.minutes,  # in minutes; both Slurm and submitit use this limit
        array_parallelism=execution.jobs,
        wckey=None,  # unset, because some clusters refuse submitit's default wckey
        srun_args=[f"--cpus-per-task={workers}"],  # since Slurm 22.05 srun does not inherit this option from the job
        additional_parameters={k: True if v == "true" else v for k, v in asked.items()},
    )
    tried = records.tries_of(study_dir)
    jobs = [
        Share(
            study_dir.absolute(), part, workers, execution.max_tries, command,
            {i: tried[i] for task in part for i in task.run_ids if i in tried},
        )
        for part in parts
    ]  # fmt: skip
    try:
        # submitit both prints and raises sbatch's errors. Discard the print, because the ConfigError has the reason.
        with _beyond_signals(), ask.only(asked), contextlib.redirect_stderr(io.StringIO()):
            submitted = executor.submit_array(jobs)
    except Exception as error:
        with contextlib.suppress(ask.Unavailable):  # cancel the jobs that the submission may have left in the queue
            if (job_id := ask.id_of(array.name)) is not None:
                ask.cancel(job_id, array.name)
            arrays.remove(study_dir, array)
        raise _refused(ask.reason_of(str(error)) or type(error).__name__) from error
    array = array._replace(id=submitted[0].job_id.partition("_")[0])
    arrays.write(study_dir, array)
    return array


@contextlib.contextmanager
def _beyond_signals() -> Iterator[None]:
    """Protect sbatch, which the `with` block starts, from SIGNALS. The caller's Stop still records them.

    The shell that runs sbatch starts with SIGNALS blocked, so no signal can end this shell before `trap` ignores them.
    Only this thread blocks SIGNALS. If the process ignored them, its other threads (pyarrow's) would discard a signal.
    """
    import submitit

    executor, name = submitit.SlurmExecutor, "_make_submission_command"  # the class: an array has its own executor
    own = getattr(executor, name)
    setattr(executor, name, lambda self, path: [*IGNORING_SIGNALS, *own(self, path)])
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        setattr(executor, name, own)
