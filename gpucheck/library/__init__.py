"""The library under test: finds, fetches, identifies and patches a copy of `triton_kernels`."""
