"""Watch a Hugging Face Trainer: `Trainer(..., callbacks=[WatchCallback(study="mine")])`."""

from typing import Any

from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from normstudy.watch.checks import known
from normstudy.watch.watcher import Watch


class WatchCallback(TrainerCallback):  # type: ignore[misc, unused-ignore]  # transformers may be missing
    """Record the training of a Trainer's model. options: those of `normstudy.watch`.

    The recorded losses are the logged ones: with logging_steps=1 each step's loss, otherwise means of several steps.
    """

    def __init__(self, **options: Any) -> None:
        known(options)
        self.options = options
        self.watch: Watch | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, *, model: nn.Module,
        optimizer: Any, **_: Any,
    ) -> None:  # fmt: skip
        if self.watch is not None:  # the training before raised an exception, for which a Trainer calls no callback
            self.watch.close("failed")
        options = {"scaler": getattr(optimizer, "scaler", None), **self.options}
        if options.get("resume") and state.global_step:
            options.setdefault("step", state.global_step)
        self.watch = Watch(model, [optimizer], **options).start()

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: dict[str, float], **_: Any
    ) -> None:
        if self.watch is not None and "train_runtime" not in logs:
            self.watch.log(train_loss=logs.get("loss"), val_loss=logs.get("eval_loss"))

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if self.watch is not None:
            self.watch.close()
