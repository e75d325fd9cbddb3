"""The `normstudy` command: help texts, dispatch, and the arguments of plot, compare and the others.

Only the standard library is imported here, and each command's own modules when it is chosen, so that every
help text and every misspelt command answers at once.
"""

from __future__ import annotations

import os
import select
import sys
import typing
from collections.abc import Callable
from pathlib import Path

if typing.TYPE_CHECKING:
    import argparse

HELP = """\
normstudy: what does the placement of normalization do to the gradients and the training of a transformer?

  normstudy run [KEY=VALUE ...]           train one run
  normstudy sweep [KEY=V1,V2 ...]         train every combination, draw the figures, print the comparison
  normstudy plot STUDY                    draw a study's figures again
  normstudy compare STUDY --by COLUMN     paired differences between the values of one column
  normstudy compact STUDY [--seal]        gather finished runs into one file per table
  normstudy reproduce --tier 0            hold the theory's predictions at initialization against measurements
  normstudy bench [--full]                measure how fast this machine trains, against plain loops and goals
  normstudy COMMAND --help                what a command takes

First steps:
  normstudy sweep experiment=quickstart
  normstudy plot results/quickstart
  normstudy compare results/quickstart --by warmup_steps
"""

KEYS = """\
Keys (normstudy run --cfg job prints them all with their values):
  experiment=NAME         smoke, quickstart, warmup, depth, peak_lr, rmsnorm, placements, or your own in --config-dir
  model=                  default, tiny, vaswani, gpt2, llama, olmo2, gemma2, deepnet: each a few differences
  model.placement=        pre, post, peri, reordered, sub, deepnorm, admin, lns, mix, b2t, residual, hybrid, rezero,
                          none, or your own as my_module:my_block
  model.norm=             auto, layernorm, rmsnorm, dyt, none, or your own
  model.qk_norm=          auto, none, per_head, full
  model.init=             auto (the placement's own), xavier, normal, gpt2, deepnorm, sub, tfixup
  model.embed_init=       unit, std, scaled (std and scaled with model.embed_std=)     model.tied=  model.biases=
  model.activation=       gelu, relu, swiglu, geglu      model.positions=  learned, sinusoidal, rope, none
  model.n_layers=  model.d_model=  model.n_heads=
  schedule.peak_lr=  schedule.warmup_steps=  schedule.n_steps=
  data=                   stdlib, pydoc, synthetic, tiny_shakespeare, enwik8, text8 (downloaded once),
                          file (with data.path=FILE, a folder, or 'a/glob/*.txt')
  data.tokenizer=         byte, char, bpe (with data.vocab_size=)       data.seq_len=  data.batch_size=
  optimizer=              adam, adamw, sgd
  schedule=               constant, inverse_sqrt, linear, cosine: what follows the warmup
  seed=  data_seed=       initialization, batches (data_seed is the seed unless given)
  study=  results_dir=    results go to RESULTS_DIR/STUDY (default results/scratch)
  execution.workers=  execution.runs_per_batch=    never change a result
  execution.device=       auto, cpu, cuda; recorded, since a GPU rounds otherwise than a CPU

Flags:
  --cfg job|hydra|all     show the config instead of training; --package KEY shows a part of it
  --config-dir DIR        a folder of your own YAML files, such as DIR/experiment/mine.yaml
  --info, --hydra-help    what Hydra finds; Hydra's own help
"""

RUN_HELP = f"""\
normstudy run [KEY=VALUE ...] [FLAGS]: train one run; normstudy plot draws its figures.

  normstudy run model.placement=post schedule.peak_lr=3e-3
  normstudy run experiment=warmup seed=3       one run at an experiment's base values, without its axes

{KEYS}"""

SWEEP_HELP = f"""\
normstudy sweep [KEY=V1,V2 ...] [FLAGS]: train every combination; only what is missing is trained.

  normstudy sweep experiment=quickstart
  normstudy sweep experiment=warmup study=warmup-8 model.n_layers=8      the command line wins by key
  normstudy sweep model.placement=pre,post 'seed=range(0,5)' study=mine  range(), choice() and glob() work
  normstudy sweep experiment=depth --dry-run                             runs, batches, estimated time

{KEYS}  --dry-run               print runs, finished, batches and the estimated time; train nothing

Axes of an experiment lie under hydra.sweeper.params in its file. Others' launchers and sweepers work:
  hydra/launcher=joblib, hydra/sweeper=optuna (where they are installed)
"""

PLOT_HELP = """\
normstudy plot STUDY: draw the figures of a study, a folder such as results/warmup, from its tables alone.

  --where COLUMN=VALUE[,COLUMN=VALUE]   only these runs; may be repeated
  --only NAME[,NAME]                    only these figures
  --format png|svg|pdf                  default png
  --out DIR                             default STUDY/figures

Figures: headline, loss_curves, training_loss, gradient_ratio, gradient_profile, residual_path, heatmap, final_grid,
ranking. One that a study cannot give is skipped, and a line says why.
"""

COMPARE_HELP = """\
normstudy compare STUDY --by COLUMN: pair the runs of a study that differ in COLUMN only, seed by seed.

  --by COLUMN                           any config column with several values: warmup_steps, placement, norm
  --baseline VALUE                      the arm to subtract; default the smallest or first value
  --where COLUMN=VALUE[,COLUMN=VALUE]   only these runs; may be repeated
  --format table|csv|json|markdown      default table

A difference is arm minus baseline, in nats of final validation loss, with the 95 % paired t interval over
seeds. Fewer than five pairs give no verdict.
"""

COMPACT_HELP = """\
normstudy compact STUDY: gather the finished runs of a study into one file per table.

  --seal      and close the study: it then accepts only the runs that it already holds
"""

REPRODUCE_HELP = """\
normstudy reproduce --tier 0: what papers predict of a transformer at initialization, measured and judged.
normstudy reproduce NAME [NAME...]: only these.

  --list                   name them, with what they predict and by whom; measure nothing
  --again                  measure also what is stored already
  --out DIR                for tables and figures; default results/reproductions
  --workers N              processes, one thread each; default one per core; never change a number
  --format table|markdown  default table

A table is kept and not measured again as long as its definition (models, depths, seeds, the version of the
measurement) is the same. Verdicts and figures are made anew from the tables each time.
supported: the whole 95 % t interval over seeds lies in the band that the source predicts; not supported: wholly
outside; inconclusive: neither; measured: the source gives no number.
"""

BENCH_HELP = """\
normstudy bench [--full]: how fast normstudy is on this machine, beside what people use instead, measured in turns.

  --quick                  a few rounds of the small cases, two to three minutes (the default)
  --full                   every case, for the committed table
  --device cpu|cuda        default cpu; cuda measures row g
  --rows ROW[,ROW]         only these; their tables are replaced, others are left
  --out DIR                for tables and figure; default results/bench/quick, with --full results/bench
  --format table|markdown  default table
  --show                   measure nothing: print the tables of results/bench (with --quick results/bench/quick) or
                           of --out, and draw their figure again

Rows:
  a  run-steps per second against plain loops         e  cost against depth, width, length, batch and runs
  b  cost of the probes                               f  figures and tables of a large study
  c  time and memory outside training                 g  run-steps per second on one GPU
  d  time to start                                    h  runs that diverged leave their batch

A ratio is taken round by round, between subjects that were measured one after the other; goals are held against its
median over rounds.
"""


def main(argv: list[str] | None = None) -> int:
    """The console command; returns the exit code: 0 done, 1 a run crashed, 2 a bad request, 130 stopped."""
    words = sys.argv[1:] if argv is None else argv
    try:
        code = _dispatch(words)
        sys.stdout.flush()  # so that a reader who has gone shows here and not at exit
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        if _stdout_is_open():
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141  # as if ended by SIGPIPE
    except Exception as error:
        line = _user_error(error)
        if line is None:
            raise
        print(f"error: {line}", file=sys.stderr)
        return 2
    return code


def _stdout_is_open() -> bool:
    """Whether anybody still reads what is printed: `| head` may have seen enough."""
    poll = select.poll()
    poll.register(sys.stdout, select.POLLOUT)
    return not any(events & select.POLLERR for _, events in poll.poll(0))


def _user_error(error: Exception) -> str | None:
    """The line for what a user can mend: a wrong request, a file or folder that cannot be used."""
    from normstudy.config import ConfigError

    if isinstance(error, ConfigError):
        return str(error)
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return None


def _dispatch(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        print(HELP, end="")
        return 0
    command, rest = words[0], words[1:]
    if command in ("-sc", "--shell-completion"):
        return _complete(rest)
    if command == "--version":
        from importlib.metadata import version

        print(f"normstudy {version('normstudy')}")
        return 0
    if command not in COMMANDS:
        from normstudy.config import ConfigError, nearest

        kind = "flag" if command.startswith("-") else "command"
        raise ConfigError(f"unknown {kind} {command!r}: use {', '.join(COMMANDS)}.{nearest(command, COMMANDS)}")
    text, call = COMMANDS[command]
    if "-h" in rest or "--help" in rest:
        print(text, end="")
        return 0
    return call(rest)


def _run(argv: list[str]) -> int:
    from normstudy import app

    return app.main("run", argv)


def _sweep(argv: list[str]) -> int:
    from normstudy import app

    return app.main("sweep", argv)


def _plot(argv: list[str]) -> int:
    parser = _parser("plot")
    _where_option(parser)
    parser.add_argument("--format", choices=("png", "svg", "pdf"), default="png")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--only")
    args = parser.parse_args(argv)
    where = _where(args.where)
    only = None if args.only is None else _names("--only", args.only)
    study = _study(args.study)
    from normstudy.figures import plot_study

    result = plot_study(study, where=where, fmt=args.format, out=args.out, only=only)
    for path in result.paths:
        print(path)
    for line in result.skipped:
        print(f"skipped {line}")
    return 0


def _compare(argv: list[str]) -> int:
    parser = _parser("compare")
    _where_option(parser)
    parser.add_argument("--by", required=True)
    parser.add_argument("--baseline")
    parser.add_argument("--format", choices=("table", "csv", "json", "markdown"), default="table")
    args = parser.parse_args(argv)
    where = _where(args.where)
    study = _study(args.study)
    from normstudy.analysis.compare import compare_study, render

    print(render(compare_study(study, by=args.by, baseline=args.baseline, where=where), args.format))
    return 0


def _compact(argv: list[str]) -> int:
    parser = _parser("compact")
    parser.add_argument("--seal", action="store_true")
    args = parser.parse_args(argv)
    study = _study(args.study)
    from normstudy.compaction import compact_study

    print(compact_study(study, seal=args.seal))
    return 0


def _reproduce(argv: list[str]) -> int:
    from normstudy.config import ConfigError

    parser = _parser("reproduce", study=False)
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--tier", type=int)
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--again", action="store_true")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--workers", type=int)
    parser.add_argument("--format", choices=("table", "markdown"), default="table")
    args = parser.parse_args(argv)
    if args.tier is not None and args.names:
        raise ConfigError(f"--tier {args.tier} and names are given: give one of the two")
    if args.tier is None and not args.names and not args.list:
        raise ConfigError("nothing is asked for: give --tier 0, or names out of normstudy reproduce --list")
    from normstudy.reproductions import REPRODUCTIONS, run, workers

    names = run.check_names(args.names) or list(REPRODUCTIONS)
    if args.tier is not None:
        names = run.names_of(args.tier)
    if args.list:
        print(run.listing(names))
        return 0
    out = run.OUT if args.out is None else args.out
    try:
        report = run.reproduce(names, out, again=args.again, processes=args.workers)
    except workers.MeasuringFailed as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(run.render(report.findings, args.format))
    if args.format == "table":
        print(f"\n{run.summary(report, out)}")
    return 0


def _bench(argv: list[str]) -> int:
    from normstudy.config import ConfigError

    parser = _parser("bench", study=False)
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_true")
    size.add_argument("--full", action="store_true")
    parser.add_argument("--device", choices=("cpu", "cuda"))
    parser.add_argument("--rows")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--format", choices=("table", "markdown"), default="table")
    parser.add_argument("--show", action="store_true")
    args = parser.parse_args(argv)
    if args.show and args.device is not None:
        raise ConfigError(f"--show measures nothing: leave out --device {args.device}")
    names = None if args.rows is None else _names("--rows", args.rows)
    from normstudy.bench import run

    mode = "full" if args.full or (args.show and not args.quick) else "quick"
    out = run.OUT[mode] if args.out is None else args.out
    if args.show:
        text = run.show(names, out, args.format)
    else:
        text = run.bench(names, out, mode=mode, device=args.device or "cpu", fmt=args.format)
    if text:
        print(text)
    return 0


COMMANDS: dict[str, tuple[str, Callable[[list[str]], int]]] = {
    "run": (RUN_HELP, _run),
    "sweep": (SWEEP_HELP, _sweep),
    "plot": (PLOT_HELP, _plot),
    "compare": (COMPARE_HELP, _compare),
    "compact": (COMPACT_HELP, _compact),
    "reproduce": (REPRODUCE_HELP, _reproduce),
    "bench": (BENCH_HELP, _bench),
}


# ---- arguments ----------------------------------------------------------------------------------------


def _parser(command: str, *, study: bool = True) -> argparse.ArgumentParser:
    import argparse

    from normstudy.config import ConfigError

    class Parser(argparse.ArgumentParser):
        def error(self, message: str) -> typing.NoReturn:
            raise ConfigError(f"{message}: see normstudy {command} --help")

    parser = Parser(prog=f"normstudy {command}", add_help=False, allow_abbrev=False)
    if study:
        parser.add_argument("study", metavar="STUDY")
    return parser


def _where_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--where", action="append", default=[], metavar="COLUMN=VALUE")


def _where(given: list[str]) -> dict[str, str]:
    """`["placement=pre,norm=rmsnorm"]` -> `{"placement": "pre", "norm": "rmsnorm"}`."""
    from normstudy.config import ConfigError

    out: dict[str, str] = {}
    for word in ",".join(given).split(",") if given else []:
        column, equals, value = (part.strip() for part in word.partition("="))
        if not (column and equals and value):
            raise ConfigError(f"--where {word!r} is not COLUMN=VALUE: write --where placement=pre,warmup_steps=0")
        if column in out:
            raise ConfigError(f"--where gives {column} twice, {out[column]} and {value}: give one value")
        out[column] = value
    return out


def _names(flag: str, given: str) -> list[str]:
    from normstudy.config import ConfigError

    names = [name.strip() for name in given.split(",")]
    if not all(names):
        raise ConfigError(f"{flag} {given!r} has an empty name: write {flag} NAME,NAME")
    return names


def _study(given: str) -> Path:
    from normstudy.config import ConfigError

    folder = Path(given)
    if folder.is_dir():
        return folder
    under = Path("results") / given
    hint = f" Did you mean {under}?" if under.is_dir() else " Give the folder of a study, such as results/warmup."
    raise ConfigError(f"{given}: no such folder.{hint}")


# ---- shell completion ---------------------------------------------------------------------------------


def _complete(words: list[str]) -> int:
    """Answer `normstudy -sc query=SHELL`, or print the script of `-sc install=SHELL`.

    Hydra completes a command line that has no subcommand, so run and sweep are dropped from COMP_LINE. For
    the other commands nothing is printed, and the shell falls back to file names.
    """
    if len(words) != 1 or words[0].split("=")[0] not in ("query", "install", "uninstall"):
        from normstudy.config import ConfigError

        raise ConfigError("-sc takes one word: install=bash, uninstall=bash or query=bash (or zsh, fish)")
    if words[0].startswith("query="):
        line = os.environ.get("COMP_LINE", "")
        program, *typed = line.split() or [""]
        if not typed or (len(typed) == 1 and not line.endswith(" ")):
            print(" ".join(c for c in COMMANDS if c.startswith("".join(typed))))
            return 0
        if typed[0] not in ("run", "sweep"):
            return 0
        many = ["--multirun"] if typed[0] == "sweep" else []  # or a comma list would be an error
        kept = [word for word in typed[1:] if word != "--dry-run"]
        blank = " " if line.endswith(" ") else ""
        os.environ["COMP_LINE"] = " ".join([program, *many, *kept]) + blank
    from normstudy import app

    app.complete(words[0])
    return 0
