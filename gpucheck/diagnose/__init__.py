"""From the records of a run to its verdict and to findings with a cause; pure functions that print nothing."""
