"""Linear maps, norms, attention and the loss of many runs against torch's for one run, for any memory layout."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from normstudy.model import kernels, processor

Call = Callable[..., list[Tensor]]

R, B, T, H, K = 3, 2, 5, 2, 4
D = H * K
EPS = 1e-5
TARGETS = torch.randint(D, (B, T), generator=torch.Generator().manual_seed(1))


@pytest.fixture(params=[False, True], ids=["NumPy", "MKL"], autouse=True)
def _both_libraries(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run every test with the products of NumPy and of MKL, on any CPU."""
    monkeypatch.setattr(processor, "by_mkl", lambda: request.param)


def two_maps(x: Tensor, w1: Tensor, w2: Tensor, b1: Tensor, b2: Tensor) -> list[Tensor]:
    return kernels.linears(x, [w1, w2], [b1, b2])


CASES: dict[str, tuple[Call, Call, list[tuple[int, ...]]]] = {
    "a linear map without a bias": (
        lambda x, w: kernels.linears(x, [w], [None]),
        lambda x, w: [F.linear(x, w)],
        [(B, T, D), (7, D)],
    ),
    "two linear maps of one input": (
        two_maps,
        lambda x, w1, w2, b1, b2: [F.linear(x, w1, b1), F.linear(x, w2, b2)],
        [(B, T, D), (7, D), (3, D), (7,), (3,)],
    ),
    "layer norm": (
        lambda x, gamma, beta: [kernels.layer_norm(x, gamma, beta, EPS)],
        lambda x, gamma, beta: [F.layer_norm(x, (D,), gamma, beta, EPS)],
        [(B, T, D), (D,), (D,)],
    ),
    "attention": (
        lambda q, k, v: [kernels.causal_attention(q, k, v)],
        lambda q, k, v: [
            F.scaled_dot_product_attention(*(y.transpose(1, 2) for y in (q, k, v)), is_causal=True).transpose(1, 2)
        ],
        [(B, T, H, K)] * 3,
    ),
    "cross-entropy": (
        lambda logits: [kernels.cross_entropy(logits, TARGETS)],
        lambda logits: [F.cross_entropy(logits.flatten(0, 1), TARGETS.flatten())],
        [(B, T, D)],
    ),
}


def inputs(shapes: list[tuple[int, ...]]) -> list[Tensor]:
    """A random float64 tensor of each shape, stacked over R runs."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(R, *shape, generator=generator, dtype=torch.float64).requires_grad_() for shape in shapes]


def laid_out(x: Tensor, how: str) -> Tensor:
    """The same numbers in another memory layout."""
    if how == "last axis first":
        return x.movedim(-1, 0).contiguous().movedim(0, -1)
    if how == "every second":
        return torch.stack([x, x], -1).flatten(-2)[..., ::2]
    return x


def outputs_and_gradients(function: Call, given: list[Tensor]) -> list[Tensor]:
    """The outputs of a vmapped function, and the gradients of a weighted sum of all outputs."""
    outputs = torch.func.vmap(function)(*given)
    # The gradient of the first output is an expanded tensor, whose rows overlap in memory.
    total = outputs[0].sum() + sum((y * torch.linspace(-1, 1, y.numel()).view(y.shape)).sum() for y in outputs)
    return [
        *outputs,
        *torch.autograd.grad(total, given, retain_graph=True),
        *torch.autograd.grad(outputs[0].sum(), given[:1]),
    ]


@pytest.mark.parametrize("how", ["in order", "last axis first", "every second"])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.filterwarnings("ignore:There is a performance drop")  # torch's fused attention under vmap: the oracle
def test_as_torch_computes_it_for_one_run(case: str, how: str) -> None:
    ours, torchs, shapes = CASES[case]
    given = inputs(shapes)
    got = outputs_and_gradients(lambda *x: ours(*(laid_out(y, how) for y in x)), given)
    for a, b in zip(got, outputs_and_gradients(torchs, given), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("case", CASES)
def test_one_run_outside_vmap(case: str) -> None:
    ours, _, shapes = CASES[case]
    given = inputs(shapes)
    together = torch.func.vmap(ours)(*given)
    for r in range(R):
        for alone, of_all in zip(ours(*(x[r] for x in given)), together, strict=True):
            assert torch.equal(alone, of_all[r])


@pytest.mark.parametrize("how", ["last axis first", "every second"])
def test_what_blas_cannot_read_is_copied(how: str) -> None:
    """NumPy would multiply such a layout number by number, at a hundredth of the speed."""
    x = inputs([(T, D)])[0].detach()
    assert kernels._by_rows(x) is x
    part = x[..., 2:5]
    assert kernels._by_rows(part) is part
    for odd in (laid_out(x, how), x[:, :1].expand(R, T, D)):
        rows = kernels._by_rows(odd)
        assert rows.is_contiguous()
        assert torch.equal(rows, odd)


def test_numbers_that_overflow_do_so_without_a_warning() -> None:
    x = torch.full((1, 2, 2), 3e38)
    assert kernels.product(x, x).isinf().all()
    assert kernels.product(x, torch.full((1, 2, 2), torch.nan)).isnan().all()


@pytest.mark.parametrize("case", CASES)
def test_runs_worked_on_one_by_one_or_together_have_the_same_bits(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, _, shapes = CASES[case]
    together = outputs_and_gradients(ours, inputs(shapes))
    monkeypatch.setattr(kernels, "AT_ONCE", 1)
    for a, b in zip(outputs_and_gradients(ours, inputs(shapes)), together, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("case", ["a linear map without a bias", "two linear maps of one input", "layer norm"])
def test_gradients_with_the_runs_inside_give_each_run_its_bits(case: str) -> None:
    """F.embedding in a user's block gives such gradients, which torch sums in an order that depends on their number."""
    ours, _, _ = CASES[case]
    width, positions = 48, 50
    shapes = {"layer norm": [(width,), (width,)], "a linear map without a bias": [(width, width)]}
    generator = torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(7, *shape, generator=generator)

    given = [drawn(positions, width)] + [drawn(*s) for s in shapes.get(case, [(width, width)] * 2 + [(width,)] * 2)]
    gradient = drawn(positions, width)

    def gradients(runs: slice) -> list[Tensor]:
        leaves = [x[runs].clone().requires_grad_() for x in given]
        outputs = torch.func.vmap(ours)(*leaves)
        inside = gradient[runs].movedim(0, 1).contiguous().movedim(0, 1)
        return list(torch.autograd.grad(outputs, leaves, [inside] * len(outputs)))

    of_all = gradients(slice(7))
    for r in range(7):
        for alone, together in zip(gradients(slice(r, r + 1)), of_all, strict=True):
            assert torch.equal(alone[0], together[r])


@pytest.mark.parametrize("case", CASES)
def test_what_they_cannot_do_is_an_error(case: str) -> None:
    ours, _, shapes = CASES[case]
    given = inputs(shapes)
    loss = ours(*(x[0] for x in given))[0].square().sum()
    (once,) = torch.autograd.grad(loss, given[:1], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        once.sum().backward()
    with pytest.raises(TypeError, match=r"cannot be called inside torch\.func's grad"):
        torch.func.vmap(torch.func.vmap(ours))(*(x[None].detach() for x in given))
    with pytest.raises(TypeError, match=r"cannot be called inside torch\.func's grad"):
        torch.func.grad(lambda *x: ours(*x)[0].sum())(*(x[0].detach() for x in given))


@pytest.mark.parametrize("other", [torch.float32, torch.bfloat16])
def test_products_are_of_one_kind_of_number(other: torch.dtype) -> None:
    x = torch.ones(1, 2, 2, dtype=torch.float64)
    with pytest.raises(TypeError, match=r"convert both to torch\.float32"):
        kernels.product(x, x.to(other))
    with pytest.raises(TypeError, match=r"convert both to torch\.float32"):
        kernels.product(x.half(), x.half())


@pytest.mark.parametrize("shape", [(1, 1, 1, 2), (3, 2, 8, 11), (16, 8, 64, 256), (9, 8, 64, 512), (7, 3, 31, 33)])
@pytest.mark.parametrize("scale", [1, 60])
def test_the_loss_has_the_bits_of_torch(shape: tuple[int, ...], scale: float) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = (torch.randn(shape, generator=generator) * scale).requires_grad_()
    targets = torch.randint(shape[-1], shape[:-1], generator=generator)

    def of_torch(logits: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten())

    losses = [torch.func.vmap(loss)(logits, targets) for loss in (kernels.cross_entropy, of_torch)]
    weights = torch.linspace(0.5, 2, shape[0])
    gradients = [torch.autograd.grad((loss * weights).sum(), logits)[0] for loss in losses]
    assert torch.equal(*losses)
    assert torch.equal(*gradients)
    assert gradients[0].abs().max() > 0


def test_the_loss_of_logits_that_are_not_finite_is_not_finite() -> None:
    logits = torch.zeros(2, 1, 2, 3)
    logits[0, 0, 0, 1], logits[1, 0, 1, 0] = torch.inf, torch.nan
    assert not torch.func.vmap(kernels.cross_entropy)(logits, torch.zeros(2, 1, 2, dtype=torch.long)).isfinite().any()
