"""The worked examples of docs/watch.md run as they are written, and end in their figure."""

from __future__ import annotations

import re
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import normstudy
from normstudy.cli.main import main

HERE = Path(__file__).parent
PAGE = (HERE.parents[1] / "docs" / "watch.md").read_text()


def changed(loop: str, diff: str) -> tuple[str, int]:
    """A program with the added lines of a diff, each part of which has them behind its first line, or before it."""
    lines, added = loop.splitlines(), 0
    for part in diff.split("...\n"):
        new = [line[1:] for line in part.splitlines() if line.startswith("+")]
        before = part.startswith("+")
        context = next(line[1:] for line in part.splitlines() if not line.startswith("+"))
        at = lines.index(context) + (not before)
        lines[at:at] = new
        added += len(new)
    return "\n".join(lines) + "\n", added


def test_nanogpt_s_loop_in_five_changed_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """It trains to the same bits as without them."""
    (diff,) = re.findall("```diff\n(.*?)```", PAGE, re.DOTALL)
    source, added = changed((HERE / "nanogpt_loop.py").read_text(), diff)
    assert added == 5
    monkeypatch.chdir(tmp_path)
    Path("changed.py").write_text(source)
    models = [runpy.run_path(str(path))["model"] for path in (HERE / "nanogpt_loop.py", Path("changed.py"))]
    assert all(torch.equal(a, b) for a, b in zip(*(model.parameters() for model in models), strict=True))
    found = normstudy.load("results/nanogpt")
    assert found.runs["status"].tolist() == ["done"]
    assert found.steps["train_loss"].notna().all()
    assert found.steps["val_loss"].dropna().index.tolist() == [0, 10, 20, 30]
    assert {"attn_in", "attn_out", "mlp_in", "mlp_out", "norm1", "norm2"} < set(found.modules["module"])
    capfd.readouterr()
    (command,) = re.findall("```bash\nnormstudy (.*)\n```", PAGE)
    assert main(command.split()) == 0, capfd.readouterr()
    assert [path.name for path in Path("results/nanogpt/figures").iterdir()] == ["gradient_profile.png"]


@pytest.mark.packages
def test_tuning_a_gpt2(tmp_path: Path) -> None:
    (code,) = [code for code in re.findall("```python\n(.*?)```", PAGE, re.DOTALL) if "Trainer(" in code]
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    study = tmp_path / "results/tuned"
    assert (tmp_path / "gradient_profile.png").stat().st_size > 10_000
    found: Any = normstudy.load(study)
    assert len(found.steps) == 40
    assert found.steps["train_loss"].notna().all()
    assert sorted(set(found.modules["layer"].dropna())) == [0, 1, 2, 3, 4, 5]
