"""Where the norms of a transformer block sit: one small function per placement, one table of their names.

A placement is a plain function. Its argument names declare what it gets:

    x             (B, T, D) the residual stream
    attn, mlp     the two sublayers, each (B, T, D) -> (B, T, D)
    norm1, norm2  two norms of width D, with parameters of their own
    layer         0-based index of the block, int
    n_layers      number of blocks, int

It returns the new x. Nothing here needs torch: the functions only add and call, so that a planner can read
the table in no time.

B batch, T sequence, D d_model.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Placement:
    """What a formula cannot say about a placement: one row of the table."""

    block: Callable[..., object]
    final_norm: bool  # whether a norm follows the last block (model.final_norm=auto)
    init: str  # the init that belongs to it (model.init=auto)
    source: str


def pre(x, attn, mlp, norm1, norm2):  # type: ignore[no-untyped-def]
    x = x + attn(norm1(x))
    return x + mlp(norm2(x))


def post(x, attn, mlp, norm1, norm2):  # type: ignore[no-untyped-def]
    x = norm1(x + attn(x))
    return norm2(x + mlp(x))


PLACEMENTS: dict[str, Placement] = {
    "pre": Placement(pre, final_norm=True, init="xavier", source="GPT-2; Xiong et al., arXiv:2002.04745"),
    "post": Placement(post, final_norm=False, init="xavier", source="Vaswani et al., arXiv:1706.03762"),
}
