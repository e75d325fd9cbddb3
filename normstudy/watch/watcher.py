"""Watch a training loop: `normstudy.watch`."""

from __future__ import annotations

import atexit
import contextlib
import inspect
import math
import os
import secrets
import sys
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from normstudy.analysis import likely_stuck
from normstudy.errors import ConfigError, nearest, printable
from normstudy.study import files, locks, tables
from normstudy.watch import checks, record
from normstudy.watch import names as naming
from normstudy.watch.numbers import Copy, Groups, Number
from normstudy.watch.probe import Probe

ROWS_AT_ONCE = 64  # number of steps per copy from a GPU
SECONDS = 60.0  # between two writes; if the program is killed, at most this time is lost


class Watch:
    """Record a training loop into a study. Use it in a `with` statement, or call `start` and `close`."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer | Sequence[Optimizer],
        *,
        study: str | None = None,
        results_dir: str | os.PathLike[str] = "results",
        every: int = 10,
        dense: int = 25,
        blocks: str | None = None,
        names: Callable[[str], naming.Place] | None = None,
        scaler: Any = None,
        config: Mapping[str, object] | None = None,
        seed: int | None = None,
        resume: str | None = None,
        step: int | None = None,
        unigram_entropy: float | None = None,
        bigram_entropy: float | None = None,
        **unknown: object,
    ) -> None:
        """Check the arguments. Only `start` writes files and adds hooks.

        study: required. every, dense: norms are measured every `every` steps and in the first `dense` steps. blocks:
        path of the blocks, such as model.layers; None to search for them. names: parameter's name -> (layer or
        None, module). scaler: the GradScaler. config: keys for `compare --by` and `--where`, and their values. seed:
        recorded; by default 0. resume: id of the run to continue. step: its next step; by default, the one after
        the last recorded. unigram_entropy, bigram_entropy: the text's, in nats per token; an outcome needs both.

        Raises ConfigError if an argument is not allowed or not supported.
        """
        options = {name: value for name, value in locals().items() if name in OPTIONS}
        self._state = "refused"
        check_names(unknown)
        self.model, self.optimizers = checks.inner_model(model), checks.inner_optimizers(optimizer)
        given = checks.check_options(options)
        checks.check_training(self.model, self.optimizers)
        self.layout = naming.layout(self.model, blocks, names)
        self._given, self.study, self.run_id = given, given["study"], resume
        self._probe: Probe | None = None
        self._copy: Copy | None = None
        dist = torch.distributed
        self._silent = dist.is_available() and dist.is_initialized() and dist.get_rank() != 0
        self._warned = self._probed = self._streamed = False
        self._ignored: set[str] = set()
        self._lock = contextlib.ExitStack()
        self._state = "new"

    def start(self) -> Watch:
        """Create the run, and add the hooks. In a process of DDP other than rank 0, do nothing."""
        if self._state == "ended":
            raise ConfigError(f"this watch has ended: to continue, create another one with resume={self.run_id!r}")
        if self._silent or self._state == "watching":
            self._state = "watching"
            return self
        given = self._given
        folder = record.folder_of(given["results_dir"], self.study)
        with contextlib.ExitStack() as held:
            held.enter_context(locks.hold_study(folder, "normstudy.watch", shared=True))
            with files.storing(folder):
                tables.prepare(folder, shared=True)
            run_id = self.run_id or f"{self.study}-{secrets.token_hex(5)}"
            record.check_resumed(folder, given, self.layout.places)
            if run_id in {one.run_id for one in OPEN} or not held.enter_context(locks.hold_runs(folder, [run_id])):
                raise ConfigError(f"another watch is recording {run_id}: wait until it ends, or stop it")
            row = record.first_row(run_id, given, self.layout, list(self.model.parameters()))
            self._record = record.Record(folder, row, self.layout.places)
            step = self._record.resume(given) if given["resume"] else 0
            self._record.write()
            self._groups = Groups(self.layout, self.model)
            self._probe = Probe(
                self.model, self.optimizers, self.layout,
                lambda t: bool(t < given["dense"] or not t % given["every"]), given["scaler"], step, self._collect,
            )  # fmt: skip
            self._began, self._written, self._first = time.monotonic(), time.monotonic(), step
            self.run_id, self._state, self._pid = run_id, "watching", os.getpid()
            self._lock = held.pop_all()
            OPEN.add(self)
        return self

    def log(self, *, train_loss: Number = None, val_loss: Number = None, **others: object) -> None:
        """Record losses: numbers or tensors. Log the training loss at the same place in each iteration."""
        if self._probe is None or self._probe.broken:
            return
        given = {"train_loss": train_loss, "val_loss": val_loss}
        wrong = dict(others)
        try:
            wrong |= self._probe.log({name: value for name, value in given.items() if value is not None})
        except Exception as error:
            self._probe.failed(error)
        for name, value in wrong.items():
            if name not in self._ignored:
                why = f"a {type(value).__name__}, not a number" if name in given else "neither train_loss nor val_loss"
                print(printable(f"watch: {name} is not recorded, because it is {why}"), file=sys.stderr)
        self._ignored |= wrong.keys()

    def _collect(self) -> None:
        probe = self._probe
        assert probe is not None
        most = 1 if self._groups.device.type == "cpu" else ROWS_AT_ONCE  # stored tensors slow down garbage collection
        if len(probe.rows) > most or time.monotonic() - self._written > SECONDS:
            self._flush(probe, keep=1)
        if time.monotonic() - self._written > SECONDS:
            self._record.write()
            self._written = time.monotonic()

    def _flush(self, probe: Probe, keep: int) -> None:
        """Record the copied rows, and start to copy the finished rows. keep: number of rows that are not finished."""
        began = time.perf_counter()
        self._record_copied()
        if rows := probe.rows[: len(probe.rows) - keep]:
            self._copy = Copy(rows, self._groups)
            del probe.rows[: len(rows)]
            if self._copy.ready:
                self._record_copied()
        probe.seconds += time.perf_counter() - began

    def _record_copied(self) -> None:
        """Wait for the copy that was started last, and record its numbers."""
        copied, self._copy = self._copy, None
        for one in copied.numbers() if copied else ():
            self._record.add(one)
            self._probed = self._probed or bool(one.modules)
            self._streamed = self._streamed or any(not math.isnan(rms) for rms, _ in one.stream)
            if one.modules and not self._warned:
                self._warn(one.step, [gradient for gradient, *_ in one.modules])

    def _warn(self, step: int, gradients: Sequence[float]) -> None:
        """Warn once if the first layer's gradient is as small as in runs that got stuck."""
        rule = likely_stuck.rule()
        at = [i for i, (layer, module) in enumerate(self.layout.places) if module == "mlp_out" and layer is not None]
        if step < rule.step or len(at) < 2:
            return
        first, last = gradients[at[0]], gradients[at[-1]]
        self._warned = True
        if 0 <= first <= rule.threshold * last:
            ratio = f"{first / last if last else 0:.2g} times the last one's at step {step}"
            known = f"in normstudy's studies {rule.stuck} of {rule.looked} runs with so small a ratio ended stuck"
            print(f"watch: the first layer's gradient is {ratio}: {known}", file=sys.stderr)

    def close(self, status: str = "done") -> None:
        """Remove the hooks, write the last rows, and print the watch's cost. status: done, or failed after an error."""
        probe, self._probe = self._probe, None
        self._state = "ended" if self._state == "watching" else self._state
        OPEN.discard(self)
        if probe is None or os.getpid() != self._pid:  # a forked process records nothing
            return
        probe.detach()
        try:
            self._end(probe, "failed" if probe.broken else status)
        except Exception as error:  # print instead of raising: the training has ended well
            print(printable(f"watch: the end of {self.run_id} is not recorded: {error}"), file=sys.stderr)
        finally:
            self._lock.close()

    def _end(self, probe: Probe, status: str) -> None:
        try:
            self._flush(probe, keep=0)
            self._record_copied()
        except Exception:
            status = "failed"
            raise
        finally:
            final = probe.logged.get("val_loss")
            self._record.end(status, final_val_loss=None if final is None else float(final))
        steps, seconds = probe.step - self._first, time.monotonic() - self._began
        cost = f"; the watch took {100 * probe.seconds / seconds:.1f} % of the time" if seconds and steps else ""
        said = f"watch: recorded {steps:,} steps of {self.run_id} in {self._record.study_dir}{cost}"
        if probe.stream.repeats:
            said += "; the model's blocks run several times in a pass, so the residual stream is not recorded"
        elif self._probed and self.layout.blocks and not self._streamed:
            said += "; the blocks' hooks never ran: start the watch before the first call of a compiled model"
        print(printable(said), file=sys.stderr)

    def __enter__(self) -> Watch:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        ended = kind is None or (isinstance(error, SystemExit) and not error.code)
        self.close("done" if ended else "failed")

    def __del__(self) -> None:
        state = getattr(self, "_state", "refused")
        if state == "new" and not sys.is_finalizing():
            print("watch: a watch was never started: use it in a `with`, or call start() and close()", file=sys.stderr)
        elif state == "watching":
            self.close()


OPTIONS = tuple(inspect.signature(Watch).parameters)[2:-1]


def check_names(options: Mapping[str, object]) -> None:
    """Raise ConfigError if a name in `options` is not an option of watch."""
    for name in options:
        if name not in OPTIONS:
            raise ConfigError(f"watch has no option {name!r}.{nearest(name, OPTIONS)} Options: {', '.join(OPTIONS)}")


class TrainerHooks:
    """Start a watch when a trainer starts to train, and close the watch at the end. The options are those of Watch."""

    def __init__(self, **options: Any) -> None:
        check_names(options)
        self.options = options
        self.watch: Watch | None = None

    def start_watch(self, model: nn.Module, optimizers: Any, scaler: Any, step: int) -> None:
        options = {"scaler": scaler, **self.options}
        if options.get("resume") and step:
            options.setdefault("step", step)
        self.watch = Watch(model, optimizers, **options).start()

    def close_watch(self, status: str) -> None:
        if self.watch is not None:
            self.watch.close(status)


def _close_all() -> None:
    for one in list(OPEN):
        one.close("failed" if hasattr(sys, "last_type") else "done")


OPEN: weakref.WeakSet[Watch] = weakref.WeakSet()
atexit.register(_close_all)
