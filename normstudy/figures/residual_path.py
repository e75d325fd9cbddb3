"""Draw the figure residual_path: the norm of dLoss/dx_l, the gradient along the residual stream."""

from __future__ import annotations

from matplotlib.figure import Figure

from normstudy.figures.gradient_profile import snapshot_figure
from normstudy.figures.study import Lacks, Study


def residual_path(study: Study) -> Figure:
    """Draw the norm of dLoss/dx_l against l, from the embedding's output (0) to the last block's output (n_layers)."""
    rows, runs = study.residual, study.at_headline()
    if not rows["run_id"].isin(runs["run_id"]).any():
        raise Lacks("no run recorded the residual stream")
    what, top = "Gradient along the residual stream", int(runs["n_layers"].max())
    return snapshot_figure(study, rows, what, "l (0: embedding)", "norm of dLoss/dx_l", top)
