"""What a problem's torch code says of right and wrong, and what it is refused for."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from gpucheck.checks import CHECKS, sources
from gpucheck.checks.arguments import call, pack, tensors, unpack
from gpucheck.checks.problem import stated_tolerance
from gpucheck.checks.source_files import module_of
from gpucheck.checks.torch_model import build, draw, named, seeded
from gpucheck.checks.torch_reference import HARDLY, Reference
from gpucheck.model.errors import UsageError
from gpucheck.verify.digest import whole
from gpucheck.verify.expected import FIXED
from gpucheck.verify.judge import judge

HEAD = "import torch, random\nfrom torch import nn\nimport torch.nn.functional as F\n"
MODEL = """
class Model({base}):
    def forward(self, x):{within}
        return {body}
def get_inputs():
    return [{inputs}]
def get_init_inputs():
    return []
"""
CANDIDATE = "from torch import nn\nclass ModelNew(nn.Module):\n    def forward(self, x): return x\n"
Make = Callable[..., Any]


@pytest.fixture
def problem(tmp_path: Path) -> Make:
    """The check of a problem whose Model computes ``body``."""

    def make(
        body: str, inputs: str = "torch.randn(20, 30)", more: str = "", within: str = "", base: str = "nn.Module"
    ) -> Any:
        model = MODEL.format(body=body, inputs=inputs, within=within, base=base)
        (tmp_path / "hard.py").write_text(HEAD + more + model)
        (tmp_path / "fast.py").write_text(CANDIDATE)
        (source,), _ = sources.find([], [str(tmp_path / "hard.py")], [str(tmp_path / "fast.py")], CHECKS)
        return sources.make(source, "fast")

    return make


def reference(check: Any, trial: int = 1) -> tuple[dict[str, Any], dict[str, Any]]:
    case = check.spec.case({"trial": trial}, "normal", 0)
    inputs = check.inputs(case, torch.Generator())
    return inputs, check.reference(case, inputs)


def test_inputs_and_weights_come_from_the_trial_alone(problem: Make) -> None:
    check = problem("x", "torch.randn(3), random.random(), 'sum'")
    case = check.spec.case({"trial": 1}, "normal", 0)
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first = check.inputs(case, torch.Generator())
    assert torch.equal(torch.get_rng_state(), state), "the state of the process stays as it was"
    again = check.inputs(case, torch.Generator())
    assert {name: whole(value) for name, value in first.items()} == {name: whole(v) for name, v in again.items()}
    given, others = unpack("input", first), unpack("input", check.fresh_inputs(case, 5))
    assert given[2] == others[2] == "sum" and given[1] != others[1] and not torch.equal(given[0], others[0])
    assert whole(first["input0"]) != whole(check.inputs(check.spec.case({"trial": 2}, "normal", 0), None)["input0"])
    assert check.validate({"trial": 0}, "normal") == "trial must be at least 1, not 0"


def test_a_derived_bound_takes_rounding_and_refuses_half_the_digits(problem: Make) -> None:
    inputs, expected = reference(problem("torch.softmax(x, -1) @ x.T"))
    x = inputs["input0"]
    right = torch.softmax(x, -1) @ x.T
    assert not judge({"out": right}, expected, {}).mismatches
    assert not judge({"out": (torch.softmax(x.double(), -1) @ x.double().T).float()}, expected, {}).mismatches
    for wrong in (right * (1 + 2.0**-11), torch.softmax(x, -1).half().float() @ x.T, right.bfloat16().float()):
        assert judge({"out": wrong}, expected, {}).mismatches
    assert "16 runs with errors drawn at random, 12 deviations, longest sum 30" in expected["out"].basis


def test_a_model_that_only_moves_values_allows_no_error(problem: Make) -> None:
    inputs, expected = reference(problem("x.flip(0).clamp(-1, 1)"))
    assert expected["out"].estimate.error is None and "makes no rounding error" in expected["out"].basis
    right = inputs["input0"].flip(0).clamp(-1, 1)
    assert not judge({"out": right}, expected, {}).mismatches
    assert judge({"out": torch.nextafter(right, torch.zeros(()))}, expected, {}).mismatches


def test_a_stated_tolerance_is_the_bound(problem: Make) -> None:
    check = problem("x * 3", more='tolerance = {"absolute": 1e-3, "relative": 0.5e-2}\n')
    assert "stated in hard.py, absolute 0.001, relative 0.005" in check.spec.summary
    inputs, expected = reference(check)
    right = inputs["input0"] * 3
    assert not judge({"out": right * 1.004}, expected, {}).mismatches
    assert judge({"out": right * 1.006 + 2e-3}, expected, {}).mismatches


def test_several_outputs_and_narrow_dtypes(problem: Make) -> None:
    inputs, expected = reference(problem("x * 3, x.argmax(-1)", "torch.randn(4, 9).bfloat16()"))
    assert [expected[name].dtype for name in ("out0", "out1")] == [torch.bfloat16, torch.int64]
    x = inputs["input0"]
    right = {"out0": x * 3, "out1": x.argmax(-1)}
    assert not judge(right, expected, {}).mismatches
    assert judge({**right, "out1": x.argmin(-1)}, expected, {}).mismatches


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("x.argmax(-1)", ""),
        ("x - x.mean() + 1e-3", ""),
        ("torch.arange(9.0) + 0 * x", FIXED),
        ("(x.abs() > 9).long() + torch.arange(9)", FIXED),
        ("x * 1e-7 + 1", HARDLY),
    ],
)
def test_a_problem_whose_outputs_hardly_depend_on_its_inputs_is_judged_and_says_so(
    problem: Make, body: str, words: str
) -> None:
    inputs, expected = reference(problem(body, "torch.randn(9)"))
    assert expected["out"].indifferent == words
    right = expected["out"].estimate.value.to(expected["out"].dtype)
    assert not judge({"out": right}, expected, {}).mismatches
    assert judge({"out": right + 1}, expected, {}).mismatches


@pytest.mark.parametrize(
    ("body", "inputs", "more", "words"),
    [
        ("F.rrelu(x, training=True)", "torch.randn(9)", "", r"Model calls rrelu_with_noise, which draws at random"),
        ("torch.linalg.inv(x)", "torch.randn(4, 4)", "", r"no bound can be derived: Model calls linalg_inv_ex"),
        ("x * 3", "torch.ones(9)", "", r"accepts the answer to other inputs.*get_inputs must draw at random"),
        ("x * 3", "torch.randn(9)", 'tolerance = {"absolute": 100}\n', r"the bound accepts the answer to other inputs"),
        ("x.sqrt()", "-torch.rand(9)", "", r"Model gives NaN: such outputs cannot be judged"),
        ("x.to(torch.complex64)", "torch.randn(9)", "", r"out is torch.complex64; complex numbers cannot be judged"),
        ("[None, ()]", "torch.randn(9)", "", r"Model of the problem raised TypeError: a model returned list without a"),
        ("[x, 'word']", "torch.randn(9)", "", r"Model of the problem raised TypeError: a model returned str, expected"),
        ("x.nothing()", "torch.randn(9)", "", r"Model of the problem raised AttributeError: "),
        ("x", "1 / 0", "", r"get_inputs of the problem raised ZeroDivisionError: division by zero"),
        ("x", "torch.randn(9, device='meta')", "", r"input 0 of the problem lies on meta, expected the CPU or"),
        ("x", "torch.randn(9) + 1j", "", r"input 0 of the problem is torch.complex64; complex numbers cannot be"),
        ("x", "torch.randn(9).to_sparse()", "", r"input 0 of the problem is a sparse_coo tensor; dense ones can be"),
        (
            "x",
            "torch.randn(9), {'f': lambda: 0}",
            "",
            r"input 1.f of the problem is a function, expected tensors, plain",
        ),
        ("x", "torch.randn(9)", "import no_such_package\n", r"hard.py cannot be loaded: ModuleNotFoundError"),
    ],
)
def test_a_problem_that_cannot_be_judged_is_refused(
    problem: Make, body: str, inputs: str, more: str, words: str
) -> None:
    with pytest.raises(UsageError, match=words):
        reference(problem(body, inputs, more))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("tolerance = make()", "tolerance is computed, expected"),
        ("tolerance = 1e-3", "tolerance is 0.001, expected"),
        ('tolerance = {"rtol": 1e-3}', "tolerance is {'rtol': 0.001}, expected"),
        ('tolerance = {"relative": -1}', "tolerance is {'relative': -1}, expected"),
        ('tolerance = {"relative": True}', "tolerance is {'relative': True}, expected"),
        ("tolerance = {}", "tolerance is {}, expected"),
        ("def tolerance(): pass", "tolerance is computed, expected"),
    ],
)
def test_a_tolerance_must_be_written_out(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "hard.py").write_text(text)
    with pytest.raises(UsageError, match=words):
        stated_tolerance(tmp_path / "hard.py")


def test_arguments_of_any_form_survive_being_packed() -> None:
    inner = torch.ones(2, 3).t()
    values = [torch.ones(2), 3, -2.5, "sum", None, (2, {"x": [inner]}), {"dim": -1, 4: ()}, True, math.inf, torch.half]
    packed = pack("init", values)
    assert all(isinstance(value, torch.Tensor) for value in packed.values())
    got = unpack("init", packed)
    assert got[0] is packed["init0"] and got[5][1]["x"][0] is packed["init1"] and packed["init1"].stride() == (1, 3)
    assert got[1:5] + got[6:] == values[1:5] + values[6:] and got[5][0] == 2
    assert unpack("other", packed) == [] and list(tensors("init", packed)) == ["init0", "init1"]


@pytest.mark.parametrize(
    ("values", "called"),
    [
        (None, ((), {})),
        ([], ((), {})),
        ((1, 2), ((1, 2), {})),
        ({"a": 1, "b": 2}, ((), {"a": 1, "b": 2})),
        (7, ((7,), {})),
        ([[], {}], ((), {})),
        ([[1], {"b": 2}], ((1,), {"b": 2})),
        ([[1], {"other": 2}], (([1], {"other": 2}), {})),
        ([[1], {}], (([1], {}), {})),
    ],
)
def test_arguments_are_handed_over_as_their_form_says(values: Any, called: Any) -> None:
    def function(a: Any = None, b: Any = None) -> Any:
        return a, b

    positions, keywords = called
    assert call(function, values) == function(*positions, **keywords)


@dataclass
class Output:
    logits: Any
    loss: Any


def test_outputs_of_any_form_have_names_of_their_own() -> None:
    x = torch.ones(2)
    found = named({"logits": x, "state": (x, None, [x]), "loss": 0.5})
    assert list(found) == ["out.logits", "out.state.0", "out.state.2.0", "out.loss"]
    assert found["out.loss"].dtype == torch.float64 and named((x, 3))["out1"].dtype == torch.int64
    assert list(named(Output(x, (x, 0.5)))) == ["out.logits", "out.loss.0", "out.loss.1"]
    assert not named(torch._neg_view(x))["out"].is_neg(), "its bytes are its numbers"
    with pytest.raises(TypeError, match="a model returned a sparse_coo tensor, expected a dense one"):
        named(x.to_sparse())


def test_whole_numbers_make_no_error_and_no_other_one_is_right(problem: Make) -> None:
    inputs, expected = reference(problem("(x * 3, x // 2)", "torch.randint(0, 255, (64,), dtype=torch.uint8)"))
    right = {"out0": inputs["input0"] * 3, "out1": inputs["input0"] // 2}
    assert not judge(right, expected, {}).mismatches
    assert judge({**right, "out0": inputs["input0"] * 4}, expected, {}).mismatches


def test_what_is_no_model_with_all_its_weights_is_refused() -> None:
    module: Any = SimpleNamespace(Model=lambda: nn.LazyLinear(3), get_inputs=list, get_init_inputs=list)
    with pytest.raises(UsageError, match="weight of Model gets its shape in the first call, expected weights that"):
        draw(module, 0)
    module.ModelNew = lambda: max
    with pytest.raises(TypeError, match=r"ModelNew makes a builtin_function_or_method, expected a torch\.nn\.Module"):
        build(module, {}, 0, "ModelNew")


def test_a_tensor_that_is_no_buffer_is_written_as_in_the_plain_code(problem: Make) -> None:
    within = """
        self.hidden.copy_(x[:, :4])
        self.hidden = torch.tanh(torch.cat((x, self.hidden), 1) @ self.weight)"""
    more = "class Keeps(nn.Module):\n    def __init__(self):\n        super().__init__()\n"
    more += "        self.hidden, self.weight = torch.randn(20, 4), nn.Parameter(torch.randn(34, 4))\n"
    check = problem("self.hidden * 3", more=more, within=within, base="Keeps")
    inputs, expected = reference(check)
    x, weight = inputs["input0"], inputs["state.weight"]
    right = torch.tanh(torch.cat((x, x[:, :4]), 1) @ weight) * 3
    assert not judge({"out": right}, expected, {}).mismatches
    assert judge({"out": right * 1.001}, expected, {}).mismatches


COUNTED = """
        if not hasattr(self, "seen"):
            self.calls, self.norm = 0, nn.BatchNorm1d(30)
            self.register_buffer("seen", torch.zeros(1))
        self.calls += 1
        self.seen += 1"""


@pytest.mark.parametrize(
    ("body", "refused"),
    [
        ("x * self.seen", True),
        ("x + self.calls", True),
        ("x if self.calls == 1 else (x, x)", True),
        ("self.norm(x)", False),  # whose buffers change, and no output with them
        ("F.dropout(x, 0.5)", False),
        ("x.mul_(3)", False),
    ],
)
def test_a_model_that_answers_equal_inputs_otherwise_is_refused(problem: Make, body: str, refused: bool) -> None:
    words = "of Model is another one in a second call with equal inputs"
    with pytest.raises(UsageError, match=words) if refused else nullcontext():
        reference(problem(body, within=COUNTED))


def test_plain_code_that_raises_is_told_before_a_candidate_is_blamed(problem: Make) -> None:
    for body, raises in (("x", False), ("x.nothing()", True), ("[x, 'word']", True)):
        check = problem(body)
        case = check.spec.case({"trial": 1}, "normal", 0)
        inputs = check.inputs(case, torch.Generator())
        with pytest.raises(UsageError, match="Model of the problem raised") if raises else nullcontext():
            check.must_answer(case, inputs)
        check.must_answer(case, {})


def test_random_numbers_are_the_same_in_the_reference_and_in_the_candidate(problem: Make) -> None:
    body = "F.dropout(x, 0.3) @ torch.rand(30, 4) + torch.randint(0, 9, (4,))"
    inputs, expected = reference(problem(body))
    with seeded(problem(body).spec.case({"trial": 1}, "normal", 0).input_seed):
        x = inputs["input0"]
        right = F.dropout(x, 0.3) @ torch.rand(30, 4) + torch.randint(0, 9, (4,))
    assert not judge({"out": right}, expected, {}).mismatches
    assert judge({"out": F.dropout(x, 0.3) @ torch.rand(30, 4)}, expected, {}).mismatches


def test_numbers_in_float64_are_held_to_float64_where_the_model_keeps_to_it(problem: Make) -> None:
    inputs, expected = reference(problem("x @ x.T", "torch.randn(20, 30, dtype=torch.float64)"))
    x = inputs["input0"]
    assert not judge({"out": x @ x.T}, expected, {}).mismatches
    assert judge({"out": (x.float() @ x.float().T).double()}, expected, {}).mismatches
    inputs, expected = reference(problem("(x @ x.T).double()"))
    assert not judge({"out": (inputs["input0"] @ inputs["input0"].T).double()}, expected, {}).mismatches


def test_a_place_that_rounding_decides_is_not_judged_and_every_other_one_is(problem: Make) -> None:
    more = "torch.manual_seed(3)\nW = torch.randn(30, 30)\nW[:, 1:6] = W[:, :1] * 2\n"
    inputs, expected = reference(problem("(x @ W).argmax(1)", more=more))
    right = expected["out"].estimate.value.long()
    unknown = expected["out"].unknown
    assert unknown is not None and 0 < int(unknown.sum()) < len(right)
    assert not judge({"out": right}, expected, {}).mismatches
    assert judge({"out": (right + 1) % 30}, expected, {}).mismatches


@pytest.mark.parametrize("device", ["cuda", "cuda:1"])
def test_pairs_that_name_a_gpu_run_where_they_are_run(problem: Make, device: str) -> None:
    more = f"class Shift(nn.Module):\n    def forward(self, x): return x + torch.ones(3, device='{device}').cuda()\n"
    inputs, expected = reference(problem("Shift()(x)", f"torch.rand(3, device='{device}').cuda()", more))
    assert inputs["input0"].device.type == "cpu"
    assert not judge({"out": inputs["input0"] + 1}, expected, {}).mismatches


def test_products_may_be_as_narrow_as_allowed_and_no_narrower(problem: Make) -> None:
    check = problem("x @ x.T", "torch.rand(50, 400)")
    case = check.spec.case({"trial": 1}, "normal", 0)
    inputs = check.inputs(case, torch.Generator())
    x = inputs["input0"]
    cut = (x.view(torch.int32) & ~0x1FFF).view(torch.float32)  # as hardware takes fp32 bits for tf32
    results = {"fp32": x @ x.T, "tf32": cut @ cut.T, "bf16": (x.bfloat16() @ x.bfloat16().T).float()}
    for number, allowed in enumerate(results):
        expected = Reference(module_of(check.source, 0), inputs, case.input_seed, precision=allowed).expected(None, "")
        wrong = [name for name, value in results.items() if judge({"out": value}, expected, {}).mismatches]
        assert wrong == list(results)[number + 1 :]


def test_weights_are_drawn_before_and_beside_the_inputs(tmp_path: Path) -> None:
    module: Any = type("module", (), {})
    module.Model, module.get_init_inputs = torch.nn.Linear, staticmethod(lambda: [3, 2])
    module.get_inputs = staticmethod(lambda: [torch.randn(5, 3)])
    drawn = draw(module, 7)
    assert {"state.weight", "state.bias", "input0", "input.literal", "init.literal"} == set(drawn)
    assert not drawn["state.weight"].requires_grad
