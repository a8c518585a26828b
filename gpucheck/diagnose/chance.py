"""How likely luck is: the unit of evidence is a process, since calls of one process share whatever it began with."""

from __future__ import annotations

import math

LUCK = 1e-3  # largest chance that processes with no difference between them came out as a stated cause needs it
MOST_PROCESSES = 24  # of one experiment
CALLS = 8  # in the process of an experiment, so that a fault of some calls shows as one
MOST_CALLS = 64
SEEN = 0.9  # share of processes that are to show a failure which comes and goes within them
CONFIDENCE = 0.99  # of the bound on the share of processes that fail
LEAST_SHARE = 0.95  # of processes that must fail, by that bound, before the code is said to fail in every one
EVERY_TIME = math.ceil(math.log(1 - CONFIDENCE) / math.log(LEAST_SHARE))  # processes that show it, if all fail
Z95 = 1.959964  # of the normal distribution, for a two-sided interval of 95%


def by_luck(wrong: int, processes: int, right: int) -> float:
    """The chance that all processes which fail are among the first ``processes``, if nothing tells them from the rest.

    Whatever share of processes fails: of so many that do, each set of processes is as likely as any other.

    Args:
        wrong: of the first processes, how many failed.
        right: further processes, under a changed condition, none of which failed.
    """
    return math.comb(processes, wrong) / math.comb(processes + right, wrong)


def one_rate(often: int, seldom: int) -> float:
    """The largest chance that calls of one rate come out so: those of some processes all alike, of others otherwise.

    Args:
        often: calls that gave the one result, seldom: the other one, each sorted into whole processes.
    """
    calls = often + seldom
    return (often / calls) ** often * (seldom / calls) ** seldom if seldom else 1.0


def at_most(hits: int, runs: int, rate: float) -> float:
    """The chance of so many hits or fewer."""
    return sum(math.comb(runs, k) * rate**k * (1 - rate) ** (runs - k) for k in range(hits + 1))


def share_at_least(processes: int) -> float:
    """The share of all processes that fails, at least, where each of so many did.

    The exact bound of Clopper and Pearson: a smaller share would have spared one of them with :data:`CONFIDENCE`.
    """
    return float((1 - CONFIDENCE) ** (1 / processes))


def calls_needed(rate: float) -> int:
    """How many calls a process must make for a failure of this rate to show in most processes."""
    if rate >= 1:
        return CALLS
    if rate <= 0:
        return MOST_CALLS
    return min(MOST_CALLS, max(CALLS, math.ceil(math.log(1 - SEEN) / math.log(1 - rate))))


def rate_words(hits: int, runs: int) -> str:
    """A rate with the interval that the true one lies in, as finely as its size asks for."""
    low, high = interval(hits, runs)
    digits = 0 if hits and hits / runs >= 0.1 else 2
    return f"rate {hits / runs:.{digits}%}, 95% interval {low:.{digits}%} to {high:.{digits}%}"


def interval(hits: int, runs: int) -> tuple[float, float]:
    """Wilson's 95% interval of a rate seen as ``hits`` of ``runs``."""
    rate, square = hits / runs, Z95 * Z95 / runs
    middle = (rate + square / 2) / (1 + square)
    half = Z95 / (1 + square) * math.sqrt(rate * (1 - rate) / runs + square / (4 * runs))
    return max(0.0, middle - half), min(1.0, middle + half)
