"""A plain wheel, installed outside the checkout, does what an editable install does."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path

import pytest

pytestmark = pytest.mark.packages  # pip builds the wheel

ROOT = Path(__file__).parent.parent
TINY = [
    "model=tiny", "data=synthetic", "data.seq_len=8", "data.batch_size=2", "schedule.n_steps=4", "eval.windows=4",
    "execution.workers=1", "execution.device=cpu",
]  # fmt: skip


def done(words: Sequence[str | Path], cwd: Path) -> str:
    """What a command prints, without the environment variables that would let it import from the checkout."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    ended = subprocess.run(words, cwd=cwd, env=env, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    done([sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", folder, ROOT], folder)
    (path,) = folder.glob("*.whl")
    return path


def test_it_holds_the_package_its_configuration_and_its_types(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    package = {str(path.relative_to(ROOT)) for path in (ROOT / "normstudy").rglob("*.py")}
    rule = {"normstudy/analysis/early_warning.json"}
    conf = {f"normstudy/{path.relative_to(ROOT)}" for path in (ROOT / "conf").rglob("*.yaml")}
    assert package | rule | conf | {"normstudy/py.typed", "hydra_plugins/normstudy/__init__.py"} <= names
    assert {name.split("/")[0] for name in names if "dist-info" not in name} == {"normstudy", "hydra_plugins"}


def test_it_works_from_any_folder(wheel: Path, tmp_path: Path) -> None:
    """In an environment of its own, which borrows every other package of this one."""
    environment, elsewhere = tmp_path / "environment", tmp_path / "elsewhere"
    elsewhere.mkdir()
    done([sys.executable, "-m", "venv", "--without-pip", environment], tmp_path)
    python, command = environment / "bin" / "python", environment / "bin" / "normstudy"
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index", wheel]
    done(pip, tmp_path)
    (packages,) = environment.glob("lib/*/site-packages")
    borrowed = [
        path for path in sys.path if path.endswith("site-packages")
    ]  # plain paths: their .pth files are not read
    (packages / "borrowed.pth").write_text("\n".join(borrowed) + "\n")

    assert done([python, "-c", "import normstudy; print(normstudy.__file__)"], elsewhere).startswith(str(packages))
    assert "normstudy sweep" in done([command, "--help"], elsewhere)
    assert "placement: pre" in done([command, "run", "--cfg", "job"], elsewhere)
    assert "outcomes: 2 " in done([command, "sweep", "study=two", "seed=0,1", *TINY], elsewhere)
    assert [path.name for path in (elsewhere / "results").iterdir()] == ["two"]
    assert list((elsewhere / "results" / "two" / "figures").glob("*.png"))
