"""Errors a user can cause or must act on; each carries the exit code the command ends with."""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    """Exit codes of every command."""

    PASS = 0
    FAIL = 1  # mismatch, violation, crash or hang of the code under test
    USAGE = 2  # bad option, bad scenario
    INCONCLUSIVE = 3  # infrastructure: no GPU where one was asked for, torchrun failed, records lost
    NOTHING_RAN = 5
    INTERRUPTED = 130
    BROKEN_PIPE = 141  # nobody read the output to its end
    TERMINATED = 143


class GpucheckError(Exception):
    """Base of the errors whose message is written for the user.

    The message says what was found, what was expected and what to do.
    """

    exit_code = ExitCode.INCONCLUSIVE


class UsageError(GpucheckError):
    """A bad option, scenario or path given by the user."""

    exit_code = ExitCode.USAGE


class InfrastructureError(GpucheckError):
    """The run could not be made or finished for a reason outside the code under test."""

    exit_code = ExitCode.INCONCLUSIVE


class NothingToRunError(GpucheckError):
    """The selection holds no case."""

    exit_code = ExitCode.NOTHING_RAN


class UnusableGpu(Exception):
    """The driver lists a GPU and torch cannot use it, which says nothing of the code under test."""


class Inapplicable(Exception):
    """The library under test, or this machine, does not offer what a case asks for; the text says why."""


NCCL_ERROR = "NCCL error"  # begins what torch says of one
MOST_NCCL_LINES = 6


def first_line(error: BaseException) -> str:
    """What an exception says, without the advice that those of CUDA and others carry after their first line."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), "no message")


def error_line(error: BaseException) -> str:
    """Type and first line of an exception; of an error of NCCL all lines, since its last ones say what failed."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    told = "; ".join(lines[:MOST_NCCL_LINES]) if lines and NCCL_ERROR in lines[0] else first_line(error)
    return f"{type(error).__name__}: {told}"
