"""The run folder: written by the ranks, followed while they run, read back with the missing results as LOST."""
