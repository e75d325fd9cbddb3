"""Define and format the help texts of `normstudy`. Only the standard library is imported, so that they appear fast."""

import functools
import shutil
import textwrap

# A block is a paragraph (str), a table of terms and their meanings (dict), or commands to type (tuple). Commands are
# never wrapped. A paragraph that ends with a colon is followed by the next block without a blank line.
Block = str | dict[str, str] | tuple[str, ...]

WIDTHS = 40, 120  # minimum and maximum width of a text in columns, for terminals of any width
_wrap = functools.partial(textwrap.wrap, break_long_words=False, break_on_hyphens=False)


def help_of(command: str | None) -> str:
    """Return a help text, wrapped for the current terminal. command: None for the help text of `normstudy` itself."""
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


def _table(rows: dict[str, str], width: int) -> list[str]:
    """Format a table. The meaning of a term is printed beside the term, or below a term that is too long."""
    column = min(4 + max(map(len, rows)), width // 2)
    lines, indent = [], " " * column
    for term, meaning in rows.items():
        if len(term) + 4 <= column:
            lines += _wrap(meaning, width, initial_indent=f"  {term}".ljust(column), subsequent_indent=indent)
        else:
            lines += [f"  {term}", *_wrap(meaning, width, initial_indent=indent, subsequent_indent=indent)]
    return lines


HELP: tuple[Block, ...] = (
    "normstudy: what does the placement of normalization do to the gradients and the training of a transformer?",
    {
        "normstudy run [KEY=VALUE ...]": "train one run",
        "normstudy sweep [KEY=V1,V2 ...]": "train every combination, draw the figures, print the comparison",
        "normstudy critical --of KEY [KEY=V1,V2 ...]": "search the value at which half of the runs fail",
        "normstudy plot STUDY": "draw the figures of a study again",
        "normstudy compare STUDY --by COLUMN": "compare the runs that differ in one column, seed by seed",
        "normstudy report STUDY [STUDY ...]": "write one HTML page with the results and every run; it needs no network",
        "normstudy sensitivity STUDY": "print how much the final loss depends on the learning rate",
        "normstudy status STUDY [--watch]": "print a sweep's progress: runs, outcomes, failures, rate, time left",
        "normstudy cancel STUDY": "let the Slurm jobs of a sweep save their runs, then end the jobs",
        "normstudy check STUDY": "verify every file of a study, and say how to repair it",
        "normstudy compact STUDY [--seal]": "gather finished runs into one file per table",
        "normstudy export STUDY --to FORMAT": "write the tables as csv, tensorboard, wandb-offline or duckdb",
        "normstudy reproduce --tier 0": "test what papers predict about a transformer at initialization",
        "normstudy bench [--full]": "measure how fast this machine trains, compared with plain training loops",
        "normstudy COMMAND --help": "print the arguments of a command",
        "normstudy --version": "print the version",
    },
    "First steps:",
    (
        "normstudy sweep experiment=quickstart",
        "normstudy plot results/quickstart",
        "normstudy compare results/quickstart --by warmup_steps",
    ),
    "Tab completion of commands, keys and values in bash (install=fish prints the script for fish):",
    ('eval "$(normstudy -sc install=bash)"',),
)

KEYS: dict[str, str] = {
    "experiment=": "smoke, quickstart, warmup, depth, peak_lr, rmsnorm, placements, shallow, boundary, best, "
    "critical_lr, critical_warmup, or your own (see --config-dir)",
    "model=": "presets for the model.* keys: default, tiny, vaswani, gpt2, llama, olmo2, gemma2, deepnet",
    "model.placement=": "pre, post, peri, reordered, sub, deepnorm, admin, lns, mix, b2t, residual, hybrid, rezero, "
    "none, or your own as my_module:my_block",
    "model.norm=": "auto, layernorm, rmsnorm, dyt, none, or your own as my_module:my_norm",
    "model.qk_norm=": "auto, none, per_head, full",
    "model.init=": "auto (depends on the placement), xavier, normal, gpt2, deepnorm, sub, tfixup",
    "model.embed_init=": "unit, std, scaled; with std and scaled, model.embed_std= sets the standard deviation",
    "model.activation=": "gelu, gelu_tanh, relu, swiglu, geglu, geglu_tanh",
    "model.positions=": "learned, sinusoidal, rope, none",
    "schedule=": "learning rate after the warmup: constant, inverse_sqrt, linear, cosine",
    "optimizer=": "adam, adamw, sgd",
    "optimizer.decay=": "what optimizer.weight_decay= acts on: all, matrices, matrices_but_embeddings",
    "data=": "built in: stdlib, pydoc, synthetic; downloaded once: tiny_shakespeare, enwik8, text8; your own text: "
    "data=file data.path=PATH, where PATH is a file, a folder or a glob such as 'a/glob/*.txt'",
    "data.tokenizer=": "byte, char, bpe; with bpe, data.vocab_size= sets the number of tokens",
    "seed=, data_seed=": "seeds of the initialization and of the batches; data_seed defaults to seed",
    "results_dir=, study=": "results are written to RESULTS_DIR/STUDY; default: results/scratch",
}
NUMBERS = (
    "Keys with numbers: model.n_layers=, model.d_model=, model.n_heads=, schedule.peak_lr=, schedule.warmup_steps=, "
    "schedule.n_steps=, data.seq_len=, data.batch_size=. Keys with true or false: model.tied=, model.biases=."
)

EXECUTION_KEYS: dict[str, str] = {
    "execution=": "local (processes on this machine) or slurm (an array of Slurm jobs)",
    "execution.workers=": "number of processes that train; default: one per core, or one per Slurm job",
    "execution.runs_per_batch=": "maximum number of runs trained as one program; default: depends on the model",
    "execution.device=": "auto, cpu, cuda; the device of each run is recorded, because GPUs and CPUs round differently",
    "execution.checkpoint_seconds=": "seconds between two checkpoints; an interrupted sweep resumes from the last "
    "checkpoint; default: 60",
    "execution.retry_failed=": "whether to retry runs that crashed during an earlier command; default: true",
    "execution.max_tries=": "number of crashes after which a run is no longer retried; default: 3",
}

SLURM_KEYS: dict[str, str] = {
    "execution.jobs=": "maximum number of jobs that run at the same time; default: 8",
    "execution.minutes=": "time limit of a job in minutes; shortly before the limit, a job saves its runs and is "
    "requeued; default: 60",
    "execution.signal_seconds=": "seconds before the time limit at which a job saves its runs; default: 120",
    "execution.requeues=": "maximum number of requeues of a job; default: 100",
    "execution.gpus=": "number of GPUs per job, 0 or 1; default: 0",
    "execution.memory_gb=": "memory per job in GB; default: chosen by Slurm",
    "execution.partition=, execution.account=": "Slurm partition and account; default: chosen by Slurm",
    "execution.sbatch=": "further options of sbatch, as in {qos: low}",
}

FLAGS: dict[str, str] = {
    "--cfg job|hydra|all": "print the configuration instead of training; --package KEY prints only that part",
    "--config-dir DIR": "also search DIR for YAML files, such as your own DIR/experiment/mine.yaml; "
    "Hydra's YAML files can run code: use only files that you trust",
    "--info": "print Hydra's plugins, search path and defaults",
    "--hydra-help": "print Hydra's own help",
    "--retry-failed, --no-retry-failed": "set execution.retry_failed to true or to false",
}

KEY_BLOCKS: tuple[Block, ...] = (
    "Keys (normstudy run --cfg job prints all keys with their values):", KEYS, NUMBERS,
    "Execution keys (on one kind of device, they never change a result):", EXECUTION_KEYS,
    "Execution keys that need execution=slurm:", SLURM_KEYS, "Flags:",
)  # fmt: skip

WHERE = {
    "--where CONDITION[,CONDITION]": "use only the runs that meet each condition, such as 'n_layers=2,4' or "
    "'peak_lr>=1e-3' (=, !=, <, <=, >, >=); may be repeated; quote a value with a comma: 'data_path=\"a,b\"'"
}

COMMAND_HELP: dict[str, tuple[Block, ...]] = {
    "run": (
        "normstudy run [KEY=VALUE ...] [FLAGS]: train one run; normstudy plot draws its figures.",
        {
            "normstudy run model.placement=post seed=3": "train one run; all other keys keep their defaults",
            "normstudy run experiment=warmup": "train one run of an experiment, without sweeping any key",
        },
        *KEY_BLOCKS,
        FLAGS,
    ),
    "sweep": (
        "normstudy sweep [KEY=V1,V2 ...] [FLAGS]: train every combination of values; finished runs are not repeated.",
        {
            "normstudy sweep experiment=quickstart": "sweep the axes of an experiment",
            "normstudy sweep experiment=depth --dry-run": "print runs, batches and the estimated time",
            "normstudy sweep experiment=warmup seed=0,1": "replace the experiment's values of one key",
            "normstudy sweep 'seed=range(0,5)' study=mine": "write values with range(), choice() or glob()",
        },
        *KEY_BLOCKS,
        {
            **FLAGS,
            "--dry-run": "print runs, finished runs, batches and the estimated time; train nothing",
            "--detach": "with execution=slurm: return as soon as the jobs are submitted",
        },
        "The axes of an experiment (its keys with several values) are listed under hydra.sweeper.params in its file. "
        "Other installed launchers and sweepers of Hydra work too: hydra/launcher=joblib, hydra/sweeper=optuna.",
    ),
    "critical": (
        "normstudy critical [--of KEY] [KEY=V1,V2 ...] [FLAGS]: search the value of KEY at which half of the runs "
        "fail, and the value at which half do not learn, for each cell (a combination of the other keys' values).",
        {
            "normstudy critical study=edge model.placement=pre,post": "up to which learning rate do runs train?",
            "normstudy critical --of warmup_steps study=least": "how much warmup is needed?",
        },
        {
            "--of KEY": "peak_lr (the default), warmup_steps or n_layers",
            "search.low=, search.high=": "smallest and largest value to try; default: 1e-4 and 1 (peak_lr), 0 and "
            "n_steps (warmup_steps), 1 and 32 (n_layers)",
            "search.width=": "end a cell when its 95 % intervals are narrower than this, in decades; default: 0.4",
            "search.max_runs=": "maximum number of runs of a cell; default: 60; up to 12 repeated runs are added",
            "seed=": "seed of the first run; every run has another seed",
            "--dry-run": "print how many runs the search and an equally precise grid would need; train nothing",
        },
        "All other keys and flags are those of normstudy sweep, but schedule.n_steps is 300 by default. If you repeat "
        "the command, the search continues where it stopped. docs/critical.md explains method and values.",
    ),
    "plot": (
        "normstudy plot STUDY: draw the figures of a study (a folder such as results/warmup) from its tables alone.",
        {
            **WHERE,
            "--only NAME[,NAME]": "draw only these figures",
            "--module NAME": "module of the gradient figures, such as attn_in; default: mlp_out",
            "--quantity NAME": "quantity of the gradient figures: grad_norm (the default), update_ratio, param_norm or "
            "update_norm",
            "--width 3.3in": "width in in, cm, mm or pt, at the same font size; default: 7in, two columns of a paper",
            "--no-title": "draw no title, and print its text as a caption",
            "--format png|svg|pdf": "default: png",
            "--out DIR": "folder for the figures; default: STUDY/figures, or a subfolder of it if you use --where, "
            "--module, --quantity, --width or --no-title",
        },
        "Figures: headline, loss_curves, training_loss, gradient_ratio, gradient_profile, residual_path, "
        "update_rms, heatmap, final_grid, ranking; of a search (normstudy critical): critical_depth, critical_curve, "
        "phase_map. A figure that lacks data is skipped, and a line says why.",
    ),
    "compare": (
        "normstudy compare STUDY --by COLUMN: compare the runs of a study that differ only in COLUMN, seed by seed.",
        {
            "--by COLUMN": "any config column with several values, such as warmup_steps, placement or norm",
            "--baseline VALUE": "value that all other values are compared with; default: the first of pre, null, none "
            "and 0 that COLUMN contains, otherwise its smallest number or its alphabetically first text",
            "--margin M": "also test whether the losses are equivalent within M nats per token",
            **WHERE,
            "--format table|csv|json|markdown": "default: table",
        },
        "Two tables compare the share of runs that failed (stuck, collapsed or diverged), and the final validation "
        "loss among the pairs in which neither run failed. docs/statistics.md explains intervals, tests and verdicts.",
    ),
    "report": (
        "normstudy report STUDY [STUDY ...]: write one HTML file that shows studies in any browser, without a network.",
        {**WHERE, "--out FILE": "default: STUDY/report.html; of several studies: a file beside the first"},
        "The page says what the comparisons show, and how the runs of each configuration ended. It draws the losses, "
        "gradients and updates of the configuration that you choose, and lists every run with the command that trains "
        "it again. Runs that several studies share are counted once.",
        "The command needs pip install 'normstudy[report]'.",
    ),
    "sensitivity": (
        "normstudy sensitivity STUDY: print how much the final loss depends on the learning rate (arXiv 2309.14322).",
        {**WHERE, "--format table|csv|json|markdown": "default: table"},
        "Runs that differ only in peak_lr, seeds, probes and evaluations form a cell; their learning rates form "
        "its grid. The loss at a rate is min(final validation loss, loss at initialization), in nats per token. The "
        "sensitivity is the mean of these losses over the grid, minus the smallest one. Its interval is over the seeds "
        "that have every rate. The sensitivity depends on the grid, but not on a constant added to all losses. Do not "
        "trust it if the best rate is the lowest or highest of the grid.",
    ),
    "status": (
        "normstudy status STUDY: print how far a sweep has come. The command only reads the files of the study, so it "
        "works on any machine that can read them.",
        {
            "--watch": "print the status again every few seconds until every planned run is finished or failed; "
            "Ctrl-C stops earlier",
            "--every S": "with --watch: seconds between two prints; default: 5",
        },
        "The status lists the runs (planned, finished, running, interrupted and failed) and their outcomes, and counts "
        "the running runs that are likely stuck (docs/early_warning.md). It also shows the rate, the time left, the "
        "process that uses the study, and the last line of each failed run's traceback.",
    ),
    "cancel": (
        "normstudy cancel STUDY: end the Slurm jobs of a sweep. Running jobs save their runs first. To resume, rerun "
        "the sweep's command.",
    ),
    "check": (
        "normstudy check STUDY: verify every file of a study, and change nothing.",
        "The check covers the files of each table (checksums, schema, names), the steps of each run, the rows that a "
        "finished run must have, checkpoints, the records of sweeps, and the seal. Each finding says what to do. Lines "
        'that begin with "note:" report harmless states, such as unfinished or failed runs, processes that use the '
        "study, and leftover files.",
        "The exit code is 0 if the study is sound and 1 if something is wrong.",
    ),
    "compact": (
        "normstudy compact STUDY: gather the finished runs of a study into one file per table.",
        {"--seal": "also seal the study, so that it accepts no new runs"},
    ),
    "export": (
        "normstudy export STUDY --to FORMAT: write the tables of a study for another tool.",
        {
            "--to csv": "one file per table: runs.csv, steps.csv, modules.csv, residual.csv",
            "--to duckdb": "one database file, PATH, with the four tables",
            "--to tensorboard": "event files, one folder per run; view with tensorboard --logdir PATH",
            "--to wandb-offline": "offline runs; upload with wandb sync PATH/wandb/offline-run-*",
            "--out PATH": "default: STUDY/export/FORMAT; PATH must not exist yet",
            "--join": "with --to csv or duckdb: add to steps, modules and residual the columns that "
            "normstudy.load(join=True) adds, such as placement, seed, outcome and all config columns that vary",
            **WHERE,
        },
        "Every format has the outcome, gap_closed and bits_per_byte of each run; csv and duckdb also have the "
        "update_rms of each step and the update_ratio of each module. results/README.md defines them.",
    ),
    "reproduce": (
        "normstudy reproduce --tier 0: measure what papers predict about a transformer at initialization, and judge "
        "each prediction.",
        "normstudy reproduce NAME [NAME...]: measure and judge only these predictions.",
        {
            "--list": "print the name, content and source of each prediction; measure nothing",
            "--again": "repeat measurements that are already stored",
            "--out DIR": "folder for tables and figures; default: results/reproductions",
            "--workers N": "number of processes, one thread each; default: one per core; changes no result",
            "--format table|markdown": "default: table",
        },
        "A stored table is reused if its definition (models, depths, seeds, version of the measurement) has not "
        "changed. Verdicts and figures are always computed from the tables.",
        "Verdicts:",
        {
            "supported": "the entire 95 % t interval over seeds lies in the band, the range that fits the source",
            "not supported": "the entire interval lies outside the band",
            "inconclusive": "the interval crosses an edge of the band",
            "measured": "the source predicts no number",
        },
    ),
    "bench": (
        "normstudy bench [--full]: measure how fast normstudy is on this machine. Measurements of normstudy alternate "
        "with measurements of the tools that people use instead, such as a plain training loop.",
        {
            "--quick": "measure the small cases in a few rounds, for about five minutes (the default)",
            "--full": "measure every case, as for the shipped tables in results/bench",
            "--device cpu|cuda": "default: cpu; row g of the benchmark (see below) measures a GPU and needs cuda",
            "--rows ROW[,ROW]": "measure only these rows of the benchmark (listed below); stored results of "
            "other rows are kept",
            "--out DIR": "folder for tables and figure; default: results/bench/quick (with --full: results/bench)",
            "--format table|markdown": "default: table",
            "--show": "measure nothing: print the tables stored in the --out folder and draw their figure again; with "
            "--show, the default of --out is results/bench (with --quick: results/bench/quick)",
        },
        "The benchmark consists of these rows (a run-step is one step of one run):",
        {
            "a": "training speed against plain loops that record nothing",
            "b": "how much recording gradient norms slows training",
            "c": "time and memory that a sweep needs besides training",
            "d": "time to start",
            "e": "time of a step at different model, sequence and batch sizes",
            "f": "time and memory to plot, compare and read a large study",
            "g": "training speed on one GPU",
            "i": "training speed against plain loops that record gradients",
            "j": "time of a search for critical values against the time of a grid",
            "k": "time, memory and size of a study's page",
            "l": "how much normstudy.watch slows a training loop",
        },
        "The benchmark repeats its measurements in rounds. A ratio divides two measurements that were made one after "
        "the other in the same round. A goal for a ratio applies to the median over rounds.",
    ),
}
