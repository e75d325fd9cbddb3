"""What `normstudy status` prints, once or again and again."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from normstudy.config import ExecutionConfig
from normstudy.slurm import arrays
from normstudy.study import records
from normstudy.upkeep.marks import Place
from normstudy.upkeep.status import MOST_LINES, Looker, Status
from normstudy.workers.progress import duration

MOST_REASON = 200  # characters of a line of a traceback


def watch(study: Path, every: float) -> None:
    """Print how far a study is every `every` seconds, until every planned run is finished or failed."""
    looker, redraws, back, drawn = Looker(study), sys.stdout.isatty(), "", 0
    while True:
        status = looker.look()
        if status.over and status.jobs is not None and not status.jobs.surely_over:
            time.sleep(arrays.AGAIN_SECONDS)
            continue
        lines = render(status).splitlines()
        if redraws:
            width, height = shutil.get_terminal_size()
            if not status.over:  # a line that wraps, or one too many, would stay at the next look
                lines = [line[: width - 1] for line in lines[: height - 1]]
            back, drawn = f"\x1b[{drawn}A\r\x1b[J" if drawn else "", len(lines)
        elif not status.over:
            lines.append("")
        text = back + "".join(f"{line}\n" for line in lines)
        print(text, end="", flush=True)  # one write, so that Ctrl-C splits none
        if status.over:
            return
        time.sleep(every)


def render(status: Status) -> str:
    """The lines that tell how far a study is."""
    s = status
    counts = {
        "finished": s.finished, "running": s.running, "interrupted": s.interrupted, "failed": s.failed,
        "not begun": s.not_begun,
    }  # fmt: skip
    told = ", ".join(f"{n:,} {what}" for what, n in counts.items() if n) or "none planned yet"
    told = f"all {s.planned:,} finished" if s.planned and s.finished == s.planned else told
    lines = [f"{s.study}: {_counted(s.planned, 'run')}, {told}{', sealed' if s.sealed else ''}"]
    if s.planned:
        of = f" of {s.steps_planned:,}, {100 * s.steps_done // s.steps_planned} %" if s.steps_planned else ""
        lines.append(f"run-steps: {s.steps_done:,}{of}")
    if s.rate:
        pace = f"{s.rate:,.0f}" if s.rate >= 100 else f"{s.rate:.3g}"
        lines[-1] += f", about {pace} per second" + (f", about {duration(s.left)} left" if s.left else "")
    if s.outcomes:
        lines.append("outcomes: " + " ".join(f"{n:,} {outcome}" for outcome, n in s.outcomes.items()))
    if s.jobs:
        lines.append(_of_jobs(s))
    if s.holder:
        ago = f", its last file {duration(s.silent)} ago" if s.silent is not None and not s.verified else ""
        lines.append(f"held by {s.holder}{ago}")
    lines += ["running:", *_places(s.running_at)] if s.running else []
    lines += ["interrupted, saved at:", *_places(s.saved_at)] if s.interrupted else []
    if not s.holder and not (s.jobs and not s.jobs.over) and s.interrupted + s.not_begun:
        lines.append("nobody trains them now; the same command goes on" + (f": {s.command}" if s.command else ""))
    return "\n".join([*lines, *_failures(s)])


def _of_jobs(s: Status) -> str:
    assert s.jobs is not None
    array, counts = s.jobs.array, s.jobs.counts
    if counts is None:
        return f"{array}, submitted on {array.host} at {array.since}: cannot be asked from here ({s.jobs.why})"
    return f"{array}: {counts}" + (f"; logs: {s.study}/{arrays.FOLDER}" if not counts.alive else "")


def _counted(n: int, what: str) -> str:
    return f"{n:,} {what}{'' if n == 1 else 's'}"


def _places(places: tuple[Place, ...]) -> Iterator[str]:
    for place in places[:MOST_LINES]:
        more = f" and {place.runs - 1:,} more" if place.runs > 1 else ""
        yield f"  step {place.step:,} of {place.n_steps:,}: {place.run_id}{more}"
    if rest := sum(place.runs for place in places[MOST_LINES:]):
        yield f"  and {rest:,} more"


def _failures(s: Status) -> Iterator[str]:
    if not s.failures:
        return
    yield "failed:"
    for one in s.failures:
        yield f"  {one.run_id}, tried {_counted(one.tries, 'time')}: {one.reason[:MOST_REASON]}"
    if rest := s.failed - len(s.failures):
        yield f"  and {rest:,} more"
    most, limit = max(one.tries for one in s.failures), ExecutionConfig().max_tries
    more = f", with execution.max_tries={most + 1} for those that were tried {limit} times" if most >= limit else ""
    yield f"tracebacks: {s.study}/{records.LOGS}; mend the cause, and the same command tries them again{more}"
