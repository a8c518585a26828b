"""A small gpt-oss by the models of engines: right as they are, and planted faults named by step, layer and operation.

``make engines`` plants all of them, other runs of the tests some of transformers.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from gpucheck.checks import installed
from tests.end_to_end.planted_models import FIRST, Fault, plant, scenario
from tests.end_to_end.test_engines import EVERY, FURTHER, fetched

if TYPE_CHECKING:
    from tests.end_to_end.conftest import Lab

SIZES = """optional = true
layers = 2
batch = 1
prompt = 3
tokens = 4
heads = 2
kv_heads = 1
window = 2
experts = 8
"""
NOTHING: dict[str, str] = {}
FIRST_STEP, FIRST_TURN = "step 0, layer 0, ", "step 1, layer 0, "  # rope turns nothing at step 0

MODEL, MXFP4, ROPE = "models/gpt_oss/modeling_gpt_oss.py", "integrations/mxfp4.py", "modeling_rope_utils.py"
NORM = "torch.rsqrt(variance + self.variance_epsilon)"
UPDATE = "past_key_values.update(key_states, value_states, self.layer_idx)"
LOST = "past_key_values.update(*(part * (part.shape[2] > 1) for part in (key_states, value_states)), self.layer_idx)"
LINEAR = "nn.functional.linear(hidden_states, self.router.weight, self.router.bias)"
ROUTING = "routing(router_logits, self.router.top_k)"
PADDING = "config.pad_token_id"  # None, as the edit in its place is
TRANSFORMERS = [
    Fault("window in odd layers", MODEL, PADDING, "config.layer_types.reverse()", "step 2, layer 0, attention"),
    Fault("rope of another base", ROPE, 'rope_parameters_dict["rope_theta"]', "10_000.0", FIRST_TURN + "rope", nth=3),
    Fault("rope of pairs", MODEL, "torch.chunk(x, 2, dim=-1)", "(x[..., ::2], x[..., 1::2])", FIRST_STEP + "rope"),
    Fault("keys of a step lost", MODEL, UPDATE, LOST, "step 3, layer 0, attention"),
    Fault("epsilon left out", MODEL, NORM, "torch.rsqrt(variance)", FIRST_STEP + "attention norm"),
    Fault("norm without weight", MODEL, "(self.weight * hidden_states)", "hidden_states", "layer 0, attention norm"),
    Fault("not renormalised", MXFP4, ROUTING, ROUTING.replace(")", ", sm_first=True)"), FIRST_STEP + "experts"),
    Fault("sinks ignored", MODEL, "module.sinks", "(module.sinks - 1e4)", FIRST_STEP + "attention"),
    Fault("residual left out", MODEL, "residual + hidden_states", "hidden_states", "layer 0, attention residual"),
    Fault("router without bias", MXFP4, LINEAR, LINEAR.replace("self.router.bias", "None"), FIRST_STEP + "router"),
]

VLLM_MODEL, LAYERS = "model_executor/models/gpt_oss.py", "model_executor/layers/"
TRITON = "v1/attention/backends/triton_attn.py"
EXPERTS = LAYERS + "fused_moe/experts/gpt_oss_triton_kernels_moe.py"
RMS = "RMSNorm(config.hidden_size, eps=1e-5)"
ADDED = "self.post_attention_layernorm(hidden_states, residual)"
SLOTS = "slot_mapping.get(layer_name)"
VLLM = [
    Fault("rope of another base", VLLM_MODEL, 'config.rope_parameters["rope_theta"]', "10_000.0", FIRST_TURN + "rope"),
    Fault("rope of pairs", VLLM_MODEL, "self.rope_is_neox_style", "False", FIRST_TURN + "rope"),
    Fault("epsilon left out", VLLM_MODEL, RMS, RMS.replace("1e-5", "0.0"), FIRST_STEP + "attention norm"),
    Fault("norm without weight", VLLM_MODEL, RMS, RMS.replace(")", ", has_weight=False)"), "expert norm", nth=1),
    Fault("window in odd layers", VLLM_MODEL, "self.layer_idx % 2 == 0", "self.layer_idx % 2", "2, layer 0, attention"),
    Fault("sinks ignored", TRITON, "self.sinks", "None", FIRST_STEP + "attention", nth=1),
    Fault("residual left out", VLLM_MODEL, ADDED, f"{ADDED[:-11]}, 0 * residual)", "layer 0, attention residual"),
    Fault(
        "router without bias", LAYERS + "linear.py", "self.bias if not self.skip_bias_add else None", "None", "router"
    ),
    Fault("not renormalised", EXPERTS, "not renormalize", "renormalize", FIRST_STEP + "experts"),
    Fault(
        "keys of a step not written",
        LAYERS + "attention/attention.py",
        SLOTS,
        f"(lambda held: held * 0 - 1 if held.numel() == 1 else held)({SLOTS})",
        "step 3, layer 0, attention",
    ),
]

SGLANG_MODEL, SRT = "srt/models/gpt_oss.py", "srt/layers/"
BACKEND = SRT + "attention/triton_backend.py"
FIRST_RMS = "RMSNorm(config.hidden_size, eps=config.rms_norm_eps)"
LOC = "forward_batch.out_cache_loc"
SGLANG = [
    Fault("rope of another base", SGLANG_MODEL, 'config.rope_parameters["rope_theta"]', "10_000", FIRST_TURN + "rope"),
    Fault("rope of pairs", SRT + "rotary_embedding/base.py", "self.is_neox_style", "False", FIRST_TURN + "rope", nth=1),
    Fault(
        "epsilon left out", SGLANG_MODEL, FIRST_RMS, FIRST_RMS.replace("config.rms_norm_eps", "0.0"), "attention norm"
    ),
    Fault("norm without weight", SGLANG_MODEL, FIRST_RMS, FIRST_RMS[:-1] + ", has_weight=False)", "final norm", nth=1),
    Fault("sinks ignored", SGLANG_MODEL, "self.sinks", "None", FIRST_STEP + "attention", nth=1),
    Fault("residual left out", SRT + "layernorm.py", "residual.to(torch.float32)", "0", "layer 0, attention residual"),
    Fault("router without bias", SRT + "linear.py", "self.bias if not self.skip_bias_add else None", "None", "router"),
    Fault("not renormalised", SRT + "moe/topk.py", "not self.topk_config.renormalize", "True", FIRST_STEP + "experts"),
    Fault("keys of a step not written", BACKEND, LOC, f"(0 * {LOC})", "step 3, layer 0, attention", nth=10),
]
SLIDING = [
    Fault(
        "window in odd layers", SGLANG_MODEL, 'layer_type == "sliding_attention"', "(layer_type[0] == 'f')", "attention"
    )
]
CURE = [
    Fault(
        "window as for prompts",
        BACKEND,
        "torch.tensor(sliding_window_size)",
        "torch.tensor(sliding_window_size + 1)",
        "",
    )
]
needs_transformers = pytest.mark.skipif(not installed("transformers_model"), reason="needs transformers with gpt-oss")


def check_faults(
    lab: Lab,
    folder: Path,
    check: str,
    sizes: str,
    faults: list[Fault],
    *options: str,
    changed: dict[str, str] = NOTHING,
) -> None:
    """Runs the model without a fault and with each, and reads the report; ``changed`` are parts of SIZES."""
    sizes = SIZES + sizes
    for old, new in changed.items():
        sizes = sizes.replace(old, new)
    path = scenario(folder / "scenario.toml", check, sizes, faults)
    library = {"library": None} if options else {"path": folder}
    finished = lab.forked(*options, scenario=path, nproc=1, **library)
    assert finished.code == 1, finished.text
    assert finished.outcomes(f"v{FIRST - 1}") == ["pass"], finished.text
    for number, fault in enumerate(faults):
        assert finished.outcomes(f"v{FIRST + number}") == ["mismatch"], (fault.name, finished.text)
        first, _, further = finished.lines(f"v{FIRST + number}").splitlines()[0].partition(";")
        first, _, why = first.partition(" (")
        assert first.startswith("first wrong at ") and first.endswith(fault.where), (fault.name, first)
        assert not first.endswith("experts") or "a softmax over all experts, not over those chosen" in why, (
            why,
            further,
        )


@needs_transformers
def test_each_fault_in_the_model_of_transformers_is_named(lab: Lab, tmp_path: Path) -> None:
    spec = importlib.util.find_spec("transformers")
    assert spec and spec.submodule_search_locations
    faults = TRANSFORMERS if EVERY else TRANSFORMERS[:3]
    plant(Path(spec.submodule_search_locations[0]), tmp_path, MODEL, faults)
    check_faults(lab, tmp_path, "transformers_model", "hidden = 64\nintermediate = 32\n", faults)


@FURTHER
def test_each_fault_in_the_model_of_vllm_is_named(lab: Lab, tmp_path: Path) -> None:
    root = fetched("vllm", "0.33.0").root
    plant(root / "vllm", tmp_path / "engine", VLLM_MODEL, VLLM)
    sizes = "hidden = 256\nintermediate = 128\n"
    check_faults(lab, tmp_path, "vllm_model", sizes, VLLM, "--engine", f"path:{tmp_path / 'engine'}")


@FURTHER
def test_each_fault_in_the_model_of_sglang_is_named(lab: Lab, tmp_path: Path) -> None:
    """Its Triton attention sees one key less when it decodes, so the windows here are larger than texts or prompts."""
    root = fetched("sglang", "0.5.19").root
    sizes = "hidden = 256\nintermediate = 128\n"
    for name, faults, longer in (
        ("engine", SGLANG, {"window = 2": "window = 8"}),
        ("sliding", SLIDING, {"3\n": "4\n"}),
    ):
        folder = tmp_path / name
        plant(root / "sglang", folder, SGLANG_MODEL, faults)
        check_faults(lab, folder, "sglang_model", sizes, faults, "--engine", f"path:{folder}", changed=longer)


@FURTHER
def test_sglangs_triton_attention_sees_one_key_less_when_it_decodes(lab: Lab, tmp_path: Path) -> None:
    """Of a window of W keys a token of a prompt sees W and a decoded one W - 1, as released; with the cure, W."""
    plant(fetched("sglang", "0.5.19").root / "sglang", tmp_path, SGLANG_MODEL, CURE)
    path = scenario(tmp_path / "scenario.toml", "sglang_model", SIZES + "hidden = 256\nintermediate = 128\n", CURE)
    finished = lab.finish("--engine", f"path:{tmp_path}", scenario=path, nproc=1, library=None)
    assert finished.code == 1 and finished.outcomes(f"v{FIRST}") == ["pass"], finished.text
    assert finished.lines(f"v{FIRST - 1}").startswith("first wrong at step 3, layer 0, attention;")
    assert [known["id"] for known in finished.finding(f"v{FIRST - 1}")["known"]] == ["sglang-decode-window"]
