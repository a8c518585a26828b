"""From findings to a report in neutral blocks; decides nothing, and `formats/` renders it."""
