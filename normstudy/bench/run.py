"""Measure rows of the benchmark one after the other, draw the figure, and return the table to print."""

import contextlib
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from tqdm import tqdm

from normstudy.bench import figure, summary, tables
from normstudy.bench.rows import ROWS, Sample, Scope, check_rows, load
from normstudy.errors import ConfigError, bar_options
from normstudy.study import files, paths
from normstudy.study import tables as store
from normstudy.workers.progress import duration

OUT = {"quick": Path("results/bench/quick"), "full": Path("results/bench")}


def bench(asked: Sequence[str] | None, out: Path, *, mode: str, device: str, fmt: str) -> str:
    """Measure the rows `asked`, draw the figure, and return the table to print, or "" if all rows are skipped.

    asked: None means all rows. mode: quick or full. out: a folder for the rows. Raises ConfigError for a bad argument.
    """
    chosen = [*ROWS] if asked is None else check_rows(asked)
    paths.check_out(out)
    machine = tables.machine(device)
    for row in chosen:
        if ROWS[row].device != device and (asked is not None or ROWS[row].device == "cuda"):
            print(f"row {row} skipped: add --device {ROWS[row].device} to measure it", file=sys.stderr)
        elif (library := ROWS[row].library) and find_spec(library) is None:
            print(f"row {row} skipped: pip install 'normstudy[{ROWS[row].extra}]' to measure it", file=sys.stderr)
    chosen = [row for row in chosen if ROWS[row].device == device and find_spec(ROWS[row].library or "sys")]
    if not chosen:
        return ""
    with contextlib.ExitStack() as stack, tqdm(chosen, unit="row", **bar_options()) as bar:
        # SIGTERM must act like Ctrl-C, which ends child processes and removes the temporary folder.
        stack.callback(signal.signal, signal.SIGTERM, signal.signal(signal.SIGTERM, signal.default_int_handler))
        for row in bar:
            bar.set_postfix_str(f"row {row}")
            began, started_at, samples = time.monotonic(), store.now(), list[Sample]()
            with files.scratch_folder(Path(tempfile.gettempdir()), "normstudy-bench") as folder:
                for sample in load(row)[1](Scope(mode == "quick", folder)):
                    samples.append(sample)
                    bar.set_postfix_str(f"row {row}, {sample.case}, round {sample.round}")
            tables.write(out, row, samples, {**machine, "mode": mode, "started_at": started_at})
            if bar.disable:
                took = duration(time.monotonic() - began)
                print(f"row {row}, {ROWS[row].title}: {len(samples)} numbers in {took}", file=sys.stderr, flush=True)
    return show(chosen, out, fmt)


def show(asked: Sequence[str] | None, out: Path, fmt: str) -> str:
    """Draw all rows stored in `out`. Return a table of the rows `asked`. Raises ConfigError if a row is not stored."""
    stored = tables.stored_rows(out)
    if not stored:
        raise ConfigError(f"{out} contains no benchmark results: run normstudy bench first, or pass another --out")
    chosen = stored if asked is None else check_rows(asked)
    for row in chosen:
        if row not in stored:
            raise ConfigError(f"{out} contains no row {row}, only {', '.join(stored)}: measure row {row} first")
    text = summary.render(tables.read(out, chosen), fmt)
    figure.draw(tables.read(out, stored), out)
    return text if fmt == "markdown" else f"{text}\nTables and figure: {out}"
