"""Engines' own Triton kernels: right in each release, and faults planted around and in them are told by their layer."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from gpucheck.tools.selftest.injection import write_scenario
from tests.end_to_end import test_engine_attention as attention
from tests.end_to_end.test_engine_faults import plant, planted_engine, rewrite
from tests.end_to_end.test_engines import EVERY, FURTHER, fetched

if TYPE_CHECKING:
    from tests.end_to_end.conftest import Finished, Lab

DATA = Path(__file__).parents[1] / "data"
LAYERS = "vllm/model_executor/layers"
FUSED_MOE = f"{LAYERS}/fused_moe/fused_moe.py"
FP8 = f"{LAYERS}/quantization/utils/fp8_utils.py"
FILES = {
    f"{LAYERS}/fused_moe/router/fused_topk_router.py": "install_router",
    f"{LAYERS}/fused_moe/expert_map_manager.py": "install_map",
    f"{LAYERS}/fused_moe/routed_experts.py": "install_loader",
    f"{LAYERS}/fused_moe/experts/triton_moe.py": "install_layer",
    FUSED_MOE: "install_experts",
    FP8: "install_fp8",
}
LOOP = "for k in range(0, tl.cdiv(K, BLOCK_SIZE_K)):"
SHORTER = "for k in range(0, tl.cdiv(K, BLOCK_SIZE_K) - (K == 200) - (K == 136) - (K == 256)):"  # of both kernels
EXPERTS = {  # by number of experts: what the report says of the fault
    9: "router: its weights are not renormalised",
    10: "router: its weights go to other experts of the token",
    11: "router: its weights are all one",
    13: "loader: gate and up are exchanged",
    14: "loader: gate and up as halves are in turn",
    15: "loader: weights of up and down are those of the expert after",
    16: "loader: weights of down are those of the expert before",
    17: "reduce: the expert chosen last is left out",
    36: "alignment: a block of rows gets the expert of the block after",
    19: "activation: gelu in place of silu",
}
LAYER = {  # by number of experts, of the layer with its loader
    9: "router: its weights are not renormalised",
    20: "loader: gate and up are exchanged",
    21: "loader: columns of down are shifted by one",
    22: "activation: gelu in place of silu",
    46: "alignment: a block of rows gets the expert of the block after",
    24: "reduce: the expert chosen last is left out",
}
TOKENS = {  # by number of tokens, of the product in fp8
    3: "quantisation: a scale is of the largest value, not of the largest magnitude",
    4: "quantisation: the scales are right and the values are not",
    5: "product: rows and columns of the weight's scales are exchanged",
    6: "product: a block of the weight has the scale of that after along n",
    7: "product: a block of the weight has the scale of that after along k",
    8: "product: a group of a token has the scale of that before",
    9: "product: scales of the weight are not applied",
}
FAULTY = {
    "vllm_fused_moe/functions/m24-h96-i64-e12-top2-held-linear/normal": "expert map: the experts of the other rank",
    "vllm_fused_moe/functions/m24-h200-i64-e8-top2/normal": "first product: the last 72 terms are left out",
    "vllm_fused_moe/functions/m24-h96-i136-e8-top2/exact": "second product: the last 8 terms are left out",
    **{f"vllm_fused_moe/functions/m24-h96-i64-e{experts}-top2/normal": words for experts, words in EXPERTS.items()},
    **{f"vllm_fused_moe/layer/m24-h96-i64-e{experts}-top2/normal": words for experts, words in LAYER.items()},
    "vllm_fp8_matmul/strided/m16-n384-k256/exact": "product: the last 128 terms are left out",
    **{f"vllm_fp8_matmul/strided/m{m}-n384-k384/normal": words for m, words in TOKENS.items()},
}
OFTEN = (  # one of each layer; make engines plants all
    "functions/m24-h96-i64-e10-",
    "functions/m24-h96-i64-e13-",
    "functions/m24-h96-i64-e17-",
    "functions/m24-h96-i64-e19-",
    "functions/m24-h96-i64-e36-",
    "functions/m24-h96-i64-e12-",
    "functions/m24-h96-i136-e8-",
    "layer/m24-h96-i64-e20-",
    "layer/m24-h96-i64-e22-",
    "strided/m16-n384-k256/",
    "strided/m3-",
    "strided/m5-",
)
RIGHT = [
    "vllm_fused_moe/layer/m24-h96-i64-e8-top2/normal",
    "vllm_fused_moe/functions/m24-h96-i64-e8-top2/exact",
    "vllm_fused_moe/functions/m24-h96-i64-e8-top2/normal",
    "vllm_fp8_matmul/strided/m16-n384-k384/exact",
    "vllm_fp8_matmul/strided/m16-n384-k384/normal",
    "moe/mxfp4/m4-h256-i128-e4-top2/normal",
]
VLLM = ("fused_moe_kernel", "_w8a8_triton_block_scaled_mm", "_per_token_group_quant_fp8")
RELEASES = {  # the kernels that are launched
    **{("vllm", version): VLLM for version in ("0.12.0", "0.16.0", "0.20.0", "0.25.1", "0.26.0", "0.30.0", "0.33.0")},
    **{("sglang", version): ("fused_moe_kernel",) for version in ("0.5.12", "0.5.18", "0.5.19", "0.5.23")},
}
OTHER_LIBRARY = {"0.5.23": "wheel:sglang-kernel==0.4.6.post1"}  # its own asks for another Triton; this path calls none


@pytest.fixture(scope="module")
def planted(lab: Lab) -> Finished:
    """A run of vLLM with faults around and in its kernels of experts, of fp8 and of attention."""
    folder = lab.new_folder()
    engine = planted_engine(fetched("vllm", "0.33.0").root, folder / "engine")
    plant(folder / "engine", DATA / "planted_vllm_kernels.py", FILES)
    plant(folder / "engine", attention.PLANTS, {attention.BACKENDS["vllm"]: "vllm"})
    for file in (FUSED_MOE, FP8):
        text = (folder / "engine" / file).read_text(encoding="utf-8")
        assert LOOP in text
        rewrite(folder / "engine" / file, text.replace(LOOP, SHORTER))
    scenario = folder / "scenario.toml"
    write_scenario(scenario, attention.faulty("vllm"))
    scenario.write_text((DATA / "planted_kernels.toml").read_text() + scenario.read_text())
    cases = () if EVERY else (*OFTEN, *RIGHT, "vllm_attention/")
    finished: Finished = lab.forked("--engine", engine, scenario=scenario, nproc=1, library=None, cases=cases)
    assert finished.code == 1, finished.text
    return finished


def test_each_fault_around_vllms_own_kernels_is_told_by_its_layer_and_all_else_stays_right(planted: Finished) -> None:
    results = {case: record for case, record in planted.results(0).items() if "_attention/" not in case}
    faulty = {case: words for case, words in FAULTY.items() if EVERY or any(part in case for part in OFTEN)}
    assert len(faulty) == len(FAULTY if EVERY else OFTEN)
    assert sorted(results) == sorted([*faulty, *RIGHT])
    assert [case for case, record in results.items() if record["outcome"] == "pass"] == [
        case for case in results if case in RIGHT
    ]
    for case, words in faulty.items():
        assert results[case]["outcome"] == "mismatch" and words in results[case]["message"], (case, results[case])
    assert "launched with default values: no tuned file for this GPU" in planted.text
    part = results[RIGHT[0]]["engine"]
    assert (part["depth"], part["backend"]) == ("module", "TRITON TritonExperts")
    assert "default, there is no E=8,N=64" in part["configuration"] and "BLOCK_SIZE_M 16" in part["configuration"]
    assert any("moe_align_block_size" in words for words in part["stand_ins"])


def test_each_fault_of_vllms_attention_is_caught_with_its_layer(planted: Finished) -> None:
    attention.check_faults("vllm", planted.results(0))


@FURTHER
@pytest.mark.parametrize("release", RELEASES, ids=["==".join(release) for release in RELEASES])
def test_the_own_kernels_of_each_known_release_are_right(lab: Lab, release: tuple[str, str]) -> None:
    copy = fetched(*release)
    finished = lab.finish(
        "--engine",
        f"{copy.name}=={copy.version}",
        scenario=DATA / "engine_kernels.toml",
        nproc=1,
        library=OTHER_LIBRARY.get(copy.version),
    )
    assert finished.code == 0, finished.text
    launched = {launch["kernel"] for record in finished.results(0).values() for launch in record["launches"]}
    assert launched >= {*RELEASES[release]}
