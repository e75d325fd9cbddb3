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
    resolve,
    run_id,
    short_float,
)
from normstudy.config.identity import identity
from normstudy.placements import PLACEMENTS

SHA = "0123456789abcdef" * 4


# ---- identity -----------------------------------------------------------------------------------------

# If an id here changes, users lose the results that they have. Changed numbers need NUMERICS raised; a new field needs
# an entry in ABSENT.
GOLDEN_IDS = [
    (RunConfig(), "pre-L6-lr1e-3-wu0-s0-7d32ccb155"),
    (RunConfig(seed=3), "pre-L6-lr1e-3-wu0-s3-7803135356"),
    (RunConfig(seed=3, data_seed=0), "pre-L6-lr1e-3-wu0-s3-1397ff96e9"),
    (
        RunConfig(
            model=ModelConfig(placement="post", norm="rmsnorm", init="gpt2", n_layers=12, d_model=128, n_heads=8),
            schedule=ScheduleConfig(peak_lr=3e-3, warmup_steps=100),
        ),
        "post-L12-lr3e-3-wu100-s0-0e4d22106d",
    ),
    (
        RunConfig(
            data=DataConfig(name="file", path="text.txt", seq_len=32, batch_size=1),
            optimizer=OptimizerConfig(name="sgd", momentum=0.9, weight_decay=0.01, max_grad_norm=1.0),
            schedule=ScheduleConfig(name="cosine", peak_lr=1.25e-4, n_steps=1000),
        ),
        "pre-L6-lr1.25e-4-wu0-s0-83f0c39355",
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
        "pre-L1-lr1e1-wu7-s0-4973c4de5b",
    ),
    (
        RunConfig(model=ModelConfig(placement="peri", norm="dyt", qk_norm="per_head", positions="rope")),
        "peri-L6-lr1e-3-wu0-s0-4bdeae2c42",
    ),
    (
        RunConfig(model=ModelConfig(placement="reordered", norm="rmsnorm", activation="swiglu", biases=False)),
        "reordered-L6-lr1e-3-wu0-s0-87f923065a",
    ),
    (
        RunConfig(model=ModelConfig(placement="hybrid", first_block="star", embed_init="std", tied=True)),
        "hybrid-L6-lr1e-3-wu0-s0-c068af04d0",
    ),
    (
        RunConfig(
            model=ModelConfig(placement="deepnorm", init="gpt2", force_init=True, unembed_std=0.1, embed_norm=True)
        ),
        "deepnorm-L6-lr1e-3-wu0-s0-613934b75b",
    ),
    (
        RunConfig(
            model=ModelConfig(placement="rezero", embed_init="scaled", embed_std=0.5, positions="sinusoidal"),
            data=DataConfig(tokenizer="bpe", vocab_size=700),
        ),
        "rezero-L6-lr1e-3-wu0-s0-c12d82b47b",
    ),
]


@pytest.mark.parametrize(("c", "expected"), GOLDEN_IDS)
def test_golden_run_ids(c: RunConfig, expected: str) -> None:
    assert run_id(c, SHA) == expected


def test_versions_and_the_text_are_part_of_the_identity(monkeypatch: pytest.MonkeyPatch) -> None:
    ids = {run_id(RunConfig(), SHA), run_id(RunConfig(), SHA[::-1])}
    for name in ("NUMERICS", "IDENTITY_VERSION"):
        with monkeypatch.context() as patch:
            patch.setattr(f"normstudy.config.identity.{name}", getattr(config, name) + 1)
            ids.add(run_id(RunConfig(), SHA))
    assert len(ids) == 4


# Another legal value for every field. Each is legal when it alone changes in BASE.
BASE = RunConfig(seed=1, data_seed=2, data=DataConfig(name="file", path="a.txt"))
OTHER: dict[str, dict[str, object]] = {
    "": {"study": "other", "results_dir": "elsewhere", "seed": 5, "data_seed": 6},
    "model": {
        "placement": "post",
        "norm": "rmsnorm",
        "norm_eps": 1e-6,
        "qk_norm": "full",
        "init": "normal",
        "force_init": True,
        "embed_init": "scaled",
        "embed_std": 0.5,
        "unembed_std": 0.25,
        "embed_norm": True,
        "n_layers": 7,
        "d_model": 128,
        "n_heads": 8,
        "d_ff": 257,
        "activation": "relu",
        "positions": "none",
        "rope_base": 5e5,
        "biases": False,
        "tied": True,
        "first_block": "star",
        "final_norm": "false",
    },
    "data": {
        "name": "stdlib",
        "path": "b.txt",
        "tokenizer": "char",
        "vocab_size": 600,
        "seq_len": 65,
        "batch_size": 9,
        "source_seed": 1,
    },
    "optimizer": {
        "name": "sgd",
        "beta1": 0.91,
        "beta2": 0.99,
        "eps": 1e-7,
        "momentum": 0.1,
        "weight_decay": 0.1,
        "decay": "matrices",
        "max_grad_norm": 1.0,
    },
    "schedule": {"name": "linear", "peak_lr": 2e-3, "warmup_steps": 1, "n_steps": 601},
    "probe": {"dense_steps": 51, "every": 21},
    "eval": {"every": 101, "windows": 65},
    "execution": {
        "cluster": "slurm", "device": "cpu", "workers": 3, "runs_per_batch": 5, "checkpoint_seconds": 5.0,
        "retry_failed": False, "max_tries": 1, "partition": "long", "account": "mine", "gpus": 1, "memory_gb": 4.0,
        "minutes": 30, "signal_seconds": 60, "requeues": 1, "jobs": 2, "sbatch": {"qos": "low"},
    },
    "search": {"of": "n_layers", "low": 2.0, "high": 3.0, "width": 0.3, "max_runs": 61},
}  # fmt: skip
NOT_PART_OF_A_RUN = {("", "study"), ("", "results_dir"), ("data", "path"), ("model", "force_init")} | {
    (section, leaf) for section in ("execution", "search") for leaf in OTHER[section]
}


def test_every_single_field_is_in_the_identity_or_excepted_by_name() -> None:
    """A new field fails this test until it is added here, and until it changes the run_id or is excepted."""
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
    """All fields are hashed, so the meaning of an id does not depend on the current defaults."""
    hashed = identity(RunConfig(), SHA)
    for column in ("beta2", "eps", "eval_windows", "probe_every", "seq_len", "weight_decay", "max_grad_norm"):
        assert column in hashed


def test_an_id_is_of_the_resolved_values() -> None:
    """`auto` and the value it stands for are the same run, as are the rates 1 and 1.0."""
    auto = RunConfig(model=ModelConfig(d_model=64))
    spelled_out = RunConfig(model=ModelConfig(d_model=64, init="xavier", d_ff=256, final_norm="true"))
    assert run_id(auto, SHA) == run_id(spelled_out, SHA)
    assert asked(auto)["init"] == "auto"
    assert asked(spelled_out)["init"] == "xavier"
    assert run_id(RunConfig(schedule=ScheduleConfig(peak_lr=1)), SHA) == run_id(
        RunConfig(schedule=ScheduleConfig(peak_lr=1.0)), SHA
    )
    assert run_id(RunConfig(seed=4), SHA) == run_id(RunConfig(seed=4, data_seed=4), SHA)


@pytest.mark.parametrize(
    ("asked_for", "spelled_out"),
    [
        ({}, {"norm": "layernorm", "qk_norm": "none", "init": "xavier", "d_ff": 256, "final_norm": "true"}),
        ({"placement": "post"}, {"norm": "layernorm", "final_norm": "false"}),
        ({"placement": "reordered"}, {"qk_norm": "full"}),
        ({"placement": "sub"}, {"init": "sub"}),
        ({"placement": "deepnorm"}, {"init": "deepnorm"}),
        ({"placement": "rezero"}, {"norm": "none", "qk_norm": "none", "final_norm": "false"}),
        ({"placement": "none"}, {"norm": "none", "init": "tfixup"}),
        ({"norm": "none"}, {"final_norm": "false", "qk_norm": "none"}),
        ({"embed_init": "std"}, {"embed_std": 0.02}),
        ({"embed_init": "scaled"}, {"embed_std": 0.125}),
        ({"activation": "swiglu"}, {"d_ff": 176}),
    ],
)
def test_auto_and_what_it_stands_for_are_one_run(asked_for: dict[str, object], spelled_out: dict[str, object]) -> None:
    auto = RunConfig(model=ModelConfig(**asked_for))
    assert run_id(auto, SHA) == run_id(RunConfig(model=ModelConfig(**(asked_for | spelled_out))), SHA)
    for leaf in spelled_out:
        assert asked(auto)[leaf] == asked_for.get(leaf, getattr(ModelConfig(), leaf))


def test_a_null_vocabulary_is_512_tokens_of_bpe() -> None:
    ids = [run_id(RunConfig(data=DataConfig(tokenizer="bpe", vocab_size=v)), SHA) for v in (None, 512, 513)]
    assert ids[0] == ids[1] != ids[2]
    assert len({run_id(RunConfig(data=DataConfig(tokenizer=t)), SHA) for t in ("byte", "char", "bpe")}) == 3


def test_fields_that_older_runs_lack_are_absent_at_their_defaults() -> None:
    """The ids of runs made before these fields existed stay valid. ABSENT must not follow a changed default."""
    hashed = identity(RunConfig(), SHA)
    added = {
        "qk_norm": "none", "force_init": False, "embed_init": "unit", "embed_std": None, "unembed_std": None,
        "embed_norm": False, "first_block": "same", "activation": "gelu", "positions": "learned", "biases": True,
        "tied": False, "placement_sha256": None, "norm_sha256": None, "tokenizer": "byte", "vocab_size": None,
        "norm_eps": 1e-5, "rope_base": 1e4, "decay": "all",
    }  # fmt: skip
    assert {k: v for k, v in config.ABSENT.items() if k in added} == added
    assert not set(config.ABSENT) & set(hashed)
    assert hashed["norm"] == "layernorm"


def test_a_field_added_later_leaves_old_ids_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """The field is left out while it equals its ABSENT value. Any other value is another run."""
    with_field = identity(RunConfig(), SHA)
    monkeypatch.setitem(config.ABSENT, "eps", 1e-8)
    without = identity(RunConfig(), SHA)
    assert with_field == {**without, "eps": 1e-8}
    assert "eps" not in without
    used = RunConfig(optimizer=OptimizerConfig(eps=1e-6))
    assert identity(used, SHA)["eps"] == 1e-6
    assert run_id(used, SHA) != run_id(RunConfig(), SHA)


@pytest.mark.parametrize(
    ("peak_lr", "expected"), [(3e-3, "3e-3"), (1.25e-4, "1.25e-4"), (1.0, "1e0"), (10, "1e1"), (1e-10, "1e-10")]
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


# placement: final norm, init, norm, QK-norm
RESOLVED = {
    "pre": (True, "xavier", "layernorm", "none"),
    "post": (False, "xavier", "layernorm", "none"),
    "peri": (True, "xavier", "layernorm", "none"),
    "reordered": (True, "xavier", "layernorm", "full"),
    "sub": (True, "sub", "layernorm", "none"),
    "deepnorm": (False, "deepnorm", "layernorm", "none"),
    "admin": (False, "xavier", "layernorm", "none"),
    "lns": (True, "xavier", "layernorm", "none"),
    "mix": (True, "xavier", "layernorm", "none"),
    "b2t": (False, "xavier", "layernorm", "none"),
    "residual": (True, "xavier", "layernorm", "none"),
    "hybrid": (True, "xavier", "layernorm", "per_head"),
    "rezero": (False, "xavier", "none", "none"),
    "none": (False, "tfixup", "none", "none"),
}


def test_resolve_of_every_placement_by_hand() -> None:
    got = {p: resolve(ModelConfig(placement=p)) for p in config.PLACEMENT_NAMES}
    assert {p: (r.final_norm, r.init, r.norm, r.qk_norm) for p, r in got.items()} == RESOLVED
    for placement in RESOLVED:
        if placement not in ("rezero", "none"):
            without = resolve(ModelConfig(placement=placement, norm="none"))
            assert (without.final_norm, without.norm, without.qk_norm) == (False, "none", "none")


def test_resolve_of_shapes_and_embeddings_by_hand() -> None:
    def d_ff(**values: object) -> int:
        return resolve(ModelConfig(**values)).d_ff

    assert [d_ff(d_model=64, activation=a) for a in config.ACTIVATION_NAMES] == [256] * 3 + [176] * 3
    assert d_ff(d_model=96, activation="swiglu") == 256  # 8/3 exactly
    assert d_ff(activation="swiglu", d_ff=100) == 100
    stds = [
        resolve(ModelConfig(embed_init=kind, embed_std=given)).embed_std
        for kind, given in (("unit", None), ("std", None), ("std", 0.5), ("scaled", None), ("scaled", 0.5))
    ]
    assert stds == [None, 0.02, 0.5, 0.125, 0.5]  # 64^(-1/2)


@pytest.mark.parametrize(("given", "kept"), [(True, "true"), (False, "false"), ("True", "true"), ("auto", "auto")])
def test_final_norm_takes_the_bool_that_yaml_makes(given: str, kept: str) -> None:
    assert ModelConfig(final_norm=given).final_norm == kept


def test_data_seed_follows_the_seed() -> None:
    assert RunConfig(seed=9).data_seed == 9
    assert RunConfig(seed=9, data_seed=0).data_seed == 0


# ---- names and columns --------------------------------------------------------------------------------


def test_names_are_the_registries_keys() -> None:
    from normstudy.model.norms import NORMS
    from normstudy.model.transformer import ACTIVATIONS
    from normstudy.reference import ACTIVATIONS as REFERENCE_ACTIVATIONS
    from normstudy.reference import BLOCKS, FINAL_NORM
    from normstudy.training.optim import OPTIMIZERS

    assert set(config.NORM_NAMES) == set(NORMS)
    assert set(config.ACTIVATION_NAMES) == set(ACTIVATIONS) == set(REFERENCE_ACTIVATIONS)
    assert set(config.GATED) == {name for name in ACTIVATIONS if "glu" in name}
    assert set(config.OPTIMIZER_NAMES) == set(OPTIMIZERS)
    assert set(config.PLACEMENT_NAMES) == set(PLACEMENTS) == set(BLOCKS) == set(FINAL_NORM)
    for row in PLACEMENTS.values():
        assert {row.init, *(row.inits or ())} <= set(config.INIT_NAMES)
        assert set(row.norms or ()) <= set(NORMS)
        assert row.qk_norm in config.QK_NORM_NAMES
        assert not set(row.aliases) & set(PLACEMENTS)
    assert {name: row.final_norm for name, row in PLACEMENTS.items()} == FINAL_NORM
    aliases = [alias for row in PLACEMENTS.values() for alias in row.aliases]
    assert len(aliases) == len(set(aliases))


def test_columns_are_unique_and_typed() -> None:
    kinds, values = asked_types(), asked(RunConfig())
    assert list(kinds) == list(values)
    leaves = sum(
        len(dataclasses.fields(c))
        for c in (ModelConfig, DataConfig, OptimizerConfig, ScheduleConfig, ProbeConfig, EvalConfig)
    )
    assert len(kinds) == leaves + 3  # no two fields share a column; 3: study, seed and data_seed
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
    code = "import sys, normstudy.config, normstudy.data.texts; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# ---- errors -------------------------------------------------------------------------------------------

NAN, INF = math.nan, math.inf
BAD: list[tuple[type, dict[str, object], str]] = [
    (
        ModelConfig,
        {"placement": "pree"},
        f"model.placement 'pree' is not one of {', '.join(config.PLACEMENT_NAMES)}. Did you mean pre?",
    ),
    (ModelConfig, {"placement": ""}, "model.placement '' is not one of pre, post, peri,"),
    (ModelConfig, {"norm": "rms_norm"}, "is not one of auto, layernorm, rmsnorm, dyt, none. Did you mean rmsnorm?"),
    (
        ModelConfig,
        {"init": "Xavier"},
        "is not one of auto, xavier, normal, gpt2, deepnorm, sub, tfixup. Did you mean xavier?",
    ),
    (ModelConfig, {"final_norm": "yes"}, "model.final_norm 'yes' is not one of auto, true, false."),
    (ModelConfig, {"n_layers": 0}, "model.n_layers 0 is below 1"),
    (ModelConfig, {"d_model": 0}, "model.d_model 0 is below 1"),
    (ModelConfig, {"n_heads": -2}, "model.n_heads -2 is below 1"),
    (ModelConfig, {"d_ff": 0}, "model.d_ff 0 is below 1"),
    (ModelConfig, {"d_model": 65, "n_heads": 4}, "model.d_model 65 is not divisible by model.n_heads 4"),
    *[
        (ModelConfig, {"placement": "lns", "init": i}, f"model.init={i} does not belong to model.placement=lns (")
        for i in ("gpt2", "deepnorm", "sub", "tfixup")
    ],
    *[
        (ModelConfig, {"placement": "deepnorm", "init": i}, "=deepnorm (Wang et al., DeepNet, arXiv:2203.00555)")
        for i in ("xavier", "normal", "gpt2", "sub", "tfixup")
    ],
    (
        ModelConfig,
        {"placement": "deepnorm", "init": "xavier"},
        "which uses deepnorm: leave out model.init, or add model.force_init=true",
    ),
    *[
        (ModelConfig, {"placement": "mix", "n_layers": n}, f"mix needs model.n_layers of at least 4, not {n}, because")
        for n in (1, 2, 3)
    ],
    *[
        (ModelConfig, {"placement": p, "norm": n}, f"={p} has no norm, so model.norm={n} would have no effect")
        for p in ("rezero", "none")
        for n in ("layernorm", "rmsnorm", "dyt", "my_package.norms:norm")
    ],
    *[
        (ModelConfig, {"placement": p, "first_block": "star"}, f"star needs model.placement=hybrid, not {p}:")
        for p in config.PLACEMENT_NAMES
        if p != "hybrid"
    ],
    *[
        (ModelConfig, {"placement": "hybrid", "qk_norm": q}, "hybrid normalizes q, k and v itself: leave out model.qk")
        for q in config.QK_NORM_NAMES
    ],
    *[
        (ModelConfig, without | {key: value}, f"model.{key}={str(value).lower()} needs a norm, but this model has")
        for without in ({"norm": "none"}, {"placement": "rezero"}, {"placement": "none"})
        for key, value in (("qk_norm", "full"), ("qk_norm", "per_head"), ("final_norm", "true"), ("embed_norm", True))
    ],
    (
        ModelConfig,
        {"positions": "rope", "d_model": 60, "n_heads": 4},
        "rope needs an even number of dimensions per head, not 15 (d_model 60, n_heads 4): change one",
    ),
    (ModelConfig, {"positions": "sinusoidal", "d_model": 5, "n_heads": 1}, "needs an even model.d_model, not 5"),
    (ModelConfig, {"tied": True, "unembed_std": 0.5}, "unembed_std 0.5 has no effect with model.tied=true"),
    (ModelConfig, {"embed_std": 0.5}, "0.5 has no effect with model.embed_init=unit: add model.embed_init=std"),
    *[
        (ModelConfig, {"embed_init": "std", "embed_std": v}, f"model.embed_std {v} is out of range")
        for v in (0.0, -1.0, NAN, INF)
    ],
    *[(ModelConfig, {"unembed_std": v}, f"model.unembed_std {v} is out of range") for v in (0.0, -1.0, NAN, INF)],
    *[
        (DataConfig, {"tokenizer": t, "vocab_size": 512}, f"vocab_size 512 has no effect with data.tokenizer={t}: add")
        for t in ("byte", "char")
    ],
    *[
        (DataConfig, {"tokenizer": "bpe", "vocab_size": v}, f"data.vocab_size {v} is out of range: set it to an")
        for v in (0, 256, 65537)
    ],
    *[
        (DataConfig, {"name": "synthetic", "tokenizer": t}, f"consists of tokens, but data.tokenizer={t} needs bytes")
        for t in ("char", "bpe")
    ],
    (
        DataConfig,
        {"name": "stlib"},
        "is not one of stdlib, pydoc, synthetic, file, tiny_shakespeare, enwik8, text8. Did you mean stdlib?",
    ),
    (DataConfig, {"seq_len": 0}, "data.seq_len 0 is below 1"),
    (DataConfig, {"batch_size": 0}, "data.batch_size 0 is below 1"),
    (DataConfig, {"source_seed": -1}, "data.source_seed -1 is below 0"),
    (DataConfig, {"name": "file"}, "data=file needs a text: add data.path=FILE"),
    (DataConfig, {"name": "file", "path": ""}, "data=file needs a text"),
    (DataConfig, {"path": "a.txt"}, "data=stdlib ignores data.path 'a.txt': add data=file"),
    (OptimizerConfig, {"name": "adamv"}, "optimizer.name 'adamv' is not one of adam, adamw, sgd. Did you mean adam"),
    (OptimizerConfig, {"beta1": 1.0}, "beta1 1.0 is out of range: set it to a finite number of at least 0 and below 1"),
    (OptimizerConfig, {"beta2": -0.1}, "optimizer.beta2 -0.1 is out of range"),
    (OptimizerConfig, {"momentum": NAN}, "optimizer.momentum nan is out of range"),
    (OptimizerConfig, {"eps": -1e-8}, "optimizer.eps -1e-08 is out of range"),
    (OptimizerConfig, {"eps": 0.0}, "optimizer.eps 0 is below 1e-30, so Adam would compute 0/0 for a parameter whose"),
    (OptimizerConfig, {"eps": 1e-40}, "optimizer.eps 1e-40 is below 1e-30"),
    *[
        (OptimizerConfig, {"name": name, key: value}, f".{key} {value} has no effect with optimizer={name}: {do}")
        for name, key, value, do in (
            ("sgd", "beta1", 0.8, "add optimizer=adam, or leave out optimizer.beta1"),
            ("sgd", "beta2", 0.9, "add optimizer=adam, or leave out optimizer.beta2"),
            ("sgd", "eps", 1e-6, "add optimizer=adam, or leave out optimizer.eps"),
            ("adam", "momentum", 0.9, "add optimizer=sgd, or leave out optimizer.momentum"),
            ("adamw", "momentum", 0.9, "add optimizer=sgd, or leave out optimizer.momentum"),
        )
    ],
    (OptimizerConfig, {"decay": "matrices"}, "decay matrices has no effect with optimizer.weight_decay 0: set"),
    (ModelConfig, {"norm_eps": 0.0}, "model.norm_eps 0.0 is out of range: set it to a finite number above 0"),
    (ModelConfig, {"norm_eps": NAN}, "model.norm_eps nan is out of range"),
    (ModelConfig, {"norm": "dyt", "norm_eps": 1e-6}, "norm_eps 1e-06 has no effect because the norm of this model"),
    (ModelConfig, {"placement": "none", "norm_eps": 1e-6}, "model.norm_eps 1e-06 has no effect"),
    (ModelConfig, {"positions": "rope", "rope_base": 1.0}, "model.rope_base 1.0 is out of range: set it to a finite"),
    (ModelConfig, {"rope_base": 5e5}, "model.rope_base 500000.0 has no effect with model.positions=learned: add"),
    (OptimizerConfig, {"weight_decay": INF}, "optimizer.weight_decay inf is out of range"),
    (OptimizerConfig, {"max_grad_norm": 0.0}, "max_grad_norm 0.0 is out of range: set it to a finite number above 0"),
    (OptimizerConfig, {"max_grad_norm": NAN}, "optimizer.max_grad_norm nan is out of range"),
    (ScheduleConfig, {"name": "cosin"}, "Did you mean cosine?"),
    (ScheduleConfig, {"peak_lr": 0.0}, "schedule.peak_lr 0.0 is out of range: set it to a finite number above 0"),
    (ScheduleConfig, {"peak_lr": -1e-3}, "schedule.peak_lr -0.001 is out of range"),
    (ScheduleConfig, {"peak_lr": NAN}, "schedule.peak_lr nan is out of range"),
    (ScheduleConfig, {"peak_lr": INF}, "schedule.peak_lr inf is out of range"),
    (ScheduleConfig, {"warmup_steps": -1}, "schedule.warmup_steps -1 is below 0"),
    (ScheduleConfig, {"n_steps": 0}, "schedule.n_steps 0 is below 1"),
    (ScheduleConfig, {"n_steps": 2**31}, "schedule.n_steps 2147483648 exceeds 2147483647"),
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
    (RunConfig, {"seed": -1}, "seed -1 is below 0: set it to at least 0"),
    (RunConfig, {"seed": 2**31}, "seed 2147483648 exceeds 2147483647"),
    (RunConfig, {"data_seed": -1}, "data_seed -1 is below 0"),
    (RunConfig, {"results_dir": " "}, "results_dir is empty: set it to a folder"),
    *[
        (RunConfig, {"study": study}, f"study {study!r} is not a valid study name")
        for study in ("", ".", "..", "a/b", "../x", "a..b", ".hidden", "-x", "a b", "x" * 81, "a\n", "a.", "é")
    ],
]  # fmt: skip


@pytest.mark.parametrize(("cls", "values", "message"), BAD)
def test_a_bad_value_is_one_line_with_what_is_allowed(cls: type, values: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        cls(**values)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


# Every field that holds a name, and its legal names. A placement or norm may also be a user's own.
NAMES: dict[tuple[type, str], tuple[str, ...]] = {
    (ModelConfig, "placement"): config.PLACEMENT_NAMES,
    (ModelConfig, "norm"): ("auto", *config.NORM_NAMES),
    (ModelConfig, "qk_norm"): ("auto", *config.QK_NORM_NAMES),
    (ModelConfig, "init"): ("auto", *config.INIT_NAMES),
    (ModelConfig, "embed_init"): config.EMBED_INIT_NAMES,
    (ModelConfig, "activation"): config.ACTIVATION_NAMES,
    (ModelConfig, "positions"): config.POSITION_NAMES,
    (ModelConfig, "first_block"): config.FIRST_BLOCK_NAMES,
    (ModelConfig, "final_norm"): ("auto", "true", "false"),
    (DataConfig, "name"): config.DATA_NAMES,
    (DataConfig, "tokenizer"): config.TOKENIZER_NAMES,
    (OptimizerConfig, "name"): config.OPTIMIZER_NAMES,
    (OptimizerConfig, "decay"): config.DECAY_NAMES,
    (ScheduleConfig, "name"): config.SCHEDULE_NAMES,
    (ExecutionConfig, "cluster"): config.CLUSTER_NAMES,
    (ExecutionConfig, "device"): config.DEVICE_NAMES,
}
SECTIONS = (ModelConfig, DataConfig, OptimizerConfig, ScheduleConfig, ProbeConfig, EvalConfig, ExecutionConfig)


def misspelled(name: str) -> set[str]:
    """`name` in other cases, with space around it, a letter doubled, lost or added, two swapped, a hyphen for _."""
    changed = {name.title(), name.upper(), f" {name}", f"{name} ", f"{name}\n", name + name[-1], f"{name}s", f"{name}_"}
    changed |= {name[:-1], name[1:], name[1] + name[0] + name[2:], name.replace("_", "-"), name.replace("_", "")}
    return changed - {name}


def test_no_field_that_holds_a_name_is_forgotten_here() -> None:
    assert {(cls, f.name) for cls in SECTIONS for f in dataclasses.fields(cls) if f.type in (str, "str")} == set(NAMES)


@pytest.mark.parametrize(("cls", "field"), NAMES, ids=[f"{c.__name__}-{f}" for c, f in NAMES])
def test_a_misspelled_name_never_means_another_value(cls: type, field: str) -> None:
    """Misspellings of every legal name are errors that list the names; most suggest the right one."""
    names, hints, tried = NAMES[cls, field], 0, 0
    for name in names:
        for wrong in misspelled(name) - set(names) - ({"True", "False"} if field == "final_norm" else set()):
            with pytest.raises(ConfigError) as error:
                cls(**{field: wrong})
            message = str(error.value)
            assert f".{field} {wrong!r} is not one of {', '.join(names)}." in message
            assert "\n" not in message
            tried += 1
            hints += f"Did you mean {name}?" in message
    for wrong in ("", " ", "identity", "default", "None ", "0"):
        with pytest.raises(ConfigError, match="is not one of"):
            cls(**{field: wrong})
    assert hints >= 0.9 * tried


@pytest.mark.parametrize(
    ("field", "wrong", "meant"),
    [
        *[("placement", alias, name) for name, row in PLACEMENTS.items() for alias in row.aliases],
        ("placement", "sandwhich", "peri"), ("placement", "Sandwich", "peri"), ("placement", "Pre", "pre"),
        ("placement", "post ", "post"), ("placement", "deep_norm", "deepnorm"), ("placement", "deep-norm", "deepnorm"),
        ("placement", "pre_ln", "pre"), ("placement", "PostNorm", "post"), ("placement", "sub_ln", "sub"),
        ("placement", "mixln", "mix"), ("placement", "re-zero", "rezero"), ("placement", "hybrid_norm", "hybrid"),
        ("placement", "olmo-2", "reordered"), ("placement", "peri_ln", "peri"), ("placement", "resi_dual", "residual"),
        ("norm", "layer_norm", "layernorm"), ("norm", "RMSNorm", "rmsnorm"), ("norm", "rms", "rmsnorm"),
        ("norm", "DyT", "dyt"), ("norm", "None", "none"), ("qk_norm", "per-head", "per_head"),
        ("init", "t-fixup", "tfixup"), ("init", "gpt-2", "gpt2"), ("activation", "SwiGLU", "swiglu"),
        ("activation", "ReLU", "relu"), ("positions", "rope ", "rope"), ("positions", "RoPE", "rope"),
        ("positions", "sinusoid", "sinusoidal"), ("positions", "learnt", "learned"), ("first_block", "Star", "star"),
        ("embed_init", "scale", "scaled"), ("final_norm", "AUTO", "auto"),
    ],
)  # fmt: skip
def test_the_hint_of_a_misspelled_name(field: str, wrong: str, meant: str) -> None:
    with pytest.raises(ConfigError) as error:
        ModelConfig(**{field: wrong})
    assert str(error.value).endswith(f"Did you mean {meant}?")


def test_an_init_that_the_source_excludes_can_be_forced() -> None:
    excluded = {"deepnorm": ("xavier", "gpt2", "normal"), "lns": ("gpt2", "deepnorm", "sub", "tfixup")}
    for placement, inits in excluded.items():
        for init in inits:
            assert resolve(ModelConfig(placement=placement, init=init, force_init=True)).init == init
    for init in ("auto", "xavier", "normal"):
        ModelConfig(placement="lns", init=init)
    ModelConfig(placement="deepnorm", init="deepnorm")


def test_an_unknown_name_that_was_set_in_place_has_no_row() -> None:
    """Only a placement with a colon, a user's own, may lack a row in the table."""
    for wrong in ("Pre", "psot", "", "sandwich"):
        with pytest.raises(KeyError):
            config.row_of(wrong)
    assert config.row_of("my_module:my_block").final_norm


def test_the_bounds_themselves_are_legal() -> None:
    ModelConfig(n_layers=1, d_model=1, n_heads=1, d_ff=1)
    ModelConfig(placement="mix", n_layers=4)
    ModelConfig(placement="hybrid", first_block="star", n_layers=1)
    ModelConfig(positions="rope", d_model=8, n_heads=4)
    ModelConfig(positions="sinusoidal", d_model=2, n_heads=1)
    ModelConfig(placement="rezero", norm="none", final_norm="false", qk_norm="none")
    DataConfig(tokenizer="bpe", vocab_size=257)
    DataConfig(tokenizer="bpe", vocab_size=65536)
    OptimizerConfig(beta1=0.0, beta2=0.0, eps=1e-30, momentum=0.0, weight_decay=0.0)
    ScheduleConfig(warmup_steps=5, n_steps=5)
    ProbeConfig(dense_steps=0, every=1)
    RunConfig(seed=2**31 - 1, study="warmup-n_layers8", data_seed=0)
    RunConfig(study="x" * 80)
