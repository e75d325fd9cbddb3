"""Which library makes the matrix products of runs on this CPU: a rule by its maker, so that bits do not depend on more.

PyPI's wheels of NumPy bring OpenBLAS, those of torch bring MKL. On an AMD, MKL uses half of AVX-512 (kernels.py has the
rates); on an Intel it is the faster one: a Xeon with AVX-512 trained d32 L4, d64 L2, d64 L6 and d128 L6 1.08 to 1.11
times as fast with it (medians of seven rounds in turns, by hand, two cores).
"""

from __future__ import annotations

import functools
import re
from pathlib import Path

import numpy as np
from threadpoolctl import threadpool_info


@functools.cache
def by_mkl() -> bool:
    """Whether MKL makes the products of linear maps; NumPy makes attention's, whose matrices lie between others."""
    import torch  # here: bench reads cpu_info without torch  # here: bench reads cpu_info without torch

    return torch.backends.mkl.is_available() and cpu_info("vendor_id") == "GenuineIntel"  # type: ignore[no-untyped-call]


def libraries() -> str:
    """The column `blas`: what makes a run's products, its version, and the CPU that NumPy's took this one for.

    'openblas 0.3.31 SkylakeX', or 'mkl 2024.2, openblas 0.3.31 SkylakeX'.
    """
    return f"{_torchs()}, {_numpys()}" if by_mkl() else _numpys()


def _torchs() -> str:
    import torch

    found = re.search(r"Math Kernel Library Version (\d+(?:\.\d+)*)", torch.__config__.show())
    return f"mkl {found[1]}" if found else f"mkl of torch {torch.__version__}"


def _numpys() -> str:
    found = [library for library in threadpool_info() if library["user_api"] == "blas"]
    # SciPy brings one of its own. Where NumPy was built with a system's, that is the only one.
    numpys = [one for one in found if Path(one["filepath"]).parent.name in ("numpy.libs", ".dylibs")] or found
    if len(numpys) != 1:
        return f"of numpy {np.__version__}"
    return " ".join(str(numpys[0][key]) for key in ("internal_api", "version", "architecture") if numpys[0].get(key))


INFO = Path("/proc/cpuinfo")


def cpu_info(field: str) -> str | None:
    """The value of the first line of that name: `model name`, `vendor_id`. None where there is no such line or file."""
    lines = INFO.read_text().splitlines() if INFO.exists() else []
    for line in lines:
        name, _, value = line.partition(":")
        if name.strip() == field:
            return value.strip()
    return None
