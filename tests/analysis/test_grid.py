"""Printed values, numbers and tables, compared with literal text."""

from __future__ import annotations

import math

import pytest

from normstudy.analysis.grid import (
    count_text,
    interval_text,
    markdown_table,
    plain_table,
    three_digits,
    typed_number,
    value_text,
)


def test_a_value_reads_as_in_yaml() -> None:
    values = (None, True, 6, 0.003, 1e-5, 1.0, "pre", 20_000_000)
    assert [value_text(v) for v in values] == ["null", "true", "6", "0.003", "1e-05", "1", "pre", "20000000"]


def test_a_value_reads_as_people_type_it() -> None:
    values = [3e-3, 1e-2, 0.98, 100, 1e-4, 1.0, None, True, "rmsnorm", 20_000]
    assert [value_text(v, typed_number) for v in values] == [
        "3e-3", "1e-2", "0.98", "100", "1e-4", "1", "null", "true", "rmsnorm", "20000",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.02134, "0.0213"), (1.0501, "1.05"), (98.24, "98.2"), (0.6, "0.6"), (999.4, "999"), (999.5, "1000"),
     (1530.4, "1530"), (123456.0, "123456"), (-0.5, "-0.5"), (3.0, "3"), (4.06e-6, "4.06e-06")],
)  # fmt: skip
def test_three_digits_drop_none_before_the_point(value: float, text: str) -> None:
    assert three_digits(value) == text
    assert three_digits(12_345.6, ",") == "12,346"


@pytest.mark.parametrize(
    ("numbers", "text"),
    [((-0.5, -1.0, 0.0), "-0.50 [-1.00, +0.00]"), ((0.5, math.nan, math.nan), "+0.50"), ((math.nan,) * 3, "")],
)
def test_an_interval_is_printed_where_there_is_one(numbers: tuple[float, float, float], text: str) -> None:
    assert interval_text(*numbers, "+.2f") == text


def test_counts() -> None:
    assert [count_text(n, "run") for n in (0, 1, 1200)] == ["0 runs", "1 run", "1,200 runs"]


HEADER, ROWS = ["name", "n"], [["a|b", "1"], ["two\nlines", "12"], ["", ""]]


def test_a_plain_table_aligns_its_columns() -> None:
    assert plain_table(HEADER, ROWS, {1}) == ["name    n", "a|b     1", "two    12", "lines", ""]
    assert plain_table(HEADER, []) == ["name  n"]


def test_a_markdown_table_escapes_bars() -> None:
    assert markdown_table(HEADER, ROWS[:1], {1}) == ["| name | n |", "| --- | ---: |", r"| a\|b | 1 |"]
    assert markdown_table(HEADER, [], {1}, compact=True) == ["| name | n |", "|---|---:|"]
