"""Variables of the user's shell that select a library's instructions do not reach a run."""

from __future__ import annotations

from pathlib import Path

import pytest
from processes import SWEEP, finish
from studies import assert_same_tables

# Each changes bits on its own: the instructions of oneDNN (of GELU), of NumPy, of OpenBLAS, and of the C library.
CHANGES = {
    "DNNL_MAX_CPU_ISA": "SSE41",
    "ONEDNN_MAX_CPU_ISA": "SSE41",
    "ONEDNN_DEFAULT_FPMATH_MODE": "BF16",
    "NPY_DISABLE_CPU_FEATURES": "X86_V3 X86_V4 AVX2 FMA3 AVX512F",  # those that NumPy does not know are ignored
    "OPENBLAS_CORETYPE": "Prescott",
    "GLIBC_TUNABLES": "glibc.cpu.hwcaps=-AVX2,-FMA",
}


@pytest.mark.processes
def test_a_shell_that_asks_for_other_instructions_changes_no_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [*SWEEP, "seed=0,1", "schedule.n_steps=6", "model.activation=gelu", "execution.workers=1"]
    (tmp_path / "plain").mkdir()
    (tmp_path / "asked").mkdir()
    plain = finish(words, tmp_path / "plain")
    assert plain.returncode == 0, plain.stderr
    for name, value in CHANGES.items():
        monkeypatch.setenv(name, value)
    asked = finish(words, tmp_path / "asked")
    assert asked.returncode == 0, asked.stderr
    assert_same_tables(tmp_path / "plain" / "results" / "long", tmp_path / "asked" / "results" / "long")
