"""Define the positions of the norms in a transformer block, by one small function for each placement.

The names of a function's arguments declare what it receives:

    x                   (B, T, D) the residual stream
    r                   (B, T, D) a second stream, equal to x_0 before the first block. A function that takes r returns
                        (x, r). The logits are then computed from x + final_norm(r)
    attn                attn(x) -> (B, T, D); attn(x, inner=norm) normalizes before the output projection,
                        attn(x, qkv=(norm, norm, norm)) normalizes queries, keys and values of each head
    mlp                 mlp(x) -> (B, T, D); mlp(x, inner=norm) normalizes before the output matrix
    norm1, norm2        norms of width D with separate parameters, for the attention half and the MLP half
    norm1_out, norm2_out            two more norms of width D
    norm1_inner, norm2_inner        norms for `inner`, of width D (attention) and d_ff (MLP)
    q_norm, k_norm, v_norm          norms of width d_head, for `qkv`
    omega1, omega2      (D,) learned, starting at 1
    scale               () learned, starting at 0
    alpha               (2 n_layers)^(1/4), float
    layer, n_layers     the block's index, counted from 0, and the number of blocks, int

The function returns the new x. PLACEMENTS lists all placements. The functions only add, multiply and call, so this
module does not import torch.

Axes: B batch, T sequence, D d_model.
"""
# mypy: disable-error-code="no-untyped-def, no-untyped-call"

from collections.abc import Callable
from typing import NamedTuple


class Placement(NamedTuple):
    """A row of PLACEMENTS: a placement's function and source, and the model settings that it chooses or allows."""

    block: Callable[..., object]
    source: str
    final_norm: bool = True  # whether a norm follows the last block when model.final_norm=auto
    init: str = "xavier"  # what model.init=auto resolves to
    inits: tuple[str, ...] | None = None  # allowed inits, unless model.force_init=true; None: any
    norms: tuple[str, ...] | None = None  # allowed norms; model.norm=auto chooses the first; None: any
    qk_norm: str = "none"  # what model.qk_norm=auto resolves to
    formula_has_qk_norm: bool = False  # the function normalizes q and k, so model.qk_norm must be auto
    star_block: Callable[..., object] | None = None  # the function for block 0 when model.first_block=star
    min_layers: int = 1
    profiled: bool = False  # whether a profiling pass (model/init.py) sets the initial omega1 and omega2
    aliases: tuple[str, ...] = ()  # names in papers; error messages suggest this placement for these names


def pre(x, attn, mlp, norm1, norm2):
    x = x + attn(norm1(x))
    return x + mlp(norm2(x))


def post(x, attn, mlp, norm1, norm2):
    x = norm1(x + attn(x))
    return norm2(x + mlp(x))


def peri(x, attn, mlp, norm1, norm2, norm1_out, norm2_out):
    x = x + norm1_out(attn(norm1(x)))
    return x + norm2_out(mlp(norm2(x)))


def reordered(x, attn, mlp, norm1, norm2):
    x = x + norm1(attn(x))
    return x + norm2(mlp(x))


def sub(x, attn, mlp, norm1, norm2, norm1_inner, norm2_inner):
    x = x + attn(norm1(x), inner=norm1_inner)
    return x + mlp(norm2(x), inner=norm2_inner)


def deepnorm(x, attn, mlp, norm1, norm2, alpha):
    x = norm1(alpha * x + attn(x))
    return norm2(alpha * x + mlp(x))


def admin(x, attn, mlp, norm1, norm2, omega1, omega2):
    x = norm1(omega1 * x + attn(x))
    return norm2(omega2 * x + mlp(x))


def lns(x, attn, mlp, norm1, norm2, layer):
    s = (layer + 1) ** -0.5
    x = x + attn(norm1(x) * s)
    return x + mlp(norm2(x) * s)


def mix(x, attn, mlp, norm1, norm2, layer, n_layers):
    block = post if layer < n_layers // 4 else pre
    return block(x, attn, mlp, norm1, norm2)


def b2t(x, attn, mlp, norm1, norm2):
    y = norm1(x + attn(x))
    return norm2(x + y + mlp(y))


def residual(x, r, attn, mlp, norm1, norm2):
    f = attn(x)
    x, r = norm1(x + f), r + f
    f = mlp(x)
    return norm2(x + f), r + f


def hybrid(x, attn, mlp, norm2, q_norm, k_norm, v_norm):
    z = norm2(x + attn(x, qkv=(q_norm, k_norm, v_norm)))
    return z + mlp(z)


def hybrid_star(x, attn, mlp, norm1, norm2, q_norm, k_norm, v_norm):
    y = x + attn(norm1(x), qkv=(q_norm, k_norm, v_norm))
    return y + mlp(norm2(y))


def rezero(x, attn, mlp, scale):
    x = x + scale * attn(x)
    return x + scale * mlp(x)


def none(x, attn, mlp):
    x = x + attn(x)
    return x + mlp(x)


PLACEMENTS: dict[str, Placement] = {
    "pre": Placement(pre, "GPT-2; Xiong et al., arXiv:2002.04745", aliases=("pre-ln", "prenorm")),
    "post": Placement(post, "Vaswani et al., arXiv:1706.03762", final_norm=False, aliases=("post-ln", "postnorm")),
    "peri": Placement(peri, "Kim et al., arXiv:2502.02732; Gemma 2", aliases=("sandwich", "peri-ln")),
    "reordered": Placement(reordered, "OLMo 2, arXiv:2501.00656", qk_norm="full", aliases=("olmo2", "res-post")),
    "sub": Placement(sub, "Wang et al., Magneto, arXiv:2210.06423", init="sub", aliases=("sub-ln", "magneto")),
    "deepnorm": Placement(
        deepnorm, "Wang et al., DeepNet, arXiv:2203.00555", final_norm=False, init="deepnorm", inits=("deepnorm",),
        aliases=("deepnet",),
    ),
    "admin": Placement(admin, "Liu et al., arXiv:2004.08249", final_norm=False, profiled=True),
    "lns": Placement(
        lns, "Sun et al., The Curse of Depth, arXiv:2502.05795", inits=("xavier", "normal"),
        aliases=("layernorm-scaling",),
    ),
    "mix": Placement(mix, "Li et al., Mix-LN, arXiv:2412.13795", min_layers=4, aliases=("mix-ln",)),
    "b2t": Placement(b2t, "Takase et al., arXiv:2206.00330", final_norm=False, aliases=("bottom-to-top",)),
    "residual": Placement(residual, "Xie et al., ResiDual, arXiv:2304.14802", aliases=("dual",)),
    "hybrid": Placement(
        hybrid, "Zhuo et al., HybridNorm, arXiv:2503.04598", qk_norm="per_head", formula_has_qk_norm=True,
        star_block=hybrid_star, aliases=("hybridnorm",),
    ),
    "rezero": Placement(rezero, "Bachlechner et al., arXiv:2003.04887", final_norm=False, norms=("none",)),
    "none": Placement(
        none, "no norm, T-Fixup's init: Huang et al. 2020", final_norm=False, init="tfixup", norms=("none",),
        aliases=("no-norm",),
    ),
}  # fmt: skip
