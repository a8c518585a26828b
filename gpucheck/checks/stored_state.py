"""What an engine's loader stored, held against the checkpoint that it was given.

Wrong outputs of a block do not say whether its loader or its forward is wrong. What was stored does: it is read back by
the library's own inverse of its layouts, so a value, an expert or a padding that differs is the loader's doing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from gpucheck.checks.block_parts import BLOCK
from gpucheck.library.engines.base import STORED
from gpucheck.model.record import EnginePart, Launch

if TYPE_CHECKING:
    from torch import Tensor

AS_GIVEN = "all that is stored is as in the checkpoint"
OTHERWISE = "what is stored is not as in the checkpoint"
SCALES = ("up_scale", "down_scale")
NAN = 0xFF  # of e8m0
SHOWN = 4  # experts that are listed


def differences(stored: Mapping[str, Tensor], given: Mapping[str, Tensor], words: str = "") -> Iterator[str]:
    """What is stored otherwise than it was given, tensor by tensor.

    Args:
        stored: tensors of a block by the names of ``STORED``, in the order of the checkpoint, padded or not.
        given: those of the checkpoint, cut to what this rank holds.
        words: follow the name of a tensor, such as the rank that holds it.
    """
    missing = [f"{held}{words}" for name, held in STORED.items() if stored and name not in stored]
    if missing:
        yield f"{' and '.join(missing)} are not there"
    for name, value in stored.items():
        whole, held = given[name], f"{STORED[name]}{words}"
        if value.ndim != whole.ndim or any(size < least for size, least in zip(value.shape, whole.shape, strict=True)):
            yield f"{held} have shape {tuple(value.shape)}, expected at least {tuple(whole.shape)}"
            continue
        places = tuple(map(slice, whole.shape))
        other = value[places].double() != whole.double()
        if bool(other.any()):
            experts = other.flatten(1).any(1).nonzero().flatten().tolist()
            yield f"{held} differ in {float(other.double().mean()):.1%} of values, {_of_experts(experts, len(whole))}"
        padding = value.clone()
        padding[places] = 0
        if name in SCALES and bool((padding == NAN).any()):
            yield f"{held} are padded with {NAN}, which is NaN"
        elif name not in SCALES and bool(padding.ne(0).any()):
            yield f"{held} are padded with other values than 0"


def _of_experts(experts: list[int], count: int) -> str:
    if len(experts) == count:
        return "of every expert"
    listed = ", ".join(map(str, experts[:SHOWN]))
    return f"of expert{'s' if len(experts) > 1 else ''} {listed}{', ...' if len(experts) > SHOWN else ''}"


def scale_groups(stored: Mapping[str, Tensor], words: str = "") -> dict[str, int]:
    """How many groups of terms the scales of each product have, with what pads them."""
    return {f"{STORED[name]}{words}": stored[name].shape[-2] for name in SCALES if name in stored}


def loader_words(part: EnginePart | None, read_around: str, launches: list[Launch], *, explained: bool = False) -> str:
    """What is known of the loader of a block that is wrong: ``loader: ...``; "" where nothing was read back.

    Args:
        read_around: the tensor around which memory was read that changes the outputs, in words; "": none.
        explained: a fault is known that gives exactly the outputs: then which tensors differ tells nothing more.
    """
    if part is None or not part.stored:
        return ""
    found = [] if part.stored == AS_GIVEN else [OTHERWISE if explained else part.stored]
    step = max((launch.configuration.get("BLOCK_K", 0) // BLOCK for launch in launches), default=0)
    for held, groups in part.scale_groups.items():
        if step and groups % step and read_around.endswith(held):
            most = -(-groups // step) * step
            found.append(f"{held} are {groups} groups, a product reads {most}, and nothing pads them")
    return f"loader: {'; '.join(found)}" if found else f"not the loader: {AS_GIVEN}"
