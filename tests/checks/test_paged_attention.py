"""``paged_attention``: what leaks from its cache shows, and it is what it claims; see ``test_kernels.py`` too."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from gpucheck.checks.paged_attention import PagedAttention
from tests.checks.conftest import CheckRunner, Twin

CHECK = PagedAttention()
GROUPED: dict[str, Any] = {"q_heads": 4, "kv_heads": 2}


@pytest.mark.parametrize(
    ("right", "wrong"),
    [("seen = keys < length", "seen = keys <= length"), ("mask=seen[:, None]", "mask=(keys < length + PAGE)[:, None]")],
)
def test_nan_beyond_a_sequence_leaks_into_its_output(right: str, wrong: str, runner: CheckRunner, twin: Twin) -> None:
    """A weight of zero does not undo the NaN it is multiplied with."""
    from gpucheck.checks.kernels import paged_attention_kernel as paged_attention

    twin(paged_attention, right, wrong)
    found = runner.run(CHECK, runner.case(CHECK, "normal", {})).mismatches["o"]
    assert found.nan == found.wrong == found.total and found.first_nonfinite == [0, 0, 0]


def test_cache_is_what_a_server_makes_of_it(runner: CheckRunner) -> None:
    case = runner.case(CHECK, "normal", {"batch": 8, "k_len": 100, "page": 16})
    inputs = runner.inputs(CHECK, case)
    lengths, table = inputs["lengths"].tolist(), inputs["table"]
    assert lengths[:5] == [100, 1, 96, 97, 0]
    owned = [table[row, : -(-length // 16)].tolist() for row, length in enumerate(lengths)]
    pages = [page for row in owned for page in row]
    assert len(set(pages)) == len(pages) and pages != sorted(pages)
    cache = inputs["k_cache"]
    assert len(cache) == len(pages) + 2
    free = sorted(set(range(len(cache))) - set(pages))
    assert free == [0, len(cache) - 1] and cache[free].isnan().all()
    assert {page for row, length in enumerate(lengths) for page in table[row, -(-length // 16) :].tolist()} <= {*free}
    assert not cache[owned[3][-1]][:1].isnan().any() and cache[owned[3][-1]][1:].isnan().all()


def test_reference_agrees_with_sdpa(runner: CheckRunner) -> None:
    case = runner.case(CHECK, "normal", {**GROUPED, "batch": 5, "k_len": 70})
    inputs = runner.inputs(CHECK, case)
    value = CHECK.reference(case, inputs)["o"].estimate.value
    for row, length in enumerate(inputs["lengths"].tolist()):
        keys = [divmod(key, 16) for key in range(length)]
        places = [(int(inputs["table"][row, page]), slot) for page, slot in keys]
        k, v = (
            torch.stack([inputs[name][place] for place in places]).double().repeat_interleave(2, 1).transpose(0, 1)
            if places
            else torch.zeros(4, 0, 64).double()
            for name in ("k_cache", "v_cache")
        )
        q = inputs["q"][row].double()[:, None]
        wanted = torch.nn.functional.scaled_dot_product_attention(q, k, v)[:, 0] if places else torch.zeros(4, 64)
        torch.testing.assert_close(value[row], wanted.double(), rtol=1e-12, atol=1e-12)


@pytest.mark.usefixtures("interpreter")
def test_wrapper_refuses_arguments_that_do_not_fit() -> None:
    from gpucheck.checks.kernels.paged_attention_kernel import paged_attention

    q, cache = torch.zeros(2, 4, 64), torch.zeros(3, 16, 2, 64)
    table, lengths = torch.zeros(2, 1, dtype=torch.int32), torch.zeros(2, dtype=torch.int32)
    with pytest.raises(ValueError, match="do not fit together"):
        paged_attention(q, cache[..., :32], cache[..., :32], table, lengths)
    with pytest.raises(ValueError, match="must share their dtype"):
        paged_attention(q, cache.half(), cache.half(), table, lengths)
    with pytest.raises(ValueError, match="a row for each of the 2 sequences"):
        paged_attention(q, cache, cache, table[:1], lengths)
    assert paged_attention(q[:0], cache, cache, table[:0], lengths[:0]).shape == (0, 4, 64)
