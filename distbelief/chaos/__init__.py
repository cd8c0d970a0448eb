"""Chaos: a run whose processes are killed and stopped at random, and what became of it."""
