"""The configuration of one run: typed, validated, and hashed into the run's identity.

`RunConfig` is all that a run depends on, with the text. Hydra's DictConfig ends here. Every error is a
`ConfigError`: one line that names the value, what is allowed and what to do.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
import math
import re
import typing
from dataclasses import dataclass, field

from normstudy.placements import PLACEMENTS

IDENTITY_VERSION = 1  # raised when the way a run_id is computed changes
NUMERICS = 1  # raised when a change makes the same config give other bits (tests/test_golden.py guards it)

# Fields added after version 0.1: a field that equals its value here is left out of the identity, so that
# older run ids stay valid. A value here is frozen: it never follows a later change of the default.
ABSENT: dict[str, object] = {}

# Names, as tuples, so that nothing here imports torch. A test holds them equal to the registries' keys.
PLACEMENT_NAMES = tuple(PLACEMENTS)
NORM_NAMES = ("layernorm", "rmsnorm")
INIT_NAMES = ("xavier", "normal", "gpt2")
OPTIMIZER_NAMES = ("adam", "adamw", "sgd")
SCHEDULE_NAMES = ("constant", "inverse_sqrt", "linear", "cosine")
DATA_NAMES = ("stdlib", "pydoc", "synthetic", "file")
DEVICE_NAMES = ("auto", "cpu", "cuda")

STUDY_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.=+-]{0,79}")
SEED_MAX = 2**31 - 1


class ConfigError(Exception):
    """A request that cannot be run; its text is the one line that the user sees."""


def nearest(word: str, names: typing.Iterable[str]) -> str:
    """`" Did you mean X?"` for the name closest to `word`, or the empty string."""
    names = list(names)
    folded = {n.lower(): n for n in names}
    close = difflib.get_close_matches(word.strip().lower(), list(folded), n=1, cutoff=0.6)
    return f" Did you mean {folded[close[0]]}?" if close else ""


def one_of(key: str, value: str, names: tuple[str, ...]) -> None:
    """Raise a ConfigError unless `value` is exactly one of `names`."""
    if value not in names:
        raise ConfigError(f"{key} {value!r} is not one of {', '.join(names)}.{nearest(value, names)}")


def _at_least(key: str, value: int, low: int) -> None:
    if value < low:
        raise ConfigError(f"{key} {value} is below {low}: give an integer of at least {low}")


def _finite(key: str, value: float, low: float, *, strict: bool, below: float = math.inf) -> None:
    ok = math.isfinite(value) and (value > low if strict else value >= low) and value < below
    if not ok:
        bound = f"{'above' if strict else 'at least'} {low:g}"
        top = f" and below {below:g}" if below < math.inf else ""
        raise ConfigError(f"{key} {value} is out of range: give a finite number {bound}{top}")


@dataclass
class ModelConfig:
    placement: str = "pre"  # where the norms sit: placements.py
    norm: str = "layernorm"  # the norm function: norms.py
    init: str = "auto"  # init.py; auto: the placement's own (xavier for pre and post)
    n_layers: int = 6  # blocks
    d_model: int = 64  # width of the residual stream
    n_heads: int = 4  # divides d_model
    d_ff: int | None = None  # width inside the MLP; null: 4 d_model
    final_norm: str = "auto"  # auto | true | false: a norm after the last block; auto: the placement's own

    def __post_init__(self) -> None:
        self.final_norm = str(self.final_norm).lower()  # YAML and Hydra turn an unquoted true into a bool
        one_of("model.placement", self.placement, PLACEMENT_NAMES)
        one_of("model.norm", self.norm, NORM_NAMES)
        one_of("model.init", self.init, ("auto", *INIT_NAMES))
        one_of("model.final_norm", self.final_norm, ("auto", "true", "false"))
        for key in ("n_layers", "d_model", "n_heads"):
            _at_least(f"model.{key}", getattr(self, key), 1)
        if self.d_model % self.n_heads:
            raise ConfigError(
                f"model.d_model {self.d_model} is not divisible by model.n_heads {self.n_heads}: change one of the two"
            )
        if self.d_ff is not None:
            _at_least("model.d_ff", self.d_ff, 1)


@dataclass
class DataConfig:
    name: str = "stdlib"  # data.py
    path: str | None = None  # file only: a text of any kind, read as bytes
    seq_len: int = 64  # tokens a window predicts
    batch_size: int = 8  # windows a step
    source_seed: int = 0  # synthetic only: draws the Markov source and its text

    def __post_init__(self) -> None:
        one_of("data.name", self.name, DATA_NAMES)
        for key in ("seq_len", "batch_size"):
            _at_least(f"data.{key}", getattr(self, key), 1)
        _seed("data.source_seed", self.source_seed)
        if self.name == "file" and not self.path:
            raise ConfigError("data=file needs a text: give data.path=FILE")
        if self.path is not None and "\0" in self.path:
            raise ConfigError(f"data.path {self.path!r} holds a NUL byte: give a readable text file")
        if self.name != "file" and self.path is not None:
            raise ConfigError(f"data.path {self.path!r} is read by data=file only, not by data={self.name}")


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
    """How runs are executed. Never part of a run's identity: no value here changes a result.

    A GPU rounds as another kind of CPU does, so its bits differ; the column `device` records it.
    """

    device: str = "auto"  # auto | cpu | cuda
    workers: int | None = None  # processes, one thread each; null: one per core (one per GPU)
    runs_per_batch: int | None = None  # runs trained as one program; null: chosen by sweep.py

    def __post_init__(self) -> None:
        one_of("execution.device", self.device, DEVICE_NAMES)
        for key in ("workers", "runs_per_batch"):
            if getattr(self, key) is not None:
                _at_least(f"execution.{key}", getattr(self, key), 1)


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


def check_study_name(study: str) -> None:
    """Raise a ConfigError unless `study` is a plain folder name."""
    if not STUDY_PATTERN.fullmatch(study) or ".." in study or study.endswith("."):
        raise ConfigError(
            f"study {study!r} is not a study name: use 1 to 80 letters, digits and _ . = + -, "
            "beginning with a letter or digit, without '..' or a dot at the end"
        )


# ---- columns ------------------------------------------------------------------------------------------

GROUPS = ("model", "data", "optimizer", "schedule")  # their leaves give columns by their own name
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


def asked_types() -> dict[str, type]:
    """Column -> int, float, str or bool, for every config column of the `runs` table, in order.

    execution and results_dir are not among them: they are not part of a run. A field that may be null has
    the type of its other values.
    """
    top = typing.get_type_hints(RunConfig)
    out: dict[str, type] = {"study": str, "seed": int, "data_seed": int}
    for section in (*GROUPS, *PREFIXED):
        hints = typing.get_type_hints(top[section])
        for column, leaf in _section_columns(section, top[section]).items():
            kinds = [t for t in (typing.get_args(hints[leaf]) or (hints[leaf],)) if t is not type(None)]
            if column in out:
                raise AssertionError(f"two config fields share the column {column}")
            out[column] = kinds[0]
    return out


def asked(config: RunConfig) -> dict[str, object]:
    """Column -> value as asked, for every config column of the `runs` table."""
    out: dict[str, object] = {"study": config.study, "seed": config.seed, "data_seed": config.data_seed}
    for section in (*GROUPS, *PREFIXED):
        part = getattr(config, section)
        for column, leaf in _section_columns(section, type(part)).items():
            out[column] = getattr(part, leaf)
    return out


@dataclass(frozen=True)
class Resolved:
    """What the `auto` values of a model come to."""

    d_ff: int
    init: str
    final_norm: bool


def resolve(model: ModelConfig) -> Resolved:
    """The values behind `auto` and null: the placement's init and final norm, 4 d_model."""
    row = PLACEMENTS[model.placement]
    return Resolved(
        d_ff=4 * model.d_model if model.d_ff is None else model.d_ff,
        init=row.init if model.init == "auto" else model.init,
        final_norm=row.final_norm if model.final_norm == "auto" else model.final_norm == "true",
    )


# ---- identity -----------------------------------------------------------------------------------------

NOT_IDENTITY = ("study", "data_path")  # asked columns that name where a run lies, not what it is


def identity(config: RunConfig, data_sha256: str) -> dict[str, object]:
    """Everything the run_id hashes: the versions, every resolved value, the text."""
    values = {k: v for k, v in asked(config).items() if k not in NOT_IDENTITY}
    values |= dataclasses.asdict(resolve(config.model))
    kinds = asked_types()
    for column, value in values.items():
        if kinds[column] is float and value is not None:
            values[column] = float(value)  # type: ignore[arg-type]  # 1 and 1.0 are the same rate
    values = {k: v for k, v in values.items() if k not in ABSENT or v != ABSENT[k]}
    return {
        "identity_version": IDENTITY_VERSION,
        "numerics": NUMERICS,
        "data_sha256": data_sha256,
        **values,
    }


def run_id(config: RunConfig, data_sha256: str) -> str:
    """Readable part and ten hex digits of the identity's sha256: post-L6-lr3e-3-wu100-s0-0123456789."""
    text = json.dumps(identity(config, data_sha256), sort_keys=True, separators=(",", ":"), allow_nan=False)
    digest = hashlib.sha256(text.encode()).hexdigest()[:10]
    m, s = config.model, config.schedule
    rate = re.sub(r"e([+-])0*(\d)", lambda k: "e" + k[1].replace("+", "") + k[2], short_float(s.peak_lr))
    return f"{m.placement}-L{m.n_layers}-lr{rate}-wu{s.warmup_steps}-s{config.seed}-{digest}"


def short_float(value: float) -> str:
    """The shortest scientific form that gives the same float back: 3e-03, 1.25e-04."""
    for digits in range(18):
        text = f"{value:.{digits}e}"
        if float(text) == value:
            return text
    raise AssertionError(value)
