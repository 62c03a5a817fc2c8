"""Results of analyses, beside their trace or elsewhere, and what unfinished jobs keep."""
