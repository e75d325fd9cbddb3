"""Watch a Lightning Trainer: `Trainer(callbacks=[WatchCallback(study="mine")])`."""

from typing import Any

import lightning
from torch import Tensor

from normstudy.watch.checks import known
from normstudy.watch.watcher import Watch


class WatchCallback(lightning.Callback):  # type: ignore[misc, unused-ignore]  # lightning may be missing
    """Record the training of a Trainer's module. options: those of `normstudy.watch`."""

    def __init__(self, **options: Any) -> None:
        known(options)
        self.options = options
        self.watch: Watch | None = None

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        options = {"scaler": getattr(trainer.precision_plugin, "scaler", None), **self.options}
        if options.get("resume") and trainer.global_step:
            options.setdefault("step", trainer.global_step)
        self.watch = Watch(pl_module, trainer.optimizers, **options).start()
        self._loss: Tensor | None = None  # sum over the batches since the last step; Lightning has scaled each loss
        self._steps = trainer.global_step

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
        if self.watch is None or not isinstance(loss, Tensor):
            return
        self._loss = loss.detach() if self._loss is None else self._loss + loss.detach()
        if trainer.global_step != self._steps:
            self.watch.log(train_loss=self._loss)
            self._loss, self._steps = None, trainer.global_step

    def on_train_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        if self.watch is not None:
            self.watch.close()

    def on_exception(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, exception: BaseException
    ) -> None:
        if self.watch is not None:
            self.watch.close("failed")
