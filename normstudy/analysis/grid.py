"""Format values, numbers and tables for printing."""

import itertools
import math
from collections.abc import Callable, Collection, Mapping, Sequence

from normstudy.config import short_float
from normstudy.errors import short

Value = str | int | float | bool | None  # the value of a cell in a stored table
NORMS = {"pre": "pre-norm", "post": "post-norm"}  # names in titles; other placements keep the config's name
# Spreadsheets run text as a formula if the text begins with one of these characters (OWASP, CSV injection).
FORMULA = r"^([=+\-@\t\r\n\x00])"


def plain_number(value: float) -> str:
    """Format a number with up to twelve significant digits: 6, 0.003, 1e-05."""
    return str(value) if isinstance(value, int) else f"{value:.12g}"


def typed_number(value: float) -> str:
    """Format a number as people type it on a command line: 6, 0.98, 3e-3."""
    if value == int(value) and abs(value) < 1e6:
        return str(int(value))
    return f"{value:.6g}" if 0.1 <= abs(value) < 1e4 else short_float(value)


def three_digits(value: float, thousands: str = "") -> str:
    """Format a number with three digits, or from 1000 on as an integer: 0.0213, 1530. thousands: "," for 1,530."""
    return f"{value:{thousands}.0f}" if abs(value) >= 999.5 else f"{value:.3g}"


def value_text(value: Value, number: Callable[[float], str] = plain_number) -> str:
    """Format a value as in YAML: null, true, pre. If the value is a number, call the function `number` to format it."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    return number(value) if isinstance(value, int | float) else short(value)


def interval_text(mean: float, low: float, high: float, form: str) -> str:
    """Format a mean and its interval: `-0.542 [-0.568, -0.515]`. A NaN interval is left out. A NaN mean gives ""."""
    texts = ["" if math.isnan(value) else format(value, form) for value in (mean, low, high)]
    return f"{texts[0]} [{texts[1]}, {texts[2]}]" if texts[1] else texts[0]


def share_text(k: int, n: int, low: float, high: float) -> str:
    """Format a share of n runs and its interval: `3 of 5 [15, 95 %]`. n = 0 gives ""."""
    return f"{k} of {n} [{100 * low:.0f}, {100 * high:.0f} %]" if n else ""


def count_text(n: int, noun: str) -> str:
    """Format a count with its noun: `1 run`, `1,200 runs`."""
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


def phrase(column: str, text: str) -> str:
    """Format one value as words: `6 layers`, `lr 3e-3`, `no warmup`, `d_model=64`. text: what `value_text` returns."""
    if column == "placement":
        return NORMS.get(text, text)
    if column == "n_layers":
        return f"{text} layer{'' if text == '1' else 's'}"
    if column == "warmup_steps":
        return "no warmup" if text == "0" else f"warmup {text}"
    if column == "data_sha256":
        return f"text {text[:8]}"
    word = {"peak_lr": "lr", "seed": "seed", "step": "step", "data": "text"}.get(column)
    return f"{word} {text}" if word else f"{column}={text}"


def title(place: Mapping[str, Value], names: Mapping[str, str]) -> str:
    """Format values as words: `post-norm, 6 layers, lr 3e-3, no warmup`. names: long name -> short name."""
    texts = {column: value_text(value, typed_number) for column, value in place.items()}
    return ", ".join(phrase(column, names.get(text, text)) for column, text in texts.items())


def plain_table(header: Sequence[str], rows: Sequence[Sequence[str]], right: Collection[int] = ()) -> list[str]:
    """Return the lines of a text table, whose cells may have several lines. right: indices of right-aligned columns."""
    table = [[cell.split("\n") for cell in row] for row in (header, *rows)]
    widths = (max(len(line) for cell in column for line in cell) for column in zip(*table, strict=True))
    forms = [f"{'>' if i in right else '<'}{width}" for i, width in enumerate(widths)]
    lines = (parts for row in table for parts in itertools.zip_longest(*row, fillvalue=""))
    return ["  ".join(map(format, parts, forms)).rstrip() for parts in lines]


def markdown_table(
    header: Sequence[str], rows: Sequence[Sequence[str]], right: Collection[int] = (), *, compact: bool = False
) -> list[str]:
    """Return a Markdown table's lines. right: see `plain_table`. compact: whether to omit spaces in the second line."""
    rule = ["---:" if i in right else "---" for i in range(len(header))]
    escaped = [[cell.replace("|", r"\|") for cell in row] for row in rows]
    lines = [f"| {' | '.join(row)} |" for row in (header, rule, *escaped)]
    return [lines[0], lines[1].replace(" ", ""), *lines[2:]] if compact else lines
