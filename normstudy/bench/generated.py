"""Write a large study of random numbers, in files like a sweep's, for the benchmark and scripts/scaling.py."""

import datetime
import itertools
import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from normstudy.config import ModelConfig, RunConfig, ScheduleConfig, run_id
from normstudy.study import parquet, schema

Columns = dict[str, np.ndarray[tuple[int], np.dtype[np.generic]]]  # column name -> values, without the column run_id

PLACEMENTS = ("post", "pre")
PEAK_LRS = (3e-4, 1e-3, 2e-3, 3e-3, 1e-2)  # few enough for a figure with a panel per rate
WARMUPS = (0, 20, 50, 100, 200)
CELLS = len(PLACEMENTS) * len(PEAK_LRS) * len(WARMUPS)
IN_BLOCK = ("attn_in", "attn_out", "mlp_in", "mlp_out", "norm1", "norm2")  # names of modules that training records
OUTSIDE = {"post": ("embed", "pos", "unembed"), "pre": ("embed", "pos", "final_norm", "unembed")}
NORMS = ("grad_norm", "param_norm", "update_norm")
LN_VOCAB, H1, H2 = math.log(256), 3.26, 2.46  # uniform, unigram and bigram entropy of a text, in nats per byte
START = datetime.datetime(2025, 1, 1, tzinfo=datetime.UTC)
SHA256 = "5" * 64  # made-up hash of the training text


class Size(NamedTuple):
    """The size of a generated study, with `seeds` runs for each combination of PLACEMENTS, PEAK_LRS and WARMUPS."""

    seeds: int
    n_steps: int
    n_layers: int

    def __str__(self) -> str:
        return f"{CELLS * self.seeds:,} runs x {self.n_steps:,} steps x {self.n_layers} layers"


def configs(study: Path, size: Size) -> list[RunConfig]:
    """Return the configs of `size.seeds` runs for each placement, learning rate and warmup."""
    return [
        RunConfig(
            study=study.name, results_dir=str(study.parent), seed=seed,
            model=ModelConfig(placement=placement, n_layers=size.n_layers),
            schedule=ScheduleConfig(peak_lr=peak_lr, warmup_steps=warmup, n_steps=size.n_steps),
        )
        for placement, peak_lr, warmup, seed in itertools.product(PLACEMENTS, PEAK_LRS, WARMUPS, range(size.seeds))
    ]  # fmt: skip


def write_study(study: Path, size: Size, seed: int = 0) -> None:
    """Write a study of finished runs, with the files that a sweep writes. Equal seeds give equal bytes."""
    from normstudy.study import tables  # imported late, because importing pandas is slow

    runs = dict(sorted((run_id(config, SHA256), config) for config in configs(study, size)))
    tables.prepare(study)
    window = schema.window_size(size.n_steps)
    for number, (name, config) in enumerate(runs.items()):
        row, series = run_rows(name, config, np.random.default_rng([seed, number]))
        content = pa.Table.from_pylist([row], schema.SCHEMAS["runs"])
        (study / "tables" / "runs" / f"{name}.parquet").write_bytes(parquet.encode("runs", content))
        for table, columns in series.items():
            arrays = [pa.array(values, from_pandas=True) for values in columns.values()]  # NaN becomes null
            content = pa.table([pa.repeat(name, len(arrays[0])), *arrays], ["run_id", *schema.RECORDED[table]])
            content = parquet.conform(table, content)
            places = np.searchsorted(columns["step"], range(0, size.n_steps + window, window))
            for i, (first, end) in enumerate(itertools.pairwise(places)):
                part = content.slice(first, end - first)
                (study / "tables" / table / f"{name}-{i:03d}.parquet").write_bytes(parquet.encode(table, part))


def run_rows(name: str, config: RunConfig, rng: np.random.Generator) -> tuple[dict[str, object], dict[str, Columns]]:
    """Draw a run's numbers at random. Return the run's row of the table `runs`, and its columns of all other tables."""
    m, s, p = config.model, config.schedule, config.probe
    stuck = m.placement == "post" and s.peak_lr >= 3e-3 and s.warmup_steps <= 20
    end = (H1 - 0.02 if stuck else 2.1 - 0.05 * math.log10(s.peak_lr / 1e-3)) + rng.normal(0, 0.013)
    t = np.arange(s.n_steps)
    loss = end + (LN_VOCAB - end) * np.exp(-12 * t / s.n_steps)

    def noise(n: int, *names: str) -> Columns:
        return {name: rng.lognormal(0, 0.1, n) for name in names}

    steps = {
        "step": t, "train_loss": loss * rng.lognormal(0, 0.03, len(t)),
        "val_loss": np.where(t % config.eval.every == 0, loss, np.nan),
        "lr": s.peak_lr * np.minimum(1.0, (t + 1) / max(1, s.warmup_steps)), **noise(len(t), *NORMS),
    }  # fmt: skip
    probed = t[(t < p.dense_steps) | (t % p.every == 0) | (t == s.n_steps - 1)]
    layers = np.repeat([*range(m.n_layers), np.nan], [len(IN_BLOCK)] * m.n_layers + [len(OUTSIDE[m.placement])])
    names = [*IN_BLOCK * m.n_layers, *OUTSIDE[m.placement]]
    modules = {
        "step": np.repeat(probed, len(names)), "layer": np.tile(layers, len(probed)),
        "module": np.tile(names, len(probed)), **noise(len(probed) * len(names), *NORMS),
    }  # fmt: skip
    depth = np.arange(m.n_layers + 1)
    residual = {
        "step": np.repeat(probed, len(depth)), "layer": np.tile(depth, len(probed)),
        **noise(len(probed) * len(depth), "rms", "grad_norm"),
    }  # fmt: skip
    row: dict[str, object] = {
        "run_id": name, "status": "done", **schema.config_columns(config), "resolved_vocab_size": 256,
        "n_params": 50_000 * m.n_layers, "data_sha256": SHA256, "bytes_per_token": 1.0, "ln_vocab": LN_VOCAB,
        "unigram_entropy": H1, "bigram_entropy": H2, "final_val_loss": end, "final_train_loss": end,
        "wall_time_s": 60.0, "started_at": START, "finished_at": START, "git_commit": "0" * 40, "python": "3.11.7",
        "torch": "2.13.0", "cpu_capability": "AVX2", "blas": "openblas 0.3.31 Haswell", "device": "cpu",
    }  # fmt: skip
    types = {"step": np.int32, "module": np.str_}
    series = {"steps": steps, "modules": modules, "residual": residual}
    return row, {t: {c: v.astype(types.get(c, np.float32)) for c, v in rows.items()} for t, rows in series.items()}
