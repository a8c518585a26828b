"""Which failures only warn, by what a run is judged by: pure functions over a run.

An engine pads, swizzles and pins before it calls the library, so a fault of the bare library need not reach what a pod
serves. Where the engine's path is judged, such a fault warns, if it is one of the code: wrong outputs or reads outside
of tensors that show every time, on every rank that was judged. Of these warn:

- A read outside, on a rank where right cases of each engine compute the same product: format, layout and sizes. The
  number of experts may differ: their weights have one shape, and only the end of the last one matters.
- Other wrong numbers, where that is so for as many experts and tokens: which code runs depends on both.
- Both, in a mode or layout that no case of an engine uses, of a format that one uses. Of other formats the run does not
  show how an engine would compute them.

Data over the whole range of a format is covered by no case of an engine. All else fails: stores outside, crashes,
hangs, what is intermittent, and whatever is wrong in a case of an engine. Where the bare library is judged, wrong
results of engines warn in turn.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from gpucheck.diagnose.answers import every_time, kinds
from gpucheck.diagnose.causes.kernel_bug import KERNEL_BUG
from gpucheck.diagnose.causes.out_of_bounds import OUTSIDE
from gpucheck.diagnose.causes.suspect_gpu import SUSPECT_GPU
from gpucheck.diagnose.causes.undetermined import UNDETERMINED
from gpucheck.diagnose.finding_cases import Key, keys_of, split
from gpucheck.diagnose.wording import rank_list
from gpucheck.model.finding import Finding
from gpucheck.model.product import Product
from gpucheck.model.record import Outcome, Record
from gpucheck.model.vocabulary import ViolationKind
from gpucheck.records.run_folder import Run, Tally

COVERED, UNUSED, ENGINE = "covered", "unused", "engine"
"""Why a failure warns: the engine computes the same right, does not use it, or is not what the run is judged by."""
BY_LIBRARY = "judged by the bare library"


@dataclass(frozen=True)
class Judged:
    """What became of the findings of a run."""

    findings: list[Finding]
    keys: frozenset[Key]  # step and rank of what only warns, in each of its findings


def judge(run: Run, findings: Sequence[Finding]) -> Judged:
    """Makes warnings of the failures that do not concern what the run is judged by; says why others still fail."""
    if run.plan.judge == "both":
        return Judged(list(findings), frozenset())
    engines, made, warned = _Engines(run), list[Finding](), set[Key]()
    for finding in findings:
        told = {key: _mark(engines, finding, key) for key in keys_of(run, finding) if finding.fails}
        marks = {key: mark for key, (mark, _) in told.items() if mark}
        others = {key: why for key, (mark, why) in told.items() if why and not mark}
        for mark, part in split(run, finding, marks, others) if marks or others else [(None, finding)]:
            words = _words(engines, mark, part) if mark else ""
            made.append(replace(part, fails=False, warns=True, judged=words) if mark else part)
        warned |= marks.keys()
    failing = {key for finding in made if finding.fails for key in keys_of(run, finding)}
    return Judged(sorted(made, key=lambda finding: bool(finding.judged)), frozenset(warned - failing))


def judged_by(run: Run) -> str:
    """What the verdict is about, in words; "" where nothing but the library is tested."""
    plan, engines = run.plan, _Engines(run)
    if not engines.names:
        return f"{BY_LIBRARY}: no case of an engine" if plan.judge == "engine" else ""
    if plan.judge == "library":
        return BY_LIBRARY
    worked = {engines.of(record) for records in engines.judged.values() for record in records}
    if not worked:
        return f"{BY_LIBRARY}: no case of {_all(engines.names)} could run"
    served = f"as {_all(worked)} serve{'s' if len(worked) == 1 else ''} it"
    return f"judged {served}" if plan.judge == "engine" else f"{BY_LIBRARY} and {served}"


@dataclass(frozen=True)
class _Engines:
    """The cases of engines in a run."""

    run: Run

    @cached_property
    def steps(self) -> list[int]:
        return [number for number, step in enumerate(self.run.plan.steps) if step.own_engine]

    @cached_property
    def names(self) -> list[str]:
        """The engines that have cases, with their versions."""
        return list(dict.fromkeys(self._release(number) for number in self.steps))

    @cached_property
    def judged(self) -> dict[int, list[Record]]:
        """By rank, what became of the cases that apply."""
        records = {rank: [self.run.records[(number, rank)] for number in self.steps] for rank in self.run.ranks}
        return {rank: [r for r in each if r.outcome is not Outcome.INAPPLICABLE] for rank, each in records.items()}

    @cached_property
    def sound(self) -> bool:
        """Whether all of these are right."""
        return all(record.outcome is Outcome.PASS for each in self.judged.values() for record in each)

    @cached_property
    def forms(self) -> set[tuple[str, str, str]]:
        """Format, layout and mode of the products that engines compute on any rank; as they are stored, too."""
        found: set[tuple[str, str, str]] = set()
        for record in (record for each in self.judged.values() for record in each):
            forms = [twin.form for twin in _products(record)]
            strided = record.engine and any("strided" in words.lower() for words in record.engine.layouts)
            found |= {*forms, *((weight, "strided", mode) for weight, _, mode in forms if strided)}
        return found

    def of(self, record: Record) -> str:
        """The engine of one of its cases, with its version."""
        return self._release(record.step)

    def unused(self, product: Product) -> bool:
        """Whether engines' cases have this format, and none has it in this mode and layout."""
        return product.form not in self.forms and any(product.weight == weight for weight, _, _ in self.forms)

    def covering(self, failed: Record, product: Product) -> list[Record]:
        """The cases with a product of a failed record, on its rank; none unless each engine has some, all right."""
        found: dict[str, list[Record]] = {}
        for record in self.judged[failed.rank]:
            same = found.setdefault(self.of(record), [])
            same += [record] if self._same(failed, product, record) else []
        right = all(same and all(one.outcome is Outcome.PASS and one.engine for one in same) for same in found.values())
        return [one for same in found.values() for one in same] if right else []

    def _same(self, failed: Record, product: Product, record: Record) -> bool:
        """Whether an engine's case, where it is right, says that its path has not the fault of a library's product."""
        case, own = self.run.plan.steps[failed.step].case, self.run.plan.steps[record.step].case
        if case.data == "wide":
            return False
        if _reads(failed):
            return any(twin.each == product.each for twin in _products(record))
        return product in _products(record) and case.params.get("m") == own.params.get("m")

    def _release(self, step: int) -> str:
        name = self.run.plan.steps[step].own_engine
        planned = self.run.plan.engine(name)
        return f"{name} {planned['version']}" if planned else name


def _mark(engines: _Engines, finding: Finding, key: Key) -> tuple[str, str]:
    """Why a failure warns, or "" and what is to be said of one that fails."""
    run, record = engines.run, engines.run.records[key]
    step = run.plan.steps[record.step]
    if run.plan.judge == "library":
        return ENGINE if step.own_engine and _beside_library(run, finding, record) else "", ""
    if step.own_engine or not _of_code(run, finding, record):
        return "", ""
    if not any(each.outcome is Outcome.PASS for each in engines.judged[record.rank]):
        return "", "no case of an engine is right on this rank, so the bare library decides"
    products = _products(record)
    if products and all(map(engines.unused, products)):
        return UNUSED, ""
    left = [product for product in products if not engines.covering(record, product)]
    if products and not left:
        return COVERED, ""
    if not products:
        return "", f"no engine case of this run shows whether a fault of {step.case.check} reaches what is served"
    data = " with data over the whole range" if step.case.data == "wide" else ""
    tokens = "" if _reads(record) else f" of {step.case.params.get('m')} tokens"
    return "", f"no engine case of this run computes {_named(record, left)}{tokens}{data}, right on this rank"


def _beside_library(run: Run, finding: Finding, record: Record) -> bool:
    """Whether an engine's case is wrong, and it is not the GPU; the library must have a right case on the rank."""
    return (
        record.outcome in (Outcome.MISMATCH, Outcome.VIOLATION, Outcome.ERROR)
        and finding.cause != SUSPECT_GPU.title
        and any(
            run.records[(number, record.rank)].outcome is Outcome.PASS
            for number, step in enumerate(run.plan.steps)
            if not step.own_engine
        )
    )


def _of_code(run: Run, finding: Finding, record: Record) -> bool:
    """Whether a failure is of the code alone: wrong outputs or reads outside, every time, on all ranks judged."""
    key = (record.step, record.rank)
    tally = run.tallies.get(key, Tally())
    causes = (OUTSIDE,) if _reads(record) else (KERNEL_BUG, UNDETERMINED)
    return (
        all(map(_wrong_or_reads, (record, *run.further.get(key, ()))))
        and finding.cause in [cause.title for cause in causes]
        and tally.failed == tally.runs
        and all(run.records[(record.step, rank)].outcome is not Outcome.PASS for rank in run.ranks)
        and (_reads(record) or every_time(run, record))
    )


def _wrong_or_reads(record: Record) -> bool:
    wrong = (Outcome.MISMATCH, Outcome.VIOLATION)
    return record.outcome in wrong and kinds(record) <= {ViolationKind.PASSES_DIFFER}


def _reads(record: Record) -> bool:
    """Whether outputs change with what lies around the tensors."""
    return ViolationKind.PASSES_DIFFER in kinds(record)


def _products(record: Record) -> list[Product]:
    return [product for name in record.twins if (product := Product.parse(name))]


def _words(engines: _Engines, mark: str, part: Finding) -> str:
    """Both facts about failures that warn: what the library does, and what an engine does."""
    records = [engines.run.records[key] for key in keys_of(engines.run, part)]
    if mark == ENGINE:
        return f"{BY_LIBRARY}: what {_all(map(engines.of, records))} computes decides nothing here"
    reads = any(map(_reads, records))
    fault = "the library reads outside of its tensors" if reads else "the library computes wrong numbers"
    products = [(record, product) for record in records for product in _products(record)]
    if mark == UNUSED:
        forms = _all(f"{product.mode} {product.weight} in the {product.layout} layout" for _, product in products)
        return f"{fault}; no engine case of this run computes {forms}: not served by {_all(engines.names)} here"
    right = [one for record, product in products for one in engines.covering(record, product)]
    names = _all(_named(record, [product]) for record, product in products)
    layouts = _all(words for one in right if one.engine for words in one.engine.layouts if "scale" in words)
    computes = "computes" if len({*map(engines.of, right)}) == 1 else "compute"
    told = f"{fault}; {_all(map(engines.of, right))} {computes} {names} right on {rank_list(part.ranks)}"
    return told + f", held as {layouts}" * bool(layouts) + ": this pod serves right numbers" * engines.sound


def _named(record: Record, products: Iterable[Product]) -> str:
    return _all(product.each if _reads(record) else product.name for product in products)


def _all(words: Iterable[str]) -> str:
    """``a, b and c``, each once."""
    *most, last = sorted({*words}) or [""]
    return f"{', '.join(most)} and {last}" if most else last
