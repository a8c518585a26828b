"""What is wrong with an output, in a few words: read off one mismatch, whatever caused it."""

from __future__ import annotations

from gpucheck.diagnose.page import Page
from gpucheck.model.record import Mismatch, Record

MOST = 0.8  # share that counts as nearly all
FEW = 4  # elements of which each may have one bit flipped, whatever their values
SMALL = 2.0**-5  # share of a factor up to which it counts as one
ALIKE = 0.99  # correlation of an output that is the right one but for a small error
UNRELATED = 0.3  # correlation up to which an output has nothing to do with its reference
DIGITS = 2.0**-6  # rms error, relative to the reference, up to which it can be lost digits, of bf16 at the least
ENOUGH = 100  # wrong elements from which an error can be told to be terms of each sum
UNRELATED_TERMS = 0.1  # correlation up to which an error has nothing to do with the terms beside it

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


def error_pattern(record: Record) -> str:
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
        return SIGN if mismatch.ratio is not None and abs(mismatch.ratio + 1) <= SMALL else SCALE
    if mismatch.step is not None:
        return OFF
    if related is None or mismatch.relative is None:
        return WRONG
    one_way = abs(mismatch.bias) >= MOST > abs(mismatch.inward)  # something was added, to numbers of either sign
    if related >= ALIKE and mismatch.relative <= DIGITS and not one_way:
        return INWARD if mismatch.inward <= -0.9 else PRECISION
    if mismatch.wrong < MOST * mismatch.total:
        return WRONG
    if related <= UNRELATED:
        return OPERAND
    return PARTIAL if _of_terms(mismatch, related, mismatch.relative) else WRONG


def _of_terms(mismatch: Mismatch, correlation: float, relative: float) -> bool:
    """Whether an error can be terms that each sum lacks or has twice.

    Terms know nothing of each other. So the error has no correlation with what is left of a sum without it: with the
    output where terms are missing, with the reference less the error where they count twice. A wrong slope, limit or
    gate has: its error grows with the output. Both correlations follow from the two measured ones, in units of the
    reference's size, where the mean of the output is small.
    """
    if mismatch.wrong < ENOUGH:
        return False
    beyond = correlation**2 + relative**2 - 1
    missing = abs(beyond) ** 0.5 / relative
    along = correlation * (correlation + max(beyond, 0.0) ** 0.5) - 1  # the error times the reference
    rest = 1 + relative**2 - 2 * along
    grown = mismatch.inward >= 0 and rest > 0
    twice = abs(along - relative**2) / (relative * rest**0.5) if grown else 1.0
    return min(missing, twice) <= max(UNRELATED_TERMS, 2.5 / mismatch.wrong**0.5)


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


_PAGES = (
    Page(
        "output not written",
        means="Elements of an output still hold the bytes their memory was filled with before the launch.",
        shows="Whole tiles, or the whole output where the kernel did nothing.",
        confirm="The region of the finding: whole tiles point at the grid or the store's mask, everything at a launch "
        "that never came.",
        fix="Look at how the grid is computed from the shape, and at the mask of the store.",
    ),
    Page(
        "one bit flipped",
        means="Each wrong element differs from the right one in a single bit.",
        shows="Few elements, the bit position in the finding.",
        confirm="On one rank only: see 'suspect GPU'. On all ranks: a corrupted weight file or a rounding step.",
        fix="See the cause the finding names.",
    ),
    Page(
        "0 instead of 1",
        means="Outputs that are 0 or 1, flags or truth values, are 0 where they should be 1.",
        shows="The region of the finding; every wrong element is 0.",
        confirm="Compute the flag for the inputs of those rows: it may be right for an intermediate result that is "
        "wrong.",
        fix="Look at the comparison that makes the flag, and at what it compares.",
    ),
    Page(
        "1 instead of 0",
        means="Outputs that are 0 or 1, flags or truth values, are 1 where they should be 0.",
        shows="The region of the finding; every wrong element is 1.",
        confirm="Compute the flag for the inputs of those rows: it may be right for an intermediate result that is "
        "wrong.",
        fix="Look at the comparison that makes the flag, and at what it compares.",
    ),
    Page(
        "0 and 1 exchanged",
        means="Outputs that are 0 or 1, flags or truth values, are wrong in both directions.",
        shows="The region of the finding.",
        confirm="If all elements are wrong, look for a negation; if some are, for rows that changed places.",
        fix="Look at the comparison that makes the flag, and at the index that it is stored at.",
    ),
    Page(
        "off by one",
        means="Integers (ids, counts, places in a table) are one too large or one too small.",
        shows="The finding says in which direction where all share it.",
        confirm="Counts: is a bound inclusive? Ids: does the first one have the number 0 or 1? Places: cdiv or floor "
        "division?",
        fix="Look at the comparison or rounding that the number comes from.",
    ),
    Page(
        "off by the same number",
        means="All wrong elements differ from the right ones by the same number.",
        shows="The finding says by how much.",
        confirm="Compare the number with what is added somewhere: a bias, the first expert of a rank, the start of a "
        "block.",
        fix="Look at what is added once for all elements, or should be.",
    ),
    Page(
        "off by one factor",
        means="All wrong integers are the right ones times one number.",
        shows="The finding says which.",
        confirm="2 or 4 is often bytes for elements, or a count made twice.",
        fix="Look at the unit that the number is in, and at what is added up.",
    ),
    Page(
        "wrong sign",
        means="Nearly all wrong elements have the right size and the other sign.",
        shows="The region of the finding: everything, or what was negative or positive.",
        confirm="Only what should be negative: a lost sign bit or an absolute value; everything: a negation.",
        fix="Look at the order of a subtraction, and at casts from formats with a sign to ones without.",
    ),
    Page(
        "Inf",
        means="Wrong elements are infinite.",
        shows="The finding says where they start and how many there are.",
        confirm="If only where the right values are large, an intermediate format overflows; elsewhere look for a "
        "division by zero.",
        fix="Look at the dtype of accumulators and at the order of scaling.",
    ),
    Page(
        "values in another order",
        means="Each wrong row holds the right integers, but not in the right places.",
        shows="The finding says which rows.",
        confirm="Whether the order of equal keys is defined at all, and whether the sort is stable.",
        fix="Look at the comparison of the sort, and at how equal keys are put in order.",
    ),
    Page(
        "rows permuted",
        means="Rows of the output are right, but each is in the place of another one.",
        shows="Every wrong row equals the reference of another row, often at a fixed distance.",
        confirm="The finding says how many rows moved, and how far where they moved alike.",
        fix="Look at the gather or scatter index and at the order of a token's experts.",
    ),
    Page(
        "wrong expert",
        means="Whole experts are wrong and all others right: their rows met another expert's weights, scales or "
        "bias, or none.",
        shows="The region says 'exactly experts ...'.",
        confirm="Swapped experts come in pairs; missing ones lie at one end.",
        fix="Look at the expert id the kernel loads, at the histogram and at how weights were loaded or sharded.",
    ),
    Page(
        "wrong scale",
        means="Nearly all wrong elements are the right ones times one factor.",
        shows="The factor is often a power of two.",
        confirm="Look at per-tensor scales, block scales off by one, and at gates applied twice or never.",
        fix="Pass the scale of this call; see whether a scale object is shared and changed between calls.",
    ),
    Page(
        "zero instead of the result",
        means="Nearly all wrong elements are zero.",
        shows="Whole experts, tiles or rows of zeros.",
        confirm="The region of the finding; memory that was cleared and never written holds zeros, and a sum of no "
        "terms is zero.",
        fix="Look at what is left out: an expert that this rank does not hold, a tile outside of the grid, a mask.",
    ),
    Page(
        "wrong operand",
        means="The whole output has nothing to do with the right one: an operand was another tensor.",
        shows="Nearly all elements wrong, no correlation with the reference.",
        confirm="Stale scales or weights of an earlier call, a wrong layout, a transposed operand.",
        fix="Look at what the call passes, and at what the library caches between calls.",
    ),
    Page(
        "part of each sum missing or counted twice",
        means="Outputs resemble the right ones, but terms of each sum are missing or double.",
        shows="All elements off, by a share of their size that is about the square root of the missing part.",
        confirm="Vary k: if multiples of the block size are right and others wrong, the last block is at fault.",
        fix="Look at the loop over k (cdiv against floor division) and at the mask of its last block.",
    ),
    Page(
        "lower precision than asked",
        means="Outputs are right except for lost digits: they were accumulated, stored or multiplied in a smaller "
        "format.",
        shows="Small errors everywhere, beyond what the asked precision allows.",
        confirm="TF32 loses 13 bits of each operand, an fp16 accumulator 13 bits of the sum, a bf16 partial sum 16.",
        fix="Look at allow_tf32, at the accumulator's dtype and at the dtype of split-k scratch.",
    ),
    Page(
        "rounded toward zero",
        means="The last rounding cuts digits off instead of rounding to nearest.",
        shows="Nearly every wrong element is too small in magnitude, by less than one unit in the last place.",
        confirm="The bias in the finding.",
        fix="Look at the final cast: a bit mask or a cast with rounding mode rtz.",
    ),
    Page(
        "NaN",
        means="Wrong elements are NaN.",
        shows="The finding says where they start and how many there are.",
        confirm="NaN in whole rows comes from that row's input; NaN in columns from weights or scales read outside.",
        fix="See the cause the finding names.",
    ),
)
PATTERNS = {page.title: page for page in _PAGES}
"""What a title says of how an output is wrong, explained."""
