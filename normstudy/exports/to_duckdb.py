"""DuckDB: one database file with the four tables, types as in Parquet, `run_id` and `module` as VARCHAR."""

from __future__ import annotations

import shlex
from pathlib import Path

import duckdb

from normstudy import store
from normstudy.exports.source import Source
