"""What normstudy.watch must not take for a step: the tables are those of the same loop without it."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from loops import Encoder, Plain, batches, loss_of, made
from test_watch import watched
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import normstudy

Batch = tuple[Tensor, Tensor]
ODD = batches(1, seed=9)[0]


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)


def step(model: nn.Module, optimizer: torch.optim.Optimizer, batch: Batch) -> None:
    optimizer.zero_grad()
    loss_of(model, batch).backward()  # type: ignore[no-untyped-call]
    optimizer.step()


def assert_same(root: Path, one: str = "mine", other: str = "clean", rtol: float = 1e-5) -> None:
    found = [normstudy.load(root / study) for study in (one, other)]
    for table in ("steps", "modules", "residual"):
        left, right = (getattr(each, table).drop(columns="run_id") for each in found)
        assert len(left)
        pd.testing.assert_frame_equal(left, right, rtol=rtol, atol=1e-9)


def clean(root: Path, kind: Callable[[], nn.Module] = Plain, n: int = 4, **options: Any) -> None:
    model = made(kind)
    with watched(model, optimizer := sgd(model), root, study="clean", **options):
        for batch in batches(n):
            step(model, optimizer, batch)


def backward(model: nn.Module, factor: float = 100.0, **options: Any) -> None:
    (factor * loss_of(model, ODD)).backward(**options)  # type: ignore[no-untyped-call]


def nothing(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    backward(model)


def zeros(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    backward(model)
    optimizer.zero_grad(set_to_none=False)


def several(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    for _ in range(3):
        backward(model)


def not_a_number(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    backward(model, math.nan)


def grad_alone(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    torch.autograd.grad(100 * loss_of(model, ODD), list(model.parameters()))


def evaluation(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    loss_of(model, ODD)


def raising(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    def stop(grad: Tensor) -> None:
        raise ZeroDivisionError

    first = next(model.parameters())
    handle = first.register_hook(stop)
    with contextlib.suppress(ZeroDivisionError):
        backward(model)
    handle.remove()


def zeros_by_hand(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    backward(model)
    for p in model.parameters():
        if p.grad is not None:
            p.grad.data.zero_()


def functional(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    given = {name: p.detach() for name, p in model.named_parameters()}
    x, y = ODD

    def loss(one: dict[str, Tensor]) -> Tensor:
        out: Tensor = torch.func.functional_call(model, one, (x,))
        return nn.functional.cross_entropy(out.flatten(0, 1), y.flatten())

    torch.func.grad(loss)(given)


@pytest.mark.parametrize(
    "before", [nothing, zeros, several, not_a_number, grad_alone, evaluation, raising, functional, zeros_by_hand]
)  # fmt: skip
def test_a_backward_without_a_step_leaves_nothing(before: Callable[..., None], tmp_path: Path) -> None:
    clean(tmp_path)
    model = made(Plain)
    with watched(model, optimizer := sgd(model), tmp_path):
        for batch in batches(4):
            before(model, optimizer)
            step(model, optimizer, batch)
    assert_same(tmp_path)


def test_a_discarded_backward_before_accumulation_or_of_a_part(tmp_path: Path) -> None:
    """Two micro-batches are one step, also if another backward came before them; what is zero is recorded as zero."""
    for study in ("clean", "mine"):
        model = made(Plain)
        extra = nn.Linear(4, 4, bias=False)
        model.extra = extra
        with watched(model, optimizer := sgd(model), tmp_path, study=study):
            for one, two in zip(batches(4), batches(4, seed=2), strict=True):
                if study == "mine":
                    (100 * (loss_of(model, ODD) + extra(torch.ones(4)).sum())).backward()
                optimizer.zero_grad(set_to_none=False)
                for batch in (one, two):
                    loss_of(model, batch).backward()  # type: ignore[no-untyped-call]
                optimizer.step()
    found = normstudy.load(tmp_path / "mine").modules
    assert set(found.loc[found["module"] == "extra", "grad_norm"]) == {0.0}
    for study in ("clean", "mine"):
        rows = normstudy.load(tmp_path / study)
        total = rows.modules[rows.modules["module"] != "extra"].drop(columns="run_id").reset_index(drop=True)
        residual = rows.residual.drop(columns="run_id")
        if study == "clean":
            want = total, residual
    pd.testing.assert_frame_equal(want[0], total, rtol=1e-5)
    pd.testing.assert_frame_equal(want[1], residual, rtol=1e-5)


def test_two_losses_of_one_forward_and_two_forwards_of_one_loss(tmp_path: Path) -> None:
    """The first one's residual gradients would have to be added before squaring, so they are unknown, not wrong."""
    clean(tmp_path)
    for study, halves in (("mine", 2), ("pair", 1)):
        model = made(Plain)
        with watched(model, optimizer := sgd(model), tmp_path, study=study):
            for batch in batches(4):
                optimizer.zero_grad()
                if halves == 2:
                    loss = loss_of(model, batch)
                    (0.25 * loss).backward(retain_graph=True)  # type: ignore[no-untyped-call]
                    (0.75 * loss).backward()  # type: ignore[no-untyped-call]
                else:
                    (0.5 * loss_of(model, batch) + 0.5 * loss_of(model, batch)).backward()  # type: ignore[no-untyped-call]
                optimizer.step()
    mine, pair, want = (normstudy.load(tmp_path / study) for study in ("mine", "pair", "clean"))
    for found in (mine, pair):
        assert found.steps["grad_norm"].tolist() == pytest.approx(want.steps["grad_norm"].tolist(), rel=1e-5)
        assert found.residual["rms"].tolist() == pytest.approx(want.residual["rms"].tolist(), rel=1e-5)
    assert mine.residual["grad_norm"].isna().all()
    halved = (want.residual["grad_norm"] / math.sqrt(2)).tolist()
    assert pair.residual["grad_norm"].tolist() == pytest.approx(halved, rel=1e-5)


class Checkpointed(Plain):
    reentrant = True

    def forward(self, tokens: Tensor) -> Tensor:
        d = self.decoder
        x = d.embed(tokens) + d.pos(torch.arange(tokens.shape[1]))
        for block in d.blocks:
            x = checkpoint(block, x, use_reentrant=self.reentrant)
        logits: Tensor = d.head(d.norm(x))
        return logits


class CheckpointedAnew(Checkpointed):
    reentrant = False


def test_reentrant_checkpoints_around_blocks(tmp_path: Path) -> None:
    """Each is a backward inside of the outer one, also of a block whose parameters are frozen."""

    for study, kind in (("clean", Plain), ("mine", Checkpointed)):
        model = made(kind)
        model.decoder.blocks[1].requires_grad_(False)  # type: ignore[union-attr, index, operator]
        with watched(model, optimizer := sgd(model), tmp_path, study=study):
            for batch in batches(3):
                step(model, optimizer, batch)
    assert_same(tmp_path)


class Twice(torch.optim.SGD):
    def step(self, closure: Any = None) -> Any:
        return super().step(closure)


@pytest.mark.parametrize("closed", [False, True])
def test_a_step_that_calls_its_superclass_is_one(closed: bool, tmp_path: Path) -> None:
    """Also after a step that raised."""
    clean(tmp_path)
    model = made(Plain)
    with watched(model, optimizer := Twice(model.parameters(), lr=0.1), tmp_path):
        for batch in batches(4):
            if closed:

                def closure(batch: Batch = batch) -> Tensor:
                    optimizer.zero_grad()
                    loss = loss_of(model, batch)
                    loss.backward()  # type: ignore[no-untyped-call]
                    return loss

                optimizer.step(closure)
            else:
                step(model, optimizer, batch)
    assert_same(tmp_path)
    with watched(model, optimizer, tmp_path, study="raised"):
        group = optimizer.param_groups[0]
        for i, batch in enumerate(batches(3)):
            group["lr"] = None if i == 1 else 0.1
            with contextlib.suppress(TypeError):
                step(model, optimizer, batch)
    assert normstudy.load(tmp_path / "raised").steps["step"].tolist() == [0, 1, 2]


def test_parameters_that_change_otherwise(tmp_path: Path) -> None:
    """A teacher that averages the student, a block that is unfrozen, and one that no optimizer has."""

    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.student, self.teacher, self.loose = Encoder(), Encoder(), nn.Linear(2, 2, bias=False)
            self.teacher.requires_grad_(False)

        def forward(self, tokens: Tensor) -> Tensor:
            out: Tensor = self.student(tokens) + self.loose(torch.ones(2)).sum()
            return out

    model = made(Both)
    first = model.student.layers.layers[0]  # type: ignore[union-attr, index]
    first.requires_grad_(False)  # type: ignore[union-attr, operator]
    optimizer = torch.optim.SGD(model.student.parameters(), lr=0.1)  # type: ignore[union-attr]
    params, grads = [], []
    with watched(model, optimizer, tmp_path, every=1) as w:
        assert w.layout.blocks[0] is first
        for i, batch in enumerate(batches(4)):
            if i == 2:
                first.requires_grad_(True)  # type: ignore[union-attr, operator]
            optimizer.zero_grad()
            loss_of(model, batch).backward()  # type: ignore[no-untyped-call]
            params.append(math.sqrt(sum(float(p.detach().square().sum()) for p in model.parameters())))
            trained = [p.grad for p in model.student.parameters() if p.grad is not None]  # type: ignore[union-attr]
            grads.append(math.sqrt(sum(float(g.square().sum()) for g in trained)))
            optimizer.step()
            for one, other in zip(model.teacher.parameters(), model.student.parameters(), strict=True):  # type: ignore[union-attr]
                one.data.lerp_(other.data, 0.5)
    steps = normstudy.load(tmp_path / "mine").steps
    assert steps["param_norm"].tolist() == pytest.approx(params, rel=1e-5)
    assert steps["grad_norm"].tolist() == pytest.approx(grads, rel=1e-5)
    assert steps["clip_factor"].tolist() == pytest.approx([1.0] * 4, rel=1e-5)


def test_a_parameter_that_is_added_ends_the_watch(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    model = made(Plain)
    with watched(model, optimizer := sgd(model), tmp_path):
        step(model, optimizer, batches(1)[0])
        elsewhere = nn.Linear(2, 2)
        optimizer.add_param_group({"params": list(elsewhere.parameters())})
        step(model, optimizer, batches(1)[0])
        model.late = nn.Linear(2, 2)
        optimizer.add_param_group({"params": list(model.late.parameters())})
        step(model, optimizer, batches(1)[0])
    assert "a parameter was added to the model during the watch" in capfd.readouterr().err
    found = normstudy.load(tmp_path / "mine")
    assert found.steps["step"].tolist()[:2] == [0, 1]
    assert found.runs["status"].tolist() == ["failed"]


def test_gradients_by_hand_are_recorded_without_a_factor(tmp_path: Path) -> None:
    clean(tmp_path)
    model = made(Plain)
    with watched(model, optimizer := sgd(model), tmp_path):
        for batch in batches(4):
            for p, g in zip(
                model.parameters(), torch.autograd.grad(loss_of(model, batch), list(model.parameters())), strict=True
            ):
                p.grad = g
            optimizer.step()
    mine, want = (normstudy.load(tmp_path / study) for study in ("mine", "clean"))
    assert mine.steps["grad_norm"].tolist() == pytest.approx(want.steps["grad_norm"].tolist(), rel=1e-5)
    assert mine.steps["clip_factor"].isna().all()
    pd.testing.assert_frame_equal(
        mine.modules.drop(columns="run_id"), want.modules.drop(columns="run_id"), rtol=1e-5, atol=1e-9
    )


def test_a_block_that_runs_several_times_has_no_points(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    class Shared(Plain):
        def __init__(self) -> None:
            super().__init__()
            self.decoder.blocks = nn.ModuleList([self.decoder.blocks[0]] * 3)

    model = made(Shared)
    with watched(model, optimizer := sgd(model), tmp_path):
        step(model, optimizer, batches(1)[0])
    assert "the model's blocks run several times in a pass" in capfd.readouterr().err
    found = normstudy.load(tmp_path / "mine")
    assert found.residual["rms"].isna().all()
    assert found.modules["grad_norm"].notna().all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_another_default_type(dtype: torch.dtype, tmp_path: Path) -> None:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        clean(tmp_path)
    finally:
        torch.set_default_dtype(before)
    found = normstudy.load(tmp_path / "clean")
    assert len(found.steps) == 4
    assert found.residual.notna().all(axis=None)
    assert found.steps["grad_norm"].notna().all()


def test_a_loss_that_is_logged_before_its_backward_when_compiled(tmp_path: Path) -> None:
    torch._dynamo.reset()
    model, losses = made(Plain), []
    compiled = torch.compile(model, backend="eager")
    with watched(model, optimizer := sgd(model), tmp_path) as w:
        for batch in batches(4):
            optimizer.zero_grad()
            loss = loss_of(compiled, batch)  # type: ignore[arg-type]
            losses.append(loss.item())
            w.log(train_loss=loss.item())
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    torch._dynamo.reset()
    assert normstudy.load(tmp_path / "mine").steps["train_loss"].tolist() == pytest.approx(losses, rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn, torch.complex64, "meta"])
def test_frozen_parameters_of_other_types(dtype: Any, tmp_path: Path) -> None:
    """Integers of a quantized model, and what lies on no device, have no norm, so the total has none."""
    values = torch.tensor([[3.0, 4.0]])
    model = made(Plain)
    frozen = values.to("meta") if dtype == "meta" else values.to(dtype)
    model.frozen = nn.Module()
    model.frozen.weight = nn.Parameter(frozen, requires_grad=False)
    with watched(model, optimizer := sgd(model), tmp_path):
        step(model, optimizer, batches(1)[0])
    found = normstudy.load(tmp_path / "mine")
    norm = found.modules.set_index("module")["param_norm"]["frozen"]
    unknown = dtype in (torch.int8, "meta")
    assert math.isnan(norm) if unknown else norm == 5.0
    assert found.steps["param_norm"].isna().tolist() == [unknown]
    assert found.runs["nonfinite_step"].isna().all()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch's own modules
@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("kind", "frozen"), [(Plain, False), (Plain, True), (CheckpointedAnew, False), (Checkpointed, False)]
)
def test_a_compiled_model_is_recorded_as_a_plain_one(
    backend: str, kind: Callable[[], nn.Module], frozen: bool, tmp_path: Path
) -> None:
    """Also where it runs twice before one backward, and where backwards are discarded between its steps."""
    for study in ("plain", "compiled"):
        torch._dynamo.reset()
        model = made(kind if study == "compiled" else Plain)
        for part in (model.decoder.embed, model.decoder.pos, model.decoder.blocks[0]) if frozen else ():  # type: ignore[union-attr, index, operator]
            part.requires_grad_(False)  # type: ignore[union-attr]
        with watched(model, optimizer := sgd(model), tmp_path, study=study):
            called: Any = torch.compile(model, backend=backend) if study == "compiled" else model
            for batch in batches(3):
                for before in (zeros, several, evaluation):
                    before(called, optimizer)
                torch.autograd.grad(loss_of(called, ODD), optimizer.param_groups[0]["params"])
                optimizer.zero_grad()
                (loss_of(called, batch) + loss_of(called, ODD)).backward()  # type: ignore[no-untyped-call]
                for one in (batch, ODD):
                    loss_of(called, one).backward()  # type: ignore[no-untyped-call]
                optimizer.step()
        backward(called)  # its graphs outlive the watch
    torch._dynamo.reset()
    assert_same(tmp_path, "compiled", "plain", rtol=1e-4)
    residual = normstudy.load(tmp_path / "compiled").residual.groupby("layer")
    assert residual["rms"].count().tolist() == ([0, 0, 3, 3] if frozen else [3, 3, 3, 3])


def test_two_backwards_through_one_compiled_pass(tmp_path: Path) -> None:
    torch._dynamo.reset()
    model = made(Plain)
    with watched(model, optimizer := sgd(model), tmp_path):
        compiled: Any = torch.compile(model, backend="aot_eager")
        for batch in batches(2):
            optimizer.zero_grad()
            loss = loss_of(compiled, batch)
            loss.backward(retain_graph=True)  # type: ignore[no-untyped-call]
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    torch._dynamo.reset()
    found = normstudy.load(tmp_path / "mine").residual
    assert found["grad_norm"].isna().all()
    assert found["rms"].notna().all()


def test_a_stream_that_begins_at_a_leaf_leaves_no_hook_on_it(tmp_path: Path) -> None:
    class Latent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.latent = nn.Parameter(torch.randn(2, 8, 16))
            self.layers = Encoder().layers

        def forward(self) -> Tensor:
            out: Tensor = self.layers(self.latent)
            return out

    model = made(Latent)
    with watched(model, optimizer := sgd(model), tmp_path):
        for _ in range(3):
            optimizer.zero_grad()
            model().square().mean().backward()
            optimizer.step()
    assert not model.latent._backward_hooks
    found = normstudy.load(tmp_path / "mine").residual
    assert found["rms"].notna().all()
    assert found.groupby("layer")["grad_norm"].count().tolist() == [0, 3, 3, 3]


def test_clipping_between_backwards_that_reach_different_parameters(tmp_path: Path) -> None:
    model = nn.ModuleDict({"a": nn.Linear(4, 4), "b": nn.Linear(4, 4)})
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x, want = torch.ones(2, 4), []
    with watched(model, optimizer, tmp_path):
        for _ in range(3):
            optimizer.zero_grad()
            (9 * model["b"](model["a"](x))).square().sum().backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            (9 * model["a"](x)).square().sum().backward()
            want.append(math.sqrt(sum(float(p.grad.square().sum()) for p in model.parameters() if p.grad is not None)))
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
    steps = normstudy.load(tmp_path / "mine").steps
    assert steps["grad_norm"].tolist() == pytest.approx(want, rel=1e-5)
    assert steps["clip_factor"].tolist() == pytest.approx([1 / one for one in want], rel=1e-4)


def test_a_closure_that_raises_and_a_step_that_is_tried_again(tmp_path: Path) -> None:
    def deeper(calls: int, call: Callable[[], Any]) -> None:
        deeper(calls - 1, call) if calls else call()

    class Once(torch.optim.SGD):
        failing = True

        def step(self, closure: Any = None) -> Any:
            if self.failing and closure is None:
                self.failing = False
                raise ZeroDivisionError
            return super().step(closure)

    model = made(Plain)
    optimizer = Once(model.parameters(), lr=0.1)

    def closure(stops: bool = False) -> Tensor:
        optimizer.zero_grad()
        loss = loss_of(model, ODD)
        loss.backward()  # type: ignore[no-untyped-call]
        if stops:
            raise ZeroDivisionError
        return loss

    want = []
    with watched(model, optimizer, tmp_path):
        with contextlib.suppress(ZeroDivisionError):
            optimizer.step(lambda: closure(stops=True))
        for _ in range(3):
            deeper(5, lambda: optimizer.step(closure))
        closure()
        want.append(nn.utils.clip_grad_norm_(model.parameters(), 0.01).item())
        for _ in range(2):
            with contextlib.suppress(ZeroDivisionError):
                optimizer.step()
    steps = normstudy.load(tmp_path / "mine").steps
    assert steps["step"].tolist() == [0, 1, 2, 3, 4]
    assert steps["grad_norm"].iloc[-1:].tolist() == pytest.approx(want, rel=1e-5)
    assert steps["clip_factor"].iloc[-1:].tolist() == pytest.approx([0.01 / want[0]], rel=1e-3)


def test_a_backward_before_a_closure_that_begins_anew(tmp_path: Path) -> None:
    clean(tmp_path)
    model = made(Plain)
    with watched(model, optimizer := sgd(model), tmp_path):
        for batch in batches(4):

            def closure(batch: Batch = batch) -> Tensor:
                optimizer.zero_grad()
                loss = loss_of(model, batch)
                loss.backward()  # type: ignore[no-untyped-call]
                return loss

            backward(model)
            optimizer.step(closure)
    assert_same(tmp_path)


def test_each_block_twice_has_no_points(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    class Doubled(Plain):
        def forward(self, tokens: Tensor) -> Tensor:
            d = self.decoder
            x = d.embed(tokens) + d.pos(torch.arange(tokens.shape[1]))
            for block in d.blocks:
                x = block(block(x))
            logits: Tensor = d.head(d.norm(x))
            return logits

    model = made(Doubled)
    with watched(model, optimizer := sgd(model), tmp_path):
        step(model, optimizer, batches(1)[0])
    assert "the model's blocks run several times in a pass" in capfd.readouterr().err
    assert normstudy.load(tmp_path / "mine").residual["rms"].isna().all()


def test_a_backward_after_the_end_hooks_nothing(tmp_path: Path) -> None:
    model = made(Plain)
    model.decoder.head.requires_grad_(False)  # type: ignore[union-attr, operator]
    with watched(model, optimizer := sgd(model), tmp_path):
        step(model, optimizer, batches(1)[0])
        loss = loss_of(model, ODD)
    model.decoder.head.requires_grad_(True)  # type: ignore[union-attr, operator]
    loss.backward()  # type: ignore[no-untyped-call]
    assert not any(p._post_accumulate_grad_hooks for p in model.parameters())


@pytest.mark.parametrize("size", [1e30, math.inf])
def test_a_large_residual_stream_has_its_size(size: float, tmp_path: Path) -> None:
    model = made(Plain)
    with torch.no_grad():
        model.decoder.embed.weight.fill_(size)  # type: ignore[union-attr, operator]
    with watched(model, optimizer := sgd(model), tmp_path):
        step(model, optimizer, batches(1)[0])
    assert normstudy.load(tmp_path / "mine").residual["rms"][0] == pytest.approx(size)


def test_gradients_that_vanish_have_their_size(tmp_path: Path) -> None:
    """A loss that is 1e24 times smaller has gradients that are 1e24 times smaller."""
    for study, factor in (("clean", 1.0), ("mine", 1e-24)):
        model = made(Plain)
        with watched(model, optimizer := sgd(model), tmp_path, study=study):
            backward(model, factor)
            optimizer.step()
    clean, mine = (normstudy.load(tmp_path / study) for study in ("clean", "mine"))
    for table in ("steps", "modules", "residual"):
        found, want = (getattr(one, table)["grad_norm"].to_numpy() for one in (mine, clean))
        assert (found * 1e24).tolist() == pytest.approx(want.tolist(), rel=1e-4), table
    assert mine.steps["clip_factor"].tolist() == [1.0]
