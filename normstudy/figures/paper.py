"""Hold the user's options for figures, such as the width, and make empty figures to draw into."""

import io
import re
from dataclasses import dataclass

from matplotlib.figure import Figure, FigureBase, SubFigure

from normstudy.config import finite, one_of
from normstudy.errors import ConfigError
from normstudy.study.schema import MODULES

TWO_COLUMNS = 7.0  # the width in inches of a paper with two columns, and of figures by default
MODULE = "mlp_out"  # the FFN output matrix, whose gradient the theory describes (Xiong et al. 2002.04745, Theorem 1)
QUANTITIES = {  # the quantities that figures of modules can show -> name of the quantity in a title
    "grad_norm": "gradient norm", "update_ratio": "update / parameter norm", "param_norm": "parameter norm",
    "update_norm": "update norm",
}  # fmt: skip
UNITS = {"in": 1.0, "cm": 1 / 2.54, "mm": 1 / 25.4, "pt": 1 / 72}
WIDTHS = 2.0, 20.0  # smallest and largest width, in inches


@dataclass(frozen=True)
class Paper:
    """The user's options for figures.

    width: in inches. Fonts have the same size at every width. title: whether to draw the title. module, quantity: show
    this quantity of this module. into: the user's own figure or subfigure to draw into. Its size is not changed.
    """

    width: float = TWO_COLUMNS
    title: bool = True
    module: str = MODULE
    quantity: str = "grad_norm"
    into: Figure | SubFigure | None = None

    def __post_init__(self) -> None:
        one_of("module", self.module, MODULES)
        one_of("quantity", self.quantity, tuple(QUANTITIES))
        finite("width", self.width, WIDTHS[0], strict=False)
        if self.width > WIDTHS[1]:
            raise ConfigError(f"width {self.width:g} inches exceeds {WIDTHS[1]:g} inches: choose a smaller width")

    @property
    def what(self) -> str:
        """Return words for a title, such as `gradient norm of mlp_out`."""
        return f"{QUANTITIES[self.quantity]} of {self.module}"

    def new(self, height: float, share: float = 1.0) -> FigureBase:
        """Return an empty figure. height: in inches. share: fraction of the width; ignored if width < TWO_COLUMNS."""
        if self.into is not None:
            if isinstance(self.into, Figure) and self.into.get_layout_engine() is None:
                self.into.set_layout_engine("constrained")
            return self.into
        return Shown(figsize=(self.width * (share if self.width >= TWO_COLUMNS else 1.0), height), layout="constrained")

    def grow(self, fig: FigureBase, inches: float) -> None:
        """Make a figure taller, but never the user's own figure (`self.into`)."""
        if self.into is None and isinstance(fig, Figure):
            fig.set_figheight(fig.get_figheight() + inches)

    def fit(self, columns: int) -> int:
        """Return how many panels fit beside each other, given that `columns` panels fit into the width TWO_COLUMNS."""
        width = self.width if self.into is None else width_of(self.into)
        return max(1, min(columns, round(columns * width / TWO_COLUMNS)))


USUAL = Paper()


class Shown(Figure):
    """A figure that a notebook shows without pyplot."""

    def _repr_png_(self) -> bytes:
        sink = io.BytesIO()
        self.savefig(sink, format="png", dpi=150)
        return sink.getvalue()


def width_of(fig: FigureBase) -> float:
    """Return a figure's width in inches."""
    return float(fig.bbox.width / fig.dpi)  # type: ignore[attr-defined]  # Figure and SubFigure have dpi


def inches(text: str) -> float:
    """Convert text such as `3.3in`, `8.4cm`, `84mm` or `240pt` to inches. Raises ConfigError for all other text."""
    found = re.fullmatch(r"\s*(\d+\.?\d*|\.\d+)\s*(in|cm|mm|pt)\s*", text)
    if found is None:
        raise ConfigError(f"--width {text!r} is not a width: write a number and a unit (in, cm, mm or pt), as in 3.3in")
    return float(found[1]) * UNITS[found[2]]
