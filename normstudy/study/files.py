"""Write files atomically: write each file in state/, flush it to the disk (fsync), then move it to its final path.

A compaction replaces tables/ by a new folder in two renames. The next command completes an interrupted replacement.
"""

import contextlib
import errno
import fcntl
import os
import shutil
import socket
import tempfile
import threading
from collections.abc import Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from normstudy.errors import ConfigError, Damaged, StorageError, short
from normstudy.study.schema import SCHEMA_FILE

# Number of threads that fsync files. Time to flush 24 small files: 160 ms with one thread and 12 ms with four threads
# on busy cores; 6.7 ms with one thread and 4.5 ms with four threads on idle cores.
FSYNCS_AT_ONCE = 4
NO_FSYNC = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)  # raised by file systems without fsync
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)  # raised by file systems without locks
SWAPPING = "{0} has an interrupted compaction: to complete it, run normstudy compact {0}"
NEW_TABLES = "state/tables.new"  # folder where a compaction writes the new tables before the swap
OLD_TABLES = "state/tables.old"  # folder of the old tables during the swap
SCRATCH = ".normstudy-"  # part of the name of each folder for unfinished output
REMEDIES = {
    errno.ENOSPC: "free space on the disk", errno.EDQUOT: "free space in your quota", errno.EMFILE: "raise ulimit -n",
    errno.EFBIG: "raise ulimit -f", errno.EROFS: "mount the disk writable", errno.EACCES: "make the folder writable",
    errno.EIO: "check the disk",
}  # fmt: skip


def fsync(path: Path) -> None:
    """Flush a file's content or a folder's list of file names to the disk; do nothing on file systems without fsync."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno not in NO_FSYNC:
            raise
    finally:
        os.close(fd)


def _fsync_all(paths: Collection[Path]) -> None:
    """Fsync files or folders in parallel, so that the waits for the disk overlap."""
    with ThreadPoolExecutor(FSYNCS_AT_ONCE) as threads:
        try:
            list((threads.map if len(paths) > 1 else map)(fsync, paths))  # list() raises a thread's first error
        except RuntimeError:  # Python cannot start a thread while the interpreter shuts down
            list(map(fsync, paths))


def place(study_dir: Path, relative: str, data: bytes) -> None:
    """Atomically write one file to `study_dir / relative`."""
    place_all(study_dir, [(relative, data)])


def place_output(out: Path, relative: str, data: bytes) -> None:
    """Atomically write one file below `out`, the folder given as --out. Raises ConfigError if writing fails."""
    for part in (out / "state").glob(f"*.{socket.gethostname()}-*.part"):
        if not os.path.exists(f"/proc/{part.stem.rpartition('-')[2]}"):  # the command that wrote this file was killed
            part.unlink(missing_ok=True)
    try:
        (out / relative).parent.mkdir(parents=True, exist_ok=True)
        place(out, relative, data)
    except OSError as error:
        raise ConfigError(f"{out / relative} cannot be written: {error.strerror}. Choose another --out") from None
    with contextlib.suppress(OSError):  # rmdir fails while another command has files in this folder
        (out / "state").rmdir()


@contextlib.contextmanager
def scratch_folder(above: Path, name: str) -> Iterator[Path]:
    """Create a locked folder for a `with` block, then remove it. Also remove the folders of killed commands."""
    folder = Path(tempfile.mkdtemp(".part", f"{name}{SCRATCH}", above))
    lock = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        with contextlib.suppress(OSError):  # on a file system without locks, the folders of killed commands stay
            fcntl.flock(lock, fcntl.LOCK_EX)
        for left in above.glob(f"*{SCRATCH}????????.part"):
            with contextlib.suppress(OSError):
                other = os.open(left, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECTORY | os.O_NOFOLLOW)
                try:
                    fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(left, ignore_errors=True)
                finally:
                    os.close(other)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def place_all(study_dir: Path, files: Iterable[tuple[str, bytes | None]]) -> None:
    """Atomically write several files, given as (relative path, bytes). All files are fsynced before any is moved.

    For an existing file, pass None: only its folder is fsynced, in case a killed command did not fsync it.
    """
    state, writer = study_dir / "state", f"{socket.gethostname()}-{threading.get_native_id()}"
    targets, folders = dict[Path, Path](), set[Path]()
    try:
        state.mkdir(parents=True, exist_ok=True)
        for relative, data in files:
            target = study_dir / relative
            folders.add(target.parent)
            if data is not None:
                part = state / f"{target.parent.name}-{target.name}.{writer}.part"
                targets[part] = target
                write_bytes(part, data)
        _fsync_all(targets)
        for part, target in targets.items():
            os.replace(part, target)
        _fsync_all(folders)
    except OSError:
        for part in targets:  # a partial file is useless, so free its space
            with contextlib.suppress(OSError):
                part.unlink()
        raise


def write_bytes(path: Path, data: bytes) -> None:
    """Create or overwrite a file with `data`, without fsync. Raises OSError, for example on a full disk."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
    try:
        left = memoryview(data)
        while left:
            left = left[os.write(fd, left) :]
    finally:
        os.close(fd)


def remedy(error: OSError) -> str:
    """Return what the user can do about a disk error, e.g. `free space on the disk`."""
    return REMEDIES.get(error.errno or 0, "remove the cause")


@contextlib.contextmanager
def storing(study_dir: Path) -> Iterator[None]:
    """In the caller's `with` block, turn an OSError into a StorageError that says what the user can do."""
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"{study_dir} cannot be written: {error.strerror}. Everything written so far is intact; "
            f"{remedy(error)} and rerun the same command"
        ) from error


@contextlib.contextmanager
def reading(path: Path, study_dir: Path) -> Iterator[None]:
    """In the caller's `with` block, turn a disk failure (EIO) or an error from damaged bytes into a ConfigError."""
    try:
        yield
    except Exception as error:
        if isinstance(error, ConfigError) or not is_damage(error):
            raise
        raise Damaged(f"{path} cannot be read ({damage(error)}): run normstudy check {study_dir}") from error


def is_damage(error: Exception) -> bool:
    """Whether an error in reading a file means that the file is damaged; False for missing permission or memory."""
    # pyarrow's OSError for damaged bytes has no errno. The OSError of places.opener for a folder or a pipe has errno 0.
    # The operating system's errors have positive numbers, of which only EIO (input/output error) means damage.
    known = (None, 0, errno.EIO)
    return not isinstance(error, MemoryError) and (not isinstance(error, OSError) or error.errno in known)


def damage(error: BaseException) -> str:
    """Format an error about damaged bytes as one line of at most 100 characters."""
    # The caller's message contains the path. str() of an OSError with errno 0 would name the path a second time.
    text = error.strerror if isinstance(error, OSError) and error.errno == 0 else error
    return " ".join(str(text).split())[:100] or type(error).__name__


def remove_parts(study_dir: Path) -> None:
    """Remove the partial files and heartbeats of killed commands. The caller must hold the study's lock exclusively."""
    for pattern in ("*.part", "*.heartbeat"):
        for path in (study_dir / "state").glob(pattern):
            path.unlink(missing_ok=True)


def check_not_swapping(study_dir: Path) -> None:
    """Raise ConfigError if the study cannot be read, or if a running or killed compaction has moved tables/ away."""
    try:
        swapping = (study_dir / OLD_TABLES).exists() and not (study_dir / "tables").exists()
    except OSError as error:
        raise ConfigError(f"{short(str(study_dir))} cannot be read: {error.strerror}") from None
    if swapping:
        raise ConfigError(SWAPPING.format(study_dir))


def swap_interrupted(study_dir: Path) -> bool:
    """Whether a compaction was killed after moving the old tables away and before moving the new tables into place."""
    old, new, now = (study_dir / name for name in (OLD_TABLES, NEW_TABLES, "tables"))
    return old.is_dir() and (new.is_dir() or not now.exists())


def swap_tables(study_dir: Path) -> None:
    """Replace tables/ by NEW_TABLES. The caller must hold the study's lock."""
    os.rename(study_dir / "tables", study_dir / OLD_TABLES)
    finish_swap(study_dir)


def finish_swap(study_dir: Path) -> None:
    """Complete an interrupted swap, and remove a compaction's leftovers. The caller must hold the study's lock.

    Raises ConfigError and changes nothing if files were written to tables/ since the interruption.
    """
    old, new, now = (study_dir / name for name in (OLD_TABLES, NEW_TABLES, "tables"))
    if swap_interrupted(study_dir):
        if any(p.is_file() and p.name != SCHEMA_FILE for p in now.rglob("*")):
            raise ConfigError(
                f"a compaction was interrupted, and {old} has the old tables, but {now} has newer files: keep one of "
                f"these two folders, and move the other away"
            )
        # A later command may have created tables/, without rows. Remove it, because otherwise os.rename would fail.
        shutil.rmtree(now, ignore_errors=True)
        os.rename(new if new.is_dir() else old, now)
        fsync(study_dir)
    for leftover in (new, old):
        shutil.rmtree(leftover, ignore_errors=True)
