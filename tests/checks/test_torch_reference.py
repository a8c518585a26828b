"""References of large problems: made in parts, with the bounds that they have as a whole, and few passes over data."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from gpucheck.checks import torch_reference
from gpucheck.checks.torch_model import draw, sizes
from gpucheck.checks.torch_reference import Inseparable, Reference
from gpucheck.verify import bounds, judge, recurrent_noise, sampled_bounds
from gpucheck.verify.expected import Expected
from gpucheck.verify.views import PIECE

EXTENT = 70  # of both axes, so that they are told apart by what depends on them alone


class Stub(nn.Module):
    """What ``forward`` does is handed in, the arguments are a square matrix or two."""

    compute: Any = None
    seen: list[int]

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(EXTENT, EXTENT))

    def forward(self, *inputs: Any) -> Any:
        self.seen.append(inputs[0].numel())
        return type(self).compute(self, *inputs)


def module_of(compute: Any, *, inputs: int = 1, extent: int = EXTENT) -> tuple[Any, list[int]]:
    """A problem, and a list of how many numbers each call of its model is given."""
    seen: list[int] = []
    model = type("Model", (Stub,), {"compute": staticmethod(compute), "seen": seen})

    def given() -> list[torch.Tensor]:
        return [torch.randn(extent, extent) for _ in range(inputs)]

    return SimpleNamespace(Model=model, get_inputs=given, get_init_inputs=list), seen


def reference(module: Any) -> dict[str, Expected]:
    return Reference(module, draw(module, 5), 5).expected(None, "derived")


@pytest.fixture
def in_parts(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Lets small problems count as large ones; the names of inputs that were cut, once a way that worked."""
    worked: list[str] = []
    original = Reference._in_parts

    def noted(self: Any, values: Any, generator: Any, axis: int, names: Any, size: int) -> Any:
        found = original(self, values, generator, axis, names, size)
        worked.append(f"axis {axis} of {', '.join(names)}")
        return found

    monkeypatch.setattr(Reference, "_in_parts", noted)
    monkeypatch.setitem(torch_reference.MANY, "cpu", 1000)
    monkeypatch.setitem(torch_reference.PART, "cpu", 1500)
    return worked


def in_place(self: Any, x: Any) -> Any:
    self.weight.mul_(2)
    return x @ self.weight


@pytest.mark.parametrize(
    ("compute", "inputs", "way"),
    [
        (lambda self, x: 2.0 * x + 1.0, 1, "axis 0 of input0"),
        (lambda self, x, y: F.gelu(x * y) - y.tanh(), 2, "axis 0 of input0, input1"),
        (lambda self, x, y: x @ y, 2, "axis 0 of input0"),
        (lambda self, x, y: x.T @ y, 2, "axis 1 of input1"),
        (lambda self, x: F.layer_norm(x @ self.weight, (EXTENT,)), 1, "axis 0 of input0"),
        (lambda self, x: torch.softmax(x, 0), 1, "axis 1 of input0"),
        (lambda self, x: (x.sum(1), x * 3), 1, "axis 0 of input0"),
        (lambda self, x: x.masked_fill(x > 1, -torch.inf) / 3, 1, "axis 0 of input0"),
        (lambda self, x: x.relu_() * 3, 1, "axis 0 of input0"),
        (lambda self, x: F.mse_loss(x, self.weight), 1, None),
        (lambda self, x: torch.softmax(x, 0).cumsum(1), 1, None),
        (lambda self, x: x.flip(0, 1) / 3, 1, None),
        (lambda self, x: x / 3 + torch.arange(EXTENT) + torch.arange(EXTENT)[:, None], 1, None),
        (in_place, 1, None),
        (lambda self, x, y: x @ y.mul_(2), 2, None),
    ],
)
def test_a_large_problem_has_the_bounds_that_it_has_as_a_whole(
    compute: Any, inputs: int, way: str | None, in_parts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The noise is another one, so errors agree as two samples of it do: closely in the mean."""
    module, seen = module_of(compute, inputs=inputs)
    parts = reference(module)
    assert in_parts == ([way] if way else [])
    monkeypatch.setitem(torch_reference.MANY, "cpu", 1 << 20)
    whole = reference(module)
    assert in_parts == ([way] if way else []) and seen
    for name, item in whole.items():
        assert torch.equal(item.estimate.value, parts[name].estimate.value)
        error, other = item.estimate.error, parts[name].estimate.error
        assert error is not None and other is not None and bool((other > 0).all())
        few = 0.5 if error.numel() < 100 else 0.08
        assert float((other.square().mean() / error.square().mean()).sqrt()) == pytest.approx(1, rel=few)


def test_a_part_that_has_other_values_by_itself_is_never_taken(in_parts: list[str]) -> None:
    module, _ = module_of(lambda self, x: x / 3 + x.mean() * 1e-6)
    made = Reference(module, draw(module, 5), 5)
    with torch.no_grad(), pytest.raises(Inseparable):
        made._in_parts(made._wide(made._inputs), torch.Generator(), 0, ["input0"], 2 * EXTENT * EXTENT)
    assert in_parts == []


def test_a_wrong_division_into_blocks_shows_at_the_first_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    module, seen = module_of(lambda self, x: x / 3 + x.mean())
    made = Reference(module, draw(module, 5), 5)
    monkeypatch.setitem(torch_reference.PART, "cuda", 1400)  # ten rows of seventy, and as many of the outputs
    with torch.no_grad():
        own, _ = made._in_its_own_dtype(made._inputs)
        seen.clear()
        with pytest.raises(Inseparable):
            made._made_in_blocks(own, 0, ["input0"], 2 * EXTENT * EXTENT, None)
    assert seen == [10 * EXTENT] * (1 + sampled_bounds.SAMPLES)


def test_an_input_that_parts_have_in_common_is_made_float64_once(
    in_parts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else each of many parts copies all of the second matrix, once a run with noise."""
    widened, original = [0], torch_reference._widened

    def counted(value: Any) -> Any:
        widened[0] += value.numel()
        return original(value)

    module, _ = module_of(lambda self, x, y: x @ y, inputs=2)
    monkeypatch.setattr(torch_reference, "_widened", counted)
    reference(module)
    calls = 2 * 2 + 1 + (1 + sampled_bounds.SAMPLES)  # the whole twice, the second matrix for parts, the first in these
    in_vain = calls  # at most: parts of a division that turns out to be none, begun before that was seen
    assert in_parts == ["axis 0 of input0"] and widened[0] <= (calls + in_vain) * EXTENT * EXTENT


def test_numbers_from_the_stock_are_as_normal_and_independent_as_drawn_ones() -> None:
    from gpucheck.verify.normal_numbers import WINDOW, Normal

    source = Normal(torch.Generator().manual_seed(2), stocked=True)
    runs = torch.stack([source.draw((8, WINDOW), 0, 2.0) for _ in range(sampled_bounds.SAMPLES)])
    assert float(runs.mean()) == pytest.approx(0, abs=0.02) and float(runs.std()) == pytest.approx(2, rel=0.01)
    assert float(runs.abs().gt(6).double().mean()) == pytest.approx(0.0027, rel=0.1)
    tensors = runs.flatten(1)
    assert float((tensors @ tensors.T / tensors.shape[1] - 4 * torch.eye(len(tensors))).abs().max()) < 0.1
    sums = runs.sum(-1).flatten() / WINDOW**0.5  # of elements of equal weight, one a window
    assert float(sums.square().mean().sqrt()) == pytest.approx(2, rel=0.25)


@pytest.mark.parametrize("narrow", [False, True], ids=["float64", "float32, as on a GPU"])
@pytest.mark.parametrize("scale", ["itself", "another", "each column", "one"])
@pytest.mark.parametrize("in_place", [False, True])
def test_errors_have_the_deviation_and_the_scale_that_are_asked_for(narrow: bool, scale: str, in_place: bool) -> None:
    from gpucheck.verify.normal_numbers import Normal

    source = Normal(torch.Generator().manual_seed(3))
    source._narrow = narrow
    value = torch.randn(40000, 3, dtype=torch.float64)
    scales = {"itself": value, "another": value.exp(), "each column": torch.tensor([1.0, 50.0, 0.02]).double()}
    given = scales.get(scale, torch.ones((), dtype=torch.float64))
    before, by = value.clone(), given.clone()
    got = source.disturbed(value, given, 2.0**-20, in_place=in_place)
    assert got.dtype == torch.float64 and (got is value) is in_place
    assert in_place or torch.equal(value, before)
    errors = (got - before) / by * 2.0**20
    for column in errors.T:
        assert float(column.std()) == pytest.approx(1, rel=0.02) and float(column.mean()) == pytest.approx(0, abs=0.02)
        assert float(column.abs().gt(3).double().mean()) == pytest.approx(0.0027, rel=0.4)


@pytest.mark.parametrize(
    ("forward", "runs"),
    [(lambda self, x: 2.0 * x + 1.0, 4), (lambda self, x: torch.softmax(x, -1), sampled_bounds.SAMPLES)],
    ids=["two operations that err, each up and down", "elements that meet"],
)
def test_a_large_reference_takes_few_passes_over_the_data_and_draws_no_number_for_an_element(
    monkeypatch: pytest.MonkeyPatch, forward: Any, runs: int
) -> None:
    """One as it is, two in float64 for two inputs, one part by part to see that parts do, and one a run with noise."""
    extent = 1100
    module, seen = module_of(forward, extent=extent)
    inputs, drawn, original = draw(module, 5), [0], torch.randn

    def counted(*size: Any, **options: Any) -> Any:
        made = original(*size, **options)
        drawn[0] += made.numel() * (options.get("dtype") is torch.float64)
        return made

    reference(module)  # fills the stock
    monkeypatch.setattr(torch, "randn", counted)
    made = Reference(module, inputs, 5)
    seen.clear()
    (expected,) = made.expected(None, "derived").values()
    size = extent * extent
    exact = runs < sampled_bounds.SAMPLES
    assert ("(each error up and down, 12 deviations" if exact else "drawn at random, 13.8 deviations") in expected.basis
    assert sum(seen) == size * (4 + runs) and drawn == [0]
    assert seen[:3] == [size] * 3 and max(seen[3:]) <= torch_reference.PART["cpu"] // 2


def test_a_right_output_is_gone_through_once_and_a_wrong_one_is_noticed_at_its_first_piece(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    compared, original = [0], judge.compare

    def counted(output: Any, *others: Any) -> Any:
        compared[0] += output.numel()
        assert output.numel() <= PIECE
        return original(output, *others)

    monkeypatch.setattr(judge, "compare", counted)
    value = torch.randn(130, 1000, dtype=torch.float64)
    expected = Expected(bounds.Estimate(value, value.abs() * 1e-6), torch.float32)
    right = value.float()
    assert judge.accepted(right, expected) is not None and compared == [value.numel()]
    compared[0] = 0
    right[0, 5] += 1
    assert judge.accepted(right, expected) is None and compared[0] <= PIECE
    assert [found.wrong for found in judge.judge({"out": right}, {"out": expected}, {}).mismatches] == [1]


def _weight_norm(self: Any, x: Any) -> Any:
    return x @ (self.weight / self.weight.norm())


def _recurrent(self: Any, x: Any) -> Any:
    torch.manual_seed(1)
    with torch.no_grad():
        return nn.GRU(EXTENT, 3, batch_first=True).to(x.dtype)(x[:, None])[0]


@pytest.mark.parametrize(
    ("compute", "apart"),
    [
        (lambda self, x: F.gelu(x @ self.weight), True),
        (lambda self, x: torch.softmax(x, 1), True),
        (lambda self, x: F.dropout(x @ self.weight, 0.3), True),
        (lambda self, x: x * torch.rand(EXTENT, x.shape[0]).T / 3, True),
        (lambda self, x: x / 3 * torch.multinomial(x.abs(), 35).repeat(1, 2), True),
        (_recurrent, True),
        (lambda self, x: F.batch_norm(x @ self.weight, None, None, training=True), False),  # rows have a part in others
        (lambda self, x: x / 3 + x.mean() * 1e-9, False),
        (lambda self, x: x / 3 + torch.arange(x.shape[0])[:, None] * 1e-9, False),  # where a row lies matters
        (lambda self, x: x / 3 + torch.arange(EXTENT)[:, None], False),  # it must be that many
        (_weight_norm, False),  # its error would be the same in all copies
        (lambda self, x: F.batch_norm(x / 3, *torch.ones(2, EXTENT)), False),  # whose error grows with the rows
        (in_place, False),
    ],
)
def test_a_small_problem_has_the_bounds_from_copies_that_it_has_run_by_run(
    compute: Any, apart: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, seen = module_of(compute)
    took: list[bool] = []
    original = Reference._in_copies

    def noted(self: Any, *given: Any) -> Any:
        found = original(self, *given)
        took.append(True)
        return found

    def refused(*_: Any) -> Any:
        raise Inseparable

    monkeypatch.setattr(Reference, "_in_copies", noted)
    copies = reference(module)["out"]
    assert took == [True] * apart and (max(seen) == sampled_bounds.SAMPLES * EXTENT * EXTENT or not apart)
    assert len(seen) == 6 or not apart, "as it is, its values, others, a run, all other runs, without noise"
    monkeypatch.setattr(Reference, "_in_copies", refused)
    runs = reference(module)["out"]
    assert torch.equal(copies.estimate.value, runs.estimate.value)
    error, other = copies.estimate.error, runs.estimate.error
    assert error is not None and other is not None
    rel = 0.08 if apart else 0.6
    assert float((error.square().mean() / other.square().mean()).sqrt()) == pytest.approx(1, rel=rel)


def test_copies_that_had_a_part_in_each_other_are_not_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    module, _ = module_of(lambda self, x: x / 3 + x.mean())
    tried: list[bool] = []
    original = Reference._in_copies

    def noted(self: Any, *given: Any) -> Any:
        tried.append(True)
        return original(self, *given)

    monkeypatch.setattr(Reference, "_in_copies", noted)
    first, second = reference(module)["out"].estimate, reference(module)["out"].estimate
    assert tried == [True] and torch.equal(first.value, second.value)


@pytest.mark.parametrize(
    ("error", "size"), [(None, 3 * 4 * EXTENT**2), (torch.cuda.OutOfMemoryError, 2 * 4 * EXTENT**2), (ValueError, 0)]
)
def test_a_pair_whose_outputs_found_no_memory_has_a_size_and_one_that_raises_has_none(error: Any, size: int) -> None:
    def compute(self: Any, x: Any) -> Any:
        if error:
            raise error("x")
        return x + 1

    module, _ = module_of(compute)
    assert sizes.__wrapped__(module, "cpu") == size


def test_a_pair_is_sized_and_judged_without_what_torch_compiles_with(tmp_path: Path) -> None:
    """Its eight hundred modules take a second, as does what it reasons about unknown sizes with."""
    (tmp_path / "problem.py").write_text(
        "import torch\n"
        "class Model(torch.nn.Module):\n"
        "    def forward(self, x, t): return torch.nn.functional.cross_entropy(x, t)\n"
        "def get_init_inputs(): return []\n"
        "def get_inputs(): return [torch.rand(32, 16), torch.randint(0, 16, (32,))]\n"
    )
    code = (
        "import sys, torch, problem; from gpucheck.checks import torch_model, torch_reference\n"
        "found = torch_reference.Reference(problem, torch_model.draw(problem, 1), 1, values_on='auto')\n"
        "basis = found.expected(None, '')['out'].basis\n"
        "print(torch_model.sizes(problem, 'cpu'), 'float64 values of the CPU' in basis)\n"
        "print(*(name in sys.modules for name in ('torch._dynamo', 'torch.fx.experimental.symbolic_shapes', 'sympy')))"
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.stdout.split() == [str(4 * 32 * 16 + 8 * 32 + 4), "True", *["False"] * 3], done.stderr


@pytest.mark.parametrize(
    ("compute", "extent", "flops", "cheap"),
    [
        (lambda self, x: x @ x, EXTENT, 2 * EXTENT**3, True),
        (lambda self, x: x @ x, 3000, 2 * 3000**3, True),
        (lambda self, x: x @ x @ x @ x @ x, 3000, 8 * 3000**3, False),
        (lambda self, x: x + 1, 3000, 0, True),
        (lambda self, x: x + 1, 4100, 0, False),
    ],
)
def test_values_are_had_on_the_cpu_where_that_takes_seconds(
    compute: Any, extent: int, flops: int, cheap: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, _ = module_of(compute, extent=extent)
    made = Reference(module, draw(module, 5), 5)
    monkeypatch.setattr(made, "_device", torch.device("cuda"))
    assert made._cheapest(flops) == ("cpu" if cheap else "cuda")
    if extent == EXTENT:
        monkeypatch.setattr(made, "_device", torch.device("cpu"))
        with torch.no_grad():
            assert made._in_its_own_dtype(made._inputs)[1] == flops


def test_values_of_recurrent_layers_are_had_on_the_gpu() -> None:
    """Cell by cell a CPU takes seconds for what a GPU does in one operation."""
    model = type("Model", (nn.GRU,), {"__init__": lambda self: nn.GRU.__init__(self, 3, 3)})
    module: Any = SimpleNamespace(Model=model, get_inputs=lambda: [torch.randn(5, 2, 3)], get_init_inputs=list)
    made = Reference(module, draw(module, 5), 5)
    made._device = torch.device("cuda")
    assert made._cheapest(0) == "cuda"


def test_recurrent_layers_draw_their_errors_at_once_in_all_runs_of_a_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.LSTM(3, 4, 2, batch_first=True)

        def forward(self, x: Any) -> Any:
            state = torch.randn(2, 2, len(x), 4)
            return self.layers(x, (state[0], state[1]))[0][:, -1]

    module: Any = SimpleNamespace(Model=Model, get_inputs=lambda: [torch.randn(5, 20, 3)], get_init_inputs=list)
    batches, noisy = list[int](), recurrent_noise._noisy
    monkeypatch.setattr(
        recurrent_noise, "_noisy", lambda part, mode, x, hx: batches.append(len(x)) or noisy(part, mode, x, hx)
    )
    expected = reference(module)["out"]
    assert batches == [5, 5 * sampled_bounds.SAMPLES], "a run, and all others side by side"
    assert 0 < float(expected.estimate.error.max()) < 1e-5
