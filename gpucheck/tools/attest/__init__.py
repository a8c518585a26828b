"""What a run proved, on what, as an in-toto statement that other tools sign, and whether one holds."""
