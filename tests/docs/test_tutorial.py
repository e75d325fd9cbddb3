"""docs/tutorial.ipynb runs in a real kernel, redraws three figures and shows the report."""

from __future__ import annotations

from pathlib import Path

import pytest

TUTORIAL = Path(__file__).parents[2] / "docs" / "tutorial.ipynb"


@pytest.mark.packages
def test_the_tutorial_runs() -> None:
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(TUTORIAL, as_version=4)
    assert all(not cell.get("outputs") for cell in notebook.cells)  # none is committed
    NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(TUTORIAL.parent)}}).execute()
    shown = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert [output for output in shown if output["output_type"] in ("stream", "error")] == []
    kinds = [kind for output in shown for kind in output.get("data", {})]
    assert kinds.count("image/png") == 3
    report = shown[-1]["data"]
    assert report["text/html"].startswith("<iframe srcdoc=")
    assert report["text/plain"].startswith("Report of ../results/warmup: 40 runs")
