"""Attention as an engine calls it, over its own paged cache: what the checks of all engines share.

An engine turns a batch of sequences into tables, starts and windows, writes the new keys into its cache and only then
calls a kernel, so each of these can be wrong while the kernel is right. It is given what a scheduler gives it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gpucheck.checks.attention import MOST_EXACT_KEYS, heads
from gpucheck.checks.base import Check, Runtime
from gpucheck.checks.engine_block import by_engine
from gpucheck.checks.on_use import bounds, torch
from gpucheck.checks.serving_batch import Sequence, scales, sequences, visible
from gpucheck.library.engines.cached_attention import KV_DTYPES, AttentionBatch, AttentionSizes
from gpucheck.model.case import Case, CheckSpec, Param
from gpucheck.model.record import Mismatch
from gpucheck.model.vocabulary import ViolationKind
from gpucheck.verify.expected import Axes, Expected

if TYPE_CHECKING:
    from torch import Tensor


PAGES = (16, 32, 64, 128)
NEW = ("new_keys", "new_values")
"""Outputs: what lies in the cache where the new tokens' keys and values belong."""


def spec(name: str, summary: str) -> CheckSpec:
    """The parameters of attention, for the check of one engine."""
    return CheckSpec(
        name=name,
        summary=summary,
        sizes=("batch", "q_heads", "kv_heads", "q_len", "k_len"),
        params=(
            Param("queries", "mixed", "decode: one new token a sequence; mixed: prompts too", ("mixed", "decode")),
            Param("kv_dtype", "bf16", "of the cache; queries are bf16 beside an fp8 one too", KV_DTYPES),
            Param("batch", 5, "sequences", label="b"),
            Param("q_heads", 8, "query heads", label="h"),
            Param("kv_heads", 2, "key and value heads, each shared by as many query heads", label="kv"),
            Param("q_len", 20, "new tokens of the longest piece of a prompt; for queries mixed", label="q"),
            Param("k_len", 70, "keys of the longest sequence", label="k"),
            Param("head_dim", 64, "coordinates of a head", (64, 128), label="d"),
            Param("page", 16, "keys of a page", PAGES, label="page"),
            Param("window", 0, "keys a query sees at most; 0: all up to its own", label="w"),
            Param("soft_cap", 0.0, "c of c tanh(score / c); 0: none", label="cap"),
            Param("sinks", True, "one more logit a head in the softmax, without a value"),
        ),
    )


@dataclass(frozen=True)
class Change:
    """What a faulty engine computes otherwise; the default changes nothing."""

    inputs: Callable[[dict[str, Tensor]], dict[str, Tensor]] = dict  # those that it in effect computes with
    window: int = 0  # keys that a query sees more than it should, before those
    later: int = 0  # likewise, behind its own
    shift: int = 0  # tokens are taken to stand this much further behind, so that the whole window moves
    seen: Callable[[Tensor], Tensor] = lambda seen: seen  # (new tokens, length) bool, of one sequence
    scale: float = 1.0  # factor of the scores
    soft_cap: bool = True
    kv_head: Callable[[int, int, int], int] = lambda head, heads, groups: head // (heads // groups)
    """Query head, how many there are, how many heads of keys -> the one that it attends to."""


NO_CHANGE = Change()


class EngineAttention(Check):
    """A check of one engine names it as :attr:`engine`, has a spec, and names its kernels."""

    late_inputs = ("qkv",)

    def validate(self, params: Mapping[str, Any], data: str) -> str | None:
        if params["q_heads"] % params["kv_heads"]:
            return f"q_heads {params['q_heads']} is not a multiple of kv_heads {params['kv_heads']}"
        if params["q_len"] > params["k_len"]:
            return f"q_len {params['q_len']} is more than k_len {params['k_len']}: new tokens have keys too"
        if params["window"] < 0 or params["soft_cap"] < 0:
            return "window and soft_cap must be at least 0"
        if data != "exact":
            return None
        if params["k_len"] > MOST_EXACT_KEYS:
            return f"exact data tells at most {MOST_EXACT_KEYS} keys apart, not {params['k_len']}"
        if params["soft_cap"] or params["kv_dtype"] != "bf16":
            return "exact data takes neither a soft cap nor an fp8 cache: both round"
        return None

    def inputs(self, case: Case, generator: torch.Generator) -> dict[str, Tensor]:
        from gpucheck.checks import serving_batch

        return serving_batch.make(case, generator)

    def reference(self, case: Case, inputs: dict[str, Tensor]) -> dict[str, Expected]:
        return {"o": attention_reference(case, inputs), **_written(case, inputs)}

    def prepare(self, case: Case, inputs: dict[str, Tensor], runtime: Runtime) -> Any:
        batch = batch_of(case, inputs)
        layer = by_engine(runtime, lambda engine: engine.attention(sizes_of(case), batch, runtime.place))
        changed = sum(
            _changed_elsewhere(held, given, batch.new_places)
            for held, given in zip(layer.caches(), (batch.k_cache, batch.v_cache), strict=True)
        )
        if changed:
            words = f"attention: the write of new keys and values changed {changed} elements of others in the cache"
            runtime.report_violation(ViolationKind.INPUTS, words)
        return batch, layer

    def operands(self, case: Case, prepared: Any) -> Any:
        batch, layer = prepared
        return {**{name: value for name, value in vars(batch).items() if value is not None}, **layer.operands()}

    def launch(self, case: Case, prepared: Any, runtime: Runtime) -> dict[str, Tensor]:
        batch, layer = prepared
        with torch.no_grad():
            outputs = {"o": layer.forward()}
        for name, held in zip(NEW, layer.caches(), strict=True):
            outputs[name] = _at(held, batch.new_places).float()
        return outputs

    def order_mismatches(
        self,
        case: Case,
        inputs: dict[str, Tensor],
        outputs: dict[str, Tensor],
        expected: dict[str, Expected],
        mismatches: list[Mismatch],
    ) -> tuple[list[Mismatch], str]:
        """The cache is written before it is read; a known fault of engines may explain what is wrong then."""
        from gpucheck.checks.attention_faults import explanation

        names = [mismatch.output for mismatch in mismatches]
        written = [name for name in NEW if name in names]
        if written:
            words = f"attention: the write of {' and '.join(written).replace('_', ' ')} into the cache is wrong"
            return sorted(mismatches, key=lambda each: each.output not in NEW), words
        return mismatches, explanation(case, inputs, outputs["o"], expected["o"]) if "o" in names else ""

    def axes(self, case: Case, inputs: dict[str, Tensor]) -> dict[str, Axes]:
        counts = inputs["q_lens"].long()
        owners = {"sequence": torch.arange(len(counts)).repeat_interleave(counts)[:, None]}
        named = ("token", "head", "dimension")
        return {name: Axes(named, (0, 0, 0), owners) for name in ("o", *NEW)}


def sizes_of(case: Case) -> AttentionSizes:
    """The layer of a case."""
    named = ("q_heads", "kv_heads", "head_dim", "page", "window", "soft_cap", "kv_dtype")
    held = scales(case)
    return AttentionSizes(**{name: case[name] for name in named}, k_scale=held["k"], v_scale=held["v"])


def batch_of(case: Case, inputs: dict[str, Tensor]) -> AttentionBatch:
    """The inputs as an engine's scheduler hands them to attention; queries and new keys are parts of one product."""
    q, k, v = inputs["qkv"].split([case["q_heads"], case["kv_heads"], case["kv_heads"]], dim=1)
    on_host = {name: value.cpu() for name, value in inputs.items() if name in ("table", "q_lens", "lengths")}
    new = [each.places[len(each.places) - each.new :] for each in sequences(case, on_host)]
    named = {name: inputs[name] for name in ("k_cache", "v_cache", "table", "q_lens", "lengths")}
    places = torch.cat(new).to(q.device)
    return AttentionBatch(q=q, k=k, v=v, **named, new_places=places, sinks=inputs.get("sinks"))


def attention_reference(
    case: Case, inputs: dict[str, Tensor], change: Change = NO_CHANGE, tokens: Tensor | None = None
) -> Expected:
    """What attention gives, or what an engine with a fault makes of it; both in float64.

    Args:
        tokens: sorted numbers of those whose outputs are computed; None: all.
    """
    held = change.inputs(inputs)
    value = torch.zeros((len(held["qkv"]), case["q_heads"], case["head_dim"]), dtype=torch.float64)
    error = None if case.data == "exact" and change is NO_CHANGE else torch.zeros_like(value)
    wanted = torch.arange(len(value)) if tokens is None else tokens
    sinks = held.get("sinks")
    for sequence in sequences(case, held):
        own = wanted[(wanted >= sequence.tokens.start) & (wanted < sequence.tokens.stop)]
        if not len(own):
            continue
        keys, values = (_keys(case, held, sequence, name) for name in ("k", "v"))
        window = case["window"] + change.window if case["window"] else 0
        seen = change.seen(visible(case, sequence, window=window, later=change.later, shift=change.shift))
        for heads_of in _sharing(case, change):
            kv = change.kv_head(heads_of[0], case["q_heads"], case["kv_heads"])
            part = heads(
                held["qkv"][own][:, heads_of].transpose(0, 1),
                keys[:, kv],
                values[:, kv],
                seen[own - sequence.tokens.start],
                sinks=None if sinks is None else sinks[heads_of],
                soft_cap=case["soft_cap"] if change.soft_cap else 0.0,
                factor=change.scale,
                exact=error is None,
            )
            at = (own[:, None], torch.tensor(heads_of))
            value[at] = part.value.transpose(0, 1)
            if error is not None and part.error is not None:
                error[at] = part.error.transpose(0, 1)
    if tokens is not None:
        value, error = value[tokens], None if error is None else error[tokens]
    return Expected(bounds.Estimate(value, error), torch.bfloat16)


def _sharing(case: Case, change: Change) -> list[list[int]]:
    """The query heads that attend to each head of keys."""
    sharing: dict[int, list[int]] = {}
    for head in range(case["q_heads"]):
        sharing.setdefault(change.kv_head(head, case["q_heads"], case["kv_heads"]), []).append(head)
    return list(sharing.values())


def _keys(case: Case, inputs: dict[str, Tensor], sequence: Sequence, name: str) -> Tensor:
    """Keys (name ``k``) or values (``v``) of a sequence, (length, G, D) float64: those in the cache, then the new."""
    old = len(sequence.places) - sequence.new
    cached = inputs[f"{name}_cache"].flatten(0, 1)[sequence.places[:old]].double() * scales(case)[name]
    begin = case["q_heads"] + (case["kv_heads"] if name == "v" else 0)
    return torch.cat([cached, inputs["qkv"][sequence.tokens, begin : begin + case["kv_heads"]].double()])


def _written(case: Case, inputs: dict[str, Tensor]) -> dict[str, Expected]:
    """What must lie in the cache where the new keys and values go, in float32 whatever the cache holds."""
    new = inputs["qkv"][:, case["q_heads"] :].double().split(case["kv_heads"], dim=1)
    return {
        name: Expected(bounds.Estimate(value / scales(case)[kind], None), torch.float32)
        for name, kind, value in zip(NEW, ("k", "v"), new, strict=True)
    }


def _at(cache: Tensor, places: Tensor) -> Tensor:
    """(n, G, D): what a cache (pages, page, G, D) holds at these places."""
    page = cache.shape[1]
    return cache[places // page, places % page]


def _changed_elsewhere(cache: Tensor, before: Tensor, written: Tensor) -> int:
    """How many elements of a cache differ from what they were, but for those at places that are written."""
    from gpucheck.verify.digest import integers

    differs = integers(cache) != integers(before)
    page = cache.shape[1]
    differs[written // page, written % page] = False
    return int(differs.sum())
