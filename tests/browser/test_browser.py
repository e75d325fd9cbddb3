"""Pages in a real browser: silent, clickable, reachable by keyboard, readable, and equal to the tables."""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from handmade import handmade_config, handmade_study, write_handmade_run
from PIL import Image
from reported import HOSTILE, assert_same_numbers, data_of, texts
from visits import Open, drawn

from normstudy.analysis.compare import compare_study, render
from normstudy.analysis.inference import paired_t_interval
from normstudy.analysis.load import load
from normstudy.bench.generated import Size, write_study
from normstudy.report.make import report as make

if TYPE_CHECKING:
    from playwright.sync_api import Page

RESULTS = Path(__file__).parents[2] / "results"
PICTURE = RESULTS.parent / "docs" / "report.png"
SEARCHES = ("critical_lr", "critical_warmup")
STUDIES = ("warmup", "depth", "peak_lr", "rmsnorm", "placements", "shallow", "boundary", "best", *SEARCHES)
IN_CI = ("warmup", "critical_warmup")  # `slow` has the others
CHARTS = ("loss", "map-chart", "profile", "residual")

pytestmark = pytest.mark.browser


def report(folders: list[Path], out: Path | None = None) -> Path:
    return make(folders).save(out)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return handmade_study(tmp_path_factory.mktemp("results"))


@pytest.fixture(scope="module")
def path(study: Path) -> Path:
    return report([study])


def rows(page: Page, chart: str, data: str) -> list[dict[str, Any]]:
    """What a chart shows."""
    drawn(page)
    found: list[dict[str, Any]] = page.evaluate(f"() => window.normstudy.views['{chart}'].view.data('{data}')")
    return found


def cell_of(page: Page, title: str) -> int:
    return [cell["title"] for cell in data_of(page.content())["cells"]].index(title)


def choose(page: Page, title: str) -> None:
    page.locator(f".cell[data-cell='{cell_of(page, title)}']").click()
    drawn(page)


# ---- silence ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in IN_CI else pytest.mark.slow) for name in STUDIES]
)
def test_a_committed_study_has_the_numbers_of_its_tables_and_opens_without_a_word(
    name: str, visit: Open, tmp_path: Path
) -> None:
    path = report([RESULTS / name], out=tmp_path / "page.html")
    assert path.stat().st_size <= 3_000_000
    html = path.read_text()
    assert_same_numbers(RESULTS / name, html)
    tables = texts(html, "pre")
    for by in ("warmup_steps", "placement") if name not in SEARCHES else ():
        if len(set(load(RESULTS / name).runs[by])) > 1:
            assert render(compare_study(RESULTS / name, by=by), "table").strip() in tables
    page = visit(path)
    for chart in CHARTS:
        assert page.locator(f"#{chart} svg").count() == 1
    page.locator(".cell").last.click()
    page.select_option("#other", "0")
    drawn(page)


@pytest.mark.parametrize("runs", [100, pytest.param(1000, marks=pytest.mark.slow)])
def test_many_runs(runs: int, visit: Open, tmp_path: Path) -> None:
    write_study(tmp_path / "large", Size(seeds=runs // 50, n_steps=200, n_layers=2))
    path = report([tmp_path / "large"])
    assert path.stat().st_size <= 8_000_000
    page = visit(path)
    assert page.locator("#runs tbody tr").count() == runs
    page.fill("#filter", "post 0.003")
    assert page.locator("#listed").text_content() == f"{runs // 10} of {runs} runs"


def test_names_are_text_and_nothing_is_executed(visit: Open, tmp_path: Path) -> None:
    folder = tmp_path / "a 'quoted' \"study\" <b> & co"
    for seed in range(2):
        write_handmade_run(folder, handmade_config(tmp_path, seed=seed), columns={"placement": HOSTILE})
        write_handmade_run(folder, handmade_config(tmp_path, seed=seed))
    page = visit(report([folder]), 400)
    assert page.title() == folder.name
    assert page.locator("img").count() == 0
    page.locator(".cell").last.click()
    drawn(page)
    assert "<img src=x onerror=alert(1)>" in (page.locator("#legend").text_content() or "")
    assert page.evaluate("() => document.documentElement.scrollWidth") <= 400


def test_only_failed_runs(visit: Open, tmp_path: Path) -> None:
    for seed in range(2):
        write_handmade_run(tmp_path / "s", handmade_config(tmp_path, seed=seed), "failed")
    page = visit(report([tmp_path / "s"]))
    assert page.locator("#runs tbody tr").count() == 2
    assert "2 crashed" in (page.locator(".cell").text_content() or "")


@pytest.mark.slow
def test_the_picture_of_the_docs_is_of_the_page(visit: Open, tmp_path: Path) -> None:
    """Draws docs/report.png: post-norm with and without warmup at the rate that it cannot bear."""
    page = visit(report([RESULTS / "warmup"], out=tmp_path / "page.html"), 1100)
    choose(page, "post-norm, lr 3e-3, no warmup")
    page.select_option("#other", str(cell_of(page, "post-norm, lr 3e-3, warmup 100")))
    page.locator("#step").fill("30")
    page.evaluate("() => document.querySelectorAll('details details').forEach((one) => { one.open = false; })")
    drawn(page)
    shot = page.screenshot(clip={"x": 0, "y": 0, "width": 1100, "height": 1420}, full_page=True)
    with Image.open(io.BytesIO(shot)) as image:
        image.convert("RGB").quantize(128, dither=Image.Dither.NONE).save(PICTURE, optimize=True)
    assert PICTURE.stat().st_size <= 300_000


# ---- clicks -------------------------------------------------------------------------------------------


def test_a_click_on_a_cell_shows_its_runs(study: Path, path: Path, visit: Open) -> None:
    page = visit(path)
    where = {"placement": "pre", "n_layers": "4", "peak_lr": "3e-3", "warmup_steps": "20"}
    tables = load(study, where=where)
    choose(page, "pre-norm, 4 layers, lr 3e-3, warmup 20")
    finals = sorted({row["value"] for row in rows(page, "loss", "val") if row["step"] == 60})
    assert finals == sorted({float(f"{value:.3g}") for value in tables.runs["final_val_loss"]})
    page.locator("#step").fill("24")
    step = int(page.locator("#at").text_content() or "")
    at = tables.modules[(tables.modules["module"] == "mlp_out") & (tables.modules["step"] == step)]
    shown = rows(page, "profile", "profile")
    for layer, part in at.groupby("layer"):
        seeds = sorted(row["value"] for row in shown if row["x"] == layer and row["run"] != "mean")
        assert seeds == sorted(float(f"{value:.3g}") for value in part["grad_norm"])
        (mean,) = (row["value"] for row in shown if row["x"] == layer and row["run"] == "mean")
        assert mean == pytest.approx(math.exp(np.log(seeds).mean()))
        (mapped,) = (
            row["value"] for row in rows(page, "map-chart", "map") if (row["layer"], row["step"]) == (layer, step)
        )
        assert mapped == mean
    path_at = tables.residual[tables.residual["step"] == step]
    shown = [row for row in rows(page, "residual", "residual") if row["run"] != "mean"]
    assert sorted((row["x"], row["value"]) for row in shown) == sorted(
        (layer, float(f"{value:.3g}")) for layer, value in zip(path_at["layer"], path_at["grad_norm"], strict=True)
    )
    assert str(step) in (page.locator("#profile-caption").text_content() or "")
    assert page.locator("#profile").get_attribute("aria-label") != ""


def test_module_quantity_and_scale_are_chosen(study: Path, path: Path, visit: Open) -> None:
    page = visit(path)
    choose(page, "pre-norm, 2 layers, lr 1e-3, no warmup")
    page.select_option("#module", "attn_in")
    page.select_option("#quantity", "update_ratio")
    tables = load(study, where={"placement": "pre", "n_layers": "2", "peak_lr": "1e-3", "warmup_steps": "0"})
    at = tables.modules[(tables.modules["module"] == "attn_in") & (tables.modules["step"] == 0)]
    shown = [row["value"] for row in rows(page, "profile", "profile") if row["run"] != "mean"]
    assert sorted(shown) == sorted(float(f"{value:.3g}") for value in at["update_ratio"])
    page.select_option("#scale", "linear")
    drawn(page)
    assert page.evaluate("() => window.normstudy.views.profile.view.scale('y').type") == "linear"
    assert sorted(row["value"] for row in rows(page, "profile", "profile") if row["run"] != "mean") == sorted(shown)


def test_a_second_cell_is_paired_by_seed(study: Path, path: Path, visit: Open) -> None:
    page = visit(path)
    choose(page, "pre-norm, 4 layers, lr 1e-3, no warmup")
    page.select_option("#other", str(cell_of(page, "post-norm, 4 layers, lr 1e-3, no warmup")))
    drawn(page)
    runs = load(study, where={"n_layers": "4", "peak_lr": "1e-3", "warmup_steps": "0"}).runs.sort_values("seed")
    loss = {name: part["final_val_loss"].to_numpy() for name, part in runs.groupby("placement")}
    mean, low, high = paired_t_interval(loss["post"] - loss["pre"])
    caption = page.locator("#pairs caption").text_content() or ""
    assert f"{mean:.3f} [{low:.3f}, {high:.3f}] nats" in caption
    cells = page.locator("#pairs td").all_text_contents()
    assert cells[3::4] == [f"{one:.3f}" for one in loss["post"] - loss["pre"]]
    assert page.locator("#map-b svg").count() == 1
    assert len({row["color"] for row in rows(page, "loss", "train")}) == 2
    page.select_option("#other", "")
    drawn(page)
    assert page.locator("#pairs td").count() == 0
    assert not page.locator("#map-b").is_visible()


def test_a_pair_with_a_failed_run_has_no_difference(path: Path, visit: Open) -> None:
    page = visit(path)
    choose(page, "pre-norm, 4 layers, lr 3e-3, no warmup")
    page.select_option("#other", str(cell_of(page, "post-norm, 4 layers, lr 3e-3, no warmup")))
    drawn(page)
    assert page.locator("#pairs td").all_text_contents()[3::4] == ["", "", ""]
    assert "No pair of 3" in (page.locator("#pairs caption").text_content() or "")


# ---- the table of runs --------------------------------------------------------------------------------


def test_the_table_filters_sorts_and_copies(path: Path, visit: Open) -> None:
    page = visit(path)
    page.fill("#filter", "post 0.003")
    assert page.locator("#listed").text_content() == "12 of 48 runs"
    page.select_option("#state", "stuck")
    assert page.locator("#listed").text_content() == "1 of 48 runs"
    page.select_option("#state", "")
    page.fill("#filter", "")
    page.get_by_role("button", name="final loss").click()
    shown = page.locator("#runs tbody tr td:nth-child(7)").all_text_contents()
    losses = [float(text) for text in shown if text]
    assert losses == sorted(losses)
    assert shown[-2:] == ["", ""]  # a diverged and a crashed run have none
    page.get_by_role("button", name="final loss").click()
    assert page.locator("#runs th[aria-sort=descending]").text_content() == "final loss"
    page.locator("#runs .copy").first.click()
    command = page.locator("#runs code").first.text_content()
    assert page.evaluate("() => navigator.clipboard.readText()") == command
    assert str(command).startswith("normstudy run study=again")


def test_without_a_clipboard_the_command_is_copied_too(path: Path, visit: Open) -> None:
    """As in a notebook, whose frame has no secure context."""
    page = visit(path)
    page.evaluate("() => Object.defineProperty(navigator, 'clipboard', {value: undefined})")
    page.evaluate("() => document.addEventListener('copy', () => { window.copied = String(document.getSelection()) || "
                  "document.activeElement.value; })")  # fmt: skip
    page.locator("#runs .copy").nth(1).click()
    page.wait_for_function("() => window.copied !== undefined")
    assert page.evaluate("() => window.copied") == page.locator("#runs code").nth(1).text_content()


# ---- access -------------------------------------------------------------------------------------------


def test_the_keyboard_reaches_every_control(path: Path, visit: Open) -> None:
    page = visit(path)
    page.locator("#outcomes").locator(".cell").first.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    drawn(page)
    chosen = page.locator(".cell[aria-pressed=true]")
    assert chosen.count() == 1
    assert chosen.get_attribute("data-cell") == str(page.evaluate("() => window.normstudy.state.cell"))
    assert page.evaluate("() => window.normstudy.state.cell") != 0
    reached = set()
    for _ in range(12):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("() => document.activeElement.id"))
    assert {"cell", "other", "module", "quantity", "scale", "step"} <= reached
    assert page.locator(".cell[tabindex='0']").count() == 1  # one stop for the whole map


def test_axe_finds_no_violation(path: Path, visit: Open) -> None:
    from axe_playwright_python.sync_playwright import Axe

    for width in (400, 1200):
        page = visit(path, width)
        page.evaluate("() => document.querySelectorAll('details').forEach((one) => { one.open = true; })")
        page.select_option("#other", "1")
        drawn(page)
        options = {"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "best-practice"]}
        found = Axe().run(page, options=options)
        assert found.response["violations"] == [], found.generate_report()
        assert page.evaluate("() => document.documentElement.scrollWidth") <= width


def test_the_text_of_charts_has_contrast(path: Path, visit: Open) -> None:
    """axe does not judge text in an SVG: 4.5 to 1 against the page's white."""
    page = visit(path)
    colors = page.evaluate(
        "() => [...document.querySelectorAll('.chart text')].map((one) => getComputedStyle(one).fill)"
    )
    assert len(colors) > 20
    for color in set(colors):
        assert contrast_with_white(color) >= 4.5, color


def contrast_with_white(color: str) -> float:
    parts = [float(part) / 255 for part in color.removeprefix("rgb(").removesuffix(")").split(",")]
    linear = [part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 1.05 / (np.dot(linear, [0.2126, 0.7152, 0.0722]) + 0.05)


def test_it_prints_everything(path: Path, visit: Open) -> None:
    page = visit(path)
    page.emulate_media(media="print")
    assert not page.locator(".controls").first.is_visible()
    assert page.locator("#runs tbody tr").last.is_visible()
    assert len(page.pdf()) > 20_000
    assert page.locator("details:not([open])").count() == 0


def test_without_javascript_sentences_tables_and_pictures_remain(path: Path, visit: Open) -> None:
    page = visit(path, javascript=False)
    assert page.locator(".answers li").first.is_visible()
    assert page.locator("#runs tbody tr").count() == 48
    pictures = page.locator("noscript img, img")
    assert pictures.count() == 2
    assert all(pictures.nth(i).get_attribute("alt") for i in range(2))
    assert not page.locator("#cell").is_visible()
