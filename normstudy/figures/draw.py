"""List all figures, and draw them from a study's tables. Equal tables give files with equal bytes."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from matplotlib.figure import Figure, FigureBase

from normstudy.analysis.grid import count_text
from normstudy.analysis.select import Where, conditions
from normstudy.config import one_of
from normstudy.errors import ConfigError
from normstudy.figures import style
from normstudy.figures.critical import critical_curve, critical_depth
from normstudy.figures.curves import gradient_ratio, losses, update_rms
from normstudy.figures.final_grid import final_grid
from normstudy.figures.headline import headline
from normstudy.figures.layers import gradient_profile, heatmap, residual_path
from normstudy.figures.paper import USUAL, Paper
from normstudy.figures.ranking import ranking
from normstudy.figures.study import MAX_PANELS, Lacks, Study, load
from normstudy.study import paths

OF_SEARCH: dict[str, Callable[[Study], FigureBase]] = {
    "critical_depth": critical_depth, "critical_curve": critical_curve, "phase_map": partial(critical_depth, maps=True),
}  # fmt: skip
FIGURES: dict[str, Callable[[Study], FigureBase]] = {
    "headline": headline, "loss_curves": partial(losses, train=False), "training_loss": partial(losses, train=True),
    "gradient_ratio": gradient_ratio, "gradient_profile": gradient_profile, "residual_path": residual_path,
    "update_rms": update_rms, "heatmap": heatmap, "final_grid": final_grid, "ranking": ranking, **OF_SEARCH,
}  # fmt: skip


@dataclass
class PlotResult:
    """The result of `plot_study`: three dictionaries, whose keys are names of figures.

    found: the written file, or the reason why no file was written. captions: the figure's title. omitted: the titles
    of panels that the figure leaves out.
    """

    found: dict[str, Path | str] = field(default_factory=dict)
    captions: dict[str, str] = field(default_factory=dict)
    omitted: dict[str, list[str]] = field(default_factory=dict)

    @property
    def paths(self) -> list[Path]:
        """Return the files that were written."""
        return [what for what in self.found.values() if isinstance(what, Path)]

    @property
    def skipped(self) -> list[str]:
        """Return lines that say why figures cannot be drawn, and which panels are left out."""
        said = {name: f"not drawn: {what}" for name, what in self.found.items() if isinstance(what, str)}
        for name, titles in self.omitted.items():
            said[name] = f"drawn without {count_text(len(titles), 'panel')}: {'; '.join(titles)}; choose by --where"
        figures = {text: [repr(name) for name, other in said.items() if other == text] for text in said.values()}
        return [f"figure{'s' * (len(names) > 1)} {', '.join(names)} {text}" for text, names in figures.items()]

    def add(self, other: "PlotResult") -> None:
        """Add the figures that another process has drawn."""
        self.found |= other.found
        self.captions |= other.captions
        self.omitted |= other.omitted


def plot_study(
    study_dir: Path,
    *,
    where: Where = (),
    fmt: str = "png",
    out: Path | None = None,
    only: list[str] | None = None,
    paper: Paper = USUAL,
) -> PlotResult:
    """Draw a study's figures, or those named in `only`, into `out`, by default the study's folder `figures`.

    where: which runs to draw (see `select`). If `where` or `paper` is given, the default folder is a subfolder of
    `figures`, so that the study's other figures stay. Raises ConfigError if the folder is not a study, if the study
    has no finished run, if a figure or the format is unknown, or if a file cannot be written.
    """
    one_of("format", fmt, style.FORMATS)
    for name in only or []:
        one_of("figure", name, tuple(FIGURES))
    study = load(Path(study_dir), where, paper)
    folder = Path(out or paths.check_own_folders(Path(study_dir)) / "figures" / _folder_name(where, paper))
    result = PlotResult()
    with style.rc():
        for name in only or [name for name in FIGURES if study.search or name not in OF_SEARCH]:
            study.omitted.clear()
            try:
                fig = draw(study, name)
            except Lacks as lack:
                result.found[name] = str(lack)
                continue
            path = folder / f"{name}.{fmt}"
            style.save(fig, path, fmt)
            result.found[name], result.captions[name] = path, str(fig.get_label())
            if study.omitted:
                result.omitted[name] = list(dict.fromkeys(study.omitted))
    return result


def drawn(study_dir: Path | str, name: str, where: Where = (), paper: Paper = USUAL) -> Figure:
    """Draw one figure for `normstudy.plot`. Raises ConfigError if an argument is wrong or if data are missing."""
    one_of("figure", name, tuple(FIGURES))
    with style.rc():
        try:
            return draw(load(Path(study_dir), where, paper), name)
        except Lacks as lack:
            raise ConfigError(f"figure {name!r} cannot be drawn from {study_dir}: {lack}") from lack


def draw(study: Study, name: str) -> Figure:
    """Draw a figure of a study. Raises Lacks if the study does not contain the figure's data."""
    column = "" if study.search is None or name in OF_SEARCH else study.search.of
    if column and (n := study.finished[column].nunique()) > MAX_PANELS:  # only figures in OF_SEARCH can show more
        raise Lacks(f"the runs have {n} values of {column}: select at most {MAX_PANELS} values with --where")
    fig = FIGURES[name](study)
    return fig if isinstance(fig, Figure) else fig.figure  # type: ignore[return-value]  # a user's SubFigure


def _folder_name(where: Where, paper: Paper) -> str:
    """Name a subfolder after `where` and the changed options of `paper`: `peak_lr=3e-3`, or "" for the defaults."""
    signs = {"!=": "=not ", "<": "=below ", "<=": "=to ", ">": "=above ", ">=": "=from "}
    parts = [f"{c}{signs.get(sign, sign)}{','.join(texts)}" for c, sign, texts in sorted(conditions(where))]
    for name in ("module", "quantity", "width", "title"):
        if (value := getattr(paper, name)) != getattr(USUAL, name):
            parts.append(f"{name}={value:g}in" if name == "width" else f"{name}={str(value).lower()}")
    return "".join(c if c.isalnum() or c in "_.=+-," else "_" for c in ",".join(parts))
