"""The theory's predictions, held against measurements: one small file each, and their registry.

To add one: write a file that defines ENTRY, beginning with what is predicted by whom, what is computed, the expected
band and the rule, and name it here. tests/reproductions/test_registry.py then checks it as it does all others.
"""

from __future__ import annotations

from normstudy.reproductions.entry import Reproduction
from normstudy.reproductions.predictions import (
    admin_output_change,
    deepnet_constants,
    deepnet_update,
    gpt2_init_control,
    lns_variance,
    mixln_balance,
    peri_variance,
    reordered_needs_qknorm,
    rmsnorm_equals_layernorm,
    xiong_lemma2_post,
    xiong_lemma2_pre,
    xiong_profile_post,
    xiong_profile_pre,
    xiong_theorem1_post,
    xiong_theorem1_pre,
)

REPRODUCTIONS: dict[str, Reproduction] = {
    "xiong-theorem1-pre": xiong_theorem1_pre.ENTRY,
    "xiong-theorem1-post": xiong_theorem1_post.ENTRY,
    "gpt2-init-control": gpt2_init_control.ENTRY,
    "xiong-lemma2-post": xiong_lemma2_post.ENTRY,
    "xiong-lemma2-pre": xiong_lemma2_pre.ENTRY,
    "xiong-profile-pre": xiong_profile_pre.ENTRY,
    "xiong-profile-post": xiong_profile_post.ENTRY,
    "rmsnorm-equals-layernorm": rmsnorm_equals_layernorm.ENTRY,
    "admin-output-change": admin_output_change.ENTRY,
    "deepnet-constants": deepnet_constants.ENTRY,
    "deepnet-update": deepnet_update.ENTRY,
    "peri-variance": peri_variance.ENTRY,
    "lns-variance": lns_variance.ENTRY,
    "mixln-balance": mixln_balance.ENTRY,
    "reordered-needs-qknorm": reordered_needs_qknorm.ENTRY,
}
