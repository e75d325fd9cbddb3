"""Implement `normstudy reproduce`: measure the missing tables, then judge each prediction and draw its figure."""

import itertools
import os
import textwrap
from collections.abc import Iterable, Sequence
from importlib import import_module
from pathlib import Path
from typing import NoReturn

import pandas as pd
from tqdm import tqdm

from normstudy.analysis.grid import count_text, markdown_table, plain_table
from normstudy.errors import ConfigError, bar_options, nearest
from normstudy.figures import style
from normstudy.reproductions import plots, tables, workers
from normstudy.reproductions.entry import Job, Need, Reading, Reproduction, Sizes, Variant
from normstudy.reproductions.verdicts import Finding
from normstudy.study import paths

# Names of the files in predictions/, with hyphens for underscores, in the order in which they are printed. A file's
# docstring states the source, what is computed, the band, the rule for the verdict and why the prediction may fail.
NAMES = (
    "xiong-theorem1-pre", "xiong-theorem1-post", "gpt2-init-control", "xiong-lemma2-post", "xiong-lemma2-pre",
    "xiong-profile-pre", "xiong-profile-post", "rmsnorm-equals-layernorm", "admin-output-change", "deepnet-constants",
    "deepnet-update", "peri-variance", "lns-variance", "mixln-balance", "reordered-needs-qknorm",
)  # fmt: skip
REPRODUCTIONS: dict[str, Reproduction] = {
    name: import_module(f"normstudy.reproductions.predictions.{name.replace('-', '_')}").ENTRY for name in NAMES
}
OUT = Path("results/reproductions")
SIZES = Sizes()
TIER = 0  # number of the only group of reproductions; --tier 0 selects all of them
LAYERS_AT_ONCE = 128  # limit on the layers of a job's models together; keeps a process below 2 GB
# Kind of measurement -> time per block. The unit is the time of a forward pass through one block of one model.
COST = {"gradients": 3.0, "stream": 1.3, "before_norm2": 1.3, "noise": 3.0, "update": 6.5, "constants": 2.0}

Unit = tuple[str, Variant, int, int]  # a measurement of one model: kind, model, depth, seed


def check_names(names: Sequence[str]) -> list[str]:
    """Return the names without repetitions. Raises a ConfigError for an unknown name."""
    for name in names:
        if name not in REPRODUCTIONS:
            hint = f"{nearest(name, REPRODUCTIONS)} To see all names, run normstudy reproduce --list"
            raise ConfigError(f"{name!r} is not a reproduction.{hint}")
    return list(dict.fromkeys(names))


def reproduce(
    names: Sequence[str], out: Path, *, again: bool = False, processes: int | None = None, sizes: Sizes = SIZES
) -> tuple[dict[str, list[Finding]], list[str]]:
    """Measure the tables that `out` lacks, then judge and draw all. Return findings, and the names of measured tables.

    again: measure stored tables again. processes: number of worker processes, by default one per core. Raises
    ConfigError for an unknown name, a number of processes below 1, or a folder that cannot be written.
    """
    names = check_names(names)
    if processes is not None and processes < 1:
        raise ConfigError(f"--workers {processes} is below 1: give at least 1")
    paths.check_out(out)
    needs = {name: REPRODUCTIONS[name].needs(sizes) for name in names}
    keys = {name: tables.definition(sizes, needs[name]) for name in names}
    missing = [name for name in names if again or tables.stored_definition(out, name) != keys[name]]
    measure({name: needs[name] for name in missing}, keys, out, sizes, processes)
    stored = {name: tables.read(out, name) for name in names}
    findings = {name: REPRODUCTIONS[name].findings(table) for name, table in stored.items()}
    with style.rc():
        for name, table in stored.items():
            figure = REPRODUCTIONS[name].draw(table, findings[name])
            plots.cite(figure, REPRODUCTIONS[name].source)
            style.save(figure, out / "figures" / f"{name}.png", "png")
    return findings, missing


def units(needs: Iterable[Need]) -> list[Unit]:
    """List the measurements requested in `needs`, one for each depth and seed, without repetitions."""
    found = ((n.kind, n.variant, depth, seed) for n in needs for depth in n.depths for seed in range(n.seeds))
    return list(dict.fromkeys(found))


def jobs(wanted: Sequence[Unit], sizes: Sizes) -> list[Job]:
    """Group measurements that differ only in the seed into jobs of at most LAYERS_AT_ONCE layers, longest job first."""
    found = []
    for (kind, variant, depth), group in itertools.groupby(sorted(wanted), key=lambda unit: unit[:3]):
        seeds, at_once = tuple(unit[3] for unit in group), max(1, LAYERS_AT_ONCE // depth)
        found += [Job(kind, variant, depth, seeds[i : i + at_once], sizes) for i in range(0, len(seeds), at_once)]
    return sorted(found, key=lambda job: -cost(job))


def cost(job: Job) -> float:
    """Estimate a job's time, in the unit of COST."""
    return COST[job.kind] * job.depth * len(job.seeds)


def measure(needs: dict[str, list[Need]], keys: dict[str, str], out: Path, sizes: Sizes, processes: int | None) -> None:
    """Make the measurements that reproductions need, and write each table as soon as its measurements are complete."""
    queue = jobs(units(itertools.chain.from_iterable(needs.values())), sizes)
    if not queue:
        return
    left = {name: units(part) for name, part in needs.items()}
    readings: dict[Unit, list[Reading]] = {}
    with _bar(sum(map(cost, queue))) as bar:
        for job, found in workers.run(queue, min(processes or len(os.sched_getaffinity(0)), len(queue))):
            for seed in job.seeds:
                readings[job.kind, job.variant, job.depth, seed] = [one for one in found if one[2] == seed]
            for name in [name for name, part in left.items() if all(unit in readings for unit in part)]:
                tables.write(out, name, frame(left.pop(name), readings), keys[name])
            bar.update(cost(job))


def frame(wanted: Sequence[Unit], readings: dict[Unit, list[Reading]]) -> pd.DataFrame:
    """Return a reproduction's table: one row for each reading of the measurements in `wanted`."""
    rows = [
        (quantity, unit[1].name, unit[1].placement, unit[2], layer, seed, value)
        for unit in wanted
        for quantity, layer, seed, value in readings[unit]
    ]
    return pd.DataFrame(rows, columns=tables.SCHEMA.names)


def _bar(total: float) -> "tqdm[NoReturn]":
    form = "{l_bar}{bar}| {elapsed} elapsed, {remaining} left"
    return tqdm(total=total, desc="measuring", bar_format=form, **bar_options())


HEADER = ("name", "quantity", "source says", "band", "value [95 % interval]", "seeds", "verdict")


def render(findings: dict[str, list[Finding]], fmt: str = "table") -> str:
    """Format the findings as a table, without a newline at the end. fmt: `table` (plain text) or `markdown`."""
    named = [
        (name, i, (f.quantity, f.source_text, f.band_text, f.value_text, str(f.seeds), f.verdict))
        for name, found in findings.items()
        for i, f in enumerate(found)
    ]
    if fmt == "markdown":
        return "\n".join(markdown_table(HEADER, [(f"`{name}`", *cells) for name, _, cells in named]))
    return "\n".join(plain_table(HEADER, [("" if i else name, *cells) for name, i, cells in named]))


def listing(names: Iterable[str]) -> str:
    """Return text that lists the names, predictions and sources, without a newline at the end."""
    lines = []
    for name in names:
        entry = REPRODUCTIONS[name]
        lines.append(f"{name} (tier {TIER})")
        lines += textwrap.wrap(f"{entry.prediction} [{entry.source}]", 96, initial_indent="  ", subsequent_indent="  ")
    return "\n".join(lines)


def summary(n: int, measured: int, out: Path) -> str:
    """Return a line that says how many of `n` tables were measured and how many were already stored."""
    before = f"; {n - measured} were already stored (--again measures all)" if n > measured else ""
    return f"measured {count_text(measured, 'prediction')}{before}. Tables and figures are in {out}"
