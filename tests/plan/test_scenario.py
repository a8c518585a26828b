from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from gpucheck import checks
from gpucheck.checks import CHECKS, NEEDS
from gpucheck.model.case import Case
from gpucheck.model.conditions import Conditions
from gpucheck.model.errors import UsageError
from gpucheck.model.placement_table import PLACEMENTS, scenario_placements
from gpucheck.model.plan import ExpectedFailure
from gpucheck.plan import scenario
from gpucheck.plan.scenario import Scenario

GROUP = '[[cases]]\ncheck = "topk"\n'


def load(tmp_path: Path, text: str | bytes, seed: int | None = None) -> Scenario:
    path = tmp_path / "mine.toml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return scenario.load(path, seed)


def refused(tmp_path: Path, text: str | bytes) -> str:
    """The message for a bad scenario; it always names the file."""
    with pytest.raises(UsageError) as caught:
        load(tmp_path, text)
    message = str(caught.value)
    assert message.startswith(str(tmp_path / "mine.toml")) and "\n" not in message
    return message


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("title = \n", ["not valid TOML", "line 1"]),
        ('title = "a"\n\n[[cases]\n', ["not valid TOML", "line 3"]),
        ("a = 1\na = 2\n", ["not valid TOML", "line 2"]),
        (b"title = '\xff\xfe'\n", ["cannot be read as text", "utf-8"]),
        (
            "titel = 'x'\n",
            ["unknown key 'titel'", "title, seed, timeout", "bench, straggler, canary, compile_ahead, device, cases"],
        ),
        ("title = 3\n", ["title is 3", "expected a string"]),
        ("seed = 1.5\n", ["seed is 1.5", "whole number"]),
        ("seed = true\n", ["seed is True", "whole number"]),
        ("seed = -1\n", ["seed is -1", "0 or more"]),
        ("seed = '1'\n", ["seed is '1'", "whole number"]),
        ("timeout = '9'\n", ["timeout is '9'", "seconds"]),
        ("timeout = true\n", ["timeout is True", "seconds"]),
        ("timeout = 0\n", ["timeout is 0", "above 0"]),
        ("timeout = -3\n", ["timeout is -3", "above 0"]),
        ("timeout = nan\n", ["timeout is nan", "above 0"]),
        ("timeout = inf\n", ["timeout is inf", "at most"]),
        ("case_timeout = inf\n", ["case_timeout is inf", "at most"]),
        ("case_timeout = 0.0\n", ["case_timeout is 0.0", "above 0"]),
        ("cases = 3\n", ["cases is 3", "[[cases]] tables"]),
        ("[cases]\ncheck = 'topk'\n", ["cases is", "[[cases]] tables"]),
        ("cases = ['topk']\n", ["number 1", 'needs check = "NAME"', "matmul"]),
        ("[[cases]]\nm = 3\n", ["number 1", 'needs check = "NAME"', "matmul"]),
        ("[[cases]]\ncheck = 3\n", ["number 1", 'needs check = "NAME"']),
        ("[[cases]]\ncheck = ['topk', 'moe']\n", ["number 1", 'needs check = "NAME"']),
        (GROUP + "[[cases]]\ncheck = 'topq'\n", ["number 2", "unknown check 'topq'", "topk"]),
        (
            GROUP + "colour = 'red'\n",
            ["number 1", "unknown key 'colour' for check topk", "known: check, data", "top_k"],
        ),
        (GROUP + "m = '3'\n", ["m is '3'", "whole number"]),
        (GROUP + "m = true\n", ["m is True", "whole number"]),
        (GROUP + "m = 3.0\n", ["m is 3.0", "whole number"]),
        (GROUP + "m = []\n", ["m is an empty list", "at least one"]),
        (GROUP + "m = [3, 'x']\n", ["m is 'x'", "whole number"]),
        (GROUP + "m = [[3]]\n", ["m is [3]", "whole number"]),
        (GROUP + "m = {a = 3}\n", ["m is {'a': 3}", "whole number"]),
        (GROUP + "m = 2020-01-01\n", ["m is datetime.date", "whole number"]),
        (GROUP + "m = -1\n", ["m must be at least 1, not -1"]),
        (GROUP + "top_k = 9\nexperts = 8\n", ["1 <= top_k <= experts", "9 and 8"]),
        (GROUP + "dtype = 'int8'\n", ["dtype is 'int8'", "one of bf16, fp16, fp32"]),
        (GROUP + "data = 'uniform'\n", ["data is 'uniform'", "one of exact, normal"]),
        (GROUP + "data = []\n", ["data is an empty list"]),
        (GROUP + "placement = 'nowhere'\n", ["placement is 'nowhere'", "one of pinned"]),
        (GROUP + "placement = []\n", ["placement is an empty list"]),
        (GROUP + "placement = {}\n", ["placement is {}", "one of pinned"]),
        (GROUP + "optional = 1\n", ["optional is 1", "true or false"]),
        (GROUP + "optional = [true, false]\n", ["optional is a list", "true or false"]),
        (GROUP + "late = 1\n", ["late is 1", "true or false"]),
        (GROUP + "repeat = 0\n", ["repeat is 0", "1 to 10000"]),
        (GROUP + "repeat = true\n", ["repeat is True", "1 to 10000"]),
        (GROUP + "repeat = 2.0\n", ["repeat is 2.0", "1 to 10000"]),
        (GROUP + "optional = [true]\n", ["optional is a list", "true or false"]),
        (GROUP + "concurrency = 65\n", ["concurrency is 65", "1 to 64"]),
        (GROUP + "consumer = 'late'\n", ["consumer is 'late'", "one of waits, prompt, delayed"]),
        (GROUP + "placement = 'peer'\nstream = 'side'\n", ["a side stream makes its device current"]),
        (GROUP + "late = [false, true]\nconcurrency = 2\n", ["late inputs and consumers are for one thread at a time"]),
        (GROUP + "placement = 'threads'\nconcurrency = 2\n", ["placement threads has one process for all ranks"]),
        (GROUP + "placement = 'threads'\ncache = 'cold'\n", ["so none shares its cache"]),
        (GROUP + "placement = 'visible'\nwarm_up = true\n", ["a warm-up on device 0 goes with placement pinned"]),
        ("experiments = -1\n", ["experiments is -1", "seconds, 0 for none"]),
        ("canary = 1\n", ["canary is 1", "true or false"]),
        ("seed = true\n", ["seed is True", "a whole number"]),
        ("[[cases]]\ncheck = 'canary'\n", ["unknown check 'canary'", "known: matmul"]),
        ("bench = 1\n", ["bench is 1", "true or false"]),
        ("straggler = true\n", ["straggler is True", "a factor above 1"]),
        ("straggler = 1\n", ["straggler is 1", "a factor above 1"]),
        ("straggler = nan\n", ["straggler is nan", "a factor above 1"]),
        ("straggler = inf\n", ["straggler is inf", "a factor above 1"]),
        (GROUP + "expect = 'pass'\n", ["expect is 'pass'", "expected fail"]),
        (GROUP + "expect = 'fail'\ncause = 'bad luck'\n", ["cause is 'bad luck'", "wrong device context"]),
        (GROUP + "expect = 'fail'\nexpect_ranks = [0]\n", ["expect_ranks is a list", "all, others"]),
        (GROUP + "expect = 'fail'\nexpect_ranks = 'one'\n", ["expect_ranks is 'one'", "all, others"]),
        (GROUP + "cause = 'wrong device context'\n", ['cause and expect_ranks go with expect = "fail"']),
        (GROUP + "expect_ranks = 'others'\n", ['cause and expect_ranks go with expect = "fail"']),
        ("[[cases]]\ncheck = 'swiglu'\nn = 7\n", ["even n"]),
        ("[[cases]]\ncheck = 'swiglu'\nalpha = nan\n", ["alpha is nan", "a number"]),
        ("[[cases]]\ncheck = 'swiglu'\ndata = 'exact'\n", ["data is 'exact'", "one of normal"]),
        ("[[cases]]\ncheck = 'matmul'\nbias = 1\n", ["bias is 1", "true or false"]),
        ("[[cases]]\ncheck = 'vllm_moe'\nengine = 'sglang'\n", ["engine is 'sglang', and vllm_moe calls vllm"]),
        ("[[cases]]\ncheck = 'softmax'\nengine = 'vllm'\n", ["goes with checks of the library", "softmax uses none"]),
        ("[[cases]]\ncheck = 'matmul'\nmode = 'batched'\n", ["batch goes with mode batched"]),  # for every data kind
        ("[[cases]]\ncheck = 'matmul'\nswiglu = true\ndata = 'exact'\n", ["normal data only"]),
        ("[[cases]]\ncheck = 'matmul'\nswiglu = true\ndata = ['exact', 'normal']\n", ["normal data only"]),
    ],
)
def test_bad_scenarios_are_refused_with_place_and_expectation(
    tmp_path: Path, text: str | bytes, words: list[str]
) -> None:
    message = refused(tmp_path, text)
    assert not [word for word in words if word not in message], message


def test_files_that_are_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("gone.toml", str(tmp_path / "no" / "folder.toml")):
        with pytest.raises(UsageError, match="does not exist"):
            scenario.find(name)
    (tmp_path / "folder.toml").mkdir()
    with pytest.raises(UsageError, match=r"folder.toml is a folder, expected a .toml file"):
        scenario.find(str(tmp_path / "folder.toml"))
    with pytest.raises(UsageError, match=r"unknown scenario 'smock'; built in: .*smoke.*give the path"):
        scenario.find("smock")
    with pytest.raises(UsageError, match="folder.toml: cannot be read as text"):
        scenario.load(tmp_path / "folder.toml")

    def unreadable(*_: object, **__: object) -> str:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_text", unreadable)
    with pytest.raises(UsageError, match="Permission denied"):
        scenario.load(tmp_path / "locked.toml")


def test_a_file_without_the_suffix_is_found_by_path(tmp_path: Path) -> None:
    (tmp_path / "plain").write_text(GROUP)
    assert scenario.find(str(tmp_path / "plain")) == tmp_path / "plain"


def test_defaults_and_values(tmp_path: Path) -> None:
    empty = load(tmp_path, "")
    assert (empty.name, empty.title, empty.seed, empty.steps) == ("mine", "mine", 0, ())
    assert (empty.timeout, empty.case_timeout, empty.path) == (600.0, 120.0, (tmp_path / "mine.toml").resolve())
    assert (empty.bench, empty.straggler) == (False, 1.25)
    slow = load(tmp_path, "bench = true\nstraggler = 2\n")
    assert (slow.bench, slow.straggler) == (True, 2.0)
    other = load(tmp_path, 'title = "T"\nseed = 4\ntimeout = 5\ncase_timeout = 0.5\n')
    assert (other.title, other.seed, other.timeout, other.case_timeout) == ("T", 4, 5.0, 0.5)
    assert load(tmp_path, "seed = 4\n" + GROUP, seed=9).steps[0].case.seed == 9
    assert load(tmp_path, "seed = 4\n" + GROUP, seed=0).seed == 0


def test_lists_expand_to_all_combinations(tmp_path: Path) -> None:
    loaded = load(tmp_path, GROUP + 'm = [1, 2]\ndtype = ["bf16", "fp32"]\ndata = ["normal", "exact"]\nexperts = 9\n')
    assert {step.case.id for step in loaded.steps} == {
        f"topk/{dtype}/m{m}-e9-top4/{data}"
        for m in (1, 2)
        for dtype in ("bf16", "fp32")
        for data in ("exact", "normal")
    }


def test_equal_cases_run_once_and_placements_follow_each_other(tmp_path: Path) -> None:
    loaded = load(tmp_path, GROUP + 'placement = ["visible", "pinned"]\ndata = "exact"\n' + GROUP + "m = [16, 17]\n")
    assert [(step.conditions.placement, step.case["m"], step.case.data) for step in loaded.steps] == [
        ("pinned", 16, "exact"),
        ("pinned", 16, "normal"),
        ("pinned", 17, "exact"),
        ("pinned", 17, "normal"),
        ("visible", 16, "exact"),
    ]


def test_a_data_kind_that_cannot_be_made_is_left_out_only_where_nobody_asked_for_it(tmp_path: Path) -> None:
    loaded = load(tmp_path, "[[cases]]\ncheck = 'matmul'\nswiglu = true\n")
    assert [step.case.data for step in loaded.steps] == ["normal"]


def test_optional_is_carried(tmp_path: Path) -> None:
    assert all(step.optional for step in load(tmp_path, GROUP + "optional = true\n").steps)
    assert not any(step.optional for step in load(tmp_path, GROUP).steps)


def test_conditions_are_carried_and_tell_steps_apart(tmp_path: Path) -> None:
    stressed = 'data = "exact"\nlate = true\nrepeat = 3\n'
    loaded = load(tmp_path, GROUP + 'data = "exact"\n' + (GROUP + stressed) * 2)
    plain, stress = loaded.steps
    assert (plain.conditions, plain.expect, plain.label) == (Conditions(), None, plain.case.id)
    assert (stress.conditions, stress.case) == (Conditions(late=True, repeat=3), plain.case)
    assert stress.label == f"{plain.case.id} (late, x3)"


def test_expected_failures_are_carried(tmp_path: Path) -> None:
    (step, *_) = load(tmp_path, GROUP + "expect = 'fail'\n").steps
    assert step.expect == ExpectedFailure("", "all")
    text = "expect = 'fail'\ncause = 'wrong device context'\nexpect_ranks = 'others'\n"
    (step, *_) = load(tmp_path, GROUP + text).steps
    assert step.expect == ExpectedFailure("wrong device context", "others")
    assert [step.expect.includes(local_rank) for local_rank in (0, 1, 7)] == [False, True, True]


def test_device_context_holds_the_library_to_every_placement() -> None:
    steps = scenario.load(scenario.find("device-context")).steps
    library = [step for step in steps if step.case.check != "attention"]
    assert {step.conditions.placement for step in library} == {*scenario_placements()}, "a new one runs here too"
    assert not [step.label for step in library if step.expect]
    peer = [step for step in steps if step.conditions.placement == "peer"]
    assert peer and all(step.conditions.late for step in peer)
    assert all(step.conditions.repeat == 10 for step in peer if step.case.check != "generation"), "which repeats itself"
    must_fail = [step for step in steps if step.expect]
    assert must_fail and not [step for step in must_fail if step.case["guard"] or step.conditions.placed.device_current]
    assert {step.conditions.placement for step in must_fail} == {
        name for name in scenario_placements() if not PLACEMENTS[name].device_current
    }, "our own kernel, which sets no device, shows that this scenario sees what each of these is for"


def test_conditions_take_lists_and_multiply(tmp_path: Path) -> None:
    text = 'placement = ["threads", "pinned"]\nprocess_group = ["none", "initialised"]\nrepeat = [1, 4]\n'
    text += 'data = "exact"\n'
    with pytest.raises(UsageError, match="so there is no group of ranks"):
        load(tmp_path, GROUP + text)
    steps = load(tmp_path, GROUP + text.replace("threads", "visible")).steps
    assert [(step.conditions.words or "-") for step in steps] == [
        "-",
        "x4",
        "process group",
        "process group, x4",
        "visible",
        "visible, x4",
        "visible, process group",
        "visible, process group, x4",
    ], "steps that can share a process follow each other"


BUILTIN = sorted(scenario.builtin())


def test_built_in_scenarios_are_found_by_name() -> None:
    assert {"gate", "smoke"} <= set(BUILTIN)
    assert scenario.find("smoke") == scenario.builtin()["smoke"]


@pytest.mark.parametrize("name", BUILTIN)
def test_built_in_scenarios_load_with_ids_that_are_unique_and_typeable(name: str) -> None:
    loaded = scenario.load(scenario.find(name))
    assert loaded.path is None and loaded.steps and loaded.title != name
    counts = Counter(step.key for step in loaded.steps)
    assert not [key for key, count in counts.items() if count > 1]
    contents: dict[str, Case] = {}
    for step in loaded.steps:
        assert contents.setdefault(step.case.id, step.case) == step.case
        assert step.case.check in CHECKS and step.case.id.startswith(step.case.check + "/")
        assert all(char.isalnum() or char in "/-._" for char in step.case.id)
        assert Case.from_json(json.loads(json.dumps(step.case.to_json()))) == step.case
    assert len({case.input_seed for case in contents.values()}) == len(contents)


def test_the_smoke_scenario_covers_every_check_that_calls_nothing_but_the_library() -> None:
    loaded = scenario.load(scenario.find("smoke"))
    joint = {name for name in CHECKS if checks.load(name).together}
    assert {step.case.check for step in loaded.steps} == set(CHECKS) - set(NEEDS) - joint
    assert joint <= {step.case.check for step in scenario.load(scenario.find("together")).steps}
    gate = {step.case.check for step in scenario.load(scenario.find("gate")).steps}
    assert not set(CHECKS) - set(NEEDS) - joint - gate, "on GPUs too"


def test_checks_of_other_software_are_optional_where_they_are_planned() -> None:
    steps = [step for name in BUILTIN for step in scenario.load(scenario.find(name)).steps if step.case.check in NEEDS]
    assert {step.case.check for step in steps} == set(NEEDS) and all(step.optional for step in steps)


def test_each_row_of_the_gate_has_a_case_that_runs_eight_times() -> None:
    rows: dict[str, set[int]] = {}
    for step in scenario.load(scenario.find("gate")).steps:
        rows.setdefault(step.row, set()).add(step.conditions.repeat)
    assert rows and [row for row, repeats in rows.items() if 8 not in repeats] == []


def test_smoke_has_a_second_tile_of_columns_a_split_sum_of_two_blocks_and_calls_after_the_third() -> None:
    """The widest tile has 256 columns, and a block of 16-bit operands 64 terms."""
    smoke = scenario.load(scenario.find("smoke")).steps
    steps = [step for step in smoke if step.case.check == "matmul"]
    assert any(step.case["n"] > 256 for step in steps)
    assert any(step.case["split_k"] > 1 and step.case["k"] // step.case["split_k"] >= 128 for step in steps)
    assert {step.case.check for step in scenario.load(scenario.find("smoke")).steps if step.conditions.repeat > 2} > {
        "matmul"
    }


def test_gates_hold_a_canary() -> None:
    files = scenario.builtin()
    assert all(scenario.load(files[name]).canary for name in ("gate", "quick"))
    assert not scenario.load(files["smoke"]).canary
