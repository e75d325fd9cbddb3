"""Find a model's blocks, and assign each parameter to a layer and a module."""

import operator
import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

from torch import nn

from normstudy.errors import ConfigError

Place = tuple[int | None, str]  # (layer, module); the layer is None outside the blocks
# (pattern, module) for the names of parameters inside a block, in nanoGPT, GPT-2, Llama, Gemma 2, OLMo 2, Mixtral,
# NeoX, torch's TransformerEncoder and this project's models. The first pattern that matches gives the module.
INSIDE = (
    *((rf"\b{name}\b", name) for name in ("norm1_out", "norm2_out", "norm1_inner", "norm2_inner", "scale")),
    (r"\b(q|k|qkv?|query|key)_?(norm|layernorm)\b", "qkv_norm"),
    (r"\b(input_layernorm|ln_?1|norm_?1|attn_norm|attention_norm)\b", "norm1"),
    (r"\b(pre_feedforward_layernorm|ln_?2|norm_?2|ffn_norm|mlp_norm)\b", "norm2"),
    (r"\bpost_feedforward_layernorm\b", "norm2_out"),
    (r"\bpost_attention_layernorm\b", "norm2"),  # but "norm1_out" if a post_feedforward_layernorm exists
    (r"\b(mlp|ffn|feed_forward|block_sparse_moe)\..*(c_proj|down_proj|dense_4h_to_h|w2)\b", "mlp_out"),
    (r"\b(mlp|ffn|feed_forward|block_sparse_moe)\.", "mlp_in"),
    (r"\b(linear2|down)\b", "mlp_out"),
    (r"\b(linear1|up)\b", "mlp_in"),
    (r"\b(self_attn|attn|attention)\.(.*\.)?(c_proj|o_proj|out_proj|dense|out)\b", "attn_out"),
    (r"\b(self_attn|attn|attention)\.", "attn_in"),
    (r"^out\b", "attn_out"),
    (r"^qkv\b", "attn_in"),
)
OUTSIDE = (
    (r"\b(wte|embed_tokens|embed_in|tok_embeddings?|word_embeddings|token_embedding|embed)\b", "embed"),
    (r"\b(wpe|pos|pos_emb\w*|position_embeddings?)\b", "pos"),
    (r"\b(ln_f|final_layer_norm|final_layernorm|final_norm|norm|ln_final)\b", "final_norm"),
    (r"\b(lm_head|embed_out|unembed|head|output)\b", "unembed"),
)

WRAPPED = re.compile(r"\b_(orig_mod|checkpoint_wrapped_module)\.")  # in the names of compiled, checkpointed modules


class Layout(NamedTuple):
    """Describe a model's blocks and groups of parameters.

    places: (layer, module) of each group, in the model's order; groups: parameter's name -> index of its group in
    `places`; blocks: the blocks in order, empty if the model has none.
    """

    places: list[Place]
    groups: dict[str, int]
    blocks: list[nn.Module]


def layout(model: nn.Module, blocks: str | None, names: Callable[[str], Place] | None) -> Layout:
    """Group a model's parameters by layer and module.

    blocks: path of the blocks, such as model.layers; None to search for them. names: parameter's name -> place; None to
    use the patterns INSIDE and OUTSIDE. Raises ConfigError if there are no modules below `blocks`.
    """
    prefix, found = _blocks(model, blocks)
    parameters = [name for name, _ in model.named_parameters()]
    place_of = _named(parameters, names) if names else _places(parameters, prefix, len(found))
    order = list(dict.fromkeys(place_of.values()))
    return Layout(order, {name: order.index(place) for name, place in place_of.items()}, found)


def _named(parameters: Sequence[str], names: Callable[[str], Place]) -> dict[str, Place]:
    """Return the place that the user's function gives each parameter. Raise ConfigError if the function fails."""
    places: dict[str, Place] = {}
    for name in parameters:
        try:
            layer, module = names(name)
            layer = None if layer is None else operator.index(layer)
        except Exception as error:
            raise ConfigError(
                f"names({name!r}) must return a layer (a number or None) and a module: {type(error).__name__}: {error}"
            ) from None
        if not isinstance(module, str) or not module or not -1 < (layer or 0) < 2**15:
            raise ConfigError(f"names({name!r}) returned {(layer, module)!r}: return a layer (0, 1, ...) and a module")
        places[name] = layer, module
    return places


def _blocks(model: nn.Module, where: str | None) -> tuple[str, list[nn.Module]]:
    """Return the path of the module that contains the blocks, and the blocks; "" and [] if none are found."""
    if where is not None:
        try:
            found = list(model.get_submodule(where).children())
        except AttributeError:
            found = []
        if not found:
            raise ConfigError(f"blocks={where!r} has no modules below it: write a path such as model.layers")
        return where, found
    candidates = []
    for path, module in model.named_modules():
        children = list(module.children())
        same = len({*map(type, children)}) == 1 and (len(children) > 1 or isinstance(module, nn.ModuleList))
        if same and all(list(child.children()) and len(list(child.parameters())) >= 2 for child in children):
            sizes = [sum(p.numel() for p in module.parameters() if p.requires_grad or k) for k in range(2)]
            candidates.append((path.count("."), *(-size for size in sizes), path, children))
    if not candidates:
        return "", []
    # Prefer the outermost blocks, then those with the most trained parameters, then those with the most parameters.
    *_, path, children = min(candidates, key=lambda one: one[:4])
    return path, children


def _places(parameters: Sequence[str], prefix: str, n_blocks: int) -> dict[str, Place]:
    """Return each parameter's place. If a parameter in the blocks fits no pattern, `_leaf` names all their modules."""
    start = WRAPPED.sub("", f"{prefix}.") if prefix else ""
    within = re.compile(rf"{re.escape(start)}(\d+)\.(.+)") if n_blocks else re.compile(r"(?!)")
    plain = {name: WRAPPED.sub("", name) for name in parameters}
    inner = {name: found for name in parameters if (found := within.fullmatch(plain[name]))}
    sandwich = any("post_feedforward_layernorm" in name for name in inner)
    known = {name: _first(INSIDE, found[2]) for name, found in inner.items()}
    places: dict[str, Place] = {}
    for name in parameters:
        if name in inner:
            module = known[name] if all(known.values()) else _leaf(inner[name][2])
            if module == "norm2" and sandwich and "post_attention_layernorm" in name:
                module = "norm1_out"
            places[name] = int(inner[name][1]), module
        else:
            places[name] = None, (n_blocks and _first(OUTSIDE, plain[name])) or _leaf(plain[name])
    return places


def _first(rules: Sequence[tuple[str, str]], name: str) -> str:
    return next((module for pattern, module in rules if re.search(pattern, name)), "")


def _leaf(name: str) -> str:
    """Return the path of the module that contains a parameter, or the parameter's name if no submodule contains it."""
    return name.rpartition(".")[0] or name
