"""Calls whose answer does not come from their inputs, or that do more than answer."""

from __future__ import annotations

from gpucheck.diagnose.causes.common import Evidence, error_summary
from gpucheck.diagnose.causes.overwritten import OVERWRITTEN
from gpucheck.diagnose.page import Cause
from gpucheck.model.record import Record
from gpucheck.model.vocabulary import ViolationKind
from gpucheck.records.run_folder import Run

NOT_FROM_INPUTS = Cause(
    "answer not from its inputs",
    means="The call gave an answer that belongs to other inputs: one that it kept from an earlier call, or one that it "
    "looks up by the address of its inputs instead of by their content.",
    shows="Other inputs, in other memory or in the same, get the answer of the call before; a second call with "
    "equal inputs launches no kernel; a later call gets another answer than a fresh process gives.",
    confirm="The finding says which call got whose answer; call it twice with different inputs of one shape.",
    fix="Do not keep answers between calls: compute each one from the inputs of its call.",
)
CHANGES_INPUTS = Cause(
    "changes its inputs",
    means="The call writes to the tensors it was given to read: inputs, weights, scales, routing tables.",
    shows="The answer may be right; whoever uses an input again gets other results.",
    confirm="The finding names the tensor, how many of its elements changed, the first of them, and the call of the "
    "library that did it, if there are several. A tensor that the reference changes too is not reported.",
    fix="Write to newly allocated memory, or say in the name of the function that it works in place.",
)
ALIASED = Cause(
    "output in the memory of an input",
    means="The output lies in the memory of an input or weight.",
    shows="The numbers are right until someone writes to the one and so changes the other.",
    confirm="The finding names both.",
    fix="Return newly allocated memory.",
)
SETTINGS = Cause(
    "leaves settings changed",
    means="The call changes a setting of its thread or process and does not restore it: the default dtype or device, a "
    "random state, the current device or stream, gradient mode, flags of determinism or precision, environment "
    "variables, the working directory.",
    shows="The numbers are right; what runs next in the process computes something else, or on another device. "
    "gpucheck puts the setting back after each call, so later cases do not show it.",
    confirm="The finding names the setting with its value before and after.",
    fix="Restore the setting (try ... finally), or use the context manager that torch has for it.",
)
NOT_AS_ASKED = Cause(
    "output not as asked",
    means="The numbers are right as far as they can be told, but an output has another shape or dtype than asked "
    "for, lies on another device, leaves gaps in its memory, or its elements share memory.",
    shows="A caller that views, sends or writes to the output fails, or changes elements that it did not mean.",
    confirm="The finding names the output with what it is and what was expected.",
    fix="Return a dense tensor of the shape and dtype asked for, on the device of the inputs.",
)
TUNED_TO_DRAWS = Cause(
    "right for the drawn inputs alone",
    means="The answer counts on how the problem draws its inputs: on their sign, their mean, their size, or on a value "
    "that most of them do not exceed. Work that such inputs do not need is left out.",
    shows="Right numbers for all inputs of the problem; wrong ones, where the plain code has an answer, once these are "
    "turned around, made smaller and moved a little.",
    confirm="The finding says how these inputs were made: draw some, change them so, and compare with the plain code.",
    fix="Compute what the plain code computes for every input of its shape and dtype.",
)
LEFT_BEHIND = Cause(
    "leaves processes behind",
    means="The code under test started processes that went on in sessions of their own when its process had ended.",
    shows="The numbers may be right. What is left behind holds memory of the host or the GPU, slows down what is "
    "measured next, and can change files when nobody looks any more. gpucheck ends it.",
    confirm="The finding says how many there were. Helpers that watch over their parent and end soon after it do "
    "not count.",
    fix="Wait for what you start (subprocess.run, Process.join), and start nothing in a session of its own.",
)
CAUSES = (
    NOT_FROM_INPUTS,
    CHANGES_INPUTS,
    ALIASED,
    SETTINGS,
    NOT_AS_ASKED,
    TUNED_TO_DRAWS,
    LEFT_BEHIND,
)

SHOWN = {
    ViolationKind.CACHED: NOT_FROM_INPUTS,
    ViolationKind.CALLS_DIFFER: NOT_FROM_INPUTS,
    ViolationKind.INPUTS: CHANGES_INPUTS,
    ViolationKind.ALIAS: ALIASED,
    ViolationKind.REUSED: OVERWRITTEN,
    ViolationKind.SETTINGS: SETTINGS,
    ViolationKind.STATISTICS: TUNED_TO_DRAWS,
    ViolationKind.LEFT_BEHIND: LEFT_BEHIND,
}
"""Cause by violation kind, the more telling first."""
FORM = (ViolationKind.OUTPUT, ViolationKind.LAYOUT)
"""Violation kinds that say how an output looks; wrong numbers, or a call that was answered otherwise, tell more."""

OF_KEPT_ANSWERS = (ViolationKind.FALLBACK, ViolationKind.LAUNCHES, ViolationKind.REUSED)
"""Violation kinds that an answer which is kept brings about: too few launches, and memory that is handed out twice."""


def recognise(run: Run, record: Record) -> Evidence | None:
    """The call did something to its inputs or to its process beside answering, or took its answer from elsewhere.

    A kept answer explains that nothing was launched and that passes differ; a store outside of tensors explains that
    inputs change.
    """
    kinds = {violation.kind for violation in record.violations}
    if ViolationKind.GUARD in kinds:
        return None
    cause = next((cause for kind, cause in SHOWN.items() if kind in kinds), None)
    if kinds & set(OF_KEPT_ANSWERS) and _keeps_answers(run, record):
        cause = NOT_FROM_INPUTS
    if cause is None and kinds and kinds <= set(FORM) and not record.mismatches:
        cause = NOT_AS_ASKED
    detail = error_summary(record) if cause == OVERWRITTEN and record.mismatches else ""
    return Evidence(cause, detail, across=False) if cause else None


def _keeps_answers(run: Run, record: Record) -> bool:
    """Whether the candidate was shown to, on this rank, by the further calls after one of its cases."""
    check = run.plan.steps[record.step].case.check
    return check in run.plan.candidates and any(
        violation.kind is ViolationKind.CACHED
        for (step, rank), other in run.records.items()
        if rank == record.rank and run.plan.steps[step].case.check == check
        for violation in other.violations
    )
