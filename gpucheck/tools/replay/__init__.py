"""A failing case again: a close-up of its errors, or its tensors with a script that runs without gpucheck."""
