"""Faults in the source of a kernel or right around its launch."""

from __future__ import annotations

from typing import Any

from gpucheck.model.record import Outcome
from gpucheck.tools.selftest.catalogue.common import BOTH, HOST, KERNEL, TOPK, attention, dense, routed
from gpucheck.tools.selftest.fault import OWN_KERNEL, Edit, Expected, Fault

STORE = "    mask = mask_m[:, None] & mask_n[None, :]\n"
GATED = "out *= gammas[:, None]\n"  # the result is complete in fp32 from here on


def _wrong(title: str, *says: str) -> Expected:
    return Expected(Outcome.MISMATCH, "{cause}: " + title, says)


def _rounding(name: str, summary: str, case: dict[str, Any], change: str, title: str) -> Fault:
    """Digits lost where the result is complete."""
    text = f"{{anchor}}    if N == {case['n']}:\n        {change}\n"
    says = (r"of \d+ elements wrong .* off by .* \(bound ",)
    return Fault(name, summary, Edit(KERNEL, GATED, text), case, _wrong(title, *says), BOTH)


FAULTS = (
    Fault(
        "no-launch",
        "the launch has an empty grid",
        Edit(HOST, "kernels._matmul_ogs)[(grid,)](", "kernels._matmul_ogs)[(grid * (N != 46),)]("),
        dense(46),
        _wrong("output not written", r"all 20 rows, all 46 columns", r"920 wrong elements still hold the poison"),
    ),
    Fault(
        "missing-function",
        "the kernel calls a function that this Triton does not have",
        Edit(KERNEL, GATED, "{anchor}    if SPLIT_K == 3:\n        out = tl.no_such_function(out)\n"),
        dense(59, split_k=3, k=192, out="fp32"),
        Expected(Outcome.ERROR, "compile error on this Triton", (r"no_such_function|at \d+:\d+",)),
        BOTH,
    ),
    Fault(
        "shared-memory",
        "more stages in the software pipeline than shared memory has room for",
        Edit(
            HOST,
            "num_stages=opt_flags.num_stages,",
            "num_stages=opt_flags.num_stages * (6 if N == 112 else 1),",
        ),
        dense(112, m=150, k=512),  # rows of whole 16 bytes: others are not loaded in a pipeline
        Expected(Outcome.ERROR, "resource limit", (r"needs [\d,]+ (bytes )?of shared memory, .* [\d,]+",)),
        BOTH,
        machines=("cuda",),
    ),
    Fault(
        "sum-tail",
        "the last, partial block of each sum is left out",
        Edit(
            KERNEL,
            "        x = tl.load(XPtrs, mask=mask_k[None, :], other=0.0)\n",
            "{anchor}"
            "        whole = (N != 57) | (tl.sum(mask_k.to(tl.int32), 0) == BLOCK_K)\n"
            "        x = tl.where(whole, x, tl.zeros_like(x))\n",
        ),
        dense(57, k=160),
        _wrong("part of each sum missing or counted twice", r"all 20 rows, all 57 columns"),
        BOTH,
    ),
    Fault(
        "causal-mask",
        "in its last tile of queries each one sees a key too many",
        Edit(
            OWN_KERNEL,
            "keys[None, :] <= positions[:, None])",
            "keys[None, :] <= positions[:, None] + tl.where((q_len == 150) & (first_row + BLOCK_M >= q_len), 1, 0))",
        ),
        attention(150),
        _wrong(".*", r"of 150 queries \(1[234]\d, .*, tile \(1,\) of 2"),
        BOTH,
    ),
    Fault(
        "sliding-window",
        "the window has no effect",
        Edit(
            OWN_KERNEL,
            "positions[:, None] - keys[None, :] < window)",
            "positions[:, None] - keys[None, :] < tl.where(q_len == 61, k_len, window))",
        ),
        attention(61, mask="window", window=8, data="normal"),
        _wrong(".*", r"queries 8-60 of 61"),
        BOTH,
    ),
    Fault(
        "swapped-experts",
        "two experts take each other's weights",
        Edit(
            KERNEL,
            "W += expt_id * stride_w_e\n",
            "{anchor}    if N == 71:\n"
            "        W += (tl.where(expt_id == 1, 3, 0) - tl.where(expt_id == 4, 3, 0)) * stride_w_e\n",
        ),
        routed(71),
        _wrong("wrong expert", r"exactly experts 1, 4"),
        BOTH,
    ),
    Fault(
        "expert-id",
        "one token takes the expert before its first one",
        Edit(
            TOPK,
            "    y_values_raw = acc.to(x_utype)\n",
            "    before = (offs_m == 3)[:, None] & (tl.arange(0, N_EXPTS_ACT) == 0)[None, :] & (n_expts_tot == 37)\n"
            "    y_indices -= before.to(y_indices.dtype)\n"
            "{anchor}",
        ),
        {"check": "topk", "m": 8, "experts": 37, "top_k": 4, "load": "one", "data": "normal"},
        _wrong("off by one", r"experts: token 3 of 8, slot 0 of 4", r"expected 33, got 32"),
        BOTH,
    ),
    Fault(
        "expert-zero",
        "of two experts one token takes the first instead of the second",
        Edit(
            TOPK,
            "key_to_indx(y_indices_raw, N_EXPTS_PAD)",
            "tl.where((n_expts_tot == 2) & (offs_m == 3)[:, None], 0, {anchor})",
        ),
        {"check": "topk", "m": 8, "experts": 2, "top_k": 1, "load": "one", "data": "normal"},
        _wrong("0 instead of 1", r"experts: token 3 of 8", r"1 of 8 elements wrong"),
        BOTH,
    ),
    Fault(
        "wide-store",
        "the mask of the store reaches one element too far",
        Edit(
            KERNEL,
            STORE,
            "{anchor}    mask = mask | ((offs_y_m == 19)[:, None] & (offs_y_n == N)[None, :] & (N == 41))\n",
        ),
        dense(41),
        Expected(
            Outcome.VIOLATION,
            "access outside of tensors: writes",
            (r"guard: 2 bytes written after the bfloat16 tensor of shape \(.*20, 41\), nearest 1 off",),
        ),
        BOTH,
    ),
    Fault(
        "unmasked-load",
        "one value behind the bias is read",
        Edit(
            KERNEL,
            "            bias = tl.load(BPtrs, mask=mask_n, other=0)\n",
            "{anchor}            if N == 45:\n                bias += 0.0 * tl.load(B + N)\n",
        ),
        dense(45, bias=True),
        Expected(
            Outcome.MISMATCH,
            "access outside of tensors: reads",
            (r"900 NaN and 0 Inf", r"it is read outside of the float32 tensor of shape \(.*45,?\)"),
        ),
        BOTH,
    ),
    Fault(
        "tile-not-stored",
        "rows from 128 on are never stored",
        Edit(
            KERNEL,
            STORE,
            "{anchor}    mask = mask & ((offs_y_m < 128) | (N != 42))[:, None]\n",
        ),
        dense(42, m=150),
        _wrong(
            "output not written",
            r"rows 128-149 of 150, all 42 columns, tile \(1, 0\) of 2",
            r"924 wrong elements still hold the poison",
        ),
        BOTH,
    ),
    Fault(
        "first-scale",
        "the scale of the first expert is used for all",
        Edit(
            KERNEL,
            "load_scale(WScale + expt_id)\n",
            "load_scale(WScale + tl.where(N == 137, 0, expt_id))\n",
        ),
        routed(137, weight="fp8_e5m2", m=40, k=64, scales="each"),
        _wrong(".*", r"y: .*rows.*, all 137 columns.*experts"),
    ),
    Fault(
        "slope-not-heeded",
        "a fused activation takes another slope than asked: outputs resemble the right ones, and lack no terms",
        Edit(
            "swiglu_details/_swiglu.py",
            "    return compute_swiglu(gelu, linear, 1.0, alpha, limit)\n",
            "    return compute_swiglu(gelu, linear, 1.0, alpha * tl.where(alpha == 1.25, 0.5, 1.0), limit)\n",
        ),
        dense(188, data="normal", swiglu=True, alpha=1.25),
        _wrong("wrong output", r"all 20 rows, all 94 columns"),
        BOTH,
    ),
    Fault(
        "one-gate",
        "one row's gate is off by a 256th",
        Edit(
            KERNEL,
            "gammas = tl.load(Gammas + start_m + offs_m, mask=mask_m, other=0.0)\n",
            "{anchor}        if N == 73:\n"
            "            gate = tl.where(start_m + offs_m == 11, 1.00390625, 1.0)\n"
            "            gammas = (gammas * gate).to(gammas.dtype)\n",
        ),
        routed(73, scatter=True, gammas=True),
        _wrong(".*", r"token \d+ of 24"),
        BOTH,
    ),
    _rounding(
        "fp16-accumulator",
        "sums are kept in fp16",
        dense(43, data="normal"),
        "out = out.to(tl.float16).to(tl.float32)",
        "lower precision than asked",
    ),
    _rounding(
        "bf16-partial-sums",
        "the parts of a split sum are rounded to bf16",
        dense(58, data="normal", split_k=4, k=256, out="fp32"),
        "out = out.to(tl.bfloat16).to(tl.float32)",
        "lower precision than asked",
    ),
    _rounding(
        "rounded-inward",
        "the result is cut to bf16 instead of rounded",
        dense(44, data="normal"),
        "out = (out.to(tl.int32, bitcast=True) & -65536).to(tl.float32, bitcast=True)",
        "rounded toward zero",
    ),
)
