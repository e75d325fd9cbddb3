"""What the kernel says of the memory of processes."""

from __future__ import annotations

import contextlib
from pathlib import Path

Sizes = tuple[int, int]  # resident, and its largest so far, in kB


def of_process(pid: int) -> Sizes | None:
    """The memory of one process; None where it has just ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return None
    said = dict(line.split(":", 1) for line in lines)
    if "VmRSS" not in said:
        return None
    return int(said["VmRSS"].split()[0]), int(said["VmHWM"].split()[0])


def of_family(pid: int) -> dict[int, Sizes]:
    """pid -> memory of a process and of all that it and they have started."""
    sizes = of_process(pid)
    if sizes is None:
        return {}
    children: list[str] = []
    with contextlib.suppress(OSError):  # it has just ended, or one of its threads
        for task in Path(f"/proc/{pid}/task").iterdir():
            children += (task / "children").read_text().split()
    found = {pid: sizes}
    for child in children:
        found |= of_family(int(child))
    return found
