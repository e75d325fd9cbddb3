"""Export to TensorBoard: one folder per run. The folder has the run_id as its name, and contains one event file.

Event times are estimated (see ExportedRun.time). A study always gives the same events.
"""

from collections.abc import Iterator
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.plugins.hparams.summary_v2 import hparams_pb
from tensorboard.plugins.text.summary_v2 import text_pb
from tensorboard.summary.writer.record_writer import RecordWriter

from normstudy import config as cfg
from normstudy.analysis.grid import markdown_table
from normstudy.exports.source import DERIVED, ExportedRun, Source, runs_of

BUFFER = 1024 * 1024  # bytes buffered before each write


def write(source: Source, target: Path, scratch: Path) -> None:
    for run in runs_of(source, "tensorboard"):
        folder = target / run.row["run_id"]
        folder.mkdir(parents=True)
        # EventFileWriter would put the host's name and the process id into the file's name. If the disk is full, it
        # would print the error instead of raising it.
        begin = run.time(-1)
        with open(folder / f"events.out.tfevents.{begin:.0f}.normstudy", "wb", BUFFER) as file:
            writer = RecordWriter(file)
            for event in events(run, begin):
                writer.write(event.SerializeToString())


def events(run: ExportedRun, begin: float) -> Iterator[Event]:
    """Yield a run's events: the format's version, the row of `runs` as text, the config, and one event per step."""
    row = {name: value for name, value in run.row.items() if value is not None}
    asked = {name: row[name] for name in (*cfg.asked_types(), *DERIVED["runs"].names) if name in row}
    # Markdown shows a value between backquotes literally.
    cells = [(name, "`" + " ".join(str(value).split()).replace("`", "'") + "`") for name, value in row.items()]
    table = markdown_table(("column", "value"), cells, compact=True)
    yield Event(wall_time=begin, file_version="brain.Event:2")
    yield Event(wall_time=begin, summary=text_pb("run", "\n".join(table)))
    yield Event(wall_time=begin, summary=hparams_pb(asked, trial_id=row["run_id"], start_time_secs=begin))
    for step, scalars in run.steps.items():
        event = Event(wall_time=run.time(step), step=step)
        for tag, value in scalars.items():
            event.summary.value.add(tag=tag, simple_value=value)
        yield event
