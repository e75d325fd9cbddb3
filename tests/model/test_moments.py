"""What norms read at initialization: the plan's estimate against real models, and the line of a plan that uses it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from normstudy.cli import main
from normstudy.config import DataConfig, ModelConfig, RunConfig
from normstudy.data import texts
from normstudy.model.init import init_params
from normstudy.model.moments import read_by_norms
from normstudy.model.norms import FunctionNorm
from normstudy.model.transformer import build

TEXT = texts.load(DataConfig(name="synthetic"))
SMALL = {"norm": "rmsnorm", "init": "normal", "embed_init": "std", "force_init": True, "biases": False}


def measured(model: ModelConfig) -> dict[str, float]:
    """Name -> mean square of what each norm of block 0, or the norm of x_0, reads on a batch of the run."""
    config = RunConfig(model=model, data=DataConfig(name="synthetic"))
    net, found = build(config, TEXT.vocab_size), {}

    def watch(name: str, norm: nn.Module) -> None:
        def hook(_: nn.Module, given: tuple[torch.Tensor]) -> None:
            found[name] = given[0].square().mean().item()

        norm.register_forward_pre_hook(hook)

    for name, module in net.named_modules():
        if isinstance(module, FunctionNorm) and name.startswith(("blocks.0.", "embed_norm")):
            watch(name.removeprefix("blocks.0."), module)
    params = {name: p[0] for name, p in init_params(net, [model], [0]).items()}
    tokens = torch.from_numpy(texts.batch(TEXT, 0, 0, 8, 64)[:, :-1])
    with torch.no_grad():
        torch.func.functional_call(net, params, (tokens,))
    return {name: square for name, square in found.items() if not name.startswith("attn.")}


@pytest.mark.parametrize("values", [{}, SMALL, SMALL | {"activation": "swiglu", "norm_eps": 1e-6, "embed_norm": True}])
@pytest.mark.parametrize(
    "placement", ["post", "peri", "reordered", "sub", "deepnorm", "lns", "b2t", "residual", "hybrid"]
)
def test_the_estimate_is_right_to_a_factor(placement: str, values: dict[str, object]) -> None:
    model = ModelConfig(**{"placement": placement, "n_layers": 4} | values)  # type: ignore[arg-type]
    estimated, found = read_by_norms(model, 64), measured(model)
    assert set(estimated) == set(found)
    for name, square in found.items():
        assert 0.4 < estimated[name] / square < 2, name


@pytest.mark.parametrize("eps", [1e-6, 1e-9])
def test_a_plan_says_once_where_eps_exceeds_the_variance(
    eps: float, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of two widths, only 64 is too narrow for the preset's eps."""
    words = ["model=olmo2", f"model.norm_eps={eps}", "model.d_model=64,512", "seed=0,1", "data=synthetic"]
    assert main.main(["sweep", *words, f"results_dir={tmp_path}", "execution.runs_per_batch=1", "--dry-run"]) == 0
    said = [line for line in capsys.readouterr().out.splitlines() if "norm_eps" in line]
    if eps == 1e-9:
        assert said == []
    else:
        (line,) = said
        assert "model.norm_eps 1e-06 exceeds the variance of norm2's input (about 3e-08 at init" in line
        assert "reordered and d_model 64), so the norm's output has an rms of 0.2 instead of 1: lower" in line
