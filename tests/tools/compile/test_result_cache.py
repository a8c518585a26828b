from __future__ import annotations

from pathlib import Path

import pytest

from gpucheck.model.errors import InfrastructureError
from gpucheck.tools.compile import result_cache as storing
from gpucheck.tools.compile.outcome import Built, CaseBuilt, Combination, Result
from gpucheck.tools.compile.result_cache import ResultCache
from gpucheck.tools.compile.tritons import Triton
from gpucheck.triton_hooks.targets import TARGETS
from tests.tools.compile.conftest import make_case, make_kernel

WHERE = Combination("B", "3.6.0", "sm_90")


def filled() -> Result:
    kernels = [
        make_kernel("k1", config={"BLOCK": 64, "even": True}),
        make_kernel("k2", Built.FAILED),
        make_kernel("k3"),
    ]
    return Result(
        WHERE,
        cases={
            "swiglu/a": CaseBuilt("swiglu/a", Built.FAILED, launches=3, kernels=("k1", "k2")),
            "swiglu/b": CaseBuilt("swiglu/b", Built.NOT_REACHED, "why", "lib/host.py:1", 1, ("k3",)),
        },
        kernels={kernel.key: kernel for kernel in kernels},
    )


def test_results_come_back_as_they_were(cache: Path, triton: Triton) -> None:
    cache = ResultCache.of(triton, "f" * 64, TARGETS["sm_90"])
    a, b, new = make_case("swiglu/a"), make_case("swiglu/b"), make_case("swiglu/new")
    cache.save([a, b], filled())
    again = Result(WHERE)
    assert cache.load((a, b, new), again) == [new]
    assert again.cases == filled().cases and again.kernels == filled().kernels


def test_only_the_kernels_of_the_cases_asked_for_come_back(cache: Path, triton: Triton) -> None:
    cache = ResultCache.of(triton, "", TARGETS["sm_90"])
    cache.save([make_case("swiglu/a")], filled())
    cache.save([make_case("swiglu/b")], filled())  # adds to what is there
    again = Result(WHERE)
    assert cache.load((make_case("swiglu/b"),), again) == []
    assert list(again.kernels) == ["k3"]


def test_another_seed_is_another_case(cache: Path, triton: Triton) -> None:
    cache = ResultCache.of(triton, "", TARGETS["sm_90"])
    cache.save([make_case("swiglu/a")], filled())
    other = make_case("swiglu/a", seed=1)
    assert cache.load((other,), Result(WHERE)) == [other]


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"cases": {"swiglu/a seed 0": {}}, "kernels": {}}', '{"cases": 1}'])
def test_a_damaged_file_is_as_good_as_none(cache: Path, triton: Triton, damage: str) -> None:
    cache = ResultCache.of(triton, "", TARGETS["sm_90"])
    case = make_case("swiglu/a")
    cache.save([case], filled())
    cache.file.write_text(damage)
    assert cache.load((case,), Result(WHERE)) == [case]
    cache.save([case], filled())
    assert cache.load((case,), Result(WHERE)) == []


def test_whatever_may_change_a_result_has_a_file_of_its_own(
    cache: Path, triton: Triton, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {ResultCache.of(triton, "f" * 64, TARGETS["sm_90"]).file}
    files.add(ResultCache.of(triton, "e" * 64, TARGETS["sm_90"]).file)
    files.add(ResultCache.of(triton, "f" * 64, TARGETS["sm_80"]).file)
    before = ResultCache.of(triton, "f" * 64, TARGETS["sm_90"]).kernels
    (triton.package / "more.py").write_text("x = 1\n")
    rebuilt = ResultCache.of(triton, "f" * 64, TARGETS["sm_90"])
    files.add(rebuilt.file)
    monkeypatch.setattr(storing, "AMD_LINKERS", [__file__])  # one that exists
    files.add(ResultCache.of(triton, "f" * 64, TARGETS["sm_90"]).file)
    assert len(files) == 5 and rebuilt.kernels != before
    assert all(cache in file.parents for file in files)


def test_a_cache_that_cannot_be_written_says_so(cache: Path, triton: Triton) -> None:
    cache.mkdir()
    (cache / "compile").write_text("in the way")
    with pytest.raises(InfrastructureError, match="cannot write the cache"):
        ResultCache.of(triton, "", TARGETS["sm_90"]).save([make_case("swiglu/a")], filled())
