"""A golden table: two tiny runs, pinned to 1e-4.

Every number of a run belongs to its run_id. When a change of the code moves this table, the same config gives
other numbers than the results that people have on disk under the same id: raise `config.NUMERICS` in the same
commit (tests/test_config.py's golden ids then move as well) and renew the table. A change that moves bits but
stays within 1e-4, such as another order of summation, does not fail here and needs NUMERICS raised all the same.

The tolerance is for other kinds of CPU and versions of torch, which round otherwise: on one machine with other
instruction sets the numbers moved by less than 1e-6. Between them the two runs use both placements and norms, an
Adam with warmup and a limit that binds, an SGD with momentum, weight decay and a decaying rate.
"""

from __future__ import annotations

import pytest
import torch

from normstudy import data, train
from normstudy.config import DataConfig, EvalConfig, ModelConfig, OptimizerConfig, RunConfig, ScheduleConfig

torch.set_num_threads(1)

SHAPE = {"n_layers": 2, "d_model": 16, "n_heads": 2}
DATA = DataConfig(name="synthetic", seq_len=16, batch_size=4)
EVAL = EvalConfig(every=10, windows=16)
RUNS = {
    "pre": RunConfig(
        seed=1,
        model=ModelConfig(placement="pre", **SHAPE),
        data=DATA,
        eval=EVAL,
        # eps above the rounding noise in the key biases' gradient, which is zero in exact arithmetic
        optimizer=OptimizerConfig(eps=1e-5, max_grad_norm=1.0),
        schedule=ScheduleConfig(peak_lr=3e-3, warmup_steps=8, n_steps=20),
    ),
    "post": RunConfig(
        seed=2,
        data_seed=1,
        model=ModelConfig(placement="post", norm="rmsnorm", init="gpt2", **SHAPE),
        data=DATA,
        eval=EVAL,
        optimizer=OptimizerConfig(name="sgd", momentum=0.9, weight_decay=0.01),
        schedule=ScheduleConfig(name="cosine", peak_lr=1e-1, n_steps=20),
    ),
}

# step, train_loss, grad_norm, param_norm, update_norm, dLoss/dx_0, dLoss/dx_2, rms of x_2
TABLE = {
    "pre": [
        ( 0, 4.28154, 1.297036, 30.88268, 0.03349911, 0.08511357, 0.0494313, 1.573028),
        ( 1, 4.342841, 1.215818, 30.88265, 0.05521518, 0.09921709, 0.05229442, 1.499108),
        ( 5, 4.130864, 0.9729146, 30.8788, 0.1264102, 0.07308979, 0.04993835, 1.58888),
        (10, 3.902989, 0.9696802, 30.87778, 0.1494045, 0.06275506, 0.03928435, 1.976494),
        (19, 3.737292, 0.6800503, 30.89752, 0.112421, 0.03498267, 0.02539533, 2.92996),
    ],
    "post": [
        ( 0, 4.155944, 0.6110999, 27.08153, 0.06684306, 0.01168705, 0.0113261, 0.999995),
        ( 1, 4.12615, 0.5872494, 27.05451, 0.1035439, 0.01165152, 0.01145681, 0.9989851),
        ( 5, 4.014715, 0.5486945, 26.75102, 0.1875425, 0.02134248, 0.02147448, 0.990319),
        (10, 3.868071, 0.5802183, 26.24687, 0.160888, 0.03592876, 0.0376966, 0.987949),
        (19, 3.799343, 0.6081104, 25.88427, 0.002648643, 0.05742117, 0.05136314, 1.009714),
    ],
}  # fmt: skip
# validation losses at steps 0 and 10 and after the last update
VALIDATION = {
    "pre": [4.352498, 3.900728, 3.608822],
    "post": [4.145204, 3.778436, 3.538983],
}


@pytest.mark.parametrize("name", sorted(RUNS))
def test_golden_table(name: str) -> None:
    rows, validation = [], []
    for item in train.train_batch([RUNS[name]], data.load(DATA)):
        if isinstance(item, train.End):
            assert item.final_val_loss is not None
            validation.append(item.final_val_loss)
            continue
        if item.val_loss is not None:
            validation.append(item.val_loss[0])
        if item.step in (0, 1, 5, 10, 19):
            assert item.probe is not None
            grad, rms = item.probe.residual_grad[:, 0], item.probe.rms[:, 0]
            norms = (item.grad_norm[0], item.param_norm[0], item.update_norm[0])
            rows.append((item.step, item.train_loss[0], *norms, grad[0], grad[-1], rms[-1]))
    for row, expected in zip(rows, TABLE[name], strict=True):
        assert row == pytest.approx(expected, rel=1e-4), f"step {expected[0]}"
    assert validation == pytest.approx(VALIDATION[name], rel=1e-4)
