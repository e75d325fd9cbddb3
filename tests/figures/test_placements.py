"""A field with more values than an axes has colors makes panels: a figure of all fourteen placements."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
import pytest
from drawing import EVERY_STUDY, drawn, having, panel, points, runs_of, same, titles, words
from handmade import FOURTEEN, STUDY, handmade_config, handmade_placements, handmade_study, write_handmade_run
from matplotlib.collections import QuadMesh
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from PIL import Image

from normstudy.config import asked_types
from normstudy.figures import look as looks
from normstudy.figures import series, style
from normstudy.figures.draw import FIGURES, plot_study
from normstudy.figures.final_grid import x_axis
from normstudy.figures.paper import TWO_COLUMNS
from normstudy.figures.study import MAX_FACETS, Study, load, widest
from normstudy.study import tables, whole
from normstudy.upkeep.compact import compact_study

SMALL_MULTIPLES = (
    "loss_curves", "training_loss", "gradient_ratio", "gradient_profile", "residual_path", "heatmap", "final_grid",
)  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The study of `handmade_placements`."""
    folder = handmade_placements(tmp_path_factory.mktemp("placements"))
    compact_study(folder)  # it is read often
    return folder


@pytest.fixture(scope="module")
def runs(folder: Path) -> pd.DataFrame:
    """The finished runs, read from the table `runs`."""
    return runs_of(folder)


@pytest.fixture(scope="module")
def study(folder: Path) -> Study:
    return load(folder)


@pytest.fixture(scope="module")
def figures(study: Study) -> dict[str, Figure]:
    """Every figure of the study, drawn once."""
    with style.rc():
        return {name: make(study) for name, make in EVERY_STUDY.items()}


def diverged_run(runs: pd.DataFrame) -> str:
    cell = having(runs, placement="none", n_layers=5, warmup_steps=0)
    return str(cell.loc[cell["nonfinite_step"].notna(), "run_id"].iloc[0])


# ---- panels, colors and names -------------------------------------------------------------------------


def test_the_placements_make_panels_and_the_depth_is_the_color(study: Study) -> None:
    assert (study.look.facet, study.look.hue, study.look.dash) == ("placement", "n_layers", "warmup_steps")
    assert study.panel_fields == ("placement",)
    assert list(study.look.colors) == ["4", "5"]
    assert list(study.look.dashes) == ["0", "20"]
    lightness = [np.mean([int(c[i : i + 2], 16) for i in (1, 3, 5)]) for c in study.look.colors.values()]
    assert lightness[0] > lightness[1]  # the deepest is the darkest


@pytest.mark.parametrize("name", SMALL_MULTIPLES)
def test_every_placement_has_a_panel_of_at_most_six_lines_and_colors(name: str, figures: dict[str, Figure]) -> None:
    fig = figures[name]
    assert titles(fig) == list(FOURTEEN)
    assert fig.get_figwidth() == TWO_COLUMNS
    for title in FOURTEEN:
        ax = panel(fig, title)
        lines = {k: to_hex(v.get_color()) for k, v in drawn(ax, "mean:").items()}
        assert len(lines) <= 6
        assert len(set(lines.values())) <= looks.MAX_HUES
        assert len(lines) >= 2 or name == "heatmap"
    across = [ax.get_subplotspec().get_gridspec().ncols for ax in fig.axes if ax.get_subplotspec() is not None]  # type: ignore[union-attr]
    assert set(across[: len(FOURTEEN)]) == {4}
    assert " per placement" in words(fig)


def test_a_ranking_is_two_columns_wide(figures: dict[str, Figure], tmp_path: Path) -> None:
    style.save(figures["ranking"], tmp_path / "a.png", "png")
    with Image.open(tmp_path / "a.png") as image:
        assert image.width == TWO_COLUMNS * 220


def test_text_stays_inside_the_figure_and_apart(figures: dict[str, Figure]) -> None:
    for name in ("headline", "ranking", "gradient_profile", "final_grid"):
        fig = figures[name]
        fig.draw_without_rendering()
        whole = fig.bbox
        legends = [legend.get_window_extent() for legend in fig.legends]
        assert not any(legend.overlaps(t.get_window_extent()) for legend in legends for t in fig.texts), name
        for ax in fig.axes:
            box = ax.get_tightbbox()
            assert box is not None
            assert whole.x0 <= box.x0, name
            assert box.x1 <= whole.x1 + 1, name
            assert not any(legend.overlaps(box) for legend in legends), name
        heads = [ax.title.get_window_extent() for ax in fig.axes] + [
            ax._left_title.get_window_extent() for ax in fig.axes
        ]  # type: ignore[attr-defined]
        heads = [h for h in heads if h.width > 0]
        assert not any(a.overlaps(b) for i, a in enumerate(heads) for b in heads[:i]), name


def test_six_values_are_colors_and_seven_are_panels(study: Study) -> None:
    six = study.finished[study.finished["placement"].isin(FOURTEEN[:6])]
    look = looks.choose_look(six)
    assert (look.facet, look.hue) == (None, "placement")
    assert look.colors == {name: style.PLACEMENT_COLORS[name] for name in FOURTEEN[:6]}
    seven = study.finished[study.finished["placement"].isin(FOURTEEN[:7])]
    assert (looks.choose_look(seven).facet, looks.choose_look(seven).hue) == ("placement", "n_layers")


def test_another_text_field_is_the_color_and_all_else_is_held(study: Study) -> None:
    """Placements, norms, depths, warmups and learning rates vary: fourteen panels at one depth and one rate."""
    parts = [study.finished.assign(norm=n, peak_lr=r) for n in ("layernorm", "rmsnorm") for r in (1e-3, 3e-3)]
    runs = pd.concat(parts, ignore_index=True)
    look = looks.choose_look(runs)
    assert (look.facet, look.hue, look.dash) == ("placement", "norm", "warmup_steps")
    more = replace(study, runs=runs, look=look, panel_fields=("placement", "n_layers", "peak_lr", "d_model"))
    runs["d_model"] = np.where(runs["seed"] == 0, 32, 64)
    panels, notes = more.panels(runs, 6)
    assert [p.title for p in panels] == list(FOURTEEN)
    for shown in panels:
        assert set(shown.runs["n_layers"]) == {5}
        assert set(shown.runs["peak_lr"]) == {3e-3}
        assert set(shown.runs["norm"]) == {"layernorm", "rmsnorm"}
    assert notes == ["d_model=64"]  # the title names depth and rate


def test_a_held_field_keeps_the_value_that_most_placements_have(study: Study) -> None:
    few = study.finished[study.finished["placement"].isin(["pre", "post"])]  # norm=auto, the last value in order
    runs = pd.concat([study.finished.assign(norm="rmsnorm"), few], ignore_index=True)
    assert widest(runs, "norm", "placement") == ["rmsnorm"]
    more = replace(study, runs=runs, panel_fields=("placement", "norm"))
    panels, notes = more.panels(runs, 6)
    assert [p.title for p in panels] == list(FOURTEEN)
    assert notes == ["norm=rmsnorm"]


def test_more_values_than_panels_are_spread_and_the_note_says_so(study: Study) -> None:
    names = [f"place{i:02d}" for i in range(30)]
    runs = pd.concat([study.finished[:1].assign(placement=n, run_id=n) for n in names], ignore_index=True)
    panels, notes = replace(study, runs=runs).panels(runs, 6)
    assert len(panels) == MAX_FACETS
    assert (panels[0].title, panels[-1].title) == ("place00", "place29")
    assert notes == [f"{MAX_FACETS} of 30 panels shown"]


def test_only_placements_varying_is_one_line_a_panel(folder: Path) -> None:
    study = load(folder, {"n_layers": "5", "warmup_steps": "20"})
    assert (study.look.facet, study.look.hue, study.look.dash) == ("placement", "n_layers", None)
    fig = FIGURES["loss_curves"](study)
    assert titles(fig) == list(FOURTEEN)
    assert {len(drawn(ax, "mean:")) for ax in fig.axes} == {1}
    assert "Validation loss by placement;" in words(fig)
    grid = FIGURES["final_grid"](study)
    (ax,) = grid.axes
    assert [t.get_text() for t in ax.get_xticklabels()] == list(FOURTEEN)
    means = [line for line in ax.get_lines() if str(line.get_gid()).startswith("mean:")]
    # no line joins names, which have no order
    assert [len(points(line)) for line in means] == [1] * len(FOURTEEN)


# ---- the figures --------------------------------------------------------------------------------------


def test_each_run_is_in_the_panel_of_its_placement(runs: pd.DataFrame, figures: dict[str, Figure]) -> None:
    for name in ("loss_curves", "training_loss", "gradient_ratio"):
        for placement in FOURTEEN:
            found = set(drawn(panel(figures[name], placement), "seed:"))
            assert found == set(having(runs, placement=placement)["run_id"]), (name, placement)
    marked = {t: set(drawn(panel(figures["loss_curves"], t), "diverged:")) for t in FOURTEEN}
    assert {t: found for t, found in marked.items() if found} == {"none": {diverged_run(runs)}}


def test_reference_losses_are_named_at_full_rows_only_in_one_line(figures: dict[str, Figure]) -> None:
    named = {t: sorted(x.get_text() for x in panel(figures["loss_curves"], t).texts) for t in FOURTEEN}
    labels = ["bigram 2.46", "ln(vocab) 5.55", "unigram 3.26"]
    assert {t for t, found in named.items() if found} == {"reordered", "lns", "hybrid"}
    assert named["reordered"] == labels


def test_a_gradient_of_zero_is_left_out_and_named(folder: Path, runs: pd.DataFrame, figures: dict[str, Figure]) -> None:
    lines = drawn(panel(figures["gradient_ratio"], "rezero"), "mean:")
    assert {points(line)[0][0] for line in lines.values()} == {1}
    cell = having(runs, placement="rezero", n_layers=5, warmup_steps=0)
    modules = tables.read(folder, "modules", run_ids=list(cell["run_id"]))
    rows = modules[(modules["module"] == "mlp_out") & (modules["step"] == 1)].astype({"grad_norm": float})
    first, last = (rows[rows["layer"] == layer]["grad_norm"].to_numpy() for layer in (0, 4))
    assert points(lines["5:0"])[0] == pytest.approx((1, math.sqrt(np.prod(first / last))))
    assert {points(line)[0][0] for line in drawn(panel(figures["gradient_ratio"], "sub"), "mean:").values()} == {0}
    for name in ("headline", "gradient_ratio", "gradient_profile", "heatmap"):
        assert "a gradient norm of exactly 0 is not drawn (rezero: step 0)" in words(figures[name]), name
    for name in ("loss_curves", "residual_path"):
        assert "exactly 0" not in words(figures[name]), name


def test_zeros_are_named_where_placements_are_colors(folder: Path) -> None:
    study = load(folder, {"n_layers": "5", "warmup_steps": "0"})
    runs = study.finished[study.finished["placement"].isin(["pre", "rezero"])]
    study = replace(study, runs=runs.assign(hue=runs["placement"]), look=looks.choose_look(runs), panel_fields=())
    for name in ("headline", "gradient_ratio", "gradient_profile", "heatmap"):
        assert "not drawn (rezero: step 0)" in words(FIGURES[name](study)), name


def test_a_profile_panel_has_a_color_for_init_a_few_updates_and_the_end(
    folder: Path, runs: pd.DataFrame, figures: dict[str, Figure]
) -> None:
    fig = figures["gradient_profile"]
    lines = drawn(panel(fig, "peri"), "mean:")
    assert set(lines) == {f"{step}:{warmup}" for step in ("0 (init)", "5", "14–29 (end)") for warmup in (0, 20)}
    assert set(drawn(panel(fig, "rezero"), "mean:")) == {k for k in lines if "init" not in k}
    cell = having(runs, placement="peri", n_layers=5, warmup_steps=20)
    rows = tables.read(folder, "modules", run_ids=list(cell["run_id"]))
    rows = rows[(rows["module"] == "mlp_out") & (rows["step"] == 5)].astype({"grad_norm": float})
    expected = np.exp(np.log(rows["grad_norm"]).groupby(rows["layer"]).mean())
    same(lines["5:20"], expected.index, expected)
    assert "n_layers=5, peak_lr=3e-3" in words(fig)
    colors = {k.split(":")[0]: to_hex(v.get_color()) for k, v in lines.items()}
    legend = {t.get_text() for t in fig.legends[0].get_texts()}
    assert {f"step {step}" for step in colors} < legend
    assert len(set(colors.values())) == 3


def test_maps_are_of_the_deepest_un_warmed_runs(folder: Path, runs: pd.DataFrame, figures: dict[str, Figure]) -> None:
    fig = figures["heatmap"]
    assert "n_layers=5, peak_lr=3e-3" in words(fig)
    assert "warmup_steps=0" in words(fig)
    assert not any(drawn(ax, "warmup:") for ax in fig.axes)
    values = {}
    for title in ("mix", "rezero"):
        (mesh,) = [c for c in panel(fig, title).collections if isinstance(c, QuadMesh)]
        array = mesh.get_array()
        assert array is not None
        values[title] = np.ma.filled(np.ma.asarray(array, float), np.nan).reshape(5, -1)
    cell = having(runs, placement="mix", n_layers=5, warmup_steps=0)
    rows = tables.read(folder, "modules", run_ids=list(cell["run_id"]))
    rows = rows[rows["module"] == "mlp_out"].astype({"grad_norm": float})
    mean = np.exp(np.log(rows["grad_norm"]).groupby([rows["layer"], rows["step"]]).mean()).unstack()  # noqa: PD010
    assert values["mix"] == pytest.approx(mean.to_numpy())
    (mesh,) = [c for c in panel(fig, "rezero").collections if isinstance(c, QuadMesh)]
    assert mesh.get_coordinates()[0, 0, 0] == 1  # nothing is drawn at step 0
    assert np.isfinite(values["rezero"]).all()


def test_the_final_grid_joins_depths_and_colors_warmups(runs: pd.DataFrame, figures: dict[str, Figure]) -> None:
    fig = figures["final_grid"]
    seen: dict[str, str] = {}
    for title in FOURTEEN:
        ax, mine = panel(fig, title), set(having(runs, placement=title)["run_id"])
        for outcome, marker in style.OUTCOME_MARKERS.items():
            for run, line in drawn(ax, f"{outcome}:").items():
                assert line.get_marker() == marker
                assert run in mine
                seen[run] = outcome
    assert set(seen) == set(runs["run_id"])
    assert seen[diverged_run(runs)] == "diverged"
    means = drawn(panel(fig, "b2t"), "mean:")
    assert set(means) == {"0:", "20:"}
    for warmup, line in means.items():
        for (_, mean), n_layers in zip(points(line), (4, 5), strict=True):
            cell = having(runs, placement="b2t", n_layers=n_layers, warmup_steps=int(warmup[:-1]))
            assert mean == pytest.approx(cell["final_val_loss"].mean())
    assert "2 seeds" in words(fig)
    legend = [t.get_text() for t in fig.legends[0].get_texts()]
    assert legend[:2] == ["no warmup", "warmup 20"]


def test_the_headline_is_a_row_per_placement(runs: pd.DataFrame, figures: dict[str, Figure]) -> None:
    left, right = figures["headline"].axes
    assert figures["headline"].get_figwidth() == TWO_COLUMNS
    rows = [t.get_text() for t in left.get_yticklabels()]
    assert sorted(rows) == sorted(FOURTEEN)
    assert [t.get_text() for t in figures["ranking"].axes[0].get_yticklabels()] == rows
    deep = set(having(runs, n_layers=5)["run_id"])
    assert {r for o in style.OUTCOME_MARKERS for r in drawn(left, f"{o}:")} == deep
    assert "n_layers=5, peak_lr=3e-3" in words(figures["headline"])

    ratio = drawn(panel(figures["gradient_ratio"], "none"), "mean:")["5:0"]
    curve = [y for _, y in points(ratio)]
    assert curve[0] > 2 * curve[-1]
    y = rows.index("none") - 0.23  # the upper of two arms
    same(drawn(right, "span:")["none:0"], [min(curve), max(curve)], [y, y])
    same(drawn(right, "first:")["none:0"], [curve[0]], [y])
    same(drawn(right, "last:")["none:0"], [curve[-1]], [y])
    assert right.get_xscale() == "log"
    assert len(drawn(right, "span:")) == 2 * len(FOURTEEN)


# ---- user-defined blocks ------------------------------------------------------------------------------


OWN = {"my_pkg.my_module:my_block": "my_block", "lab.blocks:post": "lab.blocks:post", "a.b:twin": "a.b:twin",
       "a.c:twin": "a.c:twin"}  # fmt: skip


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """post and four user-defined blocks: one with a clear name, one named as a shipped one, two with one name."""
    root = tmp_path_factory.mktemp("own")
    for name in ("post", *OWN):
        for seed in (0, 1):
            config = handmade_config(root, placement="post", n_layers=3, seed=seed)
            write_handmade_run(root / STUDY, config, columns={"placement": name})
    return root / STUDY


def test_an_own_block_is_named_by_its_function_where_that_is_clear(own: Path) -> None:
    runs = tables.read(own, "runs")
    assert looks.short_names(runs) == {"my_pkg.my_module:my_block": "my_block"}
    study = load(own)
    assert set(study.look.colors) == {"post", *OWN.values()}
    assert len(set(study.look.colors.values())) == 5
    assert not {study.look.colors[n] for n in OWN.values()} & set(style.PLACEMENT_COLORS.values())
    alone = load(own, {"placement": "lab.blocks:post"})
    assert list(alone.look.colors) == ["lab.blocks:post"]  # does not get the color of the shipped block


def test_every_figure_draws_own_blocks_as_shipped_ones(own: Path) -> None:
    study = load(own)
    for name, make in EVERY_STUDY.items():
        fig = make(study)
        text = {t.get_text() for legend in fig.legends for t in legend.get_texts()}
        text |= {t.get_text() for ax in fig.axes for t in ax.get_xticklabels() + ax.get_yticklabels()}
        text |= set(titles(fig))
        for short in OWN.values():
            assert any(short in t for t in text), (name, short)
        assert not any("my_module" in t for t in text), name


def test_a_long_name_takes_two_lines() -> None:
    assert looks.folded("deepnorm") == "deepnorm"
    assert looks.folded("my_laboratory.blocks:norm_after") == "my_laboratory.blocks:\nnorm_after"
    assert looks.folded("x" * 60) == "x" * 24 + "\n…" + "x" * 23


def test_own_norms_are_colored_apart() -> None:
    colors = looks.colors_of("norm", ["layernorm", "rmsnorm", "auto", "my_norm"])
    assert len(set(colors.values())) == 4
    assert colors["layernorm"] == style.OTHER_COLORS[0]
    assert looks.colors_of("norm", ["layernorm"]) == {"layernorm": style.OTHER_COLORS[0]}


# ---- columns ------------------------------------------------------------------------------------------


def test_a_table_without_a_column_gives_the_same_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A config column that the table lacks, as in a study of an older version, does not vary.

    Nor does a user's own rc file change the bytes, of a ranking too.
    """
    folder = handmade_study(
        tmp_path, n_layers=(2,), placements=("pre", "post", "sub"), peak_lrs=(3e-3,), seeds=(0,), n_steps=30
    )
    only = ["headline", "final_grid", "ranking"]
    before = plot_study(folder, out=tmp_path / "a", only=only)
    kept = ["placement", "n_layers", "peak_lr", "warmup_steps", "n_steps", "batch_size", "seq_len", *whole.COLUMNS]
    gone = [c for c in asked_types() if c not in kept]
    read = tables.read

    def without(folder: Path, table: str, *rest: Any, **options: Any) -> pd.DataFrame:
        found = read(folder, table, *rest, **options)
        return found.drop(columns=gone) if table == "runs" else found

    monkeypatch.setattr(tables, "read", without)
    monkeypatch.setitem(matplotlib.rcParams, "font.size", 20)
    assert not set(gone) & set(load(folder).finished.columns)
    after = plot_study(folder, out=tmp_path / "b", only=only)
    assert (before.skipped, after.skipped, len(after.paths)) == ([], [], 3)
    for a, b in zip(before.paths, after.paths, strict=True):
        assert a.read_bytes() == b.read_bytes(), a.name


def test_losses_in_other_tokens_are_never_in_one_panel(study: Study) -> None:
    runs = study.finished[study.finished["placement"] == "pre"].copy()
    runs["tokenizer"] = np.where(runs["seed"] == 0, "byte", "char")
    runs["ln_vocab"] = np.where(runs["seed"] == 0, 5.55, 4.6)
    look = looks.choose_look(runs)
    assert (look.hue, look.dash) == ("placement", "warmup_steps")
    assert looks.text_fields(runs) == {}
    only = runs[(runs["n_layers"] == 5) & (runs["warmup_steps"] == 0)]
    assert x_axis(only, (None, None)).column == "placement"
    panels, _ = replace(study, runs=runs, look=look, panel_fields=("tokenizer", "n_layers")).panels(runs, 6)
    assert {len(set(p.runs["tokenizer"])) for p in panels} == {1}
    assert not series.same_text(panels)
