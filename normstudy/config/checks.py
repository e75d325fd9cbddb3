"""Check single values. Each function raises a ConfigError that states the value, the limit and what to do."""

import math
import re
import typing

from normstudy.errors import ConfigError, nearest

INT_MAX = 2**31 - 1  # the tables store integers as int32
STUDY_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.=+-]{0,79}")
# Names that no study may have: folders that normstudy uses in results/ or in a study, and Windows devices.
RESERVED = (
    "bench", "reproductions", "robustness", "scaling", "tables", "state", "sweeps", "figures", "export",
    "con", "prn", "aux", "nul",
    *(f"{device}{n}" for device in ("com", "lpt") for n in range(1, 10)),
)  # fmt: skip


def one_of(key: str, value: str, names: tuple[str, ...], aliases: typing.Mapping[str, str] | None = None) -> None:
    """Refuse a value that is not in `names`. aliases: other spelling -> name to suggest."""
    if value not in names:
        raise ConfigError(f"{key} {value!r} is not one of {', '.join(names)}.{nearest(value, names, aliases)}")


def at_least(key: str, value: int | None, low: int) -> None:
    """Refuse an integer below `low` or above INT_MAX. Null is accepted."""
    if value is not None and value < low:
        raise ConfigError(f"{key} {value} is below {low}: set it to at least {low}")
    if value is not None and value > INT_MAX:
        raise ConfigError(f"{key} {value} exceeds {INT_MAX}, the largest integer that the tables store: reduce it")


def finite(key: str, value: float | None, low: float, *, strict: bool, below: float = math.inf) -> None:
    """Refuse infinity, nan, and numbers outside [low, below). If strict, refuse `low` too. Null is accepted."""
    if value is not None and not (math.isfinite(value) and (value > low if strict else value >= low) and value < below):
        bound = f"{'above' if strict else 'of at least'} {low:g}"
        top = f" and below {below:g}" if below < math.inf else ""
        raise ConfigError(f"{key} {value} is out of range: set it to a finite number {bound}{top}")


def idle(key: str, value: object, default: object, because: str) -> None:
    """For a key that has no effect, refuse every value but `default`. because: the reason, and what to do."""
    if value != default:
        raise ConfigError(f"{key} {value} has no effect {because}, or leave out {key}")


def check_study_name(study: str) -> None:
    """Refuse a study name that is reserved, or that is not a plain folder name."""
    if not STUDY_PATTERN.fullmatch(study) or ".." in study or study.endswith("."):
        raise ConfigError(
            f"study {study!r} is not a valid study name: use 1 to 80 letters, digits and _ . + -, "
            "beginning with a letter or digit, without '..' and without a dot at the end"
        )
    if study.partition(".")[0].lower() in RESERVED:
        raise ConfigError(
            f"study {study!r} is a reserved name (a folder that normstudy uses, or a Windows device): choose another"
        )
