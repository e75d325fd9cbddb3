"""The command line around Hydra: help, dispatch, plot, compare, compact, completion, exit codes."""

from __future__ import annotations

import gc
import json
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pytest
from processes import TINY
from studies import draw_no_figures

from normstudy.app import compose, errors
from normstudy.cli import main as cli
from normstudy.cli import manual
from normstudy.study import parquet, schema

COMMAND = Path(sys.executable).with_name("normstudy")
SCRIPTS = Path(__file__).parents[2] / "scripts"

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs that differ in their warmup."""
    root = tmp_path_factory.mktemp("results")
    with pytest.MonkeyPatch.context() as patch:
        draw_no_figures(patch)
        assert cli.main(["sweep", *TINY, "schedule.warmup_steps=0,2", f"results_dir={root}", "study=cli"]) == 0
    return root / "cli"


def ask(capfd: Capture, *words: str) -> str:
    """The standard output of a command that must succeed and print nothing to standard error."""
    capfd.readouterr()
    assert cli.main(list(words)) == 0
    out, err = capfd.readouterr()
    assert err == ""
    return out


# ---- help ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"], ["help"]])
def test_help_names_every_command(words: list[str], capfd: Capture) -> None:
    out = ask(capfd, *words)
    assert [command for command in cli.COMMANDS if f"normstudy {command} " not in out] == []
    assert "normstudy -sc install=bash" in out


@pytest.mark.parametrize("command", cli.COMMANDS)
@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_each_command_has_help_of_its_own(command: str, flag: str, capfd: Capture) -> None:
    assert ask(capfd, command, "x", flag).startswith(f"normstudy {command} ")


def test_help_lists_the_keys_that_exist() -> None:
    """Every key=, group and experiment in the help text is one, and no experiment is missing."""
    rows = manual.KEYS | manual.EXECUTION_KEYS | manual.SLURM_KEYS
    keys = re.findall(r"([\w.]+)=", " ".join([*rows, *rows.values(), manual.NUMBERS]))
    assert [key for key in keys if key not in errors.known_keys()] == []
    shipped = [path.stem for path in (compose.conf_dir() / "experiment").glob("*.yaml")]
    assert [name for name in shipped if name not in manual.KEYS["experiment="].split(", ")] == []


@pytest.mark.parametrize("command", [None, *cli.COMMANDS])
def test_help_fits_the_terminal(command: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    counts = []
    for width in (60, 80, 120):
        monkeypatch.setenv("COLUMNS", str(width))
        lines = manual.help_of(command).splitlines()
        assert [line for line in lines if len(line) > width] == []
        counts.append(len(lines))
    assert counts[0] > counts[2]  # a wider terminal gets longer lines


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from normstudy.cli.main import main; main(['sweep', '--help']); "
        "sys.exit(any(m in sys.modules for m in ('argparse', 'hydra', 'numpy', 'pandas', 'torch')))"
    )
    assert subprocess.run([sys.executable, "-c", code], stdout=subprocess.DEVNULL, check=False).returncode == 0


def test_version(capfd: Capture) -> None:
    from importlib.metadata import version

    assert ask(capfd, "--version") == f"normstudy {version('normstudy')}\n"


# ---- plot, compare, compact ---------------------------------------------------------------------------


def test_plot_prints_what_it_wrote_and_what_it_left_out(study: Path, tmp_path: Path, capfd: Capture) -> None:
    words = ["plot", str(study), "--out", str(tmp_path), "--format", "svg", "--only", "loss_curves,ranking,headline"]
    lines = ask(capfd, *words).splitlines()
    written = [line for line in lines if not line.startswith("figure ")]
    assert len(written) == 2
    assert len(lines) == 3
    assert sorted(written) == sorted(str(path) for path in tmp_path.iterdir())
    assert {Path(line).suffix for line in written} == {".svg"}
    one = ask(capfd, "plot", str(study), "--out", str(tmp_path / "one"), "--only", "loss_curves")
    assert one == f"{tmp_path}/one/loss_curves.png\n"


def test_where_chooses_runs(study: Path, capfd: Capture) -> None:
    words = ["compare", str(study), "--by", "warmup_steps", "--format", "json"]
    assert json.loads(ask(capfd, *words)) == json.loads(ask(capfd, *words, "--where", "placement=pre,seed=0"))
    assert cli.main(["compare", str(study), "--by", "warmup_steps", "--where", "warmup_steps=0"]) == 2


@pytest.mark.parametrize(
    "words", [["plot", "--only", "headline,loss_curves"], ["compare", "--by", "warmup_steps"]], ids=["plot", "compare"]
)
@pytest.mark.parametrize("there", [True, False], ids=["a study", "no study"])
def test_a_command_that_collects_nothing_leaves_the_collector_on(
    words: list[str], there: bool, study: Path, tmp_path: Path
) -> None:
    collections: list[str] = []
    gc.collect()
    gc.callbacks.append(lambda phase, info: collections.append(phase))
    try:
        code = cli.main([words[0], str(study if there else tmp_path), *words[1:]])
    finally:
        gc.callbacks.pop()
    assert code == (0 if there else 2)
    assert gc.isenabled()
    assert not there or len(collections) < 20  # the parser's; drawing takes many more


@pytest.mark.parametrize("form", ["table", "csv", "json", "markdown"])
def test_compare_prints_each_format(form: str, study: Path, capfd: Capture) -> None:
    out = ask(capfd, "compare", str(study), "--by", "warmup_steps", "--baseline", "2", "--format", form)
    assert "warmup" in out
    assert out.endswith("\n")
    assert not out.endswith("\n\n")


def test_a_name_of_a_study_is_answered_with_its_folder(
    study: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: Capture
) -> None:
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "cli").symlink_to(study)
    monkeypatch.chdir(tmp_path)
    assert cli.main(["plot", "cli"]) == 2
    assert "Did you mean results/cli?" in capfd.readouterr().err


@pytest.mark.parametrize("given", ["results/wramup", "Warmup", "elsewhere/../results/warmu", "~/results/warmpu"])
def test_a_misspelt_study_is_answered_with_the_nearest(
    given: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: Capture
) -> None:
    for name in ("results/warmup", "results/depth", "elsewhere"):
        (tmp_path / name / "tables" / "runs").mkdir(parents=True)
    (tmp_path / "results" / "warmup-notes").mkdir()  # no study
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cli.main(["status", given]) == 2
    err = capfd.readouterr().err
    assert err.startswith(f"error: {given}: no such folder. Did you mean ")
    assert err.endswith("results/warmup?\n")


def test_home_is_where_a_tilde_is(study: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: Capture) -> None:
    """In paths that the shell leaves as they are, and in keys, which Hydra reads."""
    home, folder = study.parent, tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HOME", str(home))
    assert ask(capfd, "status", "~/cli").startswith(f"{home}/cli: 2 runs")
    ask(capfd, "export", "~/cli", "--to", "csv", "--out=~/out")
    assert (home / "out" / "runs.csv").exists()
    (home / "text").write_bytes(Path(__file__).read_bytes() * 8)
    (home / "mine" / "experiment").mkdir(parents=True)
    (home / "mine" / "experiment" / "homely.yaml").write_text("# @package _global_\nresults_dir: ~/deep\n")
    words = ["sweep", "--dry-run", "data=file", "seed=0,1", "study=cli"]
    for paths in (
        ["data.path=~/text", "results_dir=~"],
        ["data.path='~/text'", "--config-dir=~/mine", "+experiment=homely"],
    ):
        kept = [word.removeprefix("+") for word in paths]
        assert ask(capfd, *words, *kept).startswith("cli: 2 runs, 0 already finished")
    again = ["data=synthetic", "schedule.warmup_steps=0,2", "study=cli"]
    assert "2 runs, 2 already finished" in ask(capfd, "sweep", "--dry-run", *TINY, *again, "results_dir=~")
    monkeypatch.setenv("HOME", "/nowhere/at/all")
    assert cli.main(["sweep", "data=synthetic", "seed=0,1", "results_dir=~nobody-of-this-name/x"]) == 2
    assert "no home folder is known for ~nobody-of-this-name" in capfd.readouterr().err
    assert list(folder.iterdir()) == []


def test_compact_says_what_it_did_and_loses_no_run(study: Path, tmp_path: Path, capfd: Capture) -> None:
    copy = tmp_path / "cli"
    shutil.copytree(study, copy)
    before = pd.read_parquet(copy / "tables/runs").sort_values("run_id", ignore_index=True)
    assert len(ask(capfd, "compact", str(copy), "--seal").splitlines()) >= 1
    assert (copy / "SEALED").exists()
    after = pd.read_parquet(copy / "tables/runs").sort_values("run_id", ignore_index=True)
    pd.testing.assert_frame_equal(before, after, check_dtype=False)
    again = ["sweep", *TINY, "schedule.warmup_steps=0,2", f"results_dir={tmp_path}", "study=cli"]
    assert "sealed" in ask(capfd, *again)  # all its runs are there: no error


# ---- text from outside --------------------------------------------------------------------------------


def test_long_words_of_an_error_are_cut_and_paths_are_not(capfd: Capture) -> None:
    path = "/".join(["a" * 200] * 15)
    for word, seen in ((path, path), ("x" * 5000, f"{'x' * 100}..."), ("a/" * 3000, f"{'a/' * 50}...")):
        assert cli.main([f"no {word}"]) == 2
        assert capfd.readouterr().err.startswith(f"error: unknown command 'no {seen}")


def test_every_table_shows_control_characters_escaped(study: Path, tmp_path: Path, capfd: Capture) -> None:
    """In every format, also where a value has a line break, or is cut because it is very long."""
    evil = "\x1b]0;title\x07\r\n\u202e\x9b31m"
    shown = "\\x1b]0;title\\x07\\r\\n\\u202e\\x9b31m"
    shutil.copytree(study, tmp_path / "evil")
    for number, path in enumerate(sorted((tmp_path / "evil" / "tables" / "runs").glob("*-*-*.parquet"))):
        row = parquet.read(path).to_pylist()[0] | {"data": evil if number else "y" * 5000, "warmup_steps": 0}
        path.write_bytes(parquet.encode("runs", pa.Table.from_pylist([row], schema.SCHEMAS["runs"])))
    for form in ("table", "csv", "markdown"):
        out = ask(capfd, "compare", str(tmp_path / "evil"), "--by", "data", "--format", form)
        assert shown in out
        assert "y" * 101 not in out
        assert all(c.isprintable() for c in out.replace("\n", ""))
    assert json.loads(ask(capfd, "compare", str(tmp_path / "evil"), "--by", "data", "--format", "json"))[0]["arm"] in (
        evil, "y" * 5000,
    )  # fmt: skip
    ask(capfd, "export", str(tmp_path / "evil"), "--to", "csv", "--out", str(tmp_path / "csv"))
    text = (tmp_path / "csv" / "runs.csv").read_text()
    assert shown in text
    assert all(c.isprintable() for c in text.replace("\n", ""))


# ---- exit codes ---------------------------------------------------------------------------------------


def test_a_reader_who_has_gone_gives_no_traceback() -> None:
    with subprocess.Popen([COMMAND, "run", "--cfg", "job"], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 141


def test_ctrl_c_is_130(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(argv: list[str]) -> int:
        raise KeyboardInterrupt

    monkeypatch.setitem(cli.COMMANDS, "plot", interrupted)
    assert cli.main(["plot", "x"]) == 130


def test_a_ctrl_c_during_a_callback_is_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python ignores every exception in a destructor; figures have thousands of them."""

    class Dying:
        def __del__(self) -> None:
            signal.raise_signal(signal.SIGINT)

    def one_that_dies(_: list[str]) -> int:
        Dying()
        time.sleep(20)
        return 0

    monkeypatch.setitem(cli.COMMANDS, "status", one_that_dies)
    hook = sys.unraisablehook
    assert cli.main(["status"]) == 130
    assert sys.unraisablehook is hook


def test_an_error_of_the_system_is_one_line(monkeypatch: pytest.MonkeyPatch, capfd: Capture) -> None:
    def full(argv: list[str]) -> int:
        raise OSError(28, "No space left on device", "results/x")

    monkeypatch.setitem(cli.COMMANDS, "plot", full)
    assert cli.main(["plot", "x"]) == 2
    assert capfd.readouterr().err == "error: results/x: No space left on device\n"


def test_a_bug_is_not_dressed_up(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(argv: list[str]) -> int:
        raise ValueError("a bug")

    monkeypatch.setitem(cli.COMMANDS, "plot", broken)
    with pytest.raises(ValueError, match="a bug"):
        cli.main(["plot", "x"])


@pytest.mark.parametrize("name", ["sweep", "plot", "compare", "reproduce", "bench"])
def test_scripts_are_doors_to_the_same_commands(name: str, capfd: Capture) -> None:
    done = subprocess.run(
        [sys.executable, SCRIPTS / f"{name}.py", "--help"], capture_output=True, text=True, check=True
    )
    assert done.stdout == ask(capfd, name, "--help")


# ---- shell completion ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("normstudy ", list(cli.COMMANDS)),
        ("normstudy co", ["compare", "compact"]),
        ("normstudy b", ["bench"]),
        ("normstudy sweep experiment=w", ["experiment=warmup"]),
        ("normstudy run model.n_", ["model.n_heads=", "model.n_layers="]),
        ("normstudy run experiment=smoke optimizer=", ["optimizer=adam", "optimizer=adamw", "optimizer=sgd"]),
        ("normstudy sweep seed=0,1 --dry-run schedule.p", ["schedule.peak_lr="]),
        ("normstudy run nonsense=1 model.n_", []),  # nothing, and no message into the prompt
        ("normstudy run --nonsense model.n_", []),
        ("normstudy plot res", []),  # bash then completes file names
        ("normstudy compare ", []),
        ("normstudy bench --", []),
    ],
)
def test_completion(line: str, expected: list[str], monkeypatch: pytest.MonkeyPatch, capfd: Capture) -> None:
    monkeypatch.setenv("COMP_LINE", line)
    assert ask(capfd, "-sc", "query=bash").split() == expected


def test_completion_prints_its_script(monkeypatch: pytest.MonkeyPatch, capfd: Capture) -> None:
    monkeypatch.setattr(sys, "argv", ["normstudy"])
    out = ask(capfd, "-sc", "install=bash")
    assert out.strip().endswith("hydra_bash_completion normstudy")


def test_completion_of_an_unknown_shell(capfd: Capture) -> None:
    assert cli.main(["-sc", "install=tcsh"]) == 2
    assert capfd.readouterr().err.count("\n") == 1
