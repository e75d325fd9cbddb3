"""Watch Hugging Face's Trainer: `Trainer(..., callbacks=[WatchCallback(study="mine")])`."""

from typing import Any

from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from normstudy.watch.watcher import TrainerHooks


class WatchCallback(TrainerHooks, TrainerCallback):  # type: ignore[misc, unused-ignore]  # transformers may be missing
    """Record the training of a Trainer's model. The options are those of `normstudy.watch`.

    Losses are recorded as the Trainer logs them: each step's loss if logging_steps=1, otherwise means of several steps.
    val_loss is the evaluation loss. If eval_dataset is a dictionary, it is the loss of the first set.
    """

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, *, model: nn.Module,
        optimizer: Any, **_: Any,
    ) -> None:  # fmt: skip
        self.close_watch("failed")  # if the last training raised an error, the Trainer called no callback after it
        self.start_watch(model, [optimizer], getattr(optimizer, "scaler", None), state.global_step)
        self._val_loss = ""  # its name in the logs: eval_loss, or eval_NAME_loss for the set NAME

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: dict[str, float], **_: Any
    ) -> None:
        if self.watch is not None and "train_runtime" not in logs:
            losses = (name for name in logs if name.startswith("eval_") and name.endswith("_loss"))
            self._val_loss = self._val_loss or min(losses, key=len, default="")  # metrics may have longer names
            self.watch.log(train_loss=logs.get("loss"), val_loss=logs.get(self._val_loss))

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.close_watch("done")
