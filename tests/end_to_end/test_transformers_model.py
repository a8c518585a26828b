"""A small gpt-oss by transformers' own model: right as it is, and each planted fault named by layer and operation."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from gpucheck.checks import installed
from tests.end_to_end.conftest import Lab
from tests.end_to_end.planted_models import FIRST, Fault, plant, scenario

MODEL, MXFP4, ROPE = "models/gpt_oss/modeling_gpt_oss.py", "integrations/mxfp4.py", "modeling_rope_utils.py"
SIZES = """layers = 2
batch = 1
prompt = 3
tokens = 4
hidden = 64
heads = 2
kv_heads = 1
window = 2
experts = 8
intermediate = 32
"""
BASE = 'rope_parameters_dict["rope_theta"]'
NORM = "torch.rsqrt(variance + self.variance_epsilon)"
UPDATE = "past_key_values.update(key_states, value_states, self.layer_idx)"
LOST = "past_key_values.update(*(part * (part.shape[2] > 1) for part in (key_states, value_states)), self.layer_idx)"
LINEAR = "nn.functional.linear(hidden_states, self.router.weight, self.router.bias)"
ROUTING = "routing(router_logits, self.router.top_k)"
PADDING = "config.pad_token_id"  # None, as the other is
FAULTS = [
    Fault("rope of another base", ROPE, BASE, "10_000.0", "step 1, layer 0, rope", nth=3),
    Fault("rope of pairs", MODEL, "torch.chunk(x, 2, dim=-1)", "(x[..., ::2], x[..., 1::2])", "step 0, layer 0, rope"),
    Fault("epsilon left out", MODEL, NORM, "torch.rsqrt(variance)", "step 0, layer 0, attention norm"),
    Fault("norm without weight", MODEL, "(self.weight * hidden_states)", "hidden_states", "layer 0, attention norm"),
    Fault("window in odd layers", MODEL, PADDING, "config.layer_types.reverse()", "step 2, layer 0, attention"),
    Fault("sinks ignored", MODEL, "module.sinks", "(module.sinks - 1e4)", "step 0, layer 0, attention"),
    Fault("residual left out", MODEL, "residual + hidden_states", "hidden_states", "layer 0, attention residual"),
    Fault("router without bias", MXFP4, LINEAR, LINEAR.replace("self.router.bias", "None"), "layer 0, router"),
    Fault("not renormalised", MXFP4, ROUTING, ROUTING.replace(")", ", sm_first=True)"), "step 0, layer 0, experts"),
    Fault("keys of a step lost", MODEL, UPDATE, LOST, "step 3, layer 0, attention"),
]
needs_transformers = pytest.mark.skipif(not installed("transformers_model"), reason="needs transformers with gpt-oss")


@needs_transformers
def test_each_fault_of_the_model_is_named_by_step_layer_and_operation(lab: Lab, tmp_path: Path) -> None:
    spec = importlib.util.find_spec("transformers")
    assert spec and spec.submodule_search_locations
    plant(Path(spec.submodule_search_locations[0]), tmp_path, MODEL, FAULTS)
    path = scenario(tmp_path / "scenario.toml", "transformers_model", SIZES, FAULTS)
    finished = lab.finish(scenario=path, nproc=1, path=tmp_path)
    assert finished.code == 1, finished.text
    assert finished.outcomes(f"v{FIRST - 1}") == ["pass"], finished.text
    for number, fault in enumerate(FAULTS):
        assert finished.outcomes(f"v{FIRST + number}") == ["mismatch"], (fault.name, finished.text)
        first = finished.lines(f"v{FIRST + number}").splitlines()[0]
        assert fault.where in first.partition(";")[0], (fault.name, first)
