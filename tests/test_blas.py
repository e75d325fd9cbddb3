"""The column `blas`: NumPy's library, not another's."""

from __future__ import annotations

import numpy as np
import pytest
import threadpoolctl

from normstudy.recording import blas

NUMPYS = {"user_api": "blas", "internal_api": "openblas", "version": "0.3.31", "architecture": "SkylakeX"}
SCIPYS = NUMPYS | {"version": "0.3.30", "filepath": "/home/numpy/site-packages/scipy.libs/libscipy_openblas.so"}
NUMPYS["filepath"] = "/home/numpy/site-packages/numpy.libs/libscipy_openblas64_.so"
OPENMP = {"user_api": "openmp", "internal_api": "openmp", "version": None, "filepath": "/lib/libgomp.so"}


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        ([OPENMP, SCIPYS, NUMPYS], "openblas 0.3.31 SkylakeX"),
        ([NUMPYS | {"filepath": "/usr/lib/libopenblas.so", "architecture": None}], "openblas 0.3.31"),
        ([SCIPYS, NUMPYS | {"filepath": "/usr/lib/libopenblas.so"}], f"of numpy {np.__version__}"),
        ([OPENMP], f"of numpy {np.__version__}"),
    ],
)
def test_the_library_of_numpy(found: list[dict[str, object]], expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threadpoolctl, "threadpool_info", lambda: found)
    assert blas() == expected


def test_here() -> None:
    assert blas().startswith("openblas ")
