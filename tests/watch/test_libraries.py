"""normstudy.watch on models of Hugging Face, in its Trainer, and in Lightning's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from loops import VOCAB, T, batches, loss_of, made, plain_loop
from test_watch import adamw, assert_by_hand, watched

import normstudy

pytestmark = [
    pytest.mark.packages,
    pytest.mark.filterwarnings("ignore"),  # the libraries' own deprecations
]
SMALL = {
    "vocab_size": VOCAB, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 8, "max_position_embeddings": 2 * T, "attn_implementation": "eager",
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
INSIDE = {
    "GPT2": {"attn_in", "attn_out", "mlp_in", "mlp_out", "norm1", "norm2"},
    "Llama": {"attn_in", "attn_out", "mlp_in", "mlp_out", "norm1", "norm2"},
    "Mixtral": {"attn_in", "attn_out", "mlp_in", "mlp_out", "norm1", "norm2"},
    "Gemma2": {"attn_in", "attn_out", "mlp_in", "mlp_out", "norm1", "norm2", "norm1_out", "norm2_out"},
    "Olmo2": {"attn_in", "attn_out", "mlp_in", "mlp_out", "norm1_out", "norm2_out", "qkv_norm"},
    "GPTNeoX": {"attn_in", "attn_out", "mlp_in", "mlp_out", "norm1", "norm2"},
}


def model_of(name: str) -> torch.nn.Module:
    import transformers

    options: dict[str, Any] = {
        "GPT2": {
            "vocab_size": VOCAB, "n_embd": 16, "n_layer": 3, "n_head": 2, "n_positions": 2 * T, "bos_token_id": 1,
            "eos_token_id": 2, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0,
        },
        "Mixtral": {**SMALL, "num_local_experts": 2, "num_experts_per_tok": 1},
    }.get(name, SMALL)  # fmt: skip
    torch.manual_seed(0)
    kind = "GPT2LMHeadModel" if name == "GPT2" else f"{name}ForCausalLM"
    model: torch.nn.Module = getattr(transformers, kind)(getattr(transformers, f"{name}Config")(**options))
    return model


@pytest.mark.parametrize("name", list(INSIDE))
def test_a_model_of_hugging_face(name: str, tmp_path: Path) -> None:
    alone = model_of(name)
    plain_loop(alone, adamw(alone), 20, clip=0.5)
    model = model_of(name)
    optimizer = adamw(model)
    with watched(model, optimizer, tmp_path) as w:
        taken = plain_loop(model, optimizer, 20, clip=0.5, log=w.log)
    assert all(torch.equal(a, b) for a, b in zip(alone.parameters(), model.parameters(), strict=True))
    assert_by_hand(tmp_path / "mine", model, taken)
    found = normstudy.load(tmp_path / "mine")
    modules = found.modules
    assert set(modules.loc[modules["layer"].notna(), "module"]) == INSIDE[name]
    outside = set(modules.loc[modules["layer"].isna(), "module"])
    assert outside <= {"embed", "pos", "final_norm", "unembed"}
    assert sorted(set(found.residual["layer"])) == [0, 1, 2, 3]
    assert found.residual[["rms", "grad_norm"]].notna().all(axis=None)


class Tokens(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
    def __len__(self) -> int:
        return 24

    def __getitem__(self, i: int) -> dict[str, torch.Tensor]:
        tokens = batches(1, seed=i)[0][0][0]
        return {"input_ids": tokens, "labels": tokens}


@pytest.mark.parametrize("sets", [("",), ("one", "two")])
def test_hugging_face_s_trainer(sets: tuple[str, ...], tmp_path: Path) -> None:
    from transformers import Trainer, TrainingArguments

    from normstudy.watch.huggingface import WatchCallback

    model = model_of("GPT2")
    how = TrainingArguments(
        output_dir=str(tmp_path / "out"), max_steps=6, per_device_train_batch_size=4, logging_steps=1, report_to=[],
        save_strategy="no", use_cpu=True, max_grad_norm=0.5, gradient_accumulation_steps=2, disable_tqdm=True,
        eval_strategy="steps", eval_steps=2,
    )  # fmt: skip
    watch = WatchCallback(study="hf", results_dir=str(tmp_path), dense=10)
    evaluated = {name: torch.utils.data.Subset(Tokens(), range(i, i + 4)) for i, name in enumerate(sets)}
    trainer = Trainer(
        model=model, args=how, train_dataset=Tokens(), callbacks=[watch],
        eval_dataset=evaluated if sets[0] else evaluated[""],
    )  # fmt: skip
    trainer.train()
    found = normstudy.load(tmp_path / "hf")
    assert found.runs["status"].tolist() == ["done"]
    logged = [one for one in trainer.state.log_history if "grad_norm" in one]
    assert found.steps["grad_norm"].tolist() == pytest.approx([one["grad_norm"] for one in logged], rel=1e-4)
    assert found.steps["train_loss"].tolist() == pytest.approx([one["loss"] for one in logged], abs=1e-3)
    assert found.steps["clip_factor"].max() <= 1.0
    first = f"eval_{sets[0]}_loss" if sets[0] else "eval_loss"
    *before_a_step, final = [one[first] for one in trainer.state.log_history if first in one]
    assert found.steps["val_loss"].dropna().to_dict() == pytest.approx(dict(zip((2, 4), before_a_step, strict=True)))
    assert found.runs["final_val_loss"].tolist() == pytest.approx([final])


def test_lightning_s_trainer(tmp_path: Path) -> None:
    import lightning
    from loops import Encoder

    from normstudy.watch.lightning import WatchCallback

    norms: list[float] = []

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = made(Encoder)

        def training_step(self, batch: Any, _: int) -> torch.Tensor:
            return loss_of(self.model, batch)

        def validation_step(self, batch: Any, _: int) -> None:
            self.log("val_loss", loss_of(self.model, batch))

        def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
            norms.append(
                float(torch.nn.utils.get_total_norm([p.grad for p in self.parameters() if p.grad is not None]))
            )

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return adamw(self)

    for fails in (False, True):
        norms.clear()
        module = Module()
        if fails:
            module.on_train_batch_end = lambda *_: 1 / 0  # type: ignore[method-assign, assignment]
        callback = WatchCallback(study=f"pl{fails}", results_dir=str(tmp_path), dense=10)
        trainer = lightning.Trainer(
            max_steps=4, accelerator="cpu", callbacks=[callback], logger=False, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False, default_root_dir=tmp_path, gradient_clip_val=0.5,
            val_check_interval=2,
        )  # fmt: skip
        loader = torch.utils.data.DataLoader(batches(4), batch_size=None)
        if fails:
            with pytest.raises(ZeroDivisionError):
                trainer.fit(module, loader)
        else:
            trainer.fit(module, loader, torch.utils.data.DataLoader(batches(2), batch_size=None))
        found = normstudy.load(tmp_path / f"pl{fails}")
        assert found.runs["status"].tolist() == ["failed" if fails else "done"]
        assert found.steps["grad_norm"].tolist() == pytest.approx(norms, rel=1e-5)
        assert found.steps["val_loss"].notna().tolist() == ([False] if fails else [False, False, True, False])
        assert found.runs["final_val_loss"].notna().tolist() == [not fails]
        assert len(norms) == (1 if fails else 4)
