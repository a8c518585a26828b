"""A failing case without gpucheck: its tensors as safetensors, and a script that makes the very same calls."""
