"""A run's identity, its columns, and the errors of a request that cannot be run."""

from __future__ import annotations

import copy
import dataclasses
import math
import subprocess
import sys

import pytest

from normstudy import config
from normstudy.config import (
    ConfigError,
    DataConfig,
    EvalConfig,
    ExecutionConfig,
    ModelConfig,
    OptimizerConfig,
    ProbeConfig,
    RunConfig,
    ScheduleConfig,
    asked,
    asked_types,
    identity,
    resolve,
    run_id,
    short_float,
)
from normstudy.placements import PLACEMENTS

SHA = "0123456789abcdef" * 4


# ---- identity -----------------------------------------------------------------------------------------

# An id that moves here loses every result that anyone has: the way to change numbers is NUMERICS, the way to add a
# field is ABSENT.
GOLDEN_IDS = [
    (RunConfig(), "pre-L6-lr1e-3-wu0-s0-64a8469b88"),
    (RunConfig(seed=3), "pre-L6-lr1e-3-wu0-s3-b87d8e692a"),
    (RunConfig(seed=3, data_seed=0), "pre-L6-lr1e-3-wu0-s3-9f88b8a7da"),
    (
        RunConfig(
            model=ModelConfig(placement="post", norm="rmsnorm", init="gpt2", n_layers=12, d_model=128, n_heads=8),
            schedule=ScheduleConfig(peak_lr=3e-3, warmup_steps=100),
        ),
        "post-L12-lr3e-3-wu100-s0-150670cab1",
    ),
    (
        RunConfig(
            data=DataConfig(name="file", path="text.txt", seq_len=32, batch_size=1),
            optimizer=OptimizerConfig(name="sgd", momentum=0.9, weight_decay=0.01, max_grad_norm=1.0),
            schedule=ScheduleConfig(name="cosine", peak_lr=1.25e-4, n_steps=1000),
        ),
        "pre-L6-lr1.25e-4-wu0-s0-86745796b5",
    ),
    (
        RunConfig(
            model=ModelConfig(n_layers=1, d_ff=100, final_norm="false"),
            data=DataConfig(name="synthetic", source_seed=4),
            optimizer=OptimizerConfig(name="adamw", beta1=0.0, beta2=0.999, eps=1e-6),
            schedule=ScheduleConfig(name="inverse_sqrt", peak_lr=10, warmup_steps=7),
            probe=ProbeConfig(dense_steps=0, every=1),
            eval=EvalConfig(every=7, windows=3),
        ),
        "pre-L1-lr1e1-wu7-s0-348028ac5e",
    ),
]


@pytest.mark.parametrize(("c", "expected"), GOLDEN_IDS)
def test_golden_run_ids(c: RunConfig, expected: str) -> None:
    assert run_id(c, SHA) == expected


def test_versions_and_the_text_are_part_of_the_identity(monkeypatch: pytest.MonkeyPatch) -> None:
    ids = {run_id(RunConfig(), SHA), run_id(RunConfig(), SHA[::-1])}
    for name in ("NUMERICS", "IDENTITY_VERSION"):
        with monkeypatch.context() as patch:
            patch.setattr(config, name, getattr(config, name) + 1)
            ids.add(run_id(RunConfig(), SHA))
    assert len(ids) == 4


# One other legal value for every field. Base is BASE, in which each is legal on its own.
BASE = RunConfig(seed=1, data_seed=2, data=DataConfig(name="file", path="a.txt"))
OTHER: dict[str, dict[str, object]] = {
    "": {"study": "other", "results_dir": "elsewhere", "seed": 5, "data_seed": 6},
    "model": {
        "placement": "post",
        "norm": "rmsnorm",
        "init": "normal",
        "n_layers": 7,
        "d_model": 128,
        "n_heads": 8,
        "d_ff": 257,
        "final_norm": "false",
    },
    "data": {"name": "stdlib", "path": "b.txt", "seq_len": 65, "batch_size": 9, "source_seed": 1},
    "optimizer": {
        "name": "sgd",
        "beta1": 0.91,
        "beta2": 0.99,
        "eps": 1e-7,
        "momentum": 0.1,
        "weight_decay": 0.1,
        "max_grad_norm": 1.0,
    },
    "schedule": {"name": "linear", "peak_lr": 2e-3, "warmup_steps": 1, "n_steps": 601},
    "probe": {"dense_steps": 51, "every": 21},
    "eval": {"every": 101, "windows": 65},
    "execution": {"device": "cpu", "workers": 3, "runs_per_batch": 5},
}
NOT_PART_OF_A_RUN = {("", "study"), ("", "results_dir"), ("data", "path")} | {
    ("execution", f.name) for f in dataclasses.fields(ExecutionConfig)
}


def test_every_single_field_is_in_the_identity_or_excepted_by_name() -> None:
    """Which catches a field that someone adds and forgets here as well as one forgotten in the identity."""
    sections = {f.name for f in dataclasses.fields(RunConfig) if dataclasses.is_dataclass(getattr(BASE, f.name))}
    assert set(OTHER) == sections | {""}
    seen = {run_id(BASE, SHA)}
    for section, values in OTHER.items():
        part = getattr(BASE, section) if section else BASE
        assert set(values) == {f.name for f in dataclasses.fields(part)} - sections, section
        for leaf, value in values.items():
            changed = copy.deepcopy(BASE)
            assert getattr(part, leaf) != value
            setattr(getattr(changed, section) if section else changed, leaf, value)
            if (section, leaf) in NOT_PART_OF_A_RUN:
                assert run_id(changed, SHA) == run_id(BASE, SHA), (section, leaf)
            else:
                assert run_id(changed, SHA) not in seen, (section, leaf)
                seen.add(run_id(changed, SHA))


def test_a_changed_default_is_another_run() -> None:
    """All fields are hashed as they are, so what an id means does not depend on the defaults of the day."""
    hashed = identity(RunConfig(), SHA)
    for column in ("beta2", "eps", "eval_windows", "probe_every", "seq_len", "weight_decay", "max_grad_norm"):
        assert column in hashed


def test_an_id_is_of_the_resolved_values() -> None:
    """`auto` and what it stands for are one run; so are 1 and 1.0 for a rate."""
    auto = RunConfig(model=ModelConfig(d_model=64))
    spelled_out = RunConfig(model=ModelConfig(d_model=64, init="xavier", d_ff=256, final_norm="true"))
    assert run_id(auto, SHA) == run_id(spelled_out, SHA)
    assert asked(auto)["init"] == "auto"
    assert asked(spelled_out)["init"] == "xavier"
    assert run_id(RunConfig(schedule=ScheduleConfig(peak_lr=1)), SHA) == run_id(
        RunConfig(schedule=ScheduleConfig(peak_lr=1.0)), SHA
    )
    assert run_id(RunConfig(seed=4), SHA) == run_id(RunConfig(seed=4, data_seed=4), SHA)


def test_a_field_added_later_leaves_old_ids_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """While it equals its value for runs made before it existed; any other value is another run."""
    with_field = identity(RunConfig(), SHA)
    monkeypatch.setitem(config.ABSENT, "eps", 1e-8)
    without = identity(RunConfig(), SHA)
    assert with_field == {**without, "eps": 1e-8}
    assert "eps" not in without
    used = RunConfig(optimizer=OptimizerConfig(eps=1e-6))
    assert identity(used, SHA)["eps"] == 1e-6
    assert run_id(used, SHA) != run_id(RunConfig(), SHA)


@pytest.mark.parametrize(
    ("peak_lr", "expected"),
    [(3e-3, "3e-3"), (1.25e-4, "1.25e-4"), (1.0, "1e0"), (10, "1e1"), (1e-10, "1e-10")],
)
def test_the_readable_part_of_an_id(peak_lr: float, expected: str) -> None:
    c = RunConfig(
        seed=12,
        model=ModelConfig(placement="post", n_layers=3),
        schedule=ScheduleConfig(peak_lr=peak_lr, warmup_steps=20),
    )
    readable, _, digest = run_id(c, SHA).rpartition("-")
    assert readable == f"post-L3-lr{expected}-wu20-s12"
    assert len(digest) == 10
    assert set(digest) <= set("0123456789abcdef")


def test_short_float_gives_the_same_float_back() -> None:
    for value in (3e-3, 1 / 3, 0.1 + 0.2, math.pi * 1e-7, 5e-324, 1.7976931348623157e308):
        assert float(short_float(value)) == value


# ---- resolved values ----------------------------------------------------------------------------------


def test_resolve_by_hand() -> None:
    pre, post = resolve(ModelConfig(placement="pre", d_model=32)), resolve(ModelConfig(placement="post", d_ff=7))
    assert (pre.d_ff, pre.init, pre.final_norm) == (128, "xavier", True)
    assert (post.d_ff, post.init, post.final_norm) == (7, "xavier", False)
    assert resolve(ModelConfig(placement="post", final_norm="true")).final_norm
    assert not resolve(ModelConfig(placement="pre", final_norm="false")).final_norm
    assert resolve(ModelConfig(init="gpt2")).init == "gpt2"


@pytest.mark.parametrize(("given", "kept"), [(True, "true"), (False, "false"), ("True", "true"), ("auto", "auto")])
def test_final_norm_takes_the_bool_that_yaml_makes(given: str, kept: str) -> None:
    assert ModelConfig(final_norm=given).final_norm == kept


def test_data_seed_follows_the_seed() -> None:
    assert RunConfig(seed=9).data_seed == 9
    assert RunConfig(seed=9, data_seed=0).data_seed == 0


# ---- names and columns --------------------------------------------------------------------------------


def test_names_are_the_registries_keys() -> None:
    from normstudy.init import INITS
    from normstudy.norms import NORMS
    from normstudy.optim import OPTIMIZERS, SLOTS
    from normstudy.reference import BLOCKS, FINAL_NORM

    assert set(config.NORM_NAMES) == set(NORMS)
    assert set(config.INIT_NAMES) == set(INITS)
    assert set(config.OPTIMIZER_NAMES) == set(OPTIMIZERS) == set(SLOTS)
    assert set(config.PLACEMENT_NAMES) == set(PLACEMENTS) == set(BLOCKS) == set(FINAL_NORM)
    assert all(row.init in INITS for row in PLACEMENTS.values())
    assert {name: row.final_norm for name, row in PLACEMENTS.items()} == FINAL_NORM


def test_columns_are_unique_and_typed() -> None:
    kinds, values = asked_types(), asked(RunConfig())
    assert list(kinds) == list(values)
    leaves = sum(
        len(dataclasses.fields(c))
        for c in (ModelConfig, DataConfig, OptimizerConfig, ScheduleConfig, ProbeConfig, EvalConfig)
    )
    assert len(kinds) == leaves + 3  # none lost to another of the same name; study, seed and data_seed
    for column, kind in kinds.items():
        assert kind in (int, float, str, bool), column
        if values[column] is not None:
            assert isinstance(values[column], kind), column


def test_columns_carry_the_leaf_s_name_and_a_group_s_own() -> None:
    c = RunConfig(
        study="mine",
        optimizer=OptimizerConfig(name="sgd"),
        schedule=ScheduleConfig(name="cosine", warmup_steps=5),
        probe=ProbeConfig(every=7),
        eval=EvalConfig(every=8),
    )
    values = asked(c)
    expected = {"study": "mine", "optimizer": "sgd", "schedule": "cosine", "data": "stdlib", "warmup_steps": 5}
    assert values.items() >= (expected | {"probe_every": 7, "eval_every": 8, "data_path": None, "d_ff": None}).items()
    assert not {"name", "every", "path", "workers", "device", "results_dir"} & set(values)


def test_config_and_data_do_not_import_torch() -> None:
    code = "import sys, normstudy.config, normstudy.data; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# ---- errors -------------------------------------------------------------------------------------------

NAN, INF = math.nan, math.inf
BAD: list[tuple[type, dict[str, object], str]] = [
    (ModelConfig, {"placement": "pree"}, "model.placement 'pree' is not one of pre, post. Did you mean pre?"),
    (ModelConfig, {"placement": ""}, "model.placement '' is not one of pre, post."),
    (ModelConfig, {"norm": "rms_norm"}, "is not one of layernorm, rmsnorm. Did you mean rmsnorm?"),
    (ModelConfig, {"init": "Xavier"}, "is not one of auto, xavier, normal, gpt2. Did you mean xavier?"),
    (ModelConfig, {"final_norm": "yes"}, "model.final_norm 'yes' is not one of auto, true, false."),
    (ModelConfig, {"n_layers": 0}, "model.n_layers 0 is below 1"),
    (ModelConfig, {"d_model": 0}, "model.d_model 0 is below 1"),
    (ModelConfig, {"n_heads": -2}, "model.n_heads -2 is below 1"),
    (ModelConfig, {"d_ff": 0}, "model.d_ff 0 is below 1"),
    (ModelConfig, {"d_model": 65, "n_heads": 4}, "model.d_model 65 is not divisible by model.n_heads 4"),
    (DataConfig, {"name": "stlib"}, "is not one of stdlib, pydoc, synthetic, file. Did you mean stdlib?"),
    (DataConfig, {"seq_len": 0}, "data.seq_len 0 is below 1"),
    (DataConfig, {"batch_size": 0}, "data.batch_size 0 is below 1"),
    (DataConfig, {"source_seed": -1}, "data.source_seed -1 is out of range"),
    (DataConfig, {"name": "file"}, "data=file needs a text: give data.path=FILE"),
    (DataConfig, {"name": "file", "path": ""}, "data=file needs a text"),
    (DataConfig, {"path": "a.txt"}, "data.path 'a.txt' is read by data=file only, not by data=stdlib"),
    (OptimizerConfig, {"name": "adamv"}, "optimizer.name 'adamv' is not one of adam, adamw, sgd. Did you mean adam"),
    (OptimizerConfig, {"beta1": 1.0}, "beta1 1.0 is out of range: give a finite number at least 0 and below 1"),
    (OptimizerConfig, {"beta2": -0.1}, "optimizer.beta2 -0.1 is out of range"),
    (OptimizerConfig, {"momentum": NAN}, "optimizer.momentum nan is out of range"),
    (OptimizerConfig, {"eps": -1e-8}, "optimizer.eps -1e-08 is out of range"),
    (OptimizerConfig, {"weight_decay": INF}, "optimizer.weight_decay inf is out of range"),
    (OptimizerConfig, {"max_grad_norm": 0.0}, "max_grad_norm 0.0 is out of range: give a finite number above 0"),
    (OptimizerConfig, {"max_grad_norm": NAN}, "optimizer.max_grad_norm nan is out of range"),
    (ScheduleConfig, {"name": "cosin"}, "Did you mean cosine?"),
    (ScheduleConfig, {"peak_lr": 0.0}, "schedule.peak_lr 0.0 is out of range: give a finite number above 0"),
    (ScheduleConfig, {"peak_lr": -1e-3}, "schedule.peak_lr -0.001 is out of range"),
    (ScheduleConfig, {"peak_lr": NAN}, "schedule.peak_lr nan is out of range"),
    (ScheduleConfig, {"peak_lr": INF}, "schedule.peak_lr inf is out of range"),
    (ScheduleConfig, {"warmup_steps": -1}, "schedule.warmup_steps -1 is below 0"),
    (ScheduleConfig, {"n_steps": 0}, "schedule.n_steps 0 is below 1"),
    (
        ScheduleConfig,
        {"warmup_steps": 2000, "n_steps": 1000},
        "schedule.warmup_steps 2000 exceeds schedule.n_steps 1000: shorten the warmup or lengthen the run",
    ),
    (ProbeConfig, {"dense_steps": -1}, "probe.dense_steps -1 is below 0"),
    (ProbeConfig, {"every": 0}, "probe.every 0 is below 1"),
    (EvalConfig, {"every": 0}, "eval.every 0 is below 1"),
    (EvalConfig, {"windows": 0}, "eval.windows 0 is below 1"),
    (ExecutionConfig, {"device": "gpu"}, "execution.device 'gpu' is not one of auto, cpu, cuda"),
    (ExecutionConfig, {"workers": 0}, "execution.workers 0 is below 1"),
    (ExecutionConfig, {"runs_per_batch": 0}, "execution.runs_per_batch 0 is below 1"),
    (RunConfig, {"seed": -1}, "seed -1 is out of range: give an integer from 0 to 2147483647"),
    (RunConfig, {"seed": 2**31}, "seed 2147483648 is out of range"),
    (RunConfig, {"data_seed": -1}, "data_seed -1 is out of range"),
    (RunConfig, {"results_dir": " "}, "results_dir is empty: give a folder"),
    *[
        (RunConfig, {"study": study}, f"study {study!r} is not a study name")
        for study in ("", ".", "..", "a/b", "../x", "a..b", ".hidden", "-x", "a b", "x" * 81, "a\n", "a.", "é")
    ],
]  # fmt: skip


@pytest.mark.parametrize(("cls", "values", "message"), BAD)
def test_a_bad_value_is_one_line_with_what_is_allowed(cls: type, values: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        cls(**values)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_the_bounds_themselves_are_legal() -> None:
    ModelConfig(n_layers=1, d_model=1, n_heads=1, d_ff=1)
    OptimizerConfig(beta1=0.0, beta2=0.0, eps=0.0, momentum=0.0, weight_decay=0.0)
    ScheduleConfig(warmup_steps=5, n_steps=5)
    ProbeConfig(dense_steps=0, every=1)
    RunConfig(seed=2**31 - 1, study="warmup-n_layers8", data_seed=0)
    RunConfig(study="x" * 80)
