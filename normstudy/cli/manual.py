"""The help texts of the `normstudy` command. Nothing is imported, so that each answers at once."""

from __future__ import annotations

HELP = """\
normstudy: what does the placement of normalization do to the gradients and the training of a transformer?

  normstudy run [KEY=VALUE ...]           train one run
  normstudy sweep [KEY=V1,V2 ...]         train every combination, draw the figures, print the comparison
  normstudy plot STUDY                    draw a study's figures again
  normstudy compare STUDY --by COLUMN     paired differences between the values of one column
  normstudy status STUDY [--watch]        runs, outcomes, failures, rate and time left of a sweep, from its files
  normstudy cancel STUDY                  end the Slurm jobs of a sweep; its runs are saved
  normstudy check STUDY                   verify every file of a study, and say what to do about what is wrong
  normstudy compact STUDY [--seal]        gather finished runs into one file per table
  normstudy export STUDY --to FORMAT      its tables as csv, tensorboard, wandb-offline or duckdb
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
  execution.checkpoint_seconds=       between two checkpoints, from which a killed sweep goes on (default 60)
  execution=              local, or slurm: the sweep as jobs, with these of its own
  execution.partition=  execution.account=  execution.gpus=  execution.memory_gb=  execution.sbatch={qos: low}
  execution.minutes=  execution.signal_seconds=  execution.requeues=     of a job: its limit, when it is told to save
                          before that, and how often it may reach it; it then goes on where it was
  execution.jobs=         at most at the same time (default 8), each with execution.workers processes
  execution.retry_failed= execution.max_tries=     runs that crashed are tried again (true), so often at most (3)

Flags:
  --cfg job|hydra|all     show the config instead of training; --package KEY shows a part of it
  --config-dir DIR        a folder of your own YAML files, such as DIR/experiment/mine.yaml
  --info, --hydra-help    what Hydra finds; Hydra's own help
  --retry-failed, --no-retry-failed       set execution.retry_failed; --retry-failed is the default
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
  --detach                with execution=slurm: leave once the jobs are submitted

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
ranking. One that a study cannot give is skipped, and a line says why. Where there are two cores, two processes draw.
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

STATUS_HELP = """\
normstudy status STUDY: how far a sweep is, from the files of its study alone, on any machine that sees them.

  --watch      print it again every few seconds, until every planned run is finished or has failed; Ctrl-C ends it
  --every S    seconds between two looks with --watch (default 5)

Told are the planned, finished, running, interrupted and failed runs, the outcomes, the rate and the time left, who
holds the study, and of each failed run the last line of its traceback.
"""

CANCEL_HELP = """\
normstudy cancel STUDY: end the Slurm jobs of a sweep. Those that run save their runs first; the same command goes on.
"""

CHECK_HELP = """\
normstudy check STUDY: verify every file of a study; nothing is changed.

Looked at are every table's files (checksums, schema, names), the steps of every run, the rows that a finished run must
have, checkpoints, the records of sweeps, and the seal. Each finding says what to do. Lines that begin with note: tell
what harms nothing: unfinished and failed runs, who uses the study, leftovers. Exit code 0: sound; 1: something is
wrong.
"""

EXPORT_HELP = """\
normstudy export STUDY --to FORMAT: the tables of a study for another tool.

  --to csv             one file a table: runs.csv, steps.csv, modules.csv, residual.csv
  --to duckdb          one database file (OUT) with the four tables
  --to tensorboard     event files, a folder a run: tensorboard --logdir OUT
  --to wandb-offline   offline runs: wandb sync OUT/wandb/offline-run-*
  --out PATH           default STUDY/export/FORMAT; it must not exist yet
  --where COLUMN=VALUE[,COLUMN=VALUE]   only these runs; may be repeated
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
  d  time to start                                    i  the same against loops that record as much

A ratio is taken round by round, between subjects that were measured one after the other; goals are held against its
median over rounds.
"""
