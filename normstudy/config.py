"""The configuration of one run: typed, validated, and hashed into the run's identity.

`RunConfig` is all that a run depends on, with the text. Hydra's DictConfig ends here. Every error is a
`ConfigError`: one line that names the value, what is allowed and what to do.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import math
import re
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from normstudy import own
from normstudy.cluster import options
from normstudy.errors import ConfigError as ConfigError
from normstudy.errors import nearest
from normstudy.own import is_own
from normstudy.placements import PLACEMENTS, Placement

EVAL_CHUNK = 16  # validation windows in one forward pass: bounds the memory of a batch of runs
IDENTITY_VERSION = 1  # raised when the way a run_id is computed changes
NUMERICS = 4  # raised when a change makes the same config give other bits (tests/test_golden.py guards it)

# Fields added after version 0.1: a field that equals its value here is left out of the identity, so that
# older run ids stay valid. A value here is frozen: it never follows a later change of the default.
ABSENT: dict[str, object] = {
    "qk_norm": "none", "force_init": False, "embed_init": "unit", "embed_std": None, "unembed_std": None,
    "embed_norm": False, "first_block": "same", "activation": "gelu", "positions": "learned", "biases": True,
    "tied": False, "placement_sha256": None, "norm_sha256": None,
    "tokenizer": "byte", "vocab_size": None,
}  # fmt: skip

# Names, as tuples, so that nothing here imports torch. A test holds them equal to the registries' keys.
PLACEMENT_NAMES = tuple(PLACEMENTS)
NORM_NAMES = ("layernorm", "rmsnorm", "dyt", "none")
QK_NORM_NAMES = ("none", "per_head", "full")
INIT_NAMES = ("xavier", "normal", "gpt2", "deepnorm", "sub", "tfixup")
EMBED_INIT_NAMES = ("unit", "std", "scaled")
ACTIVATION_NAMES = ("relu", "gelu", "swiglu", "geglu")
GATED = ("swiglu", "geglu")  # activations with a third matrix
POSITION_NAMES = ("learned", "sinusoidal", "rope", "none")
FIRST_BLOCK_NAMES = ("same", "star")
OPTIMIZER_NAMES = ("adam", "adamw", "sgd")
SCHEDULE_NAMES = ("constant", "inverse_sqrt", "linear", "cosine")
DOWNLOADED = ("tiny_shakespeare", "enwik8", "text8")  # texts that pooch fetches once
DATA_NAMES = ("stdlib", "pydoc", "synthetic", "file", *DOWNLOADED)
TOKENIZER_NAMES = ("byte", "char", "bpe")
DEVICE_NAMES = ("auto", "cpu", "cuda")
CLUSTER_NAMES = ("local", "slurm")

STUDY_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.=+-]{0,79}")
INT_MAX = SEED_MAX = 2**31 - 1
VOCAB_MAX = 2**16  # tokens are kept as uint16
BPE_VOCAB = 512  # data.vocab_size=null
EMBED_STD = 0.02  # model.embed_init=std (GPT-2)

_ALIASES = {alias: name for name, row in PLACEMENTS.items() for alias in row.aliases}


def one_of(key: str, value: str, names: tuple[str, ...], aliases: typing.Mapping[str, str] | None = None) -> None:
    """Raise a ConfigError unless `value` is exactly one of `names`."""
    if value not in names:
        raise ConfigError(f"{key} {value!r} is not one of {', '.join(names)}.{nearest(value, names, aliases)}")


def _at_least(key: str, value: int, low: int) -> None:
    if value < low:
        raise ConfigError(f"{key} {value} is below {low}: give an integer of at least {low}")
    if value > INT_MAX:
        raise ConfigError(f"{key} {value} exceeds {INT_MAX}, the largest that the tables hold: give a smaller one")


def _finite(key: str, value: float, low: float, *, strict: bool, below: float = math.inf) -> None:
    ok = math.isfinite(value) and (value > low if strict else value >= low) and value < below
    if not ok:
        bound = f"{'above' if strict else 'at least'} {low:g}"
        top = f" and below {below:g}" if below < math.inf else ""
        raise ConfigError(f"{key} {value} is out of range: give a finite number {bound}{top}")


@dataclass
class ModelConfig:
    placement: str = "pre"  # where the norms sit: placements.py, or your own as module:function
    norm: str = "auto"  # the norm function: norms.py, or your own; auto: layernorm, none where no other is admitted
    qk_norm: str = "auto"  # of queries and keys: none | per_head | full (before the heads part); auto: the placement's
    init: str = "auto"  # init.py; auto: the placement's own, else xavier
    force_init: bool = False  # accept an init that the placement's source excludes
    embed_init: str = "unit"  # unit: x_0 has unit variance | std | scaled: tokens times sqrt(d_model)
    embed_std: float | None = None  # std, scaled: of the tables; null: 0.02 for std, d_model^-1/2 for scaled
    unembed_std: float | None = None  # of the output matrix; null: the init's
    embed_norm: bool = False  # a norm of x_0 (optional in Peri-LN)
    n_layers: int = 6  # blocks
    d_model: int = 64  # width of the residual stream
    n_heads: int = 4  # divides d_model
    d_ff: int | None = None  # width inside the MLP; null: 4 d_model, 8/3 d_model where a gate is a third matrix
    activation: str = "gelu"  # relu | gelu (exact) | swiglu | geglu
    positions: str = "learned"  # learned | sinusoidal | rope | none
    biases: bool = True  # of the linear layers, not of the norms; the output matrix has none
    tied: bool = False  # the output matrix is the token table; untied, since tying merges two gradient paths
    first_block: str = "same"  # star: block 0 of hybrid as in HybridNorm*
    final_norm: str = "auto"  # auto | true | false: a norm after the last block; auto: the placement's own

    def __post_init__(self) -> None:
        if str(self.final_norm) in ("True", "False"):  # YAML and Hydra turn an unquoted true into a bool
            self.final_norm = str(self.final_norm).lower()
        if not is_own(self.placement):
            one_of("model.placement", self.placement, PLACEMENT_NAMES, _ALIASES)
        if not is_own(self.norm):
            one_of("model.norm", self.norm, ("auto", *NORM_NAMES))
        one_of("model.qk_norm", self.qk_norm, ("auto", *QK_NORM_NAMES))
        one_of("model.init", self.init, ("auto", *INIT_NAMES))
        one_of("model.embed_init", self.embed_init, EMBED_INIT_NAMES)
        one_of("model.activation", self.activation, ACTIVATION_NAMES)
        one_of("model.positions", self.positions, POSITION_NAMES)
        one_of("model.first_block", self.first_block, FIRST_BLOCK_NAMES)
        one_of("model.final_norm", self.final_norm, ("auto", "true", "false"))
        for key in ("n_layers", "d_model", "n_heads"):
            _at_least(f"model.{key}", getattr(self, key), 1)
        if self.d_model % self.n_heads:
            raise ConfigError(
                f"model.d_model {self.d_model} is not divisible by model.n_heads {self.n_heads}: change one of the two"
            )
        if self.d_ff is not None:
            _at_least("model.d_ff", self.d_ff, 1)
        for key in ("embed_std", "unembed_std"):
            if getattr(self, key) is not None:
                _finite(f"model.{key}", getattr(self, key), 0, strict=True)
        if self.embed_std is not None and self.embed_init == "unit":
            raise ConfigError(
                f"model.embed_std {self.embed_std:g} is not read by model.embed_init=unit: add model.embed_init=std"
            )
        if self.tied and self.unembed_std is not None:
            raise ConfigError(
                f"model.unembed_std {self.unembed_std:g} has no output matrix to draw: model.tied=true uses the token "
                "table; leave one of the two"
            )
        _check_positions(self)
        _check_placement(self)


def _check_positions(model: ModelConfig) -> None:
    if model.positions == "rope" and model.d_model // model.n_heads % 2:
        raise ConfigError(
            f"model.positions=rope turns pairs, and a head has {model.d_model // model.n_heads} dimensions "
            f"(d_model {model.d_model}, n_heads {model.n_heads}): make it even"
        )
    if model.positions == "sinusoidal" and model.d_model % 2:
        raise ConfigError(f"model.positions=sinusoidal needs an even model.d_model, not {model.d_model}")


def _check_placement(model: ModelConfig) -> None:
    """Raise a ConfigError for a treatment that the placement's source excludes, or that would silently do nothing."""
    row, name = row_of(model.placement), model.placement
    if model.n_layers < row.min_layers:
        raise ConfigError(
            f"model.placement={name} needs model.n_layers of at least {row.min_layers}, not {model.n_layers}: with "
            "fewer no layer is post-norm"
        )
    if row.norms is not None and model.norm not in ("auto", *row.norms):
        raise ConfigError(
            f"model.placement={name} has no norm, model.norm={model.norm} would do nothing: leave model.norm=auto"
        )
    if row.inits is not None and model.init not in ("auto", *row.inits) and not model.force_init:
        raise ConfigError(
            f"model.init={model.init} is not an init of model.placement={name} ({row.source}), which goes with "
            f"{' or '.join(row.inits)}: leave model.init=auto, or say model.force_init=true"
        )
    if model.first_block == "star" and row.star_block is None:
        raise ConfigError(f"model.first_block=star is a form of model.placement=hybrid, not of {name}")
    if row.own_qk_norm and model.qk_norm != "auto":
        raise ConfigError(f"model.placement={name} normalizes q, k and v itself: leave model.qk_norm=auto")
    without = resolve(model).norm == "none"
    for key, value in (("qk_norm", model.qk_norm), ("final_norm", model.final_norm), ("embed_norm", model.embed_norm)):
        if without and value in ("per_head", "full", "true", True):
            raise ConfigError(
                f"model.{key}={str(value).lower()} needs a norm, and model.norm is none here: it would do nothing"
            )


@dataclass
class DataConfig:
    name: str = "stdlib"  # data.py
    path: str | None = None  # a text, a folder or a glob of texts, read by data=file
    tokenizer: str = "byte"  # byte: 256 symbols; char: the characters that occur; bpe: trained on the training blocks
    vocab_size: int | None = None  # bpe only: tokens to train, at least 257; null: 512
    seq_len: int = 64  # tokens a window predicts
    batch_size: int = 8  # windows a step
    source_seed: int = 0  # synthetic only: draws the Markov source and its text

    def __post_init__(self) -> None:
        one_of("data.name", self.name, DATA_NAMES)
        one_of("data.tokenizer", self.tokenizer, TOKENIZER_NAMES)
        for key in ("seq_len", "batch_size"):
            _at_least(f"data.{key}", getattr(self, key), 1)
        _seed("data.source_seed", self.source_seed)
        if self.name == "file" and not self.path:
            raise ConfigError("data=file needs a text: give data.path=FILE")
        if self.path is not None and "\0" in self.path:
            raise ConfigError(f"data.path {self.path!r} holds a NUL byte: give a readable text file")
        if self.name != "file" and self.path is not None:
            raise ConfigError(f"data.path {self.path!r} is read by data=file only, not by data={self.name}")
        if self.name == "synthetic" and self.tokenizer != "byte":
            raise ConfigError(
                f"data=synthetic has symbols of its own, and data.tokenizer {self.tokenizer} needs a text: "
                "leave the tokenizer or choose another text"
            )
        if self.vocab_size is not None and self.tokenizer != "bpe":
            raise ConfigError(
                f"data.vocab_size {self.vocab_size} is trained by data.tokenizer=bpe only, "
                f"not by data.tokenizer={self.tokenizer}"
            )
        if self.vocab_size is not None and not 257 <= self.vocab_size <= VOCAB_MAX:
            raise ConfigError(
                f"data.vocab_size {self.vocab_size} is out of range: give an integer from 257 (one more than the "
                f"bytes) to {VOCAB_MAX}"
            )


@dataclass
class OptimizerConfig:
    name: str = "adam"  # optim.py
    beta1: float = 0.9  # adam, adamw: decay of the first moment
    beta2: float = 0.98  # adam, adamw: decay of the second moment (Vaswani et al.)
    eps: float = 1e-8  # adam, adamw: added to the root of the second moment
    momentum: float = 0.0  # sgd: decay of the velocity
    weight_decay: float = 0.0  # adam, sgd: added to the gradient; adamw: decoupled
    max_grad_norm: float | None = None  # global clipping; null: off, since clipping hides the effect

    def __post_init__(self) -> None:
        one_of("optimizer.name", self.name, OPTIMIZER_NAMES)
        for key in ("beta1", "beta2", "momentum"):
            _finite(f"optimizer.{key}", getattr(self, key), 0, strict=False, below=1)
        _finite("optimizer.eps", self.eps, 0, strict=False)
        _finite("optimizer.weight_decay", self.weight_decay, 0, strict=False)
        if self.max_grad_norm is not None:
            _finite("optimizer.max_grad_norm", self.max_grad_norm, 0, strict=True)


@dataclass
class ScheduleConfig:
    name: str = "constant"  # optim.lr_at: what follows the warmup
    peak_lr: float = 1e-3  # the rate at the end of the warmup
    warmup_steps: int = 0  # linear from peak_lr / warmup_steps; 0: none
    n_steps: int = 600  # updates

    def __post_init__(self) -> None:
        one_of("schedule.name", self.name, SCHEDULE_NAMES)
        _finite("schedule.peak_lr", self.peak_lr, 0, strict=True)
        _at_least("schedule.warmup_steps", self.warmup_steps, 0)
        _at_least("schedule.n_steps", self.n_steps, 1)
        if self.warmup_steps > self.n_steps:
            raise ConfigError(
                f"schedule.warmup_steps {self.warmup_steps} exceeds schedule.n_steps {self.n_steps}: "
                "shorten the warmup or lengthen the run"
            )


@dataclass
class ProbeConfig:
    dense_steps: int = 50  # modules and residual have every step below this,
    every: int = 20  # then every such step, and the last

    def __post_init__(self) -> None:
        _at_least("probe.dense_steps", self.dense_steps, 0)
        _at_least("probe.every", self.every, 1)


@dataclass
class EvalConfig:
    every: int = 100  # validation loss at step 0, at every such step, and after the last update
    windows: int = 64  # evenly spaced validation windows, the same for all seeds

    def __post_init__(self) -> None:
        _at_least("eval.every", self.every, 1)
        _at_least("eval.windows", self.windows, 1)


@dataclass
class ExecutionConfig:
    """How runs are executed. Never part of a run's identity: on one kind of CPU no value here changes a result.

    A GPU rounds otherwise, as another kind of CPU does; the column `device` records it. From partition on the keys
    are those of cluster=slurm.
    """

    cluster: str = "local"  # local: processes on this machine | slurm: jobs
    device: str = "auto"  # auto | cpu | cuda; in jobs auto is cuda where they have a GPU
    workers: int | None = None  # processes, one thread each; null: one per core (one per GPU), and in a job 1
    runs_per_batch: int | None = None  # runs trained as one program; null: chosen by batching.py
    checkpoint_seconds: float = 60.0  # between two checkpoints of a batch
    retry_failed: bool = True  # whether runs that crashed in an earlier call are tried again
    max_tries: int = 3  # after so many crashes a run is left failed
    partition: str | None = None  # or several, as a,b; null: Slurm's default
    account: str | None = None  # null: Slurm's default
    gpus: int = 0  # of a job: 0 or 1
    memory_gb: float | None = None  # of a job; null: Slurm's default
    minutes: int = 60  # limit of a job's time: at it, runs are saved and the job waits in the queue again
    signal_seconds: int = 120  # before that limit, when the job is told
    requeues: int = 100  # so often a job may reach its limit
    jobs: int = 8  # at most at the same time
    sbatch: dict[str, str] = field(default_factory=dict)  # further options: {qos: low, constraint: zen4}

    def __post_init__(self) -> None:
        one_of("execution.cluster", self.cluster, CLUSTER_NAMES)
        one_of("execution.device", self.device, DEVICE_NAMES)
        for key in ("workers", "runs_per_batch", "max_tries", "minutes", "signal_seconds", "jobs"):
            if getattr(self, key) is not None:
                _at_least(f"execution.{key}", getattr(self, key), 1)
        _at_least("execution.requeues", self.requeues, 0)
        if not 0 <= self.checkpoint_seconds < math.inf:
            raise ConfigError(
                f"execution.checkpoint_seconds {self.checkpoint_seconds:g} is out of range: give seconds, 0 or more"
            )
        if self.memory_gb is not None:
            _finite("execution.memory_gb", self.memory_gb, 0, strict=True)
        options.check(self)


def row_of(placement: str) -> Placement:
    """The row of a placement; a user's own has a final norm, xavier init, and takes any norm."""
    return Placement(lambda x: x, "your own") if is_own(placement) else PLACEMENTS[placement]


def _seed(key: str, value: int) -> None:
    if not 0 <= value <= SEED_MAX:
        raise ConfigError(f"{key} {value} is out of range: give an integer from 0 to {SEED_MAX}")


@dataclass
class RunConfig:
    study: str = "scratch"  # the folder under results_dir
    results_dir: str = "results"
    seed: int = 0  # feeds the initialization
    data_seed: int | None = None  # feeds the batches; null: the seed
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    probe: ProbeConfig = field(default_factory=ProbeConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    execution: ExecutionConfig = field(default_factory=ExecutionConfig)

    def __post_init__(self) -> None:
        if self.data_seed is None:
            self.data_seed = self.seed
        _seed("seed", self.seed)
        _seed("data_seed", self.data_seed)
        check_study_name(self.study)
        if not self.results_dir.strip():
            raise ConfigError("results_dir is empty: give a folder")


# Folders of results/ that are no studies, or of a study, and what other systems take for a device.
RESERVED = (
    "bench", "reproductions", "robustness", "scaling", "tables", "state", "sweeps", "figures", "export",
    "con", "prn", "aux", "nul",
    *(f"{device}{n}" for device in ("com", "lpt") for n in range(1, 10)),
)  # fmt: skip


def check_study_name(study: str) -> None:
    """Raise a ConfigError unless `study` is a plain folder name."""
    if not STUDY_PATTERN.fullmatch(study) or ".." in study or study.endswith("."):
        raise ConfigError(
            f"study {study!r} is not a study name: use 1 to 80 letters, digits and _ . = + -, "
            "beginning with a letter or digit, without '..' or a dot at the end"
        )
    if study.partition(".")[0].lower() in RESERVED:
        raise ConfigError(f"study {study!r} is a reserved name ({', '.join(RESERVED[:3])}, and devices): give another")


# Columns that stand for another text, whose losses do not compare.
TEXT_COLUMNS = ("data", "source_seed", "tokenizer", "vocab_size", "data_sha256")

# ---- columns ------------------------------------------------------------------------------------------

GROUPS = ("model", "data", "optimizer", "schedule")  # their leaves give columns by their own name
CONF_GROUPS = (*GROUPS, "execution")  # folders of conf/ that a command line chooses from
PREFIXED = ("probe", "eval")  # their leaves are prefixed: probe_every, eval_every


def _section_columns(section: str, cls: type) -> dict[str, str]:
    columns = {}
    for f in dataclasses.fields(cls):
        if section in PREFIXED:
            columns[f"{section}_{f.name}"] = f.name
        elif f.name == "name":
            columns[section] = f.name
        elif (section, f.name) == ("data", "path"):
            columns["data_path"] = f.name
        else:
            columns[f.name] = f.name
    return columns


@functools.cache
def _leaves() -> tuple[tuple[str, str, str], ...]:
    """(column, section, leaf) of every config column but those at the top, in order."""
    top = typing.get_type_hints(RunConfig)
    sections = (*GROUPS, *PREFIXED)
    return tuple((c, s, leaf) for s in sections for c, leaf in _section_columns(s, top[s]).items())


@functools.cache
def asked_types() -> Mapping[str, type]:
    """Column -> int, float, str or bool, for every config column of the `runs` table, in order.

    execution and results_dir are not among them: they are not part of a run. A field that may be null has
    the type of its other values.
    """
    top = typing.get_type_hints(RunConfig)
    hints = {section: typing.get_type_hints(top[section]) for section in (*GROUPS, *PREFIXED)}
    out: dict[str, type] = {"study": str, "seed": int, "data_seed": int}
    for column, section, leaf in _leaves():
        hint = hints[section][leaf]
        kinds = [t for t in (typing.get_args(hint) or (hint,)) if t is not type(None)]
        if column in out:
            raise AssertionError(f"two config fields share the column {column}")
        out[column] = kinds[0]
    return MappingProxyType(out)


def asked(config: RunConfig) -> dict[str, object]:
    """Column -> value as asked, for every config column of the `runs` table."""
    out: dict[str, object] = {"study": config.study, "seed": config.seed, "data_seed": config.data_seed}
    for column, section, leaf in _leaves():
        out[column] = getattr(getattr(config, section), leaf)
    return out


@dataclass(frozen=True)
class Resolved:
    """What the `auto` and null values of a model come to.

    embed_std: of the token table; None for embed_init=unit, where it is what makes x_0 of unit variance.
    """

    d_ff: int
    init: str
    final_norm: bool
    norm: str
    qk_norm: str
    embed_std: float | None


def resolve(model: ModelConfig) -> Resolved:
    """The values behind `auto` and null: the placement's own, and those that follow from the shape."""
    row = row_of(model.placement)
    norm = (row.norms or ("layernorm",))[0] if model.norm == "auto" else model.norm
    qk_norm = row.qk_norm if model.qk_norm == "auto" else model.qk_norm
    final_norm = row.final_norm if model.final_norm == "auto" else model.final_norm == "true"
    stds = {"unit": None, "std": EMBED_STD, "scaled": model.d_model**-0.5}
    gated = 8 * math.ceil(model.d_model / 3)  # 8/3 d_model, as many parameters as 4 d_model without a gate
    return Resolved(
        d_ff=model.d_ff or (gated if model.activation in GATED else 4 * model.d_model),
        init=row.init if model.init == "auto" else model.init,
        final_norm=final_norm and norm != "none",
        norm=norm,
        qk_norm="none" if norm == "none" else qk_norm,
        embed_std=stds[model.embed_init] if model.embed_std is None else model.embed_std,
    )


def own_sources(model: ModelConfig) -> dict[str, str | None]:
    """sha256 of the source of a placement and of a norm that are the user's own, else None.

    Taken once, when the run is planned, and kept in the config, which goes to the process that trains the run.
    """
    kept: dict[str, str | None] | None = getattr(model, "_own_sources", None)
    if kept is None:
        kept = {
            "placement_sha256": own.source_sha256(model.placement) if is_own(model.placement) else None,
            "norm_sha256": own.source_sha256(model.norm) if is_own(model.norm) else None,
        }
        object.__setattr__(model, "_own_sources", kept)
    return kept


# ---- identity -----------------------------------------------------------------------------------------

NOT_IDENTITY = ("study", "data_path", "force_init")  # they name where a run lies, and permit one: not what it is


def identity(config: RunConfig, data_sha256: str) -> dict[str, object]:
    """Everything the run_id hashes: the versions, every resolved value, the text."""
    values = asked(config) | dataclasses.asdict(resolve(config.model)) | own_sources(config.model)
    versions = {"identity_version": IDENTITY_VERSION, "numerics": NUMERICS, "data_sha256": data_sha256}
    return identity_of(values, versions)


def identity_of(values: Mapping[str, object], versions: Mapping[str, object]) -> dict[str, object]:
    """The same from columns of `runs`.

    values: the asked columns and the sources of own parts, and over them the resolved ones under the names of
    Resolved; versions: identity_version, numerics, data_sha256.
    """
    out = {k: v for k, v in values.items() if k not in NOT_IDENTITY}
    if out["tokenizer"] == "bpe":
        out["vocab_size"] = out["vocab_size"] or BPE_VOCAB
    kinds = asked_types()
    for column, value in out.items():
        if kinds.get(column) is float and value is not None:
            out[column] = float(value)  # type: ignore[arg-type]  # 1 and 1.0 are the same rate
    return {**versions, **{k: v for k, v in out.items() if k not in ABSENT or v != ABSENT[k]}}


def digest(identity: Mapping[str, object]) -> str:
    """The ten hex digits that end a run_id."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True, separators=(",", ":")).encode()).hexdigest()[:10]


def run_id(config: RunConfig, data_sha256: str) -> str:
    """Readable part and ten hex digits of the identity's sha256: post-L6-lr3e-3-wu100-s0-0123456789."""
    m, s = config.model, config.schedule
    digits = digest(identity(config, data_sha256))
    rate = re.sub(r"e([+-])0*(\d)", lambda k: "e" + k[1].replace("+", "") + k[2], short_float(s.peak_lr))
    return f"{m.placement.rpartition(':')[2]}-L{m.n_layers}-lr{rate}-wu{s.warmup_steps}-s{config.seed}-{digits}"


def short_float(value: float) -> str:
    """The shortest scientific form that gives the same float back: 3e-03, 1.25e-04."""
    for digits in range(18):
        text = f"{value:.{digits}e}"
        if float(text) == value:
            return text
    raise AssertionError(value)
