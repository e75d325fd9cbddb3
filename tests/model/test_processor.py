"""Which library computes the products on which CPU, and what the column `blas` says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from normstudy.model import kernels, processor

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
    monkeypatch.setattr(processor, "threadpool_info", lambda: found)
    monkeypatch.setattr(processor, "by_mkl", lambda: False)
    assert processor.libraries() == expected
    monkeypatch.setattr(processor, "by_mkl", lambda: True)
    mkl, numpys = processor.libraries().split(", ")
    assert numpys == expected
    assert mkl.startswith("mkl ")
    assert mkl[4].isdigit() or not torch.backends.mkl.is_available()  # torch without MKL reports no version


@pytest.mark.parametrize(
    ("info", "expected"),
    [
        ("processor\t: 0\nvendor_id\t: GenuineIntel\nmodel name\t: Intel(R) Xeon(R)\n\nvendor_id\t: Other\n", True),
        ("processor\t: 0\nvendor_id\t: AuthenticAMD\n", False),
        ("CPU implementer\t: 0x41\n", False),
        (None, False),
    ],
)
def test_mkl_is_for_intel(info: str | None, expected: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """info None: a system without /proc/cpuinfo."""
    monkeypatch.setattr(processor, "INFO", tmp_path / "cpuinfo")
    if info is not None:
        processor.INFO.write_text(info)
    assert processor.by_mkl.__wrapped__() is (expected and torch.backends.mkl.is_available())


def test_here() -> None:
    assert processor.libraries().startswith("mkl " if processor.by_mkl() else "openblas ")


def test_the_named_library_makes_the_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """On Intel NumPy computes no product of linear maps; elsewhere it computes all."""
    numpys: list[int] = []
    monkeypatch.setattr(np, "matmul", lambda a, b, out: numpys.append(a.ndim))
    x = torch.ones(2, 3, 3)
    for by_mkl, expected in ((True, []), (False, [3])):
        monkeypatch.setattr(processor, "by_mkl", lambda by_mkl=by_mkl: by_mkl)
        kernels.product(x, x)
        assert numpys == expected
