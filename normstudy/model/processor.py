"""Choose the library that computes matrix products on this CPU. The choice depends only on the CPU's vendor.

On PyPI, NumPy's wheel contains OpenBLAS, and torch's wheel contains MKL. On AMD, MKL uses half of AVX-512 (kernels.py
lists the speeds). On a two-core Xeon with AVX-512, four models of d_model 32 to 128 and 2 to 6 layers trained 1.08 to
1.11 times as fast with MKL as with OpenBLAS (medians of seven alternating rounds).
"""

import functools
import re
from pathlib import Path

import numpy as np
from threadpoolctl import threadpool_info


@functools.cache
def by_mkl() -> bool:
    """Return whether MKL computes linear maps. Attention does not use MKL, as its matrices have gaps between rows."""
    import torch  # imported late, since `normstudy bench` reads cpu_info without torch

    return torch.backends.mkl.is_available() and cpu_info("vendor_id") == "GenuineIntel"  # type: ignore[no-untyped-call]


def libraries() -> str:
    """Return the value of the column `blas`, such as 'mkl 2024.2, openblas 0.3.31 SkylakeX'."""
    if not by_mkl():
        return _numpy_blas()
    import torch

    found = re.search(r"Math Kernel Library Version (\d+(?:\.\d+)*)", torch.__config__.show())
    return f"mkl {found[1] if found else f'of torch {torch.__version__}'}, {_numpy_blas()}"


def _numpy_blas() -> str:
    found = [library for library in threadpool_info() if library["user_api"] == "blas"]
    # SciPy may bring a second BLAS. NumPy's BLAS is in one of these two folders, unless NumPy uses the system's BLAS.
    numpys = [one for one in found if Path(one["filepath"]).parent.name in ("numpy.libs", ".dylibs")] or found
    if len(numpys) != 1:
        return f"of numpy {np.__version__}"
    return " ".join(str(numpys[0][key]) for key in ("internal_api", "version", "architecture") if numpys[0].get(key))


INFO = Path("/proc/cpuinfo")


def cpu_info(field: str) -> str | None:
    """Return the first value of a field in /proc/cpuinfo, such as `vendor_id`, or None if it is missing."""
    lines = INFO.read_text().splitlines() if INFO.exists() else []
    parts = (line.partition(":") for line in lines)
    return next((value.strip() for name, _, value in parts if name.strip() == field), None)
