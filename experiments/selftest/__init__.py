"""fnn checked by its own tools: every float, every mutant: python -m experiments.selftest."""
