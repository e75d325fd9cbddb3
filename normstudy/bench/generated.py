"""A large study that nobody trained, for row f and the scaling page.

The files that the store and `normstudy compact` would write of the same numbers, byte for byte, in both forms that a
user has: one file a table, and as swept, a file a window.
"""

from __future__ import annotations

import datetime
import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from normstudy.config import ModelConfig, RunConfig, ScheduleConfig, one_of, run_id
from normstudy.study import parquet, schema

Array = np.ndarray[tuple[int, ...], np.dtype[np.generic]]
Floats = np.ndarray[tuple[int, ...], np.dtype[np.float64]]
Ints = np.ndarray[tuple[int, ...], np.dtype[np.signedinteger]]
Columns = dict[str, Array]  # of a series table, run_id excepted; `module` as codes of MODULES

PLACEMENTS = ("post", "pre")  # in the order of run ids, as everything below
PEAK_LRS = (3e-4, 1e-3, 2e-3, 3e-3, 1e-2)  # few enough that each has a panel and every run is drawn
WARMUPS = (0, 20, 50, 100, 200)
CELLS = len(PLACEMENTS) * len(PEAK_LRS) * len(WARMUPS)
FORMS = ("one file a table", "as swept")

IN_BLOCK = ("attn_in", "attn_out", "mlp_in", "mlp_out", "norm1", "norm2")  # as training records them
OUTSIDE = {"post": ("embed", "pos", "unembed"), "pre": ("embed", "pos", "final_norm", "unembed")}
MODULES = (*IN_BLOCK, "embed", "pos", "unembed", "final_norm")  # as the compacted table meets them
LN_VOCAB, H1, H2 = math.log(256), 3.26, 2.46  # nats per token, as of a text of bytes
START = datetime.datetime(2025, 1, 1, tzinfo=datetime.UTC)
SHA256 = "5" * 64  # of the text that nobody trained on
ROW_GROUP = 1024 * 1024  # rows; pyarrow's own choice, which `normstudy compact` leaves as it is


@dataclass(frozen=True)
class Size:
    """Of a generated study: `seeds` runs in each of CELLS cells, all of one length and depth."""

    seeds: int
    n_steps: int
    n_layers: int

    def __str__(self) -> str:
        return f"{CELLS * self.seeds:,} runs x {self.n_steps:,} steps x {self.n_layers} layers"


def write_study(study: Path, size: Size, form: str, seed: int = 0) -> None:
    """Write a study of finished runs; the same seed gives the same bytes.

    form "one file a table": as `normstudy compact` leaves it. "as swept": as its sweep leaves it, a file for each
    run and for each of its windows. Memory holds two row groups at most; nothing is made durable.
    """

    one_of("form", form, FORMS)
    runs = dict(sorted((run_id(config, SHA256), config) for config in configs(study, size)))
    for table in schema.TABLES:
        folder = study / "tables" / table
        folder.mkdir(parents=True)
        (folder / schema.SCHEMA_FILE).write_bytes(parquet.encode(table, schema.SCHEMAS[table].empty_table()))
    (_write_compacted if form == FORMS[0] else _write_swept)(study, runs, seed)


def configs(study: Path, size: Size) -> list[RunConfig]:
    """The runs of a study: `size.seeds` of each placement, rate and warmup, all else as by default."""
    return [
        RunConfig(
            study=study.name,
            results_dir=str(study.parent),
            seed=seed,
            model=ModelConfig(placement=placement, n_layers=size.n_layers),
            schedule=ScheduleConfig(peak_lr=peak_lr, warmup_steps=warmup, n_steps=size.n_steps),
        )
        for placement, peak_lr, warmup, seed in itertools.product(PLACEMENTS, PEAK_LRS, WARMUPS, range(size.seeds))
    ]


def _write_swept(study: Path, runs: Mapping[str, RunConfig], seed: int) -> None:

    for number, (name, config) in enumerate(runs.items()):
        row, series = run_rows(name, config, np.random.default_rng([seed, number]))
        content = pa.Table.from_pylist([row], schema.SCHEMAS["runs"])
        (study / "tables" / "runs" / f"{name}.parquet").write_bytes(parquet.encode("runs", content))
        window = schema.window_size(config.schedule.n_steps)
        for table, columns in series.items():
            content = _arrow(table, columns, pa.array([name]), 0)
            starts = range(0, len(series["steps"]["step"]), window)
            places = [*np.searchsorted(columns["step"], starts), content.num_rows]
            for i, (first, end) in enumerate(itertools.pairwise(places)):
                part = _names_by_occurrence(content.slice(first, end - first))
                (study / "tables" / table / f"{name}-{i:03d}.parquet").write_bytes(parquet.encode(table, part))


def _write_compacted(study: Path, runs: Mapping[str, RunConfig], seed: int) -> None:
    from normstudy.upkeep.compact import ZSTD_LEVEL

    names = pa.array(list(runs))
    rows: list[dict[str, object]] = []
    held: dict[str, list[pa.Table]] = {table: [] for table in schema.SERIES}
    zstd = {"compression": "zstd", "compression_level": ZSTD_LEVEL}
    path = {table: study / "tables" / table / schema.COMPACTED_FILE for table in schema.TABLES}
    writers = {
        t: pq.ParquetWriter(path[t], schema.SCHEMAS[t], **parquet.write_options(t) | zstd) for t in schema.SERIES
    }
    for number, (name, config) in enumerate(runs.items()):
        row, series = run_rows(name, config, np.random.default_rng([seed, number]))
        rows.append(row)
        for table, columns in series.items():
            held[table].append(_arrow(table, _sorted(columns), names, number))
            last = number == len(runs) - 1
            if last or sum(part.num_rows for part in held[table]) >= ROW_GROUP:
                content = pa.concat_tables(held[table]).combine_chunks()
                end = content.num_rows if last else content.num_rows // ROW_GROUP * ROW_GROUP
                writers[table].write_table(content.slice(0, end), row_group_size=ROW_GROUP)
                held[table] = [content.slice(end)]
    for writer in writers.values():
        writer.close()
    content = pa.Table.from_pylist(rows, schema.SCHEMAS["runs"])
    pq.write_table(content, path["runs"], **parquet.write_options("runs") | zstd)


def _arrow(table: str, columns: Columns, names: pa.Array, number: int) -> pa.Table:
    """The rows of run `number` of `names`."""

    arrays = []
    for f in schema.SCHEMAS[table]:
        if f.name == "run_id":
            codes = np.full(len(columns["step"]), number, np.int32)
            arrays.append(pa.DictionaryArray.from_arrays(codes, names))
        elif f.name == "module":
            arrays.append(pa.DictionaryArray.from_arrays(columns["module"], pa.array(MODULES)))
        else:
            values = columns[f.name]
            null = {"val_loss": np.isnan, "layer": np.signbit}.get(f.name)
            arrays.append(pa.array(values, f.type, mask=null(values) if null else None))
    return pa.Table.from_arrays(arrays, schema=schema.SCHEMAS[table])


def _names_by_occurrence(content: pa.Table) -> pa.Table:
    """The same rows; the dictionaries of names have those that occur, in that order, as a run that trains has them."""
    plain = [(f.name, pa.string() if pa.types.is_dictionary(f.type) else f.type) for f in content.schema]
    return content.cast(pa.schema(plain)).cast(content.schema)


def _sorted(columns: Columns) -> Columns:
    """By step, layer and the name of the module, as `normstudy compact` sorts; no layer last."""
    if "module" not in columns:
        return columns
    rank = np.argsort(np.argsort(MODULES))[columns["module"]]
    layer = np.where(np.signbit(columns["layer"]), np.inf, columns["layer"])
    order = np.lexsort([rank, layer, columns["step"]])
    return {name: values[order] for name, values in columns.items()}


def run_rows(name: str, config: RunConfig, rng: np.random.Generator) -> tuple[dict[str, object], dict[str, Columns]]:
    """The `runs` row of one run, and its series in the order in which training records them.

    Post-norm at large rates with a short warmup is stuck, its gradient lost on the way to the first layers; at the
    largest rate without warmup every fifth seed ends in a loss that is not finite, half way.
    """

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
    if diverged:
        train[-1] = np.inf
    grad = (0.3 + np.exp(-4 * t / s.n_steps)) * rng.lognormal(0, 0.15, n)
    steps = {
        "step": t,
        "train_loss": train,
        "val_loss": np.where(t % config.eval.every == 0, smooth + 0.02, np.nan),
        "lr": lr,
        "grad_norm": grad,
        "param_norm": 70 + np.cumsum(lr) * rng.uniform(0.9, 1.1),
        "update_norm": lr * 300 * rng.lognormal(0, 0.05, n),
    }

    probed = t[(t < p.dense_steps) | (t % p.every == 0) | (t == s.n_steps - 1)]
    layers = np.repeat([*range(m.n_layers), -1], [len(IN_BLOCK)] * m.n_layers + [len(OUTSIDE[m.placement])])
    kinds = [MODULES.index(k) for k in (*IN_BLOCK * m.n_layers, *OUTSIDE[m.placement])]
    # stuck runs lose the gradient of the early layers in the first updates
    loss = np.where(stuck, np.minimum(probed, 20) / 20, 0.1)[:, None]

    def norms(scale: Floats, layer: Ints) -> Floats:
        size = scale[:, None] * np.exp(-loss * (m.n_layers - 1 - layer)) / math.sqrt(m.n_layers)
        return np.asarray(size * rng.lognormal(0, 0.2, size.shape)).ravel()

    shape = len(probed), len(kinds)
    modules = {
        "step": np.repeat(probed, shape[1]),
        "layer": np.tile(layers, shape[0]),
        "module": np.tile(kinds, shape[0]),
        "grad_norm": norms(grad[probed], np.where(layers < 0, m.n_layers - 1, layers)),
        "param_norm": (8 + 30 * lr[probed, None] * rng.uniform(0, 1, shape)).ravel(),
        "update_norm": (30 * lr[probed, None] * rng.lognormal(0, 0.1, shape)).ravel(),
    }
    depth = np.arange(m.n_layers + 1)
    rms = np.sqrt(1 + 0.8 * depth * (m.placement == "pre")) * rng.lognormal(0, 0.02, (len(probed), len(depth)))
    residual = {
        "step": np.repeat(probed, len(depth)),
        "layer": np.tile(depth, len(probed)),
        "rms": rms.ravel(),
        "grad_norm": norms(0.05 * grad[probed], depth - 1),
    }
    row: dict[str, object] = {
        "run_id": name,
        "status": "done",
        **schema.config_columns(config),
        "resolved_vocab_size": 256,
        "n_params": 50_000 * m.n_layers,
        "data_sha256": SHA256,
        "bytes_per_token": 1.0,
        "ln_vocab": LN_VOCAB,
        "unigram_entropy": H1,
        "bigram_entropy": H2,
        "final_val_loss": None if diverged else end + 0.02,
        "final_train_loss": None if diverged else float(np.float32(train[-1])),
        "nonfinite_step": n - 1 if diverged else None,
        "wall_time_s": 60.0,
        "started_at": START,
        "finished_at": START + datetime.timedelta(minutes=1),
        "git_commit": "0" * 40,
        "python": "3.11.7",
        "torch": "2.13.0",
        "cpu_capability": "AVX2",
        "blas": "openblas 0.3.31 Haswell",
        "device": "cpu",
    }
    types = {"step": np.int32, "layer": np.int32, "module": np.int32}
    series = {"steps": steps, "modules": modules, "residual": residual}
    return row, {t: {c: v.astype(types.get(c, np.float32)) for c, v in rows.items()} for t, rows in series.items()}
