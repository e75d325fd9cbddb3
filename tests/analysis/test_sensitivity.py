"""The learning-rate sensitivity of hand-made studies, whose losses and results are written out here."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy.stats
from handmade import handmade_config, write_handmade_run

from normstudy.analysis.sensitivity import HEAD, RESULTS, render, sensitivity_study
from normstudy.cli import main as cli
from normstudy.config import ConfigError
from normstudy.errors import MissingRows

RATES = (1e-3, 3e-3, 1e-2)
START = float(np.float32(5.71))  # the validation loss of every hand-made run at step 0
DIVERGED, CRASHED = math.inf, math.nan
LOWER, UPPER = "best at the grid's lower edge", "best at the grid's upper edge"

Losses = list[float | None]  # of one seed, at each of RATES; None: there is no such run


def write(root: Path, cells: dict[str, list[Losses]], windows: int = 64) -> Path:
    """Write a study from placement -> losses of each seed, and return its folder."""
    for placement, seeds in cells.items():
        for seed, losses in enumerate(seeds):
            for rate, loss in zip(RATES, losses, strict=False):
                config = handmade_config(root, placement=placement, peak_lr=rate, seed=seed)
                config.eval.windows = windows
                if loss is not None and math.isnan(loss):
                    write_handmade_run(root / "s", config, "failed")
                elif loss is not None and math.isinf(loss):
                    write_handmade_run(root / "s", config, "diverged")
                elif loss is not None:
                    write_handmade_run(root / "s", config, final_val_loss=loss)
    return root / "s"


def only(found: tuple[pd.DataFrame, list[str]]) -> dict[str, object]:
    """The one row of a table, where no cell was left out."""
    table, alone = found
    assert (len(table), alone) == (1, [])
    return {str(column): value for column, value in table.iloc[0].items()}


def test_the_table_is_the_one_computed_by_hand(tmp_path: Path) -> None:
    cells: dict[str, list[Losses]] = {
        "pre": [[2.0, 1.8, 2.5], [2.2, 1.9, 2.8]],  # means 2.1 and 2.3, less 1.8 and 1.9
        "post": [[2.0, 2.4], [2.1, 2.6]],  # means 2.2 and 2.35, less 2.0 and 2.1
    }
    table, alone = sensitivity_study(write(tmp_path, cells))
    assert alone == []
    assert list(table) == ["placement", *RESULTS]
    post, pre = table.to_dict("records")
    half = scipy.stats.t.ppf(0.975, 1) * 0.05  # of two values 0.1 apart
    wanted = [0.35, 0.35 - half, 0.35 + half]
    assert [pre[c] for c in ("sensitivity", "ci_low", "ci_high")] == pytest.approx(wanted)
    assert [pre[c] for c in ("rates", "lowest_lr", "highest_lr", "seeds", "left_out")] == [3, 1e-3, 1e-2, 2, 0]
    assert (pre["placement"], pre["best_lr"], pre["note"]) == ("pre", 3e-3, "")
    assert post["sensitivity"] == pytest.approx((0.2 + 0.25) / 2)
    assert [post[c] for c in ("placement", "rates", "highest_lr", "best_lr", "note")] == ["post", 2, 3e-3, 1e-3, LOWER]


@pytest.mark.parametrize("loss", [DIVERGED, 9.0], ids=["not finite", "above the start"])
def test_a_diverged_run_counts_with_its_loss_at_initialization(loss: float, tmp_path: Path) -> None:
    row = only(sensitivity_study(write(tmp_path, {"pre": [[2.1, 2.0, loss]]})))
    assert row["sensitivity"] == pytest.approx((2.1 + 2.0 + START) / 3 - 2.0)
    assert (row["rates"], row["seeds"], row["left_out"], row["note"]) == (3, 1, 0, "")
    assert math.isnan(float(str(row["ci_low"])))  # one seed has no interval


@pytest.mark.parametrize(
    ("losses", "best", "note"),
    [
        ([2.0, 2.1, 2.2], 1e-3, LOWER),
        ([2.1, 2.0, 2.2], 3e-3, ""),
        ([2.2, 2.1, 2.0], 1e-2, UPPER),
        ([DIVERGED, DIVERGED, DIVERGED], 1e-3, "no run ends below its loss at initialization"),
        ([2.0, 2.1, CRASHED], math.nan, "no seed has every rate"),
    ],
)
def test_an_optimum_at_the_edge_is_flagged(losses: Losses, best: float, note: str, tmp_path: Path) -> None:
    row = only(sensitivity_study(write(tmp_path, {"pre": [losses]})))
    assert row["best_lr"] == pytest.approx(best, nan_ok=True)
    assert row["note"] == note


def test_the_best_rate_is_that_of_the_mean_over_seeds(tmp_path: Path) -> None:
    """Each seed alone is best at an edge."""
    row = only(sensitivity_study(write(tmp_path, {"pre": [[2.0, 2.1, 2.8], [2.8, 2.1, 2.0]]})))
    assert (row["best_lr"], row["note"]) == (3e-3, "")
    assert row["sensitivity"] == pytest.approx(0.3)


@pytest.mark.parametrize("third", [None, CRASHED], ids=["no such run", "crashed"])
def test_a_seed_without_one_rate_is_left_out(third: float | None, tmp_path: Path) -> None:
    study = write(tmp_path, {"pre": [[2.0, 1.8, 2.5], [2.2, 1.9, 2.8], [9.0, 0.1, third]]})
    row = only(sensitivity_study(study))
    assert (row["rates"], row["seeds"], row["left_out"]) == (3, 2, 1)
    assert (row["sensitivity"], row["best_lr"]) == (pytest.approx(0.35), 3e-3)
    assert "| 2 1 left out |" in render(sensitivity_study(study)[0], "markdown")


def test_a_run_that_lacks_rows_is_a_missing_rate(tmp_path: Path) -> None:
    study = write(tmp_path, {"pre": [[2.0, 1.8, 2.5], [2.2, 1.9, 2.8]]})
    (lost,) = (study / "tables" / "steps").glob("*lr1e-2*-s1-*-000.parquet")
    lost.unlink()
    with pytest.warns(MissingRows, match="lacks 60 of 60 steps"):
        row = only(sensitivity_study(study))
    assert (row["seeds"], row["left_out"], row["sensitivity"]) == (1, 1, pytest.approx(0.3))


def test_a_seed_counts_once_with_the_most_windows(tmp_path: Path) -> None:
    write(tmp_path, {"pre": [[2.0, 1.8, 2.5]]}, windows=16)
    row = only(sensitivity_study(write(tmp_path, {"pre": [[2.1, 1.8, 2.7]]})))
    assert (row["seeds"], row["left_out"], row["sensitivity"]) == (1, 0, pytest.approx(0.4))


def test_an_offset_of_all_losses_changes_nothing(tmp_path: Path) -> None:
    one, other = (
        only(sensitivity_study(write(tmp_path / str(offset), {"pre": [[2.0 + offset, 1.8 + offset, 2.5 + offset]]})))
        for offset in (0, 1)
    )
    assert one["sensitivity"] == pytest.approx(other["sensitivity"])


def test_the_command_prints_each_format_and_names_a_cell_with_one_rate(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    study = write(tmp_path, {"pre": [[2.0, 1.8, 2.5], [2.2, 1.9, 2.8]], "post": [[2.0]], "peri": [[2.0, 1.9, CRASHED]]})
    for form in ("table", "markdown", "csv", "json"):
        assert cli.main(["sensitivity", str(study), "--format", form]) == 0
        out, err = capfd.readouterr()
        assert err == "placement=post is left out, because it has only one learning rate\n"
        if form == "json":
            assert [row["placement"] for row in json.loads(out)] == ["peri", "pre"]
            assert json.loads(out)[0]["best_lr"] is None
        elif form == "csv":
            assert out.splitlines()[0] == ",".join(["placement", *RESULTS])
            assert len(out.splitlines()) == 3
        else:
            assert " ".join(out.split()).startswith(HEAD)
            assert "0.350 [-0.285, 0.985]" in out
            assert "no seed has every rate" in out
    assert cli.main(["sensitivity", str(study), "--where", "placement=pre"]) == 0
    out, err = capfd.readouterr()
    assert err == ""
    assert "placement" not in out


def test_bad_requests_are_one_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    study = write(tmp_path, {"pre": [[2.0], [2.1]]})
    with pytest.raises(ConfigError, match=r"no runs of .* differ in peak_lr alone"):
        sensitivity_study(study)
    write_handmade_run(tmp_path / "none", handmade_config(tmp_path), "failed")
    for words, part in (
        ([str(study)], "differ in peak_lr alone"),
        ([str(tmp_path / "none")], "no finished run"),
        ([str(tmp_path)], "is not a study"),
        ([str(study), "--where", "placement=post"], "selects no run"),
        ([str(study), "--format", "xml"], "invalid choice"),
    ):
        assert cli.main(["sensitivity", *words]) == 2
        out, err = capfd.readouterr()
        assert out == ""
        assert err.startswith("error: ")
        assert part in err
        assert err.count("\n") == 1
