"""The model presets: each composes to what its source says, and trains."""

from __future__ import annotations

from pathlib import Path

import hydra
from hydra import initialize_config_dir
from studies import REQUEST

from normstudy.app import compose
from normstudy.study import tables
from normstudy.sweep import execute, planning

PRESETS = sorted(p.stem for p in (compose.conf_dir() / "model").glob("*.yaml"))

# By hand: placement, norm, QK-norm, init, activation, positions, embeddings, tied, biases, final norm.
EXPECTED = {
    "default": ("pre", "layernorm", "none", "xavier", "gelu", "learned", "unit", None, False, True, True),
    "tiny": ("pre", "layernorm", "none", "xavier", "gelu", "learned", "unit", None, False, True, True),
    "vaswani": ("post", "layernorm", "none", "xavier", "relu", "sinusoidal", "scaled", 0.25, True, True, False),
    "gpt2": ("pre", "layernorm", "none", "gpt2", "gelu", "learned", "std", 0.02, True, True, True),
    "llama": ("pre", "rmsnorm", "none", "normal", "swiglu", "rope", "std", 0.02, False, False, True),
    "olmo2": ("reordered", "rmsnorm", "full", "normal", "swiglu", "rope", "std", 0.02, False, False, True),
    "gemma2": ("peri", "rmsnorm", "none", "normal", "geglu_tanh", "rope", "scaled", 0.02, True, False, True),
    "deepnet": ("deepnorm", "layernorm", "none", "deepnorm", "relu", "sinusoidal", "scaled", 0.25, True, True, False),
}
# Eps and RoPE base of those that do not have 1e-5 and 10,000.
NUMBERS = {"llama": (1e-6, 1e4), "olmo2": (1e-6, 5e5), "gemma2": (1e-6, 1e4)}
COLUMNS = [
    "placement", "resolved_norm", "resolved_qk_norm", "resolved_init", "activation", "positions", "embed_init",
    "resolved_embed_std", "tied", "biases", "resolved_final_norm", "norm_eps", "rope_base",
]  # fmt: skip


def test_every_preset_is_known_here() -> None:
    assert sorted(EXPECTED) == PRESETS


def test_each_is_a_few_lines_with_a_source() -> None:
    for name in set(PRESETS) - {"default", "tiny"}:
        lines = (compose.conf_dir() / "model" / f"{name}.yaml").read_text().splitlines()
        settings = [line for line in lines if not line.startswith("#")]
        assert len(settings) <= 10, name
        assert lines[0].startswith("#")
        assert "arXiv" in lines[0] or "released code" in lines[0], name


def test_they_train_in_one_sweep(tmp_path: Path) -> None:
    """One sweep over all presets, at width 16, where d_model^-1/2 is 1/4."""
    words = [
        "data=synthetic", "data.seq_len=16", "data.batch_size=2", "eval.windows=4", "schedule.n_steps=4",
        "model.d_model=16", "model.n_heads=2", "execution.device=cpu", "study=presets", "execution.workers=1",
        f"results_dir={tmp_path / 'results'}",
    ]  # fmt: skip
    with initialize_config_dir(str(compose.conf_dir()), version_base="1.3"):
        composed = [
            hydra.compose("config", [f"model={preset}", f"model.n_layers={depth}", *words])
            for preset in PRESETS
            for depth in (1, 2)
        ]
    execute.execute(planning.plan([compose.to_run_config(c) for c in composed]), REQUEST)
    runs = tables.read(tmp_path / "results" / "presets", "runs")
    found = {tuple(None if v != v else v for v in row) for row in runs[COLUMNS].itertuples(index=False)}
    assert found == {values + NUMBERS.get(name, (1e-5, 1e4)) for name, values in EXPECTED.items()}
    assert set(runs["status"]) == {"done"}
    assert runs["nonfinite_step"].isna().all()
    gated = runs["activation"].isin(["swiglu", "geglu_tanh"])
    assert set(runs.loc[gated, "resolved_d_ff"]) == {48}  # 8/3 of 16, up to a multiple of 8
    assert set(runs.loc[~gated, "resolved_d_ff"]) == {64}
