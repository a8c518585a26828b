"""What known errors of the compiler mean, in plain words: one entry of the table each."""

from __future__ import annotations

import re
from collections.abc import Callable

Explain = Callable[[re.Match[str]], str]


def hint(error: str) -> str:
    """What an error means and what to do; "" for one that is not known.

    Args:
        error: what Triton, its LLVM or ptxas said, whole.
    """
    for pattern, explain in KNOWN:
        match = re.search(pattern, error)
        if match:
            return explain(match)
    return ""


def _say(text: str) -> Explain:
    """Words that hold whatever was matched; names in braces stand for groups."""
    return lambda match: text.format(**match.groupdict())


def _broadcast(match: re.Match[str]) -> str:
    axis, left, right = match["axis"], match["left"], match["right"]
    return (
        f"blocks are combined whose shapes do not fit: along axis {axis} one has {left} elements, the other {right}, "
        "and neither is 1. A block of one axis counts as a row: where it is meant as a column, write x[:, None]"
    )


def _missing_function(match: re.Match[str]) -> str:
    module = match["module"].replace("triton.language", "tl")
    return f"{module} of this Triton has no {match['name']}: newer, renamed or gone"


def _unexpected_keyword(match: re.Match[str]) -> str:
    function = match["function"] or "the function that is called there"
    return f"{function} takes no {match['name']} in this Triton: its signature differs between versions"


def _fp8(match: re.Match[str]) -> str:
    formats = {"fp8e4nv": "e4m3", "fp8e5": "e5m2", "fp8e4b15": "e4m3 with bias 15", "fp8e4b8": "e4m3fnuz"}
    return f"the target has no fp8 {formats.get(match['name'], match['name'])}; it has {match['have'].rstrip('.')}"


def _large_block(match: re.Match[str]) -> str:
    return f"one block has more than {int(match['most']):,} elements: loop over smaller ones"


def _instruction(match: re.Match[str]) -> str:
    what = (match["what"] or match["line"]).strip(" \t;")
    return f"the kernel holds assembly that the target does not know: {what}; guard it by the target"


KNOWN: tuple[tuple[str, Explain], ...] = (
    (r"incompatible dimensions at index (?P<axis>\d+): (?P<left>\d+) and (?P<right>\d+)", _broadcast),
    (
        r"Expected (pointer|mask|value|other) argument to have shape",
        _say("pointers, mask and value of a load or store have different shapes: broadcast them first"),
    ),
    (r"module '(?P<module>triton[\w.]*)' has no attribute '(?P<name>\w+)'", _missing_function),
    (
        r"dynamic_func\(\) (missing|takes|got)|Keyword argument \w+ was specified but unrecognised",
        _say("the launch does not fit the kernel's parameters, or names an option that this Triton does not have"),
    ),
    (r"(?P<function>\w+\(\))?\s*got an unexpected keyword argument '(?P<name>\w+)'", _unexpected_keyword),
    (
        r"(?P<function>\w+\(\)) missing \d+ required \S+ arguments?: (?P<names>[^\"\n]+)",
        _say("{function} also wants {names} in this Triton: its signature differs between versions"),
    ),
    (
        r"(?P<function>\w+\(\)) (takes .*? positional arguments? but|got multiple values)",
        _say("{function} has other parameters in this Triton: pass them by keyword"),
    ),
    (r"type (?P<name>fp8\w+) not supported in this architecture.*? are \((?P<have>[^)]*)\)", _fp8),
    (
        r"arange's range must be a power of 2|Shape element \d+ must be a power of 2",
        _say("the sizes of a block must be powers of two: round up and mask the rest"),
    ),
    (r"exceeds triton maximum tensor numel \((?P<most>\d+)\)", _large_block),
    (
        r"Input shapes should have M >= \d+, N >= \d+ and K >= \d+|must be >= \d+ for tl.dot",
        _say("tl.dot needs larger tiles on this target: pad them, or multiply and sum without it"),
    ),
    (
        r"Both operands must be same dtype|must have the same dtype",
        _say("tl.dot takes operands of one dtype: convert one with .to()"),
    ),
    (
        r"Loop-carried variable (?P<name>\w+) has initial type",
        _say("{name} changes its dtype or shape in the loop: give it its final type before the loop"),
    ),
    (
        r"Mismatched type for (?P<name>\w+) between",
        _say("{name} gets another dtype or shape in each branch: make them equal, or use tl.where"),
    ),
    (
        r"Cannot access global variable (?P<name>\w+)",
        _say("make {name} a tl.constexpr, or pass it to the kernel"),
    ),
    (r"num_warps must be a power of 2", _say("launch with 1, 2, 4, 8, 16 or 32 warps")),
    (
        r"uses too much shared data|out of resource: shared memory",
        _say("smaller tiles or fewer pipeline stages need less shared memory"),
    ),
    (
        r"Feature '(?P<what>[^']+)' requires \.target (?P<arch>sm_\w+)",
        _say("{what} exists from {arch} on: older GPUs need another path through the kernel"),
    ),
    (r"Not a name of any known instruction: (?P<what>'[^']+')|invalid instruction\s*\n(?P<line>[^\n]+)", _instruction),
    (
        r"computeCapability not supported|is not defined for option 'gpu-name'|not a recognized processor",
        _say("this Triton is older than the target and does not know it"),
    ),
    (
        r"PassManager::run failed",
        _say("the compiler gave up on source that is legal: try another Triton, tile size or number of stages"),
    ),
)
