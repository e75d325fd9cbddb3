"""Every bad request is one line on standard error and exit code 2; nothing is written, nothing trained."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import handmade
import pytest
from hydra import compose, initialize_config_dir
from processes import TINY

from normstudy.app.compose import conf_dir, to_run_config
from normstudy.cli import main as cli
from normstudy.data import texts
from normstudy.study import locks, tables
from normstudy.upkeep.compact import compact_study

OWN_CONFIGS = {
    "broken": "# @package _global_\nstudy: [unclosed\n",
    "misspelt": "# @package _global_\nstudy: mine\nmodel:\n  n_layer: 3\n",
    "word": "# @package _global_\nmodel:\n  n_layers: six\n",
    "no_package": "study: mine\n",
    "no_axes": "# @package _global_\nstudy: mine\n",
    "list_axis": "# @package _global_\nhydra:\n  sweeper:\n    params:\n      seed: [0, 1]\n",
    "bad_axis": "# @package _global_\nhydra:\n  sweeper:\n    params:\n      model.n_layer: 2,4\n",
    "study_axis": "# @package _global_\nhydra:\n  sweeper:\n    params:\n      study: a,b\n",
    "no_such_group": "# @package _global_\ndefaults:\n  - override /data: novel\n",
    "cycle": "# @package _global_\nstudy: &a [*a]\n",
    "nested": "# @package _global_\nmodel: &a\n  d_ff: {x: *a}\n",
    "bomb": "# @package _global_\na0: &a0 [1]\n" + "".join(f"a{n}: &a{n} [{f'*a{n - 1},' * 9}]\n" for n in range(1, 9)),
    "merged": "a0: &a0 {x: 1}\n" + "".join(f"a{n}: &a{n} {{<<: [{f'*a{n - 1},' * 9}]}}\n" for n in range(1, 9)),
    "deep": f"# @package _global_\nstudy: {'[' * 500}{']' * 500}\n",
    "moves": "# @package _global_\nhydra: {sweep: {dir: /elsewhere}}\n",
    "learning_rate": "# @package _global_\nschedule: {learning_rate: 1e-3}\n",
    "empty_section": "# @package _global_\nstudy: mine\nmodel:\nschedule:\n  peak_lr: 1e-3\n",
    "no_hydra": "# @package _global_\nhydra:\n",
    "no_time": "# @package _global_\nstudy: !!timestamp x\n",
    "null_option": "# @package _global_\nexecution: {cluster: slurm, sbatch: {qos: null}}\n",
    "no_such_value": "# @package _global_\nstudy: ${nothing}\n",
}

# A user's own files; two have the names of shipped ones.
SHADOWING = {
    "experiment/smoke.yaml": "# @package _global_\nstudy: mine\nhydra: {sweeper: {params: {seed: '0,1'}}}\n",
    "model/default.yaml": "n_layers: 3\n",
    "model/big.yaml": "defaults: [default]\nd_model: 96\n",
}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The files that the requests below name: texts, config files of a user, and studies, one of them in use."""
    root = tmp_path_factory.mktemp("files")
    (root / "experiment").mkdir()
    for name, text in OWN_CONFIGS.items():
        (root / "experiment" / f"{name}.yaml").write_text(text)
    (root / "experiment" / "latin1.yaml").write_bytes(b"study: caf\xe9\n")
    os.mkfifo(root / "experiment" / "pipe.yaml")
    (root / "experiment" / "kernel.yaml").symlink_to("/proc/kmsg")
    for name, text in SHADOWING.items():
        (root / "shadow" / name).parent.mkdir(parents=True, exist_ok=True)
        (root / "shadow" / name).write_text(text)
    (root / "empty.txt").write_bytes(b"")
    (root / "few.txt").write_bytes(bytes(random.Random(0).choices(b"abcdefgh ", k=600)))
    (root / "short.txt").write_bytes(b"to be or not to be, that is the question. " * 20)
    (root / "no_study").mkdir()
    (root / "bare").mkdir()
    tables.prepare(root / "unfinished")
    write_tiny_runs(root, "finished", (0, 1))
    shutil.copytree(root / "finished", root / "held")
    compact_study(root / "finished", seal=True)
    (root / "astray").mkdir()
    (root / "astray" / "tables").symlink_to("../held/tables")
    (root / "logged" / "state").mkdir(parents=True)
    (root / "logged" / "state" / "logs").symlink_to("../../held")
    for name in ("figures", "export"):
        shutil.copytree(root / "finished", root / f"its_{name}")
        (root / f"its_{name}" / name).symlink_to("../held")
    for link, target in {"linked": "held", "dangling": "nowhere", "loop": "loop"}.items():
        (root / link).symlink_to(target)
    with locks.hold_study(root / "held", "normstudy sweep experiment=depth"):
        yield root


def write_tiny_runs(root: Path, study: str, seeds: tuple[int, ...]) -> None:
    """Write finished runs of the words TINY: with real run_ids and invented numbers."""
    with initialize_config_dir(str(conf_dir()), version_base="1.3"), pytest.MonkeyPatch.context() as patch:
        for seed in seeds:
            config = to_run_config(compose("config", [*TINY, f"seed={seed}", f"results_dir={root}"]))
            patch.setattr(handmade, "SHA256", texts.load(config.data).sha256)
            handmade.write_handmade_run(root / study, config)


# The words of a request (F is the folder above) -> words that the one line must hold.
BAD: list[tuple[str, list[str]]] = [
    # unknown keys, with the nearest name
    ("run model.n_layer=3", ["unknown key model.n_layer", "Did you mean model.n_layers?"]),
    ("run peak_lr=1", ["unknown key peak_lr", "Did you mean schedule.peak_lr?"]),
    ("run optimiser=adam", ["unknown key optimiser", "Did you mean optimizer?"]),
    ("run nonsense=1", ["unknown key nonsense", "--cfg job"]),
    ("sweep seed=0,1 model.n_layer=2,4", ["unknown key model.n_layer", "Did you mean model.n_layers?"]),
    # names
    ("run model.placement=prost", ["model.placement 'prost'", "pre, post", "Did you mean post?"]),
    ("run model.norm=layer_norm", ["model.norm 'layer_norm'", "Did you mean layernorm?"]),
    ("run model.init=kaiming", ["model.init 'kaiming'", "xavier"]),
    ("run optimizer=adem", ["optimizer 'adem'", "adam, adamw, sgd", "Did you mean adam"]),
    ("run data=novel", ["data 'novel'", "file, pydoc, stdlib, synthetic"]),
    ("run model=null", ["model=null", "cannot be empty", "default"]),
    ("run execution.device=gpu", ["execution.device 'gpu'", "auto, cpu, cuda"]),
    # a word where a number belongs, and the like
    ("run model.n_layers=six", ["model.n_layers 'six'", "an integer"]),
    ("run model.n_layers=1e3", ["model.n_layers '1e3'", "an integer", "write 1000"]),
    ("run model.n_layers=2.5", ["model.n_layers '2.5'", "an integer"]),
    ("run model.n_layers=", ["model.n_layers ''", "an integer"]),
    ("run schedule.peak_lr=high", ["schedule.peak_lr 'high'", "a number"]),
    ("run model.d_ff=wide", ["model.d_ff 'wide'", "an integer or null"]),
    ("run seed=[0,1]", ["seed '[0,1]'", "an integer"]),
    ("run model={n_layers:x}", ["model.n_layers 'x'", "an integer"]),
    ("sweep seed=0,x", ["seed 'x'", "an integer", "run 2 of 2"]),
    ("run data_seed=${nothing}", ["nothing", "not found"]),
    # values
    ("run model.d_model=65", ["65", "n_heads 4", "divisible"]),
    ("run model.n_layers=0", ["model.n_layers 0", "at least 1"]),
    ("run schedule.peak_lr=-1e-3", ["schedule.peak_lr -0.001", "above 0"]),
    ("run schedule.peak_lr=nan", ["schedule.peak_lr nan", "finite"]),
    ("run schedule.peak_lr=inf", ["schedule.peak_lr inf", "finite"]),
    ("run seed=-1", ["seed -1", "at least 0"]),
    ("run seed=99999999999999999999", ["seed 99999999999999999999", "exceeds 2147483647"]),
    ("run data_seed=-1", ["data_seed -1", "at least 0"]),
    ("run model.norm_eps=0", ["model.norm_eps 0.0", "above 0"]),
    ("run model.norm=dyt model.norm_eps=1e-6", ["model.norm_eps 1e-06 has no effect", "is dyt"]),
    ("run model=gpt2 model.rope_base=500000", ["model.rope_base 500000.0 has no effect", "add model.positions=rope"]),
    ("run optimizer.eps=0", ["optimizer.eps 0", "0/0"]),
    ("run optimizer=sgd optimizer.beta2=0.9", ["optimizer.beta2 0.9 has no effect with optimizer=sgd", "adam"]),
    ("run optimizer.momentum=0.9", ["optimizer.momentum 0.9 has no effect with optimizer=adam", "optimizer=sgd"]),
    ("sweep seed=0,1 optimizer.decay=matrices", ["optimizer.decay matrices has no effect", "set optimizer."]),
    ("run optimizer.decay=most", ["optimizer.decay 'most'", "all, matrices, matrices_but_embeddings"]),
    ("run schedule.warmup_steps=601", ["schedule.warmup_steps 601", "schedule.n_steps 600"]),
    ("run execution.workers=0", ["execution.workers 0", "at least 1"]),
    # more memory than the machine has
    ("run data=synthetic model.n_layers=2147483647", ["needs about", "GB of memory, but there are", "smaller model"]),
    ("sweep TINY model.d_model=1000000000,64 --dry-run", ["needs about", "GB of memory, but there are only"]),
    ("sweep TINY seed=0,1 data.batch_size=2147483647", ["needs about", "data.batch_size"]),
    ("sweep data=synthetic model.d_model=4096 seed=range(0,90) execution.runs_per_batch=90", ["needs about"]),
    ("run model.embed_init=std model.embed_std=1e308", ["model.embed_std 1e+308 is out of range", "below 3.4e+38"]),
    ("sweep seed=0,1 execution=slurm execution.memory_gb=1e300", ["execution.memory_gb 1e+300 is out of range"]),
    # values that Hydra or YAML would answer with a traceback
    ("sweep seed=0,1 execution=slurm execution.sbatch.qos=null", ["execution.sbatch.qos may not be null: write text"]),
    ("sweep seed=0,1 --config-dir F experiment=null_option", ["null_option.yaml", "sbatch.qos may not be null"]),
    ("run --config-dir F experiment=no_hydra", ["a value of hydra", "correct it"]),
    ("run --config-dir F experiment=no_time", ["!!timestamp", "correct it"]),
    ('sweep hydra.sweeper.params={seed:"0,1"}', ["hydra.sweeper.params cannot be read", "correct it"]),
    ("run hydra.verbose=5", ["hydra.verbose 5 is not valid: use true, false or names"]),
    # + ++ ~ on our keys
    ("run +foo=1", ["+foo=1", "key=value"]),
    ("run +seed=1", ["+seed=1", "key=value"]),
    ("run ++seed=1", ["++seed=1", "key=value"]),
    ("run ~seed", ["~seed", "key=value"]),
    ("run ~optimizer", ["~optimizer", "key=value"]),
    ("sweep experiment=smoke ++seed=7", ["++seed=7", "key=value"]),
    ("sweep experiment=smoke +study=a", ["+study=a", "key=value"]),
    # flags
    ("run --fast", ["--fast", "normstudy run --help"]),
    ("sweep seed=0,1 --fast", ["--fast"]),
    ("plot F/finished --fast", ["--fast", "normstudy plot --help"]),
    ("compare F/finished --by placement --fast", ["--fast"]),
    ("compact F/finished --fast", ["--fast"]),
    ("run --dry-run", ["--dry-run", "normstudy sweep"]),
    ("run --multirun", ["--multirun", "normstudy sweep"]),
    ("sweep --run seed=0,1", ["--run", "normstudy run"]),
    ("run --resolve", ["--resolve", "--cfg job"]),
    ("run --cfg task", ["--cfg", "task", "job"]),
    ("run --cfg job --info", ["--cfg", "--info"]),
    ("run --config-path F", ["--config-path", "--config-dir"]),
    ("run --config-name mine", ["mine", "--config-name"]),
    ("run --config-dir F/nowhere", ["--config-dir", "nowhere", "not a folder"]),
    ("run --config-dir ", ["--config-dir ''", "not a folder"]),
    ("run --cfg job -p nope", ["--package nope is not in the config"]),
    ("run --experimental-rerun F/x", ["--experimental-rerun"]),
    ("run model", ["'model'", "key=value"]),
    ("run study=(a", ["study=(a", "quote"]),
    # own config files
    ("run --config-dir F experiment=broken", ["broken YAML", "broken.yaml", "line 3"]),
    ("sweep --config-dir F experiment=broken seed=0,1", ["broken YAML", "broken.yaml"]),
    ("run --config-dir F experiment=misspelt", ["experiment/misspelt.yaml", "model.n_layer", "model.n_layers?"]),
    ("run --config-dir F experiment=word", ["experiment/word.yaml", "model.n_layers 'six'", "an integer"]),
    ("run --config-dir F experiment=no_package", ["experiment/no_package.yaml", "# @package _global_"]),
    ("run --config-dir F experiment=no_such_group", ["data 'novel'", "stdlib"]),
    ("run --config-dir F experiment=no_such_value", ["nothing", "not found"]),
    ("run --config-dir F experiment=latin1", ["UTF-8"]),
    ("run --config-dir F experiment=cycle", ["experiment/cycle.yaml, line 2", "*a contains itself"]),
    ("sweep --config-dir F experiment=nested", ["experiment/nested.yaml, line 3", "*a contains itself"]),
    ("run --config-dir F experiment=bomb", ["experiment/bomb.yaml, line 6", "more than 5000 values"]),
    ("run --config-dir F experiment=merged", ["experiment/merged.yaml, line 5", "more than 5000 values"]),
    ("run --config-dir F experiment=deep", ["experiment/deep.yaml, line 2", "than 50 inside each other"]),
    (f"run seed={'[' * 500}", ["cannot be read"]),
    ("run --config-dir F experiment=kernel", ["experiment/kernel.yaml cannot be read: it is a folder, a pipe"]),
    ("run --config-dir F experiment=pipe", ["experiment 'pipe' is not one of"]),
    ("run --config-dir ~nobody-of-this-name", ["--config-dir '~nobody-of-this-name'", "no home folder is known"]),
    ("sweep --config-dir F experiment=list_axis", ["hydra.sweeper.params.seed", "comma-separated text"]),
    ("sweep --config-dir F experiment=bad_axis", ["unknown key model.n_layer", "Did you mean model.n_layers?"]),
    ("sweep --config-dir F experiment=study_axis", ["study=a,b", "one study"]),
    # sweeps
    ("sweep", ["empty sweep", "normstudy run"]),
    ("sweep model.n_layers=2", ["empty sweep", "normstudy run model.n_layers=2"]),
    ("sweep --config-dir F experiment=no_axes", ["empty sweep", "normstudy run experiment=no_axes"]),
    ("sweep seed=glob(*)", ["empty sweep", "seed=glob(*)"]),
    ("sweep seed=range(3,3)", ["empty sweep", "seed=range(3,3)"]),
    ("sweep schedule.peak_lr=interval(0,1)", ["interval", "range()"]),
    ("sweep seed=range(0,1000000000000)", ["100000", "fewer"]),
    ("sweep seed=shuffle(range(0,1000000000000)) --dry-run", ["100000", "fewer"]),
    ("sweep seed=shuffle(range(0,inf))", ["100000", "fewer"]),
    ("sweep seed=range(0,nan)", ["seed=range(0,nan) is no range of numbers"]),
    ("sweep experiment=smoke,warmup", ["experiment=smoke,warmup", "one value"]),
    ("sweep study=a,b seed=0,1", ["study=a,b", "one value"]),
    ("sweep study=a,b seed=0,1 hydra/sweeper=basic", ["study=a,b", "one value"]),
    ("sweep seed=0,1 model.n_heads=3 hydra/sweeper=basic", ["model.n_heads 3", "model.d_model 64"]),
    ("sweep seed=0,1 model.n_heads=3 hydra/sweeper=basic hydra/launcher=joblib", ["model.n_heads 3"]),
    ("sweep results_dir=a,b", ["results_dir=a,b", "one value"]),
    ("run seed=0,1", ["seed=0,1", "normstudy sweep"]),
    ("run seed=range(0,3)", ["seed=range(0,3)", "normstudy sweep"]),
    ("sweep seed=0,1 --cfg job", ["seed=0,1", "--cfg"]),
    ("sweep experiment=warmup schedule.warmup_steps=0,1000", ["1000", "600", "run 6 of 40", "warmup_steps=1000"]),
    ("sweep seed=range(0,40) model.n_heads=4,3", ["n_heads 3", "run 2 of 80: seed=0 model.n_heads=3"]),
    ("sweep seed=0,1 model=default,deep", ["model 'deep'", "default, gemma2", "run 2 of 4"]),
    ("sweep seed=0,1 hydra.sweep.dir=a,b", ["hydra.sweep.dir=a,b"]),
    ("sweep seed=0,1 hydra/launcher=slrum", ["hydra/launcher=slrum", "normstudy"]),
    ("sweep seed=0,1 hydra/launcher=basic model.d_model=64,65", ["65", "divisible", "run 2 of 4"]),
    ("sweep seed=0,1 hydra/launcher=joblib data.seq_len=64,9999", ["9999", "4096"]),
    ("run experiment=warmpu", ["experiment 'warmpu'", "smoke", "Did you mean warmup?"]),
    ("run experiment=", ["experiment ''", "warmup"]),
    # names that would lead elsewhere, or are no names
    ("run study=/tmp/x", ["study '/tmp/x'", "letters, digits"]),
    ("run study='a\0b'", ["study 'a\\x00b'", "letters, digits"]),
    ("run study='a\nb'", ["study 'a\\nb'", "letters, digits"]),
    ("run study=-x", ["study '-x'", "letters, digits"]),
    ("run study='=cmd|calc'", ["study '=cmd|calc'", "letters, digits"]),
    ("run study=@SUM", ["study '@SUM'", "letters, digits"]),
    ("run study=~", ["study=~", "quote"]),
    (f"run study={'x' * 81}", ["xxx' is not a valid study name", "1 to 80"]),
    (f"run study={'x' * 5000}", ["1 to 80"]),
    ("run study=tables", ["study 'tables' is a reserved name"]),
    ("run study=reproductions", ["study 'reproductions' is a reserved name"]),
    ("run study=robustness.1", ["study 'robustness.1' is a reserved name"]),
    ("run results_dir=F study=linked", ["linked is a symbolic link to held", "another study"]),
    ("sweep seed=0,1 --dry-run results_dir=F study=linked", ["linked is a symbolic link to held"]),
    ("run results_dir=F study=dangling", ["dangling is a symbolic link to nowhere"]),
    ("run results_dir=F study=loop", ["loop is a symbolic link to loop"]),
    ("run results_dir=F study=astray", ["astray/tables is a symbolic link to ../held/tables", "move them there"]),
    ("compact F/astray", ["astray/tables is a symbolic link", "move them there"]),
    ("run results_dir=F study=logged", ["state/logs is a symbolic link to ../../held", "move them there"]),
    ("plot F/its_figures", ["its_figures/figures is a symbolic link to ../held", "move them there"]),
    ("plot F/its_figures --where seed=0", ["its_figures/figures is a symbolic link", "move them there"]),
    ("export F/its_export --to csv", ["its_export/export is a symbolic link to ../held", "move them there"]),
    ("run results_dir=F/held/tables study=runs", ["held/tables/runs lies in", "another results_dir"]),
    ("run results_dir=F/held/state/x", ["held/state/x/scratch lies in", "another results_dir"]),
    ("run results_dir='a\0b'", ["results_dir 'a\\x00b'", "control character"]),
    (f"run TINY results_dir={'x' * 300}", ["File name too long"]),
    ("run results_dir='caf\udce9'", ["results_dir 'caf\\udce9'", "not UTF-8"]),
    ("sweep seed=0,1 results_dir=x:y", ["results_dir 'x:y' with study 'scratch' has 'x:' in its path", "an address"]),
    ("run results_dir=run-12:30", ["results_dir 'run-12:30'", "has 'run-12:' in its path"]),
    ("run results_dir='./s3:/x'", ["has 's3:' in its path"]),
    ("run results_dir='a/b=c'", ["results_dir 'a/b=c'", "has '=' in its path", "a partition"]),
    ("run study='a=b'", ["study 'a=b'", "has '=' in its path", "choose a path without '='"]),
    ("run results_dir='a*'", ["has '*' in its path", "a pattern"]),
    ("run results_dir=null", ["results_dir may not be null", "text"]),
    ("run experiment=../experiment/smoke", ["experiment '../experiment/smoke' is a path", "name of a file"]),
    ("run experiment=/etc/passwd", ["experiment '/etc/passwd' is a path"]),
    ("run experiment='a\0b'", ["experiment 'a\\x00b' is a path"]),
    ("run experiment='=cmd'", ["experiment '=cmd'", "smoke"]),
    ("sweep model=tiny,../experiment/smoke", ["model '../experiment/smoke' is a path"]),
    ("run execution=../data/file", ["execution '../data/file' is a path"]),
    ("run hydra/launcher=../../x", ["hydra/launcher '../../x' is a path"]),
    # a study that another command holds
    ("sweep TINY seed=0,1,2 results_dir=F study=held", ["held is in use by `normstudy sweep experiment=depth`", "pid"]),
    ("run TINY seed=2 results_dir=F study=held", ["held is in use by `normstudy sweep experiment=depth`"]),
    ("compact F/held", ["held is in use by `normstudy sweep experiment=depth`", "wait for it"]),
    # how it is run
    ("sweep seed=0,1 hydra/launcher=", ["hydra/launcher=", "not installed", "basic"]),
    ("sweep seed=0,1 hydra/launcher=basic,joblib", ["hydra/launcher=basic,joblib"]),
    ("sweep seed=0,1 hydra/sweeper=nope", ["hydra/sweeper=nope", "basic, normstudy"]),
    ("sweep seed=0,1 hydra/launcher=joblib hydra.launcher.n_jobs=many", ["hydra.launcher.n_jobs", "'many'"]),
    ("sweep seed=0,1 hydra/launcher=joblib hydra.launcher.n_jobs=0", ["hydra.launcher.n_jobs=0", "1 or more"]),
    ("sweep seed=0,1 hydra/launcher=joblib hydra.launcher.cores=2", ["unknown key hydra.launcher.cores"]),
    ("sweep seed=0,1 hydra.launcher.n_jobs=2", ["unknown key hydra.launcher.n_jobs"]),
    ("sweep seed=0,1 hydra.launcher._target_=os.system", ["Invalid plugin 'os.system'"]),
    # places where Hydra itself would write
    ("run hydra.run.dir=F/x", ["hydra.run.dir", "/x is not allowed", "leave it out"]),
    ("run hydra.run.dir=results/scratch/tables/runs", ["hydra.run.dir results/scratch/tables/runs", "leave it out"]),
    ("run hydra.output_subdir=.hydra", ["hydra.output_subdir .hydra is not allowed", "leave it out"]),
    ("run hydra/job_logging=default", ["hydra/job_logging would write a file", "stdout"]),
    ("sweep seed=0,1 hydra.sweep.dir=x hydra/sweeper=basic", ["hydra.sweep.dir x is not allowed", "leave it out"]),
    ("sweep seed=0,1 hydra.sweep.subdir=../state hydra/launcher=basic", ["hydra.sweep.subdir ../state"]),
    ("sweep seed=0,1 hydra.sweep.subdir=${hydra:job.num} hydra/launcher=basic", ["hydra.sweep.subdir ${"]),
    ("sweep seed=0,1 hydra.output_subdir=../tables hydra/launcher=basic", ["hydra.output_subdir ../tables"]),
    ("run --config-dir F experiment=moves", ["hydra.sweep.dir /elsewhere is not allowed"]),
    # a user's own file that Hydra would never read
    ("sweep --config-dir F/shadow experiment=smoke", ["shadow/experiment/smoke.yaml has the name", "rename it"]),
    ("sweep --config-dir F/shadow seed=0,1 model=big", ["shadow/model/default.yaml has the name of a shipped file"]),
    ("run hydra.searchpath=[file://F/shadow] experiment=smoke", ["shadow/experiment/smoke.yaml has the name"]),
    # words that other programs use, and null
    ("run lr=1e-3", ["unknown key lr", "Did you mean schedule.peak_lr?"]),
    ("run optimizer.lr=1e-3", ["unknown key optimizer.lr", "Did you mean schedule.peak_lr?"]),
    ("run depth=3", ["unknown key depth", "Did you mean model.n_layers?"]),
    ("run --config-dir F experiment=learning_rate", ["learning_rate.yaml: unknown key schedule.learning_rate"]),
    ("run study=null", ["study may not be null: write text, or leave out study"]),
    ("run probe=null", ["probe may not be null", "leave out probe"]),
    ("run model={n_layers:null}", ["model.n_layers may not be null: write an integer"]),
    ("sweep seed=0,null", ["seed may not be null: write an integer", "run 2 of 2"]),
    ("run --config-dir F experiment=empty_section", ["experiment/empty_section.yaml: model may not be null"]),
    ("run model@optimizer=tiny", ["model@optimizer=tiny", "key=value"]),
    ("sweep seed=0,1 hydra.sweep.dir=null", ["hydra.sweep.dir"]),
    ("run execution=nope", ["execution 'nope' is not one of", "local"]),
    ("run execution.nonsense=1", ["unknown key execution.nonsense"]),
    ("run execution.workers=1.5", ["execution.workers '1.5'", "an integer or null"]),
    ("run execution.workers=9999999999", ["execution.workers 9999999999 exceeds 2147483647"]),
    ("run execution.runs_per_batch=0", ["execution.runs_per_batch 0", "at least 1"]),
    ("run execution.checkpoint_seconds=nan", ["execution.checkpoint_seconds nan", "at least 0"]),
    ("run execution.checkpoint_seconds=soon", ["execution.checkpoint_seconds 'soon'", "a number"]),
    ("run execution.max_tries=lots", ["execution.max_tries 'lots'", "an integer"]),
    ("run --retry-failed --no-retry-failed", ["--no-retry-failed: not allowed with argument --retry-failed"]),
    ("sweep seed=0,1 --retry-failed execution.retry_failed=false", ["execution.retry_failed=false", "remove one"]),
    ("run --no-retry-failed execution.retry_failed=true", ["--no-retry-failed and execution.retry_failed=true"]),
    ("run --retry-failed execution.retry_failed=maybe", ["execution.retry_failed=maybe", "remove one"]),
    ("sweep seed=0,1 --retry-failed=yes", ["--retry-failed", "'yes'"]),
    # study names
    ("run study=a/b", ["study 'a/b'", "letters, digits"]),
    ("run study=../x", ["study '../x'", "letters, digits"]),
    ("run study=..", ["study '..'", "letters, digits"]),
    ("run study=bench", ["study 'bench'", "reserved name", "choose another"]),
    ("run study=NUL.txt", ["study 'NUL.txt'", "reserved name"]),
    ("run execution.checkpoint_seconds=-1", ["execution.checkpoint_seconds -1", "at least 0"]),
    ("run execution.max_tries=0", ["execution.max_tries 0", "at least 1"]),
    ("run execution.retry_failed=maybe", ["execution.retry_failed 'maybe'", "true or false"]),
    ("status", ["STUDY"]),
    ("status F/no_study", ["is not a study", "results/warmup"]),
    ("status nowhere", ["nowhere: no such folder"]),
    ("status F/finished --every 5", ["--every 5 needs --watch"]),
    ("status F/finished --watch --every 0", ["--every 0", "0.1 to 86400"]),
    ("status F/short.txt", ["short.txt: no such folder"]),
    ("status F/dangling", ["dangling: no such folder"]),
    ("status F/finished/tables", ["tables is not a study"]),
    ("status a\nb", ["a\\nb: no such folder"]),
    (f"status {'x' * 300}", ["File name too long"]),
    ("status F/finished --watch --every nan", ["--every nan", "0.1 to 86400"]),
    ("status F/finished --format json", ["--format json", "status --help"]),
    ("check F/short.txt", ["short.txt: no such folder"]),
    ("check F/bare", ["bare is not a study"]),
    # critical values
    ("critical --of placement", ["--of 'placement'", "peak_lr, warmup_steps, n_layers"]),
    ("critical --of peak_rl", ["--of 'peak_rl'", "Did you mean peak_lr?"]),
    ("critical search.low=1 search.high=1e-3", ["search.low 1 is not below search.high 0.001"]),
    ("critical search.low=2", ["search.low 2 is not below search.high 1"]),
    ("critical search.low=0", ["search.low 0", "peak_lr", "at least 1e-09"]),
    ("critical search.low=few", ["search.low 'few'", "a number"]),
    ("critical --of warmup_steps search.low=0.5", ["search.low 0.5", "warmup_steps", "an integer"]),
    ("critical --of warmup_steps search.high=1000", ["warmup_steps 1000", "n_steps 300"]),
    ("critical --of n_layers model.placement=pre,mix", ["mix", "at least 4, not 1"]),
    ("critical search.width=0", ["search.width 0", "above 0"]),
    ("critical search.max_runs=9", ["search.max_runs 9 is below 10"]),
    ("critical search.max_runs=1001", ["search.max_runs 1001 exceeds 1000"]),
    ("critical search.width=0.1,0.2", ["search.width=0.1,0.2", "one value"]),
    ("critical schedule.peak_lr=1e-3,1e-2", ["schedule.peak_lr", "leave out schedule.peak_lr"]),
    ("critical experiment=peak_lr", ["schedule.peak_lr", "leave out schedule.peak_lr"]),
    *((f"critical {key}=2,4", [f"{key} has several values (2, 4)", "give one"]) for key in (
        "seed", "data_seed", "eval.every", "eval.windows", "probe.every", "probe.dense_steps",
    )),
    ("critical eval={windows:2},{windows:4}", ["eval.windows has several values (2, 4)"]),
    ("critical eval.windows=${seed} seed=4", ["eval.windows has several values (4, 2015)"]),
    ("critical data_seed=${model.n_layers} --of n_layers", ["data_seed has several values (1, 32)"]),
    ("critical search.high=1e308", ["search.high 1e+308", "at most 1e+09"]),
    ("critical search.low=1e-3 search.high=1.001e-3", ["0.001 and", "0.001001", "too close"]),
    ("run search={low:0.1}", ["search={low:0.1}", "normstudy critical"]),
    ("critical seed=2147483000 execution.workers=1", ["seed 2147485011", "2147483647"]),
    ("critical schedule={peak_lr:0.1}", ["schedule.peak_lr", "leave out schedule.peak_lr"]),
    ("critical --of n_layers model={d_ff:64,n_layers:2}", ["model.n_layers", "leave out model.n_layers"]),
    ("critical --of=", ["--of ''", "peak_lr, warmup_steps, n_layers"]),
    ("critical --of peak_lr,warmup_steps", ["--of 'peak_lr,warmup_steps' is not a key"]),
    ("critical model.placement=pre,pre", ["two cells of the search are the same"]),
    ("critical --detach", ["--detach", "leave"]),
    ("critical hydra/sweeper=basic", ["hydra/sweeper"]),
    ("critical model.placement=pre,post results_dir=F study=finished", ["sealed"]),
    ("sweep seed=0,1 search.width=1", ["search.width=1", "normstudy critical"]),
    ("sweep seed=0,1 --of peak_lr", ["--of peak_lr", "normstudy critical"]),
    # a cluster's jobs
    ("run --detach", ["--detach", "normstudy sweep"]),
    ("sweep TINY seed=0,1 --detach", ["--detach", "execution=slurm"]),
    ("sweep TINY seed=0,1 --detach hydra/launcher=basic", ["--detach", "execution=slurm", "hydra/launcher"]),
    ("run execution=slurm", ["execution=slurm", "normstudy sweep"]),
    ("sweep seed=0,1 execution=slrum", ["execution 'slrum'", "local, slurm", "Did you mean slurm?"]),
    ("run execution.partition=debug", ["execution.partition debug", "execution=slurm"]),
    ("sweep seed=0,1 execution=slurm execution.gpus=2", ["execution.gpus 2", "0 or 1"]),
    ("sweep seed=0,1 execution=slurm execution.minutes=1", ["signal_seconds 120", "execution.minutes 1"]),
    ("sweep seed=0,1 execution=slurm execution.sbatch={time:5}", ["sbatch time", "execution.minutes"]),
    ("sweep seed=0,1 execution=slurm execution.sbatch={wrap:x}", ["sbatch wrap", "leave it out"]),
    ("sweep data=synthetic seed=0,1 execution=slurm model.n_layers=2147483647", ["GB of memory", "GB in a job"]),
    ("sweep TINY seed=0,1 execution=slurm execution.memory_gb=0.01", ["GB of memory", "0.0107 GB in a job"]),
    ("sweep seed=0,1 execution.cluster=local,slurm", ["local and slurm", "choose one"]),
    ("cancel", ["STUDY"]),
    ("cancel F/bare", ["bare has no jobs"]),
    ("cancel nowhere", ["nowhere: no such folder"]),
    ("check", ["STUDY"]),
    ("check F/no_study", ["is not a study"]),
    ("check F/finished extra", ["extra", "check --help"]),
    ("export F/finished", ["--to", "export --help"]),
    ("export F/finished --to excel", ["--to 'excel'", "csv, tensorboard, wandb-offline, duckdb"]),
    ("export F/finished --to csv --out F", ["exists", "another --out"]),
    ("export F/finished --to csv --out F/finished/tables/x", ["another --out"]),
    ("export F/finished --to csv --where seed=99 --out F/e", ["seed"]),
    ("export F/finished --to csv --where seed= --out F/e", ["'seed='", "COLUMN=VALUE"]),
    ("export F/finished --to csv,duckdb", ["--to 'csv,duckdb'", "csv, tensorboard"]),
    ("export F/finished --to csv --out F/short.txt", ["short.txt exists", "another --out"]),
    ("export F/finished --to csv --out F/short.txt/x", ["short.txt/x cannot be written", "another --out"]),
    ("export F/finished --to csv --out F/dangling", ["dangling exists", "another --out"]),
    ("export F/finished --to csv --out F/finished/sweeps/x", ["own files", "another --out"]),
    ("export F/finished --to csv --out a\0b", ["--out 'a\\x00b' is not a path"]),
    (f"export F/finished --to csv --out {'x' * 300}", ["File name too long", "another --out"]),
    ("plot F/finished --out F/held/tables/runs", ["held/tables/runs lies in", "another --out"]),
    ("plot F/finished --out ", ["--out ''", "not a path"]),
    ("compact F/finished --seal=1", ["--seal", "'1'"]),
    ("compact F/short.txt", ["short.txt: no such folder"]),
    ("export F/no_study --to csv", ["is not a study"]),
    ("run study=", ["study ''", "letters, digits"]),
    ("run study=.hidden", ["study '.hidden'", "letters, digits"]),
    ("run study=a\\ b", ["study 'a b'", "letters, digits"]),
    ("run results_dir=", ["results_dir is empty"]),
    # texts
    ("run data=file", ["data=file", "data.path=FILE"]),
    ("run data.path=F/short.txt", ["data.path", "data=file", "data=stdlib"]),
    ("run data=file data.path=F/nowhere.txt", ["nowhere.txt", "No such file"]),
    ("run data=file data.path=F/bare", ["bare", "has no files"]),
    ("run data=file data.path=F/*.nothing", ["*.nothing", "matches no file"]),
    ("run data=file data.path=/proc/self/mem", ["/proc/self/mem", "cannot be read"]),
    ("run data=file data.path=/proc/kmsg", ["/proc/kmsg", "a file of the kernel"]),
    ("run data=file data.path=/dev/zero", ["/dev/zero", "a device"]),
    ("run data=file data.path=F/experiment/pipe.yaml", ["pipe.yaml", "a pipe"]),
    ("run data=file data.path='caf\udce9'", ["caf\\udce9", "not UTF-8"]),
    ("run data=file data.path=F/few.txt", ["less than 0.2 apart", "of at least 40960 bytes (this one has only 600)"]),
    ("run data=file data.path=F/empty.txt", ["empty.txt", "0"]),
    ("run data=synthetic data.seq_len=4096", ["data.seq_len 4096 is not below 4096", "longest block"]),
    ("sweep data=synthetic data.seq_len=64,5000", ["data.seq_len 5000 is not below 4096", "longest block"]),
    # commands
    ("swep", ["'swep'", "run, sweep, critical, plot, compare, report, sensitivity, status", "Did you mean sweep?"]),
    ("--fast", ["'--fast'"]),
    ("plot", ["STUDY", "normstudy plot --help"]),
    ("compare F/finished", ["--by"]),
    ("plot F/finished F/finished", ["finished", "normstudy plot --help"]),
    ("plot F/finished --format gif", ["gif", "png"]),
    ("plot F/finished --only headline,hologram", ["hologram", "headline"]),
    ("plot F/finished --only headline,,heatmap", ["headline,,heatmap", "empty"]),
    # folders that are no study, or hold no finished run
    ("plot F/nowhere", ["nowhere", "no such folder"]),
    ("plot F/finishd", ["finishd", "no such folder", "Did you mean", "/finished?"]),
    ("plot F/no_study", ["no_study"]),
    ("compare F/no_study --by placement", ["no_study"]),
    ("compact F/no_study", ["no_study"]),
    ("plot F/unfinished", ["unfinished", "no finished run"]),
    ("compare F/unfinished --by placement", ["unfinished", "no finished run"]),
    ("sensitivity F/unfinished", ["unfinished", "no finished run"]),
    ("sensitivity F/finished", ["finished", "no runs", "differ in peak_lr alone"]),
    ("sensitivity F/finished --where peaklr=1", ["peaklr", "Did you mean peak_lr?"]),
    ("sensitivity F/finished --by placement", ["--by", "normstudy sensitivity --help"]),
    ("compact F/unfinished", ["unfinished", "no finished run"]),
    # columns
    ("compare F/finished --by warmup", ["warmup", "Did you mean warmup_steps?"]),
    ("compare F/finished --by placement", ["placement", "pre"]),
    ("compare F/finished --by placement --where norms=layernorm", ["norms", "Did you mean norm?"]),
    ("plot F/finished --where placemnt=pre", ["placemnt", "Did you mean placement?"]),
    ("plot F/finished --where placement=post", ["placement", "post", "pre"]),
    ("plot F/finished --where n_layers=two", ["n_layers", "'two'"]),
    ("plot F/finished --where placement", ["'placement'", "COLUMN=VALUE"]),
    ("plot F/finished --where placement=pre,placement=post", ["placement twice"]),
    # a sealed study, and a folder that cannot be written
    ("sweep TINY seed=0,1,2 results_dir=F study=finished", ["sealed", "seed 2", "study=finished-seed2"]),
    ("run TINY model.n_layers=3 results_dir=F study=finished", ["sealed", "n_layers 3", "study=finished-n_layers3"]),
    ("run TINY results_dir=F/short.txt", ["short.txt", "results_dir"]),
    ("sweep TINY seed=0,1 results_dir=/proc", ["/proc", "results_dir"]),
]  # fmt: skip


def split(request: str, files: Path) -> list[str]:
    words = [word.replace("\1", " ") for word in request.replace("\\ ", "\1").split(" ")]
    out: list[str] = []
    for word in words:
        at = word.replace("=F", f"={files}").replace("//F", f"//{files}")
        out += TINY if word == "TINY" else [f"{files}{word[1:]}" if word[:1] == "F" else at]
    return out


def contents(folder: Path) -> list[Path]:
    """Every path below."""
    return sorted(folder.rglob("*"))


def assert_one_line(code: int, err: str, expected: list[str]) -> None:
    assert code == 2, err
    assert err.startswith("error: ")
    assert err.count("\n") == 1, err
    assert err.endswith("\n")
    missing = [word for word in expected if word not in err]
    assert not missing, err


@pytest.mark.parametrize(("request_", "expected"), BAD, ids=[request[:100] for request, _ in BAD])
def test_a_bad_request_is_one_line_and_leaves_nothing(
    request_: str,
    expected: list[str],
    files: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    before = contents(files)
    capfd.readouterr()
    code = cli.main(split(request_, files))
    assert_one_line(code, capfd.readouterr().err, expected)
    assert os.listdir(tmp_path) == []
    assert contents(files) == before
    assert "HYDRA_FULL_ERROR" not in os.environ


# root reads and writes everything, unless it gives its powers up first (setpriv is in Debian's util-linux).
WITHOUT_POWERS = ["setpriv", "--inh-caps=-all", "--bounding-set=-all"] if os.geteuid() == 0 else []


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["data=file", "data.path=secret.txt"], ["secret.txt", "Permission denied"]),
        ([*TINY, "results_dir=locked"], ["locked", "Permission denied", "results_dir"]),
    ],
)
def test_files_without_permission(words: list[str], expected: list[str], tmp_path: Path) -> None:
    text = tmp_path / "secret.txt"
    text.write_bytes(b"x" * 100_000)
    text.chmod(0)
    (tmp_path / "locked").mkdir(mode=0o500)
    done = subprocess.run(
        [*WITHOUT_POWERS, sys.executable, "-m", "normstudy", "run", *words],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert_one_line(done.returncode, done.stderr, expected)
    assert sorted(os.listdir(tmp_path)) == ["locked", "secret.txt"]
    assert os.listdir(tmp_path / "locked") == []


@pytest.mark.parametrize(
    "request_", ["run model.n_layers=six", "sweep seed=0,1 model.n_heads=4,3", "swep", "plot nowhere"]
)
def test_the_installed_command_exits_the_same_way(request_: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [Path(sys.executable).with_name("normstudy"), *request_.split()],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert_one_line(done.returncode, done.stderr, [])
    assert done.stdout == ""
    assert os.listdir(tmp_path) == []


def test_a_bad_request_on_a_full_disk_exits_the_same_way(tmp_path: Path) -> None:
    with open("/dev/full", "w") as full:
        assert subprocess.run([sys.executable, "-m", "normstudy", "swep"], stderr=full, check=False).returncode == 2


def test_what_a_run_and_a_dry_run_print(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Hydra's values in names, and axes with control characters that one run leaves out."""
    monkeypatch.chdir(tmp_path)
    study = "study=${hydra:runtime.choices.model}"
    assert cli.main(["sweep", *TINY, study, "seed=0,1", "--dry-run"]) == 0
    assert "tiny: 2 runs" in capfd.readouterr().out
    assert os.listdir(tmp_path) == []
    file = tmp_path / "experiment" / "mine.yaml"
    file.parent.mkdir()
    file.write_text('# @package _global_\nhydra: {sweeper: {params: {model.norm: "a\\e[31m"}}}\n')
    assert cli.main(["run", "--config-dir", ".", "experiment=mine", *TINY]) == 0
    out = capfd.readouterr().out
    assert "model.norm=a\\x1b[31m" in out
    assert "\x1b" not in out


def test_a_traceback_where_the_user_asks_for_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from hydra.errors import HydraException

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    with pytest.raises(HydraException):
        cli.main(["run", "model.n_layer=3"])
    assert os.environ["HYDRA_FULL_ERROR"] == "1"
