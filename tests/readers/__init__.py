"""Readers that we did not write, against what was written; ``make readers`` prints the table."""
