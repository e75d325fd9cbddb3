"""Helpers for the tests of `normstudy check`: studies to check, ways to damage them, and the expected lines."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from studies import never, task_of, tiny

from normstudy.config import RunConfig
from normstudy.study import parquet, schema
from normstudy.upkeep.check import check_study
from normstudy.workers import worker

N_STEPS, WINDOW = 12, 5  # three windows, the last of two steps
PROBED = [t for t in range(N_STEPS) if t < 4 or t % 3 == 0 or t == N_STEPS - 1]


def configs(root: Path) -> list[RunConfig]:
    """Two runs of three windows, and one that diverges in its first window."""
    whole = [tiny(root, d_model=8, seq_len=4, seed=s) for s in range(2)]
    return [*whole, tiny(root, d_model=8, seq_len=4, optimizer="sgd", peak_lr=1e9)]


def train(root: Path) -> None:
    *whole, diverging = configs(root)
    for batch in (whole, [diverging]):
        list(worker.train_halving(task_of(batch), never))


def ids(study: Path) -> list[str]:
    """The two runs that end at their last step, then the one that diverges."""
    runs = pq.ParquetDataset(study / "tables" / "runs").read(["run_id", "nonfinite_step", "seed"]).to_pylist()
    return [row["run_id"] for row in sorted(runs, key=lambda r: (r["nonfinite_step"] is not None, r["seed"]))]


def lines(study: Path) -> list[str]:
    """The lines below the summary of a study that is not sound."""
    report = check_study(study)
    head, *rest = report.text.splitlines()
    n = sum(not line.startswith("note: ") for line in rest)
    assert not report.sound
    assert head.endswith(f" files, {n} finding{'s' * (n != 1)}")
    return rest


def notes(study: Path) -> list[str]:
    """The lines below the summary of a sound study."""
    report = check_study(study)
    head, *rest = report.text.splitlines()
    assert report.sound, report.text
    assert head.endswith(", sound")
    return rest


AGAIN = "rerun the sweep to train the run again"


def remove(study: Path, *names: str) -> str:
    """The command that removes files in tables/."""
    return " ".join(["rm", *(f"{study}/tables/{name}" for name in names)])


def again(study: Path, *names: str) -> str:
    """The remedy for a run whose files `names` are bad."""
    return f"{remove(study, *names)}, then {AGAIN}" if names else AGAIN


def rewrite(path: Path, change: Callable[[pa.Table], pa.Table]) -> None:
    """Replace the rows of a file."""
    content = change(pq.ParquetFile(path).read())
    path.write_bytes(parquet.encode(path.parent.name, content.cast(schema.SCHEMAS[path.parent.name])))


def set_column(name: str, value: object) -> Callable[[pa.Table], pa.Table]:
    def changed(content: pa.Table) -> pa.Table:
        values = pa.array([value] * content.num_rows, content.schema.field(name).type)
        return content.set_column(content.schema.get_field_index(name), name, values)

    return changed


def flip(path: Path, place: float) -> None:
    """Flip one bit; place: from 0.0, the start of the file, to 1.0."""
    data = bytearray(path.read_bytes())
    data[int(len(data) * place)] ^= 8
    path.write_bytes(data)


def swap(one: Path, two: Path) -> None:
    for source, target in ((one, one.with_name("x")), (two, one), (one.with_name("x"), two)):
        source.rename(target)


def first_rows_again(content: pa.Table) -> pa.Table:
    return pa.concat_tables([content, content.slice(0, 3)])


def lacks(table: str, n: int, of: int, first: int) -> str:
    return f"tables/{table} lacks {n} of {of} steps (the first is step {first})"


RESTORE = f"restore the compacted file from a copy, or {AGAIN}"  # of a run


def restore(study: Path) -> str:
    return f"restore the compacted file from a copy, or move {study} away and rerun the sweep"
