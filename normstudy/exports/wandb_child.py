"""The process that makes offline runs with wandb: `python wandb_child.py FOLDER`, a line of JSON a run on its input.

At its end it has written nothing, or one line about what went wrong: an errno or 0, a space, a text.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import struct
import sys
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path

BLOCK = 32 * 1024  # bytes
HEAD = 7  # bytes, of the file and of each piece of a record
FULL, FIRST, MIDDLE, LAST = 1, 2, 3, 4  # kinds of pieces


def main(folder: Path) -> None:
    """Make a run of each message until None comes."""
    import wandb

    settings = wandb.Settings(
        console="off",
        silent=True,
        symlink=False,
        root_dir=str(folder),
        program="normstudy export",
        disable_git=True,
        disable_code=True,
        save_code=False,
        x_save_requirements=False,
        # Nothing of the machine: no host name, user, hardware, or use of it.
        host="normstudy",
        username="",
        x_disable_meta=True,
        x_disable_stats=True,
        x_disable_machine_info=True,
    )
    made: dict[Path, int] = {}  # file of a run -> steps that it must have
    while (message := json.loads(sys.stdin.buffer.readline())) is not None:
        run_id, project, tag, exit_code, config, summary, history = message
        run = wandb.init(
            mode="offline", dir=str(folder), project=project, id=run_id, name=run_id, tags=[tag], config=config,
            settings=settings,
        )  # fmt: skip
        place = Path(run.dir).parent
        for step, values in history:
            run.log(values, step=step)
        run.summary.update(summary)
        run.finish(exit_code=exit_code)
        made[place / f"run-{run_id}.wandb"] = len(history)
    wandb.teardown()  # before it, the last records of a run may still be on their way
    for path, n_history in made.items():
        check(path, n_history)
        for leftover in set(path.parent.iterdir()) - {path}:  # logs, empty folders
            shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()


def check(path: Path, n_history: int) -> None:
    """Raise an OSError where a run's file lacks a step or its end: wandb drops what a disk does not take, silently."""
    from wandb.proto.wandb_internal_pb2 import Record

    kinds = [Record.FromString(data).WhichOneof("record_type") for data in records(path.read_bytes())]
    if kinds.count("history") != n_history or kinds[-1:] != ["exit"]:
        log = path.parent / "logs" / "debug-internal.log"
        said = log.read_text(errors="replace") if log.exists() else ""
        others = (errno.EFBIG, errno.EDQUOT, errno.EROFS, errno.EIO)
        # Its log has the reason, if the disk took that; a full one is by far the likeliest.
        number = next((n for n in others if os.strerror(n).lower() in said), errno.ENOSPC)
        raise OSError(number, os.strerror(number))


def records(data: bytes) -> Iterator[bytes]:
    """The records of a run's file, a LevelDB log; it ends where a checksum is wrong or a record is not whole."""
    at, record = HEAD, b""
    while at + HEAD <= len(data):
        left = BLOCK - at % BLOCK
        if left < HEAD:
            at += left
            continue
        checksum, length, kind = struct.unpack("<IHB", data[at : at + HEAD])
        piece = data[at + HEAD : at + HEAD + length]
        if zlib.crc32(bytes([kind]) + piece) != checksum:
            return
        at += HEAD + length
        record = piece if kind in (FULL, FIRST) else record + piece
        if kind in (FULL, LAST):
            yield record


def _told(error: BaseException) -> str:
    number = error.errno if isinstance(error, OSError) and error.errno else 0
    return f"{number} {type(error).__name__}: {' '.join(str(error).split())}"


def set_up(scratch: str) -> None:
    """Keep wandb from the network, and what it writes beside its runs in one folder. Before it is imported."""
    os.environ |= {"WANDB_MODE": "offline", "WANDB_ERROR_REPORTING": "false", "WANDB_SILENT": "true"}
    os.environ |= {f"WANDB_{kind}_DIR": scratch for kind in ("CACHE", "CONFIG", "DATA", "ARTIFACT")}
    os.environ["TMPDIR"] = tempfile.tempdir = scratch


if __name__ == "__main__":
    told = ""
    # Not beside the export: the path of wandb's socket must be short.
    with tempfile.TemporaryDirectory(prefix="normstudy-", ignore_cleanup_errors=True) as scratch:
        try:
            set_up(scratch)
            main(Path(sys.argv[1]))
        except BaseException as error:
            told = _told(error)
    if told:
        with contextlib.suppress(OSError):  # nobody may be there any more
            sys.stdout.write(told)
            sys.stdout.flush()
        os._exit(1)  # wandb would still try to finish its run
