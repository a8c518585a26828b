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


def seen_with(rate: float, count: int) -> float:
    """The chance that at least one of so many is wrong, each with a rate and for itself: 1 - (1 - rate)^count."""
    return -math.expm1(count * math.log1p(-rate)) if rate < 1 else float(count > 0)


def one_of(rate: float, count: int) -> float:
    """The rate of each of so many, of which at least one is wrong at a rate."""
    return -math.expm1(math.log1p(-rate) / count) if rate < 1 else 1.0


def count_needed(rate: float, chance: float = CONFIDENCE) -> int:
    """How many must be looked at for one that is wrong at a rate to be seen with a chance."""
    return math.ceil(math.log1p(-chance) / math.log1p(-rate)) if rate < 1 else 1


def rate_seen(count: int) -> float:
    """The smallest rate that shows among so many with CONFIDENCE; 1 where there are none."""
    return one_of(CONFIDENCE, count) if count else 1.0


def exact_interval(hits: int, runs: int, confidence: float = 0.95) -> tuple[float, float]:
    """The interval of Clopper and Pearson of a rate seen as ``hits`` of ``runs``: it is never too narrow."""
    tail = (1 - confidence) / 2
    low = _quantile(tail, hits, runs - hits + 1) if hits else 0.0
    high = _quantile(1 - tail, hits + 1, runs - hits) if hits < runs else 1.0
    return low, high


def _quantile(share: float, a: float, b: float) -> float:
    """Where the beta distribution has a share below, by halving its logarithm: small rates keep their digits."""
    low, high = -745.0, 0.0
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if _beta_below(math.exp(middle), a, b) < share else (low, middle)
    return math.exp(high)


def _beta_below(x: float, a: float, b: float) -> float:
    """The regularised incomplete beta function, by Lentz's continued fraction (Numerical Recipes, section 6.4)."""
    if x <= 0 or x >= 1:
        return float(x >= 1)
    if x > (a + 1) / (a + b + 2):
        return 1 - _beta_below(1 - x, b, a)
    front = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)
    tiny, d = 1e-300, 1 - (a + b) * x / (a + 1)
    d = 1 / (d or tiny)
    c, value = 1.0, d
    for m in range(1, 10_000):
        for step in (
            m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1)),
        ):
            d, c = 1 / ((1 + step * d) or tiny), (1 + step / c) or tiny
            value *= d * c
        if abs(d * c - 1) < 1e-12:
            break
    return math.exp(front) * value / a


def interval(hits: int, runs: int) -> tuple[float, float]:
    """Wilson's 95% interval of a rate seen as ``hits`` of ``runs``."""
    rate, square = hits / runs, Z95 * Z95 / runs
    middle = (rate + square / 2) / (1 + square)
    half = Z95 / (1 + square) * math.sqrt(rate * (1 - rate) / runs + square / (4 * runs))
    return max(0.0, middle - half), min(1.0, middle + half)
