from __future__ import annotations

import pytest

from gpucheck import checks
from gpucheck.model.product import Product


@pytest.mark.parametrize(
    ("check", "params", "names"),
    [
        (
            "vllm_moe",
            {"hidden": 2880, "intermediate": 1440, "experts": 32},
            ["mxfp4 default k2880-n2880-e32", "mxfp4 default k1440-n2880-e32"],
        ),
        (
            "moe",
            {"layout": "default", "hidden": 2880, "intermediate": 2880, "experts": 32},
            ["mxfp4 default k2880-n5760-e32", "mxfp4 default k2880-n2880-e32"],
        ),
        ("moe", {"weight": "bf16"}, ["bf16 strided k64-n128-e8", "bf16 strided k64-n64-e8"]),
        (
            "matmul",
            {"mode": "routed", "weight": "mxfp4", "layout": "default", "k": 2880, "n": 5760, "experts": 32, "top_k": 4},
            ["mxfp4 default k2880-n5760-e32"],
        ),
        ("matmul", {"mode": "batched", "weight": "mxfp4", "k": 400, "batch": 8}, ["mxfp4 strided batched k400-n64-b8"]),
        ("matmul", {"weight": "fp8_e4m3"}, ["fp8_e4m3 strided dense k64-n64"]),
        ("transformers_moe", {}, []),
        ("topk", {}, []),
    ],
)
def test_checks_call_equal_products_by_one_name(check: str, params: dict[str, object], names: list[str]) -> None:
    """A caller that is no engine has none: its own fault is not the library's."""
    made = checks.load(check)
    assert [*made.twins(made.spec.case(params, made.spec.data_kinds[0], 0))] == names
    read = [Product.parse(name) for name in names]
    assert [product.name for product in read if product] == names


def test_what_is_no_name_is_no_product() -> None:
    for name in (
        "",
        "mxfp4 default",
        "mxfp4 default k1-n2-x3",
        "mxfp4 default sparse k1-n2-e3",
        "a mxfp4 default k1-n2-e3",
    ):
        assert Product.parse(name) is None, name
