"""Names and tables cannot leave the results folder, be executed, or hold code. Configurations are code, and may.

Names that are refused at once, like other bad requests, are in test_bad_input.py.
"""

from __future__ import annotations

import ast
import dataclasses
import os
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from handmade import handmade_config, write_handmade_run

from normstudy.cli import main
from normstudy.config import ConfigError
from normstudy.exports.export import export_study
from normstudy.study import parquet, schema
from normstudy.upkeep.compact import compact_study

ROOT = Path(__file__).parents[2]
Capture = pytest.CaptureFixture[str]

# ---- no code from data --------------------------------------------------------------------------------

UNSAFE_MODULES = {
    "pickle", "_pickle", "cPickle", "dill", "cloudpickle", "shelve", "marshal", "joblib", "runpy", "code", "imp",
    "submitit",
}  # fmt: skip
UNSAFE_CALLS = {
    "eval", "exec", "compile", "__import__", "importlib.import_module", "torch.load", "torch.save", "np.load",
    "numpy.load", "pd.read_pickle", "pandas.read_pickle", "yaml.load", "yaml.load_all", "yaml.unsafe_load",
    "yaml.full_load", "os.system", "os.popen", "hydra.utils.instantiate", "hydra.utils.get_method", "instantiate",
}  # fmt: skip
UNSAFE_KEYWORDS = {"allow_pickle", "shell", "weights_only"}

ALLOWED = {
    ("normstudy/model/own.py", "importlib.import_module"),  # code that the user named: the only such door
    ("normstudy/bench/rows.py", "importlib.import_module"),  # our own modules, by names of ours
    ("normstudy/__init__.py", "importlib.import_module"),
    ("normstudy/exports/export.py", "importlib.import_module"),
    ("normstudy/reproductions/run.py", "importlib.import_module"),
    ("normstudy/processes.py", "pickle"),  # through a pipe between a process and its own child; no file is read
}
MEASURED = ("scripts/scaling.py", "pickle")  # how large those for Slurm's jobs would be; it reads none


def unsafe(path: Path) -> set[str]:
    """The names in a module that may run code from data."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.split(".")[0] in UNSAFE_MODULES}
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            names = {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name for name in names if name.split(".")[0] in UNSAFE_MODULES or name in UNSAFE_CALLS}
        elif isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Load):
            found |= {ast.unparse(node)} & UNSAFE_CALLS
        elif isinstance(node, ast.keyword) and node.arg in UNSAFE_KEYWORDS:
            found.add(node.arg)
    return found


def test_no_module_can_run_code_out_of_a_file() -> None:
    """No pickle, no eval, no loader that constructs objects. Only the room slurm uses submitit, which has pickles."""
    files = [path for folder in ("normstudy", "scripts") for path in sorted((ROOT / folder).rglob("*.py"))]
    assert len(files) > 100
    found = {(path.relative_to(ROOT).as_posix(), what) for path in files for what in unsafe(path)}
    slurm = {(file, what) for file, what in found if file.startswith("normstudy/slurm/")}
    assert {what.split(".")[0] for _, what in slurm} <= {"submitit"}
    assert found - slurm - {MEASURED} == ALLOWED


@pytest.mark.parametrize(
    "code",
    ["import pickle", "from pickle import load", "import numpy as np\nnp.load(f)", "x = eval(y)", "exec(y)",
     "import torch\ntorch.load(f)", "from importlib import import_module", "f(allow_pickle=True)", "yaml.load(f)"],
)  # fmt: skip
def test_what_the_test_above_would_find(code: str, tmp_path: Path) -> None:
    (tmp_path / "module.py").write_text(code)
    assert unsafe(tmp_path / "module.py")


def test_no_command_imports_what_a_table_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Capture, without_figures: None
) -> None:
    """A placement or norm of one's own is a name in the tables, beside which lies a module of that name."""
    monkeypatch.chdir(tmp_path)
    for folder in (tmp_path, tmp_path / "s"):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "spy.py").write_text(f"open({str(tmp_path / 'RAN')!r}, 'w')\n")
    for seed in (0, 1):
        for norm in ("layernorm", "spy:Norm"):
            config = handmade_config(tmp_path, seed=seed, study="s")
            columns = {"placement": "spy:block", "norm": norm, "final_norm": "spy:norm", "init": "spy:init"}
            write_handmade_run(tmp_path / "s", dataclasses.replace(config, data_seed=len(norm)), columns=columns)
    monkeypatch.syspath_prepend(tmp_path)
    for words in (
        "status s", "check s", "compare s --by norm", "plot s --only final_grid", "export s --to csv --out out",
        "compact s --seal", "check s", "status s",
    ):  # fmt: skip
        main.main(words.split())
    capfd.readouterr()
    assert not (tmp_path / "RAN").exists()
    assert "spy" not in sys.modules


def test_yaml_makes_no_objects(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Capture) -> None:
    (tmp_path / "experiment").mkdir()
    text = "# @package _global_\nstudy: !!python/object/apply:os.system ['touch RAN']\n"
    (tmp_path / "experiment" / "bad.yaml").write_text(text)
    monkeypatch.chdir(tmp_path)
    assert main.main(["run", "--config-dir", ".", "experiment=bad"]) == 2
    assert "broken YAML" in capfd.readouterr().err
    assert os.listdir(tmp_path) == ["experiment"]


# ---- names out of tables ------------------------------------------------------------------------------

FORMULA = "=cmd|' /C calc'!A0"


def test_names_like_formulas_are_text_in_csv(tmp_path: Path) -> None:
    """Also for tables that another program wrote."""
    names = ("study", "placement", "norm", "data_path")
    write_handmade_run(tmp_path / "s", handmade_config(tmp_path), columns=dict.fromkeys(names, FORMULA))
    export_study(tmp_path / "s", to="csv", out=tmp_path / "out", where={})
    content = (tmp_path / "out" / "runs.csv").read_text()
    assert content.count(FORMULA) == content.count(f"'{FORMULA}") == len(names)


@pytest.mark.parametrize("name", ["../../out", "/tmp/out", "..", "a\\b", "a\nb", "a\0b", ""])
def test_a_run_id_out_of_a_table_leads_nowhere(name: str, tmp_path: Path) -> None:
    """Some export formats use the run_id as the name of a file or folder; it is checked here for every format."""
    study = tmp_path / "a" / "b" / "s"
    write_handmade_run(study, handmade_config(tmp_path))
    compact_study(study)
    path = study / "tables" / "runs" / schema.COMPACTED_FILE
    content = pq.read_table(path)
    column = pa.array([name], content.schema.field("run_id").type)
    path.write_bytes(parquet.encode("runs", content.set_column(0, content.schema.field("run_id"), column)))
    with pytest.raises(ConfigError, match="has a run_id that cannot be a file name"):
        export_study(study, to="csv", out=tmp_path / "a" / "b" / "out", where={})
    assert sorted(p.name for p in (tmp_path / "a" / "b").iterdir()) == ["s"]
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_the_results_folder_itself_may_be_a_link(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Capture
) -> None:
    """The user may link results to another disk; links below it are refused."""
    (tmp_path / "disk" / "mine").mkdir(parents=True)
    (tmp_path / "results").symlink_to("disk")
    monkeypatch.chdir(tmp_path)
    assert main.main(["sweep", "data=synthetic", "seed=0,1", "study=mine", "--dry-run"]) == 0
    assert capfd.readouterr().out.startswith("mine: 2 runs")
