"""Print the status of a study for `normstudy status`, once or repeatedly."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from normstudy.analysis.grid import count_text, three_digits
from normstudy.analysis.likely_stuck import text_of
from normstudy.analysis.outcomes import explained
from normstudy.config import ExecutionConfig
from normstudy.errors import printable
from normstudy.slurm import arrays
from normstudy.study import records
from normstudy.upkeep.positions import Group
from normstudy.upkeep.status import MOST_LINES, Looker, Status
from normstudy.workers.progress import duration

MOST_REASON = 200  # maximum characters shown of a traceback's last line


def watch(study: Path, every: float) -> None:
    """Print the status of a study every `every` seconds, until nothing is left to watch."""
    looker, redraws, back, drawn = Looker(study), sys.stdout.isatty(), "", 0
    while True:
        status = looker.look()
        if status.over and status.jobs is not None and not status.jobs.surely_over:
            time.sleep(arrays.AGAIN_SECONDS)
            continue
        lines = render(status).splitlines()
        if redraws:
            width, height = shutil.get_terminal_size()
            if not status.over:  # crop the text, because lines that wrap or leave the screen cannot be erased
                lines = [line[: width - 1] for line in lines[: height - 1]]
            back, drawn = f"\x1b[{drawn}A\r\x1b[J" if drawn else "", len(lines)
        elif not status.over:
            lines.append("")
        text = back + "".join(f"{line}\n" for line in lines)
        print(text, end="", flush=True)  # a single print, which Ctrl-C does not split
        if status.over:
            return
        time.sleep(every)


def render(status: Status) -> str:
    """Format a study's status as lines of text."""
    s = status
    counts = {
        "finished": s.finished, "running": s.running, "interrupted": s.interrupted, "failed": s.failed,
        "not begun": s.not_begun,
    }  # fmt: skip
    text = ", ".join(f"{n:,} {what}" for what, n in counts.items() if n) or "none planned yet"
    text = f"all {s.planned:,} finished" if s.planned and s.finished == s.planned else text
    lines = [f"{s.study}: {count_text(s.planned, 'run')}, {text}{', sealed' if s.sealed else ''}"]
    if s.planned:
        of = f" of {s.steps_planned:,}, {100 * s.steps_done // s.steps_planned} %" if s.steps_planned else ""
        lines.append(f"run-steps: {s.steps_done:,}{of}")
    if s.rate:
        left = f", about {duration(s.left)} left" if s.left else ""
        lines[-1] += f", about {three_digits(s.rate, ',')} per second{left}"
    if s.outcomes:
        lines.append("outcomes: " + " ".join(f"{n:,} {outcome}" for outcome, n in s.outcomes.items()))
        lines += explained(s.outcomes)
    if s.jobs:
        lines.append(_of_jobs(s))
    if s.holder:
        ago = f", last sign of training {duration(s.silent)} ago" if s.silent is not None and not s.verified else ""
        lines.append(f"held by {s.holder}{ago}")
    lines += ["running:", *_groups(s.running_at)] if s.running else []
    lines += [f"  {text_of(s.likely_stuck)}"] if s.likely_stuck else []
    lines += ["interrupted, saved at:", *_groups(s.saved_at)] if s.interrupted else []
    again = f": {'; '.join(s.commands)}" if s.commands else ""
    if not s.holder and not (s.jobs and not s.jobs.over) and s.interrupted + s.not_begun:
        lines.append(f"no process is training the remaining runs; rerun the same command to resume{again}")
    return "\n".join(map(printable, (*lines, *_failures(s, again))))


def _of_jobs(s: Status) -> str:
    assert s.jobs is not None
    array, counts = s.jobs.array, s.jobs.counts
    if counts is None:
        return f"{array}, submitted on {array.host} at {array.since}: no answer from Slurm ({s.jobs.why})"
    return f"{array}: {counts}" + (f"; logs: {s.study}/{arrays.FOLDER}" if not counts.alive else "")


def _groups(groups: tuple[Group, ...]) -> Iterator[str]:
    for group in groups[:MOST_LINES]:
        more = f" and {group.runs - 1:,} more" if group.runs > 1 else ""
        yield f"  step {group.step:,} of {group.n_steps:,}: {group.run_id}{more}"
    if rest := sum(group.runs for group in groups[MOST_LINES:]):
        yield f"  and {rest:,} more"


def _failures(s: Status, again: str) -> Iterator[str]:
    if not s.failures:
        return
    yield "failed:"
    for one in s.failures:
        yield f"  {one.run_id}, tried {count_text(one.tries, 'time')}: {one.reason[:MOST_REASON]}"
    if rest := s.failed - len(s.failures):
        yield f"  and {rest:,} more"
    most, limit = max(one.tries for one in s.failures), ExecutionConfig().max_tries
    more = f"; if a run has failed {limit} times, also set execution.max_tries={most + 1}" if most >= limit else ""
    logs = f"the tracebacks are in {s.study}/{records.LOGS}"
    yield f"{logs}. To retry these runs, fix the cause, then rerun the same command{again}{more}"
