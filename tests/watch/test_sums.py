"""Norms of tensors of any length, layout and type are those of float64."""

from __future__ import annotations

import pytest
import torch

from normstudy.watch.numbers import ROW, norms, sum_of_squares

LENGTHS = (0, 1, ROW, 4 * ROW, 4 * ROW + 1, 5 * ROW, 3_000_001)


@pytest.mark.parametrize("equal", [True, False])
def test_norms_are_those_of_float64(equal: bool) -> None:
    """torch's own norm of three million equal numbers is off by 0.2 %."""
    generator = torch.Generator().manual_seed(0)
    made = [torch.full((n,), 1e-2) if equal else torch.randn(n, generator=generator) for n in LENGTHS]
    for x, found in zip(made, norms(made), strict=True):
        assert found.dtype == torch.float32
        assert float(found) == pytest.approx(float(x.double().norm()), rel=4e-6), len(x)
    if equal:
        assert abs(float(torch._foreach_norm(made[-1:])[0] / made[-1].double().norm()) - 1) > 1e-3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_types_and_layouts(dtype: torch.dtype) -> None:
    wide = torch.arange(300.0 * 70).reshape(300, 70).fmod(7).to(dtype)
    given = [wide.t(), wide[:, ::2], wide[0], torch.nn.Parameter(wide)]
    found = norms(given)
    assert {x.dtype for x in found} == {torch.float64 if dtype == torch.float64 else torch.float32}
    assert not any(x.requires_grad for x in found)
    assert [float(x) for x in found] == pytest.approx([float(x.detach().double().norm()) for x in given], rel=1e-6)


@pytest.mark.parametrize("n", [7, 100_000])
@pytest.mark.parametrize("size", [1e-37, 1e-30, 1e-21, 1e-15, 1e-14, 1e15, 1e19, 1e30, 1e34])
def test_norms_of_tiny_and_huge_numbers(size: float, n: int) -> None:
    x = torch.randn(n, generator=torch.Generator().manual_seed(0)) * size
    want = float(x.double().norm())
    assert float(norms([x, torch.zeros(3)])[0]) == pytest.approx(want, rel=4e-6)
    assert float(sum_of_squares(x).sqrt()) == pytest.approx(want, rel=4e-6)


def test_no_tensors_have_no_norms() -> None:
    assert norms([]) == []
