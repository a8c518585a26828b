"""What the run of a pair makes of an answer: its report, or how it ended without one."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any

from gpucheck.host.processes import ending
from gpucheck.tools.serve.evaluator import PRINTED, Ended
from gpucheck.tools.serve.tasks import Answer, Evaluation

PROBLEM, CANDIDATE, SCENARIO = "problem.py", "candidate.py", "trials.toml"
"""Files of an evaluation, whose names stand in case ids and so in the seeds of the inputs."""
EXCESSIVE = 10.0  # speed-up above which KernelBench doubts a time
REPORTING = 15.0  # s that a run has to write its report once its own time is up
LONGEST = 20_000  # characters of a text from the run
STATUS = {"seconds": 504, "host_memory": 507, "device_memory": 507, "files": 507}
"""HTTP status where a limit was exceeded; 500 for the others."""
OUT_OF_MEMORY, RESOURCE_LIMIT, FALLBACK = "out of memory", "resource limit", "fallback"
RULE = "kernelbench"
COMPILE_CAUSES = ("compile error on this Triton",)
NOT_LOADED = f"{CANDIDATE} cannot be loaded: "


def answer(evaluation: Evaluation, ended: Ended, folder: Path, facts: Mapping[str, Any]) -> Answer:
    """The answer to an evaluation.

    Args:
        folder: its scratch folder, which holds ``report.json`` where there is a report.
        facts: metadata that says where it ran.
    """
    metadata = {
        **facts,
        "evaluation_seconds": round(ended.seconds, 3),
        "peak_host_memory": ended.host_memory,
        "peak_device_memory": ended.device_memory,
        "processes": ended.processes,
    }
    report = _report(folder)
    if report is not None:
        metadata.update(_of_report(evaluation, report))
    if ended.died:
        detail = "the process that watches the evaluation was killed while it ran"
        return Answer(500, "FAIL", detail=detail, metadata={**metadata, "runtime_error": detail})
    if ended.stopped:
        return Answer(500, detail=f"the evaluation was ended: {ended.stopped}", metadata=metadata, lasting=False)
    if ended.exceeded:
        limit, detail = ended.exceeded["limit"], ended.exceeded["detail"]
        verdict = {"verdict": "FAIL", "exceeded": limit, "runtime_error": detail}
        return Answer(STATUS.get(limit, 500), "FAIL", detail=detail, metadata={**metadata, **verdict})
    if report is None:
        return _without_report(ended, folder, metadata)
    if report["verdict"] not in ("PASS", "FAIL") and _timed_out(folder):
        detail = f"it was not judged within {evaluation.seconds:g} s"
        late = {"verdict": "FAIL", "exceeded": "seconds", "runtime_error": detail}
        return Answer(504, "FAIL", detail=detail, metadata={**metadata, **late})
    elsewhere = {result["gpu"] for result in report["results"]} - {"", facts["device_uuid"]}
    if elsewhere:
        detail = f"it ran on {', '.join(sorted(elsewhere))}, and was given {facts['device_uuid'] or 'the CPU'}"
        return Answer(500, detail=detail, metadata=metadata, lasting=False)
    return _judged(evaluation, report, metadata)


def _timed_out(folder: Path) -> bool:
    """Whether the run ended because its own time was up."""
    try:
        return json.loads((folder / "run/outcome.json").read_text(encoding="utf-8"))["timed_out"] is True
    except (OSError, ValueError, KeyError, TypeError):
        return False


def command(evaluation: Evaluation, device: str, folder: Path) -> list[str]:
    """The run of a pair in its folder, whose sources it writes there."""
    for name, text in (
        (PROBLEM, _with_alias(evaluation.problem, "Model", evaluation.entry_point)),
        (CANDIDATE, _with_alias(evaluation.candidate, "ModelNew", f"{evaluation.entry_point}New")),
        (SCENARIO, _scenario(range(1, evaluation.trials + 1))),
    ):
        (folder / name).write_text(text, encoding="utf-8")
    limits = ["--timeout", f"{evaluation.seconds:g}", "--case-timeout", f"{evaluation.seconds / 2:g}"]
    options = ["--experiments", "0", "--out", "run", "--json", "report.json", "--quiet"]
    return ["run", SCENARIO, *_pair(evaluation), "--device", device, *limits, *options]


def _pair(evaluation: Evaluation) -> list[str]:
    asked = [*(["--own-kernel"] if evaluation.own_kernel else []), "--seed", str(evaluation.seed)]
    asked += ["--precision", evaluation.precision] if evaluation.precision else []
    return ["--problem", PROBLEM, "--candidate", CANDIDATE, "--rule", RULE, "--nproc", "1", *asked]


def _scenario(trials: Sequence[int]) -> str:
    return f'[[cases]]\ncheck = "{Path(CANDIDATE).stem}"\ntrial = [{", ".join(map(str, trials))}]\n'


def _with_alias(source: str, name: str, given: str) -> str:
    return source if given == name else f"{source}\n{name} = {given}\n"


def replay(evaluation: Evaluation, device: str, trials: Sequence[int]) -> str:
    """A command line that judges the same trials anywhere, of the two sources in files of these names."""
    scenario = shlex.quote(_scenario(trials).replace("\n", "\\n"))
    run = shlex.join(["gpucheck", "run", SCENARIO, *_pair(evaluation), "--device", device])
    return f"printf {scenario} > {SCENARIO} && {run}"


def _report(folder: Path) -> dict[str, Any] | None:
    """The report, in which nothing tells of the folder."""
    try:
        report = json.loads((folder / "report.json").read_text(encoding="utf-8").replace(f"{folder}/", ""))
    except (OSError, ValueError, RecursionError):
        return None
    return report if isinstance(report, dict) and "results" in report else None


def _of_report(evaluation: Evaluation, report: Mapping[str, Any]) -> dict[str, Any]:
    """Verdict, findings and replay command."""
    results = report["results"]
    failed = [number for number, result in enumerate(results, start=1) if result["outcome"] != "pass"]
    passed = len(results) - len(failed)
    findings = [
        {
            "title": finding["title"],
            "cause": finding["cause"],
            "fails": finding["fails"],
            "evidence": finding["evidence"],
            "fix": finding["fix"],
            "cases": [{"case": case["case"], "lines": case["lines"]} for case in finding["cases"]],
        }
        for finding in report["findings"]
    ]
    return {
        "verdict": report["verdict"],
        "findings": findings,
        "notes": report["notes"],
        "replay": replay(evaluation, report["plan"]["device"], failed or range(1, evaluation.trials + 1)),
        "correctness_trials": f"({passed} / {evaluation.trials})",
        RULE: _by_rule(results, evaluation.trials),
        "walls": sorted({wall for result in results for wall in result["walls"]}),
        "not_own_kernels": any(finding["fails"] and finding["cause"] == FALLBACK for finding in report["findings"]),
        "software": {
            name: (report["plan"]["environment"]["software"].get(name) or {}).get("version", "")
            for name in ("torch", "triton")
        },
    }


def _by_rule(results: Sequence[Mapping[str, Any]], trials: int) -> dict[str, Any]:
    """What KernelBench itself would say of the outputs, beside our own verdict."""
    said = [result["rules"][RULE] for result in results if RULE in result["rules"]]
    close = sum(each["close"] for each in said)
    return {"correctness": close == trials, "correctness_trials": f"({close} / {trials})", "trials": said}


def _judged(evaluation: Evaluation, report: Mapping[str, Any], metadata: dict[str, Any]) -> Answer:
    verdict, results = report["verdict"], report["results"]
    outcomes = {result["outcome"] for result in results}
    metadata = {**metadata, **_reasons(report)}
    if "hang" in outcomes:
        return Answer(504, verdict, detail=_first(results, "hang"), metadata=metadata)
    if any(finding["cause"] == OUT_OF_MEMORY for finding in report["findings"]):
        return Answer(507, verdict, detail=metadata.get("runtime_error", OUT_OF_MEMORY), metadata=metadata)
    if verdict not in ("PASS", "FAIL"):
        detail = "; ".join(finding["title"] for finding in report["findings"]) or "not everything was judged"
        return Answer(500, verdict, detail=f"no verdict: {detail}", metadata=metadata, lasting=False)
    correct = verdict == "PASS"
    taken = results if evaluation.timed else []  # with others on the device a time says nothing
    stats, reference = (_stats(taken, name) for name in ("candidate", "reference"))
    if correct and stats and reference:
        speedup = reference["mean"] / stats["mean"]
        metadata["speedup"] = round(speedup, 4)
        metadata["excessive_speedup"] = speedup > EXCESSIVE
    return Answer(
        200,
        verdict,
        compiled="compilation_error" not in metadata,
        correct=correct,
        runtime=stats.get("mean") if correct else None,
        reference=reference.get("mean"),
        runtime_stats=stats if correct else {},
        reference_stats=reference,
        metadata=metadata,
    )


def _reasons(report: Mapping[str, Any]) -> dict[str, Any]:
    """What KernelBench's readers look for: why it did not compile, did not run, or is not right, and how far off."""
    found: dict[str, Any] = {}
    causes = {finding["cause"]: finding for finding in report["findings"] if finding["fails"]}
    for result in report["results"]:
        if result["outcome"] in ("error", "crash", "hang"):
            compiling = NOT_LOADED in result["message"] or any(cause in causes for cause in COMPILE_CAUSES)
            name = "compilation_error" if compiling else "runtime_error"
            text = result["traceback"] or result["message"]
            found.setdefault(name, text[-LONGEST:])
            found.setdefault(f"{name}_name", result["message"].partition(":")[0][:200])
        said = result["rules"].get(RULE, {}) if result["mismatches"] else {}
        for name in ("max_difference", "avg_difference"):
            if isinstance(said.get(name), (int, float)):
                found.setdefault(name, []).append(f"{said[name]:.6f}")
    found["resource_limit"] = RESOURCE_LIMIT in causes
    found["crashed"] = any(result["outcome"] in ("crash", "hang") for result in report["results"])
    titles = [finding["title"] for finding in report["findings"] if finding["fails"]]
    if titles and not {"compilation_error", "runtime_error"} & found.keys():
        found["correctness_issue"] = "; ".join(titles)
    return found


def _first(results: Sequence[Mapping[str, Any]], outcome: str) -> str:
    return next(result["message"] or outcome for result in results if result["outcome"] == outcome)


def _stats(results: Sequence[Mapping[str, Any]], name: str) -> dict[str, float]:
    """Mean, deviation and ends of the times of one call in each trial, in ms; empty without times."""
    times = [result["timings"][name] * 1e3 for result in results if result["timings"].get(name)]
    if not times:
        return {}
    spread = {"mean": fmean(times), "std": pstdev(times), "min": min(times), "max": max(times)}
    return {**{key: float(f"{value:.4g}") for key, value in spread.items()}, "num_trials": len(times)}


def _without_report(ended: Ended, folder: Path, metadata: dict[str, Any]) -> Answer:
    """A run that ended before it had a report: the sources are no pair, or something else is wrong."""
    said = _message(folder)
    if ended.code == 2:
        return Answer(400, detail=said or "the sources are no pair", metadata={**metadata, "compilation_error": said})
    if ended.code is not None and ended.code < 0:
        detail = f"the command that runs the evaluation {ending(ended.code)}, by what it ran or for want of memory"
        return Answer(500, "FAIL", detail=detail, metadata={**metadata, "verdict": "FAIL", "runtime_error": detail})
    detail = said or f"the run ended with code {ended.code} and no report"
    return Answer(500, detail=detail, metadata=metadata, lasting=False)


def _message(folder: Path) -> str:
    """What the command said it ended for, without the path of its folder."""
    try:
        text = (folder / PRINTED).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    _, found, message = text.rpartition("gpucheck: ")
    return message.strip().replace(f"{folder}/", "")[:LONGEST] if found else ""
