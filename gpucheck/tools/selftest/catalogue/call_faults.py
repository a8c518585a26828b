"""Faults in what is called and with what: wrong operands, other results, deaths and hangs of the calling process."""

from __future__ import annotations

from typing import Any

from gpucheck.model.errors import ExitCode
from gpucheck.model.record import Outcome
from gpucheck.tools.selftest.catalogue.common import BOTH, decoding, dense, routed
from gpucheck.tools.selftest.fault import Expected, Fault, Hook, Session, Target

MOE = {
    "check": "moe",
    "weight": "bf16",
    "m": 7,
    "intermediate": 32,
    "experts": 4,
    "top_k": 2,
    "data": "normal",
}
FOLLOWS = "environment of a rank: .*"
"""What is said of calls that differ on one rank alone: its own copy of the library makes them differ."""


def _flipped(bit: int, columns: int) -> Fault:
    """One bit of one output element."""
    says = (r"y: row 3 of 20, column 5 of \d+", r"1 of \d+ elements wrong", rf"each differs in one bit: {bit}$")
    return Fault(
        f"bit-{bit}",
        f"bit {bit} of one output element is flipped",
        Hook("flip_bit", str(bit)),
        dense(columns),
        Expected(Outcome.MISMATCH, "{cause}: one bit flipped", says),
    )


def _death(name: str, summary: str, columns: int, words: str, *says: str) -> Fault:
    """The process that owns the device dies within a call."""
    expected = Expected(Outcome.CRASH, "crash", (f"the process that owns the device {words}", *says))
    return Fault(name, summary, Hook(name.replace("-", "_")), dense(columns), expected)


def _on_gpu(name: str, summary: str, columns: int, expected: Expected, **conditions: Any) -> Fault:
    """A call with a kernel of its own, which is wrong on purpose."""
    case = dense(columns, **conditions)
    return Fault(name, summary, Hook(name.replace("-", "_")), case, expected, machines=("cuda",))


def _violation(name: str, summary: str, case: dict[str, Any], title: str, *says: str, calls: int = 0) -> Fault:
    """Right numbers, and something done beside them."""
    hook, expected = Hook(name.replace("-", "_")), Expected(Outcome.VIOLATION, title, says)
    return Fault(name, summary, hook, case, expected, BOTH, calls=calls)


SPOILED_BY_BIAS = Fault(
    "spoiled-by-bias",
    "a call with bias spoils all later calls of its process",
    Hook("spoiled_by_bias"),
    dense(155),
    Expected(
        Outcome.MISMATCH,
        "state kept between calls: spoiled by .*bias.*",
        (r"wrong in 8 of 8 processes after .*bias.*; right in 5 of 5 alone",),
    ),
    BOTH,
    beside=(dense(156, bias=True),),
)
"""Comes before others: whatever place in a window of steps a rank begins at, the call with bias comes before."""

FAULTS = (
    Fault(
        "fallback",
        "the call is answered by plain torch code",
        Hook("fallback"),
        dense(47, bias=True),
        Expected(Outcome.VIOLATION, "fallback: kernel under test not launched", (r"launched: none",)),
        BOTH,
    ),
    Fault(
        "bare-fallback",
        "a call without a precision config is answered by plain torch code",
        Hook("answer_bare"),
        dense(133, bare=True),
        Expected(Outcome.VIOLATION, "fallback: kernel under test not launched", (r"launched: none",)),
    ),
    Fault(
        "own-memory",
        "the memory that the caller gives for the result is not used",
        Hook("own_memory"),
        dense(135, into=True),
        Expected(Outcome.MISMATCH, "{cause}: output not written", (r"all 20 rows, all 135 columns",)),
    ),
    Fault(
        "shifted-scatter",
        "the index that rows are scattered by is shifted by one",
        Hook("shift_scatter"),
        dense(72, mode="routed", weight="fp16", m=24, k=64, experts=3, top_k=1, gather=True, scatter=True),
        Expected(Outcome.MISMATCH, "{cause}: rows permuted", (r"another row's reference",)),
        BOTH,
    ),
    Fault(
        "stale-scales",
        "the block scales of another weight are used",
        Hook("stale_scales"),
        dense(70, weight="mxfp4", k=128, data="normal"),
        Expected(Outcome.MISMATCH, "{cause}: (wrong operand|wrong output)", (r"all 20 rows, all 70 columns",)),
        BOTH,
    ),
    Fault(
        "weight-nibble",
        "one bit of one 4-bit weight is flipped",
        Hook("flip_weight"),
        dense(66, weight="mxfp4", k=128, out="fp32"),
        Expected(Outcome.MISMATCH, "{cause}: .*", (r"all 20 rows, column 7 of 66",)),
    ),
    Fault(
        "scale-byte",
        "one block scale is twice what it is",
        Hook("double_scale"),
        dense(68, weight="mxfp4", k=128, out="fp32"),
        Expected(Outcome.MISMATCH, "{cause}: .*", (r"rows.*, column 7 of 68",)),
    ),
    _flipped(0, 60),
    _flipped(7, 61),
    _flipped(14, 62),
    Fault(
        "bit-of-a-gpu",
        "a bit is flipped wherever one GPU computes, whatever rank uses it",
        Hook("flip_bit_on_device", "{rank}"),
        dense(63, weight="fp16"),
        Expected(Outcome.MISMATCH, "suspect GPU: one bit flipped", (r"row 3 of 20, column 5 of 63",)),
        fewest_ranks=2,
        spread=True,
    ),
    Fault(
        "spreading-nan",
        "NaN in one row leaks into the rows beside it",
        Hook("spread_nan"),
        dense(55),
        Expected(
            Outcome.MISMATCH, "{cause}: NaN", (r"rows 6-8 of 20, all 55 columns", r"165 NaN and 0 Inf from \(6, 0\)")
        ),
        BOTH,
    ),
    Fault(
        "other-tokens",
        "the logits of one step come out negative, so that other tokens follow whatever the weights are",
        Hook("decode_otherwise"),
        {**decoding(94), "heads": 2, "layers": 1},
        Expected(
            Outcome.MISMATCH, "{cause}: .*", (r"first wrong at step 0, unembedding; first other token at step 0 ",)
        ),
        calls=94,
        effort=8,
    ),
    Fault(
        "repeats-differ",
        "the result depends on the order of threads",
        Hook("change_with_each_call"),
        dense(49),
        Expected(Outcome.MISMATCH, f"race or uninitialised read: repeats differ|{FOLLOWS}", (r"repeats differ: .*",)),
        BOTH,
    ),
    Fault(
        "every-second-call",
        "every second call of a process is wrong",
        Hook("wrong_every_second_call"),
        dense(151),
        Expected(
            Outcome.MISMATCH,
            "state kept between calls: by the number of the call",
            (r"repeats differ: every second of 4 calls", r"in each fresh process: every second of \d+ calls"),
        ),
        BOTH,
    ),
    Fault(
        "every-second-process",
        "all calls of every second process are wrong",
        Hook("wrong_in_every_second_process"),
        dense(152),
        Expected(Outcome.MISMATCH, "decided anew in each process: one bit flipped"),
        BOTH,
    ),
    Fault(
        "now-and-then",
        "one of eight calls is wrong",
        Hook("wrong_now_and_then"),
        dense(153, repeat=24),
        Expected(Outcome.MISMATCH, f"race or uninitialised read: repeats differ|{FOLLOWS}", (r"repeats differ: ",)),
        BOTH,
    ),
    Fault(
        "two-at-once",
        "a bit is flipped on each rank, and one stores behind its output as well",
        Hook("wrong_and_too_wide", "{rank}"),
        dense(157),
        Expected(
            Outcome.MISMATCH,
            "kernel bug: one bit flipped|access outside of tensors: writes",
            (r"guard: 2 bytes written after", r"each differs in one bit: 7$"),
        ),
        (Target.ALL,),
        fewest_ranks=2,
    ),
    _death(
        "exit",
        "the library says why and ends the process",
        50,
        "ended with exit code 7",
        r"printed  planted on purpose: no table of experts",
        r"log      .*logs.*stderr\.log",
    ),
    _death("segfault", "host code reads address 0", 51, "was killed by SIGSEGV"),
    _death("killed", "the process is killed from outside", 52, "was killed by SIGKILL"),
    Fault(
        "raise",
        "the library raises",
        Hook("raise_error"),
        dense(53),
        Expected(
            Outcome.ERROR,
            "environment of a rank: error|the library or kernel raised",
            (r"planted on purpose; raised from KeyError: 'the table of experts'",),
        ),
    ),
    Fault(
        "endless-loop",
        "host code never returns",
        Hook("loop_on_host"),
        dense(54),
        Expected(Outcome.HANG, "hang", (r"no result within .* at \w+\.py:\d+ in loop_on_host",)),
        session=Session.HANG,
    ),
    Fault(
        "group-slices-experts",
        "host code takes a process group for expert parallelism, though every rank holds all experts",
        Hook("slice_by_group"),
        routed(74, weight="bf16", process_group="initialised"),
        Expected(Outcome.MISMATCH, "dependence on the process group: wrong (expert|operand)", (r"experts? ",)),
        (Target.ALL,),
        fewest_ranks=2,
        beside=(routed(74, weight="bf16"),),
    ),
    Fault(
        "shared-state",
        "host code keeps an operand where all threads of the process find it",
        Hook("share_operand"),
        dense(75, concurrency=4, repeat=6),
        Expected(Outcome.MISMATCH, "state shared by threads: .*", (r"repeats wrong",)),
        (Target.ALL,),
    ),
    Fault(
        "one-rank-refuses",
        "the library says on one rank that it does not implement what the others run",
        Hook("refuse"),
        dense(125, optional=True),
        Expected(
            Outcome.INAPPLICABLE,
            "judged on some ranks only",
            (r"inapplicable on rank \d: the library does not implement this: planted on purpose", r"judged on rank \d"),
            ExitCode.INCONCLUSIVE,
        ),
        fewest_ranks=2,
    ),
    Fault(
        "half-fallback",
        "the second product of an expert block is answered by plain torch code",
        Hook("second_in_torch"),
        {**MOE, "hidden": 56},
        Expected(
            Outcome.VIOLATION,
            "fallback: kernel under test launched less often than needed",
            (r"_matmul_ogs or _p_matmul_ogs launched 2 times in 2 calls, 4 needed",),
        ),
        BOTH,
        calls=56,
    ),
    Fault(
        "ignored-configuration",
        "split-k and rows of a tile are asked for and not heeded",
        Hook("ignore_configuration"),
        dense(123, k=256, split_k=2, block_m=16, out="fp32"),
        Expected(
            Outcome.VIOLATION,
            "not the configuration asked for",
            (r"asked for SPLIT_K 2, launched with 1", r"asked for BLOCK_M 16, launched with 32"),
        ),
        BOTH,
    ),
    Fault(
        "wrong-later",
        "the call is wrong from the third time on",
        Hook("wrong_later"),
        dense(124, repeat=4),
        Expected(
            Outcome.MISMATCH,
            "state kept between calls: by the number of the call",
            (r"2 of 4 repeats wrong", r"in each fresh process: from call 3 of 8 on", r"each differs in one bit: 14$"),
        ),
    ),
    _violation(
        "write-input",
        "the call zeroes an element of its input",
        dense(113),
        "changes its inputs",
        r"the call changed x: 1 of 1920 elements, first at \(0, 0\)",
    ),
    _violation(
        "write-weight",
        "the call zeroes a weight, so that later calls are wrong",
        dense(114),
        "changes its inputs",
        r"the call changed w.*: 1 of 10944 elements, first at \(2, 5\)",
    ),
    _violation(
        "write-scale",
        "the call doubles a block scale, so that later calls are wrong",
        dense(116, weight="mxfp4", k=128),
        "changes its inputs",
        r"the call changed weight\.fresh_scale\.scale_data: 1 of 464 elements, first at \(1, 3\)",
    ),
    _violation(
        "return-input",
        "the result lies in the memory of the input",
        dense(90),
        "changes its inputs",
        r"y, as the call returned it, shares the memory of x",
    ),
    _violation(
        "leave-gaps",
        "the result has gaps between its columns",
        dense(117),
        "output not as asked",
        r"the call returned y with strides \(234, 2\) for shape \(20, 117\)",
    ),
    _violation(
        "leave-dtype",
        "another default dtype is left behind",
        dense(118),
        "leaves settings changed",
        r"default dtype was torch\.float32 before the call and is torch\.bfloat16 after it",
    ),
    _violation(
        "leave-variable",
        "an environment variable is left behind",
        dense(119),
        "leaves settings changed",
        r"environment variable set: PLANTED_ON_PURPOSE",
    ),
    _violation(
        "draw-at-random",
        "the call draws from the random state of the process",
        dense(121),
        "leaves settings changed",
        r"random state of torch on the CPU",
    ),
    Fault(
        "write-between-calls",
        "a call of the library within a decoding zeroes an element of what gpucheck's own norm computed",
        Hook("write_input"),
        {**decoding(98), "experts": 16},
        Expected(
            Outcome.VIOLATION,
            "changes its inputs",
            (r"call \d+ of the library's matmul changed x of matmul: 1 of 64 elements, first at \(0, 0\)",),
        ),
        calls=16,  # of the router
    ),
    Fault(
        "same-output",
        "each call returns the same memory",
        Hook("reuse_output"),
        dense(122),
        Expected(Outcome.VIOLATION, "output overwritten by a later call", (r"memory that an earlier call returned",)),
        BOTH,
    ),
    Fault(
        "reused-output",
        "each call returns the same memory",
        Hook("reuse_output"),
        dense(76, consumer="delayed"),
        Expected(Outcome.MISMATCH, "output overwritten by a later call: .*", (r"y: all 20 rows",)),
        (Target.ALL,),
    ),
    _on_gpu(
        "side-stream",
        "the kernel runs on a stream that does not wait for the producer of its input",
        81,
        Expected(Outcome.MISMATCH, "missing stream order: .*", (r"launched on stream \d+, its inputs come on stream",)),
        late=True,
    ),
    Fault(
        "tf32",
        "fp32 operands are cut to TF32",
        Hook("allow_tf32"),
        dense(82, weight="fp32", data="normal", out="fp32", k=256),
        Expected(Outcome.MISMATCH, "{cause}: (lower precision than asked|rounded toward zero)"),
        BOTH,
        machines=("cuda",),
    ),
    _on_gpu(
        "illegal-address",
        "a kernel stores where no memory is",
        84,
        Expected(Outcome.CRASH, "crash: illegal memory access( in store_far_away)?", (r"illegal memory access",)),
    ),
    _on_gpu(
        "device-assert",
        "an assertion fails on the device",
        85,
        Expected(Outcome.CRASH, "crash: device-side assert( in assert_nothing_is_there)?", (r"device-side assert",)),
    ),
    _on_gpu(
        "long-grid",
        "a grid has more blocks on its second axis than GPUs allow",
        89,
        Expected(
            Outcome.ERROR,
            "resource limit",
            (r"assert_nothing_is_there was launched with 65,536 blocks on axis 1, at most 65,535",),
        ),
    ),
    Fault(
        "endless-kernel",
        "a kernel never ends",
        Hook("endless_kernel"),
        dense(86),
        Expected(Outcome.HANG, "hang(: in wait_forever)?", (r"no result within", r"wait_forever")),
        session=Session.HANG,
        machines=("cuda",),
    ),
    _on_gpu(
        "gpu-memory",
        "the library asks for more memory than the GPU has",
        88,
        Expected(Outcome.ERROR, "out of memory: GPU memory", (r"OutOfMemoryError", r"under test: .*_matmul_ogs")),
    ),
)
