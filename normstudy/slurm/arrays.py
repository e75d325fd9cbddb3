"""What is submitted for a study: state/jobs.json, written before the jobs are, and gone when they are over."""

from __future__ import annotations

import dataclasses
import datetime
import json
import os
import re
import socket
import stat
import time
import uuid
from pathlib import Path

from normstudy.errors import ConfigError
from normstudy.slurm import ask
from normstudy.study import files

RECORD = "state/jobs.json"
FOLDER = "state/slurm"  # submitit's: its pickles, and the jobs' logs
NAME = re.compile(r"normstudy-[\w.=+-]+")
AGAIN_SECONDS = 2.5  # between two questions to Slurm: a job that is being requeued may look over for a moment
MODE = 0o700  # of that: who could write a pickle there would have a job do anything


@dataclasses.dataclass(frozen=True)
class Array:
    """The jobs of a sweep.

    name: given to no other; since: ISO 8601; cluster: as its Slurm calls it; id: Slurm's, None until it is told.
    """

    name: str
    command: str
    host: str
    since: str
    jobs: int
    cluster: str
    id: str | None = None

    @property
    def began(self) -> float:
        """since, in seconds."""
        return datetime.datetime.fromisoformat(self.since).timestamp()

    def __str__(self) -> str:
        return f"Slurm {'job' if self.jobs == 1 else 'array'} {self.id or self.name}"


def new(study_dir: Path, command: str, since: datetime.datetime, jobs: int, cluster: str) -> Array:
    """An array that is about to be submitted. since: before its sweep was recorded."""
    name = f"normstudy-{study_dir.name[:40]}-{uuid.uuid4().hex[:8]}"
    return Array(name, command, socket.gethostname(), since.isoformat(timespec="seconds"), jobs, cluster)


def write(study_dir: Path, array: Array) -> None:
    """Keep what is submitted, durably. Needs the study's lock. Raises ConfigError."""
    folder = study_dir / FOLDER
    with files.storing(study_dir):
        folder.mkdir(mode=MODE, parents=True, exist_ok=True)
        check_own(folder)
        os.chmod(folder, MODE)
        files.place(study_dir, RECORD, json.dumps(dataclasses.asdict(array)).encode())


def check_own(folder: Path) -> None:
    """Raise a ConfigError where somebody else may have put a pickle."""
    there = folder.lstat()
    if not stat.S_ISDIR(there.st_mode) or there.st_uid != os.getuid():
        raise ConfigError(
            f"{folder} is not a folder of yours, and jobs run what lies there: remove it, or take another study"
        )


def read(study_dir: Path) -> Array | None:
    """What is submitted, None where nothing is. Raises ConfigError for a damaged record."""
    try:
        told = json.loads((study_dir / RECORD).read_bytes())
        array = Array(**{f.name: told[f.name] for f in dataclasses.fields(Array)})
        # Words of a command: an id such as --user=me would end all jobs of whoever cancels them.
        if not (array.id is None or re.fullmatch("[0-9]+", array.id)) or not NAME.fullmatch(array.name):
            raise ValueError(array)
        if not isinstance(array.jobs, int) or not isinstance(array.cluster, str) or array.began < 0:
            raise ValueError(array)
        return array
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError):
        raise ConfigError(
            f"{study_dir / RECORD} is damaged: see with squeue that no job of the study is left, and remove it"
        ) from None


def remove(study_dir: Path, array: Array | None) -> None:
    """Forget an array that is over; its pickles go, the logs stay. Needs the study's lock, alone.

    array: what was there before the lock was taken; a ConfigError where it is another one now.
    """
    if read(study_dir) != array:
        raise ConfigError(f"{study_dir}: another command has submitted jobs just now: see normstudy status {study_dir}")
    if array is None:
        return
    with files.storing(study_dir):
        for pattern in ("*.pkl", "*.sh", ".*.sh", "*.save_tmp"):
            for path in (study_dir / FOLDER).glob(pattern):
                path.unlink(missing_ok=True)
        (study_dir / RECORD).unlink()


def counts(study_dir: Path, array: Array) -> ask.Counts:
    """How far an array is. Raises slurm.Unavailable, also where another cluster sees the study.

    One without an id was just being submitted, or its submission was killed: it is looked for by its name.
    """
    if (here := ask.cluster()) != array.cluster:
        raise ask.Unavailable(f"this is the cluster {here}, they are on {array.cluster}")
    job_id = array.id or ask.id_of(array.name)
    return ask.Counts(0, 0) if job_id is None else ask.counts(job_id, array.name)


def counts_surely(study_dir: Path, array: Array) -> ask.Counts:
    """The same, but over only where a second look says so."""
    told = counts(study_dir, array)
    if not told.alive:
        time.sleep(AGAIN_SECONDS)
        told = counts(study_dir, array)
    return told


def refuse_while_alive(study_dir: Path) -> Array | None:
    """The array of a study that is over, None where there is none; a ConfigError while it is not, or nobody knows."""
    array = read(study_dir)
    if array is None:
        return None
    try:
        told = counts_surely(study_dir, array)
    except ask.Unavailable as why:
        raise ConfigError(
            f"{study_dir} has jobs ({array}, submitted on {array.host} at {array.since}), and Slurm cannot be asked "
            f"from here ({why}): give the command on {array.host}; where they are over, remove {study_dir / RECORD}"
        ) from None
    if told.alive:
        raise ConfigError(
            f"{study_dir} is trained by {array} ({told}): normstudy status {study_dir} --watch follows it, "
            f"normstudy cancel {study_dir} ends it"
        )
    return array
