"""Write offline runs with wandb: the program `python wandb_child.py FOLDER` reads one line of JSON per run.

On failure, it prints one line: the errno (0 if the error has none), a space, and the error message.
"""

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

BLOCK = 32 * 1024  # bytes in a LevelDB block
HEAD = 7  # bytes in the file's header, and in each chunk's header
FULL, FIRST, MIDDLE, LAST = 1, 2, 3, 4  # kinds of chunks: a complete record, or the first, a middle or the last part


def main(folder: Path) -> None:
    """Read runs from stdin, one JSON text per line, and write them until the line `null`."""
    import wandb

    settings = wandb.Settings(
        console="off", silent=True, symlink=False, root_dir=str(folder), program="normstudy export", disable_git=True,
        disable_code=True, save_code=False, x_save_requirements=False,
        # Do not record the host's name, the user's name, the machine's hardware, or the machine's load.
        host="normstudy", username="", x_disable_meta=True, x_disable_stats=True, x_disable_machine_info=True,
    )  # fmt: skip
    made: dict[Path, int] = {}  # a run's file -> the number of steps that it must contain
    while (sent := json.loads(sys.stdin.buffer.readline())) is not None:
        run = wandb.init(mode="offline", dir=str(folder), settings=settings, **sent["init"])
        place = Path(run.dir).parent
        for step, values in sent["history"]:
            run.log(values, step=step)
        run.summary.update(sent["summary"])
        run.finish(exit_code=sent["exit_code"])
        made[place / f"run-{run.id}.wandb"] = len(sent["history"])
    wandb.teardown()  # waits until all records are written
    for path, n_history in made.items():
        check(path, n_history)
        for leftover in set(path.parent.iterdir()) - {path}:  # wandb's logs and empty folders
            shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()


def check(path: Path, n_history: int) -> None:
    """Raise an OSError if a run's file lacks steps or its end: on a full disk, wandb drops records without an error."""
    from wandb.proto.wandb_internal_pb2 import Record

    kinds = [Record.FromString(data).WhichOneof("record_type") for data in records(path.read_bytes())]
    if kinds.count("history") != n_history or kinds[-1:] != ["exit"]:
        log = path.parent / "logs" / "debug-internal.log"
        said = log.read_text(errors="replace") if log.exists() else ""
        others = (errno.EFBIG, errno.EDQUOT, errno.EROFS, errno.EIO)
        # If wandb's log gives no reason, assume that the disk is full: a full disk may have cut off the log.
        number = next((n for n in others if os.strerror(n).lower() in said), errno.ENOSPC)
        raise OSError(number, os.strerror(number))


def records(data: bytes) -> Iterator[bytes]:
    """Yield the records of a wandb file, which is a LevelDB log, up to the first damaged record."""
    at, record = HEAD, b""
    while at + HEAD <= len(data):
        left = BLOCK - at % BLOCK
        if left < HEAD:
            at += left
            continue
        checksum, length, kind = struct.unpack("<IHB", data[at : at + HEAD])
        chunk = data[at + HEAD : at + HEAD + length]
        if zlib.crc32(bytes([kind]) + chunk) != checksum:
            return
        at += HEAD + length
        record = chunk if kind in (FULL, FIRST) else record + chunk
        if kind in (FULL, LAST):
            yield record


if __name__ == "__main__":
    output = ""
    # Use the system's temporary folder, because the path of wandb's socket must be short.
    with tempfile.TemporaryDirectory(prefix="normstudy-", ignore_cleanup_errors=True) as scratch:
        try:
            # Set these before importing wandb. They keep wandb offline, and move its caches into the folder `scratch`.
            os.environ |= {"WANDB_MODE": "offline", "WANDB_ERROR_REPORTING": "false", "WANDB_SILENT": "true"}
            os.environ |= {f"WANDB_{kind}_DIR": scratch for kind in ("CACHE", "CONFIG", "DATA", "ARTIFACT")}
            os.environ["TMPDIR"] = tempfile.tempdir = scratch
            main(Path(sys.argv[1]))
        except BaseException as error:
            number = error.errno if isinstance(error, OSError) and error.errno else 0
            output = f"{number} {type(error).__name__}: {' '.join(str(error).split())}"
    if output:
        with contextlib.suppress(OSError):  # the parent process may have ended
            print(output, end="", flush=True)
        os._exit(1)  # a normal exit would let wandb try to finish its run
