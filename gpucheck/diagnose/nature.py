"""What is wrong with an output, in a few words: read off one mismatch, whatever caused it."""

from __future__ import annotations

from gpucheck.model.record import Mismatch, Record

MOST = 0.8  # share that counts as nearly all
SMALL = 2.0**-5  # rms error, relative to the reference, below which digits were lost and nothing else
ALIKE = 0.99  # correlation of an output that is the right one but for a small error
UNRELATED = 0.3  # correlation up to which an output has nothing to do with its reference
ROUNDING = 2.0**-6  # rms error, relative to the reference, up to which an error can be the final rounding

NOT_WRITTEN = "output not written"
BIT = "one bit flipped"
PERMUTED = "rows permuted"
GROUP = "wrong"  # and the word of the group
SCALE = "wrong scale"
ZERO = "zero instead of the result"
OPERAND = "wrong operand"
NAN = "NaN"
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
    if mismatch.bits:
        return BIT
    if mismatch.sampled and mismatch.moved >= MOST * mismatch.sampled:
        return PERMUTED
    related = mismatch.correlation
    if mismatch.exactly and (related is None or related < ALIKE):
        return f"{GROUP} {next(iter(mismatch.exactly))}"
    if mismatch.ratio is not None and abs(mismatch.ratio - 1) > SMALL:
        return SCALE if mismatch.ratio else ZERO
    if related is None or mismatch.relative is None:
        return WRONG
    if related >= ALIKE and mismatch.relative <= SMALL:
        return INWARD if mismatch.inward <= -0.9 and mismatch.relative <= ROUNDING else PRECISION
    if mismatch.wrong < MOST * mismatch.total:
        return WRONG
    return OPERAND if related <= UNRELATED else PARTIAL
