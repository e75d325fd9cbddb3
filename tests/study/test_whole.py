"""Whatever of a study is lost or damaged, readers say so, and the same sweep makes the study whole."""

from __future__ import annotations

import contextlib
import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from handmade import handmade_config, write_handmade_run
from hypothesis import given, settings
from hypothesis import strategies as st
from properties import PROPERTY
from studies import NOT_REPRODUCED, REQUEST, after, assert_same_tables, draw_no_figures, never, task_of, tiny

import normstudy
from normstudy.analysis.compare import compare_study
from normstudy.cli.main import main
from normstudy.config import ConfigError, RunConfig
from normstudy.errors import Damaged, MissingRows
from normstudy.exports.source import choose
from normstudy.study import checkpoints, files, parquet, schema, tables
from normstudy.sweep import planning
from normstudy.sweep.run import run_one, run_sweep
from normstudy.upkeep import status
from normstudy.upkeep.check import check_study
from normstudy.upkeep.compact import compact_study
from normstudy.workers import worker

N_STEPS = 250  # two windows


def configs(root: Path) -> list[RunConfig]:
    """Two runs of two windows, and one that diverges in its first."""
    more: dict[str, int] = {"d_model": 8, "seq_len": 4, "n_steps": N_STEPS}
    return [*(tiny(root, seed=s, **more) for s in range(2)), tiny(root, optimizer="sgd", peak_lr=1e9, **more)]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("trained")
    for config in (configs(root)[:2], configs(root)[2:]):
        list(worker.train_halving(task_of(config), never))
    return root / "tiny"


@pytest.fixture
def study(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "tiny"))


def run_of_seed(study: Path, seed: int) -> str:
    runs = tables.read(study, "runs", ["run_id", "seed", "nonfinite_step"])
    (run_id,) = runs.loc[(runs["seed"] == seed) & runs["nonfinite_step"].isna(), "run_id"]
    return str(run_id)


# ---- readers ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["own files", "compacted"])
def sound(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four runs of up to two windows, one diverged and one unfinished; perhaps the finished ones are compacted."""
    root = tmp_path_factory.mktemp("sound")
    for seed, fate in enumerate(("learned", "stuck", "diverged", "running")):
        write_handmade_run(root / "s", handmade_config(root, seed=seed % 2, warmup_steps=seed // 2, n_steps=400), fate)
    unfinished = next(i for i, status in tables.statuses(root / "s").items() if status == "running")
    header = json.dumps({"__metadata__": {"step": "200"}}).encode()
    checkpoint = checkpoints.FORMAT + b"00000000\n" + len(header).to_bytes(8, "little") + header
    (root / "s" / checkpoints.FOLDER).mkdir(parents=True)
    files.place(root / "s", f"{checkpoints.FOLDER}/{unfinished}", checkpoint)
    if request.param == "compacted":
        compact_study(root / "s")
    return root / "s"


def read_everything(study: Path) -> list[object]:
    """What each kind of reader makes of a study."""
    loaded = normstudy.load(study)
    exported = choose(study, ())
    return [
        *loaded, compare_study(study, by="warmup_steps"), status.look(study).outcomes,
        *({name: [part.to_pylist() for part in exported.rows(name)]} for name in schema.TABLES),
    ]  # fmt: skip


def same(one: object, other: object) -> bool:
    if isinstance(one, pd.DataFrame) and isinstance(other, pd.DataFrame):
        with contextlib.suppress(AssertionError):
            pd.testing.assert_frame_equal(one, other, check_exact=True)
            return True
        return False
    return repr(one) == repr(other)


@st.composite
def damages(draw: st.DrawFn) -> Callable[[Path], str]:
    """A deletion, copy, truncation or flipped bit of one file of a table."""
    kind, table = draw(st.sampled_from(("delete", "copy", "truncate", "flip"))), draw(st.sampled_from(schema.TABLES))
    which, where = (draw(st.floats(0, 1, exclude_max=True)) for _ in range(2))
    from_end, bit = draw(st.booleans()), draw(st.integers(0, 7))

    def damage(study: Path) -> str:
        files = sorted((study / "tables" / table).iterdir())
        path = files[int(which * len(files))]
        data = bytearray(path.read_bytes())
        if kind == "delete":
            path.unlink()
        elif kind == "copy":
            other = files[int(where * len(files))]
            path.write_bytes(other.read_bytes())
        elif kind == "truncate":
            path.write_bytes(data[: int(where * len(data))])
        else:
            # Half of the flips are near the end, where the footer says how many rows there are.
            data[-1 - int(where * min(600, len(data))) if from_end else int(where * len(data))] ^= 1 << bit
            path.write_bytes(data)
        return f"{kind} {path.relative_to(study)}"

    return damage


@settings(PROPERTY, max_examples=max(5, PROPERTY.max_examples // 8))
@given(damages())
def test_every_reader_equals_the_undamaged_result_or_says_what_is_missing(
    sound: Path, tmp_path_factory: pytest.TempPathFactory, damage: Callable[[Path], str]
) -> None:
    before = read_everything(sound)
    study = Path(shutil.copytree(sound, tmp_path_factory.mktemp("damaged", numbered=True) / "s"))
    what = damage(study)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        try:
            after_it = read_everything(study)
        except (ConfigError, FileNotFoundError) as error:
            assert told or str(study) in str(error), what  # noqa: PT017
            return
    assert told or all(same(one, other) for one, other in zip(before, after_it, strict=True)), what
    assert all(issubclass(one.category, MissingRows) for one in told)


def test_the_commands_say_it_in_one_line(sound: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Of a run of its own files or of a compacted one; each goes on with the others."""
    study = Path(shutil.copytree(sound, tmp_path / "s"))
    done = [run_id for run_id, status in tables.statuses(study).items() if status == "done"]
    for table in schema.SERIES:
        for path in (study / "tables" / table).glob(f"*{schema.COMPACTED_FILE}"):
            rows = pq.ParquetFile(path).read()
            path.write_bytes(parquet.encode(table, rows.filter(pc.not_equal(rows["run_id"], done[0]))))
    lose("[smr]*/{}-*")(study, done[0])
    for words, what in (
        ("compare {} --by warmup_steps", "steps"), ("status {}", "steps"), ("plot {} --only final_grid", "steps"),
        ("plot {} --only heatmap", "modules"), ("export {} --to csv --out {}/out", "residual"),
    ):  # fmt: skip
        assert main([word.format(study) for word in words.split()]) == 0, words
        err = capfd.readouterr().err
        assert f"warning: {done[0]}: tables/{what} lacks " in err, words
        assert all(line.startswith("warning: ") for line in err.splitlines())
        assert len(set(err.splitlines())) == err.count("\n") <= 3
    assert main(["compact", str(study)]) == 2
    assert capfd.readouterr().err.startswith(f"error: {study} cannot be compacted: {done[0]}: tables/")


# ---- sweeps -------------------------------------------------------------------------------------------


def lose(pattern: str) -> Callable[[Path, str], None]:
    def change(study: Path, run: str) -> None:
        for path in (study / "tables").glob(pattern.format(run)):
            path.unlink()

    return change


def lose_folder(study: Path, run: str) -> None:
    shutil.rmtree(study / "tables/residual")


def shorten(study: Path, run: str) -> None:
    """As a changed bit in a footer does."""
    path = study / "tables/modules" / f"{run}-000.parquet"
    pq.write_table(pq.ParquetFile(path).read().slice(0, 40), path)


def sweep(study: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MissingRows)  # at its start, the sweep says what it trains again
        run_sweep(configs(study.parent), request=REQUEST)


def assert_same_rows(study: Path, trained: Path) -> None:
    """As the undamaged study, in whatever files."""
    for one, other in zip(normstudy.load(study), normstudy.load(trained), strict=True):
        columns = [c for c in other if c not in NOT_REPRODUCED]
        pd.testing.assert_frame_equal(one[columns], other[columns], check_exact=True)


def lose_all(study: Path, run: str) -> None:
    """Each of the three runs lacks something else."""
    diverged, other = sorted({*tables.statuses(study)} - {run})
    lose("steps/{}-000*")(study, run)
    shorten(study, other)
    lose("runs/{}*")(study, diverged)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (
            lose_all,
            {
                "tables/steps lacks 200 of 250 steps (the first is step 0): left out; rerun its sweep",
                "tables/runs lacks the row of ", "tables/modules lacks ",
            },
        ),
        (lose("*/{}-001*"), {"tables/residual lacks "}),
        (lose_folder, {"tables/residual lacks "}),
    ],
)  # fmt: skip
def test_the_same_sweep_trains_again_what_is_gone(
    change: Callable[[Path, str], None], what: set[str], study: Path, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw_no_figures(monkeypatch)
    change(study, run_of_seed(study, 0))
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        normstudy.load(study)
        for table in schema.TABLES:
            (*_,) = choose(study, ()).rows(table)
    for one in what:
        assert sum(one in str(line.message) for line in told) >= 2  # of load and of the export
    assert not check_study(study).sound
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MissingRows)
        with pytest.raises(ConfigError, match="cannot be compacted: "):
            compact_study(study, seal=True)
    sweep(study)
    assert check_study(study).sound
    assert_same_tables(study, trained)


@pytest.mark.parametrize("lost", ["a file", "rows"])
def test_a_compacted_study_gets_back_what_is_gone(
    lost: str, study: Path, trained: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    draw_no_figures(monkeypatch)
    compact_study(study)
    path, run = study / "tables/residual" / schema.COMPACTED_FILE, run_of_seed(study, 0)
    if lost == "a file":
        path.unlink()
    else:
        rows = pq.ParquetFile(path).read()
        kept = rows.filter(pc.or_(pc.not_equal(rows["run_id"], run), pc.less(rows["step"], 200)))
        path.write_bytes(parquet.encode("residual", kept))
    for command in (["compact", str(study)], ["compact", str(study), "--seal"]):
        assert main(command) == 2
        assert "cannot be compacted: " in capsys.readouterr().err
    with pytest.raises(ConfigError, match=f"^the compacted tables of {study} lack rows of {run}: rerun .* sweep$"):
        run_one(configs(study.parent)[0], request=REQUEST)  # other commands may be writing to the study
    assert capsys.readouterr().out.endswith(": trained again\n")
    sweep(study)
    assert capsys.readouterr().out.count("trained again") == 1
    assert check_study(study).sound
    assert_same_rows(study, trained)


def test_one_run_is_trained_again_by_its_own_command(study: Path, trained: Path) -> None:
    lose("modules/{}-001*")(study, run_of_seed(study, 1))
    run_one(configs(study.parent)[1], request=REQUEST)
    assert_same_tables(study, trained)


def test_without_the_compacted_runs_nothing_is_trained_beside_the_other_tables(study: Path) -> None:
    compact_study(study)
    (study / "tables/runs" / schema.COMPACTED_FILE).unlink()
    before = contents(study)
    for do in (normstudy.load, status.look, lambda folder: planning.plan(configs(folder.parent))):
        with pytest.raises(
            ConfigError, match=r"1-compacted.parquet is missing, but tables/steps has rows of the missing runs: "
        ):
            do(study)
    shutil.rmtree(study / "tables/runs")
    with pytest.raises(ConfigError, match=r"1-compacted.parquet is missing"):
        planning.plan(configs(study.parent))
    assert contents(study).items() <= before.items()


def test_an_older_copy_of_the_compacted_runs_is_no_study(study: Path) -> None:
    """Neither read as if the later runs had never been, nor trained beside their rows."""
    compact_study(study)
    path = study / "tables/runs" / schema.COMPACTED_FILE
    path.write_bytes(parquet.encode("runs", pq.ParquetFile(path).read().slice(1)))
    before = contents(study)
    for do in (normstudy.load, status.look, compact_study, lambda folder: planning.plan(configs(folder.parent))):
        with pytest.raises(
            ConfigError, match=r"1-compacted.parquet lacks .*, but tables/steps has rows of the missing "
        ):
            do(study)
    assert not check_study(study).sound
    assert contents(study) == before


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_a_sealed_study_that_lacks_rows_is_neither_trained_nor_sealed_again(study: Path) -> None:
    compact_study(study, seal=True)
    path = study / "tables/steps" / schema.COMPACTED_FILE
    path.write_bytes(parquet.encode("steps", pq.ParquetFile(path).read().slice(9)))
    before = contents(study)
    with pytest.raises(ConfigError, match=r"is sealed, but .* tables/steps lacks 2 of 2 .*: restore .* from a copy$"):
        planning.plan(configs(study.parent))
    with pytest.raises(ConfigError, match=r"cannot be compacted: tables/steps/1-compacted.parquet: has changed since"):
        compact_study(study)
    assert contents(study) == before


def test_a_damaged_file_stops_the_sweep_and_check_names_the_file_to_remove(
    study: Path, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In any table; at the end, one sweep trains what the removed files held."""
    draw_no_figures(monkeypatch)
    damaged = []
    for table in schema.TABLES:
        path = study / "tables" / table / (run_of_seed(study, 0) + (".parquet" if table == "runs" else "-001.parquet"))
        data = path.read_bytes()
        path.write_bytes(data[:-9])
        with pytest.raises(Damaged, match=f"^{path} cannot be read .*: run normstudy check {study}$"):
            planning.plan(configs(study.parent))
        _, line = check_study(study).text.splitlines()
        assert line.endswith(f": rm {path}, then rerun the sweep to train the run again")
        path.write_bytes(data)
        damaged.append(path)
    for path in damaged:
        path.unlink()
    sweep(study)
    assert_same_tables(study, trained)


def test_a_damaged_file_that_only_the_figures_read_fails_the_sweep(study: Path) -> None:
    path = study / "tables/residual" / f"{run_of_seed(study, 1)}-000.parquet"
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(Damaged, match=f"^{path} cannot be read"):
        run_sweep(configs(study.parent)[:1], request=REQUEST)  # it does not ask for the run of seed 1


# ---- unfinished runs ----------------------------------------------------------------------------------


@pytest.mark.parametrize("damages", [("lost", "truncated"), ("of another run", "row")])
def test_damaged_files_of_unfinished_runs_are_replaced(
    damages: tuple[str, str], trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw_no_figures(monkeypatch)
    study, wanted = tmp_path / "tiny", configs(tmp_path)
    list(worker.train_halving(task_of(wanted[:2]), after(220)))
    one, two = (path.name for path in sorted((study / checkpoints.FOLDER).iterdir()))
    for damage, run in zip(damages, (one, two), strict=True):
        path = study / "tables/steps" / f"{run}-000.parquet"
        row = study / "tables/runs" / f"{run}.parquet"
        if damage == "lost":
            path.unlink()
        elif damage == "row":
            row.write_bytes(row.read_bytes()[:-9])
        else:
            other = path.with_stem(f"{two}-000")
            path.write_bytes(path.read_bytes()[:-9] if damage == "truncated" else other.read_bytes())
    before = contents(study)
    planning.plan(wanted)
    assert contents(study) == before, "a plan writes nothing"
    sweep(study)
    assert_same_tables(study, trained)


def test_windows_of_unknown_origin_are_not_kept(study: Path, trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their row is gone, so another machine may have computed them."""
    draw_no_figures(monkeypatch)
    run = run_of_seed(study, 0)
    (study / "tables/runs" / f"{run}.parquet").unlink()
    path = study / "tables/steps" / f"{run}-000.parquet"
    rows = pq.ParquetFile(path).read()
    other = pa.array([1.0] * len(rows), rows.schema.field("grad_norm").type)
    path.write_bytes(
        parquet.encode("steps", rows.set_column(rows.schema.get_field_index("grad_norm"), "grad_norm", other))
    )
    sweep(study)
    assert_same_tables(study, trained)


# ---- names --------------------------------------------------------------------------------------------


STRANGE = (
    "{} (1).parquet", "._{}.parquet", "Copy of {}.parquet", "{}.parquet.icloud", "{}-conflict.parquet", ".DS_Store",
)  # fmt: skip


@pytest.mark.parametrize("table", ["runs", "steps"])
def test_only_names_that_the_store_writes_are_read(table: str, study: Path, trained: Path) -> None:
    run = run_of_seed(study, 0) + ("" if table == "runs" else "-000")
    strays = [study / "tables" / table / name.format(run) for name in STRANGE]
    for stray in strays:
        shutil.copy(study / "tables" / table / f"{run}.parquet", stray)
    with pytest.warns(MissingRows, match=" and 5 more: ignored, because normstudy never writes files with") as told:
        assert_same_rows(study, trained)
    assert len({str(one.message) for one in told}) == 1
    report = check_study(study).text
    for stray in strays:
        assert not schema.is_stored(table, stray.name)
        assert f"tables/{table}/{stray.name}: " in report
    with pytest.warns(MissingRows), pytest.raises(ConfigError, match="because that would delete"):
        compact_study(study)
    assert all(stray.exists() for stray in strays)


def test_what_a_sweep_would_delete_with_a_compacted_run_is_left(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A user has put back a file under another name."""
    draw_no_figures(monkeypatch)
    compact_study(study)
    path = study / "tables/steps" / schema.COMPACTED_FILE
    path.rename(path.with_stem("1-compacted (1)"))
    before = contents(study / "tables")
    with pytest.raises(ConfigError, match="because that would delete "):
        sweep(study)
    assert contents(study / "tables") == before


def test_a_compaction_of_a_sealed_study_that_was_killed_is_ended(study: Path) -> None:
    compact_study(study, seal=True)
    (study / "state").mkdir()
    (study / "tables").rename(study / files.OLD_TABLES)
    compact_study(study)
    assert (study / schema.SEALED).exists()
    assert check_study(study).sound


def test_what_a_checkpoint_says_to_be_there_is_missed(trained: Path, tmp_path: Path) -> None:
    """By every reader, although the run is not finished."""
    study = tmp_path / "tiny"
    list(worker.train_halving(task_of(configs(tmp_path)[:2]), after(220)))
    for path in (study / "tables/modules").glob("*-000.parquet"):
        path.unlink()
    with pytest.warns(MissingRows, match=r"tables/modules lacks \d+ of \d+ .* \(and of 1 more run\)"):
        assert normstudy.load(study).modules.empty
    with pytest.warns(MissingRows, match="tables/modules lacks "):
        assert not any(rows.num_rows for rows in choose(study, ()).rows("modules"))
    assert check_study(study).text.count("tables/modules lacks ") == 2
