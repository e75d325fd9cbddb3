"""Define the configuration of one run as dataclasses, which raise a ConfigError for an illegal value."""

import math
from dataclasses import dataclass, field

from normstudy.config import places
from normstudy.config.checks import at_least, check_study_name, finite, idle, one_of
from normstudy.config.execution import ExecutionConfig, SearchConfig
from normstudy.config.sources import is_own
from normstudy.errors import ConfigError
from normstudy.placements import PLACEMENTS, Placement

# The legal names, listed here so that this module need not import torch. A test compares them with the implementations.
PLACEMENT_NAMES = tuple(PLACEMENTS)
NORM_NAMES = ("layernorm", "rmsnorm", "dyt", "none")
QK_NORM_NAMES = ("none", "per_head", "full")
INIT_NAMES = ("xavier", "normal", "gpt2", "deepnorm", "sub", "tfixup")
EMBED_INIT_NAMES = ("unit", "std", "scaled")
ACTIVATION_NAMES = ("relu", "gelu", "gelu_tanh", "swiglu", "geglu", "geglu_tanh")
GATED = ("swiglu", "geglu", "geglu_tanh")  # activations with a gate, which adds a third matrix to the MLP
POSITION_NAMES = ("learned", "sinusoidal", "rope", "none")
FIRST_BLOCK_NAMES = ("same", "star")
OPTIMIZER_NAMES = ("adam", "adamw", "sgd")
DECAY_NAMES = ("all", "matrices", "matrices_but_embeddings")
SCHEDULE_NAMES = ("constant", "inverse_sqrt", "linear", "cosine")
DOWNLOADED = ("tiny_shakespeare", "enwik8", "text8")  # texts that are downloaded once
DATA_NAMES = ("stdlib", "pydoc", "synthetic", "file", *DOWNLOADED)
TOKENIZER_NAMES = ("byte", "char", "bpe")

VOCAB_MAX = 2**16  # tokens are stored as uint16
BPE_VOCAB = 512  # number of tokens if data.tokenizer=bpe and data.vocab_size=null
EMBED_STD = 0.02  # standard deviation if model.embed_init=std and model.embed_std=null, as in GPT-2
# Key of `optimizer` -> the optimizers that read it. Keys that are not listed are read by every optimizer.
READ_BY = {"beta1": ("adam", "adamw"), "beta2": ("adam", "adamw"), "eps": ("adam", "adamw"), "momentum": ("sgd",)}

_ALIASES = {alias: name for name, row in PLACEMENTS.items() for alias in row.aliases}


@dataclass
class ModelConfig:
    placement: str = "pre"  # where the norms sit: a name in placements.py, or your own function as module:function
    norm: str = "auto"  # a name in model/norms.py, or your own; auto: layernorm, or none if the placement has no norms
    norm_eps: float = 1e-5  # added to the variance or mean square; your own norm gets it if it takes an argument eps
    qk_norm: str = "auto"  # norm of q and k: none | per_head | full (over d_model); auto: the placement's choice
    init: str = "auto"  # a name in model/moments.py; auto: the placement's choice, mostly xavier
    force_init: bool = False  # whether to accept an init that the placement's source excludes
    # unit: x_0 has variance 1 | std: embeddings have the standard deviation embed_std | scaled: like std, and token
    # embeddings are also multiplied by sqrt(d_model)
    embed_init: str = "unit"
    embed_std: float | None = None  # std of initial embeddings; null: 0.02 if embed_init is std, d_model^-1/2 if scaled
    unembed_std: float | None = None  # std of the initial output matrix; null: chosen by model.init
    embed_norm: bool = False  # whether to normalize x_0 (optional in Peri-LN)
    n_layers: int = 6  # number of blocks
    d_model: int = 64  # width of the residual stream
    n_heads: int = 4  # attention heads; must divide d_model
    d_ff: int | None = None  # width inside the MLP; null: 4 d_model, or 8/3 d_model for a gated activation
    activation: str = "gelu"  # relu | gelu (exact) | gelu_tanh (approximate) | swiglu | geglu | geglu_tanh
    positions: str = "learned"  # learned | sinusoidal | rope | none
    rope_base: float = 1e4  # rope only: a higher base lets queries and keys rotate more slowly
    biases: bool = True  # whether linear layers other than the output matrix have biases; norms are not affected
    tied: bool = False  # whether the token embedding is also the output matrix; if false, the two are separate
    first_block: str = "same"  # same | star: with placement hybrid, block 0 follows HybridNorm*
    final_norm: str = "auto"  # whether a norm follows the last block: true | false | auto (the placement decides)

    def __post_init__(self) -> None:
        self.validate()

    def validate(self) -> None:
        """Raise a ConfigError for an illegal value or combination of values."""
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
        for key in ("n_layers", "d_model", "n_heads", "d_ff"):
            at_least(f"model.{key}", getattr(self, key), 1)
        if self.d_model % self.n_heads:
            raise ConfigError(
                f"model.d_model {self.d_model} is not divisible by model.n_heads {self.n_heads}: change one of the two"
            )
        for key in ("embed_std", "unembed_std", "norm_eps"):
            finite(f"model.{key}", getattr(self, key), 0, strict=True, below=3.4e38)  # the limit of float32
        finite("model.rope_base", self.rope_base, 1, strict=True)
        if self.embed_init == "unit":
            idle("model.embed_std", self.embed_std, None, "with model.embed_init=unit: add model.embed_init=std")
        if self.tied:
            because = "with model.tied=true, which makes the token embedding the output matrix: leave out model.tied"
            idle("model.unembed_std", self.unembed_std, None, because)
        if self.positions != "rope":
            because = f"with model.positions={self.positions}: add model.positions=rope"
            idle("model.rope_base", self.rope_base, ModelConfig.rope_base, because)
        elif self.d_model // self.n_heads % 2:
            raise ConfigError(
                f"model.positions=rope needs an even number of dimensions per head, not {self.d_model // self.n_heads} "
                f"(d_model {self.d_model}, n_heads {self.n_heads}): change one of the two"
            )
        if self.positions == "sinusoidal" and self.d_model % 2:
            raise ConfigError(f"model.positions=sinusoidal needs an even model.d_model, not {self.d_model}: change it")
        _check_placement(self)


def _check_placement(model: ModelConfig) -> None:
    """Refuse values that the placement's paper excludes, and values that would have no effect."""
    row, name = row_of(model.placement), model.placement
    if model.n_layers < row.min_layers:
        raise ConfigError(
            f"model.placement={name} needs model.n_layers of at least {row.min_layers}, not {model.n_layers}, because "
            "otherwise no layer is post-norm: add layers"
        )
    if row.norms is not None and model.norm not in ("auto", *row.norms):
        raise ConfigError(
            f"model.placement={name} has no norm, so model.norm={model.norm} would have no effect: leave out model.norm"
        )
    if row.inits is not None and model.init not in ("auto", *row.inits) and not model.force_init:
        raise ConfigError(
            f"model.init={model.init} does not belong to model.placement={name} ({row.source}), which uses "
            f"{' or '.join(row.inits)}: leave out model.init, or add model.force_init=true"
        )
    if model.first_block == "star" and row.star_block is None:
        raise ConfigError(
            f"model.first_block=star needs model.placement=hybrid, not {name}: leave out model.first_block"
        )
    if row.formula_has_qk_norm and model.qk_norm != "auto":
        raise ConfigError(f"model.placement={name} normalizes q, k and v itself: leave out model.qk_norm")
    norm = resolve(model).norm
    if norm in ("none", "dyt"):
        because = f"because the norm of this model is {norm}: choose another norm"
        idle("model.norm_eps", model.norm_eps, ModelConfig.norm_eps, because)
    for key in ("qk_norm", "final_norm", "embed_norm"):
        value = str(getattr(model, key)).lower()
        if norm == "none" and value in ("per_head", "full", "true"):
            raise ConfigError(f"model.{key}={value} needs a norm, but this model has no norms: leave out model.{key}")


@dataclass
class DataConfig:
    name: str = "stdlib"  # the text: a name in DATA_NAMES
    path: str | None = None  # data=file only: a text file, a folder or a glob
    tokenizer: str = "byte"  # byte: 256 symbols | char: the text's characters | bpe: learned from the training text
    vocab_size: int | None = None  # bpe only: number of tokens, at least 257; null: 512
    seq_len: int = 64  # tokens per window
    batch_size: int = 8  # windows per step
    source_seed: int = 0  # synthetic only: seed of the Markov source and its text

    def __post_init__(self) -> None:
        one_of("data.name", self.name, DATA_NAMES)
        one_of("data.tokenizer", self.tokenizer, TOKENIZER_NAMES)
        for key in ("seq_len", "batch_size"):
            at_least(f"data.{key}", getattr(self, key), 1)
        at_least("data.source_seed", self.source_seed, 0)
        if self.path and ("\0" in self.path or self.path != self.path.encode(errors="ignore").decode()):
            raise ConfigError(f"data.path {self.path!r} contains a NUL byte or is not UTF-8 text: rename the file")
        if self.name == "file" and not self.path:
            raise ConfigError("data=file needs a text: add data.path=FILE")
        if self.name != "file" and self.path is not None:
            raise ConfigError(f"data={self.name} ignores data.path {self.path!r}: add data=file or leave out data.path")
        if self.name == "synthetic" and self.tokenizer != "byte":
            raise ConfigError(
                f"data=synthetic consists of tokens, but data.tokenizer={self.tokenizer} needs bytes: "
                "leave out the tokenizer or choose another text"
            )
        if self.tokenizer != "bpe":
            because = f"with data.tokenizer={self.tokenizer}: add data.tokenizer=bpe"
            idle("data.vocab_size", self.vocab_size, None, because)
        if self.vocab_size is not None and not 257 <= self.vocab_size <= VOCAB_MAX:
            raise ConfigError(
                f"data.vocab_size {self.vocab_size} is out of range: set it to an integer from 257 (256 bytes and "
                f"one merge) to {VOCAB_MAX}"
            )


@dataclass
class OptimizerConfig:
    name: str = "adam"  # adam | adamw | sgd
    beta1: float = 0.9  # adam, adamw: decay of the first moment
    beta2: float = 0.98  # adam, adamw: decay of the second moment (Vaswani et al.)
    eps: float = 1e-8  # adam, adamw: added to the square root of the second moment; at least 1e-30
    momentum: float = 0.0  # sgd: decay of the velocity
    weight_decay: float = 0.0  # adam, sgd: weight_decay * parameter is added to the gradient; adamw: decoupled
    # tensors that weight_decay acts on: all | matrices (all tensors of two or more dimensions, as in nanoGPT) |
    # matrices_but_embeddings (matrices without token and position embeddings, even if tied; as in OLMo 2)
    decay: str = "all"
    max_grad_norm: float | None = None  # limit on the global gradient norm; null: no limit, so that spikes stay visible

    def __post_init__(self) -> None:
        one_of("optimizer.name", self.name, OPTIMIZER_NAMES)
        one_of("optimizer.decay", self.decay, DECAY_NAMES)
        for key in ("beta1", "beta2", "momentum"):
            finite(f"optimizer.{key}", getattr(self, key), 0, strict=False, below=1)
        finite("optimizer.eps", self.eps, 0, strict=False)
        finite("optimizer.weight_decay", self.weight_decay, 0, strict=False)
        finite("optimizer.max_grad_norm", self.max_grad_norm, 0, strict=True)
        for key, names in READ_BY.items():
            if self.name not in names:
                because = f"with optimizer={self.name}: add optimizer={names[0]}"
                idle(f"optimizer.{key}", getattr(self, key), getattr(OptimizerConfig, key), because)
        if self.eps < 1e-30:  # float32 would round smaller numbers to 0 after bias correction
            raise ConfigError(
                f"optimizer.eps {self.eps:g} is below 1e-30, so Adam would compute 0/0 for a parameter whose gradient "
                "has always been zero: set it to at least 1e-30"
            )
        if not self.weight_decay:
            idle("optimizer.decay", self.decay, "all", "with optimizer.weight_decay 0: set optimizer.weight_decay")


@dataclass
class ScheduleConfig:
    name: str = "constant"  # after the warmup: constant | inverse_sqrt | linear | cosine
    peak_lr: float = 1e-3  # the learning rate at the end of the warmup
    warmup_steps: int = 0  # steps in which the rate rises linearly from peak_lr / warmup_steps to peak_lr; 0: no warmup
    n_steps: int = 600  # updates of the parameters

    def __post_init__(self) -> None:
        one_of("schedule.name", self.name, SCHEDULE_NAMES)
        finite("schedule.peak_lr", self.peak_lr, 0, strict=True)
        at_least("schedule.warmup_steps", self.warmup_steps, 0)
        at_least("schedule.n_steps", self.n_steps, 1)
        if self.warmup_steps > self.n_steps:
            raise ConfigError(
                f"schedule.warmup_steps {self.warmup_steps} exceeds schedule.n_steps {self.n_steps}: "
                "shorten the warmup or lengthen the run"
            )


@dataclass
class ProbeConfig:
    dense_steps: int = 50  # number of initial steps that are all recorded in the tables `modules` and `residual`
    every: int = 20  # from step dense_steps on, record the steps divisible by this number, and the last step

    def __post_init__(self) -> None:
        at_least("probe.dense_steps", self.dense_steps, 0)
        at_least("probe.every", self.every, 1)


@dataclass
class EvalConfig:
    every: int = 100  # steps between two validation losses; the first is at step 0, the last after the last update
    windows: int = 64  # number of evenly spaced validation windows; all seeds use the same windows

    def __post_init__(self) -> None:
        at_least("eval.every", self.every, 1)
        at_least("eval.windows", self.windows, 1)


def late_step(n_steps: int) -> int:
    """Return the step whose validation loss, compared with the final one, shows whether a run is unfinished."""
    return 2 * n_steps // 3


def row_of(placement: str) -> Placement:
    """Return the row of PLACEMENTS for a name; for a user's own placement, a row of defaults."""
    return Placement(lambda x: x, "your own") if is_own(placement) else PLACEMENTS[placement]


@dataclass
class RunConfig:
    study: str = "scratch"  # folder inside results_dir
    results_dir: str = "results"
    seed: int = 0  # seeds the initialization
    data_seed: int | None = None  # seeds the batches; null: same as seed
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    probe: ProbeConfig = field(default_factory=ProbeConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    execution: ExecutionConfig = field(default_factory=ExecutionConfig)
    search: SearchConfig = field(default_factory=SearchConfig)

    def __post_init__(self) -> None:
        self.validate()

    def validate(self) -> None:
        """Set a null data_seed to the seed; raise a ConfigError for an illegal value."""
        if self.data_seed is None:
            self.data_seed = self.seed
        at_least("seed", self.seed, 0)
        at_least("data_seed", self.data_seed, 0)
        check_study_name(self.study)
        if not self.results_dir.strip():
            raise ConfigError("results_dir is empty: set it to a folder")
        self.results_dir = places.expanded(self.results_dir, "results_dir")


@dataclass(frozen=True)
class Resolved:
    """Hold a model's values after `resolve` has replaced `auto` and null."""

    d_ff: int
    init: str
    final_norm: bool
    norm: str
    qk_norm: str
    embed_std: float | None  # None if embed_init is unit, because model/moments.py then chooses it


def resolve(model: ModelConfig) -> Resolved:
    """Replace `auto` by the placement's choice, and null by values that follow from other fields."""
    row = row_of(model.placement)
    norm = (row.norms or ("layernorm",))[0] if model.norm == "auto" else model.norm
    qk_norm = row.qk_norm if model.qk_norm == "auto" else model.qk_norm
    final_norm = row.final_norm if model.final_norm == "auto" else model.final_norm == "true"
    stds = {"unit": None, "std": EMBED_STD, "scaled": model.d_model**-0.5}
    gated = 8 * math.ceil(model.d_model / 3)  # 8/3 d_model with a gate has as many parameters as 4 d_model without
    return Resolved(
        d_ff=model.d_ff or (gated if model.activation in GATED else 4 * model.d_model),
        init=row.init if model.init == "auto" else model.init,
        final_norm=final_norm and norm != "none", norm=norm, qk_norm="none" if norm == "none" else qk_norm,
        embed_std=stds[model.embed_init] if model.embed_std is None else model.embed_std,
    )  # fmt: skip
