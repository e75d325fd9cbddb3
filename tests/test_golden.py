"""A golden table: the numbers of tiny runs, to a relative tolerance of 1e-4.

A run_id stands for the numbers of its run. If a change of the code changes this table, the same config gives other
numbers than the results that users have under the same id. Then raise `config.NUMERICS` in the same commit, which also
changes the golden ids of tests/config/test_config.py, and renew the table. A change of bits within 1e-4, such as
another order of summation, does not fail here, but needs NUMERICS raised too.

The tolerance allows for other CPUs and versions of torch, which round differently: other instruction sets on one
machine changed the numbers by less than 1e-6. The first two runs cover pre- and post-norm, LayerNorm and RMSNorm, Adam
with warmup and effective clipping, SGD with momentum, weight decay and a decaying rate. The others cover features added
later: profiled omegas, two streams, DyT, QK-norm, RoPE, gates, inits.
"""

from __future__ import annotations

import pytest
import torch

from normstudy.config import DataConfig, EvalConfig, ModelConfig, OptimizerConfig, RunConfig, ScheduleConfig
from normstudy.data import texts
from normstudy.training import batch

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
        # eps is larger than the rounding noise in the gradient of key biases, which is zero in exact arithmetic
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
    "admin": RunConfig(
        seed=3,
        model=ModelConfig(placement="admin", positions="sinusoidal", activation="geglu", **SHAPE),
        data=DATA,
        eval=EVAL,
        optimizer=OptimizerConfig(eps=1e-5),
        schedule=ScheduleConfig(peak_lr=3e-3, n_steps=20),
    ),
    "sub": RunConfig(
        seed=4,
        model=ModelConfig(placement="sub", norm="dyt", qk_norm="full", tied=True, embed_init="scaled", **SHAPE),
        data=DATA,
        eval=EVAL,
        optimizer=OptimizerConfig(name="adamw", eps=1e-5, weight_decay=0.1),
        schedule=ScheduleConfig(name="linear", peak_lr=3e-3, warmup_steps=4, n_steps=20),
    ),
    "hybrid": RunConfig(
        seed=5,
        model=ModelConfig(
            placement="hybrid", first_block="star", norm="rmsnorm", positions="rope", activation="swiglu", biases=False,
            init="tfixup", embed_norm=True, **SHAPE,
        ),
        data=DATA,
        eval=EVAL,
        optimizer=OptimizerConfig(eps=1e-5),
        schedule=ScheduleConfig(peak_lr=3e-3, warmup_steps=8, n_steps=20),
    ),
    "residual": RunConfig(
        seed=6,
        model=ModelConfig(placement="residual", activation="relu", unembed_std=0.2, **SHAPE),
        data=DATA,
        eval=EVAL,
        optimizer=OptimizerConfig(name="sgd", momentum=0.5, max_grad_norm=0.5),
        schedule=ScheduleConfig(peak_lr=1e-1, n_steps=20),
    ),
}  # fmt: skip

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
    "admin": [
        ( 0, 4.279253, 1.271154, 30.65387, 0.2739534, 0.09932723, 0.07797621, 0.9999977),
        ( 1, 4.253674, 1.090888, 30.65102, 0.2117192, 0.08459144, 0.08128411, 1.000078),
        ( 5, 3.914921, 1.358784, 30.64557, 0.1545863, 0.08203911, 0.07927401, 1.000773),
        (10, 3.763672, 1.16366, 30.64966, 0.1307937, 0.08237225, 0.0760373, 1.007974),
        (19, 3.664832, 0.8017191, 30.66862, 0.09992754, 0.05126894, 0.07779536, 1.032009),
    ],
    "sub": [
        ( 0, 4.128633, 0.5451474, 25.99247, 0.06458789, 0.05033655, 0.04839329, 0.994651),
        ( 1, 4.184517, 0.5266348, 25.98809, 0.09879594, 0.04951138, 0.0473139, 0.9651506),
        ( 5, 4.120144, 0.5720307, 25.95012, 0.1514586, 0.04778747, 0.0455714, 1.011236),
        (10, 3.962947, 0.5965488, 25.94266, 0.09662062, 0.04540737, 0.04298212, 1.184541),
        (19, 3.869654, 0.6179556, 25.97858, 0.009641837, 0.04066544, 0.0389905, 1.389087),
    ],
    "hybrid": [
        ( 0, 4.363652, 0.8161104, 37.38867, 0.03328116, 0.08051787, 0.07101279, 1.000935),
        ( 1, 4.478217, 0.8722799, 37.38822, 0.05168059, 0.08211327, 0.0715686, 0.9991005),
        ( 5, 4.297313, 0.7792045, 37.38322, 0.1167507, 0.08198298, 0.07075153, 1.000487),
        (10, 4.176843, 0.8848406, 37.38147, 0.1447008, 0.07642682, 0.07138558, 1.007205),
        (19, 3.866513, 0.9888695, 37.4241, 0.1410244, 0.08085857, 0.06505736, 1.046926),
    ],
    "residual": [
        ( 0, 6.53721, 4.439156, 31.54756, 0.04999999, 0.2597045, 0.1170198, 0.9999967),
        ( 1, 5.750751, 3.569767, 31.54491, 0.06847045, 0.2480676, 0.1140272, 0.9969495),
        ( 5, 5.125783, 3.001375, 31.53168, 0.08548906, 0.2508395, 0.1048729, 0.9853748),
        (10, 4.327956, 2.376935, 31.52142, 0.08418057, 0.2161824, 0.09722473, 0.981477),
        (19, 3.767721, 1.674282, 31.50952, 0.07208873, 0.1021334, 0.09127224, 0.9659573),
    ],
}  # fmt: skip
# validation losses at steps 0 and 10 and after the last update
VALIDATION = {
    "pre": [4.352498, 3.900728, 3.608822],
    "post": [4.145204, 3.778436, 3.538983],
    "admin": [4.321683, 3.769698, 3.498483],
    "sub": [4.203063, 4.005943, 3.905173],
    "hybrid": [4.389653, 4.159152, 3.811074],
    "residual": [5.92193, 4.40357, 3.681214],
}


@pytest.mark.parametrize("name", sorted(RUNS))
def test_golden_table(name: str) -> None:
    rows, validation = [], []
    for item in batch.train_batch([RUNS[name]], texts.load(DATA)):
        if isinstance(item, batch.End):
            assert item.final_val_loss is not None
            validation.append(item.final_val_loss)
            continue
        if item.val_loss is not None and item.step in (0, 10):
            validation.append(item.val_loss[0])
        if item.step in (0, 1, 5, 10, 19):
            assert item.probe is not None
            grad, rms = item.probe.residual_grad[:, 0], item.probe.rms[:, 0]
            norms = (item.grad_norm[0], item.param_norm[0], item.update_norm[0])
            rows.append((item.step, item.train_loss[0], *norms, grad[0], grad[-1], rms[-1]))
    for row, expected in zip(rows, TABLE[name], strict=True):
        assert row == pytest.approx(expected, rel=1e-4), f"step {expected[0]}"
    assert validation == pytest.approx(VALIDATION[name], rel=1e-4)
