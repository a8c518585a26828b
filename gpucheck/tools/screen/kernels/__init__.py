"""Triton kernels of the screen: one program a multiprocessor, exact data, a digest for each group of tiles."""
