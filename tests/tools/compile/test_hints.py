"""Messages as Triton 3.1 to 3.9, LLVM and ptxas word them, and what must be said of each."""

from __future__ import annotations

import re

import pytest

from gpucheck.tools.compile.hints import KNOWN, hint

MESSAGES = [
    (
        "ValueError('Cannot make_shape_compatible: incompatible dimensions at index 1: 128 and 64')",  # 3.1
        ["along axis 1", "128", "64", "x[:, None]"],
    ),
    ("ValueError: Cannot make_shape_compatible: incompatible dimensions at index 0: 32 and 16", ["axis 0", "32", "16"]),
    (
        "Expected pointer argument to have shape ['constexpr[64]', 'constexpr[32]'] but got ['constexpr[64]']",
        ["different shapes"],
    ),
    (
        "AttributeError: module 'triton.language' has no attribute 'gather'",
        ["triton.language of this Triton", "no gather"],
    ),
    (
        "AttributeError: module 'triton.language.extra.cuda' has no attribute 'gdc_wait'",
        ["triton.language.extra.cuda", "gdc_wait"],
    ),
    ("TypeError: max() got an unexpected keyword argument 'return_indices'", ["max()", "no return_indices"]),  # 3.6
    ("TypeError: got an unexpected keyword argument 'return_indices'", ["called there", "no return_indices"]),  # 3.9
    ("TypeError: dot() missing 1 required positional argument: 'other'", ["dot() also wants 'other'"]),
    ("TypeError: sum() takes from 1 to 3 positional arguments but 4 were given", ["sum()", "by keyword"]),
    ("TypeError: dynamic_func() missing 1 required positional argument: 's'", ["kernel's parameters"]),
    ("KeyError: 'Keyword argument warp_size was specified but unrecognised'", ["option", "does not have"]),
    (
        "type fp8e4nv not supported in this architecture. The supported fp8 dtypes are ('fp8e4b15', 'fp8e5')",
        ["no fp8 e4m3", "fp8e5"],
    ),
    ("ValueError: arange's range must be a power of 2", ["powers of two"]),
    ("ValueError: Shape element 2 must be a power of 2", ["powers of two"]),
    ("ValueError: numel (2097152) exceeds triton maximum tensor numel (1048576)", ["1,048,576 elements"]),
    ("AssertionError: Input shapes should have M >= 16, N >= 16 and K >= 16", ["larger tiles"]),
    ("AssertionError: Both operands must be same dtype. Got bf16 and fp32", ["one dtype", ".to()"]),
    ("AssertionError: Loop-carried variable acc has initial type int32 but is re-assigned to", ["acc changes"]),
    ("AssertionError: Mismatched type for y between then block (int32) and else block", ["y gets another", "tl.where"]),
    ("NameError: Cannot access global variable LIMIT from within @jit'ed function.", ["LIMIT", "tl.constexpr"]),
    ("AssertionError: num_warps must be a power of 2", ["16 or 32 warps"]),
    ("out of resource: shared memory, Required: 1049600, Hardware limit: 232448.", ["fewer pipeline stages"]),
    ("ptxas error   : Entry function 'k' uses too much shared data (0x30000 bytes, 0xc000 max)", ["fewer pipeline"]),
    (
        "ptxas x.ptx, line 41; error   : Feature 'cvt with .tf32.f32.rn' requires .target sm_90 or higher",
        ["'cvt with .tf32.f32.rn'".strip("'"), "from sm_90 on"],
    ),
    ("ptxas x.ptx, line 39; error   : Not a name of any known instruction: 'bogus'", ["'bogus'", "guard it"]),
    ("error: invalid instruction\n        ex2.approx.ftz.f32 s4, v2;", ["ex2.approx.ftz.f32 s4, v2", "guard it"]),
    ('getMMAVersionSafe: Assertion `false && "computeCapability not supported"\' failed.', ["older than the target"]),
    ("ptxas fatal   : Value 'sm_120a' is not defined for option 'gpu-name'", ["older than the target"]),
    ("PassManager::run failed", ["the compiler gave up"]),
]


@pytest.mark.parametrize(("message", "said"), MESSAGES, ids=[message[:40] for message, _ in MESSAGES])
def test_a_known_error_is_explained(message: str, said: list[str]) -> None:
    found = hint(message)
    assert found and all(part in found for part in said), found


def test_every_entry_of_the_table_has_an_example() -> None:
    first = {next(number for number, (pattern, _) in enumerate(KNOWN) if re.search(pattern, m)) for m, _ in MESSAGES}
    assert first == set(range(len(KNOWN)))


def test_an_unknown_error_gets_no_hint() -> None:
    assert hint("RuntimeError: something new") == "" and hint("") == ""
