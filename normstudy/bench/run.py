"""`normstudy bench`: measure rows one after the other, then draw and print what their tables hold."""

from __future__ import annotations

import contextlib
import signal
import sys
import tempfile
import time
import typing
from collections.abc import Iterator, Sequence
from pathlib import Path

from tqdm import tqdm

from normstudy import terminal
from normstudy.bench import figure, rows, summary, tables
from normstudy.bench.rows import ROWS
from normstudy.bench.samples import Sample, Scope
from normstudy.config import one_of
from normstudy.errors import ConfigError
from normstudy.study import paths
from normstudy.study import tables as store
from normstudy.workers.progress import duration

OUT = {"quick": Path("results/bench/quick"), "full": Path("results/bench")}
SKIPPED = {  # by what the row measures
    "cpu": "it measures the processor, leave out --device cuda",
    "cuda": "it measures a GPU, give --device cuda where there is one",
}


def bench(asked: Sequence[str] | None, out: Path, *, mode: str, device: str, fmt: str) -> str:
    """Measure rows (None: all) into `out`, draw the figure, and return the table of what was measured.

    mode: quick or full. A row that measures another device is skipped with a line on standard error; where none is
    left the table is empty. Raises ConfigError for a wrong request, before anything is measured or written.
    """
    one_of("--device", device, tuple(SKIPPED))
    chosen = [*ROWS] if asked is None else rows.check_rows(asked)
    paths.check_out(out)
    made_by = tables.machine(device)
    for row in chosen:
        if ROWS[row].device != device and (asked is not None or ROWS[row].device == "cuda"):
            print(f"row {row} skipped: {SKIPPED[ROWS[row].device]}", file=sys.stderr)
    chosen = [row for row in chosen if ROWS[row].device == device]
    if not chosen:
        return ""
    measure(chosen, out, made_by, mode=mode, device=device)
    return show(chosen, out, fmt)


def show(asked: Sequence[str] | None, out: Path, fmt: str) -> str:
    """Draw the figure from the stored tables of `out` and return the table of some rows (None: all stored).

    Raises ConfigError where a table is not there.
    """
    stored = tables.stored_rows(out)
    if not stored:
        raise ConfigError(f"{out} has no table of a benchmark: run normstudy bench first, or give another --out")
    chosen = stored if asked is None else rows.check_rows(asked)
    for row in chosen:
        if row not in stored:
            raise ConfigError(f"{out} has no table of row {row}, only of {', '.join(stored)}")
    text = summary.render(tables.read(out, chosen), fmt)
    path = figure.draw(tables.read(out, stored), out)
    return text if fmt == "markdown" else f"{text}\nTables and figure: {path.parent}"


# ---- measuring ------------------------------------------------------------------------------------------


def measure(chosen: Sequence[str], out: Path, made_by: tables.Machine, *, mode: str, device: str) -> None:
    """Measure rows and write each one's table as soon as it is whole; one that is interrupted writes nothing."""
    with _terminable(), _bar(sum(_seconds(row, mode) for row in chosen)) as bar:
        for row in chosen:
            began, started_at = time.monotonic(), store.now()
            with tempfile.TemporaryDirectory(prefix="normstudy-bench-") as folder:
                samples = _take(row, Scope(mode == "quick", device, Path(folder)), bar, _seconds(row, mode))
            tables.write(out, row, samples, made_by, mode, started_at)
            if bar.disable:
                line = f"row {row}, {ROWS[row].title}: {len(samples)} numbers in {duration(time.monotonic() - began)}"
                print(line, file=sys.stderr, flush=True)


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM ends what is inside as Ctrl-C does: child processes and a folder that may be large do not stay."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _take(row: str, scope: Scope, bar: tqdm[typing.NoReturn], seconds: float) -> list[Sample]:
    """The samples of a row. The bar moves by the time that passed, to at most the row's share until it has ended."""
    samples: list[Sample] = []
    at, began = bar.n, time.monotonic()
    bar.set_postfix_str(f"row {row}")
    for sample in rows.load(row).measure(scope):
        tables.check_sample(sample, row, samples)
        samples.append(sample)
        bar.set_postfix_str(f"row {row}, {sample.case}, round {sample.round}", refresh=False)
        bar.update(at + min(time.monotonic() - began, 0.95 * seconds) - bar.n)
    bar.update(at + seconds - bar.n)
    return samples


def _seconds(row: str, mode: str) -> float:
    return ROWS[row].seconds[mode == "full"]


def _bar(total: float) -> tqdm[typing.NoReturn]:
    """A bar over the seconds that rows take on another machine; the rate between the two gives the time left."""
    form = "{l_bar}{bar}| {elapsed} elapsed, {remaining} left{postfix}"
    return tqdm(total=total, desc="measuring", bar_format=form, smoothing=0, **terminal.fit())
