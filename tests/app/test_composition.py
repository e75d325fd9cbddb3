"""For any list of overrides, a sweep plans the configurations that Hydra's own sweeper and launcher would compose.

The exception is a group's choice beside a dictionary of the same key: Hydra's sweeper silently drops one of the two
words, while its composition takes both, as `normstudy run` does.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import pytest
from hydra import initialize_config_dir
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import RunMode
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from omegaconf import DictConfig, OmegaConf, open_dict
from properties import PROPERTY

from normstudy.app import jobs, plan, reading
from normstudy.app.compose import conf_dir, to_run_config
from normstudy.config import ConfigError, RunConfig, run_id

FEW = settings(PROPERTY, max_examples=max(1, PROPERTY.max_examples // 12))
MAX_JOBS = 6  # of one list, because Hydra takes a tenth of a second for each

# key -> values with which the others are legal. The keys are independent of each other, except by dictionaries.
VALUES = {
    "model.n_layers": ["2", "3"], "model.d_model": ["32", "64"], "model.final_norm": ["true", "auto"],
    "schedule.peak_lr": ["1e-3", "0.3", "range(0.1,0.4,0.1)"],
    "schedule.warmup_steps": ["0", "5", "${eval.windows}", "${seed}"],
    "schedule.n_steps": ["20", "60"], "eval.windows": ["8", "16"], "probe.every": ["5", "range(1,3)"],
    "optimizer.weight_decay": ["0", "0.1"], "optimizer.max_grad_norm": ["null", "1.0"],
    "data.seq_len": ["16", "${eval.windows}"],
    "seed": ["0", "1", "range(0,2)", "7"], "data_seed": ["null", "3", "${seed}", "${hydra:job.num}"],
}  # fmt: skip
DICTS = {
    "model": ["{n_layers:4}", "{d_model:16,n_layers:1}", "{placement:post}", "{final_norm:true}"],
    "schedule": ["{peak_lr:2e-3}", "{peak_lr:1e-3,warmup_steps:4}", "{n_steps:30}"],
    "optimizer": ["{weight_decay:0.2}", "{max_grad_norm:2}"], "probe": ["{every:7}", "{dense_steps:3,every:9}"],
    "eval": ["{windows:4}", "{every:50}"], "data": ["{seq_len:24}", "{seq_len:32,batch_size:2}"],
}  # fmt: skip
CHOICES = {
    "model": ["tiny", "default", "glob(t*)"], "schedule": ["cosine", "linear"],
    "optimizer": ["adam", "sgd", "glob(adam*)"],
    "data": ["synthetic"], "experiment": ["smoke", "rmsnorm", "boundary"],
}  # fmt: skip


@st.composite
def override(draw: st.DrawFn) -> str:
    options = draw(st.sampled_from([VALUES, VALUES, DICTS, CHOICES]))
    key = draw(st.sampled_from(sorted(options)))
    one = st.sampled_from(options[key])
    if key == "experiment":
        return f"{key}={draw(one)}"
    values = draw(st.lists(one, min_size=1, max_size=2, unique=True))
    if len(values) > 1 and any("(" in value for value in values):
        values = values[:1]
    return f"{key}={','.join(values)}"


def loader_and_master(words: list[str]) -> tuple[ConfigLoaderImpl, DictConfig]:
    hydra = GlobalHydra.instance().hydra
    assert hydra is not None
    master = hydra.compose_config("config", words, RunMode.MULTIRUN, with_log_configuration=False)
    return hydra.config_loader, master


def task_words(master: DictConfig) -> list[str]:
    words = OmegaConf.to_container(master.hydra.overrides.task, resolve=False)
    assert isinstance(words, list)
    return [str(word) for word in words]


def of_hydra(loader: ConfigLoaderImpl, master: DictConfig, expanded: list[list[str]]) -> Iterator[RunConfig]:
    """What Hydra's launcher would give to the task, job by job."""
    try:
        for number, job in enumerate(expanded):
            config = loader.load_sweep_config(master, job)
            with open_dict(config.hydra):
                config.hydra.job.num = number
            HydraConfig.instance().set_config(config)
            task = config.copy()
            with open_dict(task):
                del task["hydra"]
            yield to_run_config(task)
    finally:
        HydraConfig.instance().cfg = None


def split_by_hydra(loader: ConfigLoaderImpl, master: DictConfig) -> list[list[str]]:
    params = [f"{key}={values}" for key, values in (master.hydra.sweeper.params or {}).items()]
    parsed = OverridesParser.create(config_loader=loader).parse_overrides([*params, *task_words(master)])
    (batch,) = BasicSweeper.split_arguments(parsed, None)
    return batch


@FEW
@given(st.lists(override(), min_size=1, max_size=4))
@example(["experiment=smoke", "schedule={peak_lr:1e-3,warmup_steps:5}"])
@example(["model.n_layers=3", "model={n_layers:4}", "seed=0,1"])
@example(["model={n_layers:4}", "model.n_layers=3,5", "model.d_model=32"])
@example(["model={n_layers:2},{d_model:32},{n_layers:3}", "model.n_layers=5,6", "eval={windows:4}"])
@example(["probe={every:5},{dense_steps:7}", "probe.every=2", "probe.dense_steps=3,4"])
@example(["seed=0,1", "data_seed=0,${hydra:job.num}"])
def test_a_sweep_plans_what_hydra_would_compose(words: list[str]) -> None:
    with reading.as_written(), initialize_config_dir(str(conf_dir()), version_base="1.3"):
        loader, master = loader_and_master(words)
        kinds = {(word.partition("=")[0], word.partition("=")[2][:1] == "{") for word in words}
        assume(len({key for key, _ in kinds}) == len(kinds))  # a choice beside a dictionary is tested below
        batch = split_by_hydra(loader, master)
        assume(1 < len(batch) <= MAX_JOBS)
        expanded = jobs.expand(master.hydra.sweeper.params or {}, task_words(master), loader)
        assert expanded == batch
        expected = outcome(lambda: list(of_hydra(loader, master, batch)))
        assert outcome(lambda: plan.Planner(loader, master).plan(expanded)) == expected


def outcome(configs: Callable[[], list[RunConfig]]) -> list[RunConfig] | str:
    """The configurations, or why there are none: the message without the number of the illegal run."""
    try:
        return configs()
    except ConfigError as error:
        return str(error).partition(" (run ")[0]


@pytest.mark.parametrize(
    ("group", "own"),
    [
        (["model=tiny"], ["model={n_layers:4}"]),
        (["model=tiny,default"], ["model={n_layers:4}"]),
        (["model={n_layers:4}"], ["model=default,tiny"]),
        (["optimizer=sgd"], ["optimizer={momentum:0.9}", "optimizer.momentum=0.5"]),
        (["optimizer=adam,sgd"], ["optimizer={weight_decay:0.1},{weight_decay:0.2}"]),
    ],
    ids=str,
)
def test_a_choice_and_a_dictionary_of_one_key_are_both_taken(group: list[str], own: list[str]) -> None:
    """As Hydra composes them for one run."""
    words = [*group, *own, "seed=0,1"]
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        loader, master = loader_and_master(words)
        got = plan.Planner(loader, master).plan(jobs.expand({}, task_words(master), loader))
        values = [
            [f"{one.get_key_element()}={value}" for value in one.sweep_string_iterator()]
            if one.is_sweep_override()
            else [str(one.input_line)]
            for one in OverridesParser.create(config_loader=loader).parse_overrides(words)
        ]
        singles = [list(single) for single in itertools.product(*values)]
        assert got == list(of_hydra(loader, master, singles))


def ids(word: str) -> list[str]:
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        loader, master = loader_and_master([word, "seed=0,1"])
        got = plan.Planner(loader, master).plan(jobs.expand({}, task_words(master), loader))
        return [run_id(c, "5" * 64) for c in got]


@pytest.mark.parametrize(
    ("ranged", "typed"),
    [
        ("range(0.1,0.5,0.1)", "0.1,0.2,0.3,0.4"),
        ("range(0.7,1.0,0.1)", "0.7,0.8,0.9"),  # without its end, as with integers
        ("range(1e-3,4e-3,1e-3)", "1e-3,2e-3,3e-3"),
        ("range(3e-3,0,-1e-3)", "3e-3,2e-3,1e-3"),
        ("range(1,2,0.25)", "1,1.25,1.5,1.75"),
        ("sort(range(0.3,0,-0.1))", "0.1,0.2,0.3"),
        ("range(1e-4,1e-3,3e-4)", "1e-4,4e-4,7e-4"),
    ],
)
def test_rates_of_a_range_are_the_typed_ones(ranged: str, typed: str) -> None:
    assert sorted(ids(f"schedule.peak_lr={ranged}")) == sorted(ids(f"schedule.peak_lr={typed}"))


@FEW
@given(st.integers(-6, 0), st.integers(1, 40), st.integers(1, 40), st.integers(1, 6))
def test_any_range_has_the_decimals_that_one_would_type(exponent: int, start: int, step: int, count: int) -> None:
    parser = OverridesParser.create()
    with reading.as_written():
        (one,) = parser.parse_overrides(
            [f"schedule.peak_lr=range({start}e{exponent},{start + count * step}e{exponent},{step}e{exponent})"]
        )
    assert [float(v) for v in one.sweep_string_iterator()] == [
        float(f"{start + i * step}e{exponent}") for i in range(count)
    ]
