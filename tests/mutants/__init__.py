"""Planted bugs that the suite must catch. `python -m tests.mutants.run` plants each in a copy and expects red."""
