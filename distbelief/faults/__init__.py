"""Faults on purpose: named points in the code, links that lose messages, files that fail."""
