"""A child process: its environment, and its death with its parent."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from multiprocessing import parent_process


def die_with_parent() -> None:
    """Wait for the parent's end, and end this process."""
    parent = parent_process()
    if parent is not None:
        parent.join()
    os._exit(1)


# What is set for the workers; None takes a variable away. MKL_CBWR: without it torch's products, which a tied
# unembedding and a user's block make, depend on what a run is batched with. OPENBLAS_*: a run's bits are those of its
# CPU, whatever a shell asks for. MALLOC_*: glibc otherwise returns large blocks to the system at every free, which
# costs up to 40 % of a step.
WORKER_ENVIRONMENT: dict[str, str | None] = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "MKL_CBWR": "AUTO,STRICT",
    "OPENBLAS_NUM_THREADS": "1",
    "BLIS_NUM_THREADS": "1",
    "VECLIB_MAXIMUM_THREADS": "1",
    "OPENBLAS_CORETYPE": None,
    "OPENBLAS_L2_SIZE": None,
    "OPENBLAS_BLOCK_FACTOR": None,
    "MALLOC_MMAP_THRESHOLD_": str(2**32),
    "MALLOC_TRIM_THRESHOLD_": str(2**32),
    "MALLOC_TOP_PAD_": str(2**28),
}


@contextlib.contextmanager
def environment() -> Iterator[None]:
    """The environment of the workers, for processes that are started inside."""
    before = {key: os.environ.get(key) for key in WORKER_ENVIRONMENT}
    set_environment(WORKER_ENVIRONMENT)
    try:
        yield
    finally:
        set_environment(before)


def set_environment(values: Mapping[str, str | None]) -> None:
    """Set variables of this process, or take them away where the value is None."""
    for key, value in values.items():
        if value is None:
            os.environ.pop(key, None)
        else:
            os.environ[key] = value
