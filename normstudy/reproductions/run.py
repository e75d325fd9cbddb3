"""`normstudy reproduce`: measure what is missing, judge and draw from the tables, print.

Measurements are shared: what two reproductions need of the same model, depth and seed is measured once.
"""

from __future__ import annotations

import itertools
import os
import textwrap
import typing
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import pandas as pd
from tqdm import tqdm

from normstudy import terminal
from normstudy.config import ConfigError, one_of
from normstudy.errors import nearest
from normstudy.figures import style
from normstudy.reproductions import tables, workers
from normstudy.reproductions.entry import Job, Need, Reproduction, Row, Setting, Variant
from normstudy.reproductions.registry import REPRODUCTIONS
from normstudy.reproductions.verdicts import Finding
from normstudy.study import paths

OUT = Path("results/reproductions")
FORMATS = ("table", "markdown")
LAYERS_AT_ONCE = 128  # of all runs of a job: keeps a process below 2 GB
COST = {"gradients": 3.0, "stream": 1.3, "before_norm2": 1.3, "noise": 3.0, "update": 6.5, "constants": 2.0}

Unit = tuple[str, Variant, int, int]  # kind, model, depth, seed: what is measured once


@dataclass(frozen=True)
class Report:
    """The findings of each reproduction, in order, and which of them were measured now."""

    findings: dict[str, list[Finding]]
    measured: list[str]


def names_of(tier: int) -> list[str]:
    """The reproductions of a tier. Raises ConfigError for a tier that there is not."""
    tiers = sorted({r.tier for r in REPRODUCTIONS.values()})
    if tier not in tiers:
        raise ConfigError(f"--tier {tier}: there is no such tier, give {' or '.join(map(str, tiers))}")
    return [name for name, r in REPRODUCTIONS.items() if r.tier == tier]


def check_names(names: Sequence[str]) -> list[str]:
    """The names, each once. Raises ConfigError for one that is no reproduction."""
    for name in names:
        if name not in REPRODUCTIONS:
            raise ConfigError(
                f"{name!r} is no reproduction.{nearest(name, REPRODUCTIONS)} normstudy reproduce --list names them"
            )
    return list(dict.fromkeys(names))


def reproduce(
    names: Sequence[str],
    out: Path = OUT,
    *,
    again: bool = False,
    processes: int | None = None,
    setting: Setting | None = None,
) -> Report:
    """Measure what `out` lacks, then judge and draw from its tables.

    again: measure all; processes: workers, by default one per core. Raises ConfigError for a wrong request.
    """
    names = check_names(names)
    if processes is not None and processes < 1:
        raise ConfigError(f"--workers {processes} is below 1")
    paths.check_out(out)
    setting = setting or Setting()
    needs = {name: REPRODUCTIONS[name].needs(setting) for name in names}
    keys = {name: tables.definition(setting, needs[name]) for name in names}
    missing = [name for name in names if again or tables.stored_definition(out, name) != keys[name]]
    measure({name: needs[name] for name in missing}, keys, out, setting, processes)
    report = Report({name: REPRODUCTIONS[name].findings(tables.read(out, name)) for name in names}, missing)
    for name in names:
        draw(name, out, report.findings[name])
    return report


# ---- measuring --------------------------------------------------------------------------------------------


def units(needs: Iterable[Need]) -> list[Unit]:
    """What needs come to, each once, in order."""
    found = ((n.kind, n.variant, depth, seed) for n in needs for depth in n.depths for seed in range(n.seeds))
    return list(dict.fromkeys(found))


def jobs(wanted: Sequence[Unit], setting: Setting) -> list[Job]:
    """Seeds of one model and depth together as far as memory goes; the longest first."""
    groups: dict[tuple[str, Variant, int], list[int]] = {}
    for kind, variant, depth, seed in wanted:
        groups.setdefault((kind, variant, depth), []).append(seed)
    found = []
    for (kind, variant, depth), seeds in groups.items():
        at_once = max(1, LAYERS_AT_ONCE // depth)
        found += [Job(kind, variant, depth, tuple(part), setting) for part in _batched(sorted(seeds), at_once)]
    return sorted(found, key=lambda job: -cost(job))


def _batched(seeds: list[int], size: int) -> list[list[int]]:
    return [seeds[i : i + size] for i in range(0, len(seeds), size)]


def cost(job: Job) -> float:
    """Rough time, in forward passes of one block of one run."""
    return COST.get(job.kind, 3.0) * job.depth * len(job.seeds)


def measure(
    needs: dict[str, list[Need]], keys: dict[str, str], out: Path, setting: Setting, processes: int | None
) -> None:
    """Measure what the reproductions need and write each one's table as soon as it is whole."""
    wanted = units(itertools.chain.from_iterable(needs.values()))
    if not wanted:
        return
    queue = jobs(wanted, setting)
    count = min(processes or len(os.sched_getaffinity(0)), len(queue))
    of = {name: units(part) for name, part in needs.items()}
    rows: dict[Unit, list[Row]] = {}
    with _bar(sum(map(cost, queue))) as bar:
        for job, found in workers.run(queue, count):
            for seed in job.seeds:
                rows[job.kind, job.variant, job.depth, seed] = [row for row in found if row[2] == seed]
            for name in [name for name, part in of.items() if all(unit in rows for unit in part)]:
                tables.write(out, name, frame(of.pop(name), rows), keys[name])
            bar.update(cost(job))


def frame(wanted: Sequence[Unit], rows: dict[Unit, list[Row]]) -> pd.DataFrame:
    """The rows of some units in the columns of a table."""
    records = [
        (quantity, variant.name, variant.placement, depth, layer, seed, value)
        for unit in wanted
        for _, variant, depth, _ in [unit]
        for quantity, layer, seed, value in rows[unit]
    ]
    made = pd.DataFrame(records, columns=tables.SCHEMA.names)
    return made.assign(layer=made["layer"].astype("Int32"))


def _bar(total: float) -> tqdm[typing.NoReturn]:
    form = "{l_bar}{bar}| {elapsed} elapsed, {remaining} left"
    return tqdm(total=total, desc="measuring", bar_format=form, **terminal.fit())


# ---- drawing and printing ---------------------------------------------------------------------------------


def draw(name: str, out: Path, findings: list[Finding]) -> Path:
    """Draw the figure of a reproduction from its table: the same bytes every time."""
    target = out / "figures" / f"{name}.png"
    with matplotlib.rc_context(style.rc()):  # type: ignore[arg-type]  # the stubs list every key as a Literal
        figure = REPRODUCTIONS[name].draw(tables.read(out, name), findings)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            style.save(figure, target, "png")
        except OSError as error:
            raise ConfigError(f"{target} cannot be written: {error.strerror}") from None
    return target


HEADER = ("name", "quantity", "band", "value [95 % interval]", "seeds", "verdict")


def render(findings: dict[str, list[Finding]], fmt: str = "table") -> str:
    """The findings as text, without a newline at its end. fmt: table or markdown."""
    one_of("--format", fmt, FORMATS)
    lines = [
        (name, f.quantity, f.band_text, f.value_text, str(f.seeds), f.verdict)
        for name, found in findings.items()
        for f in found
    ]
    if fmt == "markdown":
        cells = [(f"`{name}`", *(text.replace("|", r"\|") for text in rest)) for name, *rest in lines]
        return "\n".join("| " + " | ".join(row) + " |" for row in (HEADER, ["---"] * len(HEADER), *cells))
    above = ["", *(line[0] for line in lines)]
    shown = [
        HEADER,
        *(("" if line[0] == before else line[0], *line[1:]) for line, before in zip(lines, above, strict=False)),
    ]
    widths = [max(map(len, column)) for column in zip(*shown, strict=True)]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in shown)


def listing(names: Iterable[str]) -> str:
    """The reproductions with what they predict and by whom, without a newline at the end."""
    lines = []
    for name in names:
        entry: Reproduction = REPRODUCTIONS[name]
        lines.append(f"{name} (tier {entry.tier})")
        lines += textwrap.wrap(f"{entry.prediction} [{entry.source}]", 96, initial_indent="  ", subsequent_indent="  ")
    return "\n".join(lines)


def summary(report: Report, out: Path) -> str:
    """What was measured now and what was there, and where it lies."""
    stored = len(report.findings) - len(report.measured)
    now = f"measured {len(report.measured)} now"
    before = f"{stored} stored, same definition (--again measures anew)" if stored else ""
    return f"{', '.join(part for part in (now, before) if part)}; tables and figures: {out}"
