"""Define the sizes, colors, markers and matplotlib settings of all figures."""

import contextlib
import io
import warnings
from collections.abc import Iterator
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from normstudy.errors import ONE_THREAD, ConfigError

FORMATS = ("png", "svg", "pdf")

# A line style: a name such as "-", or an offset and alternating lengths of dashes and gaps, in units of the line width.
LineStyle = tuple[float, tuple[float, ...]] | str

# A placement has the same color in every figure. Each color's contrast against white is at least 2.3. The colors were
# chosen one by one. Each new color was the farthest in OKLab from all colors before it, under normal vision and under
# simulated deuteranopia, protanopia and tritanopia. Fourteen colors cannot all be far apart. Colors are far apart for
# placements that people often compare: (post, deepnorm, admin, b2t, residual) with each other, (pre, peri, sub,
# reordered, lns, hybrid) with each other, and (rezero, none) with (pre, post).
PLACEMENT_COLORS = {
    "pre": "#0072B2", "post": "#D55E00", "peri": "#333300", "reordered": "#5500DD", "sub": "#883366",
    "deepnorm": "#DD9922", "admin": "#AA55FF", "lns": "#66BB88", "mix": "#996666", "b2t": "#5599AA",
    "residual": "#551155", "hybrid": "#BB99FF", "rezero": "#111199", "none": "#665500",
}  # fmt: skip
OWN_COLORS = ("#000000", "#BB2299", "#AA8866", "#771133", "#9988DD", "#BB1133")  # for user-defined names
OTHER_COLORS = (
    "#333300", "#BB99FF", "#66BB88", "#111199", "#883366", "#AA55FF",
    "#5500DD", "#551155", "#665500", "#DD9922", "#996666", "#5599AA",
)  # fmt: skip

DASHES: tuple[LineStyle, ...] = ("-", (0, (3.5, 1.5)), (0, (1, 1.2)), (0, (5, 1.2, 1, 1.2)), (0, (8, 1.5)))

OUTCOME_MARKERS = {
    "learned": "o", "partial": "s", "unfinished": "P", "spiked": "^",
    "stuck": "v", "collapsed": "D", "diverged": "X", "unjudged": "*",
}  # fmt: skip

OUTCOME_COLORS = {  # warm colors for runs that failed
    "learned": "#0072B2", "partial": "#E0A800", "unfinished": "#56B4E9", "spiked": "#009E73",
    "stuck": "#D55E00", "collapsed": "#CC79A7", "diverged": "#7A0019", "unjudged": "#999999",
}  # fmt: skip

SEQUENTIAL = "cividis"  # colormap of heat maps, for color-blind readers; higher values are lighter
ORDERED, ARMS = "viridis", "plasma"  # colormaps of ordered values: ORDERED for depths and steps, ARMS for warmups
GREY = "#666666"
THIN, BOLD = 0.5, 1.6  # line widths in points: THIN for one seed, BOLD for the mean over seeds


def shades(n: int, colormap: str) -> list[str]:
    """Return `n` colors of a colormap, from dark to pale. The palest part is left out: it is hard to see on white."""
    return [to_hex(matplotlib.colormaps[colormap](x)) for x in np.linspace(0, 0.7, n)]


# `rc` does not change settings with these prefixes: they concern the machine, and changing some has side effects.
_HOST = ("backend", "interactive", "toolbar", "webagg", "tk.", "timezone", "savefig.directory", "docstring", "macosx")


@contextlib.contextmanager
def rc() -> Iterator[None]:
    """A context with matplotlib's defaults and the settings of our figures. A user's rc file has no effect."""
    changed = {k: v for k, v in matplotlib.rcParamsDefault.items() if not k.startswith(_HOST)} | {
        "savefig.dpi": 220, "lines.markersize": 4,
        "font.size": 7.5, "axes.titlesize": 7.5, "figure.titlesize": 8, "xtick.labelsize": 6.5, "ytick.labelsize": 6.5,
        "legend.fontsize": 7, "legend.frameon": False, "legend.handlelength": 2.6, "legend.columnspacing": 1.4,
        "axes.spines.top": False, "axes.spines.right": False, "axes.linewidth": 0.6,
        "xtick.major.width": 0.6, "ytick.major.width": 0.6, "xtick.minor.width": 0.4, "ytick.minor.width": 0.4,
        "pdf.fonttype": 42,  # TrueType, because journals reject Type 3 fonts
        "svg.fonttype": "none",  # writes text, not outlines, so that it can be searched and edited
        "svg.hashsalt": "normstudy",  # makes the ids of elements in an SVG reproducible
    }  # fmt: skip
    with ONE_THREAD, matplotlib.rc_context(changed):
        yield


def save(fig: Figure, path: Path, fmt: str) -> None:
    """Write a figure without dates, so that the same version of matplotlib always writes the same bytes.

    Creates the file's folder. Raises ConfigError if the file cannot be written.
    """
    metadata: dict[str, dict[str, str | None]] = {
        "png": {"Software": f"Matplotlib {matplotlib.__version__}"},
        "svg": {"Date": None, "Creator": None},
        "pdf": {"CreationDate": None, "ModDate": None, "Creator": None, "Producer": None},
    }
    sink = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"Glyph \d+ ")  # a box is drawn for letters that the font lacks
        if fmt == "png" and (engine := fig.get_layout_engine()) is not None:
            # With a layout engine, savefig would draw everything twice, the first time only to compute the layout.
            fig.set_dpi(matplotlib.rcParams["savefig.dpi"])
            engine.execute(fig)
            fig.set_layout_engine("none")
        fig.savefig(sink, format=fmt, metadata=metadata[fmt])
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(sink.getvalue())
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}. Choose another --out") from error
