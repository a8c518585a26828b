"""Probes that confirm a hazard, one for each kind; only the probing process imports them (needs torch and triton)."""
