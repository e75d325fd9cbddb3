"""Read a page as a program does: the JSON in it, and the text of its tables; compare it with the study."""

from __future__ import annotations

import base64
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from normstudy.analysis.load import load
from normstudy.analysis.outcomes import Floats
from normstudy.figures.series import last_tenth
from normstudy.report import pack
from normstudy.report.read import read

HOSTILE = "own:\"'</script><img src=x onerror=alert(1)>\u202egnirts" + "x" * 200


def data_of(html: str, name: str = "data") -> Any:
    found = re.search(rf'<script type="application/json" id="{name}">(.*?)</script>', html, re.DOTALL)
    assert found is not None
    return json.loads(found[1])


class _Texts(HTMLParser):
    """Collect the text of every element with one of these names."""

    def __init__(self, tags: tuple[str, ...]) -> None:
        super().__init__()
        self.tags, self.depth, self.found = tags, 0, list[str]()

    def handle_starttag(self, tag: str, attrs: object) -> None:
        if tag in self.tags:
            self.depth += 1
            self.found.append("")

    def handle_endtag(self, tag: str) -> None:
        self.depth -= tag in self.tags

    def handle_data(self, data: str) -> None:
        if self.depth:
            self.found[-1] += data


def texts(html: str, *tags: str) -> list[str]:
    parser = _Texts(tags)
    parser.feed(html)
    return [text.strip() for text in parser.found]


def unpack(text: str) -> Floats:
    """Return the numbers that `pack` packed, rounded to three digits."""
    codes = np.frombuffer(base64.b64decode(text), "<u2").astype(int) - len(pack.SPECIAL)
    numbers = [
        float(f"{c % 900 + 100}e{c // 900 + pack.LOWEST - 2}") if c >= 0 else pack.SPECIAL[c] for c in codes.tolist()
    ]
    return np.array(numbers, np.float64)


def digits(value: float) -> float:
    """What a page shows of a number of `modules` or `residual`."""
    if not np.isfinite(value) or value == 0:
        return float(value)
    return np.inf if value >= 9.995e35 else max(1e-36, float(f"{value:.3g}"))


def assert_same_numbers(folder: Path, html: str) -> None:
    """Every number behind the charts, and every text of the tables, is the one that other readers of the study give."""
    data = data_of(html)
    tables = load(folder)
    by_key = {str(key).partition(":")[2]: i for i, key in enumerate(read([folder]).runs["key"])}
    assert len(by_key) == len(data["runs"]) == len(tables.runs)
    order = {name: i for i, name in enumerate(dict.fromkeys(m for layout in data["layouts"] for m, _ in layout))}
    for table in (tables.steps, tables.modules, tables.residual):
        assert set(table["run_id"]) <= set(by_key)
    for run_id, rows in tables.modules.assign(place=tables.modules["module"].map(order)).groupby(
        "run_id", observed=True
    ):
        run = data["runs"][by_key[str(run_id)]]
        steps, layout = data["grids"][run["probes"]], [tuple(one) for one in data["layouts"][run["layout"]]]
        assert set(steps) <= set(rows["step"])
        wanted = {
            (step, module, None if pd.isna(layer) else int(layer)): (norm, ratio)
            for step, module, layer, norm, ratio in rows[
                ["step", "module", "layer", "grad_norm", "update_ratio"]
            ].to_numpy()
        }
        for i, name in enumerate(pack.QUANTITIES):
            if name in run:
                expected = [digits(wanted[step, *place][i]) for step in steps for place in layout]
                assert np.array_equal(unpack(run[name]), expected, equal_nan=True)
        path = tables.residual[(tables.residual["run_id"] == run_id) & tables.residual["step"].isin(steps)]
        path = path.sort_values(["step", "layer"])
        assert np.array_equal(unpack(run["residual"]), [digits(v) for v in path["grad_norm"]], equal_nan=True)
    for run_id, rows in tables.steps.sort_values("step").groupby("run_id", observed=True):
        run = data["runs"][by_key[str(run_id)]]
        good = rows[np.isfinite(rows["train_loss"])].reset_index(drop=True)
        smooth = last_tenth(good.assign(value=good["train_loss"])).set_index("step")["value"]
        shown = data["grids"][run["train_steps"]]
        assert unpack(run["train"]).tolist() == [digits(smooth[step]) for step in shown]
        final = tables.runs.set_index("run_id").loc[str(run_id)]
        seen = dict(zip(data["grids"][run["val_steps"]], unpack(run["val"]), strict=True))
        val = rows.dropna(subset=["val_loss"])
        wanted = dict(zip(val["step"], val["val_loss"], strict=True))
        if np.isfinite(final["final_val_loss"]):
            wanted[final["n_steps"]] = final["final_val_loss"]
            assert run["loss"] == final["final_val_loss"]
        assert seen == {step: digits(value) for step, value in wanted.items()}
