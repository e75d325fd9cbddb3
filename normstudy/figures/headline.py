"""The study in one figure: the loss says what happened, the gradient ratio why."""

from __future__ import annotations

from matplotlib.figure import Figure

from normstudy.figures import layout, style
from normstudy.figures.gradient_profile import needs_layers
from normstudy.figures.gradient_ratio import draw_ratio, ratio_table
from normstudy.figures.loss_curves import draw_losses, ends_table, limits, validation_table
from normstudy.figures.study import MODULE, Study, arms, at_most_one, held


def headline(study: Study) -> Figure:
    """Validation loss beside the first/last-layer gradient ratio, at one setting."""
    needs_layers(study)
    runs = at_most_one(study, study.at_headline())
    sizes = layout.sizes(arms(runs, study))
    references = layout.entropies(runs)
    table = validation_table(study, runs)
    low, high = limits([table], references)
    last = layout.last_step(runs)

    fig = Figure(figsize=(style.TWO_COLUMNS, 3.0), layout="constrained")
    left, right = fig.subplots(1, 2)
    draw_losses(left, table, ends_table(study, runs), sizes, study.look, references, labelled=True, top=high)
    left.set_ylim(low, high)
    layout.step_axis(left, last + 1, log=False)
    left.set(xlabel="step", ylabel="validation loss, nats per token")
    left.set_title("What happens: the loss", loc="left")

    draw_ratio(right, ratio_table(study.modules, runs), runs, sizes, study.look)
    layout.step_axis(right, last, log=True)
    right.set(xlabel="step, log of step + 1", ylabel="ratio of grad_norm")
    right.set_title(f"Why: gradient norm of {MODULE}, first / last layer", loc="left")
    notes = held(study, runs)
    if study.look.dash == "warmup_steps" and (runs["warmup_steps"] > 0).any():
        notes.append("vertical line: end of the warmup")
    what = f"Training by {study.look.by}; thin: seeds, bold: their mean (right: geometric)"
    layout.title(fig, study, what, runs, notes)
    extra = [layout.outcome_handle("diverged")] if (runs["outcome"] == "diverged").any() else []
    layout.legend(fig, study.look, runs, extra)
    return fig
