"""What Linux says of the processor."""

from __future__ import annotations

from pathlib import Path

INFO = Path("/proc/cpuinfo")


def cpu_info(field: str) -> str | None:
    """The value of the first line of that name: `model name`, `vendor_id`. None where there is no such line or file."""
    lines = INFO.read_text().splitlines() if INFO.exists() else []
    for line in lines:
        name, _, value = line.partition(":")
        if name.strip() == field:
            return value.strip()
    return None
