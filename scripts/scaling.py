"""What 1,000 to 100,000 runs cost in files, bytes, memory and time, without training: the tables of docs/scaling.md.

    python scripts/scaling.py                        measure all parts, into results/scaling/PART.parquet
    python scripts/scaling.py --parts planning       only these, by commas
    python scripts/scaling.py --quick --out DIR      small sizes, seconds instead of minutes
    python scripts/scaling.py --show                 put the tables of results/scaling into docs/scaling.md

planning: the real command with --dry-run, its record in sweeps/, its batches and the jobs that they would be.
swept: a study as its sweep leaves it, generated (200 steps: one window, two layers), before and after the real
    `normstudy compact`; and of the largest size the folder of `runs` alone.
compacted: the largest size with `runs` and `steps` as one file each, which is what a first look at results needs.

The commands are processes of their own: seconds from start to end, seconds of CPU, largest memory. What a part writes
lies in a temporary folder, which TMPDIR may place.
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
N_STEPS, N_LAYERS = 200, 2  # of generated runs: one window a table
REQUEST: records.Request = {"command": "normstudy sweep", "overrides": []}
COMMANDS = {
    "status": ["status"],
    "compare --by warmup_steps": ["compare", "--by", "warmup_steps"],
    "the same, --where of one cell": ["compare", "--by", "warmup_steps", "--where", "placement=pre,peak_lr=1e-3"],
    "check": ["check"],
}
FIRST_LOOK = [*COMMANDS][:3]
READS = {  # in a process of its own, imports too; {0} is the study
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
    """Numbers of runs, multiples of generated.CELLS. rounds: of planning, but one for its largest size."""

    planned: tuple[int, ...]
    swept: tuple[int, ...]
    most: int
    rounds: int


FULL = Sizes((1000, 10_000, 100_000), (1000, 4000), 100_000, 3)
QUICK = Sizes((100, 200), (50, 100), 500, 1)


# ---- what is measured ---------------------------------------------------------------------------------


def timed(words: Sequence[str]) -> dict[str, float]:
    """Seconds, seconds of CPU and largest memory in 10^6 bytes of a process. Raises where it fails."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds, gigabytes = commands.peak([sys.executable, *words])
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"s": seconds, "s of CPU": cpu, "MB": 1e3 * gigabytes}


def samples(part: str, runs: int, subject: str, values: dict[str, float], at: int = 0) -> Iterator[Sample]:
    """One sample for each unit; the unit says what the number is of."""
    for unit, value in values.items():
        yield Sample(part, f"{runs}", subject, unit, unit, at, value)


def runs_of(folder: Path, runs: int) -> dict[str, RunConfig]:
    """The configs of a generated study by run_id, sorted."""
    configs = generated.configs(folder, generated.Size(runs // generated.CELLS, N_STEPS, N_LAYERS))
    return dict(sorted((run_id(config, generated.SHA256), config) for config in configs))


def planning(sizes: Sizes, folder: Path) -> Iterator[Sample]:
    """The planner by the command, at the product of four axes and at one axis that gives each run its own word."""
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
    """The record of a sweep, and what its default runs (6 layers) come to here and as jobs of Slurm."""
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
    """Write the record of a sweep, as a sweep does; its bytes."""
    place.mkdir(exist_ok=True)
    records.record_request(place, REQUEST, [list(named)], named, workers="2", device="cpu")
    return max((place / "sweeps").iterdir()).stat().st_size


def swept(sizes: Sizes, folder: Path) -> Iterator[Sample]:
    """Commands and readers before and after a compaction, and the folder of `runs` of the largest size."""
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
    """Files of tables/, each an inode, their bytes, and what those take on the disk, in 10^6."""
    stats = [path.stat() for path in (place / "tables").rglob("*.parquet")]
    on_disk = sum(stat.st_blocks for stat in stats) * 512  # POSIX
    return {"files": float(len(stats)), "MB": sum(s.st_size for s in stats) / 1e6, "MB on disk": on_disk / 1e6}


def _write_runs(place: Path, runs: int) -> None:
    """A study of which only the rows of `runs` are there, a file each, written by all cores."""
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
    """The first look at the largest study, `runs` and `steps` as a compaction leaves them."""
    place = folder / "compacted"
    _write_compacted(place, sizes.most)
    for what in FIRST_LOOK:
        took = timed(["-m", "normstudy", COMMANDS[what][0], str(place), *COMMANDS[what][1:]])
        yield from samples("compacted", sizes.most, what, took)
    for what in [*READS][:3]:
        yield from samples("compacted", sizes.most, what, timed(["-c", _code(what, place)]))


def _write_compacted(place: Path, runs: int) -> None:
    """The two tables of one study. Each cell's curve is that of its first seed, with noise of its own.

    At zstd's default level, which is written faster than that of a compaction and read as fast: no bytes are told.
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


# ---- what is told -------------------------------------------------------------------------------------


def render(stored: pd.DataFrame) -> str:
    """One part as Markdown: a line for each number, a column for each size.

    Seconds from start to end are stored and not shown: they are as much of what else the machine did. Where the
    largest size was not measured and a number grew, the line through the two largest that were is followed to it: a
    number after ~. `slope` says with what power of the runs it grew between the two largest sizes measured.
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
    """The page with the tables of `out` between its markers. Raises ValueError where a part has none there."""
    for part in PARTS:
        if (out / f"{part}.parquet").exists():
            before, begin, rest = page.partition(f"<!-- {part} -->\n")
            _, end, after = rest.partition(f"<!-- /{part} -->\n")
            if not end:
                raise ValueError(f"no markers of {part} in the page")
            page = before + begin + render(tables.read(out, [part])) + "\n" + end + after
    return page


def main() -> None:
    """Measure, or show."""
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
