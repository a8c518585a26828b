"""gpucheck: prove that every GPU rank computes the right numbers with exactly the software installed there."""

__version__ = "0.1.0"
