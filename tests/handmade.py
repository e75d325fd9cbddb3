"""A small study written by hand through the store: plausible numbers, no training, the same bytes every time.

In the cell of the last placement, the first warmup, the largest rate and the deepest model, the first seed has a
run that diverged, the second one that is stuck, the third one that failed; every other run learned.
"""

from __future__ import annotations

import datetime
import hashlib
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from normstudy.config import (
    PLACEMENT_NAMES,
    DataConfig,
    EvalConfig,
    ModelConfig,
    ProbeConfig,
    RunConfig,
    ScheduleConfig,
    resolve,
    run_id,
)
from normstudy.study import schema, tables

STUDY = "handmade"
SHA256 = "5" * 64
LN_VOCAB, H1, H2 = math.log(256), 3.26, 2.46  # nats per token
BAD = ("diverged", "stuck", "failed")  # by position of the seed in the bad cell
EVAL_EVERY = 20  # steps
START = datetime.datetime(2025, 1, 1, tzinfo=datetime.UTC)

Rows = dict[str, dict[str, list[object]]]

FOURTEEN = PLACEMENT_NAMES[:14]  # what handmade_placements has, also where more are shipped one day


def handmade_config(
    root: Path,
    *,
    placement: str = "pre",
    n_layers: int = 2,
    peak_lr: float = 1e-3,
    warmup_steps: int = 0,
    seed: int = 0,
    n_steps: int = 60,
    norm: str = "layernorm",
    study: str = STUDY,
) -> RunConfig:
    """The configuration of one hand-made run; evaluations every 20 steps, the rest as the defaults."""
    return RunConfig(
        study=study,
        results_dir=str(root),
        seed=seed,
        model=ModelConfig(placement=placement, n_layers=n_layers, norm=norm),
        data=DataConfig(),
        schedule=ScheduleConfig(peak_lr=peak_lr, warmup_steps=warmup_steps, n_steps=n_steps),
        probe=ProbeConfig(),
        eval=EvalConfig(every=EVAL_EVERY),
    )


def target_loss(config: RunConfig) -> float:
    """Where a learned run ends, in nats per token: smooth in every setting."""
    s, m = config.schedule, config.model
    loss = 2.1 - 0.02 * math.log2(m.n_layers) - 0.05 * math.log10(s.peak_lr / 1e-3)
    loss += 0.0 if m.placement == "pre" else (0.1 if s.warmup_steps else 0.4)
    loss -= 0.02 * max(0, PLACEMENT_NAMES.index(m.placement) - 1)  # below post, each lower than the one before
    return loss + 0.013 * math.sin(7.0 * config.seed + m.n_layers)


def handmade_rows(config: RunConfig, fate: str = "learned") -> tuple[Rows, float | None, float]:
    """The series of one run, its final validation loss and its last training loss.

    fate: learned, stuck, diverged (ends at a non-finite loss half way) or failed (ends half way).
    """
    s, m, p = config.schedule, config.model, config.probe
    n = s.n_steps if fate in ("learned", "stuck") else s.n_steps // 2
    t = np.arange(n)
    end = H1 - 0.02 if fate == "stuck" else target_loss(config)
    smooth = end + (5.7 - end) * np.exp(-t / (s.n_steps / 12))
    train = smooth + 0.02 * np.sin(1.7 * t + config.seed)
    if fate == "diverged":
        train[-1] = math.inf
    lr = s.peak_lr * np.minimum(1.0, (t + 1) / max(1, s.warmup_steps))
    grad = 2.0 * np.exp(-t / s.n_steps) + 0.1 * np.sin(t + config.seed) ** 2
    steps: dict[str, list[object]] = {
        "step": t.tolist(),
        "train_loss": train.tolist(),
        "val_loss": [float(smooth[i]) + 0.01 if i % config.eval.every == 0 else None for i in t],
        "lr": lr.tolist(),
        "grad_norm": grad.tolist(),
        "param_norm": (70.0 + 0.01 * t).tolist(),
        "update_norm": (lr * 300).tolist(),
    }
    probed = [i for i in range(n) if i < p.dense_steps or i % p.every == 0 or i == s.n_steps - 1]
    modules: dict[str, list[object]] = {c.name: [] for c in schema.SCHEMAS["modules"] if c.name != "run_id"}
    residual: dict[str, list[object]] = {c.name: [] for c in schema.SCHEMAS["residual"] if c.name != "run_id"}
    for i in probed:
        # stuck and diverging runs lose the gradient of the early layers after the first updates
        decay = 1.0 if fate == "learned" else math.exp(-min(i, 20) / 8)
        for layer, module in module_places(config):
            depth = m.n_layers if layer is None else layer + 1
            closed = m.placement == "rezero" and i == 0 and layer is not None  # its scale starts at 0
            size = 0.0 if closed else grad[i] / (1 + schema.MODULES.index(module)) * depth**-0.5
            modules["step"].append(i)
            modules["layer"].append(layer)
            modules["module"].append(module)
            modules["grad_norm"].append(float(size * decay ** (m.n_layers - depth)))
            modules["param_norm"].append(0.0 if module == "pos" else 8.0 + 0.01 * i)
            modules["update_norm"].append(float(lr[i] * 30))
        for layer in range(m.n_layers + 1):
            residual["step"].append(i)
            residual["layer"].append(layer)
            residual["rms"].append(1.0 if m.placement == "post" else math.sqrt(1 + 0.8 * layer))
            residual["grad_norm"].append(float(0.05 * grad[i] * (layer + 1) ** -0.5 * decay ** (m.n_layers - layer)))
    val = None if fate == "diverged" else end + 0.01
    return {"steps": steps, "modules": modules, "residual": residual}, val, float(train[-1])


def module_places(config: RunConfig) -> list[tuple[int | None, str]]:
    """(layer, module) of every group of parameters of a run's model."""
    inside = ("attn_in", "attn_out", "mlp_in", "mlp_out", "norm1", "norm2")
    places: list[tuple[int | None, str]] = [
        (layer, module) for layer in range(config.model.n_layers) for module in inside
    ]
    last = ("final_norm",) if resolve(config.model).final_norm else ()
    return places + [(None, module) for module in ("embed", "pos", *last, "unembed")]


def write_handmade_run(
    study_dir: Path,
    config: RunConfig,
    fate: str = "learned",
    final_val_loss: float | None = None,
    columns: Mapping[str, object] | None = None,
) -> str:
    """Write one run, its series and its row; return its run_id.

    fate: as in handmade_rows, or running. columns: of the row, over those of the configuration; for values that a
    configuration takes only with a module behind them, such as a user's own block.
    """
    name = run_id(config, SHA256)
    if columns:
        name += "-" + hashlib.sha256(repr(sorted(columns.items())).encode()).hexdigest()[:10]
    half = "failed" if fate == "running" else fate
    rows, val, train = handmade_rows(config, half)
    val = val if final_val_loss is None else final_val_loss
    tables.prepare(study_dir)
    size = schema.window_size(config.schedule.n_steps)
    for window in range(math.ceil(len(rows["steps"]["step"]) / size)):
        inside = range(window * size, (window + 1) * size)
        tables.write_windows(study_dir, [(name, window, _only(rows, inside))])
    done = fate in ("learned", "stuck", "diverged")
    row = {
        "run_id": name,
        "status": "done" if done else fate,
        **schema.config_columns(config),
        **(columns or {}),
        "resolved_vocab_size": 256,
        "n_params": 10_000 * config.model.n_layers,
        "data_sha256": SHA256,
        "bytes_per_token": 1.0,
        "ln_vocab": LN_VOCAB,
        "unigram_entropy": H1,
        "bigram_entropy": H2,
        "final_val_loss": val if done else None,
        "final_train_loss": train if done and fate != "diverged" else None,
        "nonfinite_step": len(rows["steps"]["step"]) - 1 if fate == "diverged" else None,
        "wall_time_s": 1.5 if done else None,
        "started_at": START,
        "finished_at": START + datetime.timedelta(seconds=2) if done else None,
        "git_commit": "0" * 40,
        "python": "3.11.7",
        "torch": "2.13.0",
        "cpu_capability": "AVX2",
        "blas": "openblas 0.3.31 Haswell",
        "device": "cpu",
    }
    tables.write_runs(study_dir, [row])
    return name


def _only(rows: Rows, steps: range) -> Rows:
    keep = {table: [i for i, t in enumerate(columns["step"]) if t in steps] for table, columns in rows.items()}
    return {
        table: {name: [values[i] for i in keep[table]] for name, values in columns.items()}
        for table, columns in rows.items()
    }


def handmade_study(
    root: Path,
    *,
    n_layers: tuple[int, ...] = (2, 4),
    placements: tuple[str, ...] = ("pre", "post"),
    peak_lrs: tuple[float, ...] = (1e-3, 3e-3),
    warmups: tuple[int, ...] = (0, 20),
    seeds: tuple[int, ...] = (0, 1, 2),
    n_steps: int = 60,
    norm: str = "layernorm",
) -> Path:
    """Write the study of every combination under `root` and return its folder."""
    study_dir = root / STUDY
    bad_cell = (placements[-1], n_layers[-1], peak_lrs[-1], warmups[0])
    for placement in placements:
        for depth in n_layers:
            for peak_lr in peak_lrs:
                for warmup in warmups:
                    for i, seed in enumerate(seeds):
                        bad = (placement, depth, peak_lr, warmup) == bad_cell and i < len(BAD)
                        config = handmade_config(
                            root,
                            placement=placement,
                            n_layers=depth,
                            peak_lr=peak_lr,
                            warmup_steps=warmup,
                            seed=seed,
                            n_steps=n_steps,
                            norm=norm,
                        )
                        write_handmade_run(study_dir, config, BAD[i] if bad else "learned")
    return study_dir


def handmade_placements(root: Path) -> Path:
    """Write a study of all fourteen placements, 4 and 5 layers, warmup 0 and 20, 2 seeds, and return its folder.

    Un-warmed `none` at 5 layers has a diverged run and a stuck one.
    """
    return handmade_study(
        root, n_layers=(4, 5), placements=FOURTEEN, peak_lrs=(3e-3,), seeds=(0, 1), n_steps=30, norm="auto"
    )
