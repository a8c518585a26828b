"""What known errors of the compiler mean, in plain words: one row of the table each."""

from __future__ import annotations

import re

FP8 = {"fp8e4nv": "e4m3", "fp8e5": "e5m2", "fp8e4b15": "e4m3 with bias 15", "fp8e4b8": "e4m3fnuz"}
"""Triton's names of formats -> those that people know."""


def hint(error: str) -> str:
    """What an error means and what to do; "" for one that is not known.

    Args:
        error: what Triton, its LLVM or ptxas said, whole.
    """
    for pattern, text in KNOWN:
        match = re.search(pattern, error)
        if match:
            return text.format(**{name: _plain(value) for name, value in match.groupdict().items()})
    return ""


def _plain(value: str) -> str:
    """A part of an error as people write it."""
    return f"{int(value):,}" if value.isdecimal() else FP8.get(value, value)


KNOWN = (
    (
        r"incompatible dimensions at index (?P<axis>\d+): (?P<left>\d+) and (?P<right>\d+)",
        "blocks are combined whose shapes do not fit: along axis {axis} one has {left} elements, the other {right}, "
        "and neither is 1. A block of one axis counts as a row: where it is meant as a column, write x[:, None]",
    ),
    (
        r"Expected (pointer|mask|value|other) argument to have shape",
        "pointers, mask and value of a load or store have different shapes: broadcast them first",
    ),
    (
        r"module '(?P<module>triton[\w.]*)' has no attribute '(?P<name>\w+)'",
        "{module} of this Triton has no {name}: newer, renamed or gone",
    ),
    (
        r"dynamic_func\(\) (missing|takes|got)|Keyword argument \w+ was specified but unrecognised",
        "the launch does not fit the kernel's parameters, or names an option that this Triton does not have",
    ),
    (
        r"(?P<function>\w+\(\)) got an unexpected keyword argument '(?P<name>\w+)'",
        "{function} takes no {name} in this Triton: its signature differs between versions",
    ),
    (
        r"got an unexpected keyword argument '(?P<name>\w+)'",
        "the function that is called there takes no {name} in this Triton: its signature differs between versions",
    ),
    (
        r"(?P<function>\w+\(\)) missing \d+ required \S+ arguments?: (?P<names>[^\"\n]+)",
        "{function} also wants {names} in this Triton: its signature differs between versions",
    ),
    (
        r"(?P<function>\w+\(\)) (takes .*? positional arguments? but|got multiple values)",
        "{function} has other parameters in this Triton: pass them by keyword",
    ),
    (
        r"type (?P<name>fp8\w+) not supported in this architecture.*? are \((?P<have>[^)]*)\)",
        "the target has no fp8 {name}; it has {have}",
    ),
    (
        r"arange's range must be a power of 2|Shape element \d+ must be a power of 2",
        "the sizes of a block must be powers of two: round up and mask the rest",
    ),
    (
        r"exceeds triton maximum tensor numel \((?P<most>\d+)\)",
        "one block has more than {most} elements: loop over smaller ones",
    ),
    (
        r"Input shapes should have M >= \d+, N >= \d+ and K >= \d+|must be >= \d+ for tl.dot",
        "tl.dot needs larger tiles on this target: pad them, or multiply and sum without it",
    ),
    (
        r"Both operands must be same dtype|must have the same dtype",
        "tl.dot takes operands of one dtype: convert one with .to()",
    ),
    (
        r"Loop-carried variable (?P<name>\w+) has initial type",
        "{name} changes its dtype or shape in the loop: give it its final type before the loop",
    ),
    (
        r"Mismatched type for (?P<name>\w+) between",
        "{name} gets another dtype or shape in each branch: make them equal, or use tl.where",
    ),
    (r"Cannot access global variable (?P<name>\w+)", "make {name} a tl.constexpr, or pass it to the kernel"),
    (r"num_warps must be a power of 2", "launch with 1, 2, 4, 8, 16 or 32 warps"),
    (
        r"uses too much shared data|out of resource: shared memory",
        "smaller tiles or fewer pipeline stages need less shared memory",
    ),
    (
        r"Feature '(?P<what>[^']+)' requires \.target (?P<arch>sm_\w+)",
        "{what} exists from {arch} on: older GPUs need another path through the kernel",
    ),
    (
        r"Feature '(?P<what>[^']+)' not supported on \.target '(?P<arch>sm_\d+)",
        "{arch} does not have {what}, although others of its generation may: it needs another path through the kernel",
    ),
    (
        r"(known instruction: |invalid instruction\s*\n\s*)(?P<what>'[^']+'|[^\n;]+)",
        "the kernel holds assembly that the target does not know: {what}; guard it by the target",
    ),
    (
        r"computeCapability not supported|is not defined for option 'gpu-name'|not a recognized processor",
        "this Triton is older than the target and does not know it",
    ),
    (
        r"PassManager::run failed",
        "the compiler gave up on source that is legal: try another Triton, tile size or number of stages",
    ),
)
"""What an error holds -> what it means; names in braces stand for groups of the expression. The first row counts."""
