"""A large study that nobody trained, for row f and the scaling page: the files that its sweep would leave."""

from __future__ import annotations

import datetime
import itertools
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from normstudy.config import ModelConfig, RunConfig, ScheduleConfig, run_id

Array = np.ndarray[tuple[int, ...], np.dtype[np.generic]]
Columns = dict[str, Array]  # of a series table, run_id excepted; `module` as codes of MODULES

PLACEMENTS = ("post", "pre")  # in the order of run ids, as everything below
PEAK_LRS = (3e-4, 1e-3, 2e-3, 3e-3, 1e-2)  # few enough that each has a panel and every run is drawn
WARMUPS = (0, 20, 50, 100, 200)
CELLS = len(PLACEMENTS) * len(PEAK_LRS) * len(WARMUPS)
IN_BLOCK = ("attn_in", "attn_out", "mlp_in", "mlp_out", "norm1", "norm2")  # as training records them
OUTSIDE = {"post": ("embed", "pos", "unembed"), "pre": ("embed", "pos", "final_norm", "unembed")}
MODULES = (*IN_BLOCK, "embed", "pos", "unembed", "final_norm")
LN_VOCAB, H1, H2 = math.log(256), 3.26, 2.46  # nats per token, as of a text of bytes
START = datetime.datetime(2025, 1, 1, tzinfo=datetime.UTC)
SHA256 = "5" * 64  # of the text that nobody trained on


@dataclass(frozen=True)
class Size:
    """Of a generated study: `seeds` runs in each of CELLS cells, all of one length and depth."""

    seeds: int
    n_steps: int
    n_layers: int

    def __str__(self) -> str:
        return f"{CELLS * self.seeds:,} runs x {self.n_steps:,} steps x {self.n_layers} layers"


def configs(study: Path, size: Size) -> list[RunConfig]:
    """The runs of a study: `size.seeds` of each placement, rate and warmup, all else as by default."""
    return [
        RunConfig(
            study=study.name, results_dir=str(study.parent), seed=seed,
            model=ModelConfig(placement=placement, n_layers=size.n_layers),
            schedule=ScheduleConfig(peak_lr=peak_lr, warmup_steps=warmup, n_steps=size.n_steps),
        )
        for placement, peak_lr, warmup, seed in itertools.product(PLACEMENTS, PEAK_LRS, WARMUPS, range(size.seeds))
    ]  # fmt: skip


def write_study(study: Path, size: Size, seed: int = 0) -> None:
    """Write a study of finished runs, a file for each run and for each of its windows; a seed gives the same bytes.

    Nothing is made durable.
    """
    from normstudy import store

    runs = dict(sorted((run_id(config, SHA256), config) for config in configs(study, size)))
    for table in store.TABLES:
        folder = study / "tables" / table
        folder.mkdir(parents=True)
        (folder / store.SCHEMA_FILE).write_bytes(store.encode(table, store.SCHEMAS[table].empty_table()))
    window = store.window_size(size.n_steps)
    for number, (name, config) in enumerate(runs.items()):
        row, series = run_rows(name, config, np.random.default_rng([seed, number]))
        content = pa.Table.from_pylist([row], store.SCHEMAS["runs"])
        (study / "tables" / "runs" / f"{name}.parquet").write_bytes(store.encode("runs", content))
        for table, columns in series.items():
            content = _arrow(table, columns, name)
            starts = range(0, len(series["steps"]["step"]), window)
            places = [*np.searchsorted(columns["step"], starts), content.num_rows]
            for i, (first, end) in enumerate(itertools.pairwise(places)):
                path = study / "tables" / table / f"{name}-{i:03d}.parquet"
                path.write_bytes(store.encode(table, _renamed(content.slice(first, end - first))))


def _arrow(table: str, columns: Columns, name: str) -> pa.Table:
    """The rows of a run."""
    from normstudy import store

    codes = {"run_id": np.zeros(len(columns["step"]), np.int32), "module": columns.get("module")}
    arrays = []
    for f in store.SCHEMAS[table]:
        if f.name in codes:
            names = pa.array([name] if f.name == "run_id" else MODULES)
            arrays.append(pa.DictionaryArray.from_arrays(codes[f.name], names))
        else:
            null = {"val_loss": np.isnan, "layer": np.signbit}.get(f.name)
            arrays.append(pa.array(columns[f.name], f.type, mask=null(columns[f.name]) if null else None))
    return pa.Table.from_arrays(arrays, schema=store.SCHEMAS[table])


def _renamed(content: pa.Table) -> pa.Table:
    """The same rows; the dictionaries have the names that occur, in that order, as a run that trains has them."""
    plain = [(f.name, pa.string() if pa.types.is_dictionary(f.type) else f.type) for f in content.schema]
    return content.cast(pa.schema(plain)).cast(content.schema)


def run_rows(name: str, config: RunConfig, rng: np.random.Generator) -> tuple[dict[str, object], dict[str, Columns]]:
    """The `runs` row of one run, and its series in the order in which training records them.

    Post-norm at large rates with a short warmup is stuck, its gradient lost on the way to the first layers; at the
    largest rate without warmup every fifth seed ends in a loss that is not finite, half way.
    """
    from normstudy import store

    m, s, p = config.model, config.schedule, config.probe
    stuck = m.placement == "post" and s.peak_lr >= 3e-3 and s.warmup_steps <= 20
    diverged = m.placement == "post" and s.peak_lr >= 1e-2 and s.warmup_steps == 0 and config.seed % 5 == 0
    n = s.n_steps // 2 if diverged else s.n_steps
    t = np.arange(n)
    lr = s.peak_lr * np.minimum(1.0, (t + 1) / max(1, s.warmup_steps))
    best = 2.1 - 0.05 * math.log10(s.peak_lr / 1e-3) + (0.1 if m.placement == "post" else 0.0)
    end = (H1 - 0.02 if stuck else best) + rng.normal(0, 0.013)
    smooth = end + (LN_VOCAB - end) * np.exp(-12 * t / s.n_steps)
    train = smooth + rng.normal(0, 0.08, n)
    train[-1:] = np.inf if diverged else train[-1]
    grad = (0.3 + np.exp(-4 * t / s.n_steps)) * rng.lognormal(0, 0.15, n)
    steps = {
        "step": t, "train_loss": train, "val_loss": np.where(t % config.eval.every == 0, smooth + 0.02, np.nan),
        "lr": lr, "grad_norm": grad, "param_norm": 70 + np.cumsum(lr) * rng.uniform(0.9, 1.1),
        "update_norm": lr * 300 * rng.lognormal(0, 0.05, n),
    }  # fmt: skip
    probed = t[(t < p.dense_steps) | (t % p.every == 0) | (t == s.n_steps - 1)]
    layers = np.repeat([*range(m.n_layers), -1], [len(IN_BLOCK)] * m.n_layers + [len(OUTSIDE[m.placement])])
    kinds = [MODULES.index(k) for k in (*IN_BLOCK * m.n_layers, *OUTSIDE[m.placement])]
    # stuck runs lose the gradient of the early layers in the first updates
    loss = np.where(stuck, np.minimum(probed, 20) / 20, 0.1)[:, None]

    def norms(scale: Array, layer: Array) -> Array:
        size = scale[:, None] * np.exp(-loss * (m.n_layers - 1 - layer)) / math.sqrt(m.n_layers)
        return np.asarray(size * rng.lognormal(0, 0.2, size.shape)).ravel()

    shape, depth = (len(probed), len(kinds)), np.arange(m.n_layers + 1)
    modules = {
        "step": np.repeat(probed, shape[1]), "layer": np.tile(layers, shape[0]), "module": np.tile(kinds, shape[0]),
        "grad_norm": norms(grad[probed], np.where(layers < 0, m.n_layers - 1, layers)),
        "param_norm": (8 + 30 * lr[probed, None] * rng.uniform(0, 1, shape)).ravel(),
        "update_norm": (30 * lr[probed, None] * rng.lognormal(0, 0.1, shape)).ravel(),
    }  # fmt: skip
    rms = np.sqrt(1 + 0.8 * depth * (m.placement == "pre")) * rng.lognormal(0, 0.02, (len(probed), len(depth)))
    residual = {
        "step": np.repeat(probed, len(depth)), "layer": np.tile(depth, len(probed)), "rms": rms.ravel(),
        "grad_norm": norms(0.05 * grad[probed], depth - 1),
    }  # fmt: skip
    row: dict[str, object] = {
        "run_id": name, "status": "done", **store.config_columns(config), "resolved_vocab_size": 256,
        "n_params": 50_000 * m.n_layers, "data_sha256": SHA256, "bytes_per_token": 1.0, "ln_vocab": LN_VOCAB,
        "unigram_entropy": H1, "bigram_entropy": H2, "final_val_loss": None if diverged else end + 0.02,
        "final_train_loss": None if diverged else float(np.float32(train[-1])),
        "nonfinite_step": n - 1 if diverged else None, "wall_time_s": 60.0, "started_at": START,
        "finished_at": START + datetime.timedelta(minutes=1), "git_commit": "0" * 40, "python": "3.11.7",
        "torch": "2.13.0", "cpu_capability": "AVX2", "blas": "openblas 0.3.31 Haswell", "device": "cpu",
    }  # fmt: skip
    types = {"step": np.int32, "layer": np.int32, "module": np.int32}
    series = {"steps": steps, "modules": modules, "residual": residual}
    return row, {t: {c: v.astype(types.get(c, np.float32)) for c, v in rows.items()} for t, rows in series.items()}
