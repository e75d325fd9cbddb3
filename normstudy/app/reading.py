"""Read config files and overrides for Hydra, so that each value is what its author wrote.

YAML and Hydra guess the type of an unquoted value: they read 1.10 as 1.1 and 2024_01_05 as 20240105. Here the type of
the key decides: a text key keeps its text, and the schema converts the text of other keys.
"""

import contextlib
import decimal
import io
import itertools
import os
import re
from collections.abc import Iterator

import yaml
from hydra._internal.core_plugins.file_config_source import FileConfigSource
from hydra._internal.sources_registry import SourcesRegistry
from hydra.core.override_parser import overrides_parser
from hydra.core.override_parser.overrides_visitor import HydraOverrideVisitor
from hydra.core.override_parser.types import Override, ParsedElementType, Quote, QuotedString, RangeSweep
from hydra.grammar.gen.OverrideParser import OverrideParser
from hydra.plugins.config_source import ConfigResult, ConfigSource
from omegaconf import OmegaConf
from omegaconf._utils import get_yaml_loader

from normstudy.config import leaves, places
from normstudy.errors import ConfigError

MAX_BYTES = 100_000  # a larger file is assumed not to be a config file
MAX_NODES, MAX_DEPTH = 5_000, 50  # keys and values of a file, where an alias counts like a copy of its anchor
GUESSED = tuple(f"tag:yaml.org,2002:{kind}" for kind in ("int", "float", "bool"))
CASTS = ("range", "interval", "int", "float", "bool")  # functions of Hydra whose arguments are numbers


@contextlib.contextmanager
def as_written() -> Iterator[None]:
    """Make Hydra read config files with YamlSource and overrides with Visitor in the caller's `with` block."""
    resolve = SourcesRegistry.resolve

    def ours(registry: SourcesRegistry, scheme: str) -> type[ConfigSource]:  # not a new entry: launchers copy entries
        return YamlSource if scheme == "file" else resolve(registry, scheme)

    with replaced(SourcesRegistry, "resolve", ours), replaced(overrides_parser, "HydraOverrideVisitor", Visitor):
        yield


@contextlib.contextmanager
def replaced(owner: object, name: str, value: object) -> Iterator[None]:
    """Replace an attribute of a class, a module or an object until the `with` block ends."""
    before = vars(owner)[name]
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


class Visitor(HydraOverrideVisitor):
    """Parse overrides. Keep values of text keys, and names of config files, as typed. Let range() count exactly."""

    def visitOverride(self, ctx: OverrideParser.OverrideContext) -> Override:
        self.path = [ctx.getChild(0).getText()]
        override = super().visitOverride(ctx)
        sweep = override.value()
        if isinstance(sweep, RangeSweep):
            # Hydra's range() would add its steps as binary floats: 0.1 + 0.1 + 0.1 would become 0.30000000000000004.
            for part in ("start", "stop", "step"):
                if isinstance(number := getattr(sweep, part), float):
                    setattr(sweep, part, decimal.Decimal(repr(number)))
        return override

    def visitDictKeyValuePair(self, ctx: OverrideParser.DictKeyValuePairContext) -> tuple[str, ParsedElementType]:
        with replaced(self, "path", [*self.path, ctx.getChild(0).getText().strip()]):
            return super().visitDictKeyValuePair(ctx)

    def visitFunction(self, ctx: OverrideParser.FunctionContext) -> object:
        with replaced(self, "path", [] if ctx.getChild(0).getText() in CASTS else self.path):
            return super().visitFunction(ctx)

    def visitPrimitive(self, ctx: OverrideParser.PrimitiveContext) -> QuotedString | int | bool | float | str | None:
        value = super().visitPrimitive(ctx)
        guessed = isinstance(value, int | float)
        return QuotedString(ctx.getText().strip(), Quote.double) if guessed and _is_text(".".join(self.path)) else value


def _is_text(key: str) -> bool:
    """Return whether a dotted key holds text, or is a group whose value is the name of a config file."""
    if "." not in key and key not in leaves():
        return key != ""
    return leaves().get(key) is str or key.startswith("execution.sbatch.")


class YamlSource(FileConfigSource):
    """Load a folder's YAML files. Raises a ConfigError or a YAMLError if a file is not a config file."""

    def load_config(self, config_path: str) -> ConfigResult:
        path = os.path.abspath(os.path.join(self.path, self._normalize_file_name(config_path)))
        text = _read(path)
        comments = itertools.takewhile(lambda line: not line.strip() or line.startswith("#"), text.splitlines())
        header = self._get_header_dict("\n".join(line for line in comments if re.match(r"#\s*@package\b", line)))
        stream = io.StringIO(text)
        stream.name = path  # yaml's error messages contain this name
        found = Loader(stream, config_path.startswith("hydra/")).get_single_data()
        if not isinstance(found, dict | None):
            raise ConfigError(f"{path} has no keys: write lines such as seed: 0")
        return ConfigResult(self.provider, f"{self.scheme()}://{self.path}", OmegaConf.create(found or {}), header)


def _read(path: str) -> str:
    try:
        with open(path, "rb", opener=places.opener) as file:
            raw = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error
    if len(raw) > MAX_BYTES:
        raise ConfigError(f"{path} is larger than {MAX_BYTES} bytes, so it is not a config file: choose another file")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 text ({error}): save it as UTF-8") from error


class Loader(get_yaml_loader()):  # type: ignore[misc]
    """Load YAML as OmegaConf does, but keep unquoted numbers and booleans as text, except for Hydra's own keys."""

    def __init__(self, stream: io.StringIO, of_hydra: bool) -> None:
        super().__init__(stream)
        self.path: list[str] = []  # the keys above a node, after an empty string for the document
        self.of_hydra = of_hydra
        self.nodes = 0
        self.sizes: dict[str, int] = {}  # anchor -> number of nodes

    def compose_node(self, parent: yaml.Node | None, index: object) -> yaml.Node | None:
        event, before = self.peek_event(), self.nodes
        is_alias = isinstance(event, yaml.AliasEvent)
        if is_alias and event.anchor in self.anchors and event.anchor not in self.sizes:
            raise yaml.composer.ComposerError(None, None, f"*{event.anchor} contains itself", event.start_mark)
        self.nodes += self.sizes.get(event.anchor, 1) if is_alias else 1
        if self.nodes > MAX_NODES or len(self.path) > MAX_DEPTH:
            problem = f"more than {MAX_NODES} values, or more than {MAX_DEPTH} inside each other"
            raise yaml.composer.ComposerError(None, None, problem, event.start_mark)
        self.path.append(str(index.value) if isinstance(index, yaml.ScalarNode) else "")
        node = super().compose_node(parent, index)
        # The values in hydra.sweeper.params are for normstudy's keys, so they are read as text.
        is_hydras = self.of_hydra or (self.path[1:2] == ["hydra"] and self.path[2:4] != ["sweeper", "params"])
        if isinstance(node, yaml.ScalarNode) and node.tag in GUESSED and not is_hydras:
            node.tag = self.DEFAULT_SCALAR_TAG
        self.path.pop()
        if not is_alias and event.anchor is not None:
            self.sizes[event.anchor] = self.nodes - before
        return node
