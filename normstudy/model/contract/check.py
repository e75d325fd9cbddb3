"""Call a user's own block or norm before any run trains, and report the first rule (rules.py) that it breaks.

When torch batches a block over runs, it reports about half of the mistakes that would make runs of a batch affect each
other. To find the other half, `check` calls each block, and the norm at each width that the model uses. As in training,
a call is batched over runs: two runs with initial parameters, each with two sequences of data.seq_len tokens. `check`
compares the results of several calls:

    call                                                detects
    first                                               a wrong result, changes in place, inf or NaN
    the same call again                                 random numbers, a state that changes between calls
    second sequence replaced; first sequence removed    statistics across sequences
    last token replaced; several later tokens replaced  access to later tokens
    second run removed                                  access to other runs
    with gradients                                      unused or detached arguments, parameters from outside

To compare the parameters, `check` also calls a module's constructor twice with one seed and once with another. It tests
the rules about the returned value first, since the other tests need a valid value.
"""

from __future__ import annotations

import contextlib
import io
import warnings

import torch

from normstudy.config import RunConfig, resolve, sources
from normstudy.model.contract import trial
from normstudy.model.contract.rules import DTYPE, RANDOM, blaming, broken
from normstudy.model.contract.signature import block_maker, check_constructor, norm_maker
from normstudy.model.init import init_params
from normstudy.model.own import load, move
from normstudy.model.transformer import Block, build


def check(config: RunConfig, vocab_size: int, device: str = "cpu") -> None:
    """Raise a ConfigError if the user's own placement or norm breaks a rule. Discard what the user's code prints."""
    with (
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
        warnings.catch_warnings(action="ignore"),
    ):
        _check(config, vocab_size, device)


def _check(config: RunConfig, vocab_size: int, device: str) -> None:
    model = config.model
    specs = [spec for spec in (resolve(model).norm, model.placement) if sources.is_own(spec)]
    who = " and ".join(specs)
    generators, dtype = trial.generators(), torch.get_default_dtype()
    found = {spec: load(spec) for spec in specs}
    import_draws = trial.generators() != generators
    if torch.get_default_dtype() != dtype:
        torch.set_default_dtype(dtype)
        raise broken(who, DTYPE, "importing the module changes torch's default dtype", f"leave the default at {dtype}")
    for spec in specs:
        maker = block_maker if spec == model.placement else norm_maker
        make = maker(spec, found[spec], model)
        if make is not None:
            check_constructor(spec, make)
    with blaming(who, specs):
        transformer = build(config, vocab_size)
        stacked = init_params(transformer, [model, model], [config.seed, config.seed + 1])
    move(transformer, device)
    stacked = {name: p.to(device) for name, p in stacked.items()}
    if sources.is_own(resolve(model).norm):
        for subject in trial.norms(transformer, stacked, model):
            trial.check_calls(subject, [trial.normal((2, 2, config.data.seq_len, *subject.widths), seed=0).to(device)])
    if sources.is_own(model.placement):
        streams = trial.embedded(transformer, stacked, vocab_size, config.data.seq_len)
        for layer, block in enumerate(transformer.blocks):
            assert isinstance(block, Block)
            streams = trial.check_calls(trial.block(block, layer, stacked, model), streams)
    if import_draws:
        what = "importing the module draws random numbers, which differ between processes"
        raise broken(who, RANDOM, what, "draw from a separate generator, such as torch.Generator().manual_seed(0)")
