"""Draw how well a run's first steps predict that the run ends stuck, from a table of analysis/early_warning.py."""

from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from normstudy.analysis.early_warning import ALL, QUANTITIES, STEPS
from normstudy.figures import axes as on_axes
from normstudy.figures import layout, style
from normstudy.figures.paper import Paper


def draw(table: pd.DataFrame, path: Path) -> None:
    """Write a PNG with a panel for each kind of studies: the AUC of each quantity against step, with 95 % intervals."""
    rows = table[(table["placement"] == ALL) & table["step"].notna() & table["auc"].notna()]
    kinds = list(table["kind"].unique())
    with style.rc():
        fig, axes = layout.subplots(Paper(), len(kinds))
        for ax, kind in zip(axes, kinds, strict=True):
            for i, (quantity, color) in enumerate(zip(QUANTITIES, style.OWN_COLORS, strict=False)):
                part = rows[(rows["kind"] == kind) & (rows["quantity"] == quantity)]
                at = (part["step"].astype(float) + 1) * 1.05**i - 1  # shifted, because the intervals overlap
                around = [part["auc"] - part["low"], part["high"] - part["auc"]]
                ax.errorbar(at, part["auc"], yerr=around, fmt="o-", color=color, lw=1, capsize=2, label=quantity)
            ax.axhline(0.5, color=style.GREY, lw=0.6, ls=(0, (1, 2)), zorder=1)
            on_axes.step_axis(ax, STEPS[-1], log=True)
            ax.set(xticks=STEPS, xlim=(-0.2, 1.2 * STEPS[-1]), ylim=(0, 1.03), title=kind)
        layout.label_axes(fig, axes, on_axes.LOG_STEP, "AUC", once=False)
        lines = "How well a quantity at a step tells which runs end stuck", "bars: 95 % intervals, dotted: chance"
        fig.suptitle("\n".join(lines), x=0.01, ha="left")
        fig.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
        assert isinstance(fig, Figure)
        style.save(fig, path, "png")
