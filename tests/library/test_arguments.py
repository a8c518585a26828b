"""Every argument of the library that a server can give is varied by a case of smoke and of gate, or left for a reason.

The signatures are read from the source of one copy of each known content; nothing of it is imported. A generation with
an argument that is not in the table fails here until somebody decides: a parameter of a check, or a reason.
"""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import pytest

from gpucheck.library.content import KNOWN, KnownContent
from gpucheck.library.library_option import LibraryCopy, parse_source, resolve
from gpucheck.model.errors import InfrastructureError
from gpucheck.plan.scenario import load

SCENARIOS = Path(__file__).parents[2] / "scenarios"
FILES = {  # file of the package -> its entry points
    "matmul_ogs.py": "matmul_ogs PrecisionConfig FlexCtx FnSpecs FusedActivation Epilogue "
    "GatherIndx ScatterIndx RoutingData",
    "matmul.py": "matmul PrecisionConfig FlexCtx FusedActivation Epilogue",
    "specialize.py": "FnSpecs",
    "routing.py": "routing routing_from_bitmatrix compute_expt_data GatherIndx ScatterIndx RoutingData",
    "topk.py": "topk",
    "swiglu.py": "swiglu PrecisionConfig FlexCtx",
    "numerics.py": "BaseFlexData InFlexData OutFlexData",
    "numerics_details/mxfp.py": "downcast_to_mxfp upcast_from_mxfp",
    "reduce.py": "reduce",
    "tensor.py": "SparseMatrix convert_layout wrap_torch_tensor",
    "tensor_details/layout.py": "make_default_matmul_mxfp4_w_layout make_default_matmul_mxfp4_w_scale_layout",
    "tensor_details/ragged_tensor.py": "make_ragged_tensor_metadata",
}

QUANTISED = "results in fp8 or an mx format: the servers that call this on NVIDIA GPUs take bf16 results"
MX_ACTIVATIONS = "mx activations need compute capability 10, where servers take kernels of other libraries"
TRAINING = "gradients, which no server computes"
OTHER_RANKS = "symmetric memory of several GPUs: no server asks this library for it"
UNREAD = "the library reads it nowhere"
PADDED = "rows that pad a batch: servers route them like others"
ONE_VALUE = "the library takes one value"
NVFP4 = "blocks of 16 with a scale of the tensor: the adapters offer blocks of 32"
UNUSED = "servers leave it out"

VARIED = {  # entry point: argument -> parameters of checks, of which cases have several values
    "product": {
        "x a": "matmul.m matmul.data matmul.operands",
        "w b": "matmul.weight matmul.layout matmul.operands",
        "bias": "matmul.bias",
        "routing_data a_ragged_metadata": "matmul.mode matmul.load matmul.sort",
        "gather_indx": "matmul.gather",
        "scatter_indx": "matmul.scatter matmul.elsewhere",
        "precision_config": "matmul.bare",
        "gammas": "matmul.gammas",
        "y c": "matmul.into",
        "fused_activation": "matmul.swiglu",
    },
    "product.PrecisionConfig": {
        "flex_ctx": "matmul.weight matmul.scales",
        "weight_scale b_mx_scale": "matmul.weight matmul.layout",
        "out_dtype": "matmul.out",
    },
    "product.FlexCtx": {"lhs_data": "matmul.weight", "rhs_data": "matmul.scales"},
    "FnSpecs": {"name fn fn_arg_names reduction_n": "matmul.swiglu"},
    "FusedActivation": {"specs reduction_n": "matmul.swiglu", "fn_args": "matmul.alpha matmul.limit"},
    "GatherIndx": {"src_indx dst_indx": "matmul.load matmul.elsewhere"},
    "ScatterIndx": {"src_indx dst_indx": "matmul.load matmul.elsewhere"},
    "RoutingData": {
        "gate_scal": "routing.dtype",
        "expt_hist expt_data": "matmul.load",
        "n_expts_tot": "matmul.experts",
        "n_expts_act": "matmul.top_k",
    },
    "routing": {"logits": "routing.m routing.dtype", "n_expts_act": "routing.top_k", "sm_first": "routing.softmax"},
    "routing_from_bitmatrix": {
        "bitmatrix expt_scal expt_indx": "matmul.elsewhere matmul.sort",
        "n_expts_tot": "matmul.experts",
        "n_expts_act": "matmul.top_k",
    },
    "compute_expt_data": {"expt_hist": "matmul.load", "n_expts_tot": "matmul.experts", "n_gates": "matmul.m"},
    "make_ragged_tensor_metadata": {"slice_sizes": "matmul.load matmul.experts", "n_total_rows": "matmul.m"},
    "SparseMatrix": {"indx vals mask": "matmul.elsewhere matmul.sort"},
    "topk": {"x": "topk.m topk.dtype", "k": "topk.top_k", "apply_softmax": "topk.softmax"},
    "swiglu": {"a": "swiglu.m swiglu.dtype", "alpha": "swiglu.alpha", "precision_config": "swiglu.limit"},
    "swiglu.PrecisionConfig": {"limit": "swiglu.limit"},
    "InFlexData": {"scale": "matmul.scales"},
    "downcast_to_mxfp": {
        "src_tensor x": "mxfp.dtype mxfp.rows",
        "out_quant_type out_dtype": "mxfp.format",
        "axis": "mxfp.axis",
    },
    "upcast_from_mxfp": {
        "tensor scale": "mxfp.format",
        "dtype target_dtype": "mxfp.dtype",
        "axis": "mxfp.axis",
    },
    "reduce": {"x": "matmul.scatter", "mask": "matmul.elsewhere", "y": "matmul.into"},
    "convert_layout": {"tensor layout layout_cls": "matmul.layout"},
    "wrap_torch_tensor": {"torch_tensor dtype shape shape_max layout": "matmul.weight matmul.layout"},
    "make_default_matmul_mxfp4_w_layout": {"mx_axis": "matmul.mode"},
    "make_default_matmul_mxfp4_w_scale_layout": {"mx_axis": "matmul.mode"},
}
LEFT = {  # entry point: arguments -> why no case varies them
    "product": {
        "betas": "a factor of the bias for each row: " + UNUSED,
        "out_alpha": "a factor of the whole result: " + UNUSED,
        "epilogue": QUANTISED,
        "fused_comm": OTHER_RANKS,
        "y_acc_in c_acc_in": TRAINING,
        "inner_routing_data b_ragged_metadata": TRAINING,
    },
    "product.PrecisionConfig": {
        "max_num_imprecise_acc": "shorter fp8 chains than the hardware's: " + UNUSED,
        "allow_tf32": "matters to fp32 operands alone, which servers do not multiply; cases ask for exact products",
        "acc_scale report_quantization_err_fn": UNREAD,
        "flexpoint_saturate_inf out_scale c_mx_scale c_microblock_size c_value_pack_factor": QUANTISED,
        "act_scale a_mx_scale a_microblock_size": MX_ACTIVATIONS,
        "a_mx_tensor_scale b_mx_tensor_scale b_microblock_size": NVFP4,
        "enforce_bitwise_invariance": "servers fix the order of sums by split_k = 1, as cases do",
        "intermediate_out_dtype": "of the parts of a split sum: " + UNUSED,
    },
    "product.FlexCtx": {"out_data": QUANTISED, "acc_data": TRAINING},
    "FnSpecs": {"fn_arg_do_not_specialize": UNUSED},
    "Epilogue": {"specs fn_arg_values_matmul fn_arg_values_finalize effective_itemsize": QUANTISED},
    "RoutingData": {"expected_tokens_per_expt": "an annotation of profiles"},
    "routing": {
        "expt_indx": "a server that chose by itself hands its choice to routing_from_bitmatrix",
        "simulated_ep": "a benchmark of this library; servers leave rows out by -1",
        "n_rows": PADDED,
    },
    "topk": {
        "dim return_bitmatrix": ONE_VALUE,
        "y_indx": "a server that chose by itself packs the choice by itself",
        "n_rows": PADDED,
        "all_gather symm_mem_pool": OTHER_RANKS,
    },
    "swiglu": {"routing_data": "servers take the fused activation in a routed product"},
    "swiglu.PrecisionConfig": {"flex_ctx": QUANTISED},
    "swiglu.FlexCtx": {"out_data inp_data saturate_inf": QUANTISED},
    "BaseFlexData": {"dtype": "operands have the dtype that they hold"},
    "OutFlexData": {"expected_scale actual_scale checksum_scale": QUANTISED},
    "downcast_to_mxfp": {
        "DEQUANT_SCALE_ROUNDING_MODE": "servers load quantised weights, and quantise with the default",
        "scale_dtype microblock_size": NVFP4,
    },
    "upcast_from_mxfp": {"tensor_scale": NVFP4},
    "reduce": {
        "dim": "rows of a token lie side by side",
        "scale x_global_scale x_mxscale x_flex y_dtype unpadded_batch_size": UNUSED,
        "y_flex y_flex_saturate_inf y_has_mx y_mx_scale_dtype y_microblock_size y_value_pack_factor": QUANTISED,
        "postprocess_fn1 postprocess_fn2": "an activation after a split sum, which the product sets itself",
    },
    "make_default_matmul_mxfp4_w_layout": {
        "allow_blackwell_value_shuffle block_k block_n": "a layout that needs compute capability 10: " + UNUSED
    },
    "make_default_matmul_mxfp4_w_scale_layout": {
        "num_warps": "the default, or what the adapter needs for narrow outputs"
    },
}


def names_of(table: dict[str, dict[str, str]], entry: str) -> dict[str, str]:
    """Argument -> what the table says of it."""
    return {name: said for names, said in table.get(entry, {}).items() for name in names.split()}


def signatures(package: Path) -> dict[str, list[str]]:
    """Entry point of the table -> its arguments in a copy of the library."""
    found: dict[str, list[str]] = {}
    for file, wanted in FILES.items():
        if not (package / file).is_file():
            continue
        for node in ast.parse((package / file).read_text(encoding="utf-8")).body:
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and node.name in wanted.split():
                found[entry_of(file, node.name)] = arguments(node)
    return found


def entry_of(file: str, name: str) -> str:
    if name in ("PrecisionConfig", "FlexCtx"):
        return f"{'swiglu' if file == 'swiglu.py' else 'product'}.{name}"
    return "product" if name in ("matmul", "matmul_ogs") else name


def arguments(node: ast.FunctionDef | ast.ClassDef) -> list[str]:
    """Of a function, or the fields of a dataclass."""
    if isinstance(node, ast.FunctionDef):
        given = node.args
        assert not given.vararg, "arguments without names"
        return [argument.arg for argument in (*given.posonlyargs, *given.args, *given.kwonlyargs)]
    fields = [statement.target for statement in node.body if isinstance(statement, ast.AnnAssign)]
    return [field.id for field in fields if isinstance(field, ast.Name)]


def undecided(found: dict[str, list[str]]) -> list[str]:
    """Arguments that the table does not have, in words."""
    return [
        f"{entry}({name})"
        for entry, names in found.items()
        for name in names
        if name not in names_of(VARIED, entry) and not names_of(LEFT, entry).get(name)
    ]


@pytest.fixture(scope="module", params=KNOWN, ids=lambda entry: entry.name)
def package(request: pytest.FixtureRequest) -> Path:
    entry: KnownContent = request.param
    try:
        copy: LibraryCopy = resolve(parse_source(f"wheel:{entry.example}"))
    except InfrastructureError as error:
        pytest.skip(f"{entry.example} is neither cached nor to be had: {error}")
    assert (copy.name, copy.generation) == (entry.name, entry.generation)
    return copy.package


def test_every_argument_of_a_generation_is_varied_or_left_for_a_reason(package: Path) -> None:
    found = signatures(package)
    everywhere = {"product", "product.PrecisionConfig", "product.FlexCtx", "FnSpecs", "Epilogue", "topk", "swiglu"}
    assert everywhere | {"downcast_to_mxfp", "upcast_from_mxfp", "InFlexData"} <= set(found)
    assert "routing" in found or {"make_ragged_tensor_metadata", "SparseMatrix"} <= set(found)
    assert undecided(found) == [], "give a check a parameter that varies it, or say in LEFT why no case does"


def test_a_new_argument_is_undecided(tmp_path: Path) -> None:
    (tmp_path / "matmul.py").write_text("def matmul(a, b, bias, *, c=None, swizzle_c=None): ...\n")
    (tmp_path / "topk.py").write_text("def topk(x, k, sorted=True): ...\n")
    config = "class PrecisionConfig:\n    limit: float\n    out_dtype: object = None\n"
    (tmp_path / "swiglu.py").write_text(config)
    assert undecided(signatures(tmp_path)) == [
        "product(swizzle_c)",
        "topk(sorted)",
        "swiglu.PrecisionConfig(out_dtype)",
    ]


@pytest.fixture(scope="module", params=["smoke", "gate"])
def values(request: pytest.FixtureRequest) -> dict[str, set[Any]]:
    """``check.parameter`` -> the values that cases of a scenario have."""
    made: dict[str, set[Any]] = {}
    for step in load(SCENARIOS / f"{request.param}.toml").steps:
        for name, value in (*step.case.params.items(), ("data", step.case.data)):
            made.setdefault(f"{step.case.check}.{name}", set()).add(value)
    return made


def test_what_the_table_calls_varied_has_several_values(values: dict[str, set[Any]]) -> None:
    named = {name for entry in VARIED.values() for said in entry.values() for name in said.split()}
    assert sorted(name for name in named if len(values.get(name, ())) < 2) == []
