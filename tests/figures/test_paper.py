"""Figures for a paper: a module, a quantity, a column's width, a caption instead of a title, a part of a figure."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from drawing import EVERY_STUDY, drawn, panel, words
from handmade import handmade_study
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from normstudy.analysis.load import load as load_tables
from normstudy.cli import main as cli
from normstudy.errors import ConfigError
from normstudy.figures.draw import FIGURES, draw, plot_study
from normstudy.figures.paper import Paper, inches
from normstudy.figures.study import load

RESULTS = Path(__file__).parents[2] / "results"
Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return handmade_study(tmp_path_factory.mktemp("results"))


@pytest.mark.parametrize("quantity", ["grad_norm", "update_ratio", "param_norm", "update_norm"])
def test_a_module_and_a_quantity_are_drawn(quantity: str, folder: Path) -> None:
    paper = Paper(module="attn_in", quantity=quantity)
    fig = draw(load(folder, paper=paper), "gradient_profile")
    tables = load_tables(folder, where={"placement": "pre", "warmup_steps": "0", "n_layers": "4", "peak_lr": "3e-3"})
    rows = tables.modules[(tables.modules["module"] == "attn_in") & (tables.modules["step"] == 5)]
    expected = np.exp(np.log(rows[quantity].astype(float)).groupby(rows["layer"]).mean())
    line = drawn(panel(fig, "step 5"), "mean:")["pre:0"]
    np.testing.assert_allclose(np.asarray(line.get_ydata(), float), expected, rtol=1e-6)
    assert fig.axes[0].get_ylabel() == f"attn_in {quantity}"
    assert words(fig).startswith(paper.what.capitalize())


def test_the_ratio_and_the_map_show_it_too(folder: Path) -> None:
    study = load(folder, paper=Paper(module="norm1", quantity="update_norm"))
    assert "update norm of norm1" in words(draw(study, "gradient_ratio"))
    assert draw(study, "heatmap").axes[-1].get_ylabel() == "norm1 update_norm"


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With as many placements as a ranking needs."""
    return handmade_study(tmp_path_factory.mktemp("three"), placements=("pre", "post", "peri"))


@pytest.mark.parametrize("name", EVERY_STUDY)
def test_a_column_of_a_paper(name: str, three: Path) -> None:
    """Every figure fits 3.3 inches with type of the usual size, and no text leaves it on the right."""
    fig = draw(load(three, paper=Paper(width=3.3)), name)
    assert fig.get_figwidth() == 3.3
    fig.draw_without_rendering()
    ticks = {t for ax in fig.axes for t in (*ax.get_xticklabels(), *ax.get_yticklabels())}  # also of hidden ones
    texts = [t for t in fig.findobj(Text) if isinstance(t, Text) and t.get_text().strip() and t not in ticks]
    assert {t.get_fontsize() for t in texts} <= {5.5, 6.0, 6.5, 7.0, 7.5, 8.0}
    right = fig.bbox.width
    beyond = [t.get_text() for t in texts if t.get_window_extent().x1 > right + 2]
    assert beyond == []


def test_a_caption_instead_of_a_title(folder: Path, tmp_path: Path, capfd: Capture) -> None:
    words_ = [
        "plot",
        str(folder),
        "--only",
        "headline,heatmap",
        "--out",
        str(tmp_path),
        "--no-title",
        "--width",
        "84mm",
    ]
    assert cli.main(words_) == 0
    lines = capfd.readouterr().out.splitlines()
    assert lines[0] == f"{tmp_path / 'headline.png'}"
    assert lines[1].startswith("  Training by placement and warmup_steps; thin: seeds")
    assert lines[3].startswith("  Gradient norm of mlp_out by layer and step")
    assert draw(load(folder, paper=Paper(title=False)), "headline").get_suptitle() == ""
    with Image.open(tmp_path / "headline.png") as image:
        assert image.width == int(84 / 25.4 * 220)


def test_text_of_svg_and_pdf_is_text(folder: Path, tmp_path: Path) -> None:
    for fmt in ("svg", "pdf"):
        plot_study(folder, fmt=fmt, out=tmp_path, only=["headline"])
    assert ">validation loss, nats per token</text>" in (tmp_path / "headline.svg").read_text()
    pdf = (tmp_path / "headline.pdf").read_bytes()
    assert b"/TrueType" in pdf or b"/CIDFontType2" in pdf


def test_another_paper_replaces_no_figure(folder: Path) -> None:
    (path,) = plot_study(folder, only=["headline"], paper=Paper(width=3.3, module="norm2", title=False)).paths
    assert path == folder / "figures" / "module=norm2,width=3.3in,title=false" / "headline.png"


def test_panels_that_are_left_out_are_named(capfd: Capture, tmp_path: Path) -> None:
    study = handmade_study(tmp_path, n_layers=(2, 3, 4), peak_lrs=(1e-3, 3e-3, 1e-2), seeds=(0,))
    assert cli.main(["plot", str(study), "--only", "loss_curves"]) == 0
    said = capfd.readouterr().out.splitlines()[-1]
    shown = [ax.get_title(loc="left") for ax in draw(load(study), "loss_curves").axes]
    assert said.startswith(f"figure 'loss_curves' drawn without {9 - len(shown)} panels: ")
    left = said.partition(": ")[2].partition("; choose")[0].split("; ")
    every = {f"{n} layers, lr {rate}" for n in (2, 3, 4) for rate in ("1e-3", "3e-3", "1e-2")}
    assert sorted([*left, *shown]) == sorted(every)


@pytest.mark.parametrize("name", ["headline", "gradient_profile", "final_grid", "heatmap", "loss_curves"])
def test_a_figure_is_drawn_into_a_part_of_another(name: str, folder: Path) -> None:
    whole = Figure(figsize=(10, 5), layout="constrained")
    left, right = whole.subfigures(1, 2)
    FIGURES[name](load(folder, paper=Paper(into=left)))
    right.subplots()
    assert whole.get_size_inches().tolist() == [10, 5]
    assert len(left.axes) > 1
    assert len(left.legends) == (name != "heatmap")
    whole.draw_without_rendering()


def test_a_figure_is_drawn_into_a_given_one(folder: Path) -> None:
    mine = Figure(figsize=(5, 4))
    assert draw(load(folder, paper=Paper(into=mine)), "headline") is mine
    assert mine.get_size_inches().tolist() == [5, 4]


@pytest.mark.parametrize(
    ("text", "width"), [("3.3in", 3.3), ("84 mm", 84 / 25.4), ("17.8cm", 17.8 / 2.54), ("252pt", 3.5)]
)
def test_a_width(text: str, width: float) -> None:
    assert inches(text) == pytest.approx(width)


@pytest.mark.parametrize(("words", "said"), [
    (("--width", "3.3"), "--width '3.3' is not a width: write a number and a unit"),
    (("--width", "1in"), "width 1.0 is out of range: set it to a finite number of at least 2"),
    (("--width", "50in"), "width 50 inches exceeds 20 inches"),
    (("--module", "mlp"), "module"),
    (("--quantity", "norm"), "quantity"),
])  # fmt: skip
def test_a_wish_that_cannot_be_met(words: tuple[str, ...], said: str, folder: Path, capfd: Capture) -> None:
    before = sorted(folder.rglob("*"))
    assert cli.main(["plot", str(folder), *words]) == 2
    err = capfd.readouterr().err
    assert said in err
    assert err.count("\n") == 1
    assert sorted(folder.rglob("*")) == before


def test_a_module_without_layers_has_no_profile(folder: Path, tmp_path: Path) -> None:
    skipped = plot_study(folder, out=tmp_path, only=["gradient_profile"], paper=Paper(module="embed")).skipped
    assert skipped == ["figure 'gradient_profile' not drawn: the module embed is in no layer: choose another --module"]
    skipped = plot_study(folder, out=tmp_path, only=["gradient_profile"], paper=Paper(module="scale")).skipped
    assert skipped == ["figure 'gradient_profile' not drawn: no run recorded the module scale"]


def test_paper_refuses_what_the_command_refuses() -> None:
    with pytest.raises(ConfigError, match="quantity"):
        Paper(quantity="loss")
