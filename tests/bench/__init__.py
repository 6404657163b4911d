"""`make bench`: how fast optd is beside what else one would use, and what it takes of memory.

A row compares two sides. `row` says what that is, `rows/` declares them, a file for each family; `ours` is how they
use optd, `references/` what they compare it with. `measure` runs a row, `report` shows and writes the results.
"""
