"""Render the page of studies as HTML that needs no network."""

from __future__ import annotations

import base64
import io
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image

from normstudy.analysis import outcomes, words
from normstudy.analysis.grid import Value, value_text
from normstudy.analysis.inference import t_quantile
from normstudy.analysis.select import KINDS, Where, conditions, native
from normstudy.errors import ConfigError
from normstudy.figures import draw, style
from normstudy.figures import study as drawn
from normstudy.figures.paper import MODULE
from normstudy.report import methods
from normstudy.report.answer import answers
from normstudy.report.numbers import Numbers, collect
from normstudy.report.read import CRASHED, UNFINISHED, Bundle, Cell, command_of

if TYPE_CHECKING:
    from normstudy.report.charts import Compiled

TEMPLATES = Path(__file__).parent / "templates"
STATES = (*style.OUTCOME_MARKERS, CRASHED, UNFINISHED)  # each has a symbol in page.html
PICTURES = ("headline", "gradient_profile", "critical_depth", "critical_curve")  # shown where there is no JavaScript
PICTURE_DPI = 110
FINALS = ("final_val_loss", "gap_closed")


def render(bundle: Bundle, where: Where, compiled: Callable[[], Compiled]) -> str:
    """Return the page as HTML text. compiled: returns the charts, and is called last."""
    numbers = collect(bundle)
    data = _data(bundle, numbers)
    pictures = _pictures(bundle, where)
    states = bundle.runs["state"].value_counts()
    charts = compiled()
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    return environment.get_template("page.html").render(
        title=", ".join(source.name for source in bundle.sources), sources=bundle.sources,
        where=[f"{column}{sign}{','.join(texts)}" for column, sign, texts in conditions(where)],
        answers=answers(bundle), grid=_map(bundle), cells=bundle.cells,
        runs=_run_rows(bundle), heads=_run_heads(bundle), colors=style.OUTCOME_COLORS,
        states=[(state, int(states[state])) for state in STATES if state in states],
        pictures=pictures, methods=methods.methods(bundle, numbers, charts.versions),
        data=_json(data), specs=_json(charts.specs), modules=data["modules"], quantities=numbers.quantities,
        vega=Markup(charts.library), css=Markup((TEMPLATES / "page.css").read_text()),
        script=Markup((TEMPLATES / "page.js").read_text()),
    )  # fmt: skip


def _json(value: object) -> Markup:
    """Return JSON that no HTML parser can take for markup."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return Markup(text.replace("&", r"\u0026").replace("<", r"\u003c").replace(">", r"\u003e"))


def _data(bundle: Bundle, numbers: Numbers) -> dict[str, Any]:
    """Return what page.js reads: cells, runs, grids of steps, modules, and quantiles for the intervals of pairs."""
    runs = []
    for row in bundle.runs.to_dict("records"):
        of = {c: native(c, row[c]) for c in (*bundle.searched, "seed")}
        seeds = [native(c, row[c]) for c in ("seed", "data_seed")]
        loss = row["final_val_loss"]
        runs.append({
            "name": words.title(of, bundle.names), "seeds": seeds, "state": row["state"],
            "loss": loss if math.isfinite(loss) else None, **numbers.runs[row["key"]],
        })  # fmt: skip
    modules = list(dict.fromkeys(m for layout in numbers.layouts for m, layer in layout if layer is not None))
    usual = [MODULE] if MODULE in modules else []
    most = max((len(cell.rows) for cell in bundle.cells), default=0)
    return {
        "runs": runs, "grids": numbers.grids, "layouts": numbers.layouts, "failed": outcomes.FAILED,
        "modules": list(dict.fromkeys([*usual, *modules])),
        "cells": [
            {"title": cell.title, "runs": cell.rows, "color": _color(cell), "entropies": _entropies(bundle, cell)}
            for cell in bundle.cells
        ],
        "t": [round(t_quantile(n), 6) for n in range(1, most)],
    }  # fmt: skip


def _color(cell: Cell) -> str:
    return style.PLACEMENT_COLORS.get(str(cell.place.get("placement")), style.PLACEMENT_COLORS["pre"])


def _entropies(bundle: Bundle, cell: Cell) -> list[tuple[str, float]]:
    """Return (name, loss) of predictions that know only how often symbols, or pairs of symbols, occur in the text."""
    run = bundle.runs.iloc[cell.rows[0]]
    named = {"unigram": run["unigram_entropy"], "bigram": run["bigram_entropy"]}
    return [(name, float(value)) for name, value in named.items() if not pd.isna(value)]


def _map(bundle: Bundle) -> dict[str, Any]:
    """Return the outcome map: heads of its columns, and rows of cells. Text fields and the depth make the rows."""
    down = [c for c in bundle.fields if KINDS.get(c) is str or c == "n_layers"]
    across = [c for c in bundle.fields if c not in down]
    if not across and len(down) > 1:
        down, across = down[:-1], down[-1:]
    rows: dict[tuple[Value, ...], dict[tuple[Value, ...], dict[str, Any]]] = {}
    columns: dict[tuple[Value, ...], str] = {}
    for i, cell in enumerate(bundle.cells):
        row, column = (tuple(cell.place[c] for c in part) for part in (down, across))
        columns[column] = words.title({c: cell.place[c] for c in across}, bundle.names) or "all runs"
        rows.setdefault(row, {})[column] = {"index": i, "title": cell.title, **_summary(bundle, cell)}
    order = sorted(
        columns, key=lambda place: [(v is not None, v if isinstance(v, int | float) else 0, str(v)) for v in place]
    )
    return {
        "columns": [columns[column] for column in order],
        "rows": [
            (words.title(dict(zip(down, row, strict=True)), bundle.names) or "all runs", [found.get(c) for c in order])
            for row, found in rows.items()
        ],
    }  # fmt: skip


def _summary(bundle: Bundle, cell: Cell) -> dict[str, Any]:
    """Return a cell's counts of states, the most frequent first, and its mean final loss."""
    part = bundle.runs.iloc[list(cell.rows)]
    counts = part["state"].value_counts()
    order = sorted(counts.index, key=lambda state: (-counts[state], STATES.index(state)))
    loss = part["final_val_loss"]
    loss = loss[loss.map(math.isfinite)]
    return {"counts": [(int(counts[s]), s) for s in order], "loss": f"{loss.mean():.3g}" if len(loss) else ""}


def _run_heads(bundle: Bundle) -> list[str]:
    studies = ["study"] if len(bundle.sources) > 1 else []
    return [*studies, *bundle.fields, *bundle.searched, "seed", "outcome", "final loss", "gap closed", "warnings"]


def _run_rows(bundle: Bundle) -> list[dict[str, Any]]:
    """Return the rows of the table of runs: texts of the columns `_run_heads`, and its command."""
    rows = []
    for _, run in bundle.runs.iterrows():
        study = [", ".join(bundle.sources[i].name for i in (run["of"], *run["also"]))]
        finals = ["" if pd.isna(run[c]) else f"{run[c]:.3g}" for c in FINALS]
        places = [value_text(native(c, run[c])) for c in (*bundle.fields, *bundle.searched)]
        cells = [*(study if len(bundle.sources) > 1 else []), *places, str(run["seed"]), run["state"], *finals]
        rows.append({"cells": [*cells, _warning(run)], "command": command_of(run)})
    return rows


def _warning(run: pd.Series[Any]) -> str:
    said = []
    if not pd.isna(run["nonfinite_step"]):
        said.append(f"not finite at step {int(run['nonfinite_step'])}")
    if run["state"] in outcomes.MEANING:
        said.append(outcomes.MEANING[run["state"]])
    return "; ".join(said)


def _pictures(bundle: Bundle, where: Where) -> list[tuple[str, str]]:
    """Return (text alternative, data URI) of figures of each study, small enough to be sent."""
    found = []
    for source in bundle.sources:
        try:
            study = drawn.load(source.folder, where)
        except ConfigError:  # no finished run
            continue
        with style.rc():
            for name in PICTURES if source.search else PICTURES[:2]:
                try:
                    figure = draw.draw(study, name)
                except drawn.Lacks:
                    continue
                drawing, small = io.BytesIO(), io.BytesIO()
                figure.savefig(drawing, format="png", dpi=PICTURE_DPI)
                with Image.open(drawing) as image:  # few colors make the file a quarter as large
                    image.convert("RGB").quantize(64, dither=Image.Dither.NONE).save(small, "png", optimize=True)
                uri = f"data:image/png;base64,{base64.b64encode(small.getvalue()).decode()}"
                found.append((f"Figure {name} of the study {source.name}", uri))
    return found
