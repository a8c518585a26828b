"""Faults of an engine's own attention, planted into vLLM or SGLang: the number of sequences says which a batch has.

Put beside a copy of the engine's package and installed at the end of the file of its backend.
"""

import functools

import torch

FIRST = 5  # sequences of the first fault's batch; with fewer nothing is planted


def without_sinks(call):
    call["sinks"] = None


def window_one_wider(call):
    call["window"] += 1


def window_one_narrower(call):
    call["window"] -= 1


def pages_of_another_sequence(call):
    call["pages"] = call["pages"].roll(1, 0)


def stale_page(call):
    """The second page of each sequence is still the one that its first page is."""
    call["pages"] = call["pages"].clone()
    call["pages"][:, 1] = call["pages"][:, 0]


def last_key_left_out(call):
    call["lengths"] = call["lengths"] - 1


def scores_not_scaled(call):
    call["scale"] = 1.0


def heads_by_remainder(call):
    """Query head h attends to head h % groups: its row is moved to where that head's rows lie, and back afterwards."""
    heads = range(call["q"].shape[1])
    order = sorted(heads, key=lambda head: head % call["groups"])
    out = call["out"].new_empty(call["out"].shape)
    q, sinks, held = call["q"], call["sinks"], call["out"]
    call.update(q=q[:, order].contiguous(), out=out, sinks=sinks[order].contiguous())
    call["after"] = lambda: held.__setitem__((slice(None), order), out)


def last_token_not_written(call):
    """Planted where new keys are written, see :func:`vllm`."""


PLANTED = {
    "sink left out": without_sinks,
    "window one key wider": window_one_wider,
    "window one key narrower": window_one_narrower,
    "pages of another sequence": pages_of_another_sequence,
    "stale page": stale_page,
    "last key left out": last_key_left_out,
    "scores not scaled": scores_not_scaled,
    "heads by remainder": heads_by_remainder,
    "last token not written": last_token_not_written,
}


def fault_of(sequences):
    number = sequences - FIRST
    return list(PLANTED.values())[number] if 0 <= number < len(PLANTED) else None


def vllm(module):
    """Into ``vllm.v1.attention.backends.triton_attn``."""
    original = module.unified_attention

    def unified_attention(**given):
        fault = fault_of(len(given["seqused_k"]))
        if fault is None:
            return original(**given)
        call = {
            **{name: given[name] for name in ("q", "out", "sinks")},
            "window": given["window_size"][0],
            "pages": given["block_table"],
            "lengths": given["seqused_k"],
            "scale": given["softmax_scale"],
            "groups": given["k"].shape[2],
            "after": lambda: None,
        }
        fault(call)
        changed = {name: call[name] for name in ("q", "out", "sinks")}
        changed |= {"window_size": (call["window"], 0), "block_table": call["pages"], "seqused_k": call["lengths"]}
        original(**{**given, **changed, "softmax_scale": call["scale"]})
        call["after"]()
        return None

    write = module.TritonAttentionImpl.do_kv_cache_update

    def do_kv_cache_update(impl, layer, key, value, cache, slots):
        if getattr(module, "last_batch", 0) == FIRST + list(PLANTED.values()).index(last_token_not_written):
            slots = slots.clone()
            slots[-1] = -1
        return write(impl, layer, key, value, cache, slots)

    build = module.TritonAttentionMetadataBuilder.build

    def remembered(builder, prefix, common, *rest, **named):
        module.last_batch = common.num_reqs
        return build(builder, prefix, common, *rest, **named)

    module.unified_attention = unified_attention
    module.TritonAttentionImpl.do_kv_cache_update = do_kv_cache_update
    module.TritonAttentionMetadataBuilder.build = remembered


def sglang(module):
    """Into ``sglang.srt.layers.attention.triton_backend``: the functions that the backend calls."""
    backend = module.TritonAttnBackend
    make = backend.__init__

    def __init__(self, runner, *rest, **named):
        make(self, runner, *rest, **named)
        self.decode_attention_fwd = functools.partial(_decode, self.decode_attention_fwd)
        self.extend_attention_fwd = functools.partial(_extend, self.extend_attention_fwd)

    backend.__init__ = __init__


def _decode(original, q, keys, values, out, starts, places, *rest, **named):
    _changed(original, [q, keys, values, out, starts, places, *rest], named, q=0, out=3, keys=1, at=4, scale=10)


def _extend(original, *given, **named):
    _changed(original, list(given), named, q=0, out=3, keys=4, at=7, scale=15)


def _changed(original, given, named, *, q, out, keys, at, scale):
    """Calls ``original`` with a fault; ``at`` is the argument of the starts, and behind it come the places."""
    fault = fault_of(len(given[at]) - 1)
    if fault is None:
        return original(*given, **named)
    starts = given[at].tolist()
    held = [given[at + 1][begin:end] for begin, end in zip(starts, starts[1:], strict=False)]
    call = {"q": given[q], "out": given[out], "sinks": named["sinks"], "window": named.get("sliding_window_size", -1)}
    call |= {"scale": given[scale], "groups": given[keys].shape[1], "after": lambda: None}
    if fault is pages_of_another_sequence:
        given[at + 1] = given[at + 1].roll(16)
    elif fault is stale_page:
        held = [torch.cat([part[:16], part[: len(part[16:32])], part[32:]]) for part in held]
        given[at + 1] = torch.cat(held)
    elif fault is last_key_left_out:
        held = [part[:-1] for part in held]
        given[at] = torch.tensor([0, *(len(part) for part in held)], dtype=given[at].dtype).cumsum(0).int()
        given[at + 1] = torch.cat(held)
    else:
        fault(call)
    given[q], given[out], given[scale], named["sinks"] = call["q"], call["out"], call["scale"], call["sinks"]
    if "sliding_window_size" in named:
        named["sliding_window_size"] = call["window"]
    original(*given, **named)
    call["after"]()
    return None
