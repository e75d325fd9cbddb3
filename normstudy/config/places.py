"""Expand the paths that a user names, and open the files behind them."""

import os
import stat
from pathlib import Path

from normstudy.errors import ConfigError


def expanded(path: str, key: str) -> str:
    """Replace ~ or ~USER at the start of a path by the home folder. key: the setting's name, for the error."""
    full = os.path.expanduser(path)
    if full.startswith("~"):
        raise ConfigError(f"{key} {path!r}: no home folder is known for {path.partition('/')[0]}: write the full path")
    return full


def opener(path: str, flags: int) -> int:
    """Open a regular file, for the argument `opener` of open(). Raises OSError, without waiting, for any other file.

    Files of size 0 in /proc and /sys, such as /proc/kmsg, are refused too, because reading them may wait forever.
    """
    fd = os.open(path, flags | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC, 0o666)
    found = os.fstat(fd)
    is_kernels = not found.st_size and os.path.realpath(path).startswith(("/proc/", "/sys/"))
    if is_kernels or not stat.S_ISREG(found.st_mode):
        os.close(fd)
        raise OSError(0, "it is a folder, a pipe, a device or a file of the kernel", path)
    return fd


def own_opener(path: str, flags: int) -> int:
    """Do what `opener` does, but also raise OSError for a link, and for a file that another user (not root) owns."""
    fd = opener(path, flags & ~os.O_TRUNC | os.O_NOFOLLOW)
    if (owner := os.fstat(fd).st_uid) not in (0, os.geteuid()):
        os.close(fd)
        raise OSError(0, f"it belongs to user {owner}, who could change it", path)
    if flags & os.O_TRUNC:
        os.ftruncate(fd, 0)
    return fd


def read(path: Path) -> bytes:
    """Read a regular file. Raises OSError for any other file."""
    with open(path, "rb", buffering=0, opener=opener) as file:
        return file.readall()
