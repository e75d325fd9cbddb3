"""A user's own block or norm: found, identified, checked, trained to the bits of a shipped one, shown in the README."""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from processes import WITHOUT_FIGURES
from studies import REQUEST, tiny

from normstudy import placements
from normstudy.cli import main
from normstudy.config import ConfigError, DataConfig, ModelConfig, RunConfig, sources
from normstudy.data import texts
from normstudy.model import norms, transformer
from normstudy.model.contract import check, rules
from normstudy.model.init import init_params
from normstudy.model.own import load
from normstudy.model.transformer import Block
from normstudy.study import schema, tables, whole
from normstudy.sweep import execute, planning
from normstudy.training import batch

ROOT = Path(__file__).parents[2]
PRELUDE = """\
import random, time
import numpy as np, torch
from torch import nn
from torch.nn import functional as F
"""
PRE = "def f(x, attn, mlp, norm1, norm2):\n    x = x + attn(norm1(x))\n    return x + mlp(norm2(x))\n"
TINY = [
    "data=synthetic", "model.n_layers=1", "model.d_model=16", "model.n_heads=2", "data.seq_len=8", "data.batch_size=2",
    "schedule.n_steps=4", "eval.windows=4", "execution.workers=1", "execution.device=cpu",
]  # fmt: skip


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def model(placement: str = "pre", norm: str = "auto", **values: object) -> ModelConfig:
    shape: dict[str, object] = {"n_layers": 2, "d_model": 8, "n_heads": 2}
    return ModelConfig(placement=placement, norm=norm, **{**shape, **values})  # type: ignore[arg-type]


def try_out(placement: str = "pre", norm: str = "auto", *, seq_len: int = 6, **values: object) -> None:
    config = RunConfig(model=model(placement, norm, **values), data=DataConfig(name="synthetic", seq_len=seq_len))
    check.check(config, vocab_size=11)


def line_of(call: Callable[[], object]) -> str:
    """The one line of a ConfigError."""
    with pytest.raises(ConfigError) as caught:
        call()
    line = str(caught.value)
    assert "\n" not in line
    return line


def assert_line_has(line: str, words: list[str]) -> None:
    missing = [word for word in words if word not in line]
    assert not missing, line


# ---- finding --------------------------------------------------------------------------------------------

SPELLINGS = [
    ("blocks.f", ["'blocks.f'", "module:function", "blocks:f"]),
    ("blocks:f:g", ["module:function", "blocks.f:g"]),
    ("blocks::f", ["module:function", "blocks:f"]),
    ("blocks.py:f", ["module:function", "blocks:f"]),
    ("./pkg/blocks.py:f", ["module:function", "pkg.blocks:f"]),
    ("pkg/blocks.py", ["module:function", "pkg:blocks"]),
    ("blocks:", ["module:function", "blocks:my_block"]),
    (":f", ["module:function"]),
    ("blocks:2f", ["module:function", "my_package.my_module:my_block"]),
]


@pytest.mark.parametrize(("spec", "words"), SPELLINGS)
@pytest.mark.parametrize("key", ["placement", "norm"])
def test_another_spelling_is_told_the_right_one(spec: str, words: list[str], key: str, here: Path) -> None:
    config = RunConfig(model=model(**{key: spec}), data=DataConfig(name="synthetic", seq_len=6))
    assert_line_has(line_of(lambda: planning.plan([config])), words)


# Files, the spec, and words of the error.
NOT_FOUND: list[tuple[dict[str, str], str, list[str]]] = [
    ({"blocks.py": PRE}, "block:f", ["there is no module block", "Did you mean blocks?"]),
    ({"pkg/blocks.py": PRE}, "pkg.block:f", ["there is no module pkg.block", "Did you mean pkg.blocks?"]),
    ({"pkg/blocks.py": PRE}, "pkg:f", ["pkg is a folder", "pkg.my_module"]),
    ({}, "nowhere.at.all:f", ["there is no module nowhere.at.all"]),
    ({"blocks.py": PRE.replace("f(", "first(")}, "blocks:frist", ["blocks.py has no frist", "Did you mean first?"]),
    ({"blocks.py": "from json import dump\n" + PRE}, "blocks:gibberish", ["no gibberish, only f."]),
    ({"blocks.py": "f = 3\n"}, "blocks:f", ["f is of type int", "function"]),
    ({"blocks.py": "import nothing_such\n" + PRE}, "blocks:f", ["blocks.py:1", "No module named 'nothing_such'"]),
    ({"blocks.py": PRE + "1 / 0\n"}, "blocks:f", ["blocks.py:4", "ZeroDivisionError: division by zero"]),
    ({"blocks.py": "import sys\nsys.exit(3)\n"}, "blocks:f", ["blocks.py:2", "SystemExit"]),
    ({"blocks.py": "class E(BaseException): pass\nraise E('boom')\n"}, "blocks:f", ["blocks.py:2", "E: boom"]),
    (
        {"blocks.py": "import sys\n\ndef f(x, attn, mlp, norm1, norm2):\n    sys.exit(0)\n"},
        "blocks:f",
        ["blocks.py:4", "SystemExit"],
    ),
    ({"blocks.py": "import helper\n" + PRE, "helper.py": "\n\nx = y\n"}, "blocks:f", ["helper.py:3", "NameError"]),
    ({"blocks.py": PRE + "def g(:\n"}, "blocks:f", ["blocks.py:4", "SyntaxError"]),
    ({"blocks.py": "from helper import x\n", "helper.py": "x = (\n"}, "blocks:f", ["helper.py:1", "SyntaxError"]),
    ({"blocks.py": "f = '\0'\n"}, "blocks:f", ["blocks.py", "null bytes"]),
    ({"blocks.py": "f = '\udcff'\n"}, "blocks:f", ["blocks.py", "SyntaxError"]),
    ({"blocks.py": PRE + "x = " + "-" * 10**5 + "1\n"}, "blocks:f", ["blocks.py", "MemoryError"]),
    ({"blocks.py": PRE + "x = " + "1+" * 10**5 + "1\n"}, "blocks:f", ["blocks.py", "RecursionError"]),
    ({"queue.py": PRE}, "queue:f", ["queue is a module of Python itself", "another name"]),
    ({"torch/__init__.py": PRE}, "torch:f", ["Python imports ", "rename your file"]),
]


def put(files: dict[str, str]) -> None:
    for name, text in files.items():
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text(text, errors="surrogateescape")


@pytest.mark.parametrize(("files", "spec", "words"), NOT_FOUND, ids=[f"{s}-{w[0]}" for _, s, w in NOT_FOUND])
def test_what_cannot_be_found_or_imported_is_one_line(
    files: dict[str, str], spec: str, words: list[str], here: Path
) -> None:
    put(files)
    assert_line_has(line_of(lambda: try_out(spec)), [spec, *words])
    assert not list(here.rglob("__pycache__"))


@pytest.mark.parametrize("file", ["blocks.py", "pkg/__init__.py", "pkg/blocks.py", "pkg/deep/blocks.py"])
@pytest.mark.parametrize("regular", [True, False])
def test_a_module_a_package_and_a_plain_folder_are_found(file: str, regular: bool, here: Path) -> None:
    put({file: "from helper import f\n", "helper.py": PRE})
    if regular:
        for folder in (here / file).relative_to(here).parents:
            if folder != Path("."):
                put({f"{folder}/__init__.py": (here / file).read_text() if file.endswith("__init__.py") else ""})
    spec = file.removesuffix(".py").removesuffix("/__init__").replace("/", ".") + ":f"
    try_out(spec)
    assert not list(here.rglob("__pycache__"))


def test_a_users_file_does_not_hide_a_module_of_python(here: Path) -> None:
    """If the working directory were first on sys.path, these files would break the import of torch."""
    put({"blocks.py": PRE, "colorsys.py": "raise SystemExit\n", "secrets.py": "raise SystemExit\n"})
    load("blocks:f")
    sys.modules.pop("colorsys", None)
    import colorsys

    assert not str(colorsys.__file__).startswith(str(here))


def test_what_is_planned_without_an_own_block_needs_no_torch(here: Path) -> None:
    """Hashing a user's block needs no torch either."""
    put({"blocks.py": "import torch\n" + PRE})
    code = """
import sys
from pathlib import Path
from normstudy.config import sources
from normstudy.sweep import planning, run
from studies import tiny
planning.plan([tiny(Path("."))])
sources.source_sha256("blocks:f")
assert "torch" not in sys.modules and "blocks" not in sys.modules
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "tests")}
    subprocess.run([sys.executable, "-c", code], check=True, cwd=here, env=environment)


# ---- identity -------------------------------------------------------------------------------------------


def test_the_hash_of_one_file_is_its_sha256_and_of_several_that_of_their_list(here: Path) -> None:
    put({"blocks.py": PRE})
    assert sources.source_sha256("blocks:f") == hashlib.sha256(PRE.encode()).hexdigest()
    put({"blocks.py": "import helper\n" + PRE, "helper.py": "import json\n"})
    listed = subprocess.run("sha256sum blocks.py helper.py", shell=True, capture_output=True, check=True).stdout
    assert sources.source_sha256("blocks:f") == hashlib.sha256(listed).hexdigest()


TREE = {
    "pkg/__init__.py": "from . import a\n",
    "pkg/a.py": "from .sub.b import thing\n",
    "pkg/sub/__init__.py": "",
    "pkg/sub/b.py": "from ..c import *\nimport outside.deep as d\nthing = 1\n",
    "pkg/c.py": "def late():\n    import lazy\n",
    "outside/deep.py": "",
    "lazy.py": "",
    "pkg/blocks.py": "import torch, json\nimport pkg.a\n" + PRE,
}


@pytest.mark.parametrize("changed", TREE)
def test_a_change_in_any_file_that_it_imports_is_another_run(changed: str, here: Path) -> None:
    put(TREE)
    before = sources.source_sha256("pkg.blocks:f")
    put({changed: TREE[changed] + "# changed\n"})
    assert sources.source_sha256("pkg.blocks:f") != before
    put({changed: TREE[changed]})
    assert sources.source_sha256("pkg.blocks:f") == before
    load("pkg.blocks:f")


def test_what_it_does_not_import_and_what_is_installed_is_no_part_of_it(here: Path) -> None:
    env = ".venv/lib/python3.11/site-packages"
    put({"blocks.py": "import json, numpy, normstudy.study.tables, random\n" + PRE, "random.py": "", "other.py": ""})
    put({f"{env}/numpy.py": "", "json.py": ""})
    assert sources.files_of("blocks:f") == [str(here / "blocks.py")]


def test_an_installed_block_is_identified_by_its_own_file_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of normstudy and installed files are not the user's, even below the working directory."""
    assert sources.files_of("torch.nn:LayerNorm") == [str(torch.nn.__file__)]
    monkeypatch.chdir(ROOT)
    assert sources.files_of("normstudy.model.transformer:Block") == [
        str(ROOT / "normstudy" / "model" / "transformer.py")
    ]
    assert sources.files_of("tests.studies:tiny") == [str(ROOT / "tests" / "studies.py")]


def test_changed_source_of_the_same_size_and_second_is_imported_anew(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Python's bytecode cache would return the old module."""
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    put({"blocks.py": "def f():\n    return helper.x\nimport helper\n", "helper.py": "x = 1\n"})
    assert load("blocks:f")() == 1
    first = sources.source_sha256("blocks:f")
    put({"helper.py": "x = 2\n"})
    assert load("blocks:f")() == 2
    assert sources.source_sha256("blocks:f") != first
    with pytest.raises(ConfigError, match="changed since the sweep was planned"):
        load("blocks:f", planned=first)


def test_the_readable_part_of_a_run_id_is_the_name_of_the_function(here: Path) -> None:
    put({"blocks.py": PRE})
    assert planning.plan([tiny(here, placement="blocks:f")]).ids[0].startswith("f-L1-lr3e-3-")


# ---- arguments ------------------------------------------------------------------------------------------

ARGUMENTS = [
    (
        "def f(x, attn, mlp, norm_1):\n    return x\n",
        ["unknown argument norm_1; available: x, r", "Did you mean norm1?"],
    ),
    ("def f(x, attention, mlp):\n    return x\n", ["argument attention"]),
    ("def f(attn, mlp):\n    return attn\n", ["argument x, the residual stream, is missing"]),
    ("def f(x, *args):\n    return x\n", ["*args", "takes any arguments"]),
    ("def f(x, **kwargs):\n    return x\n", ["**kwargs", "takes any arguments"]),
    ("def f(x, /, attn, mlp):\n    return x\n", ["argument x", "slash"]),
    ("def f(x, attn, mlp, eps=1e-5):\n    return x\n", ["argument eps"]),
    ("def f(x, attn, norm1):\n    return x + attn(norm1(x))\n", [rules.USED, "no argument mlp", "two sublayers"]),
    ("def f(x, mlp):\n    return x + mlp(x)\n", [rules.USED, "has no argument attn"]),
    ("f = torch.relu\n", ["cannot be read", "your own function"]),
    ("class f:\n    pass\n", ["not a subclass of nn.Module"]),
    ("class f(nn.Module):\n    pass\n", ["no forward"]),
    ("class g(nn.Module):\n    def forward(self, x): return x\nf = g()\n", [rules.OUTSIDE, "the name of the class"]),
    (
        "class f(nn.Module):\n    def __init__(self, dmodel): super().__init__()\n"
        "    def forward(self, x, attn, mlp): return x\n",
        ["its constructor has an unknown argument dmodel; available: layer", "Did you mean d_model?"],
    ),
    ("class f(nn.Module):\n    def forward(self, x, attn, mpl): return x\n", ["argument mpl", "Did you mean mlp?"]),
]


@pytest.mark.parametrize(("code", "words"), ARGUMENTS)
def test_an_argument_that_is_none_is_one_line(code: str, words: list[str], here: Path) -> None:
    put({"blocks.py": PRELUDE + code})
    assert_line_has(line_of(lambda: try_out("blocks:f")), ["blocks:f", *words])


NORM_ARGUMENTS = [
    ("def f(x, gain):\n    return x\n", ["argument gain", "x, gamma, beta"]),
    ("def f(gamma):\n    return gamma\n", ["argument x, the residual stream, is missing"]),
    ("class f(nn.Module):\n    def __init__(self, a, b): super().__init__()\n    def forward(self, x): return x\n",
     ["constructor must take the width as the only argument", "'b'"]),
    ("class f(nn.Module):\n    def __init__(self, width): super().__init__()\n    def forward(self, x, y): return x\n",
     ["forward method must take x as the only argument", "'y'"]),
]  # fmt: skip


@pytest.mark.parametrize(("code", "words"), NORM_ARGUMENTS)
def test_an_argument_of_a_norm_that_is_none_is_one_line(code: str, words: list[str], here: Path) -> None:
    put({"blocks.py": PRELUDE + code})
    assert_line_has(line_of(lambda: try_out(norm="blocks:f")), ["blocks:f", *words])


def test_the_names_are_those_that_placements_documents_and_that_a_block_can_give() -> None:
    head = str(placements.__doc__).partition("The function returns the new x")[0]
    documented = re.findall(r"^    ([a-z_0-9]+(?:, [a-z_0-9]+)*)  ", head, re.M)
    assert [name for line in documented for name in line.split(", ")] != []
    assert {name for line in documented for name in line.split(", ")} == set(sources.BLOCK_ARGUMENTS)
    used = {name for row in placements.PLACEMENTS.values() for name in sources.parameters(row.block)}
    assert used == set(sources.BLOCK_ARGUMENTS)


# ---- rules ----------------------------------------------------------------------------------------------


def block(body: str, arguments: str = "x, attn, mlp, norm1, norm2") -> str:
    """Source of a block that computes y as pre-norm does, and then runs `body`."""
    return f"{PRELUDE}def f({arguments}):\n    y = x + attn(norm1(x))\n    y = y + mlp(norm2(y))\n    {body}\n"


def module(constructor: str, body: str) -> str:
    return f"""{PRELUDE}
class f(nn.Module):
    def __init__(self, d_model, layer):
        super().__init__()
        {constructor}

    def forward(self, x, attn, mlp, norm1, norm2):
        y = x + attn(norm1(x))
        y = y + mlp(norm2(y))
        {body}
"""


BROKEN: list[tuple[str, str, list[str]]] = [
    # the returned value
    ("y", rules.RETURN, ["result is None", "return x"]),
    ("return y, y", rules.RETURN, ["a tuple of 2, but it must be one tensor"]),
    ("return [y]", rules.RETURN, ["a list"]),
    ("return y.mean(1)", rules.SHAPE, ["(2, 8), but x has (2, 6, 8)"]),
    ("return y.mT", rules.SHAPE, ["(2, 8, 6), but x has (2, 6, 8)"]),
    ("return y[:, :, None].expand(2, 6, 3, 8)", rules.SHAPE, ["(2, 6, 3, 8), but x has (2, 6, 8)"]),
    ("return y.double()", rules.DTYPE, ["torch.float64, but x is torch.float32"]),
    ("return y * torch.ones(8, dtype=torch.float64)", rules.DTYPE, ["torch.float64"]),
    ("return y.bfloat16()", rules.DTYPE, ["torch.bfloat16"]),
    # in place
    ("x += 1; return y", rules.IN_PLACE, ["changes x"]),
    ("return x.copy_(y)", rules.IN_PLACE, ["changes x"]),
    ("x[:, 0] = 0; return y", rules.IN_PLACE, ["changes x"]),
    ("x.data.mul_(2); return y", rules.IN_PLACE, ["blocks.py:8"]),
    ("z = torch.zeros(2, 6, 8); z[:] = y; return z", rules.IN_PLACE, ["blocks.py:8", "zeros_like"]),
    ("z = y.exp(); z2 = z * z; z.mul_(2); return z + z2", rules.IN_PLACE, ["backward"]),
    ("norm1.gamma.mul_(0.5) if not torch.is_grad_enabled() else 0; return y", rules.IN_PLACE, ["a parameter"]),
    # numbers
    ("return y / 0", rules.FINITE, ["inf or NaN"]),
    ("return y + (y - y).pow(0.5)", rules.FINITE, ["gradient"]),
    # statistics over sequences, later tokens
    ("return y - y.mean(0)", rules.SEQUENCES, ["changing the second sequence"]),
    ("return F.batch_norm(y.mT, None, None, training=True).mT", rules.SEQUENCES, ["changing the second sequence"]),
    ("return y / y.norm()", rules.SEQUENCES, []),
    ("return y + y.flip(0)", rules.SEQUENCES, []),
    ("return y * len(y)", rules.SEQUENCES, ["removing the first sequence"]),
    ("return y - y.mean(1, keepdim=True)", rules.LATER, ["changing the last token"]),
    ("return y + y.roll(-1, 1)", rules.LATER, ["changing the last token"]),
    ("return y + 1e-3 * y.flip(1)", rules.LATER, []),
    ("return y + y[:, :3].mean(1, keepdim=True)", rules.LATER, []),
    ("return torch.cat([y[:, :2] + y[:, 3:4], y[:, 2:]], 1)", rules.LATER, ["changing later tokens"]),
    ("return F.instance_norm(y.mT).mT", rules.LATER, []),
    # random numbers, state
    ("return y + torch.randn_like(y)", rules.RANDOM, ["blocks.py:8", "draws random numbers"]),
    ("return F.dropout(y)", rules.RANDOM, ["blocks.py:8"]),
    ("return y * np.random.rand()", rules.RANDOM, ["numpy"]),
    ("return y + 0.0 * random.random()", rules.RANDOM, ["Python"]),
    ("return y * np.random.default_rng().random()", rules.STATE, ["a second call"]),
    ("return y * (time.perf_counter_ns() % 1000003)", rules.STATE, ["a second call"]),
    ("f.n = getattr(f, 'n', 0) + 1; return y * f.n", rules.STATE, ["counters"]),
    # runs
    ("return y * torch._C._functorch.get_unwrapped(x).shape[0]", rules.RUNS, ["removing the second run"]),
    # control flow
    ("return y if y.sum() > 0 else -y", rules.CONTROL, ["blocks.py:8", "torch.where"]),
    ("return y / y.abs().max().item()", rules.CONTROL, ["blocks.py:8", ".item()"]),
    ("return y * float(y.mean())", rules.CONTROL, ["blocks.py:8", "float()"]),
    ("y[y < 0] = 0; return y", rules.CONTROL, ["blocks.py:8", "mask"]),
    ("return y + y[y > 0].sum()", rules.CONTROL, ["blocks.py:8", "mask"]),
    ("return y + y.masked_select(y > 0).mean()", rules.CONTROL, ["blocks.py:8", "mask"]),
    ("return y + np.asarray(y.detach()).mean()", rules.CONTROL, ["blocks.py:8", "numpy"]),
    ("return y * y.tolist()[0][0][0]", rules.CONTROL, ["blocks.py:8", ".tolist()"]),
    ("return y if torch.equal(x, x) else x", rules.CONTROL, ["blocks.py:8"]),
    ("return max(y.sum(), x.sum()) * y", rules.CONTROL, ["blocks.py:8"]),
    # unused, detached, outside
    ("return x + attn(norm1(x)) + norm2(x)", rules.USED, ["mlp does not affect the result", "use mlp"]),
    ("return x + mlp(norm2(norm1(x)))", rules.USED, ["attn does not affect the result"]),
    ("return x + attn(x) + mlp(norm2(x))", rules.USED, ["norm1 does not affect the result", "leave it out"]),
    ("return y.detach()", rules.USED, ["no gradient"]),
    ("return x + attn(norm1(x)).detach() + mlp(norm2(x))", rules.USED, ["attn does not affect the result"]),
    ("z = torch.ones_like(x); return attn(norm1(z)) + mlp(norm2(z))", rules.USED, ["x does not affect the result"]),
    ("return outside(y)", rules.OUTSIDE, ["shape (8, 8)", "nn.Module class"]),
    ("return y * gain", rules.OUTSIDE, ["shape (8,)"]),
    # the user's own errors
    ("return y + z", "", ["blocks.py:8", "NameError", "'z'"]),
    ("return y.nothing()", "", ["blocks.py:8", "AttributeError", "nothing"]),
    ("return y + torch.ones(3)", "", ["blocks.py:8", "RuntimeError", "must match", "dimension 2"]),
    ("z = y.mean(-1, keepdim=True); z += y; return z", "", ["blocks.py:8", "RuntimeError", "[2, 6, 1]"]),
    ("return Odd.apply(y)", "", ["torch cannot batch or differentiate this code", "blocks.py:8", "generate_vmap_rule"]),
    ("return attn(y.mean(1))", "", ["blocks.py:8", "ValueError"]),
    ("return y.view(2, 48).view(2, 6, 8)", "", ["blocks.py:8", "[2, 48]", "with a single sequence"]),
    ("return y.cuda()", "", ["blocks.py:8", "CUDA"]),
]  # fmt: skip
GLOBALS = """
class Odd(torch.autograd.Function):
    @staticmethod
    def forward(x):
        return x.clone()

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, grad):
        return grad

outside = nn.Linear(8, 8)
gain = torch.ones(8, requires_grad=True)
"""


@pytest.mark.parametrize(("body", "rule", "words"), BROKEN, ids=[body for body, _, _ in BROKEN])
def test_a_block_that_breaks_a_rule_is_told_which(body: str, rule: str, words: list[str], here: Path) -> None:
    put({"blocks.py": block(body) + (GLOBALS if rule == rules.OUTSIDE or "Odd" in body else "")})
    assert_line_has(
        line_of(lambda: try_out("blocks:f")), ["blocks:f, layer 0", f'the rule "{rule}"' if rule else "", *words]
    )


LATER_LAYER = "return y if layer == 0 else y.flip(1)"


def test_every_layer_is_tried(here: Path) -> None:
    put({"blocks.py": block(LATER_LAYER, "x, attn, mlp, norm1, norm2, layer")})
    assert_line_has(line_of(lambda: try_out("blocks:f")), ["blocks:f, layer 1", rules.LATER])


TWO_STREAMS = [
    ("return y", rules.RETURN, ["a Tensor, but a block with the argument r must return two tensors", "return x, r"]),
    ("return y, None", rules.RETURN, ["a tuple of 2, but a block with the argument r must return two tensors"]),
    ("return y, r, r", rules.RETURN, ["a tuple of 3"]),
    ("return y, r[:, :1]", rules.SHAPE, ["(2, 1, 8)"]),
    ("return y, (r + y).double()", rules.DTYPE, ["float64"]),
    ("r += y; return y, r", rules.IN_PLACE, ["changes r"]),
    ("return y, r + r.flip(1)", rules.LATER, []),
    ("return y, r + r.mean(0)", rules.SEQUENCES, []),
    ("return y, y", rules.USED, ["r does not affect the result"]),
]


@pytest.mark.parametrize(("body", "rule", "words"), TWO_STREAMS)
def test_both_streams_are_held_to_the_rules(body: str, rule: str, words: list[str], here: Path) -> None:
    put({"blocks.py": block(body, "x, r, attn, mlp, norm1, norm2")})
    assert_line_has(line_of(lambda: try_out("blocks:f")), ["blocks:f, layer 0", rule, *words])


UNUSED = [
    ("norm1_out", "x, attn, mlp, norm1, norm2, norm1_out", "norm1_out does not affect the result"),
    ("omega1", "x, attn, mlp, norm1, norm2, omega1", "omega1 does not affect the result"),
    ("scale", "x, attn, mlp, norm1, norm2, scale", "scale does not affect the result"),
]


@pytest.mark.parametrize(("name", "arguments", "words"), UNUSED)
@pytest.mark.parametrize("norm", ["layernorm", "none"])
def test_what_is_asked_for_and_unused_is_named(name: str, arguments: str, words: str, norm: str, here: Path) -> None:
    """This includes a norm without parameters, which has no gradient."""
    put({"blocks.py": block("return y", arguments)})
    assert_line_has(line_of(lambda: try_out("blocks:f", norm)), [rules.USED, words, "leave it out"])


MODULES: list[tuple[str, str, str, list[str]]] = [
    ("self.n = nn.BatchNorm1d(d_model)", "return self.n(y.mT).mT", rules.SEQUENCES, ["a batch norm (BatchNorm1d)"]),
    ("self.n = nn.Dropout(0.1)", "return self.n(y)", rules.RANDOM, ["blocks.py:14", "dropout"]),
    ("self.w = nn.Parameter(torch.ones(8))", "return y", rules.USED, ["own.w does not affect the result"]),
    ("self.w = nn.Parameter(torch.tensor(np.random.rand(8)).float())", "return y * self.w", rules.RANDOM, ["seed"]),
    ("self.w = nn.Parameter(torch.empty(8))", "return y * self.w", rules.FINITE, ["parameter w", "torch.empty"]),
    ("self.w = nn.Parameter(torch.ones(8), requires_grad=False)", "return y * self.w", "", ["register it as a buffer"]),
    ("self.w = nn.LazyLinear(8)", "return self.w(y)", "", ["w.weight has no shape"]),
    ("self.register_buffer('w', torch.randn(8))", "return y * self.w", rules.RANDOM, ["buffer w is random"]),
    ("self.register_buffer('w', torch.ones(8))", "self.w += 1; return y * self.w", rules.IN_PLACE, ["a buffer"]),
    (
        "self.register_buffer('w', torch.zeros(8))", "self.w.lerp_(y.mean((0, 1)), 0.1); return y - self.w",
        rules.IN_PLACE, ["blocks.py:14", "all runs share"],
    ),
    ("self.n = 0", "self.n += 1; return y * self.n", rules.STATE, ["counters"]),
    ("self.d_ff / 2", "return y", "", ["blocks.py:9", "AttributeError", "d_ff"]),
    ("self.w = nn.Parameter(torch.ones(9))", "return y * self.w", "", ["blocks.py:14", "RuntimeError"]),
]  # fmt: skip


@pytest.mark.parametrize(("constructor", "body", "rule", "words"), MODULES, ids=[c for c, _, _, _ in MODULES])
def test_a_module_that_breaks_a_rule_is_told_which(
    constructor: str, body: str, rule: str, words: list[str], here: Path
) -> None:
    put({"blocks.py": module(constructor, body)})
    line = line_of(lambda: try_out("blocks:f"))
    assert_line_has(line, ["blocks:f", f'the rule "{rule}"' if rule else "", *words])


IMPORTED = [
    ("w = torch.randn(8)", "return y * w", rules.RANDOM, ["importing the module draws", "torch.Generator()"]),
    ("w = np.random.rand()", "return y * w", rules.RANDOM, ["importing the module draws"]),
    ("torch.set_default_dtype(torch.float64)", "return y", rules.DTYPE, ["default dtype", "torch.float32"]),
]


@pytest.mark.parametrize(("line", "body", "rule", "words"), IMPORTED)
def test_what_an_import_may_not_do(line: str, body: str, rule: str, words: list[str], here: Path) -> None:
    put({"blocks.py": block(body) + f"{line}\n"})
    assert_line_has(line_of(lambda: try_out("blocks:f")), [rule, *words])
    assert torch.get_default_dtype() == torch.float32


NORMS: list[tuple[str, str, list[str]]] = [
    ("return (gamma * x + beta).sum(-1)", rules.SHAPE, ["(2, 6), but x has (2, 6, 8)"]),
    ("return (gamma * x + beta).half()", rules.DTYPE, ["float16"]),
    ("return None", rules.RETURN, []),
    ("return x.mul_(2) * gamma + beta", rules.IN_PLACE, ["changes x"]),
    ("return gamma * (x - x.mean(0)) + beta", rules.SEQUENCES, []),
    ("return gamma * (x - x.mean((0, 1))) / x.std((0, 1)) + beta", rules.SEQUENCES, []),
    ("return gamma * (x - x.mean(1, keepdim=True)) + beta", rules.LATER, []),
    ("return gamma * F.layer_norm(x, x.shape[1:]) + beta", rules.LATER, []),
    ("return gamma * x * np.random.rand() + beta", rules.RANDOM, []),
    ("return gamma * x + torch.rand(8) + beta", rules.RANDOM, ["blocks.py:7"]),
    ("return x", rules.USED, ["gamma does not affect the result"]),
    ("return gamma * x", rules.USED, ["beta does not affect the result"]),
    ("return gamma + beta + 0 * x.detach()", rules.USED, ["x does not affect the result"]),
    ("return gamma * outside(x) + beta", rules.OUTSIDE, []),
    ("return gamma * x / (x - x) + beta", rules.FINITE, []),
    ("return gamma * (x if x.max() > 0 else -x) + beta", rules.CONTROL, ["blocks.py:7"]),
    ("b, t, d = x.shape; return gamma * x + beta", "", ["blocks.py:7", "too many values"]),
]


@pytest.mark.parametrize(("body", "rule", "words"), NORMS, ids=[body for body, _, _ in NORMS])
def test_a_norm_that_breaks_a_rule_is_told_which(body: str, rule: str, words: list[str], here: Path) -> None:
    put(
        {"blocks.py": f"{PRELUDE}def f(x, gamma, beta):\n    pass\n    {body}\noutside = nn.Linear(8, 8, bias=False)\n"}
    )
    line = line_of(lambda: try_out(norm="blocks:f", qk_norm="per_head" if "b, t, d" in body else "none"))
    assert_line_has(line, ["blocks:f, width ", f'the rule "{rule}"' if rule else "", *words])


def test_a_norm_that_is_a_module_is_tried_too(here: Path) -> None:
    put({"blocks.py": PRELUDE + "class f(nn.BatchNorm1d):\n    pass\n"})
    assert_line_has(line_of(lambda: try_out(norm="blocks:f")), [rules.SEQUENCES, "a batch norm (f)"])


def test_every_rule_is_broken_above() -> None:
    named = {rule for _, rule, _ in (*BROKEN, *NORMS, *TWO_STREAMS)} | {rule for _, _, rule, _ in MODULES}
    assert named >= {rule for name, rule in vars(rules).items() if name.isupper() and isinstance(rule, str)}


# ---- no false alarms ------------------------------------------------------------------------------------


def source_of(placement: str) -> str:
    """Source of the shipped function of a placement and of the functions that it calls."""
    row = placements.PLACEMENTS[placement]
    return "\n\n".join(map(inspect.getsource, (placements.pre, placements.post, row.block)))


@pytest.mark.parametrize("placement", placements.PLACEMENTS)
@pytest.mark.parametrize("variant", ["plain", "modern"])
def test_every_shipped_placement_keeps_the_contract(placement: str, variant: str, here: Path) -> None:
    put({"blocks.py": source_of(placement)})
    modern: dict[str, object] = {
        "positions": "rope", "activation": "swiglu", "qk_norm": "full", "norm": "rmsnorm", "tied": True,
        "embed_init": "std", "biases": False,
    }  # fmt: skip
    row = placements.PLACEMENTS[placement]
    name = row.block.__name__
    layers = 4 if {"layer", "n_layers"} & set(sources.parameters(row.block)) else 1  # else all layers are the same
    more = modern if variant == "modern" and row.norms is None else {}
    try_out(f"blocks:{name}", n_layers=layers, d_model=16, **more)


def test_the_other_first_block_keeps_the_contract(here: Path) -> None:
    star = placements.PLACEMENTS["hybrid"].star_block
    assert star is not None
    put({"blocks.py": inspect.getsource(star)})
    try_out(f"blocks:{star.__name__}", seq_len=1)


NORM_FILE = "\n\n".join(
    [
        PRELUDE + "from normstudy import kernels\nEPS, Tensor = 1e-5, torch.Tensor",
        *map(inspect.getsource, (norms.layer_norm, norms.rms_norm, norms.dynamic_tanh)),
        "class DynamicTanh(nn.Module):\n"
        "    def __init__(self, width):\n"
        "        super().__init__()\n"
        "        self.a = nn.Parameter(torch.tensor(0.5))\n"
        "        self.gamma = nn.Parameter(torch.ones(width))\n"
        "        self.beta = nn.Parameter(torch.zeros(width))\n"
        "    def forward(self, x):\n"
        "        return dynamic_tanh(x, self.a, self.gamma, self.beta)",
        "def dyt(x, gamma, beta):\n    return gamma * torch.tanh(0.5 * x) + beta",
        "class RMSNorm(nn.RMSNorm):\n    pass\n",
    ]
)


@pytest.mark.parametrize(
    ("norm", "placement"),
    [
        *[(norm, "pre") for norm in ("layer_norm", "rms_norm", "dyt", "RMSNorm", "DynamicTanh")],
        ("layer_norm", "sub"), ("DynamicTanh", "hybrid"), ("rms_norm", "admin"), ("dyt", "blocks:post"),
    ],
)  # fmt: skip
def test_every_shipped_norm_keeps_the_contract(norm: str, placement: str, here: Path) -> None:
    put({"blocks.py": NORM_FILE + inspect.getsource(placements.post)})
    qk_norm = {"pre": "per_head", "sub": "full", "hybrid": "auto", "admin": "none"}.get(placement, "full")
    try_out(placement, f"blocks:{norm}", qk_norm=qk_norm, embed_norm=True)


LEGITIMATE = [
    "return y + F.pad(y, (0, 0, 1, 0))[:, :-1]",  # the token before
    "return y + y.cumsum(1) / (1 + torch.arange(6)).view(-1, 1)",  # a causal mean
    "return y + torch.fft.irfft(torch.fft.rfft(y, n=12, dim=1) * torch.fft.rfft(torch.ones(6, 1), n=12, dim=0), n=12, "
    "dim=1)[:, :6]",  # a causal convolution by FFT, which mixes the rounding errors of all tokens
    "z = torch.zeros_like(y); z[:, 1:] = y[:, :-1]; return z + y",  # in place on a new tensor
    "y += 1; return y",
    "return torch.where(y > 0, y, 0.1 * y)",
    "return y * float(np.sqrt(2.0))",
    "return y * torch.randn(8, generator=torch.Generator().manual_seed(0)) if False else y",
    "return y * fixed",
]


@pytest.mark.parametrize("body", LEGITIMATE)
def test_what_is_allowed_is_allowed(body: str, here: Path) -> None:
    put({"blocks.py": block(body) + "fixed = torch.randn(8, generator=torch.Generator().manual_seed(0))\n"})
    try_out("blocks:f")


# ---- training -------------------------------------------------------------------------------------------


def trained(configs: list[RunConfig]) -> list[list[bytes]]:
    """Every number of every run as bytes, one list per run."""
    text = texts.load(configs[0].data)
    out: list[list[bytes]] = [[] for _ in configs]
    for event in batch.train_batch(configs, text):
        if isinstance(event, batch.End):
            out[event.run].append(repr(event.final_val_loss).encode())
            continue
        for place, run in enumerate(event.runs):
            numbers = [event.train_loss[place], event.grad_norm[place], event.param_norm[place]]
            if event.probe is not None:
                numbers += [*event.probe.grad[:, place], *event.probe.residual_grad[:, place]]
            out[run].append(np.array(numbers).tobytes())
    return out


@pytest.mark.parametrize("placement", ["pre", "post", "residual"])
def test_an_own_copy_trains_to_the_same_bits(placement: str, here: Path) -> None:
    put({"blocks.py": source_of(placement)})
    ours, own_copy = (
        dataclasses.replace(tiny(here, seed=3, n_steps=6), model=model(name, final_norm="false"))
        for name in (placement, f"blocks:{placement}")
    )
    assert trained([ours]) == trained([own_copy])


def test_an_own_copy_of_a_norm_trains_to_the_same_bits(here: Path) -> None:
    put({"blocks.py": NORM_FILE})
    pairs = (("layernorm", "blocks:layer_norm"), ("rmsnorm", "blocks:rms_norm"), ("dyt", "blocks:DynamicTanh"))
    for ours, copy in pairs:
        eps = {} if ours == "dyt" else {"norm_eps": 0.1}  # which the copies take as an argument
        a, b = (
            dataclasses.replace(tiny(here, n_steps=6), model=model("peri", name, qk_norm="full", **eps))
            for name in (ours, copy)
        )
        assert trained([a]) == trained([b])


@pytest.mark.parametrize("norm", ["dyt", "DynamicTanh"])
def test_an_eps_that_an_own_norm_does_not_take_is_refused(norm: str, here: Path) -> None:
    put({"blocks.py": NORM_FILE})
    try_out(norm=f"blocks:{norm}")
    line = line_of(lambda: try_out(norm=f"blocks:{norm}", norm_eps=0.1))
    assert_line_has(line, [f"blocks:{norm}", "takes no argument eps", "model.norm_eps 0.1", "leave out"])


GATED = """
import torch
from torch import nn

class Gated(nn.Module):
    def __init__(self, d_model, layer, n_layers, d_ff, hidden=4):
        super().__init__()
        self.down = nn.Linear(d_model, hidden)
        self.up = nn.Linear(hidden, d_model)
        self.scale = nn.Parameter(torch.randn(d_model))
        self.bias = nn.Parameter(torch.full((d_model,), 1.0 + layer))
        self.register_buffer("fixed", torch.linspace(0.5, 1, d_model))
        self.plain = torch.ones(d_model) * d_ff / d_ff

    def forward(self, x, attn, mlp, norm1, norm2):
        gate = self.scale * self.up(torch.relu(self.down(x))) + self.bias
        x = x + gate * attn(norm1(x)) * self.fixed
        return x + mlp(norm2(x)) * self.plain

class Norm(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.gamma = nn.Parameter(torch.rand(width))

    def forward(self, x):
        return self.gamma * x / (x.abs().mean(-1, keepdim=True) + 1e-5)
"""


def gated(here: Path, seeds: int) -> list[RunConfig]:
    put({"blocks.py": GATED})
    shape = {"batch_size": 3, "seq_len": 31, "n_steps": 6}
    return [
        dataclasses.replace(
            tiny(here, seed=seed, **shape),
            model=model("blocks:Gated", "blocks:Norm", d_model=24, n_heads=3, qk_norm="per_head"),
        )
        for seed in range(seeds)
    ]


def test_a_module_trains_alone_to_the_same_bits_as_in_a_batch(here: Path) -> None:
    configs = gated(here, 5)
    check.check(configs[0], 256)
    together = trained(configs)
    assert [trained([config])[0] for config in configs] == together
    assert trained(configs[1:3]) == together[1:3]
    assert len({run[0] for run in together}) == 5


def test_a_modules_parameters_are_its_constructors_draws(here: Path) -> None:
    """This holds for any name: `scale` and `bias` are shipped names too. No other tensor's draw changes."""
    config = gated(here, 1)[0]
    torch.manual_seed(5)
    before = torch.get_rng_state()
    stacked = init_params(transformer.build(config, 11), [config.model] * 2, [0, 1])
    assert torch.equal(torch.get_rng_state(), before)
    found = {name: p for name, p in stacked.items() if ".own." in name}
    assert {name.partition(".own.")[2] for name in found} == {
        "down.weight", "down.bias", "up.weight", "up.bias", "scale", "bias",
    }  # fmt: skip
    for name, p in found.items():
        if name.endswith(".own.bias"):
            assert torch.equal(p, torch.full_like(p, 1.0 + int(name.split(".")[1])))
        else:
            assert not torch.equal(p[0], p[1])
            assert p.abs().max() > 0
    assert not torch.equal(found["blocks.0.own.scale"], found["blocks.1.own.scale"])
    assert not torch.equal(stacked["blocks.0.norm1.gamma"], stacked["blocks.0.norm2.gamma"])
    alone = init_params(transformer.build(config, 11), [config.model], [1])
    assert all(torch.equal(alone[name][0], p[1]) for name, p in stacked.items())
    plain = dataclasses.replace(config.model, placement="pre", norm="layernorm")
    ours = init_params(transformer.build(dataclasses.replace(config, model=plain), 11), [plain], [0])
    shared = [name for name in ours if name in stacked and "norm" not in name]
    assert len(shared) > 20
    assert all(torch.equal(ours[name][0], stacked[name][0]) for name in shared)


def test_its_parameters_are_the_module_own_in_the_tables(here: Path) -> None:
    from normstudy.training import probes

    names = [name for name, _ in transformer.build(gated(here, 1)[0], 11).named_parameters()]
    found = {probes.module_of(name)[1] for name in names}
    assert "own" in found
    assert found <= set(schema.MODULES)


def test_one_mechanism_calls_ours_and_theirs(here: Path) -> None:
    put({"blocks.py": source_of("lns") + GATED})
    for placement in ("lns", "blocks:lns", "blocks:Gated"):
        made = Block(model(placement), 1)
        assert made.own is made._modules.get("own", made.__dict__.get("own"))
        assert set(made.wanted) <= set(sources.BLOCK_ARGUMENTS)


# ---- sweeps ---------------------------------------------------------------------------------------------


def test_a_block_that_changes_while_a_sweep_runs_fails_its_runs(here: Path) -> None:
    put({"blocks.py": PRE})
    planned = planning.plan([tiny(here, placement="blocks:f", seed=seed) for seed in range(2)])
    before = sources.source_sha256("blocks:f")
    put({"blocks.py": PRE + "# changed\n"})
    with pytest.raises(execute.RunsFailed, match=r"2 of 2 runs failed.*changed since the sweep was planned"):
        execute.execute(planned, REQUEST)
    runs = tables.read(planned.study_dir, "runs")
    assert set(runs["status"]) == {"failed"}
    assert set(runs["placement_sha256"]) == {before}
    again = planning.plan([tiny(here, placement="blocks:f", seed=seed) for seed in range(2)])
    assert not set(again.ids) & set(planned.ids)
    (here / "blocks.py").unlink()
    with pytest.raises(execute.RunsFailed, match="there is no module blocks"):
        execute.execute(again, REQUEST)


def test_each_shape_is_tried_once_and_finished_runs_are_not(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[tuple[str, int]] = []
    real = check.check

    def count(config: RunConfig, vocab_size: int, device: str) -> None:
        tried.append((config.model.placement, config.model.n_layers))
        real(config, vocab_size, device)

    monkeypatch.setattr(check, "check", count)
    put({"blocks.py": PRE})
    configs = [
        tiny(here, placement=placement, seed=seed, n_layers=n_layers, peak_lr=peak_lr)
        for placement in ("pre", "blocks:f")
        for seed in range(2)
        for n_layers in (1, 2)
        for peak_lr in (1e-3, 3e-3)
    ]
    planned = planning.plan(configs)
    assert len(planned.runs) == 16
    assert tried == [("blocks:f", 1), ("blocks:f", 2)]
    tried.clear()
    monkeypatch.setattr(tables, "statuses", lambda study_dir, skip=(): dict.fromkeys(planned.ids, "done"))
    monkeypatch.setattr(whole, "find", lambda study_dir, run_ids: {})
    planning.plan(configs)
    assert tried == []


def listing(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


REQUESTS = [
    ("run model.placement=block:f", ["there is no module block", "Did you mean blocks?"]),
    ("run model.placement=blocks.f", ["module:function", "blocks:f"]),
    ("run model.norm=blocks:f", ["argument attn", "x, gamma, beta"]),
    ("sweep model.placement=pre,blocks:late seed=0,1", [rules.LATER, "blocks:late, layer 0"]),
    ("sweep model.placement=blocks:f,blocks:typo seed=0,1 hydra/launcher=joblib", ["blocks.py:8", "NameError"]),
    ("sweep model.placement=pre,blocks:unused seed=0,1 --dry-run", [rules.USED, "norm2"]),
]


@pytest.mark.parametrize(("words", "expected"), REQUESTS, ids=[words for words, _ in REQUESTS])
def test_a_broken_block_is_one_line_and_leaves_nothing(
    words: str, expected: list[str], here: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    text = PRE + "def late(x, attn, mlp):\n    return x + attn(x) + mlp(x).flip(1)\n\n"
    text += "def typo(x, attn, mlp):\n    return x + atn(x) + mlp(x)\n"
    put({"blocks.py": text + "def unused(x, attn, mlp, norm2):\n    return x + attn(x) + mlp(x)\n"})
    command, *rest = words.split()
    code = main.main([command, *TINY, *rest])
    err = capfd.readouterr().err
    assert code == 2, err
    assert err.startswith("error: ")
    assert err.count("\n") == 1, err
    assert_line_has(err, expected)
    assert listing(here) == ["blocks.py"]


# ---- batches and identity -------------------------------------------------------------------------------


MADE_OF_INIT = """
from torch import nn


class Scaled(nn.Module):
    def __init__(self, init):
        super().__init__()
        self.gain = 0.1 if init == "gpt2" else 1.0

    def forward(self, x, attn, mlp, norm1, norm2):
        x = x + self.gain * attn(norm1(x))
        return x + self.gain * mlp(norm2(x))
"""


@pytest.mark.usefixtures("without_figures")
def test_a_class_that_asks_for_the_init_is_made_for_each(here: Path) -> None:
    """Runs of two inits are not batched together, so each is the same run alone and beside the other."""
    put({"blocks.py": MADE_OF_INIT})
    words = [*TINY, "model.placement=blocks:Scaled"]
    assert main.main(["sweep", *words, "study=both", "model.init=xavier,gpt2"]) == 0
    assert main.main(["run", *words, "study=alone", "model.init=gpt2"]) == 0
    both, alone = (tables.read(here / "results" / study, "runs").set_index("run_id") for study in ("both", "alone"))
    (run_id,) = alone.index
    assert both.loc[run_id, "final_val_loss"] == alone.loc[run_id, "final_val_loss"]
    shipped = [RunConfig(model=model("pre", init=init)) for init in ("xavier", "gpt2")]
    assert len({planning.shape_key(c) for c in shipped}) == 1


def test_what_a_block_prints_while_it_is_tried_is_not_shown(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    put({"blocks.py": "import warnings\nprint('hello')\nwarnings.warn('careful')\n" + PRE.replace("x, ", "x, nrom, ")})
    assert main.main(["run", *TINY, "model.placement=blocks:f"]) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert len(err.splitlines()) == 1
    assert "nrom" in err


def test_an_import_that_the_hash_cannot_follow_is_refused(here: Path) -> None:
    code = "import importlib\n\nscale = importlib.import_module('unseen')\n\n\n" + PRE
    put({"blocks.py": code, "unseen.py": "SCALE = 1.0\n"})
    line = line_of(lambda: try_out("blocks:f"))
    assert_line_has(line, ["blocks:f", "imports unseen without an import statement", "write import unseen"])


# ---- as a user does it ----------------------------------------------------------------------------------


def normstudy(words: list[str], cwd: Path, *, figures: bool = True) -> str:
    """The output of the installed command, which must succeed without a traceback."""
    python, *code = WITHOUT_FIGURES
    # -P: as for the installed command, the working directory is not on sys.path.
    command = [Path(sys.executable).with_name("normstudy")] if figures else [python, "-P", *code]
    done = subprocess.run([*command, *words], cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    return done.stdout


def readme_text() -> tuple[str, list[list[str]]]:
    """The Python code of the README's section on own blocks, and its commands without quotes and comments."""
    section = re.search(r"<!-- own-block -->\n(.*)<!-- /own-block -->", (ROOT / "README.md").read_text(), re.S)
    assert section is not None, "the README has no own block"
    (code,) = re.findall(r"```python\n(.*?)```", section[1], re.S)
    shell = "\n".join(re.findall(r"```bash\n(.*?)```", section[1], re.S))
    lines = re.findall(r"^normstudy (.*)$", shell, re.M)
    return code, [line.split("#")[0].replace("'", "").split() for line in lines]


SHORT = [*TINY, "schedule.n_steps=3", "probe.dense_steps=2", "eval.every=2", "seed=0,1"]


@pytest.mark.processes
@pytest.mark.usefixtures("without_figures")
def test_the_text_of_the_readme_does_what_it_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Run the README's file and commands; extra overrides make the sweep short, and `plot` alone draws."""
    code, commands = readme_text()
    assert len(code.strip().splitlines()) <= 12
    assert [words[0] for words in commands] == ["sweep", "plot", "compare"]
    sweeping, plotting, comparing = commands
    (tmp_path / "my_block.py").write_text(code)
    normstudy([*sweeping, *SHORT], tmp_path, figures=False)
    (study,) = (tmp_path / "results").iterdir()
    monkeypatch.chdir(tmp_path)
    assert main.main(plotting) == 0
    assert len(list((study / "figures").iterdir())) >= 3
    before = tables.read(study, "runs")
    assert set(before["status"]) == {"done"}
    own_runs = before[before["placement"].str.startswith("my_block:")]
    assert set(own_runs["placement_sha256"]) == {hashlib.sha256(code.encode()).hexdigest()}
    assert before[before["placement"] == "pre"]["placement_sha256"].isna().all()
    capfd.readouterr()
    assert main.main(comparing) == 0
    compared = capfd.readouterr().out
    assert all(name in compared for name in own_runs["placement"])

    (tmp_path / "my_block.py").write_text(code + "# changed\n")
    assert main.main([*sweeping, *SHORT]) == 0
    assert f"{len(before)} runs, {len(before) - len(own_runs)} already finished" in capfd.readouterr().out
    after = tables.read(study, "runs")
    assert len(after) == len(before) + len(own_runs)
    assert set(before["run_id"]) < set(after["run_id"])
    assert main.main([*comparing, "--format", "csv"]) == 0
    compared = capfd.readouterr().out
    for sha256 in after["placement_sha256"].dropna().unique():  # old and new source are two arms, which are never mixed
        assert f"my_block:parallel@{sha256[:8]}" in compared
    assert listing(tmp_path)[0] == "my_block.py"
    assert not list(tmp_path.rglob("__pycache__"))
