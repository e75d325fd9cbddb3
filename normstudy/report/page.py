"""Render a page as HTML that needs no network."""

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

from normstudy.analysis import grid, outcomes
from normstudy.analysis.grid import Value, value_text
from normstudy.analysis.inference import t_quantile
from normstudy.analysis.select import KINDS, Where, conditions, native
from normstudy.errors import ConfigError
from normstudy.figures import draw, style
from normstudy.figures import study as drawn
from normstudy.figures.paper import MODULE
from normstudy.figures.series import entropies
from normstudy.report.answer import answers
from normstudy.report.pack import LOSSES, Numbers, collect
from normstudy.report.read import CRASHED, UNFINISHED, Bundle, Cell, command_of

if TYPE_CHECKING:
    from normstudy.report.charts import Compiled

TEMPLATES = Path(__file__).parent / "templates"
STATES = (*style.OUTCOME_MARKERS, CRASHED, UNFINISHED)  # page.html has a symbol for each state
PICTURES = ("headline", "gradient_profile", "critical_depth", "critical_curve")  # shown without JavaScript
PICTURE_DPI = 110
VERSIONS = ("torch", "python", "cpu_capability", "device", "numerics", "git_commit")  # what trained a run


def render(bundle: Bundle, where: Where, compiled: Callable[[], "Compiled"]) -> str:
    """Return the page as HTML text. compiled: returns the charts. It may have to wait for them, so call it late."""
    numbers = collect(bundle)
    data = _data(bundle, numbers)
    pictures = _pictures(bundle, where)
    heads, runs = _run_table(bundle)
    states = bundle.runs["state"].value_counts()
    charts = compiled()
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    return environment.get_template("page.html").render(
        title=", ".join(source.name for source in bundle.sources), sources=bundle.sources,
        where=[f"{column}{sign}{','.join(texts)}" for column, sign, texts in conditions(where)],
        answers=answers(bundle), grid=_map(bundle), cells=bundle.cells, runs=runs, heads=heads,
        colors=style.OUTCOME_COLORS, states=[(state, int(states[state])) for state in STATES if state in states],
        pictures=pictures, rules=outcomes, numbers=numbers, losses=LOSSES, texts=_texts(bundle.runs),
        versions=[(name, _distinct(bundle.runs[name])) for name in VERSIONS], charts=charts.versions,
        data=_json(data), specs=_json(charts.specs), modules=data["modules"],
        vega=Markup(charts.library), css=Markup((TEMPLATES / "page.css").read_text()),
        script=Markup((TEMPLATES / "page.js").read_text()),
    )  # fmt: skip


def _json(value: object) -> Markup:
    """Return JSON text, with &, < and > escaped so that HTML can contain it."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return Markup(text.replace("&", r"\u0026").replace("<", r"\u003c").replace(">", r"\u003e"))


def _data(bundle: Bundle, numbers: Numbers) -> dict[str, Any]:
    """Return what page.js reads: cells, runs, grids of steps, modules, and t quantiles for confidence intervals."""
    runs = []
    for row in bundle.runs.to_dict("records"):
        loss = row["final_val_loss"]
        runs.append({
            "name": grid.title({c: native(c, row[c]) for c in (*bundle.searched, "seed")}, bundle.names),
            "seeds": [native(c, row[c]) for c in ("seed", "data_seed")], "state": row["state"],
            "loss": loss if math.isfinite(loss) else None, **numbers.runs[row["key"]],
        })  # fmt: skip
    modules = {m: None for layout in numbers.layouts for m, layer in layout if layer is not None}
    return {
        "runs": runs, "grids": numbers.grids, "layouts": numbers.layouts, "failed": outcomes.FAILED,
        "modules": sorted(modules, key=lambda m: m != MODULE),
        "cells": [
            {
                "title": cell.title, "runs": cell.rows,
                "color": style.PLACEMENT_COLORS.get(str(cell.place.get("placement")), style.PLACEMENT_COLORS["pre"]),
                "entropies": [e for e in entropies(bundle.runs.iloc[[cell.rows[0]]]) if e[0] != "ln(vocab)"],
            }
            for cell in bundle.cells
        ],
        "t": [round(t_quantile(n), 6) for n in range(1, max(len(cell.rows) for cell in bundle.cells))],
    }  # fmt: skip


def _map(bundle: Bundle) -> dict[str, Any]:
    """Return the map of outcomes: column heads and rows. Rows differ only in `n_layers` and settings that are text."""
    down = [c for c in bundle.fields if KINDS.get(c) is str or c == "n_layers"]
    across = [c for c in bundle.fields if c not in down]
    if not across and len(down) > 1:
        down, across = down[:-1], down[-1:]
    rows: dict[tuple[Value, ...], dict[tuple[Value, ...], dict[str, Any]]] = {}
    columns: dict[tuple[Value, ...], str] = {}
    for i, cell in enumerate(bundle.cells):
        row, column = (tuple(cell.place[c] for c in part) for part in (down, across))
        columns[column] = grid.title({c: cell.place[c] for c in across}, bundle.names) or "all runs"
        rows.setdefault(row, {})[column] = {"index": i, "title": cell.title, **_summary(bundle, cell)}
    order = sorted(columns, key=lambda c: [(v is not None, v if isinstance(v, int | float) else 0, str(v)) for v in c])
    return {
        "columns": [columns[column] for column in order],
        "rows": [
            (grid.title(dict(zip(down, row, strict=True)), bundle.names) or "all runs", [found.get(c) for c in order])
            for row, found in rows.items()
        ],
    }  # fmt: skip


def _summary(bundle: Bundle, cell: Cell) -> dict[str, Any]:
    """Return a cell's counts of states, the most frequent first, and its mean final loss."""
    part = bundle.runs.iloc[list(cell.rows)]
    counts = part["state"].value_counts()
    order = sorted(counts.index, key=lambda state: (-counts[state], STATES.index(state)))
    loss = part.loc[part["final_val_loss"].map(math.isfinite), "final_val_loss"]
    return {"counts": [(int(counts[s]), s) for s in order], "loss": f"{loss.mean():.3g}" if len(loss) else ""}


def _run_table(bundle: Bundle) -> tuple[list[str], list[dict[str, Any]]]:
    """Return the heads and the rows of the table of runs. Each row contains the run's command."""
    several = len(bundle.sources) > 1
    columns = (*bundle.fields, *bundle.searched)
    rows = []
    for _, run in bundle.runs.iterrows():
        study = [", ".join(bundle.sources[i].name for i in (run["of"], *run["also"]))] * several
        finals = ["" if pd.isna(run[c]) else f"{run[c]:.3g}" for c in ("final_val_loss", "gap_closed")]
        warning = [] if pd.isna(run["nonfinite_step"]) else [f"not finite at step {int(run['nonfinite_step'])}"]
        warning += [outcomes.MEANING[run["state"]]] if run["state"] in outcomes.MEANING else []
        places = [value_text(native(c, run[c])) for c in columns]
        cells = [*study, *places, str(run["seed"]), run["state"], *finals, "; ".join(warning)]
        rows.append({"cells": cells, "command": command_of(run)})
    return [*["study"] * several, *columns, "seed", "outcome", "final loss", "gap closed", "warnings"], rows


def _texts(runs: pd.DataFrame) -> list[tuple[str, str]]:
    """Return (name, sha256) of the texts on which runs were trained."""
    known = runs.dropna(subset="data_sha256")
    return sorted({(str(native("data", d)), str(s)) for d, s in zip(known["data"], known["data_sha256"], strict=True)})


def _distinct(column: "pd.Series[Any]") -> str:
    return ", ".join(sorted({str(native(str(column.name), v)) for v in column.dropna()})) or "not recorded"


def _pictures(bundle: Bundle, where: Where) -> list[tuple[str, str]]:
    """Return (alternative text, data URI) of each study's PICTURES, with few colors to keep the page small."""
    found = []
    for source in bundle.sources:
        try:
            study = drawn.load(source.folder, where)
        except ConfigError:  # the study has no finished run
            continue
        with style.rc():
            for name in PICTURES if source.search else PICTURES[:2]:
                try:
                    figure = draw.draw(study, name)
                except drawn.Lacks:
                    continue
                drawing, small = io.BytesIO(), io.BytesIO()
                figure.savefig(drawing, format="png", dpi=PICTURE_DPI)
                with Image.open(drawing) as image:  # 64 colors make the file a quarter as large
                    image.convert("RGB").quantize(64, dither=Image.Dither.NONE).save(small, "png", optimize=True)
                uri = f"data:image/png;base64,{base64.b64encode(small.getvalue()).decode()}"
                found.append((f"Figure {name} of the study {source.name}", uri))
    return found
