"""Copies of many tensors tell which of them changed and where, and put them back, whatever they look like."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="needs torch")

from gpucheck.worker.device.tensor_copies import SMALL, Change, Copies, difference  # noqa: E402

FORMS: dict[str, Callable[[], Any]] = {
    "bytes": lambda: torch.arange(5, dtype=torch.uint8),
    "float8": lambda: torch.ones(3, 2).to(torch.float8_e4m3fn),
    "bool": lambda: torch.ones(3, 2, dtype=torch.bool),
    "double": lambda: torch.ones(2, 3, dtype=torch.float64),
    "complex": lambda: torch.ones(2, 3, dtype=torch.complex64),
    "scalar": lambda: torch.tensor(1.0),
    "transposed": lambda: torch.ones(3, 2).mT,
    "with gaps": lambda: torch.ones(4, 6)[:, 1:3],
    "repeated": lambda: torch.ones(1, 3).expand(2, 3),
    "large": lambda: torch.ones(SMALL // 4 + 1),
    "large, with gaps": lambda: torch.ones(2, SMALL)[:, ::2],
}


@pytest.mark.parametrize("form", FORMS)
def test_what_differs_is_found_among_others_and_alone(form: str) -> None:
    others, tensor = [torch.zeros(7, dtype=torch.uint8), torch.zeros(3, dtype=torch.int16)], FORMS[form]()
    for given in ([tensor], [others[0], tensor, others[1]]):
        copies, number = Copies(given), len(given) // 2
        assert copies.compare() == []
        before = tensor.clone()
        assert torch.equal(copies.copy(number), before)
        assert copies.copy(number).dtype == tensor.dtype
        tensor[(-1,) * tensor.ndim] = 0
        (comparison,) = copies.compare()
        assert bool(comparison.any)
        (change,) = comparison.changes()
        size = 2 if tensor.is_complex() else 1  # parts of an element
        count, last = (2, 2) if form == "repeated" else (1, size * (tensor.numel() - 1))
        shape = (*tensor.shape, 2) if tensor.is_complex() else tuple(tensor.shape)
        assert change == Change(number, count, last, shape)
        copies.restore()
        restored = bool((tensor == before).all())
        assert restored == (form not in ("with gaps", "repeated", "large, with gaps"))
        tensor.copy_(before) if form != "repeated" else tensor[0].fill_(1)


def test_several_changes_are_each_told_with_its_own_place() -> None:
    given = [torch.zeros(2, 3), torch.zeros(4, dtype=torch.int64), torch.zeros(5, dtype=torch.uint8)]
    copies = Copies(given)
    given[0][1, 1:] = 1
    given[2][3] = 1
    (comparison,) = copies.compare()
    assert comparison.changes() == [Change(0, 2, 4, (2, 3)), Change(2, 1, 3, (5,))]


def test_zeros_of_other_signs_differ_and_nan_equals_itself() -> None:
    before = torch.tensor([0.0, torch.nan, 1.0])
    assert not bool(difference(before, before.clone()).any)
    assert difference(before, torch.tensor([-0.0, torch.nan, 1.0])).changes() == [Change(0, 1, 0, (3,))]
    assert difference(torch.ones(2, 3).mT, torch.ones(3, 2)).changes() == []


def test_small_tensors_are_copied_and_compared_together(monkeypatch: pytest.MonkeyPatch) -> None:
    launches: list[str] = []
    from torch.utils._python_dispatch import TorchDispatchMode

    class Counting(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if not func.is_view:
                launches.append(str(func))
            return func(*args, **(kwargs or {}))

    given = [torch.zeros(size + 1) for size in range(40)]
    with Counting():
        copies = Copies(given)
        given[3][1] = 1
        copies.compare()
        copies.restore()
    assert len(launches) < 10, launches
    assert not any(bool(each.any()) for each in given)


@pytest.mark.parametrize("form", ["large", "bytes", "large, with gaps"])
def test_what_a_tensor_was_copied_from_stands_for_a_copy_only_where_it_holds_the_same(form: str) -> None:
    """A rank holds its largest inputs three times over otherwise."""
    original, tensor = FORMS[form](), FORMS[form]()
    copies = Copies([tensor], {0: original})
    own = copies._groups[0].before.data_ptr() != original.data_ptr()
    assert own == (form == "large, with gaps")
    tensor[(0,) * tensor.ndim] += 1
    (change,) = [change for comparison in copies.compare() for change in comparison.changes()]
    assert (change.elements, change.first) == (1, 0)
    changed = Copies([tensor], {0: original})  # as where what prepares a call writes to its operands
    assert not changed.compare() and changed._groups[0].before.data_ptr() != original.data_ptr()
