"""What the kernel says of the memory of processes."""

from __future__ import annotations

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
    found = {} if sizes is None else {pid: sizes}
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            children = task.read_text().split()
        except OSError:  # that thread has just ended
            continue
        for child in children:
            found |= of_family(int(child))
    return found
