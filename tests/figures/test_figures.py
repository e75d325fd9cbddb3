"""Every figure, drawn from hand-made tables: the axes show the numbers of the tables."""

from __future__ import annotations

import math
import re
import time
from dataclasses import replace
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import pytest
from drawing import EVERY_STUDY, drawn, having, panel, points, runs_of, same, titles, words
from handmade import H1, H2, LN_VOCAB, STUDY, handmade_config, handmade_study, write_handmade_run
from matplotlib.collections import QuadMesh
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from PIL import Image

from normstudy.analysis.outcomes import OUTCOMES
from normstudy.config import PLACEMENT_NAMES, ConfigError
from normstudy.figures import layout, series, style
from normstudy.figures import look as looks
from normstudy.figures.curves import draw_losses
from normstudy.figures.draw import FIGURES, plot_study
from normstudy.figures.final_grid import limits, x_axis
from normstudy.figures.paper import TWO_COLUMNS, USUAL
from normstudy.figures.study import Lacks, Study, load
from normstudy.study import tables
from normstudy.upkeep.compact import compact_study

N_STEPS = 60
NO_RANKING = "figure 'ranking' not drawn: it needs a text field, such as placement, with at least 3 values"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """pre, post, 2 and 4 layers, 1e-3 and 3e-3, warmup 0 and 20, 3 seeds; one cell has a diverged and a stuck run."""
    folder = handmade_study(tmp_path_factory.mktemp("grid"))
    compact_study(folder)  # it is read often
    return folder


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """pre and post, two seeds, 130 steps: for tests in which the size of a figure is not the subject."""
    root = tmp_path_factory.mktemp("small")
    return handmade_study(root, n_layers=(2,), peak_lrs=(3e-3,), warmups=(0,), seeds=(2, 3), n_steps=130)


@pytest.fixture(scope="module")
def study(folder: Path) -> Study:
    return load(folder)


@pytest.fixture(scope="module")
def figures(study: Study) -> dict[str, Figure]:
    """Every figure of the study, made once."""
    with style.rc():
        return {name: make(study) for name, make in EVERY_STUDY.items() if name != "ranking"}


@pytest.fixture(scope="module")
def norms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study that varies only the norm."""
    root = tmp_path_factory.mktemp("norms")
    for norm in ("layernorm", "rmsnorm"):
        for seed in (0, 1):
            write_handmade_run(root / STUDY, handmade_config(root, n_layers=3, norm=norm, seed=seed))
    return root / STUDY


# The cell where the hand-made study has a diverged and a stuck run.
BAD = {"placement": "post", "n_layers": 4, "peak_lr": 3e-3, "warmup_steps": 0}
BAD_PANEL = "4 layers, lr 3e-3"


def bad_run(folder: Path, *, diverged: bool) -> str:
    cell = runs_of(folder, **BAD)
    return str(cell.loc[cell["nonfinite_step"].notna() == diverged, "run_id"].iloc[0])


# ---- fields, colors, titles -----------------------------------------------------------------------------


def test_every_figure_is_written_and_only_a_ranking_of_two_is_skipped(small: Path, tmp_path: Path) -> None:
    result = plot_study(small, out=tmp_path)
    assert [p.name for p in result.paths] == [f"{name}.png" for name in EVERY_STUDY if name != "ranking"]
    assert result.skipped == [NO_RANKING]
    for path in result.paths:
        with Image.open(path) as image:
            assert image.info["Software"] == f"Matplotlib {matplotlib.__version__}"
            assert TWO_COLUMNS * 110 < image.width <= TWO_COLUMNS * 220


def test_color_is_placement_and_line_style_is_warmup(study: Study) -> None:
    assert (study.look.hue, study.look.dash) == ("placement", "warmup_steps")
    assert study.look.colors == {name: style.PLACEMENT_COLORS[name] for name in ("pre", "post")}
    assert list(study.look.dashes) == ["0", "20"]
    assert study.panel_fields == ("n_layers", "peak_lr")


def test_a_study_of_norms_is_colored_by_norm(norms: Path) -> None:
    study = load(norms)
    assert (study.look.hue, study.look.dash) == ("norm", None)
    assert len({*study.look.colors.values(), style.PLACEMENT_COLORS["pre"], style.PLACEMENT_COLORS["post"]}) == 4
    figures = {name: make(study) for name, make in EVERY_STUDY.items() if name != "ranking"}
    assert set(drawn(panel(figures["gradient_profile"], "step 5"), "mean:")) == {"layernorm:", "rmsnorm:"}


def test_a_placement_keeps_its_color_alone(folder: Path) -> None:
    only = load(folder, {"placement": "post"})
    assert only.look.colors == {"post": style.PLACEMENT_COLORS["post"]}


def test_runs_on_different_texts_are_never_in_one_panel(folder: Path) -> None:
    runs = tables.read(folder, "runs")
    assert "data_sha256" not in looks.swept(runs)
    runs.loc[runs["seed"] == 0, "data_sha256"] = "7" * 64
    assert "data_sha256" in looks.swept(runs)
    runs["data"] = np.where(runs["seed"] == 0, "stdlib", "pydoc")  # now the names distinguish the texts
    assert "data" in looks.swept(runs)
    assert "data_sha256" not in looks.swept(runs)


def test_figures_of_some_runs_never_replace_those_of_all(tmp_path: Path) -> None:
    folder = handmade_study(tmp_path, n_layers=(2,), warmups=(0,), seeds=(2,))
    (whole,) = plot_study(folder, only=["loss_curves"]).paths
    before = whole.read_bytes()
    (some,) = plot_study(folder, only=["loss_curves"], where={"placement": "pre", "peak_lr": "3e-3"}).paths
    assert some == folder / "figures" / "peak_lr=3e-3,placement=pre" / "loss_curves.png"
    assert whole.read_bytes() == before


def test_where_narrows_every_figure(folder: Path, tmp_path: Path) -> None:
    study = load(folder, {"n_layers": "2", "peak_lr": "1e-3"})
    assert set(study.runs["run_id"]) == set(runs_of(folder, n_layers=2, peak_lr=1e-3)["run_id"])
    fig = FIGURES["loss_curves"](study)
    assert titles(fig) == [""]
    assert len(drawn(fig.axes[0], "seed:")) == 12
    with pytest.raises(ConfigError, match="selects no run"):
        plot_study(folder, where={"n_layers": "3"}, out=tmp_path)


def test_titles_say_what_is_shown_and_how_many_seeds(figures: dict[str, Figure]) -> None:
    for name, fig in figures.items():
        text = words(fig)
        assert f"study {STUDY}" in text, name
        assert "2 to 3 seeds" in text, name
        assert "not shown: 1 unfinished or failed" in text, name
        assert ("1 of 47 runs diverged" in text) or ("1 of 11 runs diverged" in text), name


def test_of_many_values_both_ends_and_the_headline_are_shown() -> None:
    rates = [1e-4, 2e-4, 3e-4, 5e-4, 1e-3, 2e-3, 3e-3, 1e-2]
    few = looks.spread(rates, 4, "peak_lr")
    assert (few[0], few[-1], len(few)) == (1e-4, 1e-2, 4)
    assert 3e-3 in few
    assert looks.chosen([1e-4, 2.5e-3, 1e-2], "peak_lr") == 2.5e-3
    assert looks.chosen([2, 6, 12], "n_layers") == 12


def test_at_most_six_panels_and_the_title_says_so(tmp_path: Path) -> None:
    folder = handmade_study(
        tmp_path, n_layers=(1, 2, 3), placements=("pre",), peak_lrs=(1e-3, 3e-3, 1e-2), warmups=(0,), seeds=(0,)
    )
    fig = FIGURES["loss_curves"](load(folder))
    assert len(titles(fig)) <= 6
    assert f"{len(titles(fig))} of 9 panels shown" in words(fig)


# ---- loss curves --------------------------------------------------------------------------------------


def test_loss_curves_draw_every_evaluation_of_every_seed(folder: Path, figures: dict[str, Figure]) -> None:
    fig = figures["loss_curves"]
    assert titles(fig) == [
        "2 layers, lr 1e-3", "2 layers, lr 3e-3", "4 layers, lr 1e-3", BAD_PANEL,
    ]  # fmt: skip
    steps = tables.read(folder, "steps")
    for ax in fig.axes:
        n_layers, rate = re.fullmatch(r"(\d+) layers, lr (\S+)", ax.get_title(loc="left")).groups()  # type: ignore[union-attr]
        runs = runs_of(folder, n_layers=int(n_layers), peak_lr=float(rate))
        lines = drawn(ax, "seed:")
        assert set(lines) == set(runs["run_id"])
        for row in runs.itertuples():
            mine = steps[(steps["run_id"] == row.run_id) & steps["val_loss"].notna()]
            expected = [(float(s), float(v)) for s, v in zip(mine["step"], mine["val_loss"], strict=True)]
            if not math.isnan(row.final_val_loss):
                expected.append((float(row.n_steps), row.final_val_loss))  # after the last update
            same(lines[row.run_id], *zip(*expected, strict=True))
            assert to_hex(lines[row.run_id].get_color()) == style.PLACEMENT_COLORS[row.placement].lower()
            solid = lines[row.run_id].get_linestyle() == "-"
            assert solid == (row.warmup_steps == 0)


def test_the_mean_is_over_all_seeds_and_ends_with_the_first_of_them(folder: Path, figures: dict[str, Figure]) -> None:
    ax = panel(figures["loss_curves"], BAD_PANEL)
    means = drawn(ax, "mean:")
    assert set(means) == {"pre:0", "pre:20", "post:0", "post:20"}
    whole = runs_of(folder, **(BAD | {"placement": "pre"}))
    assert points(means["pre:0"])[-1] == pytest.approx((N_STEPS, whole["final_val_loss"].mean()))
    # the diverged seed was last evaluated at step 20: a mean of the other seed alone would hide it
    assert [x for x, _ in points(means["post:0"])] == [0, 20]
    assert points(drawn(ax, f"seed:{bad_run(folder, diverged=False)}")[""])[-1][0] == N_STEPS


def test_a_diverged_run_is_marked_at_its_last_finite_loss(folder: Path, figures: dict[str, Figure]) -> None:
    run = bad_run(folder, diverged=True)
    mine = tables.read(folder, "steps", run_ids=[run])
    last = mine[np.isfinite(mine["train_loss"])].iloc[-1]
    assert last["step"] == N_STEPS // 2 - 2  # the next row holds the infinite loss
    for name in ("loss_curves", "training_loss"):
        fig = figures[name]
        marks = {ax.get_title(loc="left"): drawn(ax, "diverged:") for ax in fig.axes}
        assert {t for t, found in marks.items() if found} == {BAD_PANEL}
        mark = marks[BAD_PANEL][run]
        same(mark, [last["step"]], [last["train_loss"]])
        assert mark.get_marker() == style.OUTCOME_MARKERS["diverged"]
        legend = [text.get_text() for text in fig.legends[0].get_texts()]
        assert "diverged" in legend


def test_an_exploding_run_is_marked_at_the_upper_edge(study: Study) -> None:
    ax = Figure().subplots()
    run = study.runs[:1].assign(hue="post", dash="0", run_id="a", outcome="diverged")
    steps = pd.DataFrame({"run_id": ["a"], "step": [9], "train_loss": [1e30], "val_loss": [np.nan]})
    table = pd.DataFrame({"hue": "post", "dash": "0", "run_id": "a", "step": [0], "value": [5.7]})
    draw_losses(ax, replace(study, steps=steps), run, table, labelled=False, top=6.0)
    assert points(drawn(ax, "diverged:")["a"]) == [(9, 6.0)]
    assert points(drawn(ax, "way:")["a"]) == [(0, 5.7), (9, 6.0)]


def test_reference_lines_are_drawn_in_every_panel_and_named(figures: dict[str, Figure]) -> None:
    fig = figures["loss_curves"]
    named = []
    for ax in fig.axes:
        lines = drawn(ax, "reference:")
        heights = {name: line.get_ydata()[0] for name, line in lines.items()}  # type: ignore[index]
        assert heights == pytest.approx({"ln(vocab)": LN_VOCAB, "unigram": H1, "bigram": H2})
        low, high = ax.get_ylim()
        assert all(low < height < high for height in heights.values())
        named.append(sorted(text.get_text() for text in ax.texts))
    labels = ["bigram\n2.46", "ln(vocab)\n5.55", "unigram\n3.26"]
    assert named == [[], labels, [], labels]  # at the end of each row


def test_training_loss_is_drawn_as_recorded(folder: Path, figures: dict[str, Figure]) -> None:
    ax = panel(figures["training_loss"], BAD_PANEL)
    steps = tables.read(folder, "steps")
    for run, line in drawn(ax, "seed:").items():
        mine = steps[(steps["run_id"] == run) & np.isfinite(steps["train_loss"])]
        same(line, mine["step"], mine["train_loss"])
    assert len(drawn(ax, "seed:")) == len(runs_of(folder, n_layers=4, peak_lr=3e-3)) == 11


def test_the_bold_training_loss_is_a_mean_over_the_last_tenth() -> None:
    value = np.arange(40.0) ** 2
    smooth = series.last_tenth(pd.DataFrame({"step": range(40), "value": value}))["value"].to_numpy()
    assert smooth[:10] == pytest.approx(value[:10])  # below ten steps the last tenth is the step itself
    assert smooth[10] == pytest.approx(value[9:11].mean())
    assert smooth[39] == pytest.approx(value[36:40].mean())


# ---- gradients ----------------------------------------------------------------------------------------


def test_profile_is_the_geometric_mean_over_seeds_at_each_snapshot(folder: Path, figures: dict[str, Figure]) -> None:
    fig = figures["gradient_profile"]
    assert titles(fig) == ["step 0 (init)", "step 5", "step 20", "step 29–59 (end)"]
    assert "n_layers=4, peak_lr=3e-3" in words(fig)
    modules = tables.read(folder, "modules")
    modules = modules[modules["module"] == "mlp_out"]
    for title, step in (("step 0 (init)", 0), ("step 5", 5), ("step 20", 20)):
        lines = drawn(panel(fig, title), "mean:")
        assert set(lines) == {"pre:0", "pre:20", "post:0", "post:20"}
        for name, line in lines.items():
            placement, warmup = name.split(":")
            runs = runs_of(folder, placement=placement, warmup_steps=int(warmup), n_layers=4, peak_lr=3e-3)
            at = modules[modules["run_id"].isin(runs["run_id"]) & (modules["step"] == step)]
            expected = np.exp(np.log(at["grad_norm"].astype(float)).groupby(at["layer"]).mean())
            same(line, expected.index, expected)
            assert len(expected) == 4


def test_the_band_spans_the_seeds(folder: Path, study: Study) -> None:
    rows = study.modules
    runs = study.runs[(study.runs["hue"] == "post") & (study.runs["dash"] == "0") & (study.runs["n_layers"] == 4)]
    runs = runs[runs["peak_lr"] == 3e-3]
    mine = series.of_runs(rows[(rows["step"] == 20) & rows["run_id"].isin(runs["run_id"])], runs, ["hue", "dash"])
    table = series.geometric(mine, ["hue", "dash", "layer"])
    at = rows[(rows["step"] == 20) & rows["run_id"].isin(runs["run_id"]) & (rows["layer"] == 0)]["value"]
    assert table.loc[table["layer"] == 0, ["low", "high", "n"]].to_numpy()[0] == pytest.approx([at.min(), at.max(), 2])


def test_a_snapshot_is_the_recorded_step_at_or_below() -> None:
    steps = [0, 4, 7, 18, 80, 119]
    rows = pd.DataFrame({"run_id": "a", "step": steps, "layer": 0, "value": 1.0})
    short = pd.DataFrame({"run_id": "b", "step": [0, 4], "layer": 0, "value": [1.0, math.nan]})
    found = series.snapshots(pd.concat([rows, short]), 119)
    assert [title for title, _ in found] == [
        "step 0 (init)", "step 4", "step 18", "step 80", "step 0–119 (end)",
    ]  # fmt: skip
    # b ended at step 4: it is shown at init and at the end, there at its last finite row, and not in between
    assert [sorted(at["run_id"]) for _, at in found] == [["a", "b"], ["a"], ["a"], ["a"], ["a", "b"]]


def test_zero_and_non_finite_norms_stay_off_the_log_axis() -> None:
    rows = pd.DataFrame({"layer": [0, 0, 0, 0, 1], "value": [0.0, math.inf, 2.0, 8.0, 0.0]})
    out = series.geometric(rows, ["layer"])
    assert out.to_dict("records") == [{"layer": 0, "low": 2.0, "high": 8.0, "n": 2, "mid": pytest.approx(4.0)}]


def test_residual_path_runs_from_the_embedding_to_the_last_block(folder: Path, figures: dict[str, Figure]) -> None:
    fig = figures["residual_path"]
    line = drawn(panel(fig, "step 5"), "mean:")["pre:20"]
    runs = runs_of(folder, placement="pre", warmup_steps=20, n_layers=4, peak_lr=3e-3)
    rows = tables.read(folder, "residual", run_ids=list(runs["run_id"]))
    at = rows[rows["step"] == 5]
    expected = np.exp(np.log(at["grad_norm"].astype(float)).groupby(at["layer"]).mean())
    assert list(expected.index) == [0, 1, 2, 3, 4]
    same(line, expected.index, expected)


def test_ratio_is_first_over_last_layer_of_each_seed(folder: Path, figures: dict[str, Figure]) -> None:
    fig = figures["gradient_ratio"]
    assert titles(fig)[-1] == BAD_PANEL
    ax = panel(fig, BAD_PANEL)
    modules = tables.read(folder, "modules")
    modules = modules[modules["module"] == "mlp_out"].astype({"grad_norm": float})
    lines = drawn(ax, "seed:")
    assert set(lines) == set(runs_of(folder, n_layers=4, peak_lr=3e-3)["run_id"])
    for run, line in lines.items():
        mine = modules[modules["run_id"] == run].set_index("step")
        ratio = mine.loc[mine["layer"] == 0, "grad_norm"] / mine.loc[mine["layer"] == 3, "grad_norm"]
        same(line, ratio.index, ratio)
    stuck = points(lines[bad_run(folder, diverged=False)])
    assert stuck[0][1] == pytest.approx(2.0)  # the hand-made gradients start as (layer + 1)^-0.5
    assert stuck[-1][1] < 2e-3
    assert set(drawn(ax, "diverged:")) == {bad_run(folder, diverged=True)}
    assert drawn(ax, "warmup:")["20"].get_xdata() == [20, 20]
    assert ax.get_yscale() == "log"


def test_update_rms_is_a_mean_over_seeds_beside_the_law(folder: Path, figures: dict[str, Figure]) -> None:
    """A hand-made update has norm 300 lr, whatever the warmup; the last row of a diverged run is one as well."""
    fig = figures["update_rms"]
    assert titles(fig) == titles(figures["loss_curves"])
    for title, n_layers in ((titles(fig)[0], 2), (BAD_PANEL, 4)):
        ax = panel(fig, title)
        means = drawn(ax, "mean:")
        assert set(means) == {"pre:0", "pre:20", "post:0", "post:20"}
        for arm, line in means.items():
            steps = range(N_STEPS // 2 if (title, arm) == (BAD_PANEL, "post:0") else N_STEPS)
            same(line, steps, [300 / math.sqrt(10_000 * n_layers)] * len(steps))
        assert drawn(ax, "reference:law")[""].get_ydata()[0] == pytest.approx(math.sqrt(0.1 / 1.9))  # type: ignore[index]
        assert ax.get_yscale() == "log"
    marks = {ax.get_title(loc="left"): [*drawn(ax, "diverged:")] for ax in fig.axes}
    assert {t: found for t, found in marks.items() if found} == {BAD_PANEL: [bad_run(folder, diverged=True)]}
    legend = {text.get_text() for text in fig.legends[0].get_texts()}
    assert {"diverged", "Adam on noise: 0.229"} < legend


def test_the_law_is_drawn_for_adam_with_one_beta1_only(study: Study) -> None:
    half = study.runs["seed"] == 0
    for column, value, laws in (("beta1", 0.5, 0), ("optimizer", "sgd", 0), ("optimizer", "adamw", 1)):
        mixed = study.runs.assign(**{column: study.runs[column].where(half, value)})
        fig = FIGURES["update_rms"](replace(study, runs=mixed))
        assert len(drawn(fig.axes[0], "reference:law")) == laws, (column, value)
        named = ["noise" in text.get_text() for text in fig.legends[0].get_texts()]
        assert sum(named) == laws, (column, value)


def test_a_study_without_sizes_of_models_has_no_update_rms(study: Study) -> None:
    with pytest.raises(Lacks, match="no update's root mean square is finite and above zero"):
        FIGURES["update_rms"](replace(study, runs=study.runs.assign(n_params=np.nan)))


def test_heatmap_has_a_map_per_placement_and_warmup_on_one_scale(folder: Path, figures: dict[str, Figure]) -> None:
    fig = figures["heatmap"]
    assert titles(fig) == [
        "pre-norm, no warmup, 3 seeds", "pre-norm, warmup 20, 3 seeds",
        "post-norm, no warmup, 2 seeds", "post-norm, warmup 20, 3 seeds",
    ]  # fmt: skip
    ax = panel(fig, "post-norm, warmup 20, 3 seeds")
    (mesh,) = [c for c in ax.collections if isinstance(c, QuadMesh)]
    assert mesh.get_rasterized()
    runs = runs_of(folder, **(BAD | {"warmup_steps": 20}))
    rows = tables.read(folder, "modules", run_ids=list(runs["run_id"]))
    rows = rows[rows["module"] == "mlp_out"].astype({"grad_norm": float})
    mean = np.exp(np.log(rows["grad_norm"]).groupby([rows["layer"], rows["step"]]).mean()).unstack()  # noqa: PD010
    values = mesh.get_array()
    assert values is not None
    assert np.asarray(values).reshape(mean.shape) == pytest.approx(mean.to_numpy())
    corners = mesh.get_coordinates()
    assert list(corners[0, :3, 0]) == [0, 1, 2]
    assert corners[0, -1, 0] == N_STEPS
    assert list(corners[:, 0, 1]) == [-0.5, 0.5, 1.5, 2.5, 3.5]
    scales = {c.get_clim() for a in fig.axes for c in a.collections if isinstance(c, QuadMesh)}
    assert len(scales) == 1


def test_headline_shows_loss_and_ratio_of_one_setting(folder: Path, figures: dict[str, Figure]) -> None:
    fig = figures["headline"]
    left, right = fig.axes
    runs = set(runs_of(folder, n_layers=4, peak_lr=3e-3)["run_id"])
    assert set(drawn(left, "seed:")) == set(drawn(right, "seed:")) == runs
    assert "n_layers=4, peak_lr=3e-3" in words(fig)


def test_the_legend_names_what_is_drawn_and_takes_no_room_from_the_panels(figures: dict[str, Figure]) -> None:
    fig = figures["gradient_profile"]
    assert [t.get_text() for t in fig.legends[0].get_texts()] == [
        "pre-norm", "post-norm", "no warmup", "warmup 20",
    ]  # fmt: skip
    handles = {str(h.get_label()): h for h in fig.legends[0].legend_handles if isinstance(h, Line2D)}
    assert to_hex(handles["post-norm"].get_color()) == style.PLACEMENT_COLORS["post"].lower()
    colors = dict(zip([f"own{i}" for i in range(14)], style.OTHER_COLORS * 2, strict=False))
    many = looks.Look("placement", None, colors, {"": "-"})
    heights = []
    for hues in (["own0", "own1"], list(colors)):
        fig = Figure(figsize=(7, 3), layout="constrained")
        ax = fig.subplots()
        layout.legend(fig, USUAL, many, pd.DataFrame({"hue": hues, "dash": ""}))
        fig.draw_without_rendering()
        assert len(fig.legends[0].get_texts()) >= len(hues)
        heights.append(ax.get_window_extent().height)
    assert heights[1] == pytest.approx(heights[0], rel=0.1)


# ---- the final grid -----------------------------------------------------------------------------------


def test_final_grid_marks_every_run_with_its_outcome(folder: Path, figures: dict[str, Figure]) -> None:
    fig = figures["final_grid"]
    assert titles(fig) == ["2 layers", "4 layers"]
    seen: dict[str, str] = {}
    runs = runs_of(folder)
    for ax in fig.axes:
        assert [t.get_text() for t in ax.get_xticklabels()] == ["1e-3", "3e-3"]
        for outcome, marker in style.OUTCOME_MARKERS.items():
            for run, line in drawn(ax, f"{outcome}:").items():
                assert line.get_marker() == marker
                seen[run] = outcome
                (_, y), row = points(line)[0], having(runs, run_id=run).iloc[0]
                if outcome == "diverged":
                    assert 0.9 < (y - ax.get_ylim()[0]) / np.ptp(ax.get_ylim()) < 1  # at the upper edge
                else:
                    assert y == pytest.approx(row["final_val_loss"])
    assert set(seen) == set(runs["run_id"])
    assert seen[bad_run(folder, diverged=True)] == "diverged"
    assert seen[bad_run(folder, diverged=False)] == "stuck"
    legend = [text.get_text() for text in fig.legends[0].get_texts()]
    assert [t for t in legend if t in style.OUTCOME_MARKERS] == ["learned", "stuck", "diverged"]


def test_final_grid_has_no_mean_where_a_seed_diverged(folder: Path, figures: dict[str, Figure]) -> None:
    means = drawn(panel(figures["final_grid"], "4 layers"), "mean:")
    cell = runs_of(folder, **(BAD | {"peak_lr": 1e-3}))
    assert points(means["post:0"])[0][1] == pytest.approx(cell["final_val_loss"].mean())
    assert math.isnan(points(means["post:0"])[1][1])


def test_a_run_that_ended_above_its_start_stands_at_the_edge_and_stretches_no_axis(tmp_path: Path) -> None:
    for placement, end in (("pre", 2.1), ("post", 900.0)):
        config = handmade_config(tmp_path, placement=placement)
        write_handmade_run(tmp_path / STUDY, config, final_val_loss=end)
    ax = FIGURES["final_grid"](load(tmp_path / STUDY)).axes[0]
    assert ax.get_ylim()[1] < H1
    ((_, y),) = points(next(iter(drawn(ax, "diverged:").values())))
    assert H2 < y < ax.get_ylim()[1]
    assert FIGURES["loss_curves"](load(tmp_path / STUDY)).axes[0].get_ylim()[1] < 7


def test_final_grid_over_warmup_joins_the_warmups_of_a_placement(tmp_path: Path) -> None:
    folder = handmade_study(tmp_path, n_layers=(2,), peak_lrs=(3e-3,), seeds=(0, 1))
    fig = FIGURES["final_grid"](load(folder))
    assert fig.axes[0].get_xlabel() == "warmup_steps"
    means = drawn(fig.axes[0], "mean:")
    assert {name: len(points(line)) for name, line in means.items()} == {"pre:": 2, "post:": 2}


def test_x_axis_is_the_number_with_most_values_on_a_fitting_scale(study: Study) -> None:
    runs = study.runs.copy()
    x = x_axis(runs, ("placement", "warmup_steps"))
    assert (x.column, x.scale) == ("peak_lr", "log")
    runs["n_layers"] = [2, 4, 6] * (len(runs) // 3) + [2, 4][: len(runs) % 3]
    x = x_axis(runs, ("placement", "warmup_steps"))
    assert (x.column, x.scale, x.places) == ("n_layers", "linear", {2: 2.0, 4: 4.0, 6: 6.0})
    runs["d_ff"] = np.where(runs["n_layers"] == 2, np.nan, runs["n_layers"] * 1000 + runs["seed"])
    x = x_axis(runs, ("placement", "warmup_steps"))
    assert (x.column, x.scale) == ("d_ff", "even")  # null has no place on a number line
    assert next(iter(x.places)) is None


def test_final_axis_holds_every_end_and_the_nearest_reference() -> None:
    low, high = limits([2.0, 2.1], [LN_VOCAB, H1, H2], diverged=False)
    assert low < 2.0
    assert H2 < high < H1  # a far reference must not squeeze a small difference
    low, high = limits([2.0, 4.0], [LN_VOCAB, H1, H2], diverged=True)
    assert (low, high) == pytest.approx((2.0 - 0.14, 4.0 + 0.42))
    low, high = limits([2.0, 2.1], [], diverged=False)  # a watched run's text may have no known entropies
    assert low < 2.0 < 2.1 < high
    assert limits([], [], diverged=True)[0] < 0


# ---- figures that cannot be drawn -------------------------------------------------------------------------------


def test_one_layer_gives_no_profile_and_says_so(tmp_path: Path) -> None:
    folder = handmade_study(tmp_path, n_layers=(1,), seeds=(0,), peak_lrs=(3e-3,))
    result = plot_study(folder, out=tmp_path / "out")
    lacking = "every run has n_layers=1, and two layers are needed"
    lacks = ("headline", "gradient_ratio", "gradient_profile", "heatmap")
    assert result.skipped == [
        f"figures {', '.join(map(repr, lacks))} not drawn: {lacking}", NO_RANKING,
    ]  # fmt: skip
    assert [p.stem for p in result.paths] == [
        "loss_curves", "training_loss", "residual_path", "update_rms", "final_grid",
    ]  # fmt: skip
    assert all(p.is_file() for p in result.paths)


def test_one_run_gives_all_but_the_grid(tmp_path: Path) -> None:
    write_handmade_run(tmp_path / STUDY, handmade_config(tmp_path))
    result = plot_study(tmp_path / STUDY)
    assert result.skipped == ["figure 'final_grid' not drawn: only the seed varies", NO_RANKING]
    assert {p.parent for p in result.paths} == {tmp_path / STUDY / "figures"}
    assert len(result.paths) == len(EVERY_STUDY) - 2


def test_a_run_of_one_step_is_drawn(tmp_path: Path) -> None:
    for placement in ("pre", "post"):
        for seed in (0, 1):
            write_handmade_run(tmp_path / STUDY, handmade_config(tmp_path, placement=placement, seed=seed, n_steps=1))
    assert plot_study(tmp_path / STUDY).skipped == [NO_RANKING]


def test_a_study_where_every_run_diverged_is_drawn(tmp_path: Path) -> None:
    for placement in ("pre", "post"):
        write_handmade_run(tmp_path / STUDY, handmade_config(tmp_path, placement=placement), "diverged")
    result = plot_study(tmp_path / STUDY)
    assert result.skipped == [NO_RANKING]
    fig = FIGURES["final_grid"](load(tmp_path / STUDY))
    assert len(drawn(fig.axes[0], "diverged:")) == 2


def test_running_and_failed_runs_alone_are_one_clear_line(tmp_path: Path) -> None:
    write_handmade_run(tmp_path / STUDY, handmade_config(tmp_path), "running")
    write_handmade_run(tmp_path / STUDY, handmade_config(tmp_path, seed=1), "failed")
    with pytest.raises(ConfigError, match=r"has no finished run to draw \(1 failed, 1 running\)") as error:
        plot_study(tmp_path / STUDY)
    assert "\n" not in str(error.value)
    assert not (tmp_path / STUDY / "figures").exists()


def test_bad_requests_are_one_line(small: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"figure 'heatmp' is not one of .* Did you mean heatmap"):
        plot_study(small, only=["heatmp"], out=tmp_path)
    with pytest.raises(ConfigError, match=r"format 'jpg' is not one of png, svg, pdf"):
        plot_study(small, fmt="jpg", out=tmp_path)
    with pytest.raises(ConfigError, match="does not exist"):
        plot_study(tmp_path / "nowhere")
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be written"):
        plot_study(small, only=["headline"], out=tmp_path / "file")


# ---- bytes --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fmt", style.FORMATS)
def test_the_same_bytes_every_time(small: Path, tmp_path: Path, fmt: str, monkeypatch: pytest.MonkeyPatch) -> None:
    only = ["training_loss", "heatmap"]
    first = plot_study(small, fmt=fmt, out=tmp_path / "a", only=only)
    if fmt == "pdf":
        time.sleep(1.1)  # a PDF would hold dates, in whole seconds
    monkeypatch.setitem(matplotlib.rcParams, "axes.facecolor", "yellow")  # a user's own rc file
    monkeypatch.setitem(matplotlib.rcParams, "font.size", 20)
    monkeypatch.setitem(matplotlib.rcParams, "svg.hashsalt", None)
    second = plot_study(small, fmt=fmt, out=tmp_path / "b", only=only)
    assert len(first.paths) == len(only)
    for a, b in zip(first.paths, second.paths, strict=True):
        assert a.read_bytes() == b.read_bytes(), a.name


def test_a_dense_map_is_an_image_in_an_svg(folder: Path, tmp_path: Path) -> None:
    (path,) = plot_study(folder, fmt="svg", out=tmp_path, only=["heatmap"]).paths
    text = path.read_text()
    assert text.count("<image") >= 4
    assert path.stat().st_size < 200_000


# ---- colors -------------------------------------------------------------------------------------------

# Machado, Oliveira and Fernandes 2009 (doi 10.1109/TVCG.2009.113), severity 1, on linear RGB.
VISION = {
    "normal": np.eye(3),
    "deuteranopia": np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
    ),
    "protanopia": np.array(
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
    ),
}


def oklab(color: str, vision: str) -> np.ndarray:
    """Coordinates in OKLab (Ottosson 2020), where distances are close to perceived differences."""
    rgb = np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    linear = np.clip(VISION[vision] @ linear, 0, 1)
    cones = np.array(
        [
            [0.4122214708, 0.5363325363, 0.0514459929],
            [0.2119034982, 0.6806995451, 0.1073969566],
            [0.0883024619, 0.2817188376, 0.6299787005],
        ]
    )
    lab = np.array(
        [
            [0.2104542553, 0.7936177850, -0.0040720468],
            [1.9779984951, -2.4285922050, 0.4505937099],
            [0.0259040371, 0.7827717662, -0.8086757660],
        ]
    )
    return np.asarray(lab @ np.cbrt(cones @ linear))


RELATIVES = (
    ("post", "deepnorm", "admin", "b2t", "residual"), ("pre", "peri", "sub", "reordered", "lns", "hybrid"),
    ("pre", "post", "mix", "residual", "hybrid"), ("pre", "post", "rezero", "none", "deepnorm", "admin"),
)  # fmt: skip


@pytest.mark.parametrize("vision", VISION)
def test_colors_stay_apart_for_every_eye(vision: str) -> None:
    colors = dict(style.PLACEMENT_COLORS)
    assert set(colors) <= set(PLACEMENT_NAMES)  # a placement without a color of its own gets a free one
    assert set(style.OTHER_COLORS) < set(colors.values())
    colors |= {f"own{i}": c for i, c in enumerate(style.OWN_COLORS)}
    assert len(set(colors.values())) == 20
    lab = {name: oklab(c, vision) for name, c in colors.items()}
    apart = {(a, b): float(np.linalg.norm(lab[a] - lab[b])) for a in lab for b in lab if a != b}
    assert apart["pre", "post"] > 0.2
    assert min(d for pair, d in apart.items() if set(pair) <= set(PLACEMENT_NAMES)) > 0.08
    assert min(apart.values()) > 0.06
    for family in RELATIVES:  # relatives, which people compare, are farther apart
        assert min(d for pair, d in apart.items() if set(pair) <= set(family)) > 0.1


def test_every_outcome_has_its_own_marker() -> None:
    assert set(style.OUTCOME_MARKERS) == set(OUTCOMES)
    assert len(set(style.OUTCOME_MARKERS.values())) == len(OUTCOMES)


def test_own_names_get_free_colors() -> None:
    names = ["my.block:a", "post", "my.block:b"]
    colors = looks.colors_of("placement", names)
    assert colors["post"] == style.PLACEMENT_COLORS["post"]
    assert len(set(colors.values())) == 3
    assert not {colors["my.block:a"], colors["my.block:b"]} & set(style.PLACEMENT_COLORS.values())
    many = looks.colors_of("init", [f"x{i}" for i in range(14)])
    assert len(set(many.values())) == 14
