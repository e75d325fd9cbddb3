"""Environments, hosts and file systems in which the command line must work; docs/hosts.md lists them."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from processes import WITHOUT_FIGURES, finish
from studies import never, task_of, tiny

from normstudy.cli import main as cli
from normstudy.study import files, tables
from normstudy.upkeep.compact import compact_study
from normstudy.workers import worker

WORDS = [
    "sweep", "data=synthetic", "study=s", "model.n_layers=2", "model.d_model=16", "model.n_heads=2", "data.seq_len=8",
    "data.batch_size=1", "eval.windows=4", "schedule.n_steps=3", "execution.device=cpu", "execution.workers=1",
    "seed=0,1",
]  # fmt: skip


def run(command: Sequence[str], cwd: Path, code: int = 0, **variables: str | None) -> subprocess.CompletedProcess[str]:
    """Run a command in a changed environment; None unsets a variable."""
    env = {key: value for key, value in (os.environ | variables).items() if value is not None}
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=200)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    return done


def is_done(study: Path) -> bool:
    return list(tables.statuses(study).values()) == ["done", "done"]


@pytest.mark.processes
def test_closed_streams_and_a_backend_that_this_environment_lacks(tmp_path: Path) -> None:
    """No table's file gets the number of a closed stream."""
    code = "import sys; from normstudy.cli.main import main; code = main(sys.argv[1:]); import os; "
    code += "sys.exit(code or os.environ['MPLBACKEND'] != 'absent' or 'NORMSTUDY_LAUNCHED_BY' in os.environ)"
    run(["sh", "-c", '"$@" <&- >&- 2>&-', "sh", sys.executable, "-c", code, *WORDS], tmp_path, MPLBACKEND="absent")
    assert is_done(tmp_path / "results/s")
    assert (tmp_path / "results/s/figures/headline.png").exists()


@pytest.mark.processes
@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-"])
def test_a_closed_stream(closed: str, tmp_path: Path) -> None:
    """No file gets the number of a closed stream, and nothing fails because a stream is missing."""
    run(["sh", "-c", f'"$@" {closed}', "sh", *WITHOUT_FIGURES, "status", "absent"], tmp_path, code=2)


@pytest.mark.processes
def test_files_named_like_libraries_and_a_script_without_a_guard(tmp_path: Path) -> None:
    """Beside a notebook or script lie files that it never imports; its workers must not import them either."""
    script = f"print('once')\nfrom normstudy.cli.main import main\nprint(main({WORDS!r}))"
    load = "import hydra.plugins, normstudy.app.jobs, normstudy.figures.draw, normstudy.sweep.run, scipy.stats, torch\n"
    (tmp_path / "script.py").write_text(f"import sys\nhere = sys.path.pop(0)\n{load}sys.path.insert(0, here)\n{script}")
    for name in ("numpy", "queue", "random", "safetensors", "select", "torch"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('a file of the working directory')")
    done = run([sys.executable, "script.py"], tmp_path, NORMSTUDY_DATA_DIR=str(tmp_path))
    assert done.stdout.split().count("once") == 1
    assert is_done(tmp_path / "results/s")
    os.rename(tmp_path / "results", tmp_path / "first")
    run([*WITHOUT_FIGURES[:1], "-P", *WITHOUT_FIGURES[1:], *WORDS], tmp_path)
    assert is_done(tmp_path / "results/s")


@pytest.mark.processes
def test_neither_home_nor_user(tmp_path: Path) -> None:
    """A container often runs as a number that no list of users has."""
    keep = "--inh-caps=+dac_override", "--ambient-caps=+dac_override"
    nobody = ["setpriv", "--reuid=54321", "--clear-groups", *keep]
    bare = {"HOME": None, "USER": None, "LOGNAME": None, "NORMSTUDY_DATA_DIR": None, "XDG_CACHE_HOME": None}
    if os.getuid() or subprocess.run([*nobody, "true"], capture_output=True).returncode:
        pytest.skip("only root may become a user without a name")
    run([*nobody, *WITHOUT_FIGURES, *WORDS], tmp_path, **bare)
    assert is_done(tmp_path / "results/s")
    done = run([*nobody, *WITHOUT_FIGURES, *WORDS, "data=tiny_shakespeare"], tmp_path, 2, **bare)
    assert done.stderr == "error: this user has no home folder for the cache: set NORMSTUDY_DATA_DIR to a folder\n"


def test_a_terminal_of_ascii(tmp_path: Path) -> None:
    """What it cannot show is escaped, in a study's name as in a figure's title."""
    for env in ({"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}):
        code = "import sys; from normstudy.cli.main import main; print(end=''); r = main(['status', 'x']); "
        done = run([sys.executable, "-c", f"{code}print('\\u2264'); sys.exit(r)"], tmp_path, 2, **env)
        assert done.stdout == "\\u2264\n"


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EOPNOTSUPP], ids=errno.errorcode.get)
def test_a_file_system_that_cannot_flush(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files.fsync(Path("/dev/null"))  # the system refuses to flush a device

    def refuse(_: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", refuse)
    list(worker.train_halving(task_of([tiny(tmp_path), tiny(tmp_path, seed=1)]), never))
    assert is_done(tmp_path / "tiny")
    compact_study(tmp_path / "tiny", seal=True)
    files.place_output(tmp_path / "out", "figures/x.png", b"x")
    assert cli.main(["export", str(tmp_path / "tiny"), "--to", "csv", "--out", str(tmp_path / "csv")]) == 0


def test_a_read_only_study_is_read(tmp_path: Path) -> None:
    list(worker.train_halving(task_of([tiny(tmp_path / "disk"), tiny(tmp_path / "disk", seed=1)]), never))
    study, disk = tmp_path / "disk" / "tiny", str(tmp_path / "disk")
    if subprocess.run(["mount", "--bind", "-o", "ro", disk, disk], capture_output=True).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        with pytest.raises(OSError, match="Read-only"):
            (study / "x").touch()
        for words in (["status"], ["check"], ["compare", "--by", "n_layers"], ["export", "--to", "csv"], ["plot"]):
            out = ["--out", str(tmp_path / words[0])] if words[0] in ("export", "plot") else []
            assert cli.main([words[0], str(study), *words[1:], *out]) in (0, 2 if words[0] == "compare" else 0)
        assert cli.main(["plot", str(study)]) == 2
        assert cli.main(["compact", str(study)]) == 2
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


# One character of each class of unicode that a file name may have, and what shells, globs and readers treat apart.
NAMES = [
    "Aä", "ǅʰ中", "e\u0301\u0903\u20dd", "1Ⅷ²", "_‿-(«»)!", "+$^¦", "a b\u00a0\u2003c", "\u200d\u2066\ue000", "[1]*",
    "{x}'\"%20#&;",
]  # fmt: skip


@pytest.mark.usefixtures("without_figures")
def test_names_of_every_class_of_characters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NAMES:
        (tmp_path / name).mkdir()
    home = tmp_path.joinpath(*NAMES)
    home.mkdir(parents=True)
    list(worker.train_halving(task_of([tiny(home), tiny(home, seed=1)]), never))
    monkeypatch.chdir(home)
    for words in ("status tiny", "plot tiny --only loss_curves", "check tiny", "export tiny --to csv", "compact tiny"):
        assert cli.main(words.split()) == 0, words
    assert cli.main(["check", str(home / "tiny")]) == 0
    assert cli.main(["export", str(home / "tiny"), "--to", "duckdb"]) == 0


@pytest.mark.packages
def test_inside_another_hydra_application(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(
        "import hydra, normstudy\nfrom hydra.core.hydra_config import HydraConfig\n"
        "@hydra.main(version_base='1.3', config_path=None)\n"
        f"def app(cfg):\n    normstudy.sweep(overrides={WORDS[1:]!r})\n"
        "    print(HydraConfig.get().job.name)\n    hydra.compose()\n"
        "app()\n"
    )
    assert run([sys.executable, "app.py"], tmp_path).stdout.endswith("app\n")
    assert is_done(tmp_path / "results/s")


def test_killed_exports_and_benchmarks_leave_nothing_after_the_next_one(tmp_path: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path; from normstudy.study import files; "
        "w = files.scratch_folder(Path('.'), 'csv'); (w.__enter__() / 'new').touch(); os.kill(os.getpid(), 9)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=tmp_path).returncode == -9
    (tmp_path / "mine.part").mkdir()
    assert len(list(tmp_path.glob("*.part/new"))) == 1
    with files.scratch_folder(tmp_path, "one") as one, files.scratch_folder(tmp_path, "two") as two:
        assert one.exists()  # its command is alive
        assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["mine.part", one.name, two.name])
    assert [path.name for path in tmp_path.iterdir()] == ["mine.part"]


@pytest.mark.packages
def test_a_notebook_with_the_inline_backend(tmp_path: Path) -> None:
    """A real kernel: a sweep in the kernel and one by the command line draw figures, and plots stay inline."""
    import nbformat
    from nbclient import NotebookClient

    cells = [
        "import os; print(os.environ['MPLBACKEND'])",
        f"import normstudy; normstudy.sweep(study='inside', overrides={[w for w in WORDS[1:] if w != 'study=s']!r})",
        f"import sys, subprocess; words = [sys.executable, '-m', 'normstudy', *{[*WORDS, 'study=outside']!r}]",
        "print('code', subprocess.run(words).returncode)",
        "import matplotlib.pyplot as plt; plt.plot([1, 2]); plt.show()",
    ]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    NotebookClient(notebook, timeout=200, resources={"metadata": {"path": str(tmp_path)}}).execute()
    said = json.dumps([cell.outputs for cell in notebook.cells])
    assert "matplotlib_inline" in json.dumps(notebook.cells[0].outputs)
    assert said.count("code 0") == 1
    assert "results/inside: 2 runs, all 2 finished" in said
    assert "image/png" in json.dumps(notebook.cells[-1].outputs)
    for name in ("inside", "outside"):
        assert is_done(tmp_path / "results" / name)
        assert (tmp_path / "results" / name / "figures" / "headline.png").exists()


@pytest.mark.packages
def test_a_run_that_diverges_is_the_worst_result_for_optuna(tmp_path: Path) -> None:
    words = [word for word in WORDS if not word.startswith("seed")]
    search = ["schedule.peak_lr=choice(1e-3,1e30)", "seed=range(0,99)", "optimizer=sgd", "schedule.n_steps=20"]
    optuna = ["hydra/sweeper=optuna", "hydra.sweeper.n_trials=4", "hydra.sweeper.sampler.seed=1"]
    refused = finish([*words, *search, *optuna, "--dry-run"], tmp_path)
    assert (refused.returncode, list(tmp_path.iterdir())) == (2, [])
    assert refused.stderr.splitlines()[-1].startswith("error: --dry-run cannot know the runs of hydra_plugins.hydra_op")
    done = finish([*words, *search, *optuna, "hydra.sweeper.n_jobs=2"], tmp_path)
    assert done.returncode == 0, done.stderr
    runs = tables.read(tmp_path / "results/s", "runs", ["peak_lr", "final_val_loss"])
    assert runs["final_val_loss"].isna().any()
    assert (
        "best_params:\n  schedule.peak_lr: 0.001"
        in (tmp_path / "results/s/sweeps/optimization_results.yaml").read_text()
    )
