"""The gradient path itself: dLoss/dx_l along the residual stream."""

from __future__ import annotations

from matplotlib.figure import Figure

from normstudy.figures.gradient_profile import snapshot_figure
from normstudy.figures.study import Lacks, Study


def residual_path(study: Study) -> Figure:
    """Norm of dLoss/dx_l against l, from the embedding's output (0) to the last block's (n_layers)."""
    rows = study.residual
    runs = study.at_headline()
    if not rows["run_id"].isin(runs["run_id"]).any():
        raise Lacks("no run of it recorded the residual stream")
    return snapshot_figure(
        study,
        rows,
        "Gradient along the residual stream",
        "l (0: embedding)",
        "norm of dLoss/dx_l",
        int(runs["n_layers"].max()),
    )
