"""Read and write state/jobs.json, the record of a study's Slurm jobs. Commands remove it after the jobs have ended."""

import datetime
import json
import os
import re
import stat
import time
from pathlib import Path
from typing import NamedTuple

from normstudy.config import places
from normstudy.errors import ConfigError
from normstudy.slurm import ask
from normstudy.study import files

RECORD = "state/jobs.json"
FOLDER = "state/slurm"  # contains submitit's pickles and the jobs' logs
NAME = re.compile(r"normstudy-[\w.=+-]+")
AGAIN_SECONDS = 2.5  # wait before a second count, because Slurm may report a job as ended while requeueing the job
MODE = 0o700  # permissions of FOLDER, which is private because jobs execute the code that its pickles name


class Array(NamedTuple):
    """The record of a sweep's Slurm jobs: one array of several jobs, or a single job without an array."""

    name: str  # unique job name
    command: str  # the sweep's command line
    host: str  # the machine that submitted the jobs
    since: str  # when the sweep began, in ISO 8601
    jobs: int
    cluster: str  # the cluster's name in Slurm
    id: str | None = None  # Slurm's job number; None until the jobs are submitted

    @property
    def began(self) -> float:
        """When the sweep began, in seconds since 1970."""
        return datetime.datetime.fromisoformat(self.since).timestamp()

    def __str__(self) -> str:
        return f"Slurm {'job' if self.jobs == 1 else 'array'} {self.id or self.name}"


def write(study_dir: Path, array: Array) -> None:
    """Write the record. The caller must hold the study's lock. Raises ConfigError if state/slurm is not the user's."""
    folder = study_dir / FOLDER
    with files.storing(study_dir):
        folder.mkdir(mode=MODE, parents=True, exist_ok=True)
        check_own(folder)
        os.chmod(folder, MODE)
        files.place(study_dir, RECORD, json.dumps(array._asdict()).encode())


def check_own(folder: Path) -> None:
    """Raise a ConfigError if another user owns a folder of pickles, because jobs execute the code in pickles."""
    there = folder.lstat()
    if not stat.S_ISDIR(there.st_mode) or there.st_uid != os.getuid():
        raise ConfigError(
            f"{folder} is not a folder that you own, so another user could replace the code that the jobs execute: "
            "remove this path, or choose another study"
        )


def read(study_dir: Path) -> Array | None:
    """Read a study's record; return None if there is no record. Raises a ConfigError for a damaged record."""
    try:
        fields = json.loads(places.read(study_dir / RECORD))
        array = Array(*(fields[name] for name in Array._fields))
        # Check the name and the id, because they become command-line arguments. With a forged id such as --user=me,
        # scancel would end all of the user's jobs.
        safe = NAME.fullmatch(array.name) and (array.id is None or re.fullmatch("[0-9]+", array.id))
        if not safe or not isinstance(array.jobs, int) or not isinstance(array.cluster, str) or array.began < 0:
            raise ValueError(array)
        return array
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError):
        raise ConfigError(
            f"{study_dir / RECORD} is damaged: check with squeue that the study has no jobs left, then remove the file"
        ) from None


def remove(study_dir: Path, array: Array | None) -> None:
    """Remove an ended array's record and pickles, but not its logs. The caller must hold the study's exclusive lock.

    array: the record that the caller read before it took the lock. Raises a ConfigError if the record has changed.
    """
    if read(study_dir) != array:
        raise ConfigError(f"another command has just submitted jobs for {study_dir}: see normstudy status {study_dir}")
    if array is None:
        return
    with files.storing(study_dir):
        for pattern in ("*.pkl", "*.sh", ".*.sh", "*.save_tmp"):
            for path in (study_dir / FOLDER).glob(pattern):
                path.unlink(missing_ok=True)
        (study_dir / RECORD).unlink()


def counts(array: Array) -> ask.Counts:
    """Count an array's jobs. If the array has no id, because its submission was killed, find it by its name.

    Raises Unavailable if Slurm does not answer, or if this machine belongs to another cluster than the array.
    """
    if (here := ask.cluster()) != array.cluster:
        raise ask.Unavailable(
            f"this machine belongs to the cluster {here}, but the jobs are on the cluster {array.cluster}"
        )
    job_id = array.id or ask.id_of(array.name)
    return ask.Counts(0, 0) if job_id is None else ask.counts(job_id, array.name)


def counts_surely(array: Array) -> ask.Counts:
    """Count an array's jobs. If none is left, wait AGAIN_SECONDS and count once more."""
    first = counts(array)
    if first.alive:
        return first
    time.sleep(AGAIN_SECONDS)
    return counts(array)


def refuse_while_alive(study_dir: Path) -> Array | None:
    """Return the record of a study's ended jobs, if any. Raises a ConfigError if jobs are left or cannot be counted."""
    array = read(study_dir)
    if array is None:
        return None
    try:
        left = counts_surely(array)
    except ask.Unavailable as why:
        raise ConfigError(
            f"{study_dir} has jobs ({array}, submitted on {array.host} at {array.since}), but Slurm does not answer "
            f"here ({why}): run the command on {array.host}; if the jobs have ended, remove {study_dir / RECORD}"
        ) from None
    if left.alive:
        raise ConfigError(
            f"{study_dir} is being trained by {array} ({left}): normstudy status {study_dir} --watch shows the "
            f"progress, normstudy cancel {study_dir} ends the jobs"
        )
    return array
