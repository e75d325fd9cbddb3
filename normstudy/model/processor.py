"""Which library computes the matrix products of runs on this CPU. The choice depends on the CPU's vendor alone.

The wheels on PyPI bring OpenBLAS with NumPy and MKL with torch. On AMD, MKL uses half of AVX-512 (kernels.py has the
rates). On Intel, MKL is faster: on a Xeon with AVX-512 and two cores, training d32 L4, d64 L2, d64 L6 and d128 L6 was
1.08 to 1.11 times as fast with MKL (medians of seven alternating rounds).
"""

from __future__ import annotations

import functools
import re
from pathlib import Path

import numpy as np
from threadpoolctl import threadpool_info


@functools.cache
def by_mkl() -> bool:
    """Whether MKL computes the products of linear maps. NumPy always computes those of attention, which are strided."""
    import torch  # here: bench reads cpu_info without torch

    return torch.backends.mkl.is_available() and cpu_info("vendor_id") == "GenuineIntel"  # type: ignore[no-untyped-call]


def libraries() -> str:
    """The column `blas`: the libraries that compute a run's products, and the CPU architecture that OpenBLAS detected.

    'openblas 0.3.31 SkylakeX', or 'mkl 2024.2, openblas 0.3.31 SkylakeX'.
    """
    return f"{_mkl()}, {_numpy_blas()}" if by_mkl() else _numpy_blas()


def _mkl() -> str:
    import torch

    found = re.search(r"Math Kernel Library Version (\d+(?:\.\d+)*)", torch.__config__.show())
    return f"mkl {found[1]}" if found else f"mkl of torch {torch.__version__}"


def _numpy_blas() -> str:
    found = [library for library in threadpool_info() if library["user_api"] == "blas"]
    # SciPy brings another BLAS. A NumPy that was built with the system's BLAS has no folder of libraries.
    numpys = [one for one in found if Path(one["filepath"]).parent.name in ("numpy.libs", ".dylibs")] or found
    if len(numpys) != 1:
        return f"of numpy {np.__version__}"
    return " ".join(str(numpys[0][key]) for key in ("internal_api", "version", "architecture") if numpys[0].get(key))


INFO = Path("/proc/cpuinfo")


def cpu_info(field: str) -> str | None:
    """The first value of a field of /proc/cpuinfo, such as `vendor_id`; None if the field or the file is missing."""
    lines = INFO.read_text().splitlines() if INFO.exists() else []
    parts = (line.partition(":") for line in lines)
    return next((value.strip() for name, _, value in parts if name.strip() == field), None)
