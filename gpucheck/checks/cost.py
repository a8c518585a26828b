"""What calls have to do at least: the products they compute and the bytes they move, see :class:`Cost`."""

from __future__ import annotations

from torch import Tensor

from gpucheck.checks.data import DTYPES
from gpucheck.model.case import Case
from gpucheck.model.record import Cost


def size(*tensors: Tensor) -> int:
    """Bytes of tensors."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def used(weight: Tensor, histogram: Tensor) -> float:
    """Bytes of a weight or bias (E, ...) of the experts that have rows: nobody needs the others."""
    return size(weight) * int((histogram > 0).sum()) / max(histogram.numel(), 1)


def matmul(case: Case, inputs: dict[str, Tensor]) -> Cost:
    """Of the ``matmul`` check."""
    columns = case["n"] // 2 if case["swiglu"] else case["n"]
    weights = [inputs[name] for name in ("w", "w_scale", "bias") if name in inputs]
    rows, written = case["m"] * max(case["batch"], 1), case["m"] * max(case["batch"], 1)
    if case["mode"] == "routed":
        rows = case["m"] * case["top_k"]
        written = case["m"] if case["scatter"] else rows
        per_expert = [weight for weight in weights if weight.ndim > 1]
        moved = sum(used(weight, inputs["histogram"]) for weight in per_expert)
        moved += size(*(weight for weight in weights if weight.ndim == 1))
        tables = {"to_flat": case["gather"] or case["scatter"], "gates": case["gammas"]}
        moved += size(inputs["histogram"], *(inputs[name] for name, needed in tables.items() if needed))
    else:
        moved = size(*weights)
    moved += size(inputs["x"]) + written * columns * DTYPES[case["out"]].itemsize
    return Cost(2.0 * rows * case["n"] * case["k"], float(moved))


def moe(case: Case, inputs: dict[str, Tensor]) -> Cost:
    """Of the ``moe`` check; what lies between its two products could stay on the chip and does not count."""
    rows = case["m"] * case["top_k"]
    weights = (inputs[name] for name in inputs if name.startswith(("w1", "w2", "bias")))
    moved = sum(used(weight, inputs["histogram"]) for weight in weights)
    moved += size(*(inputs[name] for name in ("histogram", "to_flat", "gates")))
    flops = 2.0 * rows * case["hidden"] * 3 * case["intermediate"]
    return Cost(flops, moved + 2 * size(inputs["x"]))  # the result is as large as the tokens


def attention(case: Case, inputs: dict[str, Tensor], first: Tensor, last: Tensor) -> Cost:
    """Of the ``attention`` check.

    Args:
        first: (q_len,) first key that each query sees.
        last: (q_len,) last one; below ``first`` where a query sees none.
    """
    seeing = last >= first
    pairs = int((last - first + 1).clamp_min(0).sum())
    keys = int(last[seeing].max() - first[seeing].min() + 1) if bool(seeing.any()) else 0
    flops = 4.0 * case["batch"] * case["q_heads"] * pairs * case["head_dim"]
    read = size(inputs["k"], inputs["v"]) * keys / case["k_len"]
    sinks = size(inputs["sinks"]) if "sinks" in inputs else 0
    return Cost(flops, read + sinks + 2 * size(inputs["q"]))  # the result is as large as q


def swiglu(case: Case, inputs: dict[str, Tensor]) -> Cost:
    """Of the ``swiglu`` check."""
    return Cost(0.0, 1.5 * size(inputs["x"]))


def topk(case: Case, inputs: dict[str, Tensor]) -> Cost:
    """Of the ``topk`` check: logits, values in their dtype and int32 ids."""
    logits = inputs["logits"]
    chosen = case["m"] * case["top_k"]
    return Cost(0.0, float(size(logits) + chosen * (logits.element_size() + 4)))


def routing(case: Case, inputs: dict[str, Tensor]) -> Cost:
    """Of the ``routing`` check: logits, then histogram, both permutations and gates of 4 bytes each."""
    return Cost(0.0, float(size(inputs["logits"]) + 4 * case["experts"] + 12 * case["m"] * case["top_k"]))
