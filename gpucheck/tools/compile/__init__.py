"""Builds the kernels that a scenario would launch, for GPUs that are not here and with Tritons that are not installed.

The library's own host code runs in processes of its own (``compile_process.py``) under a stand-in driver, on CPU
tensors; every launch is turned into a compilation. No kernel runs, so nothing here says whether numbers are right.
"""
