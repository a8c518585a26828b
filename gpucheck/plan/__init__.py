"""From a scenario file and options to a plan: which cases run, under which conditions, on which device."""
