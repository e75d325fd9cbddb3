"""Train runs, sweeps and searches from Python, as the command line does, and evaluate their studies."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from normstudy.errors import ConfigError

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure, SubFigure

    from normstudy.analysis.load import Tables
    from normstudy.analysis.select import Where
    from normstudy.report.make import Report
    from normstudy.upkeep.status_text import Status

# Matches text that needs no quotes, because Hydra does not change it.
PLAIN = re.compile(r"(?!(?:true|false|null|nan|inf)$)[a-z][\w-]*", re.IGNORECASE | re.ASCII)
HYDRA = threading.RLock()  # held while Hydra runs, because its state belongs to the whole process


@dataclass(frozen=True, repr=False)
class Study:
    """A study. Every access reads its files again. A method such as `plot` takes the options of `normstudy.plot`."""

    folder: Path | str

    @property
    def tables(self) -> Tables:
        """The four tables as DataFrames, as `normstudy.load` returns them."""
        from normstudy.analysis.load import load

        return load(self.folder)

    def plot(self, figure: str = "headline", **options: Any) -> Figure:
        return plot(self.folder, figure, **options)

    def compare(self, by: str, **options: Any) -> pd.DataFrame:
        return compare(self.folder, by, **options)

    def critical(self, where: Where = ()) -> pd.DataFrame:
        """Return the critical values that `normstudy critical` prints. Raises ConfigError if a study has no search."""
        from normstudy.search.answer import critical_values

        return critical_values(self.folder, where)[0]

    def report(self, **options: Any) -> Report:
        return report(self.folder, **options)

    def status(self) -> Status:
        return status(self.folder)

    def __repr__(self) -> str:
        return repr(self.status()) if os.path.isdir(self.folder) else f"{self.folder}: no runs"


def run(**keys: object) -> Study:
    """Train one run, unless it is finished, and return its study.

    keys: the keys of `normstudy run`, written as their last part (`n_layers=4`), in groups (`model={"n_layers": 4}`)
    or in full (`**{"model.n_layers": 4}`).
    """
    return _train("run", {}, keys)


def sweep(
    experiment: str | None = None,
    overrides: Sequence[str] = (),
    axes: Mapping[str, Sequence[object]] | None = None,
    study: str | None = None,
    *,
    dry_run: bool = False,
    **keys: object,
) -> Study:
    """Train a sweep's missing runs, draw its figures, and return its study.

    axes: key -> values. keys: as for `run`; a key with a list of values is an axis too. overrides: further words, as
    on the command line. dry_run: only print what would be trained. Raises ConfigError, or RunsFailed if runs crashed.
    """
    named = {"experiment": experiment, "study": study}
    return _train("sweep", named, {**(axes or {}), **keys}, overrides, ["--dry-run"] * dry_run)


def critical(
    of: str | None = None,
    experiment: str | None = None,
    overrides: Sequence[str] = (),
    axes: Mapping[str, Sequence[object]] | None = None,
    study: str | None = None,
    *,
    dry_run: bool = False,
    **keys: object,
) -> Study:
    """Search for the value of key `of` at which half of the runs fail, for each combination of the other keys' values.

    of: peak_lr, warmup_steps or n_layers; None: the experiment's choice, by default peak_lr. The other arguments are
    those of `sweep`. The values found are in `Study.critical()`.
    """
    named, flags = {"experiment": experiment, "study": study}, [] if of is None else ["--of", of]
    return _train("critical", named, {**(axes or {}), **keys}, overrides, [*flags, *["--dry-run"] * dry_run])


def plot(
    study: Path | str,
    figure: str = "headline",
    *,
    where: Where = (),
    width: float = 7.0,
    title: bool = True,
    module: str = "mlp_out",
    quantity: str = "grad_norm",
    into: Figure | SubFigure | None = None,
) -> Figure:
    """Draw a figure of a study. A notebook shows the result, and its `savefig` writes it. See docs/figures.md.

    figure: its name. width: inches. module, quantity: what the gradient figures show. into: the figure to draw into.
    """
    from normstudy.figures import draw, paper

    return draw.drawn(study, figure, where, paper.Paper(width, title, module, quantity, into))


def compare(
    study: Path | str, by: str, *, baseline: str | None = None, margin: float | None = None, where: Where = ()
) -> pd.DataFrame:
    """Compare a study's runs that differ in the column `by`. Return the table that `normstudy compare` prints."""
    from normstudy.analysis.compare import compare_study

    return compare_study(study, by=by, baseline=baseline, margin=margin, where=where)


def status(study: Path | str) -> Status:
    """Return a study's progress. Printed, it is the output of `normstudy status`."""
    from normstudy.upkeep.status import look

    return look(Path(study))


def report(*studies: Path | str, where: Where = ()) -> Report:
    """Make the HTML page of one or more studies. A notebook shows the result, and its method `save` writes the page."""
    from normstudy.report.make import report as make

    return make(studies, where)


def words(keys: Mapping[str, object]) -> list[str]:
    """Return the command-line words that set these keys. A list of values becomes an axis."""
    return [word for name, value in keys.items() for word in _words(_whole(name), value)]


def _whole(name: str) -> str:
    """Return a key with its group: model.n_layers for n_layers. Return an unknown key unchanged: Hydra refuses it."""
    from normstudy.config import leaves

    found = [name] if name in leaves() else [key for key in leaves() if key.rpartition(".")[2] == name]
    if len(found) > 1:
        raise ConfigError(f"{name} may be {' or '.join(found)}: write one of them")
    return found[0] if found else name


def _words(key: str, value: object) -> Iterator[str]:
    if isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _words(f"{key}.{name}", inner)
    elif isinstance(value, str | bytes | Path) or not hasattr(value, "__iter__") or not getattr(value, "shape", True):
        yield f"{key}={_text(value)}"
    else:
        yield f"{key}={','.join(map(_text, value))}"


def _text(value: object) -> str:
    """Write a value for the command line so that Hydra reads it unchanged. Quote text that could look like a number."""
    if hasattr(value, "item"):  # a scalar of NumPy, pandas or torch
        value = value.item()
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, int | float):
        return repr(value)
    text = str(value)
    if PLAIN.fullmatch(text):
        return text
    from hydra.core.override_parser.types import Quote, QuotedString

    escaped = re.sub(r"(\\*)\$\{", r"\1\1\\${", text)  # OmegaConf halves the backslashes before ${
    return QuotedString(escaped, Quote.double).with_quotes()


def _train(
    command: str,
    named: Mapping[str, str | None],
    keys: Mapping[str, object],
    overrides: Sequence[str] = (),
    flags: Sequence[str] = (),
) -> Study:
    """Run a command with these words, in order: `named` keys that are not None, `keys`, `overrides`, `flags`."""
    from normstudy.app import main

    if isinstance(overrides, str):
        raise ConfigError(f"overrides {overrides!r} is one text: write a list of words, as in ['seed=0,1']")
    given = {name: value for name, value in named.items() if value is not None}
    typed = [*words({**given, **keys}), *overrides, *flags]
    with HYDRA:
        _, folders = main.train(command, typed)
    if not folders:
        raise ConfigError(
            f"{' '.join(typed)} trains no run, so this call has no study to return: type the command in a terminal"
        )
    return Study(folders[0])
