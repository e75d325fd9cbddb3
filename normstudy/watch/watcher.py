"""Watch a training loop: `normstudy.watch`."""

from __future__ import annotations

import contextlib
import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from normstudy.analysis import likely_stuck
from normstudy.errors import ConfigError, printable
from normstudy.study import files, locks, tables
from normstudy.watch import names as naming
from normstudy.watch import record
from normstudy.watch.numbers import Copy, Groups, Numbers
from normstudy.watch.probe import Number, Probe

ROWS_AT_ONCE = 64  # steps whose numbers are copied from the device at once
SECONDS = 60.0  # between two writes, so at most what is lost if the program is killed


class Watch:
    """Record a training loop into a study. Use it as a context, or call `start` and `close`."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer | Sequence[Optimizer],
        *,
        study: str,
        results_dir: str = "results",
        every: int = 10,
        dense: int = 25,
        blocks: str | None = None,
        names: Callable[[str], naming.Place] | None = None,
        scaler: Any = None,
        config: Mapping[str, object] | None = None,
        seed: int = 0,
        resume: str | None = None,
        step: int | None = None,
        unigram_entropy: float | None = None,
        bigram_entropy: float | None = None,
    ) -> None:
        """Prepare the record; nothing is written and no hook is added before `start`.

        every, dense: as probe.every and probe.dense_steps. blocks: path of the blocks, such as model.layers, if they
        are not found. names: parameter's name -> (layer or None, module). scaler: the GradScaler. config: what
        `compare --by` and `--where` may name. resume: id of a run that goes on. step: the step at which it goes on, if
        not after the last one that was recorded. unigram_entropy, bigram_entropy: of the text, in nats per token; an
        outcome needs them.

        Raises ConfigError for what cannot be watched.
        """
        self.model = _inner(model)
        given = [optimizer] if isinstance(optimizer, Optimizer) else list(optimizer)
        self.optimizers = [getattr(one, "optimizer", one) for one in given]  # accelerate's wrapper takes no hooks
        self.study, self.results_dir, self.every, self.dense = study, results_dir, every, dense
        self.scaler, self.config, self.seed, self.run_id = scaler, dict(config or {}), seed, resume
        self._resumes, self._from = resume is not None, step
        self._entropies = {"unigram_entropy": unigram_entropy, "bigram_entropy": bigram_entropy}
        _check(self.model, self.optimizers, every, dense)
        self.layout = naming.layout(self.model, blocks, names)
        self._probe: Probe | None = None
        self._copy: Copy | None = None
        self._silent = torch.distributed.is_available() and torch.distributed.is_initialized()
        self._silent = self._silent and torch.distributed.get_rank() != 0
        self._warned = self._probed = self._streamed = False
        self._lock = contextlib.ExitStack()

    def start(self) -> Watch:
        """Create the run, and add the hooks. In a process of DDP other than rank 0, do nothing."""
        if self._silent:
            return self
        folder = record.folder_of(self.results_dir, self.study)
        with contextlib.ExitStack() as held:
            held.enter_context(locks.hold_study(folder, "normstudy.watch", shared=True))
            with files.storing(folder):
                tables.prepare(folder, shared=True)
            self.run_id = self.run_id or record.new_id(self.study, self.config)
            params = [p for _, p in self.model.named_parameters()]
            row = record.first_row(self.run_id, self.study, self.seed, params, self.config)
            row |= {"probe_every": self.every, "probe_dense_steps": self.dense, "n_layers": len(self.layout.blocks)}
            row |= self._entropies
            self._record = record.Record(folder, row, self.layout.places)
            step = self._record.resume(self._from) if self._resumes else 0
            self._record.write()
            of = [self.layout.groups[name] for name, _ in self.model.named_parameters()]
            self._groups = Groups(of, len(self.layout.places), params[0].device)
            self._probe = Probe(
                self.model, self.optimizers, self.layout, self._probes, self.scaler, step, self._collect
            )
            self._began, self._written, self._first = time.monotonic(), time.monotonic(), step
            self._flush_at = step + ROWS_AT_ONCE
            self._lock = held.pop_all()
        return self

    def _probes(self, step: int) -> bool:
        return step < self.dense or step % self.every == 0

    def log(self, *, train_loss: Number = None, val_loss: Number = None) -> None:
        """Record losses, which may lie on the device. Log a training loss at the same place of each iteration."""
        if self._probe is None or self._probe.broken:
            return
        given = {"train_loss": train_loss, "val_loss": val_loss}
        self._probe.log({name: value for name, value in given.items() if value is not None})

    def _collect(self) -> None:
        probe = self._probe
        assert probe is not None
        if probe.step >= self._flush_at or time.monotonic() - self._written > SECONDS:
            self._flush(probe, keep=1)
            self._flush_at = probe.step + ROWS_AT_ONCE
        if time.monotonic() - self._written > SECONDS:
            self._record.write()
            self._written = time.monotonic()

    def _flush(self, probe: Probe, keep: int) -> None:
        """Start the copy of the finished rows, and record those that were copied. keep: rows that are not finished."""
        began = time.perf_counter()
        self._take_copied()
        rows = probe.rows[: len(probe.rows) - keep]
        if rows:
            del probe.rows[: len(rows)]
            copied = Copy(rows, self._groups, probe.frozen)
            if copied.ready:
                self._add(copied.numbers())
            else:
                self._copy = copied
        probe.seconds += time.perf_counter() - began

    def _take_copied(self) -> None:
        copied, self._copy = self._copy, None
        if copied is not None:
            self._add(copied.numbers())

    def _add(self, numbers: Sequence[Numbers]) -> None:
        for one in numbers:
            self._record.add(one)
            self._probed = self._probed or one.modules is not None
            if one.stream is not None and not self._streamed:
                self._streamed = not all(map(math.isnan, one.stream[0]))
            if one.modules and not self._warned:
                self._warn(one.step, one.modules[0])

    def _warn(self, step: int, gradients: Sequence[float]) -> None:
        """Say once that the first layer's gradient is as small as in runs that get stuck."""
        rule = likely_stuck.rule()
        at = [i for i, (layer, module) in enumerate(self.layout.places) if module == "mlp_out" and layer is not None]
        if step < rule.step or len(at) < 2:
            return
        first, last = gradients[at[0]], gradients[at[-1]]
        self._warned = True
        if 0 <= first <= rule.threshold * last:
            print(
                f"watch: first/last gradient ratio {first / last if last else 0:.2g} at step {step}: in "
                f"normstudy's studies {rule.stuck} of {rule.looked} runs that looked so ended stuck",
                file=sys.stderr,
            )  # fmt: skip

    def close(self, status: str = "done") -> None:
        """Remove the hooks, write everything, and say what the watch cost. status: done, or failed after an error."""
        probe, self._probe = self._probe, None
        if probe is None:
            return
        probe.detach()
        try:
            self._end(probe, "failed" if probe.broken else status)
        except Exception as error:  # the training has ended well all the same
            print(printable(f"watch: the end of {self.run_id} is not recorded: {error}"), file=sys.stderr)
        finally:
            self._lock.close()

    def _end(self, probe: Probe, status: str) -> None:
        self._flush(probe, keep=0)
        self._take_copied()
        final = probe.left().get("val_loss")
        self._record.end(status, final_val_loss=None if final is None else float(final))
        steps, seconds = probe.step - self._first, time.monotonic() - self._began
        cost = f", {100 * probe.seconds / seconds:.1f} % of the time" if seconds and steps else ""
        said = f"watch: {steps:,} steps of {self.run_id} in {self._record.study_dir}{cost}"
        if self._probed and self.layout.blocks and not self._streamed:
            said += "; its blocks never ran their hooks: start the watch before the first call of a compiled model"
        print(printable(said), file=sys.stderr)

    def __enter__(self) -> Watch:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, *_: BaseException | TracebackType | None) -> None:
        self.close("done" if kind is None else "failed")


def _inner(model: nn.Module) -> nn.Module:
    """Return the model inside DDP and torch.compile, whose hooks run all the same."""
    while True:
        inner = model.module if isinstance(model, DistributedDataParallel) else getattr(model, "_orig_mod", None)
        if not isinstance(inner, nn.Module):
            return model
        model = inner


def _was_compiled(model: nn.Module) -> bool:
    """Whether torch.compile keeps a graph of the model's class. It takes a graph for every model that fits it."""
    code = getattr(type(model).forward, "__code__", None)
    if code is None or "torch._dynamo.eval_frame" not in sys.modules:
        return False
    found = getattr(sys.modules["torch._dynamo.eval_frame"], "_debug_get_cache_entry_list", None)
    return found is not None and bool(found(code))


def _check(model: nn.Module, optimizers: Sequence[Optimizer], every: int, dense: int) -> None:
    params = list(model.parameters())
    if not any(p.requires_grad for p in params):
        raise ConfigError(f"{type(model).__name__} has no parameters that are trained: watch the model that is trained")
    if not all(isinstance(one, Optimizer) for one in optimizers) or not optimizers:
        raise ConfigError("optimizer must be an optimizer of torch, or a list of them")
    ids = {id(p) for p in params}
    for one in optimizers:
        if not any(id(p) in ids for group in one.param_groups for p in group["params"]):
            raise ConfigError(
                f"{type(one).__name__} has no parameter of {type(model).__name__}: watch the model it trains"
            )
    sharded = any(type(module).__name__ == "FullyShardedDataParallel" for module in model.modules())
    if sharded or any(type(p).__name__ == "DTensor" or type(p.data).__name__ == "DTensor" for p in params):
        raise ConfigError("the parameters are sharded (FSDP), which watch does not support: watch without it")
    if _was_compiled(model):
        raise ConfigError(
            f"a compiled {type(model).__name__} has been called before this watch, so its graph has no hooks of it: "
            "start the watch before the first call, or call torch._dynamo.reset() first"
        )
    if every < 1 or dense < 0:
        raise ConfigError(f"every {every} must be 1 or more, and dense {dense} must be 0 or more")
