"""Measure how files, bytes, memory and time grow with 1,000 to 100,000 runs, for docs/scaling.md. Nothing is trained.

    python scripts/scaling.py                        measure all parts, into results/scaling/PART.parquet
    python scripts/scaling.py --parts planning       measure only the listed parts, separated by commas
    python scripts/scaling.py --quick --out DIR      measure small sizes, in seconds instead of minutes
    python scripts/scaling.py --show                 write the tables of results/scaling into docs/scaling.md

planning: `normstudy sweep --dry-run`, the record of a sweep in sweeps/, the sweep's batches, and its Slurm jobs.
swept: a generated study in the form in which a sweep leaves it (two layers; 200 steps, which are one window), before
    and after `normstudy compact`. For the largest size, only the folder of the table `runs`.
compacted: the largest size, with `runs` and `steps` in one file each, which are enough for a first view of the results.

Each command runs in a separate process. Its wall time, its CPU time and its peak memory are measured. The studies are
written into a temporary folder (TMPDIR).
"""

from __future__ import annotations

import argparse
import math
import os
import pickle
import resource
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from normstudy.analysis.grid import markdown_table, three_digits
from normstudy.bench import commands, generated, tables
from normstudy.bench.rows import Sample
from normstudy.bench.summary import machine_lines
from normstudy.config import ExecutionConfig, RunConfig, one_of, run_id
from normstudy.slurm import submit
from normstudy.slurm.ask import MOST_JOBS
from normstudy.study import parquet, records
from normstudy.study import tables as store
from normstudy.study.schema import COMPACTED_FILE, RECORDED, SCHEMA_FILE, SCHEMAS, TABLES, config_columns
from normstudy.sweep.planning import group
from normstudy.workers.task import Task

OUT, PAGE = Path("results/scaling"), Path("docs/scaling.md")
N_STEPS, N_LAYERS = 200, 2  # of generated runs; 200 steps are one window in each table
REQUEST: records.Request = {"command": "normstudy sweep", "overrides": []}
COMMANDS = {
    "status": ["status"],
    "compare --by warmup_steps": ["compare", "--by", "warmup_steps"],
    "the same, --where of one cell": ["compare", "--by", "warmup_steps", "--where", "placement=pre,peak_lr=1e-3"],
    "check": ["check"],
}
FIRST_LOOK = [*COMMANDS][:3]
READS = {  # code for a separate process, whose imports count too; {0} is the study's folder
    "which runs are finished": "from normstudy.study import tables; tables.statuses(Path('{0}'))",
    "runs in pandas": "from normstudy.study import tables; tables.read('{0}', 'runs')",
    "runs, 20 of them in duckdb": (
        'import duckdb; duckdb.sql("select run_id, placement, peak_lr, final_val_loss from '
        "'{0}/tables/runs/*.parquet' order by final_val_loss limit 20\").fetchall()"
    ),
    "all four tables in pandas": "import normstudy; normstudy.load('{0}')",
}


@dataclass(frozen=True)
class Sizes:
    """Numbers of runs, multiples of generated.CELLS. rounds: repetitions of planning, but one for the largest size."""

    planned: tuple[int, ...]
    swept: tuple[int, ...]
    most: int
    rounds: int


FULL = Sizes((1000, 10_000, 100_000), (1000, 4000), 100_000, 3)
QUICK = Sizes((100, 200), (50, 100), 500, 1)


# ---- what is measured ---------------------------------------------------------------------------------


def timed(words: Sequence[str]) -> dict[str, float]:
    """Run Python with `words`. Return wall seconds, CPU seconds and peak memory in MB. Raises if the process fails."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds, gigabytes = commands.peak([sys.executable, *words])
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"s": seconds, "s of CPU": cpu, "MB": 1e3 * gigabytes}


def samples(part: str, runs: int, subject: str, values: dict[str, float], at: int = 0) -> Iterator[Sample]:
    """Yield one sample for each unit. The unit names the quantity."""
    for unit, value in values.items():
        yield Sample(part, f"{runs}", subject, unit, unit, at, value)


def runs_of(folder: Path, runs: int) -> dict[str, RunConfig]:
    """Return the configs of a generated study, sorted by run_id."""
    configs = generated.configs(folder, generated.Size(runs // generated.CELLS, N_STEPS, N_LAYERS))
    return dict(sorted((run_id(config, generated.SHA256), config) for config in configs))


def planning(sizes: Sizes, folder: Path) -> Iterator[Sample]:
    """Measure `normstudy sweep --dry-run` on a grid of four axes, and on one axis with a value for each run."""
    grid = [
        f"model.placement={','.join(generated.PLACEMENTS)}",
        f"schedule.peak_lr={','.join(map(str, generated.PEAK_LRS))}",
        f"schedule.warmup_steps={','.join(map(str, generated.WARMUPS))}",
    ]
    shared = ["data=synthetic", f"schedule.n_steps={N_STEPS}", "execution.device=cpu", f"results_dir={folder}"]
    for runs in sizes.planned:
        axes = {"four axes": [*grid, f"seed=range(0,{runs // generated.CELLS})"], "one axis": [f"seed=range(0,{runs})"]}
        for at in range(1 if runs == sizes.most else sizes.rounds):
            for name, words in axes.items():
                took = timed(["-m", "normstudy", "sweep", "study=planned", *shared, *words, "--dry-run"])
                yield from samples("planning", runs, f"sweep --dry-run, {name}", took, at)
        yield from _planned(runs, folder)


def _planned(runs: int, folder: Path) -> Iterator[Sample]:
    """Measure a sweep's record, and its batches of default runs (6 layers), on this machine and as Slurm jobs."""
    configs = generated.configs(folder, generated.Size(runs // generated.CELLS, N_STEPS, 6))
    named = {run_id(config, generated.SHA256): config for config in configs}
    for cluster, workers in (("local", 2), ("slurm", ExecutionConfig(cluster="slurm").jobs)):
        execution = ExecutionConfig(cluster=cluster, workers=1)
        batches = group({i: replace(c, execution=execution) for i, c in named.items()}, workers, "cpu")
        counts = {"batches": float(len(batches)), "runs at most": float(max(len(b.run_ids) for b in batches))}
        yield from samples("planning", runs, f"batches, {workers} workers ({cluster})", counts)
    place = folder / f"record{runs}"
    tasks = [
        Task(n, place, b.run_ids, [named[i] for i in b.run_ids], generated.SHA256, "cpu", None)
        for n, b in enumerate(batches)
    ]
    jobs = submit.shares(tasks, 1, MOST_JOBS)
    pickled = sum(len(pickle.dumps(part)) for part in jobs)
    told = {"jobs": float(len(jobs)), "batches at most": float(max(map(len, jobs))), "MB pickled": pickled / 1e6}
    yield from samples("planning", runs, "array of Slurm", told)
    yield from samples("planning", runs, "record in sweeps/", {"MB": _record(place, named) / 1e6})


def _record(place: Path, named: dict[str, RunConfig]) -> int:
    """Write the record of a sweep, and return its bytes."""
    place.mkdir(exist_ok=True)
    records.record_request(place, REQUEST, [list(named)], named, workers="2", device="cpu")
    return max((place / "sweeps").iterdir()).stat().st_size


def swept(sizes: Sizes, folder: Path) -> Iterator[Sample]:
    """Measure commands and readers before and after a compaction, and the folder of `runs` for the largest size."""
    for runs in sizes.swept:
        place = folder / f"swept{runs}"
        generated.write_study(place, generated.Size(runs // generated.CELLS, N_STEPS, N_LAYERS))
        yield from _looked_at(runs, place, "as swept")
        if runs == sizes.swept[0]:
            _record(place, runs_of(place, sizes.most))
            took = timed(["-m", "normstudy", "status", str(place)])
            yield from samples("swept", sizes.most, f"status, all planned and {runs:,} finished", took)
        yield from samples("swept", runs, "compact", timed(["-m", "normstudy", "compact", str(place)]))
        yield from _looked_at(runs, place, "compacted")
        yield from samples("swept", runs, "compacted: plot", timed(["-m", "normstudy", "plot", str(place)]))
    place = folder / "folder"
    _write_runs(place, sizes.most)
    yield from samples("swept", sizes.most, "as swept: files of runs alone", weighed(place))
    what = "which runs are finished"
    yield from samples("swept", sizes.most, f"as swept: {what}", timed(["-c", _code(what, place)]))


def _looked_at(runs: int, place: Path, form: str) -> Iterator[Sample]:
    yield from samples("swept", runs, f"{form}: files", weighed(place))
    for what, words in COMMANDS.items():
        took = timed(["-m", "normstudy", words[0], str(place), *words[1:]])
        yield from samples("swept", runs, f"{form}: {what}", took)
    for what in READS:
        yield from samples("swept", runs, f"{form}: {what}", timed(["-c", _code(what, place)]))


def _code(what: str, place: Path) -> str:
    return "from pathlib import Path; " + READS[what].format(place)


def weighed(place: Path) -> dict[str, float]:
    """Return the number of files (inodes) in tables/, their megabytes, and their megabytes on the disk."""
    stats = [path.stat() for path in (place / "tables").rglob("*.parquet")]
    on_disk = sum(stat.st_blocks for stat in stats) * 512  # POSIX
    return {"files": float(len(stats)), "MB": sum(s.st_size for s in stats) / 1e6, "MB on disk": on_disk / 1e6}


def _write_runs(place: Path, runs: int) -> None:
    """Write a study with rows only in `runs`, one file per row, on all cores."""
    for table in TABLES:
        (place / "tables" / table).mkdir(parents=True)
        empty = parquet.encode(table, SCHEMAS[table].empty_table())
        (place / "tables" / table / SCHEMA_FILE).write_bytes(empty)
    named = [*runs_of(place, runs).items()]
    parts = [named[i : i + 500] for i in range(0, len(named), 500)]
    with ProcessPoolExecutor(len(os.sched_getaffinity(0))) as processes:
        for _ in processes.map(partial(_write_some, place), parts):
            pass


def _write_some(place: Path, named: list[tuple[str, RunConfig]]) -> None:
    content = pa.Table.from_pylist([generated.run_rows(*one, _rng())[0] for one in named], SCHEMAS["runs"])
    for i, (name, _) in enumerate(named):
        path = place / "tables" / "runs" / f"{name}.parquet"
        path.write_bytes(parquet.encode("runs", content.slice(i, 1)))


def _rng() -> np.random.Generator:
    return np.random.default_rng(0)


def compacted(sizes: Sizes, folder: Path) -> Iterator[Sample]:
    """Measure a first view of the largest study, whose tables `runs` and `steps` are compacted."""
    place = folder / "compacted"
    _write_compacted(place, sizes.most)
    for what in FIRST_LOOK:
        took = timed(["-m", "normstudy", COMMANDS[what][0], str(place), *COMMANDS[what][1:]])
        yield from samples("compacted", sizes.most, what, took)
    for what in [*READS][:3]:
        yield from samples("compacted", sizes.most, what, timed(["-c", _code(what, place)]))


def _write_compacted(place: Path, runs: int) -> None:
    """Write `runs` and `steps` of a study. Each run has the curve of its cell's first seed, with independent noise.

    The files have zstd's default level, which is written faster than the level of a compaction and read equally fast.
    Therefore their bytes are not reported.
    """
    for table in TABLES:
        (place / "tables" / table).mkdir(parents=True)
        empty = parquet.encode(table, SCHEMAS[table].empty_table())
        (place / "tables" / table / SCHEMA_FILE).write_bytes(empty)
    named = runs_of(place, runs)
    curves: dict[tuple[object, ...], tuple[dict[str, object], generated.Columns]] = {}
    rows, series = [], []
    for name, config in named.items():
        cell = config.model.placement, config.schedule.peak_lr, config.schedule.warmup_steps
        if cell not in curves:
            row, columns = generated.run_rows(name, replace(config, seed=1), _rng())  # seed 1 does not diverge
            curves[cell] = row, columns["steps"]
        rows.append(curves[cell][0] | {"run_id": name, "status": "done", **config_columns(config)})
        series.append(curves[cell][1])
    schema = SCHEMAS["steps"]
    codes = np.repeat(np.arange(len(named), dtype=np.int32), N_STEPS)
    arrays = [pa.DictionaryArray.from_arrays(codes, pa.array(list(named)))]
    for field in list(schema)[1:]:
        if field.name not in RECORDED["steps"]:
            arrays.append(pa.nulls(len(codes), field.type))
            continue
        values = np.concatenate([columns[field.name] for columns in series])
        if field.name not in ("step", "lr", "val_loss"):
            values *= 1 + 0.02 * _rng().standard_normal(len(values), np.float32)
        arrays.append(pa.array(values, field.type, mask=np.isnan(values) if field.name == "val_loss" else None))
    for table, content in {
        "runs": pa.Table.from_pylist(rows, SCHEMAS["runs"]),
        "steps": pa.Table.from_arrays(arrays, schema=schema),
    }.items():
        path = place / "tables" / table / COMPACTED_FILE
        pq.write_table(content, path, **parquet.write_options(table) | {"compression": "zstd"})
    _record(place, named)


PARTS: dict[str, Callable[[Sizes, Path], Iterator[Sample]]] = {
    "planning": planning, "swept": swept, "compacted": compacted,
}  # fmt: skip


# ---- what is shown ------------------------------------------------------------------------------------


def render(stored: pd.DataFrame) -> str:
    """Return a part as a Markdown table with a row for each quantity and a column for each size.

    Wall seconds are stored but not shown, because they also depend on the machine's other work. If a quantity grew and
    was not measured at the largest size, it is extrapolated linearly from the two largest sizes measured, and marked
    with ~. `slope` is the power of the number of runs with which it grew between these two sizes.
    """
    stored = stored[stored["unit"] != "s"]
    median = stored.groupby(["subject", "unit", "case"], sort=False)["value"].median()
    sizes = sorted({int(case) for case in stored["case"]})
    header, rows = ["what", "unit", *(f"{n:,}" for n in sizes), "slope"], list[list[str]]()
    for subject, unit in dict.fromkeys(zip(stored["subject"], stored["unit"], strict=True)):
        found = {n: float(median[subject, unit, str(n)]) for n in sizes if (subject, unit, str(n)) in median.index}
        cells = [three_digits(found[n]) if n in found else "" for n in sizes]
        slope = ""
        if len(found) > 1:
            (n1, y1), (n2, y2) = list(found.items())[-2:]
            if sizes[-1] not in found and y2 > y1:
                cells[-1] = "~" + three_digits(y2 + (y2 - y1) / (n2 - n1) * (sizes[-1] - n2))
            slope = f"{math.log(y2 / y1) / math.log(n2 / n1):.2f}" if min(y1, y2) > 0 else ""
        rows.append([subject, unit, *cells, slope])
    lines = markdown_table(header, rows, range(2, len(header)), compact=True)
    return "\n".join([*lines, "", *machine_lines(stored)])


def shown(page: str, out: Path) -> str:
    """Return the page with the tables of `out` between its markers. Raises ValueError if markers are missing."""
    for part in PARTS:
        if (out / f"{part}.parquet").exists():
            before, begin, rest = page.partition(f"<!-- {part} -->\n")
            _, end, after = rest.partition(f"<!-- /{part} -->\n")
            if not end:
                raise ValueError(f"the page has no markers <!-- {part} --> and <!-- /{part} -->: add them")
            page = before + begin + render(tables.read(out, [part])) + "\n" + end + after
    return page


def main() -> None:
    """Measure parts, or write the stored tables into the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--show", action="store_true")
    args = parser.parse_args()
    if args.show:
        PAGE.write_text(shown(PAGE.read_text(), args.out))
        return
    shared = {**tables.machine("cpu"), "mode": "quick" if args.quick else "full"}
    for part in args.parts.split(","):
        one_of("--parts", part, tuple(PARTS))
        began, taken = store.now(), []
        with tempfile.TemporaryDirectory(prefix="normstudy-scaling-") as folder:
            for sample in PARTS[part](QUICK if args.quick else FULL, Path(folder)):
                print(f"{sample.case} {sample.subject}: {three_digits(sample.value)} {sample.unit}", flush=True)
                taken.append(sample)
        tables.write(args.out, part, taken, {**shared, "started_at": began})


if __name__ == "__main__":
    main()
