"""Generate a large study, with a sweep's files but made-up numbers, for row f and scripts/scaling.py."""

from __future__ import annotations

import datetime
import itertools
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from normstudy.config import ModelConfig, RunConfig, ScheduleConfig, run_id
from normstudy.study import parquet, schema

Array = np.ndarray[tuple[int, ...], np.dtype[np.floating]]
Columns = dict[str, Array]  # the columns of a series table in order, without run_id

PLACEMENTS = ("post", "pre")  # in the order in which run_ids sort, like the next two tuples
PEAK_LRS = (3e-4, 1e-3, 2e-3, 3e-3, 1e-2)  # few enough that a figure has a panel for each and draws every run
WARMUPS = (0, 20, 50, 100, 200)
CELLS = len(PLACEMENTS) * len(PEAK_LRS) * len(WARMUPS)
IN_BLOCK = ("attn_in", "attn_out", "mlp_in", "mlp_out", "norm1", "norm2")  # module names that training records
OUTSIDE = {"post": ("embed", "pos", "unembed"), "pre": ("embed", "pos", "final_norm", "unembed")}
LN_VOCAB, H1, H2 = math.log(256), 3.26, 2.46  # nats per token: uniform, unigram and bigram entropy of a text in bytes
START = datetime.datetime(2025, 1, 1, tzinfo=datetime.UTC)
SHA256 = "5" * 64  # made-up hash of the training text


@dataclass(frozen=True)
class Size:
    """The size of a generated study: `seeds` runs in each of CELLS cells, all with the same n_steps and n_layers."""

    seeds: int
    n_steps: int
    n_layers: int

    def __str__(self) -> str:
        return f"{CELLS * self.seeds:,} runs x {self.n_steps:,} steps x {self.n_layers} layers"


def configs(study: Path, size: Size) -> list[RunConfig]:
    """Return the configs: `size.seeds` runs for each placement, learning rate and warmup, with defaults elsewhere."""
    return [
        RunConfig(
            study=study.name, results_dir=str(study.parent), seed=seed,
            model=ModelConfig(placement=placement, n_layers=size.n_layers),
            schedule=ScheduleConfig(peak_lr=peak_lr, warmup_steps=warmup, n_steps=size.n_steps),
        )
        for placement, peak_lr, warmup, seed in itertools.product(PLACEMENTS, PEAK_LRS, WARMUPS, range(size.seeds))
    ]  # fmt: skip


def write_study(study: Path, size: Size, seed: int = 0) -> None:
    """Write a study of finished runs, with a file per run and window of steps; equal seeds give equal bytes."""
    runs = dict(sorted((run_id(config, SHA256), config) for config in configs(study, size)))
    for table in schema.TABLES:
        folder = study / "tables" / table
        folder.mkdir(parents=True)
        (folder / schema.SCHEMA_FILE).write_bytes(parquet.encode(table, schema.SCHEMAS[table].empty_table()))
    window = schema.window_size(size.n_steps)
    for number, (name, config) in enumerate(runs.items()):
        row, series = run_rows(name, config, np.random.default_rng([seed, number]))
        content = pa.Table.from_pylist([row], schema.SCHEMAS["runs"])
        (study / "tables" / "runs" / f"{name}.parquet").write_bytes(parquet.encode("runs", content))
        for table, columns in series.items():
            null = {"val_loss": np.isnan, "layer": np.signbit}
            arrays = [pa.array(v, mask=null[c](v) if c in null else None) for c, v in columns.items()]
            content = pa.table([pa.repeat(name, len(arrays[0])), *arrays], schema.SCHEMAS[table].names)
            places = np.searchsorted(columns["step"], range(0, size.n_steps + window, window))
            for i, (first, end) in enumerate(itertools.pairwise(places)):
                part = content.slice(first, end - first).cast(schema.SCHEMAS[table])
                (study / "tables" / table / f"{name}-{i:03d}.parquet").write_bytes(parquet.encode(table, part))


def run_rows(name: str, config: RunConfig, rng: np.random.Generator) -> tuple[dict[str, object], dict[str, Columns]]:
    """Make one run's row of `runs` and noisy curves; post-norm with a high learning rate and short warmup is stuck."""
    m, s, p = config.model, config.schedule, config.probe
    stuck = m.placement == "post" and s.peak_lr >= 3e-3 and s.warmup_steps <= 20
    t, depth = np.arange(s.n_steps), np.arange(m.n_layers + 1)
    lr = s.peak_lr * np.minimum(1.0, (t + 1) / max(1, s.warmup_steps))
    end = (H1 - 0.02 if stuck else 2.1 - 0.05 * math.log10(s.peak_lr / 1e-3)) + rng.normal(0, 0.013)
    loss = end + (LN_VOCAB - end) * np.exp(-12 * t / s.n_steps)

    def noisy(values: Array, spread: float, *shape: int) -> Array:
        return np.asarray(values * rng.lognormal(0, spread, shape or values.shape)).ravel()

    steps = {
        "step": t, "train_loss": noisy(loss, 0.03), "val_loss": np.where(t % config.eval.every == 0, loss, np.nan),
        "lr": lr, "grad_norm": noisy(0.3 + np.exp(-4 * t / s.n_steps), 0.15), "param_norm": 70 + np.cumsum(lr),
        "update_norm": noisy(300 * lr, 0.05),
    }  # fmt: skip
    probed = t[(t < p.dense_steps) | (t % p.every == 0) | (t == s.n_steps - 1)]
    layers = np.repeat([*range(m.n_layers), -1], [len(IN_BLOCK)] * m.n_layers + [len(OUTSIDE[m.placement])])
    kinds = [*IN_BLOCK * m.n_layers, *OUTSIDE[m.placement]]
    shape, grad, rate = (len(probed), len(kinds)), steps["grad_norm"][probed, None], lr[probed, None]
    modules = {
        "step": np.repeat(probed, shape[1]), "layer": np.tile(layers, shape[0]), "module": np.tile(kinds, shape[0]),
        "grad_norm": noisy(grad / math.sqrt(m.n_layers), 0.2, *shape), "param_norm": noisy(8 + 30 * rate, 0.1, *shape),
        "update_norm": noisy(30 * rate, 0.1, *shape),
    }  # fmt: skip
    residual = {
        "step": np.repeat(probed, len(depth)), "layer": np.tile(depth, len(probed)),
        "rms": noisy(np.sqrt(1 + 0.8 * depth * (m.placement == "pre")), 0.02, len(probed), len(depth)),
        "grad_norm": noisy(0.05 * grad, 0.2, len(probed), len(depth)),
    }  # fmt: skip
    row: dict[str, object] = {
        "run_id": name, "status": "done", **schema.config_columns(config), "resolved_vocab_size": 256,
        "n_params": 50_000 * m.n_layers, "data_sha256": SHA256, "bytes_per_token": 1.0, "ln_vocab": LN_VOCAB,
        "unigram_entropy": H1, "bigram_entropy": H2, "final_val_loss": end, "final_train_loss": end,
        "wall_time_s": 60.0, "started_at": START, "finished_at": START, "git_commit": "0" * 40, "python": "3.11.7",
        "torch": "2.13.0", "cpu_capability": "AVX2", "blas": "openblas 0.3.31 Haswell", "device": "cpu",
    }  # fmt: skip
    types = {"step": np.int32, "layer": np.int32, "module": np.str_}
    series = {"steps": steps, "modules": modules, "residual": residual}
    return row, {t: {c: v.astype(types.get(c, np.float32)) for c, v in rows.items()} for t, rows in series.items()}
