"""What a user writes is what a run gets: text stays text, in words and in files; Hydra's own choices are followed."""

from __future__ import annotations

import contextlib
import io
import shutil
from pathlib import Path

import pandas as pd
import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st
from processes import TINY
from properties import PROPERTY

from normstudy.app.compose import conf_dir
from normstudy.app.reading import YamlSource
from normstudy.cli import main as cli
from normstudy.config import leaves

FEW = settings(PROPERTY, max_examples=max(1, PROPERTY.max_examples // 20))
TEXT_KEYS = sorted(key for key, kind in leaves().items() if kind is str)
# What YAML or Hydra would take for a number, a boolean or a date.
GUESSABLE = [
    "2024_01_05", "1.10", "true", "True", "FALSE", "on", "No", "0x1f", "010", "1_0", "1:30", "2024-01-05", "1e5", "+1",
    "-0",    ".5", "1.", "nan", "inf", ".inf", "0b1", "None", "nil", "off", "y",
]  # fmt: skip

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module", autouse=True)
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    own = tmp_path_factory.mktemp("own")
    (own / "experiment").mkdir()
    return own


def shown(*words: str) -> dict[str, dict[str, object]]:
    """The configuration that `normstudy run *words --cfg job` prints."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        assert cli.main(["run", *words, "--cfg", "job"]) == 0
    loaded = yaml.safe_load(out.getvalue())
    assert isinstance(loaded, dict)
    return loaded


def value_of(config: dict[str, dict[str, object]], key: str) -> object:
    section, _, leaf = key.partition(".")
    return config[section][leaf] if leaf else config[section]


WORDS = st.sampled_from(GUESSABLE) | st.from_regex(r"[-+]?[0-9][0-9_.e-]{0,6}[0-9]?", fullmatch=True)


@FEW
@given(st.lists(WORDS, min_size=len(TEXT_KEYS), max_size=len(TEXT_KEYS)))
@example((GUESSABLE * 2)[: len(TEXT_KEYS)])
@example(GUESSABLE[::-1][: len(TEXT_KEYS)])
def test_text_stays_text(own: Path, texts: list[str]) -> None:
    """As words, in dictionaries, and in a file."""
    expected = dict(zip(TEXT_KEYS, texts, strict=True))
    split = [(*key.rpartition(".")[::2], text) for key, text in expected.items()]
    words = [f"{key}={text}" for key, text in expected.items()]
    dicts = [f"{section}={{{leaf}: {text}}}" if section else f"{leaf}={text}" for section, leaf, text in split]
    lines: dict[str, list[str]] = {}
    for section, leaf, text in split:
        lines.setdefault(f"{section}:\n" if section else "", []).append(f"{'  ' * bool(section)}{leaf}: {text}\n")
    file = "# @package _global_\n" + "".join(head + "".join(rest) for head, rest in lines.items())
    (own / "experiment" / "mine.yaml").write_text(file)
    for chosen in (words, ["--config-dir", str(own), "experiment=mine"]):
        config = shown(*chosen)
        assert {key: value_of(config, key) for key in TEXT_KEYS} == expected
    config = shown(*dicts)
    assert {key: value_of(config, key) for key in TEXT_KEYS} == expected


def test_every_other_value_in_a_file_has_the_type_of_its_key(own: Path) -> None:
    text = (
        "# @package _global_\nseed: 1_000\nmodel: {tied: on, biases: No, n_layers: 3, d_ff: ~}\n"
        "schedule: {peak_lr: 1e-3}\neval: {windows: '8'}\noptimizer: {weight_decay: .5, max_grad_norm: null}\n"
        "hydra:\n  verbose: false\n  sweeper: {params: {seed: 7, model.final_norm: true}}\n"
    )
    (own / "experiment" / "mine.yaml").write_text(text)
    config = shown("--config-dir", str(own), "experiment=mine")
    assert (config["seed"], config["schedule"]["peak_lr"], config["eval"]["windows"]) == (1000, 0.001, 8)
    assert [config["model"][key] for key in ("tied", "biases", "n_layers", "d_ff")] == [True, False, 3, None]
    assert [config["optimizer"][key] for key in ("weight_decay", "max_grad_norm")] == [0.5, None]
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        cli.main(["run", "--config-dir", str(own), "experiment=mine", "--cfg", "hydra"])
    hydra = yaml.safe_load(out.getvalue())["hydra"]
    assert hydra["verbose"] is False
    assert hydra["sweeper"]["params"] == {"seed": "7", "model.final_norm": "true"}


@pytest.mark.parametrize(
    "head", ["\ufeff# @package _global_\n", "# mine\n\n# @package _global_\n", "#@package _global_\n"]
)
def test_what_may_come_before_a_header(head: str, own: Path) -> None:
    (own / "experiment" / "mine.yaml").write_text(f"{head}study: found\n", encoding="utf-8")
    assert shown("--config-dir", str(own), "experiment=mine")["study"] == "found"


@pytest.mark.parametrize("name", ["1.10", "true", "2024_01_05"])
def test_a_config_file_may_have_any_name(name: str, own: Path) -> None:
    (own / "experiment" / f"{name}.yaml").write_text("# @package _global_\nstudy: found\n")
    assert shown("--config-dir", str(own), f"experiment={name}")["study"] == "found"
    chosen = f"# @package _global_\ndefaults:\n  - override /model: {name}\n"
    (own / "experiment" / "mine.yaml").write_text(chosen)
    (own / "model").mkdir(exist_ok=True)
    (own / "model" / f"{name}.yaml").write_text("d_model: 96\n")
    assert shown("--config-dir", str(own), "experiment=mine")["model"]["d_model"] == 96


def test_shipped_files_read_alike(tmp_path: Path) -> None:
    """Copies of them in a folder of the user's own are no reason to refuse anything."""
    shutil.copytree(conf_dir(), tmp_path / "conf")
    assert shown("--config-dir", str(tmp_path / "conf"), "experiment=smoke") == shown("experiment=smoke")


def test_an_unreadable_device_is_no_config_file(tmp_path: Path, capfd: Capture) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "huge.yaml").write_text("#\n" * 60_000)
    (tmp_path / "experiment" / "loop.yaml").symlink_to("/proc/kmsg")
    for name, why in (
        ("huge", "larger than 100000 bytes"),
        ("loop", "loop.yaml cannot be read: it is a folder, a pipe"),
    ):
        assert cli.main(["run", "--config-dir", str(tmp_path), f"experiment={name}"]) == 2
        assert why in capfd.readouterr().err


def test_the_reader_of_files_is_hydras_own_but_for_types() -> None:
    """Hydra's other classes call what YamlSource inherits."""
    source = YamlSource("main", str(conf_dir()))
    assert source.is_config("config")
    assert source.load_config("schedule/cosine").config == {"name": "cosine"}


# ---- what an experiment chooses of Hydra --------------------------------------------------------------

CHOOSES = """# @package _global_
defaults:
  - override /model: tiny
  - override /data: synthetic
  - override /hydra/launcher: basic
  - override /hydra/sweeper: basic
study: mine
schedule: {n_steps: 3}
eval: {windows: 4}
hydra: {sweeper: {params: {seed: '0,1'}}}
"""


def test_an_experiment_chooses_launcher_and_sweeper(own: Path) -> None:
    (own / "experiment" / "mine.yaml").write_text(CHOOSES)
    out = io.StringIO()
    words = ["run", "--config-dir", str(own), "experiment=mine", "--cfg", "hydra"]
    for more, kind in (([], "Basic"), (["hydra/launcher=normstudy", "hydra/sweeper=normstudy"], "Normstudy")):
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            assert cli.main([*words, *more]) == 0
        hydra = yaml.safe_load(out.getvalue())["hydra"]
        for part in ("launcher", "sweeper"):
            assert hydra[part]["_target_"].endswith(f"{kind}{part.title()}")


def test_a_foreign_launcher_that_changes_the_folder_writes_where_results_dir_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Capture
) -> None:
    monkeypatch.chdir(tmp_path)
    foreign = ["hydra/launcher=basic", "hydra.job.chdir=true"]
    assert cli.main(["sweep", *TINY, "seed=0,1", *foreign]) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["results"]
    assert sorted(pd.read_parquet("results/scratch/tables/runs")["seed"]) == [0, 1]
    assert not list(tmp_path.rglob("results/**/results"))
