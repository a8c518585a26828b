"""Messages as Triton 3.1 to 3.9, LLVM and ptxas word them, and what must be said of each."""

from __future__ import annotations

import re
from collections.abc import Callable

from gpucheck.tools.compile.hints import KNOWN, hint

MESSAGES = [
    "ValueError('Cannot make_shape_compatible: incompatible dimensions at index 1: 128 and 64')",  # 3.1
    "ValueError: Cannot make_shape_compatible: incompatible dimensions at index 0: 32 and 16",
    "Expected pointer argument to have shape ['constexpr[64]', 'constexpr[32]'] but got ['constexpr[64]']",
    "AttributeError: module 'triton.language' has no attribute 'gather'",
    "AttributeError: module 'triton.language.extra.cuda' has no attribute 'gdc_wait'",
    "TypeError: max() got an unexpected keyword argument 'return_indices'",  # 3.6
    "TypeError: got an unexpected keyword argument 'return_indices'",  # 3.9
    "TypeError: dot() missing 1 required positional argument: 'other'",
    "TypeError: sum() takes from 1 to 3 positional arguments but 4 were given",
    "TypeError: dynamic_func() missing 1 required positional argument: 's'",
    "KeyError: 'Keyword argument warp_size was specified but unrecognised'",
    "type fp8e4nv not supported in this architecture. The supported fp8 dtypes are ('fp8e4b15', 'fp8e5')",
    "ValueError: arange's range must be a power of 2",
    "ValueError: Shape element 2 must be a power of 2",
    "ValueError: numel (2097152) exceeds triton maximum tensor numel (1048576)",
    "AssertionError: Input shapes should have M >= 16, N >= 16 and K >= 16",
    "AssertionError: Both operands must be same dtype. Got bf16 and fp32",
    "AssertionError: Loop-carried variable acc has initial type int32 but is re-assigned to",
    "AssertionError: Mismatched type for y between then block (int32) and else block",
    "NameError: Cannot access global variable LIMIT from within @jit'ed function.",
    "AssertionError: num_warps must be a power of 2",
    "out of resource: shared memory, Required: 1049600, Hardware limit: 232448.",
    "ptxas error   : Entry function 'k' uses too much shared data (0x30000 bytes, 0xc000 max)",
    "ptxas x.ptx, line 41; error   : Feature 'cvt with .tf32.f32.rn' requires .target sm_90 or higher",
    "ptxas-blackwell x.ptx, line 7; error   : Feature '.tile::scatter4' not supported on .target 'sm_121a'",
    "ptxas x.ptx, line 39; error   : Not a name of any known instruction: 'bogus'",
    "error: invalid instruction\n        ex2.approx.ftz.f32 s4, v2;",
    'getMMAVersionSafe: Assertion `false && "computeCapability not supported"\' failed.',
    "ptxas fatal   : Value 'sm_120a' is not defined for option 'gpu-name'",
    "PassManager::run failed",
]


def test_known_errors_are_explained(snapshot: Callable[[str], None]) -> None:
    assert all(map(hint, MESSAGES))
    snapshot("\n\n".join(f"{message}\n  {hint(message)}" for message in MESSAGES))


def test_every_entry_of_the_table_has_an_example() -> None:
    first = {next(number for number, (pattern, _) in enumerate(KNOWN) if re.search(pattern, m)) for m in MESSAGES}
    assert first == set(range(len(KNOWN)))


def test_an_unknown_error_gets_no_hint() -> None:
    assert hint("RuntimeError: something new") == "" and hint("") == ""
