"""Measurements of whole runs on this host."""
