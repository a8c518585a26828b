"""Right or wrong: compares outputs with references on the CPU; all error bounds are in `bounds/`."""
