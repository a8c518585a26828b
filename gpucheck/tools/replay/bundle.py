"""The folder that shows a failing case to somebody without gpucheck: tensors, script, and what the script needs."""

from __future__ import annotations

import pprint
import re
import shutil
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gpucheck
from gpucheck import __version__
from gpucheck.host.visible_gpus import VARIABLE, alone
from gpucheck.model.conditions import Conditions
from gpucheck.records.replay_files import FOLDER, TENSORS, read_program

if TYPE_CHECKING:
    from gpucheck.library.copies import LibraryCopy
    from gpucheck.model.plan import Plan
    from gpucheck.tools.replay.closeup import Closeup

SCRIPT = "reproduce.py"
REPAIRS = "triton_repairs"  # our interpreter package under another name
OWN_KERNELS = "gpucheck.checks.kernels."
VARIABLES = ("CUDA", "CUBLAS", "NCCL", "PYTORCH", "TORCH", "TRITON")  # that the script sets as in the run
_REPEATED = ("placement", "process_group", "late", "repeat", "guarded", "synchronised")
"""Conditions that the script makes too."""
GUARDS = {"tensor_views": "verify/views.py", "guarded_memory": "worker/device/guarded_memory.py"}
"""Module beside a script -> the file of ours that it is."""
_PACKAGE = Path(gpucheck.__file__).resolve().parent


def write_bundle(closeup: Closeup, plan: Plan, copy: LibraryCopy | None, run: Path, folder: Path) -> Iterator[str]:
    """Fills a folder from what a replay kept and yields a line for each thing in it.

    Args:
        run: the run folder of the replay.
        folder: is made.
    """
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"{name}.safetensors" for name in TENSORS if (run / FOLDER / f"{name}.safetensors").exists()]
    for name in names:
        shutil.copyfile(run / FOLDER / name, folder / name)
    yield f"saved     {folder}: {', '.join(names) or 'no tensors'}"
    program = read_program(run)
    reason = _of_several(plan) or _unwritable(program) or _foreign(plan)
    if reason:
        yield f"script    none: {reason}"
        return
    needs = ["torch", "triton", f"{' and '.join(f'{name}.py' for name in GUARDS)} beside it"]
    for name, path in GUARDS.items():
        source = (_PACKAGE / path).read_text(encoding="utf-8")
        (folder / f"{name}.py").write_text(source.replace("gpucheck.verify.views", "tensor_views"), encoding="utf-8")
    if plan.device == "cpu":
        shutil.copytree(
            _PACKAGE / "triton_hooks" / "interpreter", folder / REPAIRS, ignore=shutil.ignore_patterns("__pycache__")
        )
        needs.append(f"numpy (and {REPAIRS}/ beside it, for Triton's interpreter)")
    for module in _own(program):
        name = module.removeprefix(OWN_KERNELS)
        shutil.copyfile(_PACKAGE / "checks" / "kernels" / f"{name}.py", folder / f"{name}.py")
        needs.append(f"{name}.py beside it")
    uses_library = any(module.partition(".")[0] == "triton_kernels" for module in program["modules"])
    if uses_library and copy:
        needs.append(f"triton_kernels from {copy.root}, or from the folder given as its argument")
    text = script(closeup, plan, copy if uses_library else None, program, needs)
    (folder / SCRIPT).write_text(text, encoding="utf-8")
    yield f"script    python {folder / SCRIPT}"
    yield f"          needs {'; '.join(needs)}; not gpucheck"
    left = not_repeated(plan.steps[0].conditions)
    if left:
        yield f"          does not repeat: {left}"


def script(closeup: Closeup, plan: Plan, copy: LibraryCopy | None, program: dict[str, Any], needs: list[str]) -> str:
    """The text of the stand-alone script."""
    text = (Path(__file__).with_name("script_template.py")).read_text(encoding="utf-8")
    text = text.replace("HEAD", _head(closeup, plan, needs), 1)
    text = _between(text, "facts", _facts(plan, copy, program))
    return _between(text, "calls", _calls(program))


def not_repeated(conditions: Conditions) -> str:
    """The conditions of a case that the script does without, in words."""
    usual = type(conditions)().to_json()
    changed = {name: value for name, value in conditions.to_json().items() if value != usual[name]}
    left = [f"{name} {value}" for name, value in changed.items() if name not in _REPEATED]
    if not conditions.placed.scripted:
        left.append(f"placement {conditions.placement}")
    return ", ".join(left)


def _of_several(plan: Plan) -> str:
    """Why there is no script of a case that ranks run together, or ""."""
    return "a script is one process, and all ranks run this case together" if plan.steps[0].together else ""


def _unwritable(program: dict[str, Any]) -> str:
    """Why no script can be made of what was recorded, or ""."""
    if not program:
        return "the case ended before it called anything"
    if program["problem"]:
        return str(program["problem"])
    return "" if program["lines"] else "the case calls nothing that is known"


def _foreign(plan: Plan) -> str:
    """Why the calls of a check that is not gpucheck's own are not written, or ""."""
    check = plan.steps[0].case.check
    foreign = any(check in source.checks for source in plan.check_sources)
    return f"what check {check} calls is its own source; run that" if foreign else ""


def _own(program: dict[str, Any]) -> list[str]:
    return [module for module in program["modules"] if module.startswith(OWN_KERNELS)]


def _head(closeup: Closeup, plan: Plan, needs: list[str]) -> str:
    step, record = plan.steps[0], closeup.now
    shown = f": {record.message}" if record.message else ""
    parts = [
        f"{closeup.label} on rank {record.rank}: {record.outcome.value}{shown}",
        f"Made by gpucheck {__version__} from run {plan.id}. Needs " + "; ".join(needs) + "; not gpucheck. The tensors "
        "lie beside this file as safetensors. The calls below are those that the case makes, with the memory around "
        "all tensors, and memory that is handed out meanwhile, full of 0xFF and of 0x00 by turns.",
    ]
    if left := not_repeated(step.conditions):
        parts.append(f"The case ran under conditions that this script does not repeat: {left}.")
    if not _returned(closeup):
        parts.append("In the run the calls did not return: nothing is compared.")
    parts.append("Ends with 1 where it still goes wrong, with 0 where all is right.")
    paragraphs = [textwrap.fill(part, 110, break_long_words=False, break_on_hyphens=False) for part in parts]
    return "\n\n".join(paragraphs).replace("\\", "\\\\").replace('"""', "'''") + "\n"


def _returned(closeup: Closeup) -> bool:
    return bool(closeup.now.digests)


def _facts(plan: Plan, copy: LibraryCopy | None, program: dict[str, Any]) -> str:
    from gpucheck.checks import load

    assert plan.replay is not None
    step, rank = plan.steps[0], plan.replay.rank
    conditions, local_rank = step.conditions, plan.local_rank(rank)
    recorded = plan.environment.get("variables", {})
    environment = {name: value for name, value in recorded.items() if name.startswith(VARIABLES)}
    environment |= {"RANK": str(rank), "LOCAL_RANK": str(local_rank)}
    environment |= {"WORLD_SIZE": str(plan.world_size), "LOCAL_WORLD_SIZE": str(plan.nproc)}
    device = "cpu" if plan.device == "cpu" else f"cuda:{local_rank}"
    if conditions.placed.one_visible and plan.device != "cpu":
        environment[VARIABLE] = alone(environment.get(VARIABLE), local_rank)
        device = "cuda:0"
    if conditions.synchronised:
        environment["CUDA_LAUNCH_BLOCKING"] = "1"
    late = [name for name in load(step.case.check).late_inputs if any(f"'{name}'" in line for line in program["lines"])]
    facts = {
        "LIBRARY": str(copy.root) if copy else "",
        "ENVIRONMENT": environment,
        "DEVICE_NAME": device,
        "CURRENT": conditions.placed.device_current,
        "CONTEXT_ON_0": conditions.placed.context_on_0,
        "PEER_ACCESS": conditions.placed.peer_access,
        "PROCESS_GROUP": conditions.process_group == "initialised",
        "LATE": tuple(late) if conditions.late else (),
        "GUARDED": conditions.guarded,
        "RUNS": max(2, conditions.repeat),
        "RETURNS": program["outputs"] is not None,
    }
    return "\n".join(f"{name} = {pprint.pformat(value, width=100)}" for name, value in facts.items())


def _calls(program: dict[str, Any]) -> str:
    modules = {module.removeprefix(OWN_KERNELS): name for module, name in program["modules"].items()}
    lines = [f'    {name} = import_module("{module}")' for module, name in modules.items()]
    lines += [f"    {line}" for line in program["lines"]]
    outputs = ", ".join(f'"{name}": {value}' for name, value in (program["outputs"] or {}).items())
    return "\n".join([*lines, f"    return {{{outputs}}}"])


def _between(text: str, mark: str, content: str) -> str:
    """The text with what stands between two marks, and the marks, replaced."""
    pattern = re.compile(rf"^ *# {mark}\n.*?^ *# end of {mark}$", re.DOTALL | re.MULTILINE)
    replaced, count = pattern.subn(lambda _: content, text)
    assert count == 1, mark
    return replaced
