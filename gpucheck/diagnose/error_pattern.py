"""What is wrong with an output, in a few words: read off one mismatch, whatever caused it."""

from __future__ import annotations

from gpucheck.model.record import Mismatch, Record

MOST = 0.8  # share that counts as nearly all
FEW = 4  # elements of which each may have one bit flipped, whatever their values
SMALL = 2.0**-5  # rms error, relative to the reference, below which digits were lost and nothing else
ALIKE = 0.99  # correlation of an output that is the right one but for a small error
UNRELATED = 0.3  # correlation up to which an output has nothing to do with its reference
ROUNDING = 2.0**-6  # rms error, relative to the reference, up to which an error can be the final rounding

NOT_WRITTEN = "output not written"
BIT = "one bit flipped"
PERMUTED = "rows permuted"
CLEARED = "0 instead of 1"
SET = "1 instead of 0"
INVERTED = "0 and 1 exchanged"
OFF_BY_ONE = "off by one"
OFF = "off by the same number"
REORDERED = "values in another order"
GROUP = "wrong"  # and the word of the group
SCALE = "wrong scale"
SIGN = "wrong sign"
FACTOR = "off by one factor"
ZERO = "zero instead of the result"
OPERAND = "wrong operand"
NAN = "NaN"
INF = "Inf"
INWARD = "rounded toward zero"
PRECISION = "lower precision than asked"
PARTIAL = "part of each sum missing or counted twice"
WRONG = "wrong output"


def nature(record: Record) -> str:
    """What the first mismatch of a record looks like; "" where nothing mismatches."""
    return _of(record.mismatches[0]) if record.mismatches else ""


def _of(mismatch: Mismatch) -> str:
    if mismatch.poison >= MOST * mismatch.wrong:
        return NOT_WRITTEN
    if mismatch.nan >= MOST * mismatch.wrong:
        return NAN
    if mismatch.inf >= MOST * mismatch.wrong:
        return INF
    if mismatch.method == "integer":
        return _of_integers(mismatch)
    if flipped(mismatch):
        return BIT
    if mismatch.sampled and mismatch.moved >= MOST * mismatch.sampled:
        return PERMUTED
    related = mismatch.correlation
    if mismatch.exactly and (related is None or related < ALIKE):
        return f"{GROUP} {next(iter(mismatch.exactly))}"
    if mismatch.zeros >= MOST * mismatch.wrong:
        return ZERO
    if _factor(mismatch):
        return SIGN if mismatch.ratio == -1 else SCALE
    if mismatch.step is not None:
        return OFF
    if related is None or mismatch.relative is None:
        return WRONG
    if related >= ALIKE and mismatch.relative <= SMALL:
        return INWARD if mismatch.inward <= -0.9 and mismatch.relative <= ROUNDING else PRECISION
    if mismatch.wrong < MOST * mismatch.total:
        return WRONG
    return OPERAND if related <= UNRELATED else PARTIAL


def flipped(mismatch: Mismatch) -> bool:
    """Whether single bits are what is wrong, and not values that happen to differ in one.

    Zero differs from a power of two in one bit, twice a value from the value, one id from the next. So few elements
    count, or many of which most are explained by no such thing; of integers, those that are no value of their kind.
    """
    if not mismatch.bits or mismatch.zeros >= MOST * mismatch.wrong or _factor(mismatch):
        return False
    if mismatch.method == "integer":
        return mismatch.wrong <= FEW and mismatch.outside == mismatch.wrong and not _off_by_one(mismatch)
    if mismatch.wrong <= FEW:
        return True
    return mismatch.bits != [0] and mismatch.scaled < MOST * mismatch.wrong


def of_flags(mismatch: Mismatch) -> bool:
    """Whether an output is one of truth values, of which some are the other one."""
    flags = bool(mismatch.span) and 0 <= mismatch.span[0] <= mismatch.span[1] <= 1
    return flags and mismatch.got in (0.0, 1.0) and _off_by_one(mismatch)


def _factor(mismatch: Mismatch) -> bool:
    """Whether nearly all wrong elements are the right ones times one factor."""
    return mismatch.ratio is not None and mismatch.ratio != 0 and abs(mismatch.ratio - 1) > SMALL


def _off_by_one(mismatch: Mismatch) -> bool:
    """Whether no wrong element is further off than the worst, which is off by one."""
    return mismatch.got is not None and abs(mismatch.got - mismatch.expected) == 1


def _of_integers(mismatch: Mismatch) -> str:
    """What flags, ids, counts or places look like: they have no digits to lose."""
    if of_flags(mismatch):
        if not mismatch.zeros:
            return SET
        return CLEARED if mismatch.zeros == mismatch.wrong else INVERTED
    if mismatch.step is None and mismatch.sampled and mismatch.moved >= MOST * mismatch.sampled:
        return PERMUTED
    if mismatch.exactly:
        return f"{GROUP} {next(iter(mismatch.exactly))}"
    if mismatch.zeros >= MOST * mismatch.wrong:
        return ZERO
    if _off_by_one(mismatch):
        return OFF_BY_ONE
    if mismatch.step is not None:
        return OFF
    if _factor(mismatch):
        return FACTOR
    if mismatch.reordered:
        return REORDERED
    return BIT if flipped(mismatch) else WRONG
