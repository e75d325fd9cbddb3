"""The help texts of the `normstudy` command. Importing only the standard library makes help appear at once."""

from __future__ import annotations

import shutil
import textwrap

# A paragraph (str), a table of terms and their meanings (dict), or commands to type (tuple), which are never wrapped.
# A paragraph that ends with a colon introduces the next block: no blank line separates the two.
Block = str | dict[str, str] | tuple[str, ...]

WIDTHS = 40, 120  # columns of the narrowest and the widest text, whatever the terminal's width


def help_of(command: str | None) -> str:
    """Return the help text of a command, or of `normstudy` itself (None), wrapped for the current terminal."""
    columns = shutil.get_terminal_size().columns
    return render(HELP if command is None else COMMAND_HELP[command], max(WIDTHS[0], min(WIDTHS[1], columns)))


def render(blocks: tuple[Block, ...], width: int) -> str:
    """Format a help page, with paragraphs and tables wrapped to `width` columns."""
    lines: list[str] = []
    for block in blocks:
        if lines and not lines[-1].endswith(":"):
            lines.append("")
        if isinstance(block, str):
            lines += _wrap(block, width)
        elif isinstance(block, dict):
            lines += _table(block, width)
        else:
            lines += [f"  {command}" for command in block]
    return "\n".join(lines) + "\n"


def _wrap(text: str, width: int, first: str = "", rest: str = "") -> list[str]:
    return textwrap.wrap(
        text, width, initial_indent=first, subsequent_indent=rest, break_long_words=False, break_on_hyphens=False
    )


def _table(rows: dict[str, str], width: int) -> list[str]:
    """Format a table: each term with its meaning beside it, or below it if the term is long."""
    column = min(4 + max(map(len, rows)), width // 2)
    lines = []
    for term, meaning in rows.items():
        if len(term) + 4 <= column:
            lines += _wrap(meaning, width, f"  {term}".ljust(column), " " * column)
        else:
            lines += [f"  {term}", *_wrap(meaning, width, " " * column, " " * column)]
    return lines


HELP: tuple[Block, ...] = (
    "normstudy: what does the placement of normalization do to the gradients and the training of a transformer?",
    {
        "normstudy run [KEY=VALUE ...]": "train one run",
        "normstudy sweep [KEY=V1,V2 ...]": "train every combination, draw the figures, print the comparison",
        "normstudy plot STUDY": "draw the figures of a study again",
        "normstudy compare STUDY --by COLUMN": "print paired differences between the values of one column",
        "normstudy status STUDY [--watch]": "print runs, outcomes, failures, rate and time left of a sweep",
        "normstudy cancel STUDY": "end the Slurm jobs of a sweep; its runs are saved",
        "normstudy check STUDY": "verify every file of a study; each finding says what to do",
        "normstudy compact STUDY [--seal]": "gather finished runs into one file per table",
        "normstudy export STUDY --to FORMAT": "write the tables as csv, tensorboard, wandb-offline or duckdb",
        "normstudy reproduce --tier 0": "compare papers' predictions at initialization with measurements",
        "normstudy bench [--full]": "measure how fast this machine trains, against plain loops and goals",
        "normstudy COMMAND --help": "print what a command takes",
        "normstudy --version": "print the version",
    },
    "First steps:",
    (
        "normstudy sweep experiment=quickstart",
        "normstudy plot results/quickstart",
        "normstudy compare results/quickstart --by warmup_steps",
    ),
    "Shell completion of commands, keys and values in bash (the word install=fish prints the script for fish):",
    ('eval "$(normstudy -sc install=bash)"',),
)

KEYS: dict[str, str] = {
    "experiment=": "smoke, quickstart, warmup, depth, peak_lr, rmsnorm, placements, or your own in --config-dir",
    "model=": "default, tiny, vaswani, gpt2, llama, olmo2, gemma2, deepnet: presets of the keys below",
    "model.placement=": "pre, post, peri, reordered, sub, deepnorm, admin, lns, mix, b2t, residual, hybrid, rezero, "
    "none, or your own as my_module:my_block",
    "model.norm=": "auto, layernorm, rmsnorm, dyt, none, or your own as my_module:my_norm",
    "model.qk_norm=": "auto, none, per_head, full",
    "model.init=": "auto (the placement's own), xavier, normal, gpt2, deepnorm, sub, tfixup",
    "model.embed_init=": "unit, std, scaled (std and scaled with model.embed_std=)",
    "model.activation=": "gelu, relu, swiglu, geglu",
    "model.positions=": "learned, sinusoidal, rope, none",
    "schedule=": "what follows the warmup: constant, inverse_sqrt, linear, cosine",
    "optimizer=": "adam, adamw, sgd",
    "data=": "stdlib, pydoc, synthetic, tiny_shakespeare, enwik8, text8 (the last three are downloaded once), or file "
    "(with data.path=FILE, a folder, or 'a/glob/*.txt')",
    "data.tokenizer=": "byte, char, bpe (with data.vocab_size=)",
    "seed=, data_seed=": "initialization and batches; data_seed is the seed unless given",
    "results_dir=, study=": "results go to RESULTS_DIR/STUDY; default results/scratch",
}
NUMBERS = (
    "Numbers and switches: model.n_layers=, model.d_model=, model.n_heads=, model.tied=, model.biases=, "
    "schedule.peak_lr=, schedule.warmup_steps=, schedule.n_steps=, data.seq_len=, data.batch_size=."
)

EXECUTION_KEYS: dict[str, str] = {
    "execution=": "local, or slurm (the sweep as an array of Slurm jobs)",
    "execution.workers=": "processes that train; default one per core, and one in a Slurm job",
    "execution.runs_per_batch=": "most runs trained as one program; default chosen by the shape",
    "execution.device=": "auto, cpu, cuda; recorded, since a GPU rounds differently from a CPU",
    "execution.checkpoint_seconds=": "seconds between two checkpoints, from which an interrupted sweep resumes; "
    "default 60",
    "execution.retry_failed=": "whether runs that crashed in an earlier command are tried again; default true",
    "execution.max_tries=": "crashes after which a run is left failed; default 3",
}

SLURM_KEYS: dict[str, str] = {
    "execution.jobs=": "most jobs that run at the same time; default 8",
    "execution.minutes=": "per job: time limit; a job that reaches it saves its runs, is requeued and resumes",
    "execution.signal_seconds=": "per job: seconds before the time limit at which to save",
    "execution.requeues=": "per job: maximum number of requeues",
    "execution.gpus=": "per job: GPUs, 0 or 1",
    "execution.memory_gb=": "per job: memory; default Slurm's",
    "execution.partition=, execution.account=": "default Slurm's",
    "execution.sbatch=": "further options of sbatch, as in {qos: low}",
}

FLAGS: dict[str, str] = {
    "--cfg job|hydra|all": "print the configuration instead of training; --package KEY prints a part of it",
    "--config-dir DIR": "a folder of your own YAML files, such as DIR/experiment/mine.yaml",
    "--info, --hydra-help": "print what Hydra finds; print Hydra's own help",
    "--retry-failed, --no-retry-failed": "set execution.retry_failed to true, to false",
}

KEY_BLOCKS: tuple[Block, ...] = (
    "Keys (normstudy run --cfg job prints all of them with their values):",
    KEYS,
    NUMBERS,
    "Execution keys (on one kind of device they never change a result):",
    EXECUTION_KEYS,
    "More execution keys with execution=slurm:",
    SLURM_KEYS,
    "Flags:",
)

WHERE = {"--where COLUMN=VALUE[,COLUMN=VALUE]": "only these runs; may be repeated"}

COMMAND_HELP: dict[str, tuple[Block, ...]] = {
    "run": (
        "normstudy run [KEY=VALUE ...] [FLAGS]: train one run; normstudy plot draws its figures.",
        {
            "normstudy run model.placement=post seed=3": "the defaults, but for these two keys",
            "normstudy run experiment=warmup": "one run at an experiment's base values; its axes are ignored",
        },
        *KEY_BLOCKS,
        FLAGS,
    ),
    "sweep": (
        "normstudy sweep [KEY=V1,V2 ...] [FLAGS]: train every combination; only what is missing is trained.",
        {
            "normstudy sweep experiment=quickstart": "the axes of an experiment",
            "normstudy sweep experiment=depth --dry-run": "print runs, batches and the estimated time",
            "normstudy sweep experiment=warmup seed=0,1": "a key on the command line replaces the experiment's",
            "normstudy sweep 'seed=range(0,5)' study=mine": "range(), choice() and glob() work",
        },
        *KEY_BLOCKS,
        {
            **FLAGS,
            "--dry-run": "print runs, finished runs, batches and the estimated time; train nothing",
            "--detach": "with execution=slurm: return once the jobs are submitted",
        },
        "The axes of an experiment are under hydra.sweeper.params in its file. Other launchers and sweepers of Hydra "
        "work where they are installed: hydra/launcher=joblib, hydra/sweeper=optuna.",
    ),
    "plot": (
        "normstudy plot STUDY: draw the figures of a study (a folder such as results/warmup) from its tables alone.",
        {
            **WHERE,
            "--only NAME[,NAME]": "only these figures",
            "--format png|svg|pdf": "default png",
            "--out DIR": "default STUDY/figures",
        },
        "Figures: headline, loss_curves, training_loss, gradient_ratio, gradient_profile, residual_path, heatmap, "
        "final_grid, ranking. A figure for which the study lacks data is skipped, and a line says why. On two or more "
        "cores, two processes draw.",
    ),
    "compare": (
        "normstudy compare STUDY --by COLUMN: pair the runs of a study that differ in COLUMN only, seed by seed.",
        {
            "--by COLUMN": "any config column with several values, such as warmup_steps, placement or norm",
            "--baseline VALUE": "the value to subtract; default the smallest or first",
            **WHERE,
            "--format table|csv|json|markdown": "default table",
        },
        "A difference is the final validation loss of a value minus that of the baseline, in nats, with the 95 % "
        "paired t interval over seeds. Fewer than five pairs give no verdict.",
    ),
    "status": (
        "normstudy status STUDY: print how far a sweep is, from the files of its study alone, on any machine that can "
        "read them.",
        {
            "--watch": "print the status again every few seconds until every planned run is finished or failed; "
            "Ctrl-C ends it",
            "--every S": "with --watch: seconds between two prints; default 5",
        },
        "The status lists the planned, finished, running, interrupted and failed runs, the outcomes, the rate and the "
        "time left, the process that holds the study, and the last line of each failed run's traceback.",
    ),
    "cancel": (
        "normstudy cancel STUDY: end the Slurm jobs of a sweep. Running jobs save their runs first; rerun the sweep's "
        "command to resume.",
    ),
    "check": (
        "normstudy check STUDY: verify every file of a study; nothing is changed.",
        "The check covers the files of each table (checksums, schema, names), the steps of each run, the rows that a "
        "finished run must have, checkpoints, the records of sweeps, and the seal. Each finding says what to do. Lines "
        "that begin with note: report harmless states: unfinished and failed runs, processes that use the study, "
        "leftover files.",
        "Exit code 0: sound; 1: something is wrong.",
    ),
    "compact": (
        "normstudy compact STUDY: gather the finished runs of a study into one file per table.",
        {"--seal": "also close the study: it then accepts only the runs that it already holds"},
    ),
    "export": (
        "normstudy export STUDY --to FORMAT: write the tables of a study for another tool.",
        {
            "--to csv": "one file per table: runs.csv, steps.csv, modules.csv, residual.csv",
            "--to duckdb": "one database file (OUT) with the four tables",
            "--to tensorboard": "event files, one folder per run; view with tensorboard --logdir OUT",
            "--to wandb-offline": "offline runs; upload with wandb sync OUT/wandb/offline-run-*",
            "--out PATH": "default STUDY/export/FORMAT; PATH must not exist yet",
            **WHERE,
        },
    ),
    "reproduce": (
        "normstudy reproduce --tier 0: measure what papers predict about a transformer at initialization, and judge "
        "each prediction.",
        "normstudy reproduce NAME [NAME...]: only these predictions.",
        {
            "--list": "print the names, what each predicts and its source; measure nothing",
            "--again": "measure again what is already stored",
            "--out DIR": "folder of tables and figures; default results/reproductions",
            "--workers N": "processes, one thread each; default one per core; never changes a number",
            "--format table|markdown": "default table",
        },
        "A stored table is reused as long as its definition (models, depths, seeds, the version of the measurement) is "
        "the same. Verdicts and figures are always computed from the tables.",
        "Verdicts:",
        {
            "supported": "the whole 95 % t interval over seeds lies in the band that the source predicts",
            "not supported": "the whole interval lies outside the band",
            "inconclusive": "the interval crosses the edge of the band",
            "measured": "the source gives no number",
        },
    ),
    "bench": (
        "normstudy bench [--full]: measure how fast normstudy is on this machine, taking turns with the tools that "
        "people use instead.",
        {
            "--quick": "a few rounds of the small cases, two to three minutes (the default)",
            "--full": "every case, for the committed table",
            "--device cpu|cuda": "default cpu; cuda measures row g",
            "--rows ROW[,ROW]": "only these rows; the tables of other rows are kept",
            "--out DIR": "folder of tables and figure; default results/bench/quick, with --full results/bench",
            "--format table|markdown": "default table",
            "--show": "measure nothing: print the tables of results/bench (with --quick results/bench/quick) or of "
            "--out, and draw their figure again",
        },
        "Rows:",
        {
            "a": "run-steps per second against plain loops",
            "b": "cost of the probes",
            "c": "time and memory outside training",
            "d": "time to start",
            "e": "cost against depth, width, length, batch and runs",
            "f": "figures and tables of a large study",
            "g": "run-steps per second on one GPU",
            "i": "run-steps per second against plain loops that record too",
        },
        "A ratio compares two subjects within one round, measured one after the other. Its goal applies to the median "
        "over rounds.",
    ),
}
