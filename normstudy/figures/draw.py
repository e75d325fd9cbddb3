"""List all figures, and draw them from a study's tables. Equal tables give files with equal bytes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

from normstudy.analysis.select import Where, conditions
from normstudy.config import one_of
from normstudy.errors import ConfigError
from normstudy.figures import style
from normstudy.figures.critical import critical_curve, critical_depth, phase_map
from normstudy.figures.final_grid import final_grid
from normstudy.figures.gradient_profile import gradient_profile, residual_path
from normstudy.figures.gradient_ratio import gradient_ratio
from normstudy.figures.headline import headline
from normstudy.figures.heatmap import heatmap
from normstudy.figures.loss_curves import loss_curves, training_loss
from normstudy.figures.ranking import ranking
from normstudy.figures.study import MAX_PANELS, Lacks, Study, load
from normstudy.figures.update_rms import update_rms

OF_SEARCH = {"critical_depth": critical_depth, "critical_curve": critical_curve, "phase_map": phase_map}
FIGURES: dict[str, Callable[[Study], Figure]] = {
    "headline": headline, "loss_curves": loss_curves, "training_loss": training_loss, "gradient_ratio": gradient_ratio,
    "gradient_profile": gradient_profile, "residual_path": residual_path, "update_rms": update_rms, "heatmap": heatmap,
    "final_grid": final_grid, "ranking": ranking, **OF_SEARCH,
}  # fmt: skip


@dataclass
class PlotResult:
    """Hold what `plot_study` did. found: figure -> the file written, or the reason why the figure cannot be drawn."""

    found: dict[str, Path | str] = field(default_factory=dict)

    @property
    def paths(self) -> list[Path]:
        """Return the files that were written."""
        return [what for what in self.found.values() if isinstance(what, Path)]

    @property
    def skipped(self) -> list[str]:
        """Return a line for each reason why figures cannot be drawn, with their names."""
        reasons = dict.fromkeys(what for what in self.found.values() if isinstance(what, str))
        names = {why: [repr(name) for name, what in self.found.items() if what == why] for why in reasons}
        return [f"figure{'s' * (len(some) > 1)} {', '.join(some)} not drawn: {why}" for why, some in names.items()]


def plot_study(
    study_dir: Path,
    *,
    where: Where | None = None,
    fmt: str = "png",
    out: Path | None = None,
    only: list[str] | None = None,
) -> PlotResult:
    """Draw a study's figures into `out`, by default the study's folder `figures`.

    where: as on the command line (see `select`). Only runs with these values are drawn, by default into a subfolder
    of `figures`, so that they do not replace the figures of all runs. only: names of figures; by default, all. Raises
    ConfigError for a folder that is not a study or has no finished run, for an unknown figure or format, and if a file
    cannot be written.
    """
    one_of("format", fmt, style.FORMATS)
    for name in only or []:
        one_of("figure", name, tuple(FIGURES))
    study = load(Path(study_dir), where)
    folder = Path(study_dir, "figures", _folder_name(where or {})) if out is None else Path(out)
    result = PlotResult()
    with matplotlib.rc_context(style.rc()):  # type: ignore[arg-type]  # the stubs list every key as a Literal
        for name in only or [name for name in FIGURES if study.search or name not in OF_SEARCH]:
            try:
                column = "" if study.search is None or name in OF_SEARCH else study.search.of
                if column and (n := study.finished[column].nunique()) > MAX_PANELS:  # the others average over seeds
                    raise Lacks(f"a search chose {n} values of {column}: choose at most {MAX_PANELS} by --where")
                fig = FIGURES[name](study)
            except Lacks as lack:
                result.found[name] = str(lack)
                continue
            path = folder / f"{name}.{fmt}"
            try:
                folder.mkdir(parents=True, exist_ok=True)
                style.save(fig, path, fmt)
            except OSError as error:
                raise ConfigError(f"{path} cannot be written: {error.strerror}. Choose another --out") from error
            result.found[name] = path
    return result


def _folder_name(where: Where) -> str:
    """Return the subfolder for figures of some runs, such as `peak_lr=3e-3,placement=post`, or "" for all runs."""
    signs = {"!=": "=not ", "<": "=below ", "<=": "=to ", ">": "=above ", ">=": "=from "}
    name = ",".join(f"{c}{signs.get(sign, sign)}{','.join(texts)}" for c, sign, texts in sorted(conditions(where)))
    return "".join(c if c.isalnum() or c in "_.=+-," else "_" for c in name)
