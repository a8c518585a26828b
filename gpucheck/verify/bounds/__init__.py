"""Every bound of the project: how far a right result may lie from the float64 reference, and why.

A reference is built as an :class:`Estimate`: a float64 value together with the largest absolute error that a right
computation with fp32 accumulation may have made so far. Each operation below carries the error of its operands through
and adds its own. An ``error`` of None means exact data: no operation may round, so any right computation gives the
same bits. An unknown dtype raises; nothing falls back to a default tolerance.
"""

from gpucheck.verify.bounds.estimate import *  # noqa: F403
from gpucheck.verify.bounds.matrix_units import *  # noqa: F403
from gpucheck.verify.bounds.operation_bounds import *  # noqa: F403
from gpucheck.verify.bounds.softmax_attention import *  # noqa: F403
from gpucheck.verify.bounds.sums import *  # noqa: F403
