"""Draw a step's training windows, and choose the validation windows. A window is T + 1 adjacent tokens of one block."""

import functools

import numpy as np

from normstudy.config import DataConfig
from normstudy.data.blocks import Blocks, Ints
from normstudy.data.texts import Text
from normstudy.errors import ConfigError


def check_fits(text: Text, config: DataConfig, eval_windows: int) -> None:
    """Raise a ConfigError if a window is longer than every block, or if the text has too few validation windows."""
    longest = int(text.train.lengths.max())
    if config.seq_len >= longest:
        raise ConfigError(
            f"data.seq_len {config.seq_len} is not below {longest}, the number of tokens in the longest block "
            f"(data={text.name}, data.tokenizer={text.tokenizer}): reduce data.seq_len or use a longer text"
        )
    available = int(places(text.validation, config.seq_len)[-1])
    if eval_windows > available:
        raise ConfigError(
            f"eval.windows {eval_windows} exceeds the {available} validation windows of data={text.name}: "
            "reduce eval.windows or use a longer text"
        )


@functools.lru_cache(maxsize=32)
def places(blocks: Blocks, seq_len: int) -> Ints:
    """Return, for each block, the total number of windows in it and in all earlier blocks, (blocks,)."""
    return (blocks.lengths - seq_len).clip(min=0).cumsum()


def windows_at(blocks: Blocks, starts: Ints, seq_len: int) -> Ints:
    """Return windows (len(starts), T + 1). starts: the windows' numbers, counted from 0 through all blocks in order."""
    ends = places(blocks, seq_len)
    block = np.searchsorted(ends, starts, side="right")
    begin = blocks.edges[block + 1] - seq_len - (ends[block] - starts)  # counted back from the block's end
    return blocks.tokens[begin[:, None] + np.arange(seq_len + 1)].astype(np.int64)


def batch(text: Text, data_seed: int, step: int, batch_size: int, seq_len: int) -> Ints:
    """Draw the training windows of one step, (batch_size, T + 1) int64. Equal arguments return equal windows."""
    rng = np.random.Generator(np.random.Philox(key=[data_seed, 0], counter=[0, 0, 0, step]))
    n_places = int(places(text.train, seq_len)[-1])
    return windows_at(text.train, rng.integers(0, n_places, batch_size), seq_len)


def validation_windows(text: Text, windows: int, seq_len: int) -> Ints:
    """Return evenly spaced validation windows, (windows, T + 1) int64. They do not depend on a seed."""
    n_places = int(places(text.validation, seq_len)[-1])
    return windows_at(text.validation, (2 * np.arange(windows) + 1) * n_places // (2 * windows), seq_len)
