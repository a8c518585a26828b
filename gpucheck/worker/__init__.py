"""One rank: what its two processes share. See `supervisor/` and `device/`."""
