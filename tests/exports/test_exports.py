"""What `normstudy export` writes, opened by the tools it is for, equals what `normstudy.load` returns."""

from __future__ import annotations

import csv
import datetime
import getpass
import gzip
import http.server
import json
import math
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from handmade import H1, H2, SHA256, START, handmade_config, write_handmade_run
from processes import start, wait_for

import normstudy
from normstudy import config
from normstudy.analysis.load import Tables
from normstudy.cli import main
from normstudy.config import ConfigError
from normstudy.errors import MissingRows, printable
from normstudy.exports.export import FORMATS, export_study
from normstudy.exports.source import by_run, choose
from normstudy.study import schema, tables
from normstudy.study.parquet import read_file, read_row, write_options
from normstudy.upkeep.compact import compact_study

FORMULA = "=HYPERLINK(\"http://x\",'a,b')"
PRIVATE = "the user's own notes"
N_STEPS = 210  # two windows
# Characters that readers take for a pattern, a column or a server, in a folder beneath one with a space.
ODD = Path("my studies", "a=1 [b] *? s3:")


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six runs of every status, one of them diverged, one with text like a formula; two are compacted."""
    root = tmp_path_factory.mktemp("exports")
    folder = root / ODD

    def add(fate: str, columns: dict[str, object] | None = None, loss: float | None = None, **of: Any) -> None:
        made = handmade_config(root, n_steps=N_STEPS, **of)
        made.probe.dense_steps = 20
        write_handmade_run(folder, made, fate, loss, columns)

    add("learned", seed=0)
    add("learned", {"data_path": FORMULA, "placement": "my_blocks:f"}, -1.5, placement="post", seed=3)
    compact_study(folder)
    add("diverged", placement="post", seed=0)
    add("failed", placement="post", seed=1)
    add("running", placement="post", seed=2)
    add("learned", seed=1, warmup_steps=20)
    return folder


def export(study: Path, to: str, out: Path, **where: str) -> str:
    return export_study(study, to=to, out=out, where=where)


def rows_of(study: Path) -> pa.Table:
    """The table `runs`, for by_run."""
    parts = [part for path in (study / "tables/runs").iterdir() for part in read_file(path, schema.SCHEMAS["runs"])]
    return pa.concat_tables(parts).sort_by("run_id")


def run_ids(study: Path) -> list[str]:
    return [str(name) for name in tables.read(study, "runs")["run_id"]]


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def needs(to: str) -> None:
    if to in ("tensorboard", "wandb-offline"):
        name = to.partition("-")[0]
        pytest.importorskip(name, reason=f"pip install {name}")


# ---- the rows -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("table", schema.SERIES)
def test_the_rows_of_each_run_are_those_of_the_store(study: Path, table: str) -> None:
    names = run_ids(study)
    runs = rows_of(study)
    pieces = list(by_run(study, table, runs))
    assert [set(piece["run_id"].to_pylist()) for piece in pieces] == [{name} for name in names]
    expected = tables.read(study, table)
    frame = pa.concat_tables(pieces).to_pandas().astype(expected.dtypes.to_dict())
    pd.testing.assert_frame_equal(frame, expected, check_exact=True)
    alone = [piece for i in range(len(names)) for piece in by_run(study, table, runs.slice(i, 1))]
    assert all(one.equals(other) for one, other in zip(pieces, alone, strict=True))


def test_row_groups_that_end_within_a_run_are_put_together(study: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(study, tmp_path / "copy")
    path = copy / "tables" / "steps" / schema.COMPACTED_FILE
    import pyarrow.parquet as pq

    pq.write_table(pq.read_table(path), path, row_group_size=100, **write_options("steps"))
    assert pq.ParquetFile(path).num_row_groups == 5
    runs = rows_of(study)
    for one, other in zip(by_run(study, "steps", runs), by_run(copy, "steps", runs), strict=True):
        assert one.equals(other)


def test_a_run_without_rows_has_an_empty_piece(study: Path) -> None:
    runs = rows_of(study)
    began = runs.slice(0, 1).set_column(1, "status", [["running"]])
    first, last = (began.set_column(0, "run_id", [[name]]) for name in "az")
    pieces = list(by_run(study, "steps", pa.concat_tables([first, runs, last])))
    assert [piece.num_rows for piece in (pieces[0], pieces[-1])] == [0, 0]
    assert all(piece.num_rows for piece in pieces[1:-1])


@pytest.mark.parametrize("to", FORMATS)
def test_a_damaged_file_is_told_of(study: Path, tmp_path: Path, to: str) -> None:
    needs(to)
    copy = shutil.copytree(study, tmp_path / "copy")
    path = max((copy / "tables" / "modules").glob("pre*-000.parquet"), key=lambda p: p.stat().st_size)
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 1
    path.write_bytes(data)
    with pytest.raises(ConfigError, match=rf"(?s)^{path} cannot be read \(.*\): run normstudy check {copy}$") as told:
        export(copy, to, tmp_path / "out", placement="pre")  # the second of two runs is the damaged one
    assert "\n" not in str(told.value)
    assert [p.name for p in tmp_path.iterdir()] == ["copy"]


def test_a_file_that_a_compaction_takes_away_meanwhile_is_told_of(study: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(study, tmp_path / "copy")
    rows = by_run(copy, "steps", rows_of(copy))
    next(rows)
    compact_study(copy)
    with pytest.raises(ConfigError, match="was moved while it was read: rerun the same command"):
        list(rows)


# ---- csv ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def csv_files(study: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("csv") / "out"
    export(study, "csv", out)
    return out


def assert_csv(path: Path, expected: pd.DataFrame) -> None:
    """Assert that a CSV file has the columns and the values of a frame, to the bit."""
    frame = pd.read_csv(path, dtype=str, keep_default_na=False)
    if "data_path" in frame:
        frame["data_path"] = frame["data_path"].replace("'" + FORMULA, FORMULA)
    assert list(frame) == list(expected)
    for name, kind in expected.dtypes.items():
        cells = frame[name].astype(object).mask(frame[name] == "", None)
        if pd.api.types.is_bool_dtype(kind):
            cells = cells == "true"
        elif pd.api.types.is_float_dtype(kind):  # by float(), as pandas' reader may round differently
            cells = pd.Series([math.nan if cell is None else float(cell) for cell in cells])
        frame[name] = cells.astype(kind)
    pd.testing.assert_frame_equal(frame, expected, check_exact=True)


@pytest.mark.parametrize("table", schema.TABLES)
def test_csv_gives_pandas_the_same_frame(study: Path, csv_files: Path, table: str) -> None:
    assert_csv(csv_files / f"{table}.csv", getattr(normstudy.load(study), table))


def test_csv_gives_polars_the_same_numbers(study: Path, csv_files: Path) -> None:
    expected = tables.read(study, "modules")
    kinds = {"layer": pl.Int32, "grad_norm": pl.Float32, "update_norm": pl.Float32}
    frame = pl.read_csv(csv_files / "modules.csv", schema_overrides=kinds)
    assert frame["module"].to_list() == expected["module"].tolist()
    assert frame["layer"].to_list() == [None if np.isnan(x) else int(x) for x in expected["layer"]]
    for name in ("grad_norm", "update_norm"):
        assert frame[name].to_numpy().tobytes() == expected[name].to_numpy(np.float32).tobytes()


def test_a_null_is_an_empty_cell_and_a_number_that_is_none_says_so(study: Path, csv_files: Path) -> None:
    with open(csv_files / "steps.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == [*schema.SCHEMAS["steps"].names, "update_rms"]
    assert rows[1]["val_loss"] == ""
    assert float(np.float32(rows[0]["val_loss"])) == tables.read(study, "steps")["val_loss"][0]
    diverged = [row for row in rows if row["train_loss"] == "inf"]
    assert [(row["step"], row["run_id"].rpartition("-")[0]) for row in diverged] == [
        (str(N_STEPS // 2 - 1), "post-L2-lr1e-3-wu0-s0")
    ]


def test_a_cell_like_a_formula_is_text_and_a_negative_number_a_number(csv_files: Path) -> None:
    with open(csv_files / "runs.csv", newline="") as file:
        rows = {row["final_val_loss"]: row["data_path"] for row in csv.DictReader(file)}
    assert rows["-1.5"] == "'" + FORMULA


def test_every_beginning_of_a_formula_is_made_harmless() -> None:
    from normstudy.exports.to_csv import harmless

    dangerous = ["=a", "+a", "-a", "@a", "\ta", "\ra", "\na", "\0a", "=", "=a\n=b"]
    safe = ["a=b", "a\n=b", "", "'=a", " a", None]
    rows = harmless(pa.table({"text": [*dangerous, *safe], "number": [-1.0] * (len(dangerous) + len(safe))}))
    shown = [*("'" + text for text in dangerous), *safe]
    assert rows["text"].to_pylist() == [text if text is None else printable(text) for text in shown]
    assert set(rows["number"].to_pylist()) == {-1.0}


# ---- duckdb -------------------------------------------------------------------------------------------


def assert_duckdb(path: Path, expected: Tables) -> None:
    """Assert that a database has the columns and the values of the frames, to the bit."""
    with duckdb.connect(str(path), read_only=True) as database:
        for table, frame in expected._asdict().items():
            found = database.sql(f"from {table}").to_arrow_table().to_pandas()
            pd.testing.assert_frame_equal(found.astype(frame.dtypes.to_dict()), frame, check_exact=True)


def test_duckdb_has_the_four_tables_with_the_types_of_parquet(study: Path, tmp_path: Path) -> None:
    told = export(study, "duckdb", tmp_path / "out.duckdb")
    derived = {"runs": [("outcome", "VARCHAR"), ("gap_closed", "DOUBLE"), ("bits_per_byte", "DOUBLE")]}
    derived |= {"steps": [("update_rms", "FLOAT")], "modules": [("update_ratio", "FLOAT")]}
    with duckdb.connect(str(tmp_path / "out.duckdb"), read_only=True) as database:
        names = database.execute("select table_name from information_schema.tables").fetchall()
        assert {name for (name,) in names} == set(schema.TABLES)
        for table in schema.TABLES:
            shutil.copytree(study / "tables" / table, tmp_path / table)
            columns = "select column_name, column_type from (describe from {})"
            types = database.execute(columns.format(table)).fetchall()
            parquet = f"read_parquet('{tmp_path}/{table}/*.parquet')"
            assert types == database.execute(columns.format(parquet)).fetchall() + derived.get(table, [])
            assert dict(types)["run_id"] == "VARCHAR"
    assert_duckdb(tmp_path / "out.duckdb", normstudy.load(study))
    ran = subprocess.run(told.splitlines()[1], shell=True, capture_output=True, text=True, check=True)
    assert run_ids(study)[0][:10] in ran.stdout


# ---- tensorboard --------------------------------------------------------------------------------------


def scalars_of(study: Path, run_id: str) -> dict[str, list[tuple[int, float]]]:
    """tag -> [(step, value)] that the export must have, computed from the tables."""
    found: dict[str, list[tuple[int, float]]] = {}
    kinds = {"steps": "", "modules": "", "residual": "residual_"}
    for table, prefix in kinds.items():
        frame = tables.read(study, table)
        for row in frame[frame["run_id"] == run_id].to_dict("records"):
            layer, module = row.get("layer", math.nan), row.get("module", "")
            place = ("" if math.isnan(layer) else f"/layer {int(layer)}") + (f"/{module}" if module else "")
            for name in set(row) - {"run_id", "step", "layer", "module"}:
                if not math.isnan(row[name]):
                    found.setdefault(prefix + name + place, []).append((int(row["step"]), float(row[name])))
    return found


@pytest.fixture(scope="module")
def event_folders(study: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("tensorboard", reason="pip install tensorboard")
    out = tmp_path_factory.mktemp("tensorboard") / "out"
    assert export(study, "tensorboard", out).splitlines()[1] == f"tensorboard --logdir {out}"
    return out


def accumulated(folder: Path) -> Any:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    return EventAccumulator(str(folder), size_guidance={"scalars": 0, "tensors": 0}).Reload()


def test_tensorboard_reads_every_number(study: Path, event_folders: Path) -> None:
    assert sorted(p.name for p in event_folders.iterdir()) == run_ids(study)
    for run_id in run_ids(study):
        expected = scalars_of(study, run_id)
        assert {"train_loss", "val_loss", "grad_norm/layer 0/attn_in", "grad_norm/embed"} <= set(expected)
        assert {"residual_rms/layer 2", "residual_grad_norm/layer 0"} <= set(expected)
        found = accumulated(event_folders / run_id)
        assert set(found.Tags()["scalars"]) == set(expected)
        for tag, values in expected.items():
            assert [(e.step, e.value) for e in found.Scalars(tag)] == values


def test_tensorboard_has_a_runs_row_as_text_and_its_hyperparameters(study: Path, event_folders: Path) -> None:
    from tensorboard.plugins.hparams.metadata import SESSION_START_INFO_TAG, parse_session_start_info_plugin_data

    runs = tables.read(study, "runs").set_index("run_id")
    (own,) = runs.index[runs["placement"] == "my_blocks:f"]
    found = accumulated(event_folders / own)
    text = found.Tensors("run")[0].tensor_proto.string_val[0].decode()
    assert text.startswith("| column | value |\n|---|---|\n| run_id | `f-L2" if own.startswith("f-") else "| column |")
    assert "\n| placement | `my_blocks:f` |\n" in text
    assert f"\n| data_path | `{FORMULA}` |\n" in text
    assert "max_grad_norm" not in text
    content = found.SummaryMetadata(SESSION_START_INFO_TAG).plugin_data.content
    told = parse_session_start_info_plugin_data(content)
    assert told.group_name == own
    assert told.hparams["peak_lr"].number_value == 1e-3
    assert told.hparams["biases"].bool_value is True
    assert told.hparams["placement"].string_value == "my_blocks:f"
    derived = normstudy.load(study).runs.set_index("run_id").loc[own]
    assert f"\n| outcome | `{derived['outcome']}` |\n" in text
    assert told.hparams["outcome"].string_value == derived["outcome"] == "learned"
    for name in ("gap_closed", "bits_per_byte"):
        assert told.hparams[name].number_value == derived[name]


def test_the_time_of_a_step_lies_between_start_and_end(study: Path, event_folders: Path) -> None:
    runs = tables.read(study, "runs").set_index("run_id")
    for run_id, status in runs["status"].items():
        events = accumulated(event_folders / str(run_id)).Scalars("train_loss")
        assert runs["started_at"][run_id] == START
        seconds = [e.wall_time - START.timestamp() for e in events]
        n = len(events)
        each = 2 / n if status == "done" else 1.0  # a run without an end has one second per step
        assert seconds == pytest.approx([each * (step + 1) for step in range(n)], abs=1e-6)


def test_the_same_study_gives_the_same_event_files(study: Path, event_folders: Path, tmp_path: Path) -> None:
    export(study, "tensorboard", tmp_path / "again")
    once, again = contents(event_folders), contents(tmp_path / "again")
    assert once == again
    assert not [name for name in once if socket.gethostname() in name]


def test_a_run_that_failed_before_its_first_step_has_its_row(study: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="pip install tensorboard")
    copy = shutil.copytree(study, tmp_path / "copy")
    config_ = handmade_config(tmp_path, seed=8)
    name = config.run_id(config_, SHA256)
    end = START + datetime.timedelta(days=1)
    row = {"run_id": name, "status": "failed", "finished_at": end, **schema.config_columns(config_)}
    tables.write_runs(copy, [row])
    export(copy, "tensorboard", tmp_path / "out", seed="8")
    found = accumulated(tmp_path / "out" / name)
    assert found.Tags()["scalars"] == []
    assert found.Tensors("run")[0].wall_time == end.timestamp() - 1


# ---- wandb --------------------------------------------------------------------------------------------


class Server:
    """The part of a W&B server that `wandb sync` needs, on this machine; keeps everything that it receives."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []  # variables of each request that creates or changes a run
        self.sent: list[dict[str, Any]] = []  # requests to the file stream
        self.n_requests = 0
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                outer.n_requests += 1
                plain = gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body
                self.answer(outer.answer(self.path, json.loads(plain)))

            def answer(self, content: object) -> None:
                data = json.dumps(content).encode()
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, format: str, *args: object) -> None:
                pass

        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, daemon=True).start()

    def answer(self, path: str, content: dict[str, Any]) -> object:
        if not path.endswith("/graphql"):
            self.sent.append({"path": path, **content})
            return {}
        if "upsertBucket" not in content["query"]:
            return {"data": {}}
        self.asked.append(content["variables"])
        project = {"id": "cA==", "name": "p", "entity": {"id": "ZQ==", "name": "e"}}
        name = content["variables"]["name"]
        bucket = {"id": "aWQ=", "name": name, "displayName": name, "config": "{}", "project": project}
        return {"data": {"upsertBucket": {"bucket": bucket, "inserted": True}}}


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    made = Server()
    yield made
    made.http.shutdown()
    made.http.server_close()


@pytest.fixture(scope="module")
def offline(study: Path, server: Server, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The offline runs, written while the user's variables ask for an online run and a server listens."""
    pytest.importorskip("wandb", reason="pip install wandb")
    out = tmp_path_factory.mktemp("wandb") / "my runs"
    with pytest.MonkeyPatch.context() as patch:
        said = {"MODE": "online", "BASE_URL": server.url, "API_KEY": "0123456789" * 4, "DIR": "/", "NOTES": PRIVATE}
        for name, value in said.items():
            patch.setenv(f"WANDB_{name}", value)
        told = export(study, "wandb-offline", out)
        assert os.environ["WANDB_MODE"] == "online"
    assert told.splitlines()[1] == f"wandb sync '{out}/wandb'/offline-run-*"
    assert server.n_requests == 0
    return out


@pytest.fixture(scope="module")
def synced(offline: Path, server: Server, tmp_path_factory: pytest.TempPathFactory) -> Server:
    """The server after `wandb sync` has sent the offline runs."""
    home = tmp_path_factory.mktemp("home")
    copy = shutil.copytree(offline, home / "copy")  # wandb marks what it has sent
    env = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    env |= {f"WANDB_{kind}_DIR": str(home) for kind in ("CACHE", "CONFIG", "DATA")} | {"HOME": str(home)}
    env |= {"WANDB_BASE_URL": server.url, "WANDB_API_KEY": "0123456789" * 4, "WANDB_ERROR_REPORTING": "false"}
    program = [sys.executable, "-m", "wandb", "sync", *map(str, sorted((copy / "wandb").iterdir()))]
    ran = subprocess.run(program, env=env, capture_output=True, text=True, timeout=60, cwd=home)
    assert ran.returncode == 0, ran.stderr
    assert ran.stderr.count("Finished syncing") == 6
    return server


def test_wandb_sync_sends_every_number(study: Path, synced: Server) -> None:
    for run_id in run_ids(study):
        sent = [one["files"] for one in synced.sent if one["path"] == f"/files/e/p/{run_id}/file_stream"]
        pieces = [files["wandb-history.jsonl"] for files in sent if "wandb-history.jsonl" in files]
        lines = [json.loads(line) for piece in pieces for line in piece["content"]]
        assert [line["_step"] for line in lines] == list(range(len(lines)))
        found: dict[str, list[tuple[int, float]]] = {}
        for line in lines:
            for name in set(line) - {"_step", "_runtime", "_timestamp"}:
                found.setdefault(name, []).append((line["_step"], float(line[name])))
        assert found == scalars_of(study, run_id)
        assert lines[0]["_timestamp"] > START.timestamp()
        assert [line["_timestamp"] for line in lines] == sorted(line["_timestamp"] for line in lines)


def test_wandb_sync_sends_the_config_and_how_a_run_ended(study: Path, synced: Server) -> None:
    runs = normstudy.load(study).runs.set_index("run_id")
    assert set(runs["outcome"]) == {"learned", "diverged", None}
    for run_id, row in runs.iterrows():
        asked = [one for one in synced.asked if one["name"] == run_id]
        assert {(one["displayName"], one["project"]) for one in asked[:1]} == {(run_id, "handmade")}
        assert asked[0]["tags"] == [row["status"]]
        told = {name: one["value"] for name, one in json.loads(asked[0]["config"]).items() if name != "_wandb"}
        expected = {name: row[name] for name in config.asked_types() if name != "data_path"}
        assert told == {name: None if pd.isna(value) else value for name, value in expected.items()}
        sent = [one for one in synced.sent if one["path"].endswith(f"/{run_id}/file_stream")]
        assert [one["exitcode"] for one in sent if one.get("complete")] == [int(row["status"] == "failed")]
        summaries = [one["files"]["wandb-summary.json"] for one in sent if "wandb-summary.json" in one.get("files", {})]
        summary = json.loads(summaries[-1]["content"][-1])
        assert summary["status"] == row["status"]
        for name in ("outcome", "gap_closed", "bits_per_byte"):
            assert summary.get(name) == (None if pd.isna(row[name]) else row[name])
        assert summary.get("final_val_loss") == (None if pd.isna(row["final_val_loss"]) else row["final_val_loss"])
        assert summary.get("nonfinite_step") == (None if pd.isna(row["nonfinite_step"]) else row["nonfinite_step"])


def test_the_offline_runs_name_nothing_of_this_machine(study: Path, offline: Path, synced: Server) -> None:
    files = contents(offline)
    ids = sorted(name.rpartition("/run-")[2] for name in files)
    assert ids == [f"{run_id}.wandb" for run_id in run_ids(study)]
    assert [p.name for p in offline.iterdir()] == ["wandb"]
    assert all(p.name.startswith("offline-run-") for p in (offline / "wandb").iterdir())
    private = [socket.gethostname(), str(Path.home()), str(offline), str(study), sys.executable, os.getcwd()]
    private = [text for text in private if len(text) > 3]  # a short name such as vm is part of other words
    private += [f'"{getpass.getuser()}"', FORMULA, PRIVATE]
    assert {one["host"] for one in synced.asked} - {None} == {"normstudy"}
    said = [*files.values(), *(json.dumps(one).encode() for one in (*synced.asked, *synced.sent))]
    assert not [text for text in private for data in said if text.encode() in data]


# ---- derived and joined columns -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of each fate by seed; seeds 0 and 1 have two versions of a block, and texts of other tokens than bytes."""
    root = tmp_path_factory.mktemp("judged")
    for seed, fate in enumerate(("learned", "stuck", "diverged", "failed", "running")):
        columns = {"placement": "blocks:f", "placement_sha256": "ab"[seed] * 64} if seed < 2 else None
        name = write_handmade_run(root / "s", handmade_config(root, seed=seed), fate, columns=columns)
        if seed < 2:
            row = read_row(root / "s", name)
            assert row is not None
            tables.write_runs(root / "s", [row | {"bytes_per_token": 2.5 if seed == 0 else None}])
    # Without a validation loss at step 33, nobody can say whether a run that has not learned was still falling.
    write_handmade_run(root / "s", handmade_config(root, seed=5, n_steps=50, norm="rmsnorm"), "stuck")
    return root / "s"


def test_derived_columns_by_hand(judged: Path, tmp_path: Path) -> None:
    export(judged, "csv", tmp_path / "out")
    with open(tmp_path / "out" / "runs.csv", newline="") as file:
        runs = {int(row["seed"]): row for row in csv.DictReader(file)}
    assert {seed: row["outcome"] for seed, row in runs.items()} == {
        0: "learned", 1: "stuck", 2: "diverged", 3: "", 4: "", 5: ""
    }  # fmt: skip
    losses = {seed: float(row["final_val_loss"]) for seed, row in runs.items() if row["final_val_loss"]}
    assert losses.keys() == {0, 1, 5}
    gaps = {seed: float(row["gap_closed"]) for seed, row in runs.items() if row["gap_closed"]}
    assert gaps == {seed: (H1 - loss) / (H1 - H2) for seed, loss in losses.items()}
    per_byte = {seed: float(row["bits_per_byte"]) for seed, row in runs.items() if row["bits_per_byte"]}
    assert per_byte == pytest.approx({0: math.log2(math.exp(losses[0])) / 2.5, 5: math.log2(math.exp(losses[5]))})
    with open(tmp_path / "out" / "modules.csv", newline="") as file:
        modules = list(csv.DictReader(file))
    assert {row["module"] for row in modules if row["update_ratio"] == ""} == {"pos"}
    for row in modules:
        param, update = np.float32(row["param_norm"]), np.float32(row["update_norm"])
        assert (row["update_ratio"] == "") if param == 0 else (np.float32(row["update_ratio"]) == update / param)


def test_join_adds_the_columns_that_load_joins(judged: Path, tmp_path: Path) -> None:
    expected = normstudy.load(judged, join=True)
    joined = ["seed", "data_seed", "placement", "norm", "n_layers", "peak_lr", "warmup_steps", "n_steps", "outcome"]
    assert list(expected.residual)[len(schema.SCHEMAS["residual"]) :] == joined
    assert {"blocks:f@aaaaaaaa", "blocks:f@bbbbbbbb", "pre"} <= set(expected.steps["placement"])
    export_study(judged, to="csv", out=tmp_path / "out", where={}, join=True)
    for table in schema.SERIES:
        assert_csv(tmp_path / "out" / f"{table}.csv", getattr(expected, table))
    export_study(judged, to="duckdb", out=tmp_path / "out.duckdb", where={}, join=True)
    stored = tables.read(judged, "runs")  # `runs` has the names as they are stored, and their hashes beside them
    assert_duckdb(tmp_path / "out.duckdb", expected._replace(runs=expected.runs.assign(placement=stored["placement"])))


def test_join_adds_what_varies_among_the_exported_runs(
    judged: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["export", str(judged), "--to", "csv", "--out", str(tmp_path / "out"), "--join", "--where", "norm=rmsnorm"]
    assert main.main(words) == 0
    with open(tmp_path / "out" / "steps.csv", newline="") as file:
        names = list(csv.DictReader(file).fieldnames or [])
    assert names[len(schema.SCHEMAS["steps"]) :] == [
        "update_rms", "seed", "placement", "n_layers", "peak_lr", "warmup_steps", "outcome",
    ]  # fmt: skip
    for to in ("tensorboard", "wandb-offline"):
        assert main.main(["export", str(judged), "--to", to, "--out", str(tmp_path / "no"), "--join"]) == 2
        assert capsys.readouterr().err == (
            f"error: --join has no effect with --to {to}, which writes the configuration anyway: leave it out\n"
        )
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_a_finished_run_without_steps_is_told_of(judged: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(judged, tmp_path / "copy")
    (path,) = (copy / "tables" / "steps").glob("*-s0-*.parquet")
    path.unlink()
    with pytest.warns(MissingRows, match="tables/steps lacks 60 of 60 steps"):
        export(copy, "csv", tmp_path / "out")
    runs = pd.read_csv(tmp_path / "out" / "runs.csv").set_index("run_id")
    assert pd.isna(runs.loc[path.stem.rpartition("-")[0], "outcome"])


# ---- every format -------------------------------------------------------------------------------------


def test_where_chooses_runs_as_plot_does(study: Path, tmp_path: Path) -> None:
    told = export(study, "csv", tmp_path / "out", placement="pre", warmup_steps="20")
    (name,) = [name for name in run_ids(study) if "wu20" in name]
    assert told.startswith(f"Exported 1 run of {study} to {tmp_path / 'out'}. Open the result with this command:\n")
    for table in schema.TABLES:
        frame = pd.read_csv(tmp_path / "out" / f"{table}.csv")
        assert set(frame["run_id"]) == {name}
        expected = tables.read(study, table)
        assert len(frame) == (expected["run_id"] == name).sum()
    with pytest.raises(ConfigError, match=r"^--where seed=77 selects no run; available values: 0, 1, 2, 3$"):
        export(study, "csv", tmp_path / "none", seed="77")
    export(study, "duckdb", tmp_path / "db", placement="pre", warmup_steps="20")
    with duckdb.connect(str(tmp_path / "db"), read_only=True) as database:
        for table in schema.TABLES:
            ids = database.execute(f"select distinct run_id from {table}").fetchall()
            assert ids == [(name,)]


def test_a_study_that_is_still_without_a_run_is_told_of(tmp_path: Path) -> None:
    tables.prepare(tmp_path / "new")
    with pytest.raises(ConfigError, match="has no runs to export: start its sweep"):
        export(tmp_path / "new", "csv", tmp_path / "out")
    with pytest.raises(ConfigError, match="exists: give another --out"):  # before anything is read
        export(tmp_path / "new", "csv", tmp_path)


@pytest.mark.parametrize(
    ("to", "said"),
    [
        ("cvs", "--to 'cvs' is not one of csv, tensorboard, wandb-offline, duckdb. Did you mean csv?"),
        ("wandb", "--to 'wandb' is not one of csv, tensorboard, wandb-offline, duckdb. Did you mean wandb-offline?"),
    ],
)
def test_an_unknown_format_is_refused(study: Path, tmp_path: Path, to: str, said: str) -> None:
    with pytest.raises(ConfigError) as told:
        export(study, to, tmp_path / "out")
    assert str(told.value) == said


@pytest.mark.parametrize("to", FORMATS)
def test_what_exists_is_left(study: Path, tmp_path: Path, to: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to("nowhere")
    for name in ("folder", "file", "link"):
        with pytest.raises(ConfigError, match=f"/{name} exists: give another --out, or remove the existing one$"):
            export(study, to, tmp_path / name)
    assert (tmp_path / "file").read_text() == "mine"
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize("place", ["tables/out", "tables/steps/out.parquet", "state/out", "link/runs/x/y"])
def test_nothing_is_written_among_the_files_of_a_study(study: Path, tmp_path: Path, place: str) -> None:
    copy = shutil.copytree(study, tmp_path / "copy")
    (copy / "link").symlink_to("tables")
    before = contents(copy)
    for source in (study, copy):
        with pytest.raises(ConfigError, match=r"is reserved for the study's own files: choose another --out$"):
            export(source, "csv", copy / place)
    assert contents(copy) == before


@pytest.mark.parametrize("to", FORMATS)
def test_a_library_that_is_not_installed_is_named(
    study: Path, tmp_path: Path, to: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if to == "csv":
        export(study, to, tmp_path / "out")
        return
    name = to.partition("-")[0]
    module = f"to_{name}"
    monkeypatch.delitem(sys.modules, f"normstudy.exports.{module}", raising=False)
    monkeypatch.delattr(f"normstudy.exports.{module}", raising=False)
    for imported in [m for m in sys.modules if m.startswith(f"{name}.")]:
        monkeypatch.delitem(sys.modules, imported)
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ConfigError, match=rf"^--to {to} needs .*{name}.*: pip install {name}$") as told:
        export(study, to, tmp_path / "out")
    assert "\n" not in str(told.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("to", FORMATS)
def test_a_disk_that_does_not_take_it_leaves_nothing(study: Path, tmp_path: Path, to: str) -> None:
    needs(to)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with pytest.raises(ConfigError) as told:
            export(study, to, tmp_path / "new" / "folders" / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert str(told.value).startswith(f"{tmp_path}/new/folders/out cannot be written: File too large. No partial")
    assert str(told.value).endswith("result is left. What to do: raise ulimit -f, or give another --out")
    assert not list(tmp_path.iterdir())


def test_a_place_where_no_folder_can_be_made_is_told_of(study: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(
        ConfigError, match=r"/file/sub/out cannot be written: Not a directory\. No partial result is left"
    ):
        export(study, "csv", tmp_path / "file" / "sub" / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_an_export_that_is_killed_leaves_no_half_result(study: Path, tmp_path: Path) -> None:
    needs("wandb-offline")
    running = start(["export", str(study), "--to", "wandb-offline", "--out", str(tmp_path / "out")], tmp_path)
    wait_for(lambda: [*tmp_path.glob("out.*.part/new/wandb")])
    running.send_signal(signal.SIGKILL)
    running.communicate(timeout=60)
    assert not (tmp_path / "out").exists()
    export(study, "csv", tmp_path / "out")
    assert len(list((tmp_path / "out").iterdir())) == 4


def test_ctrl_c_removes_what_was_written(study: Path, tmp_path: Path) -> None:
    needs("wandb-offline")
    running = start(["export", str(study), "--to", "wandb-offline", "--out", str(tmp_path / "out")], tmp_path)
    wait_for(lambda: [*tmp_path.glob("out.*.part/new/wandb")])
    running.send_signal(signal.SIGINT)
    _, said = running.communicate(timeout=60)
    assert running.returncode == 130, said
    assert not list(tmp_path.iterdir())


def test_the_command_writes_into_the_study_by_default(
    study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = shutil.copytree(study, tmp_path / "copy")
    assert main.main(["export", str(copy), "--to", "csv", "--where", "placement=pre"]) == 0
    told = capsys.readouterr().out.splitlines()
    assert told[0] == f"Exported 2 runs of {copy} to {copy}/export/csv. Open the result with this command:"
    assert told[1].startswith("python -c ")
    assert [p.name for p in (copy / "export").iterdir()] == ["csv"]
    assert main.main(["export", str(copy), "--to", "csv"]) == 2
    assert (
        capsys.readouterr().err == f"error: {copy}/export/csv exists: give another --out, or remove the existing one\n"
    )
    assert choose(copy, {}).runs.num_rows == 6
