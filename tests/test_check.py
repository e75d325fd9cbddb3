"""`normstudy check`: each kind of damage made really, told with what to do, and mended by doing that."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from handmade import handmade_config, write_handmade_run
from studies import after, assert_same_tables, never, task_of, tiny

from normstudy import check, check_rows, check_state, cli, failures, lock, probes, store, worker
from normstudy.check import check_study
from normstudy.check_rows import Run
from normstudy.compaction import compact_study
from normstudy.config import (
    ConfigError,
    DataConfig,
    ModelConfig,
    OptimizerConfig,
    ProbeConfig,
    RunConfig,
    run_id,
)

RESULTS = Path(__file__).parent.parent / "results"
N_STEPS, WINDOW = 12, 5  # three windows, the last of two steps
PROBED = [t for t in range(N_STEPS) if t < 4 or t % 3 == 0 or t == N_STEPS - 1]


def configs(root: Path) -> list[RunConfig]:
    """Two runs of three windows, and one that diverges in its first."""
    whole = [tiny(root, d_model=8, seq_len=4, seed=s) for s in range(2)]
    return [*whole, tiny(root, d_model=8, seq_len=4, optimizer="sgd", peak_lr=1e9)]


def train(root: Path) -> None:
    *whole, diverging = configs(root)
    for batch in (whole, [diverging]):
        list(worker.train_halving(task_of(batch), never))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store, "window_size", lambda n_steps: WINDOW)
        train(root)
    return root / "tiny"


@pytest.fixture
def study(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(store, "window_size", lambda n_steps: WINDOW)
    return Path(shutil.copytree(made, tmp_path / "tiny"))


@pytest.fixture
def handmade(tmp_path: Path) -> Path:
    """Two runs, one window each."""
    for seed in (8, 9):
        write_handmade_run(tmp_path / "handmade", handmade_config(tmp_path, seed=seed))
    return tmp_path / "handmade"


def ids(study: Path) -> list[str]:
    """The two runs that end at their last step, then the one that diverges."""
    runs = pq.ParquetDataset(study / "tables" / "runs").read(["run_id", "nonfinite_step", "seed"]).to_pylist()
    return [row["run_id"] for row in sorted(runs, key=lambda r: (r["nonfinite_step"] is not None, r["seed"]))]


def lines(study: Path) -> list[str]:
    """What is printed below the summary, of a study that is not sound."""
    report = check_study(study)
    head, *rest = report.text.splitlines()
    n = sum(not line.startswith("note: ") for line in rest)
    assert not report.sound
    assert head.endswith(f" files, {n} finding{'s' * (n != 1)}")
    return rest


def notes(study: Path) -> list[str]:
    """The same of one that is."""
    report = check_study(study)
    head, *rest = report.text.splitlines()
    assert report.sound, report.text
    assert head.endswith(", sound")
    return rest


def remove(study: Path, run: str) -> str:
    tables = f"{study}/tables"
    return f"rm {tables}/runs/{run}.parquet {tables}/*/{run}-[0-9]*.parquet"


def again(study: Path, run: str) -> str:
    return f"{remove(study, run)} and the same sweep trains it again"


def rewrite(path: Path, change: Callable[[pa.Table], pa.Table]) -> None:
    """Put other rows into a file, written as the store does."""
    content = change(pq.ParquetFile(path).read())
    path.write_bytes(store.encode(path.parent.name, content.cast(store.SCHEMAS[path.parent.name])))


def set_column(name: str, value: object) -> Callable[[pa.Table], pa.Table]:
    def changed(content: pa.Table) -> pa.Table:
        values = pa.array([value] * content.num_rows, content.schema.field(name).type)
        return content.set_column(content.schema.get_field_index(name), name, values)

    return changed


def flip(path: Path, place: float) -> None:
    """Another bit in a byte that far into a file."""
    data = bytearray(path.read_bytes())
    data[int(len(data) * place)] ^= 8
    path.write_bytes(data)


def contents(study: Path) -> dict[str, tuple[bytes, int]]:
    files = (p for p in study.rglob("*") if p.is_file())
    return {p.relative_to(study).as_posix(): (p.read_bytes(), p.stat().st_mtime_ns) for p in files}


# ---- sound ----------------------------------------------------------------------------------------------


def test_a_trained_study_is_sound_and_left_as_it_is(study: Path) -> None:
    """3 x 3 windows of each whole run, 3 of the diverged one, 3 rows, 4 files without rows."""
    before = contents(study)
    assert check_study(study) == check.Report(f"{study}: 3 runs, 28 files, sound", True)
    assert contents(study) == before


def test_compacted_and_sealed_ones_are_sound(study: Path) -> None:
    for seal in (False, True):
        compact_study(study, seal=seal)
        assert check_study(study).text.splitlines()[0] == f"{study}: 3 runs, 8 files, sound"
    assert notes(study) == []


def test_runs_beside_the_compacted_ones_are_sound(handmade: Path) -> None:
    compact_study(handmade)
    write_handmade_run(handmade, handmade_config(handmade.parent, seed=3))
    assert check_study(handmade).text == f"{handmade}: 3 runs, 12 files, sound"


def test_windows_of_their_real_size(tmp_path: Path) -> None:
    write_handmade_run(tmp_path, handmade_config(tmp_path, n_steps=2010))
    assert check_study(tmp_path).text == f"{tmp_path}: 1 run, 35 files, sound"


@pytest.mark.parametrize("study_name", ["warmup", "depth", "peak_lr", "rmsnorm", "placements"])
def test_the_committed_studies_are_sound(study_name: str) -> None:
    assert notes(RESULTS / study_name) == []


def test_unfinished_and_failed_runs_are_told_and_sound(study: Path) -> None:
    stopped = tiny(study.parent, d_model=8, seq_len=4, seed=5)
    list(worker.train_halving(task_of([stopped]), after(8)))
    crashed = tiny(study.parent, seed=6)
    failures.report(study, run_id(crashed, "5" * 64), crashed, "Traceback")
    logs = study / "state/logs"
    assert notes(study) == [
        "note: 1 run unfinished: the same sweep goes on with what is there",
        f"note: 1 run failed: tracebacks are in {logs}, and the same sweep tries them again",
    ]
    compact_study(study)
    assert len(notes(study)) == 2


def test_who_uses_a_study_is_told_and_only_while_it_runs(handmade: Path) -> None:
    write_handmade_run(handmade, handmade_config(handmade.parent, seed=3), "running")
    with lock.hold(handmade, "normstudy sweep x"):
        (handmade / "state/steps-x.parquet.host-1.part").write_bytes(b"half")
        (told,) = notes(handmade)
    assert told.startswith(f"note: in use by `normstudy sweep x`, pid {os.getpid()} on ")
    assert told.endswith(": what it has yet to write is no finding")
    assert notes(handmade) == [
        "note: 1 run unfinished: the same sweep goes on with what is there",
        "note: a killed command left 1 file state/*.part: the next sweep removes that",
    ]
    shutil.copytree(handmade / "tables", handmade / lock.OLD_TABLES)  # killed after the swap
    left = "1 file state/*.part and state/tables.old"
    assert notes(handmade)[1] == f"note: a killed command left {left}: the next sweep removes that"


def test_a_study_that_has_just_begun_is_sound(tmp_path: Path) -> None:
    (tmp_path / "tables/runs").mkdir(parents=True)
    assert check_study(tmp_path).text == f"{tmp_path}: 0 runs, 0 files, sound"
    store.prepare(tmp_path)
    assert check_study(tmp_path).text == f"{tmp_path}: 0 runs, 4 files, sound"


def test_a_run_that_began_since_runs_was_read_is_no_finding(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = check._check_runs

    def then_another_begins(found: check.Found, names: list[str]) -> dict[str, Run]:
        runs = real(found, names)
        write_handmade_run(study, handmade_config(study.parent), "running")
        return runs

    monkeypatch.setattr(check, "_check_runs", then_another_begins)
    assert notes(study) == []


def test_a_study_compacted_meanwhile_is_looked_at_again(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, times = check._check_runs, []

    def then_compacted(found: check.Found, names: list[str]) -> dict[str, Run]:
        runs = real(found, names)
        if not times:
            compact_study(study)
        times.append(len(runs))
        return runs

    monkeypatch.setattr(check, "_check_runs", then_compacted)
    assert check_study(study).text == f"{study}: 3 runs, 8 files, sound"
    assert times == [3, 3]


# ---- files of a table -----------------------------------------------------------------------------------


@pytest.mark.parametrize("table", store.TABLES)
@pytest.mark.parametrize("damage", ["empty", "truncated", "first byte", "page", "footer"])
def test_a_damaged_file_is_told_and_mended_by_what_is_said(
    table: str, damage: str, study: Path, made: Path, tmp_path: Path
) -> None:
    run = ids(study)[0]
    name = f"{run}.parquet" if table == "runs" else f"{run}-001.parquet"
    path = study / "tables" / table / name
    if damage == "empty":
        path.write_bytes(b"")
    elif damage == "truncated":
        path.write_bytes(path.read_bytes()[:-20])
    else:
        flip(path, {"first byte": 0.0, "page": 0.1, "footer": (path.stat().st_size - 6) / path.stat().st_size}[damage])
    (line,) = lines(study)
    assert line.startswith(f"{run}: tables/{table}/{name} is damaged (")
    assert line.endswith(f"): {again(study, run)}")
    if table == "modules" and damage == "page":
        mended(line, study, made)


def mended(line: str, study: Path, made: Path) -> None:
    """Do what a line says; the study is then what it was."""
    command = line[line.index(": rm ") + 2 : line.index(" and the same sweep")]
    subprocess.run(command, shell=True, check=True)
    assert notes(study) == []
    train(study.parent)
    assert check_study(study).text == f"{study}: 3 runs, 28 files, sound"
    assert_same_tables(study, made)


def test_no_flipped_bit_is_read_as_other_rows(handmade: Path) -> None:
    """Told, or in a place that is no row's: and never an error of its own."""
    path = sorted((handmade / "tables/modules").glob("*-000.parquet"))[0]
    whole, good = path.read_bytes(), pq.ParquetFile(path).read()
    rng, told = np.random.default_rng(0), 0
    places = [597, 603, *rng.choice(len(whole), 60, replace=False)]  # the first two: an index beyond its dictionary
    for place in places:
        data = bytearray(whole)
        data[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(data)
        if check_study(handmade).sound:
            assert pq.ParquetFile(path).read().equals(good)
        else:
            told += 1
    assert told > len(places) / 2


def test_foreign_files_and_folders_are_to_be_moved_away(study: Path) -> None:
    tables, folder = study / "tables", f"{ids(study)[0]}-003.parquet"
    (tables / "steps" / "notes.txt").write_text("mine")
    (tables / "steps" / "copy.parquet").write_bytes((tables / "steps" / store.SCHEMA_FILE).read_bytes())
    (tables / "runs" / "old").mkdir()
    shutil.copy(next((tables / "steps").glob("*-001.parquet")), tables / "runs")
    (tables / "mine").mkdir()
    (tables / "modules" / folder).mkdir()
    window = next((tables / "runs").glob("*-001.parquet")).name
    what = "is no file of this table, and other readers fail on it: move it away"
    assert lines(study) == [
        "tables/mine: is no table, and a compaction would remove it: move it away",
        *sorted(f"tables/runs/{name}: {what}" for name in (window, "old")),
        f"tables/steps/copy.parquet: {what}",
        f"tables/steps/notes.txt: {what}",
        f"tables/modules/{folder}: {what}",
    ]


def test_the_file_without_rows_is_asked_for(study: Path) -> None:
    makes = f"the next sweep makes it, and so does normstudy compact {study}"
    for table in store.SERIES:
        path = study / "tables" / table / store.SCHEMA_FILE
        if table == "steps":
            path.unlink()
        elif table == "modules":
            shutil.copy(next(path.parent.glob("*-002.parquet")), path)
        else:
            path.write_bytes(path.read_bytes()[:-1])
    n = pq.ParquetFile(study / "tables/modules" / store.SCHEMA_FILE).metadata.num_rows
    steps, modules, residual = lines(study)
    assert steps == f"tables/steps/0-schema.parquet: is missing: {makes}"
    path = study / "tables/modules/0-schema.parquet"
    assert modules == f"tables/modules/0-schema.parquet: has {n} rows, not 0: rm {path}, {makes}"
    assert residual.startswith("tables/residual/0-schema.parquet: is damaged (")
    for table in ("modules", "residual"):
        (study / "tables" / table / store.SCHEMA_FILE).unlink()
    store.prepare(study)
    assert notes(study) == []


def test_a_table_that_is_gone_is_said_of_every_run(study: Path) -> None:
    shutil.rmtree(study / "tables/residual")
    missing, *of_runs = lines(study)
    assert missing.startswith("tables/residual/0-schema.parquet: is missing: ")
    assert [line.split(":")[0] for line in of_runs] == sorted(ids(study))


def test_an_older_schema_is_for_compact(study: Path) -> None:
    for path in (study / "tables/runs").iterdir():
        pq.write_table(pq.ParquetFile(path).read().drop_columns(["first_block", "git_commit"]), path)
    assert lines(study) == [f"tables/runs: 4 files of another version of normstudy: normstudy compact {study}"]
    compact_study(study)
    assert notes(study) == []


def test_a_newer_schema_asks_for_an_update(study: Path) -> None:
    one, two, _ = ids(study)
    for table, name in (("runs", f"{one}.parquet"), ("steps", f"{two}-000.parquet")):
        path = study / "tables" / table / name
        content = pq.ParquetFile(path).read()
        pq.write_table(content.append_column("d_state", pa.nulls(content.num_rows, pa.int64())), path)
    do = "of another version of normstudy: update normstudy, which does not know d_state"
    assert lines(study) == [f"tables/runs: 1 file {do}", f"tables/steps: 1 file {do}"]


def test_a_folder_that_is_no_study(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is not a study"):
        check_study(tmp_path)


def test_a_compaction_ended_between_its_renames(study: Path) -> None:
    os.rename(study / "tables", study / lock.OLD_TABLES)
    told = f"{study} was left in the middle of a compaction: run normstudy compact {study}"
    assert check_study(study) == check.Report(f"{study}: 1 finding\n{told}", False)
    compact_study(study)
    assert notes(study) == []


# ---- rows -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("table", store.SERIES)
@pytest.mark.parametrize("window", [0, 1, 2])
def test_a_window_that_is_gone(table: str, window: int, study: Path) -> None:
    run = ids(study)[1]
    (study / "tables" / table / f"{run}-{window:03d}.parquet").unlink()
    wanted = list(range(N_STEPS)) if table == "steps" else PROBED
    gone = [t for t in wanted if WINDOW * window <= t < WINDOW * (window + 1)]
    what = f"it is done, and tables/{table} lacks {len(gone)} of its {len(wanted)} steps, from {gone[0]} on"
    assert lines(study) == [f"{run}: {what}: {again(study, run)}"]


def test_a_run_without_windows_and_windows_without_a_run(study: Path) -> None:
    one, two, _ = ids(study)
    for path in (study / "tables").glob(f"*/{one}-*.parquet"):
        path.unlink()
    (study / "tables/runs" / f"{two}.parquet").unlink()
    lacks = "it is done, and tables/steps lacks 12 of its 12 steps, from 0 on (and 2 more)"
    orphans = "tables/steps has 3 windows of it, and runs no row"
    tables, same = f"{study}/tables", "and the same sweep trains it again"
    assert lines(study) == sorted(
        [
            f"{one}: {lacks}: rm {tables}/runs/{one}.parquet {same}",
            f"{two}: {orphans}: rm {tables}/*/{two}-[0-9]*.parquet {same}",
        ]
    )


def swap(one: Path, two: Path) -> None:
    for source, target in ((one, one.with_name("x")), (two, one), (one.with_name("x"), two)):
        source.rename(target)


@pytest.mark.parametrize("table", store.TABLES)
def test_two_runs_whose_files_have_each_others_name(table: str, study: Path) -> None:
    one, two, _ = ids(study)
    end, what = (".parquet", "the row") if table == "runs" else ("-001.parquet", "rows")
    folder = study / "tables" / table
    swap(folder / f"{one}{end}", folder / f"{two}{end}")
    assert lines(study) == sorted(
        f"{a}: tables/{table}/{a}{end} holds {what} of {b}: {again(study, a)}" for a, b in ((one, two), (two, one))
    )


def test_files_that_have_the_name_of_another_window_or_table(study: Path) -> None:
    one, two, diverged = ids(study)
    tables = study / "tables"
    swap(tables / f"steps/{one}-000.parquet", tables / f"steps/{one}-001.parquet")
    swap(tables / f"steps/{two}-001.parquet", tables / f"residual/{two}-001.parquet")
    shutil.copy(tables / f"modules/{diverged}-000.parquet", tables / f"modules/{diverged}-001.parquet")
    last = pq.ParquetFile(tables / f"modules/{diverged}-001.parquet").read()["step"].to_pylist()[-1]
    whats = {
        one: f"tables/steps/{one}-000.parquet holds steps 5 to 9, not of 0 to 4 (and 1 more)",
        two: f"tables/steps/{two}-001.parquet is a file of residual (and 1 more)",
        diverged: f"tables/modules/{diverged}-001.parquet holds steps 0 to {last}, not of 5 to 9",
    }
    assert lines(study) == sorted(f"{run}: {what}: {again(study, run)}" for run, what in whats.items())


def first_rows_again(content: pa.Table) -> pa.Table:
    return pa.concat_tables([content, content.slice(0, 3)])


@pytest.mark.parametrize(
    ("table", "change", "what"),
    [
        ("steps", first_rows_again, "{file} has 3 rows twice"),
        ("modules", first_rows_again, "{file} has 3 rows twice"),
        ("residual", first_rows_again, "{file} has 3 rows twice"),
        ("steps", lambda t: t.filter(pc.not_equal(t["step"], 7)), "it is done, and tables/{table} lacks 1 of its "
         "12 steps, from 7 on"),
        ("modules", lambda t: t.filter(pc.not_equal(t["step"], 6)), "it is done, and tables/{table} lacks 1 of its "
         "7 steps, from 6 on"),
        ("modules", lambda t: t.slice(1), "tables/{table} has 9 of 10 rows at step 6"),
        ("residual", lambda t: t.slice(1), "tables/{table} has 1 of 2 rows at step 6"),
        ("residual", lambda t: t.filter(pc.equal(t["layer"], 0)), "tables/{table} has 1 of 2 rows at step 6"),
        ("residual", lambda t: pa.concat_tables([t, set_column("step", 7)(t.slice(0, 1))]), "tables/{table} has "
         "steps that it should not have: 1, from 7 on"),
        ("steps", lambda t: pa.concat_tables([t, set_column("step", None)(t.slice(0, 1))]), "{file} holds steps -1 to "
         "9, not of 5 to 9"),
        ("steps", lambda t: pa.concat_tables([t, set_column("step", 10)(t.slice(0, 1))]), "{file} holds steps 5 to 10, "
         "not of 5 to 9"),
        ("steps", set_column("run_id", None), "{file} holds rows of null"),
    ],
)  # fmt: skip
def test_rows_of_a_window(table: str, change: Callable[[pa.Table], pa.Table], what: str, study: Path) -> None:
    run = ids(study)[0]
    path = study / "tables" / table / f"{run}-001.parquet"
    rewrite(path, change)
    expected = what.format(table=table, file=f"tables/{table}/{path.name}")
    assert lines(study) == [f"{run}: {expected}: {again(study, run)}"]


@pytest.mark.parametrize(
    ("column", "value", "what"),
    [
        ("status", "stopped", "its status stopped is none of running, done, failed"),
        ("identity_version", 2, "its identity_version 2 is not 1, the one known here"),
        ("final_val_loss", None, "it is done with final_val_loss null and nonfinite_step null"),
        ("final_val_loss", float("inf"), "it is done with final_val_loss inf and nonfinite_step null"),
        ("nonfinite_step", 9, "tables/steps has steps that it should not have: 2, from 10 on (and 2 more)"),
    ],
)
def test_rows_of_runs(column: str, value: object, what: str, study: Path) -> None:
    run = ids(study)[0]
    rewrite(study / "tables/runs" / f"{run}.parquet", set_column(column, value))
    assert lines(study) == [f"{run}: {what}: {again(study, run)}"]


@pytest.mark.parametrize(("column", "value"), [("peak_lr", 4e-3), ("resolved_init", "gpt2"), ("data_sha256", None)])
def test_a_row_whose_values_were_changed(column: str, value: object, study: Path) -> None:
    run = ids(study)[0]
    rewrite(study / "tables/runs" / f"{run}.parquet", set_column(column, value))
    (line,) = lines(study)
    assert line.startswith(f"{run}: its row has other values than its run_id stands for, which would end in ")


def test_a_row_file_without_its_row(study: Path) -> None:
    run = ids(study)[0]
    rewrite(study / "tables/runs" / f"{run}.parquet", lambda t: t.slice(1))
    assert lines(study) == [f"{run}: tables/runs/{run}.parquet holds the row of no run: {again(study, run)}"]


def test_steps_at_which_rows_must_be() -> None:
    """The same rule as the one by which they are recorded."""
    for n_steps, dense, every in itertools.product((1, 2, 7, 41), (0, 1, 5, 60), (1, 2, 3, 20, 100)):
        probe = ProbeConfig(dense_steps=dense, every=every)
        for end in (None, 0, n_steps // 2, n_steps - 1, n_steps):
            run = Run("x", "done", n_steps, 1, dense, every, end)
            taken = range(n_steps if end is None else min(end + 1, n_steps))
            assert check_rows.steps_of("steps", run).tolist() == list(taken)
            at = [t for t in taken if probes.is_probed(t, n_steps, probe)]
            assert check_rows.steps_of("modules", run).tolist() == at
            assert check_rows.steps_of("residual", run).tolist() == at


@pytest.mark.parametrize(
    "config",
    [
        RunConfig(),
        RunConfig(study="other", seed=3, data_seed=4, data=DataConfig(name="file", path="x")),
        RunConfig(model=ModelConfig(placement="reordered", norm="rmsnorm", activation="swiglu", positions="rope")),
        RunConfig(model=ModelConfig(placement="none", n_layers=3, tied=True, biases=False)),
        RunConfig(model=ModelConfig(placement="deepnorm", init="gpt2", force_init=True, embed_init="scaled")),
        RunConfig(model=ModelConfig(embed_init="std", embed_std=1, unembed_std=0.5, embed_norm=True, d_ff=17)),
        RunConfig(data=DataConfig(tokenizer="bpe")),
        RunConfig(data=DataConfig(tokenizer="bpe", vocab_size=300)),
        RunConfig(optimizer=OptimizerConfig(name="adamw", weight_decay=1, max_grad_norm=1)),
    ],
)
def test_the_digest_of_a_row_is_that_of_its_run_id(config: RunConfig, tmp_path: Path) -> None:
    name = run_id(config, "5" * 64)
    store.prepare(tmp_path)
    row = {"run_id": name, "status": "running", **store.config_columns(config), "data_sha256": "5" * 64}
    store.write_run(tmp_path, row)
    stored = store.read_row(tmp_path, name)
    assert stored is not None
    assert f"-{check_rows.digest_of(stored)}" == name[-11:]


# ---- compacted ------------------------------------------------------------------------------------------


@pytest.fixture
def compacted(handmade: Path) -> Path:
    compact_study(handmade)
    return handmade


def restore(study: Path) -> str:
    return f"restore it from a copy, or move {study} away and give its sweep again"


@pytest.mark.parametrize("table", store.TABLES)
@pytest.mark.parametrize("damage", ["truncated", "first byte", "page"])
def test_a_damaged_compacted_file_is_one_finding(table: str, damage: str, compacted: Path) -> None:
    """Not one more for each of its runs."""
    path = compacted / "tables" / table / store.COMPACTED_FILE
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:-20])
    else:
        flip(path, 0.0 if damage == "first byte" else 0.2)
    (line,) = lines(compacted)
    assert line.startswith(f"tables/{table}/1-compacted.parquet: is damaged (")
    assert line.endswith(f"): {restore(compacted)}")


def test_a_compacted_file_that_is_gone(compacted: Path) -> None:
    (compacted / "tables/steps" / store.COMPACTED_FILE).unlink()
    what = f"it is done, and tables/steps lacks 60 of its 60 steps, from 0 on: {restore(compacted)}"
    assert lines(compacted) == sorted(f"{run}: {what}" for run in store.finished_ids(compacted))


def test_runs_that_are_there_twice(handmade: Path) -> None:
    copy = Path(shutil.copytree(handmade, handmade.with_name("copy")))
    compact_study(handmade)
    one, two = store.finished_ids(copy)
    shutil.copytree(copy / "tables", handmade / "tables", dirs_exist_ok=True)
    (handmade / "tables/runs" / f"{two}.parquet").unlink()
    row = "it has a row in 1-compacted.parquet and one of its own (and 3 more)"
    windows = "tables/steps has it in 1-compacted.parquet and in 1 window of its own (and 2 more)"
    command = f"rm {handmade}/tables/*/{two}-[0-9]*.parquet"
    assert lines(handmade) == sorted([f"{one}: {row}: {remove(handmade, one)}", f"{two}: {windows}: {command}"])
    for run in (remove(handmade, one), command):
        subprocess.run(run, shell=True, check=True)
    assert notes(handmade) == []


@pytest.mark.parametrize(
    ("table", "change", "what"),
    [
        ("runs", first_rows_again, "it has two rows in runs"),
        ("runs", lambda t: t.slice(1), "tables/steps/1-compacted.parquet has rows of it, and runs no row (and 2 more)"),
        ("steps", lambda t: pa.concat_tables([t.slice(0, 2), t]), "tables/steps/1-compacted.parquet has 2 rows of it "
         "twice"),
        ("steps", lambda t: t.slice(2), "it is done, and tables/steps lacks 2 of its 60 steps, from 0 on"),
        ("modules", lambda t: t.slice(2), "tables/modules has 14 of 16 rows at step 0"),
        ("steps", lambda t: t.slice(60), "it is done, and tables/steps lacks 60 of its 60 steps, from 0 on"),
        ("residual", lambda t: t.slice(1), "tables/residual has 2 of 3 rows at step 0"),
    ],
)  # fmt: skip
def test_rows_of_compacted_files(
    table: str, change: Callable[[pa.Table], pa.Table], what: str, compacted: Path
) -> None:
    one, two = store.finished_ids(compacted)
    rewrite(compacted / "tables" / table / store.COMPACTED_FILE, change)
    runs = (one, two) if change is first_rows_again else (one,)
    assert lines(compacted) == [f"{run}: {what}: {restore(compacted)}" for run in runs]


def test_layers_that_lack_everywhere(compacted: Path) -> None:
    rewrite(compacted / "tables/residual" / store.COMPACTED_FILE, lambda t: t.filter(pc.less(t["layer"], 2)))
    what = f"tables/residual has 2 of 3 rows at step 0: {restore(compacted)}"
    assert lines(compacted) == [f"{run}: {what}" for run in store.finished_ids(compacted)]


def test_without_runs_nothing_is_said_of_the_rows_of_others(compacted: Path) -> None:
    run = write_handmade_run(compacted, handmade_config(compacted.parent, seed=3))
    (compacted / "tables/runs" / f"{run}.parquet").unlink()
    assert len(lines(compacted)) == 1
    path = compacted / "tables/runs" / store.COMPACTED_FILE
    content = pq.ParquetFile(path).read()
    pq.write_table(content.append_column("d_state", pa.nulls(content.num_rows, pa.int64())), path)
    (line,) = lines(compacted)
    assert line.startswith("tables/runs: 1 file of another version of normstudy: ")
    path.write_bytes(path.read_bytes()[:-1])
    (line,) = lines(compacted)
    assert line.startswith("tables/runs/1-compacted.parquet: is damaged (")


def test_a_compacted_file_must_have_each_run_in_one_piece(compacted: Path) -> None:
    one, _ = store.finished_ids(compacted)
    rewrite(compacted / "tables/steps" / store.COMPACTED_FILE, lambda t: pa.concat_tables([t.slice(5), t.slice(0, 5)]))
    told = [line for line in lines(compacted) if line.startswith("tables/")]
    where = "tables/steps/1-compacted.parquet"
    assert told == [f"{where}: has the rows of {one} in two places: {restore(compacted)}"]


@pytest.mark.parametrize("rows", [7, 60, 100])
def test_runs_may_go_over_row_groups(rows: int, compacted: Path) -> None:
    for table in store.SERIES:
        path = compacted / "tables" / table / store.COMPACTED_FILE
        pq.write_table(pq.ParquetFile(path).read(), path, row_group_size=rows)
        assert pq.ParquetFile(path).num_row_groups > 1
    assert notes(compacted) == []


# ---- state and seal -------------------------------------------------------------------------------------


def test_damaged_checkpoints(tmp_path: Path) -> None:
    runs = [tiny(tmp_path, seed=s) for s in range(5)]
    list(worker.train_halving(task_of(runs), after(6)))
    study = tmp_path / "tiny"
    paths = [next((study / "state/checkpoints").glob(f"*-s{s}-*")) for s in range(5)]
    unfinished = "note: 5 runs unfinished: the same sweep goes on with what is there"
    assert notes(study) == [unfinished]
    paths[0].write_bytes(b"")
    paths[1].write_bytes(paths[1].read_bytes()[:-1])
    flip(paths[2], 0.5)
    flip(paths[3], 0.0)
    paths[4].write_bytes(paths[4].read_bytes() + b"x")
    whats = ["is damaged, or of another version of normstudy", *["is damaged (its checksum is another)"] * 2]
    do = "the same sweep sets it aside and starts the run from zero"
    expected = [f"state/checkpoints/{p.name}: {w}: {do}" for p, w in zip(paths, [*whats, *whats[:2]], strict=True)]
    assert lines(study) == [*expected, unfinished]
    list(worker.train_halving(task_of(runs), after(2)))  # what was said
    aside = f"note: 5 checkpoints set aside in {study}/state/set_aside: nothing reads them"
    assert notes(study) == [unfinished, aside]
    swap(paths[0], paths[1])
    assert lines(study)[:2] == [
        f"state/checkpoints/{a.name}: is of another run, {b.name}: {do}" for a, b in (paths[:2], paths[1::-1])
    ]


def test_checkpoints_larger_than_a_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    list(worker.train_halving(task_of([tiny(tmp_path)]), after(6)))
    (path,) = (tmp_path / "tiny/state/checkpoints").iterdir()
    monkeypatch.setattr(check_state, "BLOCK", path.stat().st_size // 3)
    assert len(notes(tmp_path / "tiny")) == 1
    flip(path, 0.9)
    assert len(lines(tmp_path / "tiny")) == 2


@pytest.fixture
def sealed(compacted: Path) -> Path:
    compact_study(compacted, seal=True)
    return compacted


def reseal(study: Path) -> str:
    return f"restore it from a copy, or rm {study}/SEALED && normstudy compact {study} --seal"


def test_a_broken_seal(sealed: Path) -> None:
    rewrite(sealed / "tables/steps" / store.COMPACTED_FILE, set_column("grad_norm", 1.0))
    what = "is not the file that was sealed"
    assert lines(sealed) == [f"tables/steps/1-compacted.parquet: {what}: {reseal(sealed)}"]
    (sealed / store.SEALED).unlink()
    compact_study(sealed, seal=True)
    assert notes(sealed) == []


@pytest.mark.parametrize("text", ["", "{", "[]", '{"runs": 2}', '{"runs": "x", "sha256": {}}'])
def test_a_damaged_seal(text: str, sealed: Path) -> None:
    (sealed / store.SEALED).write_text(text)
    assert lines(sealed) == [f"SEALED: is damaged: {reseal(sealed)}"]


def test_a_seal_of_other_runs(sealed: Path) -> None:
    seal = json.loads((sealed / store.SEALED).read_text())
    (sealed / store.SEALED).write_text(json.dumps(seal | {"runs": 3}))
    assert lines(sealed) == [f"SEALED: names 3 runs, and the tables have 2: {reseal(sealed)}"]


def test_a_sealed_file_that_is_damaged_too(sealed: Path) -> None:
    path = sealed / "tables/runs" / store.COMPACTED_FILE
    path.write_bytes(path.read_bytes()[:-1])
    damaged, seal = lines(sealed)
    assert damaged.startswith("tables/runs/1-compacted.parquet: is damaged (")
    assert seal.startswith("tables/runs/1-compacted.parquet: is not the file that was sealed: ")


def test_a_sealed_file_that_is_gone(sealed: Path) -> None:
    (sealed / "tables/residual" / store.COMPACTED_FILE).unlink()
    what = "is missing, and the study is sealed: restore it from a copy"
    assert lines(sealed)[0] == f"tables/residual/1-compacted.parquet: {what}"


def test_further_files_in_a_sealed_study(sealed: Path) -> None:
    write_handmade_run(sealed, handmade_config(sealed.parent, seed=3))
    what = "the study is sealed, and has files of 1 run beside the sealed ones"
    do = f"move them away, or normstudy compact {sealed} seals them too"
    assert lines(sealed) == [f"SEALED: {what}: {do}"]
    compact_study(sealed)
    assert notes(sealed) == []


# ---- the command ----------------------------------------------------------------------------------------


def test_the_command_and_its_exit_codes(handmade: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["check", str(handmade)]) == 0
    assert capsys.readouterr() == (f"{handmade}: 2 runs, 12 files, sound\n", "")
    (handmade / "tables/steps/x").touch()
    assert cli.main(["check", str(handmade)]) == 1
    assert capsys.readouterr().out.splitlines()[0] == f"{handmade}: 2 runs, 12 files, 1 finding"
    assert cli.main(["check", str(handmade / "tables")]) == 2
    assert "is not a study" in capsys.readouterr().err


def test_a_path_with_a_space_is_quoted(handmade: Path) -> None:
    study = handmade.rename(handmade.with_name("my study"))
    run = next(iter(store.finished_ids(study)))
    flip(study / "tables/steps" / f"{run}-000.parquet", 0.0)
    (line,) = lines(study)
    assert f"rm '{study}/tables'/runs/{run}.parquet '{study}/tables'/*/{run}-[0-9]*.parquet" in line
    subprocess.run(line[line.index(": rm ") + 2 : line.index(" and the same")], shell=True, check=True)
    assert check_study(study).text == f"{study}: 1 run, 8 files, sound"


def test_it_needs_no_torch() -> None:
    code = "import sys; from normstudy import check; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
