"""A thousand tiny runs while workers are killed at random, and what it costs the parent: memory, file handles.

    python tests/faults/soak.py [--seconds 600] [--seed 7] [--out results/robustness]

Workers are killed for so many seconds, then the sweep is let go on to its end. Writes soak.parquet, a row a look, and
soak.png into --out. Exit code 0: the sweep ended complete, every file sound, memory and file handles flat.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from processes import SWEEP, start, workers_of

from normstudy.study import tables
from normstudy.upkeep.check import check_study

RUNS = 1000
WORDS = [
    *SWEEP,
    f"seed=range(0,{RUNS})",
    "schedule.n_steps=3600",
    "execution.checkpoint_seconds=1",
    "execution.max_tries=20",
]
LOOK_SECONDS = 0.5
KILLS_APART = 6.0  # seconds, on average
FLAT_MB, FLAT_HANDLES = 20.0, 8  # the most that the last third may be above the first


def resident_mb(pid: int) -> float:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def soak(folder: Path, seconds: float, seed: int) -> tuple[pd.DataFrame, int, str]:
    """Samples of a sweep in `folder`, its exit code and what it said."""
    rng = random.Random(seed)
    errors = folder / "stderr.txt"
    with open(errors, "w") as err:
        running = start(WORDS, folder, stderr=err)
        began = time.monotonic()
        next_kill, kills, samples = rng.expovariate(1 / KILLS_APART), 0, []
        while running.poll() is None:
            now = time.monotonic() - began
            try:
                handles = len(os.listdir(f"/proc/{running.pid}/fd"))
                samples.append((now, resident_mb(running.pid), handles, kills))
            except (FileNotFoundError, ProcessLookupError, IndexError, ValueError):
                break  # it has ended just now
            if next_kill < now < seconds:
                if victims := workers_of(running.pid):
                    os.kill(rng.choice(victims), signal.SIGKILL)
                    kills += 1
                next_kill = now + rng.expovariate(1 / KILLS_APART)
            time.sleep(LOOK_SECONDS)
        running.communicate()
    frame = pd.DataFrame(samples, columns=["seconds", "parent_mb", "parent_handles", "kills"])
    return frame, int(running.returncode), errors.read_text()


def growth(values: pd.Series) -> float:
    """The median of the last third over that of the first, without the start."""
    first, _, last = np.array_split(values.to_numpy(float)[len(values) // 20 :], 3)
    return float(np.median(last) - np.median(first))


def draw(frame: pd.DataFrame, path: Path) -> None:
    figure = Figure(figsize=(6, 4), layout="constrained")
    for ax, (column, label) in zip(
        figure.subplots(3, 1, sharex=True).ravel(),
        [("parent_mb", "parent, MB"), ("parent_handles", "file handles"), ("kills", "workers killed")],
        strict=True,
    ):
        ax.plot(frame["seconds"], frame[column], lw=1)
        ax.set_ylabel(label)
        ax.set_ylim(0)
    ax.set_xlabel("seconds")
    figure.suptitle(
        f"A sweep of {RUNS:,} runs with {frame['kills'].max()} killed workers:\n"
        "the parent process does not grow until it draws figures",
        fontsize="medium",
    )
    figure.savefig(path, dpi=150, metadata={"Software": None})


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--out", type=Path, default=Path("results/robustness"))
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        frame, code, said = soak(Path(folder), args.seconds, args.seed)
        study = Path(folder) / "results" / "long"
        statuses = list(tables.statuses(study).values())
        report = check_study(study)
    args.out.mkdir(parents=True, exist_ok=True)
    frame = frame.assign(seed=args.seed)
    frame.to_parquet(args.out / "soak.parquet", index=False)
    draw(frame, args.out / "soak.png")
    mb, handles = growth(frame["parent_mb"]), growth(frame["parent_handles"])
    print(
        f"seed {args.seed}: {frame['kills'].max()} workers killed in {frame['seconds'].max():.0f} s, exit code {code}, "
        f"{statuses.count('done')} of {len(statuses)} runs done; parent {frame['parent_mb'].median():.0f} MB "
        f"({mb:+.1f}), {frame['parent_handles'].median():.0f} handles ({handles:+.0f})\n{report.text}"
    )
    good = code == 0 and statuses == ["done"] * RUNS and report.sound and "starts again from step 0" not in said
    return 0 if good and mb < FLAT_MB and handles < FLAT_HANDLES else 1


if __name__ == "__main__":
    sys.exit(main())
