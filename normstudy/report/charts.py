"""Describe a page's charts in Altair, and compile the charts to Vega specifications. page.js adds the numbers."""

from importlib.metadata import version
from typing import Any, NamedTuple

import altair as alt
import vl_convert

VEGA_LITE = "6.4"  # Altair's version; vl-convert contains several versions
GREY = "#666666"  # copied from figures/style.py, which takes a second to import
TEXT = "currentColor"  # the page's text color, whose contrast is tested
STEP = alt.X("x:Q", title="step + 1", scale=alt.Scale(type="log", nice=False), axis=alt.Axis(format="~s", tickCount=5))
CONFIG = {
    "background": "transparent", "view": {"stroke": None}, "aria": False,
    "axis": {"labelColor": TEXT, "titleColor": TEXT, "gridOpacity": 0.25, "labelFontSize": 11, "titleFontSize": 12},
    "legend": {"labelColor": TEXT, "titleColor": TEXT, "labelFontSize": 11, "titleFontSize": 12},
}  # fmt: skip


class Compiled(NamedTuple):
    """What a page's charts need.

    specs: chart -> Vega specification with empty data sets, which page.js fills by name. library: the JavaScript of
    Vega and Vega-Embed, which sets window.vegaEmbed. versions: the versions of Altair, vl-convert and Vega, as text.
    """

    specs: dict[str, dict[str, Any]]
    library: str
    versions: str


def compiled() -> Compiled:
    """Compile all charts, which takes seconds."""
    specs = {}
    profile, residual = _lines("profile", "layer"), _lines("residual", "l")
    for name, chart in {"loss": _loss(), "map": _map(), "profile": profile, "residual": residual}.items():
        made = {**chart.properties(width="container", height=230).to_dict(validate=False), "config": CONFIG}
        specs[name] = _silent(vl_convert.vegalite_to_vega(made, vl_version=VEGA_LITE))
    library = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;", vl_version=VEGA_LITE)
    vega = vl_convert.get_vega_version()  # a page's bytes depend on these three versions
    versions = f"Altair {version('altair')}, vl-convert {version('vl-convert-python')}, Vega {vega}"
    return Compiled(specs, str(library), versions)


def _silent(part: dict[str, Any]) -> dict[str, Any]:
    """Hide a chart's marks, axes and legends from screen readers. The page's text describes the chart instead."""
    for kind in ("marks", "axes", "legends"):
        part[kind] = [_silent({**one, "aria": False}) for one in part.get(kind, [])]
    return {key: value for key, value in part.items() if value != []}


def _runs(name: str, x: alt.X, y: alt.Y) -> alt.Chart:
    """Return a chart of the data set `name`, in which each run has the color of the run's cell."""
    return alt.Chart(alt.NamedData(name)).encode(x=x, y=y, color=alt.Color("color:N", scale=None))


def _line(chart: alt.Chart) -> alt.Chart:
    width = alt.StrokeWidth("width:Q", scale=None)
    tooltip = ["run:N", "x:Q", "value:Q"]
    made: alt.Chart = chart.mark_line().encode(detail=["run:N", "cell:N"], strokeWidth=width, tooltip=tooltip)
    return made


def _loss() -> alt.LayerChart:
    y = alt.Y("value:Q", title="loss, nats per token", scale=alt.Scale(zero=False, nice=False, padding=5))
    known = alt.Chart(alt.NamedData("entropies")).encode(y=y)
    names = known.mark_text(align="left", dx=2, dy=-4, color=TEXT, fontSize=10).encode(text="name:N", x=alt.value(0))
    train, val = _line(_runs("train", STEP, y)), _runs("val", STEP, y).mark_point(size=14, filled=True)
    return alt.LayerChart(layer=[known.mark_rule(strokeDash=[2, 3], color=GREY), names, train, val])


def _map() -> alt.LayerChart:
    scale = alt.Scale(type="log", scheme="cividis", nice=False, zero=False)  # the colors of the figure heatmap
    color = alt.Color("value:Q", title=None, scale=scale, legend=alt.Legend(format=".2~g", gradientLength=200))
    layer = alt.Y("layer:O", title="layer", sort="descending")
    cells = alt.Chart(alt.NamedData("map")).mark_rect()
    cells = cells.encode(x=STEP, x2="x2:Q", y=layer, color=color, tooltip=["layer:O", "step:Q", "value:Q"])
    chosen = alt.Chart(alt.NamedData("chosen")).mark_rule(color="white", strokeWidth=2).encode(x="x:Q")
    return alt.LayerChart(layer=[cells, chosen])


def _lines(name: str, title: str) -> alt.LayerChart:
    """Return lines over the layers: a thin line for each run, and a bold line for the geometric mean of the runs."""
    scale = alt.Scale(type="log", zero=False, nice=False, padding=5)
    x = alt.X("x:Q", title=title, axis=alt.Axis(tickMinStep=1, format="d"), scale=alt.Scale(nice=False, zero=False))
    chart = _runs(name, x, alt.Y("value:Q", title=None, scale=scale, axis=alt.Axis(format=".2~g")))
    return alt.LayerChart(layer=[_line(chart), chart.mark_point(size=12, filled=True)])
