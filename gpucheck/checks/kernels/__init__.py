"""Triton kernels of gpucheck itself, which the checks without a library launch."""
