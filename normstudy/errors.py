"""The error of a request that cannot be run."""

from __future__ import annotations


class ConfigError(Exception):
    """A request that cannot be run; its text is the one line that the user sees."""


class StorageError(ConfigError):
    """Results cannot be written: a full disk, a read-only folder, too many open files. What is written stays whole."""
