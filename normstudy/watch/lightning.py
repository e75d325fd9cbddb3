"""Watch Lightning's Trainer: `Trainer(callbacks=[WatchCallback(study="mine")])`."""

from typing import Any

from lightning import Callback, LightningModule, Trainer
from torch import Tensor

from normstudy.watch.watcher import TrainerHooks


class WatchCallback(TrainerHooks, Callback):  # type: ignore[misc, unused-ignore]  # lightning may be missing
    """Record the training of a module, and the val_loss that it logs. The options are those of `normstudy.watch`."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        self.start_watch(pl_module, trainer.optimizers, scaler, trainer.global_step)
        self._loss: Tensor | None = None  # sum over the step's batches; Lightning divides each loss by their number
        self._steps = trainer.global_step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
        if self.watch is None or not isinstance(loss, Tensor):
            return
        self._loss = loss.detach() if self._loss is None else self._loss + loss.detach()
        if trainer.global_step != self._steps:
            self.watch.log(train_loss=self._loss)
            self._loss, self._steps = None, trainer.global_step

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.watch is not None and not trainer.sanity_checking:
            self.watch.log(val_loss=trainer.callback_metrics.get("val_loss"))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.close_watch("done")

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self.close_watch("failed")
