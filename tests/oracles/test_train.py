"""train_batch against a plain loop over one run with torch.optim, and against itself in other batches.

The plain loop shares with train_batch the model, the draw of the parameters and the batches, which have other oracles.
It implements again the forward over many runs, the gradients, the norms, the clipping, the updates and the schedule of
measurements.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from threadpoolctl import threadpool_info
from torch import Tensor
from torch.nn import functional as F

from normstudy import reference
from normstudy.config import (
    DataConfig,
    EvalConfig,
    ModelConfig,
    OptimizerConfig,
    ProbeConfig,
    RunConfig,
    ScheduleConfig,
    late_step,
)
from normstudy.data import texts
from normstudy.model import init, transformer
from normstudy.model.transformer import Transformer
from normstudy.placements import PLACEMENTS
from normstudy.study import schema
from normstudy.training import batch, probes

torch.set_num_threads(1)

TEXT = texts.load(DataConfig(name="synthetic"))
KINDS = [(placement, norm) for placement in ("pre", "post") for norm in ("layernorm", "rmsnorm")]
# Every placement; together they cover every norm, QK-norm, activation, kind of positions and switch.
Fields = dict[str, object]  # of a ModelConfig
ALL: list[Fields] = [
    {"placement": "pre", "norm": "dyt", "qk_norm": "per_head", "positions": "rope"},
    {"placement": "pre", "norm": "rmsnorm", "activation": "swiglu", "positions": "rope", "biases": False},
    {"placement": "pre", "norm": "none"},
    {"placement": "post", "norm": "dyt", "qk_norm": "full"},
    {"placement": "post", "activation": "geglu", "positions": "sinusoidal"},
    {"placement": "peri", "embed_norm": True, "tied": True},
    {"placement": "peri", "norm": "rmsnorm", "activation": "relu", "embed_init": "scaled"},
    {"placement": "reordered"},
    {"placement": "reordered", "norm": "rmsnorm", "activation": "swiglu", "positions": "rope"},
    {"placement": "sub"},
    {"placement": "sub", "norm": "dyt", "activation": "geglu_tanh"},
    {"placement": "sub", "norm": "rmsnorm", "norm_eps": 1e-6, "positions": "rope", "rope_base": 5e5},
    {"placement": "deepnorm"},
    {"placement": "deepnorm", "init": "xavier", "force_init": True, "qk_norm": "per_head"},
    {"placement": "admin"},
    {"placement": "admin", "norm": "rmsnorm", "positions": "rope", "embed_init": "std"},
    {"placement": "lns", "init": "normal"},
    {"placement": "mix", "n_layers": 4},
    {"placement": "mix", "n_layers": 4, "norm": "rmsnorm", "qk_norm": "full"},
    {"placement": "b2t"},
    {"placement": "residual"},
    {"placement": "residual", "norm": "dyt", "tied": True, "activation": "relu"},
    {"placement": "hybrid"},
    {"placement": "hybrid", "first_block": "star", "norm": "rmsnorm", "positions": "rope"},
    {"placement": "rezero"},
    {"placement": "rezero", "positions": "none", "biases": False, "activation": "swiglu"},
    {"placement": "none"},
]
ALL += [{"placement": p, "n_layers": 4} for p in PLACEMENTS if p not in {values["placement"] for values in ALL}]


def name_of(values: Fields) -> str:
    """A test's id: pre-rmsnorm-n_layers=4."""
    return "-".join(str(v) if isinstance(v, str) else f"{k}={v}" for k, v in values.items())


# Larger than the rounding noise in the gradient of key biases, which is zero in exact arithmetic. With the default 1e-8
# Adam would scale that noise up to full updates, which no second program could reproduce.
EPS = 1e-5


def config(
    placement: str = "pre",
    norm: str = "auto",
    *,
    seed: int = 0,
    data_seed: int | None = None,
    n_steps: int = 6,
    peak_lr: float = 1e-2,
    warmup_steps: int = 0,
    optimizer: OptimizerConfig | None = None,
    shape: tuple[int, int, int, int, int] = (2, 16, 2, 3, 8),
    probe: ProbeConfig | None = None,
    eval_every: int = 3,
    model: Fields | None = None,
) -> RunConfig:
    n_layers, d_model, n_heads, batch_size, seq_len = shape
    values = {"placement": placement, "norm": norm, "n_layers": n_layers, "d_model": d_model, "n_heads": n_heads}
    return RunConfig(
        seed=seed,
        data_seed=data_seed,
        model=ModelConfig(**(values | (model or {}))),  # type: ignore[arg-type]
        data=DataConfig(name="synthetic", batch_size=batch_size, seq_len=seq_len),
        optimizer=optimizer or OptimizerConfig(eps=EPS),
        schedule=ScheduleConfig(peak_lr=peak_lr, warmup_steps=warmup_steps, n_steps=n_steps),
        probe=probe or ProbeConfig(),
        eval=EvalConfig(every=eval_every, windows=20),  # more than one chunk of 16, the last one shorter
    )


def trained(configs: list[RunConfig]) -> tuple[list[batch.Record], list[batch.End]]:
    """Everything that train_batch yields: the records, and the ends in the order of the runs."""
    items = list(batch.train_batch(configs, TEXT))
    records = [i for i in items if isinstance(i, batch.Record)]
    ends = sorted((i for i in items if isinstance(i, batch.End)), key=lambda e: e.run)
    assert [e.run for e in ends] == list(range(len(configs)))
    return records, ends


# ---- the plain loop -----------------------------------------------------------------------------------


@dataclass
class Plain:
    """One step of the plain loop. grad, param, update: module -> norm; rms, residual_grad: one number per layer."""

    loss: float
    val_loss: float
    grad: dict[tuple[int | None, str], float]
    param: dict[tuple[int | None, str], float]
    update: dict[tuple[int | None, str], float]
    rms: list[float]
    residual_grad: list[float]


def norm_tensors(*norms: str) -> list[str]:
    return [f"{norm}.{leaf}" for norm in norms for leaf in ("gamma", "beta", "a")]


# The tensors of each module, by hand. A model may lack some of them.
MODULES = {
    "attn_in": ["attn.q.weight", "attn.q.bias", "attn.k.weight", "attn.k.bias", "attn.v.weight", "attn.v.bias"],
    "attn_out": ["attn.out.weight", "attn.out.bias"],
    "mlp_in": ["mlp.gate.weight", "mlp.gate.bias", "mlp.w1.weight", "mlp.w1.bias"],
    "mlp_out": ["mlp.w2.weight", "mlp.w2.bias"],
    **{n: norm_tensors(n) for n in ("norm1", "norm2", "norm1_out", "norm2_out", "norm1_inner", "norm2_inner")},
    "qkv_norm": norm_tensors("attn.q_norm", "attn.k_norm", "q_norm", "k_norm", "v_norm"),
    "scale": ["omega1", "omega2", "scale"],
}
OUTSIDE = {
    "embed": ["embed"],
    "pos": ["pos"],
    "embed_norm": norm_tensors("embed_norm"),
    "final_norm": norm_tensors("final_norm"),
    "unembed": ["unembed.weight"],
}


def module_tensors(n_layers: int, names: list[str]) -> dict[tuple[int | None, str], list[str]]:
    wanted = {
        (layer, m): [f"blocks.{layer}.{t}" for t in tensors]
        for layer in range(n_layers)
        for m, tensors in MODULES.items()
    }
    wanted |= {(None, m): tensors for m, tensors in OUTSIDE.items()}
    present = {key: [t for t in tensors if t in names] for key, tensors in wanted.items()}
    return {key: tensors for key, tensors in present.items() if tensors}


def plain_model(c: RunConfig) -> Transformer:
    """The model at the start of a run. admin's omegas come from the oracle and the run's first batch."""
    model = Transformer(c.model, TEXT.vocab_size, c.data.seq_len)
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(init.draw(name, p.shape, c.model, c.seed))
        if c.model.placement == "admin":
            for name, omega in expected_omegas(model, c).items():
                model.get_parameter(name).fill_(omega)
    return model


def expected_omegas(model: Transformer, c: RunConfig) -> dict[str, float]:
    """Name -> omega, by the oracle."""
    arrays = {name: p.detach().numpy().astype(np.float64) for name, p in model.named_parameters()}
    names = [f"blocks.{layer}.omega{half}" for layer in range(c.model.n_layers) for half in (1, 2)]
    omegas = reference.admin_omegas(arrays, plain_batch(c, 0)[:, :-1].numpy(), c.model)
    return dict(zip(names, omegas, strict=True))


def plain_loss(model: Transformer, windows: Tensor) -> tuple[Tensor, list[Tensor]]:
    logits, residual = model(windows[:, :-1])
    return F.cross_entropy(logits.reshape(-1, logits.shape[-1]), windows[:, 1:].reshape(-1)), residual


def plain_batch(c: RunConfig, step: int) -> Tensor:
    assert c.data_seed is not None
    return torch.from_numpy(texts.batch(TEXT, c.data_seed, step, c.data.batch_size, c.data.seq_len))


def plain_run(c: RunConfig) -> tuple[list[Plain], float]:
    """Every step of a run trained alone, and the validation loss after the last update."""
    model = plain_model(c)
    names = [n for n, _ in model.named_parameters()]
    modules = module_tensors(c.model.n_layers, names)
    params = list(model.parameters())
    o = c.optimizer
    tables = () if o.decay != "matrices_but_embeddings" else ("embed", "pos")
    spared = [o.decay != "all" and (p.dim() < 2 or n in tables) for n, p in model.named_parameters()]
    groups = [
        {"params": [p for p, s in zip(params, spared, strict=True) if s == is_spared], "weight_decay": decay}
        for is_spared, decay in ((False, o.weight_decay), (True, 0.0))
    ]
    if o.name == "sgd":
        optimizer: torch.optim.Optimizer = torch.optim.SGD(groups, 1.0, momentum=o.momentum)
    else:
        kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[o.name]
        optimizer = kind(groups, 1.0, betas=(o.beta1, o.beta2), eps=o.eps)
    windows = torch.from_numpy(texts.validation_windows(TEXT, c.eval.windows, c.data.seq_len))

    def validate() -> float:
        with torch.no_grad():
            return plain_loss(model, windows)[0].item()

    def by_module(tensors: list[Tensor]) -> dict[tuple[int | None, str], float]:
        lookup = dict(zip(names, tensors, strict=True))
        return {
            key: torch.cat([lookup[t].detach().ravel().double() for t in ts]).norm().item()
            for key, ts in modules.items()
        }

    steps = []
    for step in range(c.schedule.n_steps):
        val_loss = validate()
        loss, residual = plain_loss(model, plain_batch(c, step))
        grads = list(torch.autograd.grad(loss, [*params, *residual]))
        before = [p.detach().clone() for p in params]
        for p, g in zip(params, grads, strict=False):
            p.grad = g.clone()
        if o.max_grad_norm is not None:
            torch.nn.utils.clip_grad_norm_(params, o.max_grad_norm)
        warmup = c.schedule.warmup_steps
        for group in optimizer.param_groups:
            group["lr"] = c.schedule.peak_lr * (min(1, (step + 1) / warmup) if warmup else 1)
        optimizer.step()
        steps.append(
            Plain(
                loss.item(),
                val_loss,
                by_module(grads[: len(params)]),
                by_module(before),
                by_module([old - p.detach() for p, old in zip(params, before, strict=True)]),
                [x.detach().double().square().mean().sqrt().item() for x in residual],
                [g.double().norm().item() for g in grads[len(params) :]],
            )
        )
    return steps, validate()


def root_sum_of_squares(norms: dict[tuple[int | None, str], float]) -> float:
    return float(np.sqrt(sum(n**2 for n in norms.values())))


def assert_equals_plain(configs: list[RunConfig], rtol: float = 2e-5) -> None:
    """Assert that train_batch yields for each run of a batch the numbers of the plain loop over that run."""
    records, ends = trained(configs)
    assert [r.step for r in records] == list(range(configs[0].schedule.n_steps))
    with torch.device("meta"):
        names = [n for n, _ in Transformer(configs[0].model, TEXT.vocab_size, 8).named_parameters()]
    rows = probes.modules_of(names)
    keys = list(zip(rows.layer, rows.name, strict=True))
    for run, c in enumerate(configs):
        steps, final = plain_run(c)
        assert set(keys) == set(steps[0].grad)
        for record, plain in zip(records, steps, strict=True):
            where = f"run {run} step {record.step}"
            assert record.runs[run] == run
            assert record.train_loss[run] == pytest.approx(plain.loss, rel=rtol), where
            if record.step % c.eval.every == 0 or record.step == late_step(c.schedule.n_steps):
                assert record.val_loss is not None
                assert record.val_loss[run] == pytest.approx(plain.val_loss, rel=rtol), where
            else:
                assert record.val_loss is None
            assert record.grad_norm[run] == pytest.approx(root_sum_of_squares(plain.grad), rel=rtol), where
            assert record.param_norm[run] == pytest.approx(root_sum_of_squares(plain.param), rel=rtol), where
            update_norm = root_sum_of_squares(plain.update)
            assert record.update_norm[run] == pytest.approx(update_norm, rel=rtol * 5, abs=1e-6), where
            assert record.probe is not None
            # Absolute tolerances allow for rounding: in a small gradient beside large ones, and in the plain
            # loop's update, which is a difference of float32 parameters.
            largest = max(plain.grad.values())
            for row, key in enumerate(keys):
                for got, expected, tolerance, atol in (
                    (record.probe.grad[row, run], plain.grad[key], rtol, 2e-6 * largest),
                    (record.probe.param[row, run], plain.param[key], rtol, 0.0),
                    (record.probe.update[row, run], plain.update[key], rtol * 5, 1e-7 * plain.param[key] + 1e-8),
                ):
                    assert got == pytest.approx(expected, rel=tolerance, abs=atol), (where, key)
            np.testing.assert_allclose(record.probe.rms[:, run], plain.rms, rtol=rtol, err_msg=where)
            np.testing.assert_allclose(
                record.probe.residual_grad[:, run], plain.residual_grad, rtol=rtol, err_msg=where
            )
        assert ends[run].nonfinite_step is None
        assert ends[run].final_val_loss == pytest.approx(final, rel=rtol)


@pytest.mark.parametrize(("placement", "norm"), KINDS)
def test_a_batch_equals_plain_adam_loops(placement: str, norm: str) -> None:
    """Losses, validation losses before the update of their step and after the last one, and every norm.

    Row 0 is thus the initialization, and dLoss/dx_l the result of `torch.autograd.grad` for a plain forward.
    """
    assert_equals_plain(
        [
            config(placement, norm, seed=0),
            config(placement, norm, seed=1, warmup_steps=4),
            config(placement, norm, seed=2, data_seed=0, peak_lr=1e-3, warmup_steps=6),
        ]
    )


@pytest.mark.parametrize("values", ALL, ids=name_of)
def test_a_batch_of_any_model_equals_plain_loops(values: Fields) -> None:
    """vmap computes every placement, norm, activation and kind of positions correctly: two optimizers, two seeds."""
    sgd = OptimizerConfig(name="sgd", momentum=0.5, max_grad_norm=0.5)
    for optimizer, n_steps in ((None, 3), (sgd, 2)):
        runs = [config(seed=s, n_steps=n_steps, optimizer=optimizer, model=values, eval_every=2) for s in (0, 1)]
        assert_equals_plain(runs, rtol=1e-4)


@pytest.mark.parametrize("placement", ["pre", "post"])
@pytest.mark.parametrize("name", ["adam", "adamw", "sgd"])
def test_optimizers_and_clipping_equal_plain_loops(name: str, placement: str) -> None:
    """A limit that binds, one that does not, and none, with weight decay and momentum.

    eps is larger: at 1e-5 the noise in the key biases, which decay, changes an update by 2e-3 from that in float64.
    """
    assert_equals_plain(
        [
            config(
                placement,
                seed=run,
                peak_lr=1e-2,
                optimizer=OptimizerConfig(
                    **({"momentum": 0.5} if name == "sgd" else {"eps": 1e-3}),
                    name=name,
                    weight_decay=0.1 * run,
                    max_grad_norm=limit,
                ),
            )
            for run, limit in enumerate((0.05, 1e6, None))
        ]
    )


@pytest.mark.parametrize(
    ("name", "decay", "model"),
    [
        ("adamw", "matrices", {"placement": "admin"}),  # its omegas are vectors
        ("adam", "matrices_but_embeddings", {"placement": "rezero"}),
        ("sgd", "matrices_but_embeddings", {"placement": "pre", "tied": True}),
    ],
)
def test_weight_decay_acts_on_the_chosen_tensors(name: str, decay: str, model: Fields) -> None:
    """In a batch of two rates of decay, which are high enough to show in every tensor."""
    assert_equals_plain(
        [
            config(
                seed=run,
                peak_lr=1e-2,
                model=model,
                optimizer=OptimizerConfig(
                    **({} if name == "sgd" else {"eps": 1e-3}), name=name, weight_decay=2.0 + run, decay=decay
                ),
            )
            for run in range(2)
        ]
    )


def test_gradient_norm_is_recorded_before_clipping() -> None:
    """The recorded norm ignores the limit; the update, lr times the clipped gradient, obeys it."""
    free = config(n_steps=1, optimizer=OptimizerConfig(name="sgd"))
    clipped = config(n_steps=1, optimizer=OptimizerConfig(name="sgd", max_grad_norm=0.05))
    (record,), _ = trained([free, clipped])
    assert record.grad_norm[1] == record.grad_norm[0] > 0.5
    assert record.update_norm[0] == pytest.approx(1e-2 * record.grad_norm[0], rel=1e-6)
    assert record.update_norm[1] == pytest.approx(1e-2 * 0.05, rel=1e-5)


def test_module_norms_recombine_to_the_global_norm() -> None:
    """Root-sum-of-squares over the modules, at every probed step, for gradients, parameters and updates."""
    records, _ = trained([config("post", seed=s, n_steps=12, probe=ProbeConfig(4, 3)) for s in range(2)])
    seen = 0
    for record in records:
        if record.probe is not None:
            seen += 1
            for part, whole in (
                (record.probe.grad, record.grad_norm),
                (record.probe.param, record.param_norm),
                (record.probe.update, record.update_norm),
            ):
                np.testing.assert_allclose(np.sqrt((part**2).sum(0)), whole, rtol=1e-12)
    assert seen == 4 + 2 + 1  # steps 0-3; 6, 9; 11


def test_the_lr_of_a_record_is_that_of_its_step() -> None:
    records, _ = trained([config(warmup_steps=4, peak_lr=8e-3), config(peak_lr=2e-3)])
    assert [r.lr[0] for r in records] == pytest.approx([2e-3, 4e-3, 6e-3, 8e-3, 8e-3, 8e-3])
    assert [r.lr[1] for r in records] == [2e-3] * 6


# ---- when what is measured ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("probe", "n_steps", "expected"),
    [
        (ProbeConfig(3, 4), 10, [0, 1, 2, 4, 8, 9]),
        (ProbeConfig(0, 4), 9, [0, 4, 8]),  # the last step is probed once
        (ProbeConfig(0, 100), 5, [0, 4]),
        (ProbeConfig(50, 20), 4, [0, 1, 2, 3]),
        (ProbeConfig(0, 1), 4, [0, 1, 2, 3]),
        (ProbeConfig(1, 100), 1, [0]),
    ],
)
def test_probe_schedule(probe: ProbeConfig, n_steps: int, expected: list[int]) -> None:
    assert [s for s in range(n_steps) if probes.is_probed(s, n_steps, probe)] == expected
    records, _ = trained([config(n_steps=n_steps, probe=probe, shape=(1, 4, 1, 1, 3))])
    assert [r.step for r in records if r.probe is not None] == expected


def test_default_probe_schedule() -> None:
    probed = [s for s in range(101) if probes.is_probed(s, 130, ProbeConfig())]
    assert probed == [*range(50), 60, 80, 100]


def test_evaluation_schedule() -> None:
    records, ends = trained([config(n_steps=7, eval_every=3)])
    assert [r.step for r in records if r.val_loss is not None] == [0, 3, 4, 6]  # and two thirds of the run
    assert records[-1].val_loss is not None
    assert ends[0].final_val_loss != records[-1].val_loss[0]  # before and after the last update


def test_recording_changes_nothing() -> None:
    """Probing and evaluating more often changes no other number, to the bit."""
    sparse, _ = trained([config(probe=ProbeConfig(0, 100), eval_every=100)])
    dense, _ = trained([config(probe=ProbeConfig(100, 1), eval_every=1)])
    for a, b in zip(sparse, dense, strict=True):
        assert (a.train_loss, a.grad_norm, a.param_norm, a.update_norm) == (
            b.train_loss,
            b.grad_norm,
            b.param_norm,
            b.update_norm,
        )


BASIC = ["attn_in", "attn_out", "mlp_in", "mlp_out"]
BOTH = [*BASIC, "norm1", "norm2"]
# The rows of a block, and the rows outside the blocks besides embed, pos and unembed.
ROWS: list[tuple[Fields, list[str], list[str]]] = [
    ({"placement": "pre"}, BOTH, ["final_norm"]),
    ({"placement": "post", "norm": "rmsnorm"}, BOTH, []),
    ({"placement": "peri", "norm": "dyt"}, [*BOTH, "norm1_out", "norm2_out"], ["final_norm"]),
    ({"placement": "reordered"}, [*BOTH, "qkv_norm"], ["final_norm"]),
    ({"placement": "sub"}, [*BOTH, "norm1_inner", "norm2_inner"], ["final_norm"]),
    ({"placement": "deepnorm"}, BOTH, []),
    ({"placement": "admin", "activation": "swiglu"}, [*BOTH, "scale"], []),
    ({"placement": "lns"}, BOTH, ["final_norm"]),
    ({"placement": "mix", "n_layers": 4}, BOTH, ["final_norm"]),
    ({"placement": "b2t"}, BOTH, []),
    ({"placement": "residual"}, BOTH, ["final_norm"]),
    ({"placement": "hybrid"}, [*BASIC, "norm2", "qkv_norm"], ["final_norm"]),
    ({"placement": "rezero"}, [*BASIC, "scale"], []),
    ({"placement": "none"}, BASIC, []),
    ({"placement": "pre", "qk_norm": "per_head", "norm": "dyt"}, [*BOTH, "qkv_norm"], ["final_norm"]),
    ({"placement": "post", "embed_norm": True, "biases": False}, BOTH, ["embed_norm"]),
    *[
        ({"placement": p, "norm": "none", "n_layers": 4}, [*BASIC, *(["scale"] if p == "admin" else [])], [])
        for p in PLACEMENTS
        if p not in ("rezero", "none")
    ],
]


@pytest.mark.parametrize(("values", "block", "outside"), ROWS, ids=lambda v: name_of(v) if isinstance(v, dict) else "")
def test_rows_of_modules_by_hand(values: Fields, block: list[str], outside: list[str]) -> None:
    """Every parameter belongs to one module, and a module without parameters has no row."""
    with torch.device("meta"):
        model = Transformer(config(model=values).model, 5, 3)
    names = [n for n, _ in model.named_parameters()]
    rows = probes.modules_of(names)
    keys = list(zip(rows.layer, rows.name, strict=True))
    expected = [(layer, m) for layer in range(len(model.blocks)) for m in block]
    expected += [(None, m) for m in ("embed", "pos", "unembed", *outside)]
    assert sorted(map(str, keys)) == sorted(map(str, expected))
    assert [layer for layer, _ in keys] == sorted((layer for layer, _ in keys), key=lambda x: (x is None, x or 0))
    assert {m for _, m in keys} <= set(schema.MODULES)
    by_hand = module_tensors(len(model.blocks), names)
    assert sorted(n for tensors in by_hand.values() for n in tensors) == sorted(names)
    for name, row in zip(names, rows.row_of_tensor, strict=True):
        assert name in by_hand[keys[row]]


def test_rows_of_modules_where_things_are_missing_or_only_first() -> None:
    """HybridNorm* has norm1 in block 0 only, a tied matrix counts as embed, and RoPE has no pos."""
    with torch.device("meta"):
        star = Transformer(config(model={"placement": "hybrid", "first_block": "star"}).model, 5, 3)
        tied = Transformer(config(model={"tied": True, "positions": "rope"}).model, 5, 3)
    rows = probes.modules_of([n for n, _ in star.named_parameters()])
    keys = list(zip(rows.layer, rows.name, strict=True))
    assert (0, "norm1") in keys
    assert (1, "norm1") not in keys
    rows = probes.modules_of([n for n, _ in tied.named_parameters()])
    assert [name for layer, name in zip(rows.layer, rows.name, strict=True) if layer is None] == ["embed", "final_norm"]


@pytest.mark.parametrize("values", ALL, ids=name_of)
def test_modules_of_any_model_recombine(values: Fields) -> None:
    """Root-sum-of-squares over the rows of `modules` is the global norm, for each of the three."""
    (record, *_), _ = trained([config(n_steps=1, model=values)])
    assert record.probe is not None
    for part, whole in (
        (record.probe.grad, record.grad_norm),
        (record.probe.param, record.param_norm),
        (record.probe.update, record.update_norm),
    ):
        np.testing.assert_allclose(np.sqrt((part**2).sum(0)), whole, rtol=1e-12)


def test_rezero_starts_as_the_identity() -> None:
    """At step 0 every x_l equals x_0, and the scales have a gradient but the sublayers have none."""
    (record, later, *_), _ = trained([config(model={"placement": "rezero"})])
    with torch.device("meta"):
        model = Transformer(config(model={"placement": "rezero"}).model, TEXT.vocab_size, 8)
    rows = probes.modules_of([n for n, _ in model.named_parameters()])
    assert record.probe is not None
    assert later.probe is not None
    for row, (layer, name) in enumerate(zip(rows.layer, rows.name, strict=True)):
        size = record.probe.grad[row, 0]
        assert (size == 0) == (layer is not None and name != "scale"), (layer, name)
        assert later.probe.grad[row, 0] > 0
    assert len(set(record.probe.rms[:, 0].tolist())) == 1


# ---- Admin's profiling --------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", ["layernorm", "rmsnorm", "dyt", "none"])
def test_profiling_equals_the_reference(norm: str) -> None:
    """In float64 to 1e-10, on a model without special values."""
    features = {"activation": "swiglu", "positions": "rope"} if norm == "rmsnorm" else {}
    c = config(norm=norm, model={"placement": "admin", "n_layers": 3, **features})
    rng = np.random.Generator(np.random.Philox(key=4))
    model = Transformer(c.model, TEXT.vocab_size, c.data.seq_len).double()
    with torch.no_grad():
        for name, p in model.named_parameters():
            gain = 1.0 if name.endswith(("gamma", "omega1", "omega2")) else 0.0
            p.copy_(torch.from_numpy(np.asarray(gain + 0.3 * rng.standard_normal(tuple(p.shape)))))
    tokens = plain_batch(c, 0)[:, :-1]
    params = {n: p.detach() for n, p in model.named_parameters()}
    before = {n: p.clone() for n, p in params.items()}
    got = init.profile(model, params, tokens)
    expected = expected_omegas(model, c)
    assert list(got) == list(expected)
    for name, omega in got.items():
        assert omega.shape == (16,)
        assert len(set(omega.tolist())) == 1
        assert omega[0].item() == pytest.approx(expected[name], rel=1e-10), name
    assert len({round(v, 6) for v in expected.values()}) == 6  # all differ, so a wrong order or layer would show
    assert all(torch.equal(p, before[n]) for n, p in params.items())


def test_a_run_of_admin_starts_from_its_own_first_batch() -> None:
    """Each run's omegas equal the oracle's on that run's batch at step 0, whatever the other runs of the batch."""
    runs = [
        config(seed=s, data_seed=d, model={"placement": "admin", "n_layers": 3}) for s, d in ((0, 0), (0, 5), (7, 0))
    ]
    model = transformer.build(runs[0], TEXT.vocab_size)
    started = batch.start(model, runs, TEXT)
    seen = []
    for r, c in enumerate(runs):
        plain = plain_model(c)
        for name, p in plain.named_parameters():
            torch.testing.assert_close(started[name][r], p.detach(), rtol=1e-5, atol=0)
        alone = batch.start(model, [c], TEXT)
        assert all(torch.equal(alone[name][0], started[name][r]) for name in alone)
        seen.append(tuple(started[f"blocks.{layer}.omega{half}"][r, 0].item() for layer in range(3) for half in (1, 2)))
    assert all(omegas[0] == 1 for omegas in seen)
    assert len({omegas[1] for omegas in seen}) == 3  # other batches, other parameters
    other = batch.start(transformer.build(config(), TEXT.vocab_size), [config()], TEXT)
    assert not [name for name in other if "omega" in name]


def test_after_profiling_every_sublayer_is_balanced() -> None:
    """In the initial model omega_{i+1}^2 = omega_i^2 Var(x_i) + Var(f_i), where hooks observe x_i and f_i.

    The variance of omega_i x_i + f_i is thus about omega_{i+1}^2. Norms give every x_i variance 1, so omega_{i+1}^2 is
    1 plus the sum of the variances of all earlier f. A later sublayer has a smaller share in the stream.
    """
    c = config(model={"placement": "admin", "n_layers": 6}, shape=(6, 32, 4, 8, 32))
    model = Transformer(c.model, TEXT.vocab_size, c.data.seq_len)
    started = {n: p[0] for n, p in batch.start(model, [c], TEXT).items()}
    seen: list[tuple[float, float, float]] = []

    def watch(_: object, args: tuple[Tensor], out: Tensor) -> None:
        omega = started[f"blocks.{len(seen) // 2}.omega{len(seen) % 2 + 1}"][0].item()
        x, f = args[0].double(), out.double()
        seen.append((omega**2 * x.var(correction=0).item(), f.var(correction=0).item(), (omega * x + f).var().item()))

    for block in model.blocks:
        block.attn.register_forward_hook(watch)
        block.mlp.register_forward_hook(watch)
    with torch.no_grad():
        torch.func.functional_call(model, started, (plain_batch(c, 0)[:, :-1],))
    omegas = [started[f"blocks.{layer}.omega{half}"][0].item() for layer in range(6) for half in (1, 2)]
    total = 1.0
    for (kept, gave, together), following in zip(seen[:-1], omegas[1:], strict=True):
        total += gave
        assert following**2 == pytest.approx(kept + gave, rel=1e-5)
        assert following**2 == pytest.approx(total, rel=0.05)
        assert together == pytest.approx(following**2, rel=0.25)
    shares = [gave / (kept + gave) for kept, gave, _ in seen]
    assert sum(shares[6:]) < 0.75 * sum(shares[:6])


# ---- both arms see the same batches -------------------------------------------------------------------


def test_both_arms_of_a_comparison_see_the_same_batches() -> None:
    """The rate is too small to change a float32 weight, so the loss at each step is that of the initial parameters on
    the batch of (data_seed, step): for both placements, warmups and seeds, whatever the runs were batched with.
    """
    still = {"peak_lr": 1e-30, "optimizer": OptimizerConfig(name="sgd"), "n_steps": 4}
    arms = [
        [config("pre", data_seed=7, **still), config("pre", data_seed=7, warmup_steps=3, seed=5, **still)],
        [config("post", data_seed=7, **still)],
        [config("post", "rmsnorm", data_seed=8, **still), config("post", "rmsnorm", data_seed=7, **still)],
    ]
    for configs in arms:
        records, _ = trained(configs)
        for run, c in enumerate(configs):
            model = plain_model(c)
            expected = [
                plain_loss(model, torch.from_numpy(texts.batch(TEXT, c.data_seed or 0, step, 3, 8)))[0].item()
                for step in range(4)
            ]
            assert [r.train_loss[run] for r in records] == pytest.approx(expected, rel=1e-6)
            assert len({round(x, 4) for x in expected}) == 4  # each step has another batch


def test_validation_loss_is_that_of_the_fixed_windows() -> None:
    """At step 0 it is the loss of the initial parameters on the windows that all seeds share."""
    configs = [config("pre", seed=s) for s in range(3)]
    records, _ = trained(configs)
    windows = torch.from_numpy(texts.validation_windows(TEXT, 20, 8))
    assert records[0].val_loss is not None
    for run, c in enumerate(configs):
        with torch.no_grad():
            direct = plain_loss(plain_model(c), windows)[0].item()
        assert records[0].val_loss[run] == pytest.approx(direct, rel=1e-6)


# ---- bits ---------------------------------------------------------------------------------------------


def bits(configs: list[RunConfig], order: list[int]) -> dict[int, list[bytes]]:
    """Run -> the bytes of all its numbers, one row per step and one for its end, when trained in this order."""
    records, ends = trained([configs[i] for i in order])
    out: dict[int, list[bytes]] = {i: [] for i in order}
    for r in records:
        for column, run in enumerate(r.runs):
            row = [r.train_loss[column], r.lr[column], r.grad_norm[column], r.param_norm[column], r.update_norm[column]]
            if r.val_loss is not None:
                row.append(r.val_loss[column])
            if r.probe is not None:
                parts = (r.probe.grad, r.probe.param, r.probe.update, r.probe.rms, r.probe.residual_grad)
                row += [value for part in parts for value in part[:, column]]
            out[order[run]].append(np.array(row).tobytes())
    for e in ends:
        out[order[e.run]].append(repr((e.final_val_loss, e.nonfinite_step)).encode())
    return out


def test_the_environment_of_the_bitwise_promise() -> None:
    assert os.environ["MKL_CBWR"] == "AUTO,STRICT"
    assert torch.get_num_threads() == 1
    assert {library["num_threads"] for library in threadpool_info()} == {1}


Shape = tuple[int, int, int, int, int]
SHAPES: list[tuple[Shape, int]] = [((2, 16, 2, 1, 8), 6), ((2, 24, 3, 3, 31), 4), ((2, 64, 4, 8, 64), 3)]


@pytest.mark.parametrize(
    ("shape", "n_steps", "placement", "norm", "name"),
    [
        (shape, n_steps, placement, norm, ("adam", "sgd")[(size + kind) % 2])
        for size, (shape, n_steps) in enumerate(SHAPES)
        for kind, (placement, norm) in enumerate(KINDS)
    ],
    ids=lambda v: f"d{v[1]}-h{v[2]}-B{v[3]}-T{v[4]}" if isinstance(v, tuple) else str(v),
)
def test_a_run_s_bits_do_not_depend_on_its_batch(
    shape: Shape, n_steps: int, placement: str, norm: str, name: str
) -> None:
    """Eight runs together, against one alone, three in another order, and the others in pairs.

    The runs differ in everything that may differ within a batch. At these shapes libraries compute the products of a
    batch differently from those of one run, unless the environment and contiguous factors prevent it. An optimizer
    works on single numbers, whatever block their gradients are from: each has every shape, with half of the kinds.
    """
    configs = [
        config(
            placement,
            norm,
            seed=s,
            n_steps=n_steps,
            shape=shape,
            peak_lr=3e-3 * (1 + s),
            warmup_steps=min(2 * s, n_steps),
            optimizer=OptimizerConfig(
                name=name,
                **({"momentum": 0.1 * s} if name == "sgd" else {"beta2": 0.98 if s % 2 else 0.999}),
                weight_decay=0.01 * (s % 3),
                max_grad_norm=None if s % 3 else 1.0,
            ),
        )
        for s in range(8)
    ]
    together = bits(configs, list(range(8)))
    for order in ([5], [7, 0, 2], [1, 3], [6, 4]):
        for run, rows in bits(configs, order).items():
            assert rows == together[run], f"run {run} in {order}"


MODELS = [
    *[(values, (2, 16, 2, 2, 8)) for values in ALL],
    *[
        (values | {"d_ff": 37}, (2, 24, 3, 3, 31))  # odd numbers of elements, so that vectorized loops have remainders
        for values in ALL
        if "glu" in str(values.get("activation")) or values["placement"] in ("hybrid", "admin", "residual")
    ],
]


@pytest.mark.parametrize(("values", "shape"), MODELS, ids=lambda v: name_of(v) if isinstance(v, dict) else f"d{v[1]}")
def test_any_model_trains_to_the_same_bits_in_a_batch(values: Fields, shape: Shape) -> None:
    """Four runs together, and the third of them alone; all train."""
    configs = [
        config(
            seed=s, n_steps=12, shape=shape, peak_lr=4e-3 * (1 + s), warmup_steps=s, model=values, eval_every=11,
            probe=ProbeConfig(2, 4), optimizer=OptimizerConfig(max_grad_norm=1.0 if s % 2 else None),
        )
        for s in range(4)
    ]  # fmt: skip
    together = bits(configs, [0, 1, 2, 3])
    assert bits(configs, [2])[2] == together[2]
    losses = [np.frombuffer(row)[0] for row in together[2][:-1]]
    assert len(losses) == 12
    assert losses[-1] < losses[0] - 0.1


# ---- runs that go bad ---------------------------------------------------------------------------------

BAD = {"optimizer": OptimizerConfig(name="sgd", max_grad_norm=None), "n_steps": 10}


def test_a_diverging_run_ends_at_its_first_non_finite_number() -> None:
    """The row of that step is kept, later rows do not exist, and the other runs keep their bits."""
    configs = [config(seed=0, **BAD), config(seed=1, peak_lr=1e20, **BAD), config(seed=2, **BAD)]
    records, ends = trained(configs)
    end = ends[1]
    assert end.final_val_loss is None
    assert end.nonfinite_step is not None
    assert 0 < end.nonfinite_step < 9
    rows = {r.step: r for r in records if 1 in r.runs}
    assert list(rows) == list(range(end.nonfinite_step + 1))
    for step, r in rows.items():
        column = r.runs.index(1)
        numbers = [r.train_loss[column], r.grad_norm[column]]
        assert np.isfinite(np.float32(numbers)).all() == (step < end.nonfinite_step)
    assert [r.step for r in records] == list(range(10))
    assert all(r.runs == ([0, 1, 2] if r.step <= end.nonfinite_step else [0, 2]) for r in records)
    with_it = bits(configs, [0, 1, 2])
    without = bits(configs, [0]) | bits(configs, [2])
    assert with_it[0] == without[0]
    assert with_it[2] == without[2]
    assert bits(configs, [1])[1] == with_it[1]


def test_a_batch_in_which_all_runs_diverge_just_ends() -> None:
    configs = [config(seed=s, peak_lr=rate, **BAD) for s, rate in enumerate((1e20, 1e25))]
    records, ends = trained(configs)
    assert all(e.nonfinite_step is not None and e.final_val_loss is None for e in ends)
    assert records[-1].step == max(e.nonfinite_step or 0 for e in ends) < 9


def test_a_run_that_breaks_in_its_last_update_says_so() -> None:
    """Every training loss is finite, but the evaluation after the last update is not."""
    bad = config(n_steps=1, peak_lr=1e38, optimizer=OptimizerConfig(name="sgd"))
    records, ends = trained([bad, replace(bad, schedule=replace(bad.schedule, peak_lr=1e-3))])
    assert np.isfinite(records[0].train_loss).all()
    assert (ends[0].final_val_loss, ends[0].nonfinite_step) == (None, 1)
    assert ends[1].final_val_loss is not None


def test_torch_s_global_generator_is_not_used() -> None:
    before = torch.get_rng_state()
    first = bits([config(n_steps=2)], [0])
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(4321)
    assert bits([config(n_steps=2)], [0]) == first
    torch.set_rng_state(before)
